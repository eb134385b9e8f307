/* wfpioctl._wfpioctl: the module.  Arguments in, bytes or errors out.

   Each function parses its arguments, leaves the interpreter once around all of its provider calls
   (the error code is read inside), and turns the outcome into a Python value.  Which error it is,
   is decided in wfpioctl/errors.py; which answer means "grow", in ioctl.c. */
#include "module.h"

#include "forks.h"

#include <inttypes.h>
#include <string.h>

/* ---- arguments ------------------------------------------------------------------------------- */

bool wrong_count(const char *function, Py_ssize_t given, Py_ssize_t least, Py_ssize_t most) {
    if (given >= least && given <= most) {
        return false;
    }
    if (least == most) {
        PyErr_Format(PyExc_TypeError, "%s() takes exactly %zd arguments (%zd given)", function,
                     least, given);
    } else {
        PyErr_Format(PyExc_TypeError, "%s() takes from %zd to %zd arguments (%zd given)", function,
                     least, most, given);
    }
    return true;
}

/* A value as a message shows it: its repr, or its type where it has none (a user's repr() may
   raise, and an int may have more digits than Python prints). */
static PyObject *shown(PyObject *value) {
    PyObject *text = PyObject_Repr(value);
    if (text == NULL && PyErr_ExceptionMatches(PyExc_Exception)) {
        PyErr_Clear();
        PyObject *name = PyType_GetName(Py_TYPE(value));
        text = name == NULL ? NULL : PyUnicode_FromFormat("<unprintable %S object>", name);
        Py_XDECREF(name);
    }
    return text;
}

/* Raise "function(): argument complaint, not value" instead of whatever is raised now. */
static void refuse(PyObject *error, const char *function, const char *argument,
                   const char *complaint, PyObject *value) {
    PyErr_Clear();
    PyObject *text = shown(value);
    if (text != NULL) {
        PyErr_Format(error, "%s(): %s %s, not %.100S", function, argument, complaint, text);
        Py_DECREF(text);
    }
}

bool is_int(PyObject *value) { return PyLong_Check(value) && !PyBool_Check(value); }

/* The handle in an int, INVALID_SOCKET for that of a closed socket, or an exception. */
static bool handle_from_int(const char *function, const char *argument, PyObject *number,
                            SOCKET *socket) {
    int overflow;
    long long handle = PyLong_AsLongLongAndOverflow(number, &overflow);
    if (handle == -1 && PyErr_Occurred()) {
        return false;
    }
    if (handle == -1 && overflow == 0) { /* what fileno() of a closed socket says */
        *socket = INVALID_SOCKET;
        return true;
    }
    if (overflow < 0 || (overflow == 0 && handle < 0)) {
        refuse(PyExc_ValueError, function, argument, "must not be negative", number);
        return false;
    }
    if (overflow > 0 || (unsigned long long)handle > SOCKET_MAX) {
        refuse(PyExc_OverflowError, function, argument, "must fit a socket handle", number);
        return false;
    }
    *socket = (SOCKET)handle;
    return true;
}

/* Whether it was the lookup of fileno() that failed, and not what a fileno() did.  An exception is
   set, and stays. */
static bool has_no_fileno(ModuleState *state, PyObject *value) {
    if (!PyErr_ExceptionMatches(PyExc_AttributeError)) {
        return false;
    }
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    bool has = PyObject_HasAttr((PyObject *)Py_TYPE(value), state->fileno) ||
               PyObject_HasAttr(value, state->fileno);
    PyErr_Restore(type, error, traceback);
    return !has;
}

bool unusual_handle(ModuleState *state, const char *function, const char *argument, PyObject *value,
                    PyObject *number, SOCKET *socket) {
    bool converted = false;
    if (number == NULL && is_int(value)) { /* of a subclass, such as an enum's member */
        PyErr_Clear();
        number = Py_NewRef(value);
    }
    if (number == NULL) {
        if (has_no_fileno(state, value)) { /* what a fileno() raises is the user's */
            refuse(PyExc_TypeError, function, argument,
                   "must be an int handle or an object with fileno()", value);
        }
    } else if (is_int(number)) {
        converted = handle_from_int(function, argument, number, socket);
    } else {
        refuse(PyExc_TypeError, function, argument, "must have a fileno() that returns an int",
               number);
    }
    Py_XDECREF(number);
    return converted;
}

