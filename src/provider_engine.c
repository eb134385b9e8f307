/* The simulated engine's data plane: one hash table in shards, each with a lock of its own.

   A flow is found by the connection's two ends, the records that were SET by the socket's handle
   and identity, so that nothing passes from a closed socket to a new one with the same number. */
#include "provider_engine.h"

#include "control_message.h"
#include "platform.h"
#include "simulated.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#ifdef _WIN32
#include <winternl.h>
typedef int socklen_t;
#else
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#endif

/* ---- sockets --------------------------------------------------------------------------------- */

#ifdef _WIN32

/* The inode behind a socket, which only Wine tells; 0 = not to be had. */
static uint64_t wine_inode(SOCKET socket) {
    typedef LONG(NTAPI * QueryFile)(HANDLE, IO_STATUS_BLOCK *, void *, ULONG, int);
    enum { file_internal_information = 6 };
    HMODULE ntdll = GetModuleHandleW(L"ntdll.dll");
    QueryFile query_file =
        ntdll == NULL ? NULL
                      : (QueryFile)(void (*)(void))GetProcAddress(ntdll, "NtQueryInformationFile");
    IO_STATUS_BLOCK status;
    uint64_t inode = 0;
    if (query_file == NULL ||
        query_file((HANDLE)socket, &status, &inode, sizeof inode, file_internal_information) != 0) {
        return 0;
    }
    return inode;
}

/* What tells a socket from a later one with the same handle: the ALE endpoint handle (W06), or
   under Wine, which lacks that, the inode.  0 = not to be had. */
static uint64_t socket_identity(SOCKET socket) {
    static const DWORD query_ale_endpoint_handle = 0x580000CDu; /* W06 */
    uint64_t identity = 0;
    DWORD returned;
    if (WSAIoctl(socket, query_ale_endpoint_handle, NULL, 0, &identity, sizeof identity, &returned,
                 NULL, NULL) == 0) {
        return identity;
    }
    return wine_inode(socket);
}

static DWORD socket_error(void) { return (DWORD)WSAGetLastError(); }

#define SOCKET_ARGUMENT(socket) (socket)

#else

static uint64_t socket_identity(SOCKET socket) {
    struct stat status;
    return fstat((int)socket, &status) == 0 ? (uint64_t)status.st_ino : 0;
}

/* Else it is not connected: ENOTCONN, and of one that was reset EINVAL on some systems. */
static DWORD socket_error(void) {
    return errno == EBADF || errno == ENOTSOCK ? WSAENOTSOCK : WSAENOTCONN;
}

#define SOCKET_ARGUMENT(socket) ((int)(socket))

#endif /* _WIN32 */

