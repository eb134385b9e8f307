/* The data plane of the simulated engine: what the kernel would know of each flow and socket.

   The control plane (drivers, callouts, routes) is wfpioctl/simulator.py; it tells this file about
   flows, and the IOCTLs are answered from here without Python.  One engine at most is open in a
   process; its memory is never freed under a caller, so no call needs to be waited for. */
#ifndef WFPIOCTL_PROVIDER_ENGINE_H
#define WFPIOCTL_PROVIDER_ENGINE_H

#include "provider.h"

#include <stdbool.h>
#include <stddef.h>

/* Which of the disagreeing answers of W13 to W17 this kernel gives. */
typedef struct {
    DWORD too_small;      /* the code for a buffer that does not hold the answer (W13, W15) */
    DWORD names_size;     /* whether lpcbBytesReturned then says the size needed */
    DWORD minimum;        /* a smaller buffer than this is WSAEINVAL (W14), bytes */
    DWORD not_redirected; /* the code for a connection that nobody redirected (W17) */
    DWORD no_context;     /* the code for no context; 0 = success with 0 bytes (W16) */
} EngineDialect;

/* An address of either family: IPv4 ones in their mapped form, so that both compare. */
typedef struct {
    unsigned char address[16];
    uint16_t port;
} Endpoint;

typedef struct {
    uint64_t id;
    const void *records;
    DWORD records_size;
    const void *context;
    DWORD context_size;
} FlowData;

/* Read "host", port into an endpoint; false if host is no numeric address. */
bool endpoint_parse(const char *host, uint16_t port, Endpoint *endpoint);

void engine_open(const EngineDialect *dialect, uint64_t secret);
void engine_close(void);

/* Around a fork; see forks.c. */
void engine_before_fork(void);
void engine_after_fork(void);

/* A flow is known before its connection exists.  `app` is the connecting socket, or INVALID_SOCKET
   for a flow that lasts until it is removed.  False: out of memory. */
bool engine_add_flow(SOCKET app, const Endpoint *local, const Endpoint *remote,
                     const FlowData *flow);
bool engine_remove_flow(const Endpoint *local, const Endpoint *remote);

/* A UDP flow from the socket `app` at `app_end` to the proxy's port.  The next datagram between
   these two that no earlier flow of the app claims carries its data, and no later one (W61). False:
   out of memory. */
bool engine_add_datagram_flow(SOCKET app, const Endpoint *app_end, uint16_t proxy_port,
                              const FlowData *flow);

/* Remember of a socket, as long as it lives, where its datagrams for a destination really go: text
   of the control plane's.  engine_target_of() is a copy (malloc), or NULL. */
bool engine_set_target(SOCKET socket, const Endpoint *destination, const void *target, DWORD size);
char *engine_target_of(SOCKET socket, const Endpoint *destination, DWORD *size, bool *no_memory);

/* Whatever is accepted on `port` and belongs to no flow counts as this one. */
bool engine_add_listener(uint16_t port, const FlowData *flow);
bool engine_remove_listener(uint16_t port);

/* The id of the flow that an accepted socket belongs to, or 0. */
uint64_t engine_flow_id(SOCKET accepted);

/* A copy (malloc) of the records that were SET on a socket, or NULL with *size = 0; *no_memory. */
char *engine_records_of(SOCKET socket, DWORD *size, bool *no_memory);

/* Records start with this mark; SET accepts only records whose mark is right (W25). */
#define RECORDS_MARK_SIZE 16u
void engine_mark(void *records, DWORD size);

void engine_counts(size_t *flows, size_t *sockets);

#endif
