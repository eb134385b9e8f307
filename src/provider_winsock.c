/* The system's own provider: ws2_32 on Windows; elsewhere every IOCTL is unsupported (W10), and
   datagrams come and go without control data. */
#include "provider.h"

#ifdef _WIN32

#include <stdatomic.h>

static int WSAAPI winsock_ioctl(SOCKET socket, DWORD code, void *input, DWORD input_size,
                                void *output, DWORD output_size, DWORD *returned,
                                WSAOVERLAPPED *overlapped,
                                LPWSAOVERLAPPED_COMPLETION_ROUTINE completion) {
    return WSAIoctl(socket, code, input, input_size, output, output_size, returned, overlapped,
                    completion);
}

static BOOL WSAAPI winsock_overlapped_result(SOCKET socket, WSAOVERLAPPED *overlapped,
                                             DWORD *transferred, BOOL wait, DWORD *flags) {
    static const ULONG_PTR status_success = 0, status_cancelled = 0xC0000120u;
    /* A socket closed meanwhile can no longer be asked: then these two speak for themselves. */
    const ULONG_PTR status = *(volatile ULONG_PTR *)&overlapped->Internal;
    if (status == status_success) {
        *transferred = (DWORD)overlapped->InternalHigh;
        return TRUE;
    }
    if (status == status_cancelled) {
        *transferred = 0;
        WSASetLastError(WSA_OPERATION_ABORTED);
        return FALSE;
    }
    return WSAGetOverlappedResult(socket, overlapped, transferred, wait, flags);
}

static BOOL WSAAPI winsock_cancel(SOCKET socket, WSAOVERLAPPED *overlapped) {
    BOOL cancelled = CancelIoEx((HANDLE)socket, overlapped);
    if (!cancelled && GetLastError() == ERROR_INVALID_HANDLE) {
        SetLastError(ERROR_NOT_FOUND); /* closing the socket has cancelled it */
    }
    return cancelled;
}

static int WSAAPI winsock_last_error(void) { return WSAGetLastError(); }

/* WSARecvMsg is no export of ws2_32 (W44).  Every socket of the system's own TCP/IP provider gives
   the same function, so it is asked for once. */
static LPFN_WSARECVMSG find_recvmsg(SOCKET socket) {
    static _Atomic(LPFN_WSARECVMSG) found;
    LPFN_WSARECVMSG function = atomic_load_explicit(&found, memory_order_relaxed);
    if (function == NULL) {
        GUID name = WSAID_WSARECVMSG;
        DWORD returned;
        if (WSAIoctl(socket, SIO_GET_EXTENSION_FUNCTION_POINTER, &name, sizeof name, &function,
                     sizeof function, &returned, NULL, NULL) != 0) {
            return NULL; /* the last error says why */
        }
        atomic_store_explicit(&found, function, memory_order_relaxed);
    }
    return function;
}

int WSAAPI winsock_recvmsg(SOCKET socket, WSAMSG *message, DWORD *received,
                           WSAOVERLAPPED *overlapped,
                           LPWSAOVERLAPPED_COMPLETION_ROUTINE completion) {
    LPFN_WSARECVMSG function = find_recvmsg(socket);
    if (function == NULL) {
        return SOCKET_ERROR;
    }
    int status = function(socket, message, received, overlapped, completion);
    message->dwFlags &= ~(DWORD)MSG_PEEK; /* Wine leaves the flags as they were given */
    if (status != 0 && WSAGetLastError() == WSAEMSGSIZE &&
        (message->dwFlags & (MSG_TRUNC | MSG_CTRUNC)) == 0) {
        message->dwFlags |= MSG_TRUNC;
    }
    return status;
}

int WSAAPI winsock_sendmsg(SOCKET socket, WSAMSG *message, DWORD flags, DWORD *sent,
                           WSAOVERLAPPED *overlapped,
                           LPWSAOVERLAPPED_COMPLETION_ROUTINE completion) {
    return WSASendMsg(socket, message, flags, sent, overlapped, completion);
}

static int WSAAPI winsock_setsockopt(SOCKET socket, int level, int option, const char *value,
                                     int size) {
    return setsockopt(socket, level, option, value, size);
}

/* getsockname() does not work before bind(). */
static DWORD family_of(SOCKET socket, int *family) {
    WSAPROTOCOL_INFOW info;
    int size = sizeof info;
    if (getsockopt(socket, SOL_SOCKET, SO_PROTOCOL_INFOW, (char *)&info, &size) != 0) {
        return (DWORD)WSAGetLastError();
    }
    *family = info.iAddressFamily;
    return 0;
}

bool winsock_peer(SOCKET socket, struct sockaddr_storage *peer) {
    int size = sizeof *peer;
    return getpeername(socket, (struct sockaddr *)peer, &size) == 0;
}

bool winsock_name(SOCKET socket, struct sockaddr_storage *name) {
    int size = sizeof *name;
    return getsockname(socket, (struct sockaddr *)name, &size) == 0;
}

static bool is_ipv6_only(SOCKET socket) {
    DWORD only = TRUE;
    int size = sizeof only;
    return getsockopt(socket, IPPROTO_IPV6, IPV6_V6ONLY, (char *)&only, &size) != 0 || only != 0;
}

int winsock_start(void) {
    WSADATA data;
    return WSAStartup(MAKEWORD(2, 2), &data);
}

void winsock_end(void) { WSACleanup(); }

#else

