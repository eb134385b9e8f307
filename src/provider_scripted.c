/* A player of scripted answers, for measuring and for testing what no honest provider does.

   With fixed blobs it answers without a lock and without a system call, so that what is measured
   is the caller.  With steps it plays them in order, the last one for ever, and records the calls.
   Whoever calls through the provider must have returned before its script is freed. */
#include "provider_scripted.h"

#include "platform.h"
#include "simulated.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

static _Atomic(Script *) current;
static Mutex player_lock = MUTEX_INIT;
static Condition player_stopped = CONDITION_INIT;

static int fail(DWORD code) {
    WSASetLastError((int)code);
    return SOCKET_ERROR;
}

static int answer_fixed(const Script *script, DWORD code, void *output, DWORD capacity,
                        DWORD *returned) {
    const Blob *blob;
    switch (code) {
    case SIO_QUERY_WFP_CONNECTION_REDIRECT_RECORDS:
        blob = &script->records;
        break;
    case SIO_QUERY_WFP_CONNECTION_REDIRECT_CONTEXT:
        blob = &script->context;
        break;
    case SIO_SET_WFP_CONNECTION_REDIRECT_RECORDS:
        *returned = 0;
        return 0;
    default:
        *returned = 0;
        return fail(WSAEOPNOTSUPP);
    }
    *returned = blob->size;
    if (blob->size > capacity) { /* W13 */
        return fail(ERROR_INSUFFICIENT_BUFFER);
    }
    memcpy(output, blob->data, blob->size);
    return 0;
}

static void record_call(Script *script, DWORD code, const void *input, DWORD input_size,
                        DWORD capacity) {
    size_t index = script->call_count++;
    if (index >= SCRIPT_MAX_CALLS) {
        return;
    }
    ScriptCall *call = &script->calls[index];
    call->code = code;
    call->capacity = capacity;
    call->input.data = malloc(input_size ? input_size : 1);
    if (call->input.data != NULL && input_size != 0) {
        memcpy(call->input.data, input, input_size);
        call->input.size = input_size;
    }
}

/* The step's operation pends.  Its data lasts: ending the script aborts what pends first. */
static int pend(const ScriptStep *step, const OverlappedCall *call) {
    const SimulatedReply reply = {.error = step->code,
                                  .data = step->data.data,
                                  .size = step->data.size,
                                  .returned = step->returned,
                                  .uncancellable = step->uncancellable};
    return fail(simulated_pend(call, &reply, step->delay));
}

static int play_step(Script *script, DWORD code, void *input, DWORD input_size,
                     const OverlappedCall *call, DWORD *returned) {
    *returned = 0;
    mutex_lock(&player_lock);
    record_call(script, code, input, input_size, call->capacity);
    const ScriptStep *step = &script->steps[script->next_step];
    if (script->next_step + 1 < script->step_count) {
        script->next_step++;
    }
    /* WSA_IO_PENDING as an overlapped call's code says just that. */
    if (call->overlapped != NULL && !script->stopped &&
        (step->pending || step->code == WSA_IO_PENDING)) {
        int status = pend(step, call);
        mutex_unlock(&player_lock);
        return status;
    }
    double deadline = clock_seconds() + step->delay;
    while (!script->stopped && condition_wait_until(&player_stopped, &player_lock, deadline)) {
    }
    bool aborted = script->stopped;
    mutex_unlock(&player_lock);

    if (aborted) {
        return fail(WSA_OPERATION_ABORTED);
    }
    simulated_write(call->output, call->capacity, step->data.data, step->data.size);
    *returned = step->returned;
    return step->code == 0 ? 0 : fail(step->code);
}

static int WSAAPI scripted_ioctl(SOCKET socket, DWORD code, void *input, DWORD input_size,
                                 void *output, DWORD output_size, DWORD *returned,
                                 WSAOVERLAPPED *overlapped,
                                 LPWSAOVERLAPPED_COMPLETION_ROUTINE completion) {
    Script *script = atomic_load_explicit(&current, memory_order_acquire);
    if (script == NULL) {
        *returned = 0;
        return fail(WSAEOPNOTSUPP);
    }
    const bool fixed = script->step_count == 0;
    const OverlappedCall call = {socket, overlapped, completion, output, output_size};
    int status = fixed ? answer_fixed(script, code, output, output_size, returned)
                       : play_step(script, code, input, input_size, &call, returned);
    /* Of fixed answers only a completion routine is told: an event takes a system call. */
    if (status == 0 && overlapped != NULL && (!fixed || completion != NULL)) {
        DWORD error = simulated_succeed(overlapped, completion, *returned);
        return error == 0 ? 0 : fail(error);
    }
    return status;
}

static int WSAAPI scripted_last_error(void) { return WSAGetLastError(); }

/* Any socket has the options; datagrams are the system's own. */
static int WSAAPI scripted_setsockopt(SOCKET socket, int level, int option, const char *value,
                                      int size) {
    (void)socket, (void)level, (void)option, (void)value, (void)size;
    return 0;
}

const Provider provider_scripted = {
    .ioctl = scripted_ioctl,
    .overlapped_result = simulated_overlapped_result,
    .cancel = simulated_cancel,
    .last_error = scripted_last_error,
    .recvmsg = winsock_recvmsg,
    .sendmsg = winsock_sendmsg,
    .setsockopt = scripted_setsockopt,
};

void script_start(Script *script) { atomic_store_explicit(&current, script, memory_order_release); }

void script_after_fork(bool child) {
    if (child) { /* nobody waits there, whatever the condition remembers */
        player_stopped = (Condition)CONDITION_INIT;
    }
    script_unlock();
}

Script *script_current(void) { return atomic_load(&current); }

Script *script_stop(void) {
    Script *script = atomic_exchange(&current, NULL);
    mutex_lock(&player_lock);
    script->stopped = true;
    condition_wake_all(&player_stopped);
    mutex_unlock(&player_lock);
    simulated_abort(INVALID_SOCKET);
    return script;
}

void script_free(Script *script) {
    size_t recorded = script->call_count < SCRIPT_MAX_CALLS ? script->call_count : SCRIPT_MAX_CALLS;
    for (size_t i = 0; i < recorded; i++) {
        free(script->calls[i].input.data);
    }
    for (size_t i = 0; i < script->step_count; i++) {
        free(script->steps[i].data.data);
    }
    free(script->calls);
    free(script->steps);
    free(script->records.data);
    free(script->context.data);
    free(script);
}

void script_lock(void) { mutex_lock(&player_lock); }
void script_unlock(void) { mutex_unlock(&player_lock); }
