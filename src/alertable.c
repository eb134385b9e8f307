/* APCs on Windows, and their stand-in elsewhere. */
#include "alertable.h"

#include "platform.h"

#include <stdatomic.h>
#include <stdlib.h>

#ifdef _WIN32

struct Due {
    LPWSAOVERLAPPED_COMPLETION_ROUTINE routine;
    WSAOVERLAPPED *overlapped;
    HANDLE thread;
    DWORD error, transferred;
};

Due *due_new(LPWSAOVERLAPPED_COMPLETION_ROUTINE routine, WSAOVERLAPPED *overlapped) {
    Due *due = malloc(sizeof *due);
    if (due == NULL) {
        return NULL;
    }
    *due = (Due){.routine = routine, .overlapped = overlapped};
    if (!DuplicateHandle(GetCurrentProcess(), GetCurrentThread(), GetCurrentProcess(), &due->thread,
                         0, FALSE, DUPLICATE_SAME_ACCESS)) {
        free(due);
        return NULL;
    }
    return due;
}

static void due_end(Due *due) {
    CloseHandle(due->thread);
    free(due);
}

static void CALLBACK due_run(ULONG_PTR parameter) {
    Due *due = (Due *)parameter;
    due->routine(due->error, due->transferred, due->overlapped, 0);
    due_end(due);
}

void due_queue(Due *due, DWORD error, DWORD transferred) {
    due->error = error;
    due->transferred = transferred;
    if (!QueueUserAPC(due_run, due->thread, (ULONG_PTR)due)) {
        due_end(due);
    }
}

void due_before_fork(void) {}

void due_after_fork(bool child) { (void)child; }

uint64_t alertable_thread(void) { return GetCurrentThreadId(); }

void alertable_sleep(double seconds) { SleepEx((DWORD)(seconds * 1000.0), TRUE); }

#else

struct Due {
    struct Due *next;
    LPWSAOVERLAPPED_COMPLETION_ROUTINE routine;
    WSAOVERLAPPED *overlapped;
    uint64_t thread;
    DWORD error, transferred;
};

static Mutex queue_lock = MUTEX_INIT;
static Condition queue_grew = CONDITION_INIT;
static Due *queue; /* of all threads, the newest first */

uint64_t alertable_thread(void) {
    static _Atomic uint64_t last;
    static _Thread_local uint64_t thread;
    if (thread == 0) {
        thread = atomic_fetch_add(&last, 1) + 1;
    }
    return thread;
}

Due *due_new(LPWSAOVERLAPPED_COMPLETION_ROUTINE routine, WSAOVERLAPPED *overlapped) {
    Due *due = malloc(sizeof *due);
    if (due != NULL) {
        *due = (Due){.routine = routine, .overlapped = overlapped, .thread = alertable_thread()};
    }
    return due;
}

void due_queue(Due *due, DWORD error, DWORD transferred) {
    due->error = error;
    due->transferred = transferred;
    mutex_lock(&queue_lock);
    due->next = queue;
    queue = due;
    condition_wake_all(&queue_grew);
    mutex_unlock(&queue_lock);
}

void due_before_fork(void) { mutex_lock(&queue_lock); }

void due_after_fork(bool child) {
    if (child) { /* nobody sleeps there, whatever the condition remembers */
        queue_grew = (Condition)CONDITION_INIT;
    }
    mutex_unlock(&queue_lock);
}

/* Take what is due in `thread` out of the queue, the oldest first; lock held. */
static Due *take_due(uint64_t thread) {
    Due *taken = NULL;
    for (Due **link = &queue; *link != NULL;) {
        Due *due = *link;
        if (due->thread == thread) {
            *link = due->next;
            due->next = taken;
            taken = due;
        } else {
            link = &due->next;
        }
    }
    return taken;
}

void alertable_sleep(double seconds) {
    const uint64_t thread = alertable_thread();
    const double deadline = clock_seconds() + seconds;
    mutex_lock(&queue_lock);
    Due *due = take_due(thread);
    while (due == NULL && condition_wait_until(&queue_grew, &queue_lock, deadline)) {
        due = take_due(thread);
    }
    mutex_unlock(&queue_lock);
    while (due != NULL) {
        Due *next = due->next;
        due->routine(due->error, due->transferred, due->overlapped, 0);
        free(due);
        due = next;
    }
}

#endif
