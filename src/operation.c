/* An operation's life: started; then, once, done or failed or cancelled.

   A block's lock guards it while several threads poll, wait and cancel.  What it holds once it is
   over does not change any more and is read without. */
#include "operation.h"

#include "alertable.h"
#include "platform.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

typedef enum { STARTED, DONE, FAILED, CANCELLED } State;

struct Operation {
    WSAOVERLAPPED overlapped; /* first: a completion routine is told its address */
    const Provider *provider;
    SOCKET socket;
    DWORD code;
    HANDLE event;
    Mutex lock;
    _Atomic(State) state;
    bool cancel_wanted;
    bool event_lent;        /* somebody outside knows the event: it is not used again */
    unsigned process;       /* whose block it is: a forked child's events are the parent's, too */
    uint64_t routine_runs;  /* the thread that runs its completion routine, or 0 */
    DWORD returned_at_once; /* with a routine: what a success at once returned */
    bool succeeded_at_once;
    DWORD input_size;
    Answer answer; /* a QUERY's room; a SET's input */
    Outcome outcome;
    Operation *next;
    char memory[IOCTL_USUAL_CAPACITY];
};

/* ---- counters -------------------------------------------------------------------------------- */

static struct { atomic_llong started, ended[CANCELLED + 1], orphaned, given_back; } counters;

static void count(atomic_llong *counter) {
    atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}

/* ---- blocks ---------------------------------------------------------------------------------- */

/* Blocks with their events, ready to be used again: making an event takes a system call. */
#define SPARE_COUNT 8
static _Atomic(Operation *) spares[SPARE_COUNT];
static atomic_uint process; /* counts up in each forked child */

static Operation *block_new(void) {
    for (size_t i = 0; i < SPARE_COUNT; i++) {
        Operation *spare = atomic_exchange(&spares[i], NULL);
        if (spare != NULL) {
            return spare;
        }
    }
    Operation *block = malloc(sizeof *block);
    if (block == NULL) {
        errno = ENOMEM;
        return NULL;
    }
    block->event = event_new();
    if (block->event == NULL) {
        free(block);
        return NULL;
    }
    mutex_init(&block->lock);
    block->process = atomic_load(&process);
    return block;
}

static void block_free(Operation *block) {
    answer_free(&block->answer);
    const bool reusable = !block->event_lent && block->process == atomic_load(&process);
    for (size_t i = 0; i < SPARE_COUNT && reusable; i++) {
        Operation *nothing = NULL;
        if (atomic_compare_exchange_strong(&spares[i], &nothing, block)) {
            return;
        }
    }
    event_close(block->event);
    free(block);
}

Operation *operation_new(const Provider *provider, SOCKET socket, DWORD code, const void *input,
                         DWORD input_size, bool with_routine) {
    Operation *operation = block_new();
    if (operation == NULL) {
        return NULL;
    }
    operation->provider = provider;
    operation->socket = socket;
    operation->code = code;
    atomic_init(&operation->state, STARTED);
    operation->cancel_wanted = operation->event_lent = operation->succeeded_at_once = false;
    operation->routine_runs = with_routine ? alertable_thread() : 0;
    operation->input_size = input_size;
    operation->answer = (Answer){
        .data = operation->memory, .capacity = sizeof operation->memory, .size = input_size};
    if (input_size > sizeof operation->memory) {
        operation->answer.data = operation->answer.heap = malloc(input_size);
        if (operation->answer.heap == NULL) {
            block_free(operation);
            errno = ENOMEM;
            return NULL;
        }
    }
    if (input_size != 0) {
        memcpy(operation->answer.data, input, input_size);
    }
    return operation;
}

/* ---- starting and completing ----------------------------------------------------------------- */

static bool is_over(const Operation *operation) {
    return atomic_load_explicit(&operation->state, memory_order_acquire) != STARTED;
}

/* The provider's word on a started operation.  False: it still pends. */
static bool get_reply(Operation *operation, Reply *reply) {
    DWORD flags;
    reply->succeeded = operation->provider->overlapped_result(
        operation->socket, &operation->overlapped, &reply->returned, FALSE, &flags);
    reply->error = reply->succeeded ? 0 : (DWORD)operation->provider->last_error();
    return reply->error != WSA_IO_INCOMPLETE;
}

