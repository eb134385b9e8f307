/* The system's own provider: ws2_32 on Windows; elsewhere every IOCTL is unsupported (W10). */
#include "provider.h"

#ifdef _WIN32

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

int winsock_start(void) { return 0; }

void winsock_end(void) {}

#endif

/* Wrapped, not named directly: an import's address is no constant expression for every linker. */
const Provider provider_winsock = {
    .ioctl = winsock_ioctl,
    .overlapped_result = winsock_overlapped_result,
    .cancel = winsock_cancel,
    .last_error = winsock_last_error,
};
