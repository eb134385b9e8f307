/* What the simulated providers share: overlapped operations as the kernel treats them.

   An operation that succeeds at once is signalled like one that pended; one that fails at once
   leaves no trace.  The memory of a pending one is not touched after overlapped_result has said
   that it is complete. */
#ifndef WFPIOCTL_SIMULATED_H
#define WFPIOCTL_SIMULATED_H

#include "winsock_types.h"

#include <stdbool.h>

/* The memory of one overlapped call. */
typedef struct {
    SOCKET socket;
    WSAOVERLAPPED *overlapped;
    LPWSAOVERLAPPED_COMPLETION_ROUTINE completion;
    void *output;
    DWORD capacity;
} OverlappedCall;

/* What is played when it completes; `data` must last until then. */
typedef struct {
    DWORD error; /* 0 = success */
    const void *data;
    DWORD size; /* of data */
    DWORD returned;
    bool uncancellable; /* a cancellation is accepted, and changes nothing */
} SimulatedReply;

/* Write as much of `data` as fits. */
void simulated_write(void *output, DWORD capacity, const void *data, DWORD size);

/* It succeeded at once.  Returns 0, or the code of what failed here. */
DWORD simulated_succeed(WSAOVERLAPPED *overlapped, LPWSAOVERLAPPED_COMPLETION_ROUTINE completion,
                        DWORD returned);

/* It completes with `reply` after `delay` seconds (infinite: not by itself).  Returns
   WSA_IO_PENDING, or the code of what failed here. */
DWORD simulated_pend(const OverlappedCall *call, const SimulatedReply *reply, double delay);

/* Abort what pends on a socket, or everything where it is INVALID_SOCKET. */
void simulated_abort(SOCKET socket);

/* The entries of the provider's table. */
BOOL WSAAPI simulated_overlapped_result(SOCKET socket, WSAOVERLAPPED *overlapped,
                                        DWORD *transferred, BOOL wait, DWORD *flags);
BOOL WSAAPI simulated_cancel(SOCKET socket, WSAOVERLAPPED *overlapped);

/* Around a fork; see forks.c. */
void simulated_before_fork(void);
void simulated_after_fork(bool child);

#endif
