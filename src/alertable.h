/* Completion routines: queued to the thread that started the operation, run when it waits
   alertably.

   On Windows they are real APCs, and whatever waits alertably in the thread runs them.  Elsewhere
   each thread has a queue, and only alertable_sleep() runs them. */
#ifndef WFPIOCTL_ALERTABLE_H
#define WFPIOCTL_ALERTABLE_H

#include "winsock_types.h"

#include <stdbool.h>

/* A routine that will be due.  Made in the thread that will run it; NULL: out of memory. */
typedef struct Due Due;
Due *due_new(LPWSAOVERLAPPED_COMPLETION_ROUTINE routine, WSAOVERLAPPED *overlapped);

/* It is due: run it with these two.  In a thread that has ended it never runs. */
void due_queue(Due *due, DWORD error, DWORD transferred);

/* Around a fork, which Windows does not have. */
void due_before_fork(void);
void due_after_fork(bool child);

/* The calling thread; an id is not used again while the process lasts, where the system allows. */
uint64_t alertable_thread(void);

/* Run the calling thread's routines, as they become due; wait `seconds` at most for the first. */
void alertable_sleep(double seconds);

#endif
