/* The table of pending operations, and the thread that completes them in time.

   An operation completes with the table locked, and overlapped_result looks with it locked: whoever
   has been told that an operation is complete may give its memory back. */
#include "simulated.h"

#include "alertable.h"
#include "platform.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* What Internal says of an operation; the Winsock code of a failure is in Offset, which is the
   provider's too. */
enum { STATUS_SUCCEEDED = 0, STATUS_FAILED = 0x40000000 };

typedef struct Pending {
    struct Pending *next;
    OverlappedCall call;
    SimulatedReply reply;
    Due *due;        /* of its completion routine, or NULL */
    double deadline; /* clock_seconds(); infinite = not by itself */
} Pending;

#define BUCKET_COUNT 4096u

static Mutex table_lock = MUTEX_INIT;
static Pending *buckets[BUCKET_COUNT];
static size_t timed_count; /* of those with a finite deadline */
static Condition timer_changed = CONDITION_INIT;
static bool timer_runs;
static double timer_wakes; /* when it next looks by itself */

static bool is_timed(double deadline) { return deadline < INFINITY; }

static Pending **bucket_of(const WSAOVERLAPPED *overlapped) {
    return &buckets[((uintptr_t)overlapped >> 4) * 0x9E3779B1u % BUCKET_COUNT];
}

/* The HANDLE in hEvent, whose low bit only concerns completion ports (W29). */
static HANDLE event_of(const WSAOVERLAPPED *overlapped) {
    return (HANDLE)((uintptr_t)overlapped->hEvent & ~(uintptr_t)1);
}

void simulated_write(void *output, DWORD capacity, const void *data, DWORD size) {
    DWORD copied = size < capacity ? size : capacity;
    if (copied != 0) {
        memcpy(output, data, copied);
    }
}

/* Tell the operation's owner: by its completion routine, else by its event. */
static void notify(WSAOVERLAPPED *overlapped, Due *due, DWORD error, DWORD returned) {
    overlapped->Offset = error;
    overlapped->InternalHigh = returned;
    overlapped->Internal = error == 0 ? STATUS_SUCCEEDED : STATUS_FAILED;
    if (due != NULL) {
        due_queue(due, error, returned);
    } else if (event_of(overlapped) != NULL) {
        event_set(event_of(overlapped));
    }
}

DWORD simulated_succeed(WSAOVERLAPPED *overlapped, LPWSAOVERLAPPED_COMPLETION_ROUTINE completion,
                        DWORD returned) {
    Due *due = NULL;
    if (completion != NULL && (due = due_new(completion, overlapped)) == NULL) {
        return WSAENOBUFS;
    }
    notify(overlapped, due, 0, returned);
    return 0;
}

/* Take a pending operation out of the table and complete it; lock held. */
static void complete(Pending **link, const SimulatedReply *reply) {
    Pending *pending = *link;
    *link = pending->next;
    if (is_timed(pending->deadline) && --timed_count == 0) {
        condition_wake_all(&timer_changed);
    }
    simulated_write(pending->call.output, pending->call.capacity, reply->data, reply->size);
    notify(pending->call.overlapped, pending->due, reply->error, reply->returned);
    free(pending);
}

/* Complete what is due; lock held.  Returns when the next one will be. */
static double complete_due(double now) {
    double next = INFINITY;
    for (size_t i = 0; i < BUCKET_COUNT; i++) {
        for (Pending **link = &buckets[i]; *link != NULL;) {
            double deadline = (*link)->deadline;
            if (deadline <= now) {
                complete(link, &(*link)->reply);
            } else {
                next = deadline < next ? deadline : next;
                link = &(*link)->next;
            }
        }
    }
    return next;
}

/* The timer's thread: there is one while something has a deadline. */
static void timer(void) {
    mutex_lock(&table_lock);
    while (is_timed(timer_wakes = complete_due(clock_seconds()))) {
        condition_wait_until(&timer_changed, &table_lock, timer_wakes);
    }
    timer_runs = false;
    mutex_unlock(&table_lock);
}

/* See to it that the timer looks by `deadline`; lock held.  False: no thread is to be had. */
static bool timer_need(double deadline) {
    if (!timer_runs) {
        timer_wakes = deadline;
        timer_runs = thread_start(timer);
    } else if (deadline < timer_wakes) {
        condition_wake_all(&timer_changed);
    }
    return timer_runs;
}

