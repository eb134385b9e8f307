/* One overlapped operation: its memory, its one state, and what becomes of it.  No Python in it.

   The memory is a block of its own: what the kernel reads and writes is in it or hangs on it, and
   it is given back only when the kernel is done with it, even if its owner is long gone (W29). */
#ifndef WFPIOCTL_OPERATION_H
#define WFPIOCTL_OPERATION_H

#include "ioctl.h"

typedef struct Operation Operation;

/* NULL with errno set where memory or an event is not to be had.  `input` is copied.  With a
   routine the operation completes only when the calling thread waits alertably. */
Operation *operation_new(const Provider *provider, SOCKET socket, DWORD code, const void *input,
                         DWORD input_size, bool with_routine);

/* Start it, once, in the thread that made it.  True: it is over. */
bool operation_start(Operation *operation);

/* Look whether it is over; if an answer was too small, this starts it again with more room. */
bool operation_poll(Operation *operation);

/* Wait until it may be over, or for `seconds`, or until a signal comes: then poll. */
void operation_wait(Operation *operation, double seconds);

/* Ask for its end; it may still succeed.  Again, or when it is over: nothing happens.  Returns 0,
   or the code of a cancellation that failed for another reason than that it came too late. */
DWORD operation_cancel(Operation *operation);

/* Once it is over: how it ended, and a QUERY's answer. */
const Outcome *operation_outcome(const Operation *operation);
const Answer *operation_answer(const Operation *operation);

DWORD operation_code(const Operation *operation);
SOCKET operation_socket(const Operation *operation);
const Provider *operation_provider(const Operation *operation);

/* Its event_number().  The event is set at the latest when operation_poll() says that it is over;
   when it is set, poll. */
uintptr_t operation_event(Operation *operation);

/* The owner is done with it.  One that still pends is cancelled, and if it then is not over, left
   to itself: an orphan.  True: it still pended. */
bool operation_free(Operation *operation);

/* Of the process, since its start.  started = completed + failed + cancelled + what pends. */
typedef struct {
    long long started, completed, failed, cancelled;
    long long orphaned;   /* left to themselves while pending */
    long long given_back; /* of these: the memory, once they were over */
} OperationCounters;

OperationCounters operation_counters(void);

/* Around a fork; see forks.c. */
void operations_before_fork(void);
void operations_after_fork(bool child);

#endif
