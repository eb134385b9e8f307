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

static int WSAAPI winsock_last_error(void) { return WSAGetLastError(); }

int winsock_start(void) { return 0; }

void winsock_end(void) {}

#endif

/* Wrapped, not named directly: an import's address is no constant expression for every linker. */
const Provider provider_winsock = {
    .ioctl = winsock_ioctl,
    .last_error = winsock_last_error,
};
