/* The module's overlapped side: the type Operation, and what starts one.

   An Operation holds no Python object: only the block of operation.c, which holds copies. */
#include "module.h"

#include "alertable.h"
#include "operation.h"
#include "platform.h"

#include <errno.h>

/* Signals are looked for this often while waiting, s. */
#define WAIT_SLICE 0.05

typedef struct {
    PyObject_HEAD Operation *operation;
    bool given_up; /* cancelled by its owner: no warning when it is dropped */
} OperationObject;

/* ---- starting -------------------------------------------------------------------------------- */

static const char *function_name(DWORD code) {
    switch (code) {
    case SIO_QUERY_WFP_CONNECTION_REDIRECT_RECORDS:
        return "query_redirect_records";
    case SIO_QUERY_WFP_CONNECTION_REDIRECT_CONTEXT:
        return "query_redirect_context";
    default:
        return "set_redirect_records";
    }
}

/* A new operation from (code, sock, records or None); NULL with an exception. */
static Operation *make_operation(ModuleState *state, PyObject *const *args, bool with_routine,
                                 const Provider *provider) {
    DWORD code = (DWORD)PyLong_AsUnsignedLong(args[0]);
    if (PyErr_Occurred()) {
        return NULL;
    }
    const bool is_set = code == SIO_SET_WFP_CONNECTION_REDIRECT_RECORDS;
    SOCKET socket;
    Py_buffer view = {0};
    if (!socket_argument(state, function_name(code), "sock", code, args[1], &socket) ||
        (is_set && !records_argument(function_name(code), args[2], &view))) {
        return NULL;
    }
    Operation *operation =
        operation_new(provider, socket, code, view.buf, (DWORD)view.len, with_routine);
    int error = errno;
    if (is_set) {
        PyBuffer_Release(&view);
    }
    if (operation == NULL && error == ENOMEM) {
        PyErr_NoMemory();
    } else if (operation == NULL) {
        errno = error;
        PyErr_SetFromErrno(PyExc_OSError);
    }
    return operation;
}

/* Tell the engine's control plane how an operation ended; -1 with its exception. */
static int observe_operation(ModuleState *state, const Operation *operation) {
    const Answer *answer = operation_answer(operation);
    return observe(state, operation_provider(operation), operation_code(operation),
                   operation_socket(operation), operation_outcome(operation), answer->size);
}

/* Make and start one.  NULL with an exception; *over: it is over. */
static Operation *start(ModuleState *state, PyObject *const *args, bool with_routine, bool *over) {
    CallCount *count;
    const Provider *provider = calls_enter(state, &count);
    Operation *operation = make_operation(state, args, with_routine, provider);
    if (operation != NULL) {
        Py_BEGIN_ALLOW_THREADS
            *over = operation_start(operation);
        Py_END_ALLOW_THREADS
    }
    call_end(count);
    if (operation != NULL && *over && observe_operation(state, operation) < 0) {
        operation_free(operation);
        return NULL;
    }
    return operation;
}

/* The result of one that is over, or its error. */
static PyObject *claim(ModuleState *state, const Operation *operation) {
    const Outcome *outcome = operation_outcome(operation);
    if (outcome->failed) {
        return raise_outcome(state, operation_code(operation), outcome);
    }
    if (operation_code(operation) == SIO_SET_WFP_CONNECTION_REDIRECT_RECORDS) {
        return Py_NewRef(Py_None);
    }
    const Answer *answer = operation_answer(operation);
    return PyBytes_FromStringAndSize(answer->data, (Py_ssize_t)answer->size);
}

/* An Operation that owns the block; without the memory for one, the block is given up. */
static PyObject *wrap(ModuleState *state, Operation *operation) {
    OperationObject *self = PyObject_New(OperationObject, (PyTypeObject *)state->operation_type);
    if (self == NULL) {
        operation_free(operation);
        return NULL;
    }
    self->operation = operation;
    self->given_up = false;
    return (PyObject *)self;
}

static PyObject *overlapped_start(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    if (wrong_count("overlapped_start", nargs, 4, 4)) {
        return NULL;
    }
    ModuleState *state = module_state(module);
    bool over;
    Operation *operation = start(state, args, args[3] == Py_True, &over);
    return operation == NULL ? NULL : wrap(state, operation);
}