static void CALLBACK run_routine(DWORD error, DWORD transferred, WSAOVERLAPPED *overlapped,
                                 DWORD flags);

/* Hand the operation to the provider.  True: it is complete, with this reply.  False: it pends. */
static bool submit(Operation *operation, Reply *reply) {
    const bool is_set = operation->code == SIO_SET_WFP_CONNECTION_REDIRECT_RECORDS;
    Answer *answer = &operation->answer;
    /* Internal is preset because Wine 8 writes it only when the operation ends.  The low bit keeps
       the completion from the port that an event loop bound the socket to (W29). */
    operation->overlapped = (WSAOVERLAPPED){.Internal = STATUS_PENDING,
                                            .hEvent = (HANDLE)((uintptr_t)operation->event | 1)};
    reply->returned = 0;
    reply->succeeded =
        operation->provider->ioctl(
            operation->socket, operation->code, is_set ? answer->data : NULL, operation->input_size,
            is_set ? NULL : answer->data, is_set ? 0 : answer->capacity, &reply->returned,
            &operation->overlapped, operation->routine_runs ? run_routine : NULL) == 0;
    reply->error = reply->succeeded ? 0 : (DWORD)operation->provider->last_error();
    if (operation->routine_runs) {
        /* A success at once queues the routine too; a failure at once does not. */
        operation->succeeded_at_once = reply->succeeded;
        operation->returned_at_once = reply->returned;
        return !reply->succeeded && reply->error != WSA_IO_PENDING;
    }
    if (reply->succeeded || reply->error != WSA_IO_PENDING) {
        return true;
    }
    /* Look once before anybody waits: Wine 8 says "pending" of what has failed already, and then
       never sets the event. */
    return get_reply(operation, reply);
}

/* Is there to be another try?  Else the outcome is final. */
static bool judge(Operation *operation, const Reply *reply) {
    Outcome *outcome = &operation->outcome;
    if (operation->code == SIO_SET_WFP_CONNECTION_REDIRECT_RECORDS) {
        *outcome = (Outcome){.error = reply->error, .failed = !reply->succeeded};
        return false;
    }
    if (ioctl_accept(&operation->answer, reply)) {
        *outcome = (Outcome){0};
        return false;
    }
    if (!ioctl_grow(&operation->answer, reply, outcome)) {
        return false;
    }
    if (operation->cancel_wanted) {
        *outcome = (Outcome){.error = WSA_OPERATION_ABORTED, .failed = true};
        return false;
    }
    return true;
}

/* Go on from a reply: start again while that is due, until it pends or is over. */
static void advance(Operation *operation, Reply *reply) {
    while (judge(operation, reply)) {
        if (!submit(operation, reply)) {
            return;
        }
    }
    const Outcome *outcome = &operation->outcome;
    State state = !outcome->failed                          ? DONE
                  : outcome->error == WSA_OPERATION_ABORTED ? CANCELLED
                                                            : FAILED;
    count(&counters.ended[state]);
    atomic_store_explicit(&operation->state, state, memory_order_release);
}

/* Wake whoever waits: the kernel sets no event of what has a routine, or fails at once. */
static void advance_pending(Operation *operation, Reply *reply) {
    advance(operation, reply);
    if (is_over(operation)) {
        event_set(operation->event);
    }
}

static void CALLBACK run_routine(DWORD error, DWORD transferred, WSAOVERLAPPED *overlapped,
                                 DWORD flags) {
    (void)flags;
    Operation *operation = (Operation *)overlapped;
    Reply reply = {.succeeded = error == 0, .error = error, .returned = transferred};
    mutex_lock(&operation->lock);
    if (operation->succeeded_at_once) { /* Wine 8 says 0 bytes */
        reply.returned = operation->returned_at_once;
    }
    advance_pending(operation, &reply);
    mutex_unlock(&operation->lock);
}

bool operation_start(Operation *operation) {
    Reply reply;
    count(&counters.started);
    if (submit(operation, &reply)) {
        advance(operation, &reply);
    }
    return is_over(operation);
}