static int WSAAPI winsock_ioctl(SOCKET socket, DWORD code, void *input, DWORD input_size,
                                void *output, DWORD output_size, DWORD *returned,
                                WSAOVERLAPPED *overlapped,
                                LPWSAOVERLAPPED_COMPLETION_ROUTINE completion) {
    (void)socket, (void)code, (void)input, (void)input_size, (void)output, (void)output_size;
    (void)overlapped, (void)completion;
    *returned = 0;
    WSASetLastError(WSAEOPNOTSUPP);
    return SOCKET_ERROR;
}

/* Nothing ever pends here. */
static BOOL WSAAPI winsock_overlapped_result(SOCKET socket, WSAOVERLAPPED *overlapped,
                                             DWORD *transferred, BOOL wait, DWORD *flags) {
    (void)socket, (void)overlapped, (void)wait, (void)flags;
    *transferred = 0;
    WSASetLastError(WSAEOPNOTSUPP);
    return FALSE;
}

static BOOL WSAAPI winsock_cancel(SOCKET socket, WSAOVERLAPPED *overlapped) {
    (void)socket, (void)overlapped;
    WSASetLastError(ERROR_NOT_FOUND);
    return FALSE;
}

static int WSAAPI winsock_last_error(void) { return WSAGetLastError(); }

int WSAAPI winsock_recvmsg(SOCKET socket, WSAMSG *message, DWORD *received,
                           WSAOVERLAPPED *overlapped,
                           LPWSAOVERLAPPED_COMPLETION_ROUTINE completion) {
    (void)overlapped, (void)completion;
    struct iovec vector = {message->lpBuffers->buf, message->lpBuffers->len};
    struct msghdr header = {.msg_name = message->name,
                            .msg_namelen = (socklen_t)message->namelen,
                            .msg_iov = &vector,
                            .msg_iovlen = 1};
    ssize_t size = recvmsg((int)socket, &header, (int)message->dwFlags);
    if (size < 0) {
        message->dwFlags = 0; /* a pending EMSGSIZE, about a route's MTU, is no truncation */
        return SOCKET_ERROR;
    }
    message->namelen = (int)header.msg_namelen;
    message->Control.len = 0;
    /* Control data was not asked for, so none is missing. */
    message->dwFlags = (DWORD)(header.msg_flags & ~MSG_CTRUNC);
    *received = (DWORD)size;
    return 0;
}

int WSAAPI winsock_sendmsg(SOCKET socket, WSAMSG *message, DWORD flags, DWORD *sent,
                           WSAOVERLAPPED *overlapped,
                           LPWSAOVERLAPPED_COMPLETION_ROUTINE completion) {
    (void)overlapped, (void)completion;
    if (message->Control.len != 0) {
        WSASetLastError(EOPNOTSUPP); /* to drop redirect records in silence would be worse */
        return SOCKET_ERROR;
    }
    struct iovec vector = {message->lpBuffers->buf, message->lpBuffers->len};
    const struct msghdr header = {.msg_name = message->name,
                                  .msg_namelen = (socklen_t)message->namelen,
                                  .msg_iov = &vector,
                                  .msg_iovlen = 1};
    ssize_t size = sendmsg((int)socket, &header, (int)flags);
    if (size < 0) {
        return SOCKET_ERROR;
    }
    *sent = (DWORD)size;
    return 0;
}

static int WSAAPI winsock_setsockopt(SOCKET socket, int level, int option, const char *value,
                                     int size) {
    (void)socket, (void)level, (void)option, (void)value, (void)size;
    WSASetLastError(WSAENOPROTOOPT);
    return SOCKET_ERROR;
}

bool winsock_peer(SOCKET socket, struct sockaddr_storage *peer) {
    socklen_t size = sizeof *peer;
    return getpeername((int)socket, (struct sockaddr *)peer, &size) == 0;
}

bool winsock_name(SOCKET socket, struct sockaddr_storage *name) {
    socklen_t size = sizeof *name;
    return getsockname((int)socket, (struct sockaddr *)name, &size) == 0;
}

static DWORD family_of(SOCKET socket, int *family) {
    struct sockaddr_storage name;
    if (!winsock_name(socket, &name)) {
        return errno == EBADF || errno == ENOTSOCK ? WSAENOTSOCK : WSAEINVAL;
    }
    *family = name.ss_family;
    return 0;
}

static bool is_ipv6_only(SOCKET socket) {
    int only = TRUE;
    socklen_t size = sizeof only;
    return getsockopt((int)socket, IPPROTO_IPV6, IPV6_V6ONLY, &only, &size) != 0 || only != 0;
}

int winsock_start(void) { return 0; }

void winsock_end(void) {}

#endif

DWORD winsock_families(SOCKET socket, bool *ipv4, bool *ipv6) {
    int family = 0;
    DWORD error = family_of(socket, &family);
    *ipv6 = family == AF_INET6;
    *ipv4 = family == AF_INET || (*ipv6 && !is_ipv6_only(socket));
    return error != 0 || *ipv4 || *ipv6 ? error : WSAENOPROTOOPT;
}

/* Wrapped, not named directly: an import's address is no constant expression for every linker. */
const Provider provider_winsock = {
    .ioctl = winsock_ioctl,
    .overlapped_result = winsock_overlapped_result,
    .cancel = winsock_cancel,
    .last_error = winsock_last_error,
    .recvmsg = winsock_recvmsg,
    .sendmsg = winsock_sendmsg,
    .setsockopt = winsock_setsockopt,
};