static PyObject *overlapped_call(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    if (wrong_count("overlapped_call", nargs, 3, 3)) {
        return NULL;
    }
    ModuleState *state = module_state(module);
    bool over;
    Operation *operation = start(state, args, false, &over);
    if (operation == NULL || !over) {
        return operation == NULL ? NULL : wrap(state, operation);
    }
    PyObject *result = claim(state, operation);
    operation_free(operation);
    return result;
}

/* ---- the type -------------------------------------------------------------------------------- */

static Operation *block_of(PyObject *self) { return ((OperationObject *)self)->operation; }

static ModuleState *state_of(PyObject *self) { return PyType_GetModuleState(Py_TYPE(self)); }

/* Is it over?  Looking may start it again, on the provider. */
static bool poll_operation(PyObject *self) {
    CallCount *count;
    bool over;
    calls_enter(state_of(self), &count);
    Py_BEGIN_ALLOW_THREADS
        over = operation_poll(block_of(self));
    Py_END_ALLOW_THREADS
    call_end(count);
    return over;
}

static void wait_for(PyObject *self, double seconds) {
    CallCount *count;
    calls_enter(state_of(self), &count); /* a completion routine may start it again */
    Py_BEGIN_ALLOW_THREADS
        operation_wait(block_of(self), seconds);
    Py_END_ALLOW_THREADS
    call_end(count);
}

/* None or a number of seconds, 0 or more; as a deadline. */
static bool deadline_from(PyObject *timeout, double *deadline) {
    if (timeout == Py_None) {
        *deadline = Py_HUGE_VAL;
        return true;
    }
    double seconds = PyFloat_AsDouble(timeout);
    if (seconds == -1.0 && PyErr_Occurred()) {
        return false;
    }
    if (!(seconds >= 0.0)) {
        PyErr_Format(PyExc_ValueError, "result(): timeout must be None or 0 or more, not %R",
                     timeout);
        return false;
    }
    *deadline = clock_seconds() + seconds;
    return true;
}

PyDoc_STRVAR(result_doc,
             "result($self, /, timeout=None)\n--\n\n"
             "Wait for the operation to end, and return what its IOCTL answered.\n\n"
             "bytes for a query, None for a set; the same each time.  timeout is in seconds, None\n"
             "for ever; a TimeoutError leaves the operation as it is.  Raises the RedirectErrors\n"
             "that the synchronous call raises, and OperationAbortedError if it was cancelled or\n"
             "its socket closed.  Any thread may call it.");

static PyObject *operation_result(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *keywords[] = {"timeout", NULL};
    PyObject *timeout = Py_None;
    double deadline;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O:result", keywords, &timeout) ||
        !deadline_from(timeout, &deadline)) {
        return NULL;
    }
    while (!poll_operation(self)) {
        double left = deadline - clock_seconds();
        if (left <= 0.0) {
            PyErr_Format(PyExc_TimeoutError, "%s: still pending after %S s",
                         ioctl_name(operation_code(block_of(self))), timeout);
            return NULL;
        }
        wait_for(self, left < WAIT_SLICE ? left : WAIT_SLICE);
        if (PyErr_CheckSignals() < 0) {
            return NULL;
        }
    }
    return claim(state_of(self), block_of(self));
}

PyDoc_STRVAR(cancel_doc,
             "cancel($self, /)\n--\n\n"
             "Ask for the operation's end; result() then raises OperationAbortedError.\n\n"
             "Does not wait.  An operation that has ended, or ends first, keeps its result.");

static PyObject *operation_cancel_method(PyObject *self, PyObject *unused) {
    (void)unused;
    DWORD error;
    ((OperationObject *)self)->given_up = true;
    Py_BEGIN_ALLOW_THREADS
        error = operation_cancel(block_of(self));
    Py_END_ALLOW_THREADS
    if (error != 0) {
        const Outcome outcome = {.error = error, .failed = true};
        return raise_outcome(state_of(self), operation_code(block_of(self)), &outcome);
    }
    Py_RETURN_NONE;
}

static PyObject *operation_enter(PyObject *self, PyObject *unused) {
    (void)unused;
    return Py_NewRef(self);
}

static PyObject *operation_exit(PyObject *self, PyObject *args) {
    (void)args;
    return operation_cancel_method(self, NULL);
}

static PyObject *operation_pending(PyObject *self, void *unused) {
    (void)unused;
    return PyBool_FromLong(!poll_operation(self));
}

static PyObject *operation_event_number(PyObject *self, void *unused) {
    (void)unused;
    return PyLong_FromUnsignedLongLong(operation_event(block_of(self)));
}

