/* What the source takes for granted about Windows' types, asked of the compiler of each platform by
   test_windows.py: nothing in here runs.  Elsewhere the same holds for winsock_types.h's own. */
#include "provider.h"

#include <stddef.h>

#define POINTER sizeof(void *)

_Static_assert(sizeof(SOCKET) == POINTER && INVALID_SOCKET > 0,
               "a SOCKET is an unsigned pointer's width");
_Static_assert(sizeof(HANDLE) == POINTER, "so is a HANDLE");
_Static_assert(sizeof(DWORD) == 4 && (DWORD)-1 > 0, "a DWORD is 32 bits, unsigned");
_Static_assert(sizeof(BOOL) == sizeof(int), "a BOOL is an int");
_Static_assert(sizeof(OVERLAPPED) == 3 * POINTER + 8, "two words, an offset, an event");
_Static_assert(offsetof(OVERLAPPED, InternalHigh) == POINTER, "Internal is a word");
_Static_assert(offsetof(OVERLAPPED, hEvent) == 2 * POINTER + 8, "the event comes last");
_Static_assert(sizeof(WSAOVERLAPPED) == sizeof(OVERLAPPED), "one structure, two names");

_Static_assert(SIO_QUERY_WFP_CONNECTION_REDIRECT_RECORDS == 0x980000DCu, "W01");
_Static_assert(SIO_QUERY_WFP_CONNECTION_REDIRECT_CONTEXT == 0x980000DDu, "W02");
_Static_assert(SIO_SET_WFP_CONNECTION_REDIRECT_RECORDS == 0x980000DEu, "W03");

#ifdef _WIN32
/* The table's entries have the very types of the functions that go into it, WSAAPI included: where
   the calling conventions differ (32-bit x86), a mistake would not compile. */
extern Provider table;
Provider table = {0};
extern void fill(void);
void fill(void) {
    table.ioctl = WSAIoctl;
    table.last_error = WSAGetLastError;
}
#endif
