/* The simulated engine's data plane against a model that knows no table: flows by connection,
   records by socket.  The sockets are real; the fuzzer says what happens to them. */
#include "provider_engine.h"

#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define PAIRS 4
#define OUTBOUND 4
#define MAX_SIZE 600

#define RECORDS SIO_QUERY_WFP_CONNECTION_REDIRECT_RECORDS
#define CONTEXT SIO_QUERY_WFP_CONNECTION_REDIRECT_CONTEXT
#define SET SIO_SET_WFP_CONNECTION_REDIRECT_RECORDS

typedef struct {
    bool known;
    uint64_t id;
    DWORD records_size, context_size;
    char records[MAX_SIZE], context[MAX_SIZE];
} Flow;

static int clients[PAIRS], servers[PAIRS], outbound[OUTBOUND], datagram;
static Endpoint client_ends[PAIRS], server_end;

static Flow flows[PAIRS], listener;
static Flow sets[OUTBOUND]; /* records alone */
static uint64_t next_id;
static EngineDialect dialect;

static const EngineDialect dialects[] = {
    {122, 1, 0, 1168, 0},
    {10014, 0, 4, 10022, 0},
    {10055, 1, 0, 0x80320008, 1168},
};

static const uint8_t *input;
static size_t left;

static void require(bool condition) {
    if (!condition) {
        abort();
    }
}

static unsigned next(unsigned limit) {
    unsigned value = 0;
    for (int i = 0; i < 2 && left > 0; i++, left--) {
        value = value << 8 | *input++;
    }
    return value % limit;
}

static Endpoint end_of(int fd) {
    struct sockaddr_in address;
    socklen_t size = sizeof address;
    Endpoint end;
    require(getsockname(fd, (struct sockaddr *)&address, &size) == 0);
    require(endpoint_parse("127.0.0.1", ntohs(address.sin_port), &end));
    return end;
}

static int tcp(void) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    require(fd >= 0);
    return fd;
}

int LLVMFuzzerInitialize(int *argc, char ***argv);

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int listening = tcp();
    require(bind(listening, (struct sockaddr *)&address, size) == 0 && listen(listening, 8) == 0);
    require(getsockname(listening, (struct sockaddr *)&address, &size) == 0);
    server_end = end_of(listening);
    for (int i = 0; i < PAIRS; i++) {
        clients[i] = tcp();
        require(connect(clients[i], (struct sockaddr *)&address, sizeof address) == 0);
        servers[i] = accept(listening, NULL, NULL);
        require(servers[i] >= 0);
        client_ends[i] = end_of(clients[i]);
    }
    for (int i = 0; i < OUTBOUND; i++) {
        outbound[i] = tcp();
    }
    datagram = socket(AF_INET, SOCK_DGRAM, 0);
    return 0;
}

/* ---- what the fuzzer can do --------------------------------------------------------------------
 */

static void make_flow(Flow *flow) {
    *flow = (Flow){.known = true, .id = ++next_id};
    flow->records_size = RECORDS_MARK_SIZE + next(MAX_SIZE - RECORDS_MARK_SIZE + 1);
    flow->context_size = next(3) ? next(MAX_SIZE + 1) : 0;
    memset(flow->records, (int)next_id, flow->records_size);
    memset(flow->context, (int)next_id + 1, flow->context_size);
    engine_mark(flow->records, flow->records_size);
}

static FlowData data_of(const Flow *flow) {
    return (FlowData){flow->id, flow->records, flow->records_size, flow->context,
                      flow->context_size};
}

static DWORD ioctl_of(int fd, DWORD code, void *in, DWORD in_size, void *out, DWORD capacity,
                      DWORD *returned) {
    int status =
        provider_engine.ioctl((SOCKET)fd, code, in, in_size, out, capacity, returned, NULL, NULL);
    DWORD error = (DWORD)provider_engine.last_error();
    require((status == 0) == (error == 0));
    return error;
}

static void query(int fd, const Flow *expected, DWORD failure) {
    bool want_context = next(2);
    DWORD capacity = next(MAX_SIZE + 2), returned = 77;
    char *out = malloc(capacity ? capacity : 1); /* its own: one byte too many is seen */
    DWORD error = ioctl_of(fd, want_context ? CONTEXT : RECORDS, NULL, 0, out, capacity, &returned);
    if (failure != 0) {
        require(error == failure && returned == 0);
    } else {
        DWORD size = want_context ? expected->context_size : expected->records_size;
        const char *data = want_context ? expected->context : expected->records;
        if (want_context && size == 0 && dialect.no_context != 0) {
            require(error == dialect.no_context);
        } else if (capacity < dialect.minimum) {
            require(error == WSAEINVAL && returned == 0);
        } else if (size > capacity) {
            require(error == dialect.too_small && returned == (dialect.names_size ? size : 0));
        } else {
            require(error == 0 && returned == size && memcmp(out, data, size) == 0);
        }
        require(engine_flow_id((SOCKET)fd) == expected->id);
    }
    free(out);
}

