/* A provider: the Winsock entry points that the extension calls, as a table.

   Three exist.  provider_winsock is the system's own; provider_scripted and provider_engine are
   simulated.  Each function has the exact signature and contract of its Winsock namesake, so that
   the code above a provider cannot tell which one it has, and C programs can call them too. */
#ifndef WFPIOCTL_PROVIDER_H
#define WFPIOCTL_PROVIDER_H

#include "winsock_types.h"

#include <stdbool.h>

typedef struct {
    int(WSAAPI *ioctl)(SOCKET socket, DWORD code, void *input, DWORD input_size, void *output,
                       DWORD output_size, DWORD *returned, WSAOVERLAPPED *overlapped,
                       LPWSAOVERLAPPED_COMPLETION_ROUTINE completion);
    /* WSAGetOverlappedResult, which gives Winsock codes (W30); nobody here has it wait.  An
       operation's memory may only be given back once this has said that it is complete. */
    BOOL(WSAAPI *overlapped_result)
    (SOCKET socket, WSAOVERLAPPED *overlapped, DWORD *transferred, BOOL wait, DWORD *flags);
    /* CancelIoEx, of one operation, or of all of the socket's where overlapped is NULL. */
    BOOL(WSAAPI *cancel)(SOCKET socket, WSAOVERLAPPED *overlapped);
    int(WSAAPI *last_error)(void);
    int(WSAAPI *recvmsg)(SOCKET socket, WSAMSG *message, DWORD *received, WSAOVERLAPPED *overlapped,
                         LPWSAOVERLAPPED_COMPLETION_ROUTINE completion);
    int(WSAAPI *sendmsg)(SOCKET socket, WSAMSG *message, DWORD flags, DWORD *sent,
                         WSAOVERLAPPED *overlapped, LPWSAOVERLAPPED_COMPLETION_ROUTINE completion);
    int(WSAAPI *setsockopt)(SOCKET socket, int level, int option, const char *value, int size);
} Provider;

extern const Provider provider_winsock;
extern const Provider provider_scripted;
extern const Provider provider_engine;

/* WSARecvMsg and WSASendMsg of the system, with one buffer of data; errors are the system's own
   codes (SOCKET_E...).  Outside Windows control data is neither received nor sent. */
int WSAAPI winsock_recvmsg(SOCKET socket, WSAMSG *message, DWORD *received,
                           WSAOVERLAPPED *overlapped,
                           LPWSAOVERLAPPED_COMPLETION_ROUTINE completion);
int WSAAPI winsock_sendmsg(SOCKET socket, WSAMSG *message, DWORD flags, DWORD *sent,
                           WSAOVERLAPPED *overlapped,
                           LPWSAOVERLAPPED_COMPLETION_ROUTINE completion);

/* Whether a socket carries IPv4 and IPv6; a dual-stack one carries both.  0, or a Winsock code. */
DWORD winsock_families(SOCKET socket, bool *ipv4, bool *ipv6);

/* The two ends of a socket; false, and the last error, where there is no such end. */
bool winsock_peer(SOCKET socket, struct sockaddr_storage *peer);
bool winsock_name(SOCKET socket, struct sockaddr_storage *name);

/* Start and end the system's Winsock for this module; a start's failure is a Winsock code. */
int winsock_start(void);
void winsock_end(void);

#endif