/* ---- forks --------------------------------------------------------------------------------------

   What pends is the parent's: its events are, too.  In the child it is aborted without a word, and
   there is no timer until one is needed. */

void simulated_before_fork(void) { mutex_lock(&table_lock); }

static void abandon_all(void) {
    for (size_t i = 0; i < BUCKET_COUNT; i++) {
        for (Pending *pending = buckets[i], *next; pending != NULL; pending = next) {
            next = pending->next;
            pending->call.overlapped->Offset = WSA_OPERATION_ABORTED;
            pending->call.overlapped->Internal = STATUS_FAILED;
            free(pending->due);
            free(pending);
        }
        buckets[i] = NULL;
    }
    timed_count = 0;
}

void simulated_after_fork(bool child) {
    if (child) {
        abandon_all();
        timer_runs = false;
        timer_changed = (Condition)CONDITION_INIT;
    }
    mutex_unlock(&table_lock);
}

DWORD simulated_pend(const OverlappedCall *call, const SimulatedReply *reply, double delay) {
    Pending *pending = malloc(sizeof *pending);
    if (pending == NULL) {
        return WSAENOBUFS;
    }
    *pending = (Pending){.call = *call, .reply = *reply, .deadline = clock_seconds() + delay};
    if (call->completion != NULL) {
        pending->due = due_new(call->completion, call->overlapped);
        if (pending->due == NULL) {
            free(pending);
            return WSAENOBUFS;
        }
    } else if (event_of(call->overlapped) != NULL) {
        event_reset(event_of(call->overlapped));
    }
    call->overlapped->Internal = STATUS_PENDING;
    mutex_lock(&table_lock);
    Pending **bucket = bucket_of(call->overlapped);
    pending->next = *bucket;
    *bucket = pending;
    if (is_timed(pending->deadline)) {
        timed_count++;
        if (!timer_need(pending->deadline)) {
            const SimulatedReply failure = {.error = WSAENOBUFS};
            complete(bucket, &failure);
        }
    }
    mutex_unlock(&table_lock);
    return WSA_IO_PENDING;
}

/* Abort what pends on `socket` with `overlapped` (NULL: with any), if it lets itself be cancelled;
   or everything, where `socket` is INVALID_SOCKET. */
static bool abort_matching(SOCKET socket, const WSAOVERLAPPED *overlapped) {
    const SimulatedReply aborted = {.error = WSA_OPERATION_ABORTED};
    bool found = false;
    Pending **first = overlapped != NULL ? bucket_of(overlapped) : buckets;
    Pending **end = overlapped != NULL ? first + 1 : buckets + BUCKET_COUNT;
    mutex_lock(&table_lock);
    for (Pending **bucket = first; bucket < end; bucket++) {
        for (Pending **link = bucket; *link != NULL;) {
            const OverlappedCall *call = &(*link)->call;
            bool matches = (socket == INVALID_SOCKET || call->socket == socket) &&
                           (overlapped == NULL || call->overlapped == overlapped);
            found = found || matches;
            if (matches && (socket == INVALID_SOCKET || !(*link)->reply.uncancellable)) {
                complete(link, &aborted);
            } else {
                link = &(*link)->next;
            }
        }
    }
    mutex_unlock(&table_lock);
    return found;
}

void simulated_abort(SOCKET socket) { abort_matching(socket, NULL); }

BOOL WSAAPI simulated_cancel(SOCKET socket, WSAOVERLAPPED *overlapped) {
    bool found = abort_matching(socket, overlapped);
    WSASetLastError(found ? 0 : ERROR_NOT_FOUND);
    return found;
}

BOOL WSAAPI simulated_overlapped_result(SOCKET socket, WSAOVERLAPPED *overlapped,
                                        DWORD *transferred, BOOL wait, DWORD *flags) {
    (void)socket, (void)wait;
    mutex_lock(&table_lock);
    uintptr_t status = overlapped->Internal;
    mutex_unlock(&table_lock);
    bool pending = status == STATUS_PENDING;
    *transferred = pending ? 0 : (DWORD)overlapped->InternalHigh;
    *flags = 0;
    if (status == STATUS_SUCCEEDED) {
        return TRUE;
    }
    WSASetLastError(pending ? WSA_IO_INCOMPLETE : (int)overlapped->Offset);
    return FALSE;
}