static PyObject *operation_repr(PyObject *self) {
    const Operation *operation = block_of(self);
    const char *state = !poll_operation(self)                  ? "pending"
                        : operation_outcome(operation)->failed ? "failed"
                                                               : "done";
    return PyUnicode_FromFormat("<Operation %s on socket %llu %s>",
                                ioctl_name(operation_code(operation)),
                                (unsigned long long)operation_socket(operation), state);
}

static void warn_dropped(DWORD code, SOCKET socket) {
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    if (PyErr_WarnFormat(PyExc_ResourceWarning, 1,
                         "%s on socket %llu was dropped while pending; it has been cancelled",
                         ioctl_name(code), (unsigned long long)socket) < 0) {
        PyErr_WriteUnraisable(NULL);
    }
    PyErr_Restore(type, value, traceback);
}

static void operation_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    Operation *operation = block_of(self);
    DWORD code = operation_code(operation);
    SOCKET socket = operation_socket(operation);
    if (operation_free(operation) && !((OperationObject *)self)->given_up) {
        warn_dropped(code, socket);
    }
    PyObject_Free(self);
    Py_DECREF(type);
}

PyDoc_STRVAR(operation_doc,
             "An overlapped IOCTL.  Use it in a with block, which cancels it if it still pends.\n\n"
             "One that is dropped while pending is cancelled, with a ResourceWarning.");
PyDoc_STRVAR(pending_doc, "Whether the operation has yet to end.");
PyDoc_STRVAR(event_doc,
             "Set when the operation may have ended; then look at pending.\n\n"
             "On Windows a HANDLE for the wait functions, elsewhere a file descriptor that is\n"
             "readable then.  It is the operation's own: neither close nor reset it.");

static PyMethodDef operation_methods[] = {
    {"result", (PyCFunction)(void (*)(void))operation_result, METH_VARARGS | METH_KEYWORDS,
     result_doc},
    {"cancel", operation_cancel_method, METH_NOARGS, cancel_doc},
    {"__enter__", operation_enter, METH_NOARGS, NULL},
    {"__exit__", operation_exit, METH_VARARGS, NULL},
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef operation_properties[] = {
    {"pending", operation_pending, NULL, pending_doc, NULL},
    {"event", operation_event_number, NULL, event_doc, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot operation_slots[] = {
    {Py_tp_doc, (void *)(uintptr_t)operation_doc},
    {Py_tp_dealloc, SLOT_FUNCTION(operation_dealloc)},
    {Py_tp_repr, SLOT_FUNCTION(operation_repr)},
    {Py_tp_methods, operation_methods},
    {Py_tp_getset, operation_properties},
    {0, NULL},
};

static PyType_Spec operation_spec = {
    .name = "wfpioctl.overlapped.Operation",
    .basicsize = sizeof(OperationObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = operation_slots,
};

/* ---- the rest -------------------------------------------------------------------------------- */

static PyObject *overlapped_sleep(PyObject *module, PyObject *number) {
    double seconds = PyFloat_AsDouble(number);
    if (seconds == -1.0 && PyErr_Occurred()) {
        return NULL;
    }
    CallCount *count;
    calls_enter(module_state(module), &count); /* a completion routine may start one again */
    Py_BEGIN_ALLOW_THREADS
        alertable_sleep(seconds < WAIT_SLICE ? seconds : WAIT_SLICE);
    Py_END_ALLOW_THREADS
    call_end(count);
    return PyErr_CheckSignals() < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *overlapped_counters(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    OperationCounters counters = operation_counters();
    return Py_BuildValue("(LLLLLL)", counters.started, counters.completed, counters.failed,
                         counters.cancelled, counters.orphaned, counters.given_back);
}

static PyMethodDef overlapped_functions[] = {
    {"overlapped_start", (PyCFunction)(void (*)(void))overlapped_start, METH_FASTCALL, NULL},
    {"overlapped_call", (PyCFunction)(void (*)(void))overlapped_call, METH_FASTCALL, NULL},
    {"overlapped_sleep", overlapped_sleep, METH_O, NULL},
    {"overlapped_counters", overlapped_counters, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

int overlapped_exec(PyObject *module) {
    ModuleState *state = module_state(module);
    state->operation_type = PyType_FromModuleAndSpec(module, &operation_spec, NULL);
    if (state->operation_type == NULL ||
        PyModule_AddObjectRef(module, "Operation", state->operation_type) < 0) {
        return -1;
    }
    return PyModule_AddFunctions(module, overlapped_functions);
}