bool refuse_closed_socket(ModuleState *state, DWORD code) {
    const Outcome outcome = {.error = WSAENOTSOCK, .failed = true};
    raise_outcome(state, code, &outcome);
    return false;
}

bool buffer_argument(const char *function, const char *argument, const char *wanted,
                     PyObject *value, int flags, Py_buffer *view) {
    if (PyObject_GetBuffer(value, view, flags) == 0) {
        return true;
    }
    /* Types as of socket.recv_into() and socket.send(). */
    PyObject *error = PyErr_ExceptionMatches(PyExc_TypeError)      ? PyExc_TypeError
                      : !PyErr_ExceptionMatches(PyExc_BufferError) ? NULL
                      : (flags & PyBUF_WRITABLE) != 0              ? PyExc_TypeError
                                                                   : PyExc_BufferError;
    if (error != NULL) {
        char complaint[80];
        PyOS_snprintf(complaint, sizeof complaint, "must be a %s object", wanted);
        refuse(error, function, argument, complaint, value);
    }
    return false;
}

bool records_argument(const char *function, PyObject *value, Py_buffer *view) {
    if (!buffer_argument(function, "records", "contiguous bytes-like", value, PyBUF_SIMPLE, view)) {
        return false;
    }
    if (view->len == 0 || view->len > (Py_ssize_t)IOCTL_MAX_CAPACITY) {
        PyErr_Format(PyExc_ValueError, "%s(): records must be 1 to %u bytes long, not %zd",
                     function, IOCTL_MAX_CAPACITY, view->len);
        PyBuffer_Release(view);
        return false;
    }
    return true;
}

/* ---- outcomes -------------------------------------------------------------------------------- */

const char *ioctl_name(DWORD code) {
    switch (code) {
    case SIO_QUERY_WFP_CONNECTION_REDIRECT_RECORDS:
        return "SIO_QUERY_WFP_CONNECTION_REDIRECT_RECORDS";
    case SIO_QUERY_WFP_CONNECTION_REDIRECT_CONTEXT:
        return "SIO_QUERY_WFP_CONNECTION_REDIRECT_CONTEXT";
    default:
        return "SIO_SET_WFP_CONNECTION_REDIRECT_RECORDS";
    }
}

/* Raise an instance, or let the exception stand that kept it from being made. */
static PyObject *raise_instance(PyObject *error) {
    if (error != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
        Py_DECREF(error);
    }
    return NULL;
}

PyObject *raise_error(ModuleState *state, const char *operation, DWORD error) {
    return raise_instance(
        PyObject_CallFunction(state->error_factory, "sk", operation, (unsigned long)error));
}

PyObject *raise_outcome(ModuleState *state, DWORD code, const Outcome *outcome) {
    if (outcome->no_memory) {
        return PyErr_NoMemory();
    }
    PyObject *required = Py_None;
    if (outcome->required != 0) {
        required = PyLong_FromUnsignedLong(outcome->required);
        if (required == NULL) {
            return NULL;
        }
    } else {
        Py_INCREF(required);
    }
    PyObject *error = PyObject_CallFunction(state->error_factory, "skOO", ioctl_name(code),
                                            (unsigned long)outcome->error, required,
                                            outcome->too_small ? Py_True : Py_False);
    Py_DECREF(required);
    return raise_instance(error);
}

/* The codes of W17: the IOCTL worked, and nobody redirected this connection. */
static bool is_not_redirected(const Outcome *outcome) {
    return outcome->failed && !outcome->too_small && !outcome->no_memory &&
           (outcome->error == ERROR_NOT_FOUND || outcome->error == FWP_E_NOT_FOUND_CODE ||
            outcome->error == WSAEINVAL);
}

