/* What the files of the Python module share: its state and the pieces that convert and raise. */
#ifndef WFPIOCTL_MODULE_H
#define WFPIOCTL_MODULE_H

#include "python_compat.h"

#include "ioctl.h"
#include "provider.h"
#include "provider_scripted.h"

typedef struct {
    PyObject *error_factory;            /* wfpioctl.errors.error_from_code */
    PyObject *fileno;                   /* "fileno" */
    PyTypeObject *socket_type;          /* socket.socket */
    PyObject *socket_fileno;            /* ... and its fileno, unbound */
    _Atomic(const Provider *) provider; /* where this interpreter's IOCTLs go */
    PyObject *observer;                 /* told of each IOCTL on the engine; set once */
    PyObject *operation_type;           /* wfpioctl.overlapped.Operation */
    CallCounter calls;
    Script *retired; /* ended while calls were under way */
    bool winsock_started;
} ModuleState;

static inline ModuleState *module_state(PyObject *module) { return PyModule_GetState(module); }

/* Between this and call_end() a call may leave the interpreter and use the provider. */
static inline const Provider *calls_enter(ModuleState *state, CallCount **count) {
    *count = call_begin(&state->calls);
    return atomic_load_explicit(&state->provider, memory_order_acquire);
}

/* Arguments.  Each sets an exception that names the function, the argument and the value. */
bool wrong_count(const char *function, Py_ssize_t given, Py_ssize_t least, Py_ssize_t most);
bool is_int(PyObject *value); /* bool is none */

/* What handle_argument() does with what is not in the usual form.  `number` is what fileno()
   returned, or NULL with an exception; this call owns it. */
bool unusual_handle(ModuleState *state, const char *function, const char *argument, PyObject *value,
                    PyObject *number, SOCKET *socket);

/* What an object's fileno() returns.  An exact socket.socket has the one of its class, so that the
   look-up is done once for all, and not twice a connection; a class patched later is not seen. */
HOT_INLINE PyObject *call_fileno(ModuleState *state, PyObject *value) {
    return Py_IS_TYPE(value, state->socket_type)
               ? PyObject_CallFunctionObjArgs(state->socket_fileno, value, NULL)
               : PyObject_CallMethodObjArgs(value, state->fileno, NULL);
}

/* Convert `sock` (an int handle, or anything with fileno()); false on failure.  A closed socket is
   INVALID_SOCKET for handle_argument(), and NotASocketError for socket_argument(). */
HOT_INLINE bool handle_argument(ModuleState *state, const char *function, const char *argument,
                                PyObject *value, SOCKET *socket) {
    PyObject *number = PyLong_CheckExact(value) ? Py_NewRef(value) : call_fileno(state, value);
    if (number != NULL && PyLong_CheckExact(number)) {
        int overflow;
        long long handle = PyLong_AsLongLongAndOverflow(number, &overflow); /* -1 if it overflows */
        if (handle >= 0 && (unsigned long long)handle <= SOCKET_MAX) {
            Py_DECREF(number);
            *socket = (SOCKET)handle;
            return true;
        }
    }
    return unusual_handle(state, function, argument, value, number, socket);
}

/* NotASocketError, as the standard library says it of a closed socket. */
bool refuse_closed_socket(ModuleState *state, DWORD code);

HOT_INLINE bool socket_argument(ModuleState *state, const char *function, const char *argument,
                                DWORD code, PyObject *value, SOCKET *socket) {
    return handle_argument(state, function, argument, value, socket) &&
           (*socket != INVALID_SOCKET || refuse_closed_socket(state, code));
}

/* Get a contiguous buffer of an object; false on failure. */
bool buffer_argument(const char *function, const char *argument, const char *wanted,
                     PyObject *value, int flags, Py_buffer *view);

/* Records to be set: such a buffer, of a sensible size; false on failure. */
bool records_argument(const char *function, PyObject *value, Py_buffer *view);

/* An IOCTL's name, as in the SDK. */
const char *ioctl_name(DWORD code);

/* The rules of socket.recv_into for `nbytes`; false on failure. */
bool nbytes_argument(const char *function, PyObject *value, Py_ssize_t length, Py_ssize_t *nbytes);

/* Raise what wfpioctl.errors says of a code, or of an IOCTL's failed outcome.  Return NULL. */
PyObject *raise_error(ModuleState *state, const char *operation, DWORD error);
PyObject *raise_outcome(ModuleState *state, DWORD code, const Outcome *outcome);

/* Overlapped operations, in module_overlapped.c. */
int overlapped_exec(PyObject *module);

/* The datagrams' face, in module_datagram.c. */
extern PyMethodDef datagram_methods[];

/* The simulators' face, in module_simulator.c. */
extern PyMethodDef simulator_methods[];
int simulator_observe(ModuleState *state, DWORD code, SOCKET socket, DWORD error, DWORD size);
void simulator_free(ModuleState *state);

/* Tell the simulated engine's control plane of an IOCTL.  -1 with the exception that it raised. */
HOT_INLINE int observe(ModuleState *state, const Provider *provider, DWORD code, SOCKET socket,
                       const Outcome *outcome, DWORD size) {
    if (provider != &provider_engine) {
        return 0;
    }
    return simulator_observe(state, code, socket, outcome->error, size);
}

#endif