/* Look whether the provider is done with it; lock held. */
static void look(Operation *operation) {
    Reply reply;
    if (!is_over(operation) && !operation->routine_runs && get_reply(operation, &reply)) {
        advance_pending(operation, &reply);
    }
}

bool operation_poll(Operation *operation) {
    if (is_over(operation) && !operation->routine_runs) {
        return true;
    }
    mutex_lock(&operation->lock); /* a routine that is about to return holds it */
    look(operation);
    mutex_unlock(&operation->lock);
    return is_over(operation);
}

void operation_wait(Operation *operation, double seconds) {
    if (operation->routine_runs == alertable_thread()) {
        alertable_sleep(seconds);
    } else {
        event_wait(operation->event, seconds);
    }
}

DWORD operation_cancel(Operation *operation) {
    DWORD error = 0;
    mutex_lock(&operation->lock);
    operation->cancel_wanted = true;
    if (!is_over(operation) &&
        !operation->provider->cancel(operation->socket, &operation->overlapped)) {
        error = (DWORD)operation->provider->last_error();
    }
    look(operation);
    mutex_unlock(&operation->lock);
    return error == ERROR_NOT_FOUND ? 0 : error;
}

/* ---- what an owner may ask ------------------------------------------------------------------- */

const Outcome *operation_outcome(const Operation *operation) { return &operation->outcome; }

const Answer *operation_answer(const Operation *operation) { return &operation->answer; }

DWORD operation_code(const Operation *operation) { return operation->code; }

SOCKET operation_socket(const Operation *operation) { return operation->socket; }

const Provider *operation_provider(const Operation *operation) { return operation->provider; }

uintptr_t operation_event(Operation *operation) {
    mutex_lock(&operation->lock);
    operation->event_lent = true;
    if (is_over(operation)) { /* one that was over at once may not have set it */
        event_set(operation->event);
    }
    mutex_unlock(&operation->lock);
    return event_number(operation->event);
}

/* ---- orphans --------------------------------------------------------------------------------- */

static Mutex orphans_lock = MUTEX_INIT;
static Operation *_Atomic orphans;

/* Give back the orphans that are over. */
static void reap(void) {
    if (atomic_load_explicit(&orphans, memory_order_relaxed) == NULL) {
        return;
    }
    mutex_lock(&orphans_lock);
    Operation *list = atomic_exchange(&orphans, NULL);
    while (list != NULL) {
        Operation *orphan = list;
        list = orphan->next;
        if (operation_poll(orphan)) {
            block_free(orphan);
            count(&counters.given_back);
        } else {
            orphan->next = atomic_load(&orphans);
            atomic_store(&orphans, orphan);
        }
    }
    mutex_unlock(&orphans_lock);
}

void operations_before_fork(void) { mutex_lock(&orphans_lock); }

void operations_after_fork(bool child) {
    if (child) {
        atomic_fetch_add(&process, 1);
        for (size_t i = 0; i < SPARE_COUNT; i++) {
            Operation *spare = atomic_exchange(&spares[i], NULL);
            if (spare != NULL) {
                block_free(spare);
            }
        }
    }
    mutex_unlock(&orphans_lock);
}

static void leave(Operation *operation) {
    count(&counters.orphaned);
    mutex_lock(&orphans_lock);
    operation->next = atomic_load(&orphans);
    atomic_store(&orphans, operation);
    mutex_unlock(&orphans_lock);
}

bool operation_free(Operation *operation) {
    const bool was_over = is_over(operation);
    bool pended = !was_over;
    if (!was_over) {
        operation_cancel(operation);
    }
    if (operation_poll(operation)) {
        pended = pended && operation->outcome.error == WSA_OPERATION_ABORTED;
        block_free(operation);
    } else {
        leave(operation);
    }
    reap();
    return pended;
}

OperationCounters operation_counters(void) {
    reap();
    return (OperationCounters){
        .started = atomic_load(&counters.started),
        .completed = atomic_load(&counters.ended[DONE]),
        .failed = atomic_load(&counters.ended[FAILED]),
        .cancelled = atomic_load(&counters.ended[CANCELLED]),
        .orphaned = atomic_load(&counters.orphaned),
        .given_back = atomic_load(&counters.given_back),
    };
}