/* ---- calls ----------------------------------------------------------------------------------- */

/* One QUERY into `answer`, which the caller has pointed at its own memory; false with an exception.
   `thread` is where the thread's state is while it has left the interpreter. */
HOT_INLINE bool run_query(ModuleState *state, SOCKET socket, DWORD code, Answer *answer,
                          PyThreadState **thread) {
    CallCount *count;
    const Provider *provider = calls_enter(state, &count);
    *thread = PyEval_SaveThread();
    Outcome outcome = ioctl_query(provider, socket, code, answer);
    PyEval_RestoreThread(*thread);
    call_end(count);
    if (observe(state, provider, code, socket, &outcome, answer->size) < 0) {
        return false;
    }
    if (outcome.failed) {
        raise_outcome(state, code, &outcome);
    }
    return !outcome.failed;
}

/* An answer that grows straight into the bytes object that is returned: a large one is copied once,
   by the provider. */
typedef struct {
    Answer answer; /* the first: what grow() gets */
    PyThreadState *thread;
    PyObject *bytes;
} BytesAnswer;

static bool grow_into_bytes(Answer *answer, DWORD capacity) {
    BytesAnswer *self = (BytesAnswer *)answer;
    PyEval_RestoreThread(self->thread);
    Py_CLEAR(self->bytes); /* the old content is no answer */
    self->bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)capacity);
    if (self->bytes != NULL) {
        answer->data = PyBytes_AsString(self->bytes);
        answer->capacity = capacity;
    } else {
        PyErr_Clear(); /* the outcome says it */
    }
    self->thread = PyEval_SaveThread();
    return self->bytes != NULL;
}

BIG_FRAME PyObject *query_socket(ModuleState *state, SOCKET socket, DWORD code) {
    char stack[IOCTL_USUAL_CAPACITY];
    BytesAnswer got = {{.data = stack, .capacity = sizeof stack, .grow = grow_into_bytes},
                       .bytes = NULL};
    PyObject *result = NULL;
    if (run_query(state, socket, code, &got.answer, &got.thread)) {
        if (got.bytes != NULL && got.answer.size == got.answer.capacity) {
            return got.bytes;
        }
        result = PyBytes_FromStringAndSize(got.answer.data, (Py_ssize_t)got.answer.size);
    }
    Py_XDECREF(got.bytes);
    return result;
}

HOT_INLINE PyObject *query(PyObject *module, const char *function, DWORD code, PyObject *sock) {
    ModuleState *state = module_state(module);
    SOCKET socket;
    if (!socket_argument(state, function, "sock", code, sock, &socket)) {
        return NULL;
    }
    return query_socket(state, socket, code);
}

/* Copy an answer into the caller's `size` bytes, unless it is there already. */
static PyObject *deliver(ModuleState *state, DWORD code, const Answer *answer, char *memory,
                         DWORD size) {
    if (answer->size > size) {
        const Outcome outcome = {.error = ERROR_INSUFFICIENT_BUFFER,
                                 .failed = true,
                                 .too_small = true,
                                 .required = answer->size};
        return raise_outcome(state, code, &outcome);
    }
    if (answer->data != memory && answer->size != 0) {
        memcpy(memory, answer->data, answer->size);
    }
    return PyLong_FromUnsignedLong(answer->size);
}

bool nbytes_argument(const char *function, PyObject *value, Py_ssize_t length, Py_ssize_t *nbytes) {
    if (!is_int(value)) {
        refuse(PyExc_TypeError, function, "nbytes", "must be an int", value);
        return false;
    }
    *nbytes = PyLong_AsSsize_t(value);
    if (*nbytes == -1 && PyErr_Occurred()) {
        PyErr_Clear(); /* out of range: the check below says so */
    }
    if (*nbytes < 0 || *nbytes > length) {
        char complaint[80];
        PyOS_snprintf(complaint, sizeof complaint,
                      "must be from 0 to the buffer's %" PRId64 " bytes", (int64_t)length);
        refuse(PyExc_ValueError, function, "nbytes", complaint, value);
        return false;
    }
    return true;
}

