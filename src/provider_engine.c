/* The simulated engine's data plane: one hash table in shards, each with a lock of its own.

   A flow is found by the connection's two ends, the records that were SET by the socket's handle
   and identity, so that nothing passes from a closed socket to a new one with the same number. */
#include "provider_engine.h"

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

/* ---- sockets ----------------------------------------------------------------------------------
 */

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

static DWORD socket_error(void) {
    switch (errno) {
    case EBADF:
    case ENOTSOCK:
        return WSAENOTSOCK;
    case ENOTCONN:
    case EINVAL: /* a connection that was reset, on some systems */
        return WSAENOTCONN;
    default:
        return WSAEINVAL;
    }
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

/* Is it a TCP socket at all?  0, or the code that Winsock gives (W19, W10). */
static DWORD check_stream(SOCKET socket) {
    int type = 0;
    socklen_t size = sizeof type;
    if (getsockopt(SOCKET_ARGUMENT(socket), SOL_SOCKET, SO_TYPE, (void *)&type, &size) != 0) {
        return socket_error();
    }
    return type == SOCK_STREAM ? 0 : WSAEOPNOTSUPP;
}

/* Both ends of a connection as its accepted side sees them, or a code (W18). */
static DWORD connection_ends(SOCKET socket, Endpoint *remote, Endpoint *local) {
    struct sockaddr_storage storage;
    socklen_t size = sizeof storage;
    if (getpeername(SOCKET_ARGUMENT(socket), (struct sockaddr *)&storage, &size) != 0) {
        return socket_error();
    }
    if (!endpoint_from_sockaddr(&storage, remote)) {
        return WSAEOPNOTSUPP;
    }
    size = sizeof storage;
    if (getsockname(SOCKET_ARGUMENT(socket), (struct sockaddr *)&storage, &size) != 0) {
        return socket_error();
    }
    return endpoint_from_sockaddr(&storage, local) ? 0 : WSAEOPNOTSUPP;
}

/* ---- the table --------------------------------------------------------------------------------
 */

typedef enum { FLOW, LISTENER, SOCKET_RECORDS } EntryKind;

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
            Entry **bucket = bucket_of(shard, hash_of(&entry->key));
            entry->next = *bucket;
            *bucket = entry;
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

/* Put an entry in, instead of one with the same key. */
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
        Entry **link = find_link(shard, hash, &entry->key);
        if (*link != NULL) {
            unlink_entry(shard, link);
        }
        Entry **bucket = bucket_of(shard, hash);
        entry->next = *bucket;
        *bucket = entry;
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

/* ---- control ----------------------------------------------------------------------------------
 */

void engine_open(const EngineDialect *new_dialect, uint64_t new_secret) {
    if (!shards_ready) {
        for (size_t i = 0; i < SHARD_COUNT; i++) {
            mutex_init(&shards[i].lock);
        }
        shards_ready = true;
    }
    for (size_t i = 0; i < SHARD_COUNT; i++) {
        mutex_lock(&shards[i].lock);
    }
    dialect = *new_dialect;
    for (size_t i = 0; i < SHARD_COUNT; i++) {
        mutex_unlock(&shards[i].lock);
    }
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
void engine_mark(void *records, DWORD size) {
    static const char name[8] = {'W', 'F', 'P', 'S', 'I', 'M', '\r', '\n'};
    unsigned char *bytes = records;
    uint64_t seed = atomic_load(&secret), sum = seed ^ size;
    for (DWORD i = RECORDS_MARK_SIZE; i < size; i++) {
        sum = (sum ^ bytes[i]) * 0x100000001B3u;
    }
    sum = hash_words(&sum, 1, seed);
    memcpy(bytes, name, sizeof name);
    memcpy(bytes + sizeof name, &sum, sizeof sum);
}

void engine_counts(size_t *flows, size_t *sockets) {
    *flows = *sockets = 0;
    for (size_t i = 0; i < SHARD_COUNT; i++) {
        Shard *shard = &shards[i];
        mutex_lock(&shard->lock);
        for (size_t bucket = 0; bucket < shard->bucket_count; bucket++) {
            for (const Entry *entry = shard->buckets[bucket]; entry != NULL; entry = entry->next) {
                *(entry->kind == SOCKET_RECORDS ? sockets : flows) += entry->kind != LISTENER;
            }
        }
        mutex_unlock(&shard->lock);
    }
}

/* ---- the IOCTLs -------------------------------------------------------------------------------
 */

/* An accepted connection's flow: by its two ends, else by the port that it arrived on.  The shard
   of an entry that is returned is locked. */
static Entry *find_accepted(SOCKET socket, Shard **shard, DWORD *error) {
    Endpoint remote, local;
    *error = check_stream(socket);
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

/* Do these bytes carry the mark that engine_mark() gives them? */
static bool is_genuine(Entry *entry) {
    char mark[RECORDS_MARK_SIZE];
    if (entry->records_size < RECORDS_MARK_SIZE) {
        return false;
    }
    memcpy(mark, entry->data, RECORDS_MARK_SIZE);
    engine_mark(entry->data, entry->records_size);
    return memcmp(mark, entry->data, RECORDS_MARK_SIZE) == 0;
}

static DWORD set(SOCKET socket, const void *records, DWORD size) {
    Endpoint remote, local;
    DWORD error = check_stream(socket);
    if (error != 0) {
        return error;
    }
    if (size == 0 || size > 0x7FFFFFFFu || connection_ends(socket, &remote, &local) == 0) {
        return WSAEINVAL; /* SET precedes the connect (W23) */
    }
    Owner owner = {socket, socket_identity(socket)};
    Key key = key_of_socket(owner.socket, owner.identity);
    FlowData flow = {.records = records, .records_size = size};
    Entry *entry = entry_new(SOCKET_RECORDS, &key, &flow);
    if (entry == NULL) {
        return WSAENOBUFS;
    }
    if (!is_genuine(entry)) {
        free(entry);
        return WSAEINVAL;
    }
    entry->app = owner;
    return insert(entry) ? 0 : WSAENOBUFS;
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

const Provider provider_engine = {
    .ioctl = engine_ioctl,
    .overlapped_result = simulated_overlapped_result,
    .cancel = simulated_cancel,
    .last_error = engine_last_error,
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

char *engine_records_of(SOCKET socket, DWORD *size, bool *no_memory) {
    Key key = key_of_socket(socket, socket_identity(socket));
    uint64_t hash = hash_of(&key);
    Shard *shard = shard_of(hash);
    char *copy = NULL;
    *size = 0;
    *no_memory = false;
    mutex_lock(&shard->lock);
    const Entry *entry = *find_link(shard, hash, &key);
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
