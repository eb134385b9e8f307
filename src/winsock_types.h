/* Winsock's types, codes and calling convention: the vocabulary of everything in src/.

   On Windows they are ws2_32's own, plus the codes that mingw-w64 lacks (W07).  Elsewhere the same
   names are defined here, with the same sizes and meanings, so that the rest of the code reads the
   same on every system. */
#ifndef WFPIOCTL_WINSOCK_TYPES_H
#define WFPIOCTL_WINSOCK_TYPES_H

#ifndef _WIN32
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE /* -std=c11 alone hides POSIX; this header comes first everywhere */
#endif
#endif

#include <stdint.h>

#ifdef _WIN32

#ifndef WIN32_LEAN_AND_MEAN
#define WIN32_LEAN_AND_MEAN
#endif
#include <winsock2.h>
#include <ws2tcpip.h>

#include <mstcpip.h>
#include <mswsock.h>
#include <windows.h>

#define SOCKET_MAX (INVALID_SOCKET - 1)

#ifndef MSG_TRUNC
#define MSG_TRUNC 0x0100
#define MSG_CTRUNC 0x0200
#endif

/* What recvmsg and sendmsg fail with: the system's own codes, on Windows Winsock's. */
#define SOCKET_EINTR WSAEINTR
#define SOCKET_EINVAL WSAEINVAL
#define SOCKET_EMSGSIZE WSAEMSGSIZE
#define SOCKET_ENOBUFS WSAENOBUFS

#else

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stddef.h>
#include <sys/socket.h>

#define WSAAPI
#define CALLBACK

typedef uint32_t DWORD;
typedef int BOOL;
typedef void *HANDLE;
typedef uintptr_t SOCKET; /* a file descriptor; pointer-sized as on Windows */

#define FALSE 0
#define TRUE 1
#define INVALID_SOCKET ((SOCKET)-1)
#define SOCKET_ERROR (-1)
#define SOCKET_MAX 0x7FFFFFFFu /* what a file descriptor can be */

typedef struct _OVERLAPPED {
    uintptr_t Internal;
    uintptr_t InternalHigh;
    DWORD Offset;
    DWORD OffsetHigh;
    HANDLE hEvent; /* of platform.h */
} OVERLAPPED, WSAOVERLAPPED;

typedef void(CALLBACK *LPWSAOVERLAPPED_COMPLETION_ROUTINE)(DWORD error, DWORD transferred,
                                                           WSAOVERLAPPED *overlapped, DWORD flags);

#define STATUS_PENDING 0x103

typedef struct _WSABUF {
    uint32_t len;
    char *buf;
} WSABUF;

typedef struct _WSAMSG {
    struct sockaddr *name;
    int namelen;
    WSABUF *lpBuffers;
    DWORD dwBufferCount;
    WSABUF Control;
    DWORD dwFlags;
} WSAMSG;

/* Starts each entry of a control buffer; cmsg_len counts from its own first byte. */
typedef struct _WSACMSGHDR {
    size_t cmsg_len;
    int cmsg_level;
    int cmsg_type;
} WSACMSGHDR;

#define SOCKET_EINTR EINTR
#define SOCKET_EINVAL EINVAL
#define SOCKET_EMSGSIZE EMSGSIZE
#define SOCKET_ENOBUFS ENOBUFS

#define ERROR_INSUFFICIENT_BUFFER 122
#define ERROR_MORE_DATA 234
#define ERROR_NOT_FOUND 1168
#define WSA_OPERATION_ABORTED 995
#define WSA_IO_INCOMPLETE 996
#define WSA_IO_PENDING 997
#define WSAEFAULT 10014
#define WSAEINVAL 10022
#define WSAENOTSOCK 10038
#define WSAEMSGSIZE 10040
#define WSAENOPROTOOPT 10042
#define WSAEOPNOTSUPP 10045
#define WSAENOBUFS 10055
#define WSAENOTCONN 10057

/* The thread's last error: errno serves as well as Winsock's own slot, and ctypes can read it. */
static inline void WSASetLastError(int code) { errno = code; }
static inline int WSAGetLastError(void) { return errno; }

#endif /* _WIN32 */

/* W01 to W03 */
#ifndef SIO_QUERY_WFP_CONNECTION_REDIRECT_RECORDS
#define SIO_QUERY_WFP_CONNECTION_REDIRECT_RECORDS 0x980000DCu
#endif
#ifndef SIO_QUERY_WFP_CONNECTION_REDIRECT_CONTEXT
#define SIO_QUERY_WFP_CONNECTION_REDIRECT_CONTEXT 0x980000DDu
#endif
#ifndef SIO_SET_WFP_CONNECTION_REDIRECT_RECORDS
#define SIO_SET_WFP_CONNECTION_REDIRECT_RECORDS 0x980000DEu
#endif

/* W04: the same numbers at IPPROTO_IP and at IPPROTO_IPV6. */
#ifndef IP_WFP_REDIRECT_RECORDS
#define IP_WFP_REDIRECT_RECORDS 60
#endif
#ifndef IP_WFP_REDIRECT_CONTEXT
#define IP_WFP_REDIRECT_CONTEXT 70
#endif

#define FWP_E_NOT_FOUND_CODE 0x80320008u /* the SDK spells it as a signed HRESULT */

#endif