BIG_FRAME PyObject *query_socket_into(ModuleState *state, SOCKET socket, DWORD code, char *memory,
                                      DWORD size) {
    char stack[IOCTL_USUAL_CAPACITY];
    /* Memory of the usual size or more takes the answer directly.  A smaller one would bring in the
       codes for a small buffer (W13 to W15), on which systems disagree. */
    Answer answer = size >= sizeof stack ? (Answer){.data = memory, .capacity = size}
                                         : (Answer){.data = stack, .capacity = sizeof stack};
    PyObject *result = NULL;
    PyThreadState *thread;
    if (run_query(state, socket, code, &answer, &thread)) {
        result = deliver(state, code, &answer, memory, size);
    }
    answer_free(&answer);
    return result;
}

static PyObject *query_into(PyObject *module, const char *function, DWORD code,
                            PyObject *const *args, Py_ssize_t nargs) {
    ModuleState *state = module_state(module);
    SOCKET socket;
    Py_buffer view;
    if (wrong_count(function, nargs, 2, 3) ||
        !socket_argument(state, function, "sock", code, args[0], &socket) ||
        !buffer_argument(function, "buffer", "writable contiguous bytes-like", args[1],
                         PyBUF_WRITABLE, &view)) {
        return NULL;
    }
    PyObject *result = NULL;
    Py_ssize_t nbytes = 0;
    if (nargs < 3 || nbytes_argument(function, args[2], view.len, &nbytes)) {
        unsigned long long room = (unsigned long long)(nbytes != 0 ? nbytes : view.len);
        DWORD size = room < UINT32_MAX ? (DWORD)room : UINT32_MAX;
        result = query_socket_into(state, socket, code, view.buf, size);
    }
    PyBuffer_Release(&view);
    return result;
}

PyDoc_STRVAR(query_redirect_records_doc,
             "query_redirect_records($module, sock, /)\n--\n\n"
             "Return the redirect records of an accepted connection, as opaque bytes.\n\n"
             "sock is the accepted socket: an int handle or an object with fileno().  Raises\n"
             "NotRedirectedError if nobody redirected the connection, and other RedirectErrors\n"
             "by code.  (SIO_QUERY_WFP_CONNECTION_REDIRECT_RECORDS)");

static PyObject *query_redirect_records(PyObject *module, PyObject *sock) {
    return query(module, "query_redirect_records", SIO_QUERY_WFP_CONNECTION_REDIRECT_RECORDS, sock);
}

PyDoc_STRVAR(query_redirect_context_doc,
             "query_redirect_context($module, sock, /)\n--\n\n"
             "Return the context that the redirecting driver left for the proxy.\n\n"
             "b'' means redirected without a context.  Usually it holds the original destination:\n"
             "see wfpioctl.context.  Raises as query_redirect_records() does.\n"
             "(SIO_QUERY_WFP_CONNECTION_REDIRECT_CONTEXT)");

static PyObject *query_redirect_context(PyObject *module, PyObject *sock) {
    return query(module, "query_redirect_context", SIO_QUERY_WFP_CONNECTION_REDIRECT_CONTEXT, sock);
}

PyDoc_STRVAR(
    query_redirect_records_into_doc,
    "query_redirect_records_into($module, sock, buffer, nbytes=0, /)\n--\n\n"
    "Write the redirect records into a writable buffer; return their size in bytes.\n\n"
    "At most nbytes bytes are written, or the buffer's length if nbytes is 0.  If they do\n"
    "not fit, nothing is written, and InsufficientBufferError.required_size says the size.");

static PyObject *query_redirect_records_into(PyObject *module, PyObject *const *args,
                                             Py_ssize_t nargs) {
    return query_into(module, "query_redirect_records_into",
                      SIO_QUERY_WFP_CONNECTION_REDIRECT_RECORDS, args, nargs);
}