static void query_accepted(void) {
    unsigned i = next(PAIRS);
    const Flow *flow = flows[i].known ? &flows[i] : listener.known ? &listener : NULL;
    query(servers[i], flow, flow == NULL ? dialect.not_redirected : 0);
}

static void query_others(void) {
    switch (next(4)) {
    case 0:
        query(outbound[next(OUTBOUND)], NULL, WSAENOTCONN);
        break;
    case 1:
        query(datagram, NULL, WSAEOPNOTSUPP);
        break;
    case 2:
        query(99999, NULL, WSAENOTSOCK);
        break;
    default:
        query(clients[next(PAIRS)], NULL, dialect.not_redirected);
    }
}

static void set(void) {
    Flow flow;
    unsigned i = next(OUTBOUND), size;
    DWORD returned;
    make_flow(&flow);
    switch (next(4)) {
    case 0: /* a byte is not what it was */
        flow.records[next(flow.records_size)] ^= (char)(1 + next(255));
        require(ioctl_of(outbound[i], SET, flow.records, flow.records_size, NULL, 0, &returned) ==
                WSAEINVAL);
        break;
    case 1: /* not all of them, or none */
        size = next(flow.records_size);
        require(ioctl_of(outbound[i], SET, flow.records, size, NULL, 0, &returned) == WSAEINVAL);
        break;
    case 2: /* too late */
        require(ioctl_of(clients[next(PAIRS)], SET, flow.records, flow.records_size, NULL, 0,
                         &returned) == WSAEINVAL);
        break;
    default:
        require(ioctl_of(outbound[i], SET, flow.records, flow.records_size, NULL, 0, &returned) ==
                0);
        sets[i] = flow;
    }
}

static void read_set(void) {
    unsigned i = next(OUTBOUND);
    DWORD size;
    bool no_memory;
    char *records = engine_records_of((SOCKET)outbound[i], &size, &no_memory);
    require(!no_memory && size == (sets[i].known ? sets[i].records_size : 0));
    require((records != NULL) == sets[i].known);
    require(records == NULL || memcmp(records, sets[i].records, size) == 0);
    free(records);
}

static void add_flow(void) {
    unsigned i = next(PAIRS);
    make_flow(&flows[i]);
    FlowData data = data_of(&flows[i]);
    SOCKET app = next(2) ? (SOCKET)clients[i] : INVALID_SOCKET;
    require(engine_add_flow(app, &client_ends[i], &server_end, &data));
}

static void remove_flow(void) {
    unsigned i = next(PAIRS);
    require(engine_remove_flow(&client_ends[i], &server_end) == flows[i].known);
    flows[i].known = false;
}

static void toggle_listener(void) {
    if (next(2)) {
        require(engine_remove_listener(server_end.port) == listener.known);
        listener.known = false;
    } else {
        make_flow(&listener);
        FlowData data = data_of(&listener);
        require(engine_add_listener(server_end.port, &data));
    }
}

/* The number is used again, and nothing passes to the new socket. */
static void reopen(void) {
    unsigned i = next(OUTBOUND);
    int old = outbound[i];
    close(old);
    outbound[i] = tcp();
    sets[i].known = false;
}

static void strangers(void) {
    Flow flow;
    make_flow(&flow);
    FlowData data = data_of(&flow);
    for (unsigned i = 0, count = next(100); i < count; i++) {
        Endpoint end = client_ends[0];
        end.address[15] = 2;
        end.port = (uint16_t)next(0x10000);
        require(engine_add_flow(INVALID_SOCKET, &end, &server_end, &data));
    }
    Endpoint end;
    char text[40];
    size_t length = next(sizeof text);
    for (size_t i = 0; i < length; i++) {
        text[i] = (char)next(256);
    }
    text[length] = '\0';
    endpoint_parse(text, 1, &end);
}

static void restart(void) {
    engine_close();
    DWORD returned;
    char byte;
    require(ioctl_of(servers[0], RECORDS, NULL, 0, &byte, 1, &returned) == WSAEOPNOTSUPP);
    dialect = dialects[next(sizeof dialects / sizeof *dialects)];
    engine_open(&dialect, next(0x10000));
    memset(flows, 0, sizeof flows);
    memset(sets, 0, sizeof sets);
    listener.known = false;
}

static void count(void) {
    size_t known_flows, known_sockets, least = 0;
    engine_counts(&known_flows, &known_sockets);
    for (int i = 0; i < PAIRS; i++) {
        least += flows[i].known;
    }
    require(known_flows >= least);
}

static void (*const actions[])(void) = {query_accepted, query_accepted,
                                        query_accepted, add_flow,
                                        remove_flow,    toggle_listener,
                                        query_others,   set,
                                        read_set,       reopen,
                                        strangers,      restart,
                                        count,          set,
                                        add_flow,       read_set};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    input = data;
    left = size;
    next_id = 0;
    restart();
    while (left > 0) {
        left--;
        actions[*input++ % (sizeof actions / sizeof *actions)]();
    }
    engine_close();
    return 0;
}
