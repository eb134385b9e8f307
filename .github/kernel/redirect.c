/* The driver side of tests/test_kernel_redirected.py, as an eBPF program for Windows: TCP connects
   to any IPv4 address at port 18080 go to 127.0.0.1 port 15001.  The context is the original
   address.

   Redirected again by nobody: a connection whose socket carries this driver's records does not get
   here, since the eBPF extension looks at the redirect state first (W50, W51).  Never run so far.
 */
#include "bpf_helpers.h"
#include "ebpf_nethooks.h"

#define FAMILY_IPV4 2
#define PROTOCOL_TCP 6
#define NETWORK_ORDER(port) (uint16_t)((port) >> 8 | ((port)&0xFF) << 8)

typedef struct {
    uint32_t address; /* network order */
    uint16_t port;    /* network order */
    uint16_t zero;
} context_t;

SEC("cgroup/connect4")
int redirect(bpf_sock_addr_t *connection) {
    if (connection->family != FAMILY_IPV4 || connection->protocol != PROTOCOL_TCP ||
        connection->user_port != NETWORK_ORDER(18080)) {
        return BPF_SOCK_ADDR_VERDICT_PROCEED_SOFT;
    }
    context_t context = {connection->user_ip4, connection->user_port, 0};
    if (bpf_sock_addr_set_redirect_context(connection, &context, sizeof context) < 0) {
        return BPF_SOCK_ADDR_VERDICT_REJECT;
    }
    connection->user_ip4 = 0x0100007F; /* 127.0.0.1 in network order, on a little-endian machine */
    connection->user_port = NETWORK_ORDER(15001);
    return BPF_SOCK_ADDR_VERDICT_PROCEED_SOFT;
}