PyDoc_STRVAR(query_redirect_context_into_doc,
             "query_redirect_context_into($module, sock, buffer, nbytes=0, /)\n--\n\n"
             "Write the redirect context into a writable buffer; return its size in bytes.\n\n"
             "The rules are those of query_redirect_records_into().");

static PyObject *query_redirect_context_into(PyObject *module, PyObject *const *args,
                                             Py_ssize_t nargs) {
    return query_into(module, "query_redirect_context_into",
                      SIO_QUERY_WFP_CONNECTION_REDIRECT_CONTEXT, args, nargs);
}

PyDoc_STRVAR(
    set_redirect_records_doc,
    "set_redirect_records($module, sock, records, /)\n--\n\n"
    "Set redirect records on a socket that is not connected yet.\n\n"
    "records are the exact bytes that query_redirect_records() returned: any contiguous\n"
    "bytes-like object of 1 byte to 1 MiB, else ValueError.  Call it before bind() and\n"
    "connect().  Raises RedirectErrors by code.  (SIO_SET_WFP_CONNECTION_REDIRECT_RECORDS)");

static PyObject *set_redirect_records(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    static const char function[] = "set_redirect_records";
    static const DWORD code = SIO_SET_WFP_CONNECTION_REDIRECT_RECORDS;
    ModuleState *state = module_state(module);
    SOCKET socket;
    Py_buffer view;
    if (wrong_count(function, nargs, 2, 2) ||
        !socket_argument(state, function, "sock", code, args[0], &socket) ||
        !records_argument(function, args[1], &view)) {
        return NULL;
    }
    CallCount *count;
    const Provider *provider = calls_enter(state, &count);
    DWORD size = (DWORD)view.len;
    Outcome outcome;
    Py_BEGIN_ALLOW_THREADS
        outcome = ioctl_set(provider, socket, view.buf, size);
    Py_END_ALLOW_THREADS
    call_end(count);
    PyBuffer_Release(&view);
    if (observe(state, provider, code, socket, &outcome, size) < 0) {
        return NULL;
    }
    if (outcome.failed) {
        return raise_outcome(state, code, &outcome);
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(transfer_redirect_records_doc,
             "transfer_redirect_records($module, accepted, outbound, /)\n--\n\n"
             "Query the records of an accepted socket and set them on an outbound one.\n\n"
             "One call and one release of the GIL for both.  Returns the records' size in bytes;\n"
             "0 if they are empty, and then nothing was set.  An error's operation attribute\n"
             "says which of the two failed.");

BIG_FRAME PyObject *transfer(ModuleState *state, SOCKET accepted, SOCKET outbound) {
    static const DWORD query_code = SIO_QUERY_WFP_CONNECTION_REDIRECT_RECORDS;
    static const DWORD set_code = SIO_SET_WFP_CONNECTION_REDIRECT_RECORDS;
    char stack[IOCTL_USUAL_CAPACITY];
    Answer answer = {.data = stack, .capacity = sizeof stack};
    CallCount *count;
    const Provider *provider = calls_enter(state, &count);
    Outcome queried, set = {0};
    Py_BEGIN_ALLOW_THREADS
        queried = ioctl_query(provider, accepted, query_code, &answer);
        if (!queried.failed && answer.size != 0) {
            set = ioctl_set(provider, outbound, answer.data, answer.size);
        }
        answer_free(&answer);
    Py_END_ALLOW_THREADS
    call_end(count);
    if (observe(state, provider, query_code, accepted, &queried, answer.size) < 0 ||
        (!queried.failed && answer.size != 0 &&
         observe(state, provider, set_code, outbound, &set, answer.size) < 0)) {
        return NULL;
    }
    if (queried.failed) {
        return raise_outcome(state, query_code, &queried);
    }
    if (set.failed) {
        return raise_outcome(state, set_code, &set);
    }
    return PyLong_FromUnsignedLong(answer.size);
}

static PyObject *transfer_redirect_records(PyObject *module, PyObject *const *args,
                                           Py_ssize_t nargs) {
    static const char function[] = "transfer_redirect_records";
    static const DWORD query_code = SIO_QUERY_WFP_CONNECTION_REDIRECT_RECORDS;
    static const DWORD set_code = SIO_SET_WFP_CONNECTION_REDIRECT_RECORDS;
    ModuleState *state = module_state(module);
    SOCKET accepted, outbound;
    if (wrong_count(function, nargs, 2, 2) ||
        !socket_argument(state, function, "accepted", query_code, args[0], &accepted) ||
        !socket_argument(state, function, "outbound", set_code, args[1], &outbound)) {
        return NULL;
    }
    return transfer(state, accepted, outbound);
}

PyDoc_STRVAR(
    read_redirect_parts_doc,
    "read_redirect_parts($module, sock, /)\n--\n\n"
    "Return (records, context) of an accepted connection, or None if not redirected.\n\n"
    "The core of wfpioctl.read_redirect(): both queries in one release of the GIL, and no\n"
    "exception object for a connection that nobody redirected.");

BIG_FRAME PyObject *read_socket(ModuleState *state, SOCKET socket) {
    static const DWORD records_code = SIO_QUERY_WFP_CONNECTION_REDIRECT_RECORDS;
    static const DWORD context_code = SIO_QUERY_WFP_CONNECTION_REDIRECT_CONTEXT;
    char records_stack[IOCTL_USUAL_CAPACITY], context_stack[IOCTL_USUAL_CAPACITY];
    Answer records = {.data = records_stack, .capacity = sizeof records_stack};
    Answer context = {.data = context_stack, .capacity = sizeof context_stack};
    CallCount *count;
    const Provider *provider = calls_enter(state, &count);
    Outcome got_records, got_context = {0};
    Py_BEGIN_ALLOW_THREADS
        got_records = ioctl_query(provider, socket, records_code, &records);
        if (!got_records.failed) {
            got_context = ioctl_query(provider, socket, context_code, &context);
            if (is_not_redirected(&got_context)) {
                got_context = (Outcome){0}; /* redirected, and carries none (W16) */
                context.size = 0;
            }
        }
    Py_END_ALLOW_THREADS
    call_end(count);
    PyObject *result = NULL;
    if (observe(state, provider, records_code, socket, &got_records, records.size) < 0 ||
        (!got_records.failed &&
         observe(state, provider, context_code, socket, &got_context, context.size) < 0)) {
        /* the exception is set */
    } else if (is_not_redirected(&got_records)) {
        result = Py_NewRef(Py_None);
    } else if (got_records.failed) {
        raise_outcome(state, records_code, &got_records);
    } else if (got_context.failed) {
        raise_outcome(state, context_code, &got_context);
    } else {
        result = Py_BuildValue("(y#y#)", records.data, (Py_ssize_t)records.size, context.data,
                               (Py_ssize_t)context.size);
    }
    answer_free(&records);
    answer_free(&context);
    return result;
}

static PyObject *read_redirect_parts(PyObject *module, PyObject *sock) {
    static const DWORD records_code = SIO_QUERY_WFP_CONNECTION_REDIRECT_RECORDS;
    ModuleState *state = module_state(module);
    SOCKET socket;
    if (!socket_argument(state, "read_redirect", "sock", records_code, sock, &socket)) {
        return NULL;
    }
    return read_socket(state, socket);
}

/* ---- the module ------------------------------------------------------------------------------ */

static PyMethodDef ioctl_methods[] = {
    {"query_redirect_records", query_redirect_records, METH_O, query_redirect_records_doc},
    {"query_redirect_context", query_redirect_context, METH_O, query_redirect_context_doc},
    {"query_redirect_records_into", (PyCFunction)(void (*)(void))query_redirect_records_into,
     METH_FASTCALL, query_redirect_records_into_doc},
    {"query_redirect_context_into", (PyCFunction)(void (*)(void))query_redirect_context_into,
     METH_FASTCALL, query_redirect_context_into_doc},
    {"set_redirect_records", (PyCFunction)(void (*)(void))set_redirect_records, METH_FASTCALL,
     set_redirect_records_doc},
    {"transfer_redirect_records", (PyCFunction)(void (*)(void))transfer_redirect_records,
     METH_FASTCALL, transfer_redirect_records_doc},
    {"read_redirect_parts", read_redirect_parts, METH_O, read_redirect_parts_doc},
    {NULL, NULL, 0, NULL},
};

/* An attribute of a module that is imported for it; NULL with an exception. */
static PyObject *imported(const char *module, const char *name) {
    PyObject *from = PyImport_ImportModule(module);
    PyObject *value = from == NULL ? NULL : PyObject_GetAttrString(from, name);
    Py_XDECREF(from);
    return value;
}

static int module_exec(PyObject *module) {
    ModuleState *state = module_state(module);
    atomic_store(&state->provider, &provider_winsock);
    forks_watch();
    int error = winsock_start();
    if (error != 0) {
        PyErr_Format(PyExc_ImportError, "wfpioctl: Winsock did not start: WSAStartup() says %d",
                     error);
        return -1;
    }
    state->winsock_started = true;
    state->fileno = PyUnicode_InternFromString("fileno");
    if (state->fileno == NULL) {
        return -1;
    }
    state->error_factory = imported("wfpioctl.errors", "error_from_code");
    if (state->error_factory == NULL) { /* another import would bury why */
        return -1;
    }
    PyObject *socket_type = imported("socket", "socket");
    if (socket_type == NULL) {
        return -1;
    }
    state->socket_type = (PyTypeObject *)socket_type;
    state->socket_fileno = PyObject_GetAttr(socket_type, state->fileno);
    if (state->socket_fileno == NULL || PyModule_AddFunctions(module, datagram_methods) < 0 ||
        PyModule_AddFunctions(module, simulator_methods) < 0) {
        return -1;
    }
    return overlapped_exec(module);
}

static int module_traverse(PyObject *module, visitproc visit, void *arg) {
    ModuleState *state = module_state(module);
    Py_VISIT(state->error_factory);
    Py_VISIT(state->socket_type);
    Py_VISIT(state->socket_fileno);
    Py_VISIT(state->observer);
    Py_VISIT(state->operation_type);
    return 0;
}

static int module_clear(PyObject *module) {
    ModuleState *state = module_state(module);
    Py_CLEAR(state->error_factory);
    Py_CLEAR(state->fileno);
    Py_CLEAR(state->socket_type);
    Py_CLEAR(state->socket_fileno);
    Py_CLEAR(state->observer);
    Py_CLEAR(state->operation_type);
    return 0;
}

static void module_free(void *module) {
    ModuleState *state = module_state(module);
    module_clear(module);
    simulator_free(state);
    if (state->winsock_started) {
        winsock_end();
    }
}

/* The slots that each Python knows; an unknown one would make it refuse the module. */
static PyModuleDef_Slot slots_3_11[] = {
    {Py_mod_exec, SLOT_FUNCTION(module_exec)},
    {0, NULL},
};
static PyModuleDef_Slot slots_3_12[] = {
    {Py_mod_exec, SLOT_FUNCTION(module_exec)},
    {SLOT_MULTIPLE_INTERPRETERS, SLOT_PER_INTERPRETER_GIL},
    {0, NULL},
};
static PyModuleDef_Slot slots_3_13[] = {
    {Py_mod_exec, SLOT_FUNCTION(module_exec)},
    {SLOT_MULTIPLE_INTERPRETERS, SLOT_PER_INTERPRETER_GIL},
    {SLOT_GIL, SLOT_GIL_NOT_USED},
    {0, NULL},
};

static PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "wfpioctl._wfpioctl",
    .m_doc = "The WFP connection redirect IOCTLs.  Use wfpioctl, which names what is public.",
    .m_size = sizeof(ModuleState),
    .m_methods = ioctl_methods,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__wfpioctl(void) {
    module_def.m_slots = Py_Version >= 0x030d0000   ? slots_3_13
                         : Py_Version >= 0x030c0000 ? slots_3_12
                                                    : slots_3_11;
    return PyModuleDef_Init(&module_def);
}