static const unsigned char mapped_prefix[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

static bool endpoint_from_sockaddr(const struct sockaddr_storage *storage, Endpoint *endpoint) {
    if (storage->ss_family == AF_INET) {
        struct sockaddr_in ipv4;
        memcpy(&ipv4, storage, sizeof ipv4);
        memcpy(endpoint->address, mapped_prefix, 12);
        memcpy(endpoint->address + 12, &ipv4.sin_addr, 4);
        endpoint->port = ntohs(ipv4.sin_port);
        return true;
    }
    if (storage->ss_family == AF_INET6) {
        struct sockaddr_in6 ipv6;
        memcpy(&ipv6, storage, sizeof ipv6);
        memcpy(endpoint->address, &ipv6.sin6_addr, 16);
        endpoint->port = ntohs(ipv6.sin6_port);
        return true;
    }
    return false;
}

bool endpoint_parse(const char *host, uint16_t port, Endpoint *endpoint) {
    endpoint->port = port;
    memcpy(endpoint->address, mapped_prefix, 12);
    if (inet_pton(AF_INET, host, endpoint->address + 12) == 1) {
        return true;
    }
    return inet_pton(AF_INET6, host, endpoint->address) == 1;
}

/* Is it a socket of this type?  0, or the code that Winsock gives: WSAENOTSOCK (W19), or `other`.
 */
static DWORD check_type(SOCKET socket, int wanted, DWORD other) {
    int type = 0;
    socklen_t size = sizeof type;
    if (getsockopt(SOCKET_ARGUMENT(socket), SOL_SOCKET, SO_TYPE, (void *)&type, &size) != 0) {
        return socket_error();
    }
    return type == wanted ? 0 : other;
}

/* Both ends of a connection as its accepted side sees them, or a code (W18). */
static DWORD connection_ends(SOCKET socket, Endpoint *remote, Endpoint *local) {
    struct sockaddr_storage peer, name;
    if (!winsock_peer(socket, &peer) || !winsock_name(socket, &name)) {
        return socket_error();
    }
    bool known = endpoint_from_sockaddr(&peer, remote) && endpoint_from_sockaddr(&name, local);
    return known ? 0 : WSAEOPNOTSUPP;
}

/* ---- the table ------------------------------------------------------------------------------- */

typedef enum {
    FLOW,
    LISTENER,
    SOCKET_RECORDS,
    DATAGRAM_FLOW,
    SOCKET_OPTION, /* there once it is on (W41) */
    SOCKET_TARGET,
} EntryKind;

typedef struct {
    uint64_t words[5];
} Key;

typedef struct {
    SOCKET socket;
    uint64_t identity; /* 0: nobody known */
} Owner;

typedef struct Entry {
    struct Entry *next;
    Key key;
    EntryKind kind;
    uint64_t id;
    Owner app, accepted; /* a flow is over when both are known and closed */
    DWORD records_size, context_size;
    char data[]; /* records, then context */
} Entry;

#define SHARD_COUNT 16u
#define SWEEP_BUCKETS 2 /* looked at for finished entries, each time one is added */

typedef struct {
    Mutex lock;
    Entry **buckets;
    size_t bucket_count; /* 0 or a power of two */
    size_t entry_count;
    size_t sweep_hand;
} Shard;

static Shard shards[SHARD_COUNT];
static bool shards_ready;
static atomic_bool is_open;
static EngineDialect dialect; /* read with any shard locked, written with all */
static _Atomic uint64_t secret;

static Key key_of_flow(const Endpoint *app_end, const Endpoint *proxy_end) {
    Key key;
    memcpy(&key.words[0], app_end->address, 16);
    memcpy(&key.words[2], proxy_end->address, 16);
    key.words[4] = (uint64_t)app_end->port << 32 | (uint64_t)proxy_end->port << 8 | FLOW;
    return key;
}

static Key key_of_listener(uint16_t port) { return (Key){.words = {port, 0, 0, 0, LISTENER}}; }

static Key key_of_socket(SOCKET socket, uint64_t identity) {
    return (Key){.words = {socket, identity, 0, 0, SOCKET_RECORDS}};
}

static Key key_of_datagram_flow(const Endpoint *app_end, uint16_t proxy_port) {
    Key key;
    memcpy(&key.words[0], app_end->address, 16);
    key.words[2] = app_end->port;
    key.words[3] = proxy_port; /* the proxy may be bound to any address */
    key.words[4] = DATAGRAM_FLOW;
    return key;
}

static Key key_of_option(SOCKET socket, uint64_t identity, int level, int option) {
    return (Key){.words = {socket, identity, (uint64_t)level, (uint64_t)option, SOCKET_OPTION}};
}

static Key key_of_target(SOCKET socket, uint64_t identity, const Endpoint *destination) {
    Key key;
    memcpy(&key.words[0], destination->address, 16);
    key.words[2] = socket;
    key.words[3] = identity;
    key.words[4] = (uint64_t)destination->port << 32 | SOCKET_TARGET;
    return key;
}

static uint64_t hash_words(const uint64_t *words, size_t count, uint64_t seed) {
    uint64_t hash = seed;
    for (size_t i = 0; i < count; i++) {
        hash = (hash ^ words[i]) * 0x9E3779B97F4A7C15u;
        hash ^= hash >> 32;
    }
    return hash;
}

static uint64_t hash_of(const Key *key) { return hash_words(key->words, 5, 0); }

static Shard *shard_of(uint64_t hash) { return &shards[hash % SHARD_COUNT]; }

static Entry **bucket_of(Shard *shard, uint64_t hash) {
    return &shard->buckets[(hash / SHARD_COUNT) & (shard->bucket_count - 1)];
}

/* The link that points to the entry with this key (or the NULL where it would be); shard locked. */
static Entry **find_link(Shard *shard, uint64_t hash, const Key *key) {
    static Entry *nothing = NULL;
    if (shard->bucket_count == 0) {
        return &nothing;
    }
    Entry **link = bucket_of(shard, hash);
    while (*link != NULL && memcmp(&(*link)->key, key, sizeof *key) != 0) {
        link = &(*link)->next;
    }
    return link;
}

static void unlink_entry(Shard *shard, Entry **link) {
    Entry *entry = *link;
    *link = entry->next;
    shard->entry_count--;
    free(entry);
}

static bool owner_is_gone(const Owner *owner) {
    return socket_identity(owner->socket) != owner->identity;
}

static bool is_finished(const Entry *entry) {
    switch (entry->kind) {
    case FLOW:
        /* One that nobody has asked about may still wait to be accepted. */
        return entry->app.identity != 0 && entry->accepted.identity != 0 &&
               owner_is_gone(&entry->app) && owner_is_gone(&entry->accepted);
    case SOCKET_RECORDS:
    case SOCKET_OPTION:
    case SOCKET_TARGET:
        return entry->app.identity != 0 && owner_is_gone(&entry->app);
    default:
        return false;
    }
}

static void sweep(Shard *shard) {
    for (int i = 0; i < SWEEP_BUCKETS; i++) {
        Entry **link = &shard->buckets[shard->sweep_hand++ & (shard->bucket_count - 1)];
        while (*link != NULL) {
            if (is_finished(*link)) {
                unlink_entry(shard, link);
            } else {
                link = &(*link)->next;
            }
        }
    }
}

/* Link an entry in behind all others of its bucket: those with one key stay in their order. */
static void append(Shard *shard, uint64_t hash, Entry *entry) {
    Entry **link = bucket_of(shard, hash);
    while (*link != NULL) {
        link = &(*link)->next;
    }
    entry->next = NULL;
    *link = entry;
}

/* Room for one more entry; false: out of memory and no room at all. */
static bool reserve(Shard *shard) {
    if (shard->entry_count < shard->bucket_count) {
        return true;
    }
    size_t old_count = shard->bucket_count;
    size_t new_count = old_count ? old_count * 2 : 16;
    Entry **buckets = calloc(new_count, sizeof *buckets);
    if (buckets == NULL) {
        return old_count != 0; /* longer chains will do */
    }
    Entry **old_buckets = shard->buckets;
    shard->buckets = buckets;
    shard->bucket_count = new_count;
    for (size_t i = 0; i < old_count; i++) {
        for (Entry *entry = old_buckets[i], *next; entry != NULL; entry = next) {
            next = entry->next;
            append(shard, hash_of(&entry->key), entry);
        }
    }
    free(old_buckets);
    return true;
}

static Entry *entry_new(EntryKind kind, const Key *key, const FlowData *flow) {
    Entry *entry = malloc(sizeof *entry + flow->records_size + flow->context_size);
    if (entry == NULL) {
        return NULL;
    }
    *entry = (Entry){.key = *key,
                     .kind = kind,
                     .id = flow->id,
                     .records_size = flow->records_size,
                     .context_size = flow->context_size};
    if (flow->records_size != 0) {
        memcpy(entry->data, flow->records, flow->records_size);
    }
    if (flow->context_size != 0) {
        memcpy(entry->data + flow->records_size, flow->context, flow->context_size);
    }
    return entry;
}

/* Flows of one UDP socket, to several destinations that have one proxy, wait for their turns. */
static bool makes_way(const Entry *old, const Entry *entry) {
    return old->kind != DATAGRAM_FLOW || old->app.identity != entry->app.identity;
}

/* Put an entry in, instead of those with the same key. */
static bool insert(Entry *entry) {
    if (entry == NULL) {
        return false;
    }
    uint64_t hash = hash_of(&entry->key);
    Shard *shard = shard_of(hash);
    mutex_lock(&shard->lock);
    bool reserved = reserve(shard);
    if (reserved) {
        sweep(shard);
        Entry **link;
        while (*(link = find_link(shard, hash, &entry->key)) != NULL && makes_way(*link, entry)) {
            unlink_entry(shard, link);
        }
        append(shard, hash, entry);
        shard->entry_count++;
    }
    mutex_unlock(&shard->lock);
    if (!reserved) {
        free(entry);
    }
    return reserved;
}

static bool remove_key(const Key *key) {
    uint64_t hash = hash_of(key);
    Shard *shard = shard_of(hash);
    mutex_lock(&shard->lock);
    Entry **link = find_link(shard, hash, key);
    bool found = *link != NULL;
    if (found) {
        unlink_entry(shard, link);
    }
    mutex_unlock(&shard->lock);
    return found;
}

/* ---- control --------------------------------------------------------------------------------- */

static void lock_all(void) {
    for (size_t i = 0; i < SHARD_COUNT; i++) {
        mutex_lock(&shards[i].lock);
    }
}

static void unlock_all(void) {
    for (size_t i = 0; i < SHARD_COUNT; i++) {
        mutex_unlock(&shards[i].lock);
    }
}

void engine_before_fork(void) {
    if (shards_ready) {
        lock_all();
    }
}

void engine_after_fork(void) {
    if (shards_ready) {
        unlock_all();
    }
}

void engine_open(const EngineDialect *new_dialect, uint64_t new_secret) {
    if (!shards_ready) {
        for (size_t i = 0; i < SHARD_COUNT; i++) {
            mutex_init(&shards[i].lock);
        }
        shards_ready = true;
    }
    lock_all();
    dialect = *new_dialect;
    unlock_all();
    atomic_store(&secret, new_secret);
    atomic_store(&is_open, true);
}

void engine_close(void) {
    atomic_store(&is_open, false);
    for (size_t i = 0; i < SHARD_COUNT; i++) {
        Shard *shard = &shards[i];
        mutex_lock(&shard->lock);
        for (size_t bucket = 0; bucket < shard->bucket_count; bucket++) {
            while (shard->buckets[bucket] != NULL) {
                unlink_entry(shard, &shard->buckets[bucket]);
            }
        }
        free(shard->buckets);
        shard->buckets = NULL;
        shard->bucket_count = 0;
        mutex_unlock(&shard->lock);
    }
}

bool engine_add_flow(SOCKET app, const Endpoint *local, const Endpoint *remote,
                     const FlowData *flow) {
    Key key = key_of_flow(local, remote);
    Entry *entry = entry_new(FLOW, &key, flow);
    if (entry != NULL && app != INVALID_SOCKET) {
        entry->app = (Owner){app, socket_identity(app)};
    }
    return insert(entry);
}

/* Put an entry in that belongs to a socket. */
static bool insert_of(const Owner *owner, Entry *entry) {
    if (entry != NULL) {
        entry->app = *owner;
    }
    return insert(entry);
}

bool engine_add_datagram_flow(SOCKET app, const Endpoint *app_end, uint16_t proxy_port,
                              const FlowData *flow) {
    Owner owner = {app, socket_identity(app)};
    Key key = key_of_datagram_flow(app_end, proxy_port);
    return insert_of(&owner, entry_new(DATAGRAM_FLOW, &key, flow));
}

bool engine_set_target(SOCKET socket, const Endpoint *destination, const void *target, DWORD size) {
    Owner owner = {socket, socket_identity(socket)};
    Key key = key_of_target(owner.socket, owner.identity, destination);
    FlowData data = {.records = target, .records_size = size};
    return insert_of(&owner, entry_new(SOCKET_TARGET, &key, &data));
}

bool engine_remove_flow(const Endpoint *local, const Endpoint *remote) {
    Key key = key_of_flow(local, remote);
    return remove_key(&key);
}

bool engine_add_listener(uint16_t port, const FlowData *flow) {
    Key key = key_of_listener(port);
    return insert(entry_new(LISTENER, &key, flow));
}

bool engine_remove_listener(uint16_t port) {
    Key key = key_of_listener(port);
    return remove_key(&key);
}

/* The mark: a name that a reader of a dump recognises, and a keyed sum over the rest. */
static void compute_mark(const void *records, DWORD size, char mark[RECORDS_MARK_SIZE]) {
    static const char name[8] = {'W', 'F', 'P', 'S', 'I', 'M', '\r', '\n'};
    const unsigned char *bytes = records;
    uint64_t seed = atomic_load(&secret), sum = seed ^ size;
    for (DWORD i = RECORDS_MARK_SIZE; i < size; i++) {
        sum = (sum ^ bytes[i]) * 0x100000001B3u;
    }
    sum = hash_words(&sum, 1, seed);
    memcpy(mark, name, sizeof name);
    memcpy(mark + sizeof name, &sum, sizeof sum);
}

void engine_mark(void *records, DWORD size) {
    char mark[RECORDS_MARK_SIZE];
    compute_mark(records, size, mark);
    memcpy(records, mark, sizeof mark);
}

/* Do these bytes carry the mark that engine_mark() gives them? */
static bool is_genuine(const void *records, DWORD size) {
    char mark[RECORDS_MARK_SIZE];
    if (size < RECORDS_MARK_SIZE) {
        return false;
    }
    compute_mark(records, size, mark);
    return memcmp(mark, records, sizeof mark) == 0;
}

void engine_counts(size_t *flows, size_t *sockets) {
    *flows = *sockets = 0;
    for (size_t i = 0; i < SHARD_COUNT; i++) {
        Shard *shard = &shards[i];
        mutex_lock(&shard->lock);
        for (size_t bucket = 0; bucket < shard->bucket_count; bucket++) {
            for (const Entry *entry = shard->buckets[bucket]; entry != NULL; entry = entry->next) {
                if (entry->kind == FLOW || entry->kind == DATAGRAM_FLOW) {
                    ++*flows;
                } else if (entry->kind == SOCKET_RECORDS) {
                    ++*sockets;
                }
            }
        }
        mutex_unlock(&shard->lock);
    }
}

/* ---- the IOCTLs ------------------------------------------------------------------------------ */

/* An accepted connection's flow: by its two ends, else by the port that it arrived on.  The shard
   of an entry that is returned is locked. */
static Entry *find_accepted(SOCKET socket, Shard **shard, DWORD *error) {
    Endpoint remote, local;
    *error = check_type(socket, SOCK_STREAM, WSAEOPNOTSUPP);
    if (*error == 0) {
        *error = connection_ends(socket, &remote, &local);
    }
    if (*error != 0) {
        return NULL;
    }
    Owner owner = {socket, socket_identity(socket)};
    const Key keys[2] = {key_of_flow(&remote, &local), key_of_listener(local.port)};
    for (size_t i = 0; i < 2; i++) {
        uint64_t hash = hash_of(&keys[i]);
        *shard = shard_of(hash);
        mutex_lock(&(*shard)->lock);
        Entry **link = find_link(*shard, hash, &keys[i]);
        Entry *entry = *link;
        if (entry != NULL && entry->kind == FLOW) {
            if (entry->accepted.identity != 0 && entry->accepted.identity != owner.identity) {
                unlink_entry(*shard, link); /* an earlier connection between the same ends */
                entry = NULL;
            } else {
                entry->accepted = owner;
            }
        }
        if (entry != NULL) {
            return entry;
        }
        *error = dialect.not_redirected;
        mutex_unlock(&(*shard)->lock);
    }
    return NULL;
}

/* 0 with *returned set, or the dialect's code. */
static DWORD answer(const char *data, DWORD size, void *output, DWORD capacity, DWORD *returned) {
    if (capacity < dialect.minimum) {
        return WSAEINVAL;
    }
    if (size > capacity) {
        *returned = dialect.names_size ? size : 0;
        return dialect.too_small;
    }
    if (size != 0) {
        memcpy(output, data, size);
    }
    *returned = size;
    return 0;
}

static DWORD query(SOCKET socket, bool want_context, void *output, DWORD capacity,
                   DWORD *returned) {
    Shard *shard;
    DWORD error;
    const Entry *entry = find_accepted(socket, &shard, &error);
    if (entry == NULL) {
        return error;
    }
    if (!want_context) {
        error = answer(entry->data, entry->records_size, output, capacity, returned);
    } else if (entry->context_size == 0 && dialect.no_context != 0) {
        error = dialect.no_context;
    } else {
        error = answer(entry->data + entry->records_size, entry->context_size, output, capacity,
                       returned);
    }
    mutex_unlock(&shard->lock);
    return error;
}

static DWORD set(SOCKET socket, const void *records, DWORD size) {
    Endpoint remote, local;
    DWORD error = check_type(socket, SOCK_STREAM, WSAEOPNOTSUPP);
    if (error != 0) {
        return error;
    }
    if (connection_ends(socket, &remote, &local) == 0 || !is_genuine(records, size)) {
        return WSAEINVAL; /* SET precedes the connect (W23) */
    }
    Owner owner = {socket, socket_identity(socket)};
    Key key = key_of_socket(owner.socket, owner.identity);
    FlowData flow = {.records = records, .records_size = size};
    return insert_of(&owner, entry_new(SOCKET_RECORDS, &key, &flow)) ? 0 : WSAENOBUFS;
}

static int WSAAPI engine_ioctl(SOCKET socket, DWORD code, void *input, DWORD input_size,
                               void *output, DWORD output_size, DWORD *returned,
                               WSAOVERLAPPED *overlapped,
                               LPWSAOVERLAPPED_COMPLETION_ROUTINE completion) {
    DWORD error = WSAEOPNOTSUPP;
    *returned = 0;
    if (atomic_load(&is_open)) {
        switch (code) {
        case SIO_QUERY_WFP_CONNECTION_REDIRECT_RECORDS:
        case SIO_QUERY_WFP_CONNECTION_REDIRECT_CONTEXT:
            error = query(socket, code == SIO_QUERY_WFP_CONNECTION_REDIRECT_CONTEXT, output,
                          output_size, returned);
            break;
        case SIO_SET_WFP_CONNECTION_REDIRECT_RECORDS:
            error = set(socket, input, input_size);
            break;
        default:
            break;
        }
    }
    if (error == 0 && overlapped != NULL) {
        error = simulated_succeed(overlapped, completion, *returned);
    }
    WSASetLastError((int)error);
    return error == 0 ? 0 : SOCKET_ERROR;
}

static int WSAAPI engine_last_error(void) { return WSAGetLastError(); }

/* ---- datagrams ------------------------------------------------------------------------------- */

static DWORD enable_option(SOCKET socket, int level, int option) {
    DWORD error = check_type(socket, SOCK_DGRAM, WSAENOPROTOOPT);
    if (error != 0) {
        return error;
    }
    Owner owner = {socket, socket_identity(socket)};
    Key key = key_of_option(owner.socket, owner.identity, level, option);
    return insert_of(&owner, entry_new(SOCKET_OPTION, &key, &(FlowData){0})) ? 0 : WSAENOBUFS;
}

/* Only called to turn one of the options of W41 on. */
static int WSAAPI engine_setsockopt(SOCKET socket, int level, int option, const char *value,
                                    int size) {
    (void)value, (void)size;
    DWORD error = atomic_load(&is_open) ? enable_option(socket, level, option) : WSAENOPROTOOPT;
    WSASetLastError((int)error);
    return error == 0 ? 0 : SOCKET_ERROR;
}

static bool option_is_on(SOCKET socket, int level, int option) {
    Key key = key_of_option(socket, socket_identity(socket), level, option);
    uint64_t hash = hash_of(&key);
    Shard *shard = shard_of(hash);
    mutex_lock(&shard->lock);
    bool found = *find_link(shard, hash, &key) != NULL;
    mutex_unlock(&shard->lock);
    return found;
}

/* Append a control message; one that does not fit is cut short, as a kernel would. */
static void append_control(WSAMSG *message, DWORD capacity, int level, int type, const char *data,
                           size_t size) {
    size_t left = capacity - message->Control.len;
    if (control_space(size) > left) {
        message->dwFlags |= MSG_CTRUNC;
        if (left < control_space(0)) {
            return;
        }
        size = (left - control_space(0)) / sizeof(size_t) * sizeof(size_t);
    }
    char *end = message->Control.buf + message->Control.len;
    message->Control.len += (DWORD)control_write(end, level, type, data, size);
}

/* Add the flow's data to the datagram that created it (W40), as far as the socket wants it (W41).
   A datagram that was only peeked at comes again. */
static void add_flow_data(SOCKET socket, WSAMSG *message, DWORD capacity, bool peeked) {
    struct sockaddr_storage name;
    Endpoint app_end, proxy_end;
    const struct sockaddr_storage *peer = (const struct sockaddr_storage *)(void *)message->name;
    if (peer == NULL || !winsock_name(socket, &name) ||
        !endpoint_from_sockaddr(&name, &proxy_end) || !endpoint_from_sockaddr(peer, &app_end)) {
        return;
    }
    int level = control_level(peer);
    bool wants_records = option_is_on(socket, level, IP_WFP_REDIRECT_RECORDS);
    bool wants_context = option_is_on(socket, level, IP_WFP_REDIRECT_CONTEXT);
    Key key = key_of_datagram_flow(&app_end, proxy_end.port);
    uint64_t hash = hash_of(&key);
    Shard *shard = shard_of(hash);
    mutex_lock(&shard->lock);
    Entry **link = find_link(shard, hash, &key);
    const Entry *entry = *link;
    if (entry != NULL) {
        if (wants_records && entry->records_size != 0) {
            append_control(message, capacity, level, IP_WFP_REDIRECT_RECORDS, entry->data,
                           entry->records_size);
        }
        if (wants_context && entry->context_size != 0) {
            append_control(message, capacity, level, IP_WFP_REDIRECT_CONTEXT,
                           entry->data + entry->records_size, entry->context_size);
        }
        if (!peeked) {
            unlink_entry(shard, link);
        }
    }
    mutex_unlock(&shard->lock);
}

static int WSAAPI engine_recvmsg(SOCKET socket, WSAMSG *message, DWORD *received,
                                 WSAOVERLAPPED *overlapped,
                                 LPWSAOVERLAPPED_COMPLETION_ROUTINE completion) {
    DWORD capacity = message->Control.len;
    bool peeked = (message->dwFlags & MSG_PEEK) != 0;
    int status = winsock_recvmsg(socket, message, received, overlapped, completion);
    if (status != 0 && WSAGetLastError() != SOCKET_EMSGSIZE) {
        return status;
    }
    if (atomic_load(&is_open)) {
        add_flow_data(socket, message, capacity, peeked);
    }
    if ((message->dwFlags & (MSG_TRUNC | MSG_CTRUNC)) == 0) {
        return 0;
    }
    WSASetLastError(SOCKET_EMSGSIZE);
    return SOCKET_ERROR;
}

static int WSAAPI engine_sendmsg(SOCKET socket, WSAMSG *message, DWORD flags, DWORD *sent,
                                 WSAOVERLAPPED *overlapped,
                                 LPWSAOVERLAPPED_COMPLETION_ROUTINE completion) {
    RedirectData redirect;
    bool whole = control_parse(message->Control.buf, message->Control.len, false, &redirect);
    if (!whole ||
        (redirect.records != NULL && !is_genuine(redirect.records, (DWORD)redirect.records_size))) {
        WSASetLastError(SOCKET_EINVAL);
        return SOCKET_ERROR;
    }
    WSAMSG real = *message; /* the records stay in this engine */
    real.Control = (WSABUF){0};
    return winsock_sendmsg(socket, &real, flags, sent, overlapped, completion);
}

const Provider provider_engine = {
    .ioctl = engine_ioctl,
    .overlapped_result = simulated_overlapped_result,
    .cancel = simulated_cancel,
    .last_error = engine_last_error,
    .recvmsg = engine_recvmsg,
    .sendmsg = engine_sendmsg,
    .setsockopt = engine_setsockopt,
};

uint64_t engine_flow_id(SOCKET accepted) {
    Shard *shard;
    DWORD error;
    const Entry *entry = find_accepted(accepted, &shard, &error);
    if (entry == NULL) {
        return 0;
    }
    uint64_t id = entry->id;
    mutex_unlock(&shard->lock);
    return id;
}

/* A copy (malloc) of what an entry holds, or NULL with *size = 0; *no_memory. */
static char *copy_of(const Key *key, DWORD *size, bool *no_memory) {
    uint64_t hash = hash_of(key);
    Shard *shard = shard_of(hash);
    char *copy = NULL;
    *size = 0;
    *no_memory = false;
    mutex_lock(&shard->lock);
    const Entry *entry = *find_link(shard, hash, key);
    if (entry != NULL) {
        copy = malloc(entry->records_size);
        *no_memory = copy == NULL;
        if (copy != NULL) {
            memcpy(copy, entry->data, entry->records_size);
            *size = entry->records_size;
        }
    }
    mutex_unlock(&shard->lock);
    return copy;
}

char *engine_records_of(SOCKET socket, DWORD *size, bool *no_memory) {
    Key key = key_of_socket(socket, socket_identity(socket));
    return copy_of(&key, size, no_memory);
}

char *engine_target_of(SOCKET socket, const Endpoint *destination, DWORD *size, bool *no_memory) {
    Key key = key_of_target(socket, socket_identity(socket), destination);
    return copy_of(&key, size, no_memory);
}
