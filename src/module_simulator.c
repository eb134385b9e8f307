/* The module's functions for wfpioctl/simulator.py: start and end the simulated providers, and tell
   the engine's data plane what the control plane decided.  Not public: simulator.py is. */
#include "module.h"

#include "provider_engine.h"
#include "simulated.h"

#include <stdlib.h>
#include <string.h>

#define MAX_BLOB 0x10000000 /* 256 MiB: any size, within reason */

/* ---- which provider is active ---------------------------------------------------------------- */

/* The interpreter whose IOCTLs are simulated; one at most in a process. */
static _Atomic(ModuleState *) active_owner;

static bool activate(ModuleState *state) {
    ModuleState *nobody = NULL;
    if (atomic_compare_exchange_strong(&active_owner, &nobody, state)) {
        return true;
    }
    PyErr_SetString(PyExc_RuntimeError,
                    "another Engine or Scripted is active; leave its with block first");
    return false;
}

static bool require_active(ModuleState *state, const Provider *provider) {
    if (atomic_load(&active_owner) == state && atomic_load(&state->provider) == provider) {
        return true;
    }
    PyErr_SetString(PyExc_RuntimeError, provider == &provider_engine
                                            ? "the Engine is not active"
                                            : "the Scripted is not active");
    return false;
}

static void deactivate(ModuleState *state) {
    atomic_store(&state->provider, &provider_winsock);
    atomic_store(&active_owner, NULL);
}

static void free_retired(ModuleState *state) {
    if (calls_under_way(&state->calls)) {
        return; /* whoever starts or ends the next script, or the module, tries again */
    }
    while (state->retired != NULL) {
        Script *script = state->retired;
        state->retired = script->next_retired;
        script_free(script);
    }
}

static void end_script(ModuleState *state) {
    atomic_store(&state->provider, &provider_winsock);
    Script *script = script_stop();
    script->next_retired = state->retired;
    state->retired = script;
    free_retired(state);
    deactivate(state);
}

void simulator_free(ModuleState *state) {
    if (atomic_load(&active_owner) == state) {
        if (atomic_load(&state->provider) == &provider_scripted) {
            end_script(state);
        } else {
            engine_close();
            deactivate(state);
        }
    }
    free_retired(state);
}

/* ---- conversions ----------------------------------------------------------------------------- */

/* A copy of a bytes-like object.  False with an exception. */
static bool copy_blob(PyObject *value, Blob *blob) {
    Py_buffer view;
    if (PyObject_GetBuffer(value, &view, PyBUF_SIMPLE) < 0) {
        return false;
    }
    bool copied = false;
    if (view.len > MAX_BLOB) {
        PyErr_Format(PyExc_ValueError, "a simulated blob may hold %d bytes, not %zd", MAX_BLOB,
                     view.len);
    } else if ((blob->data = malloc(view.len ? (size_t)view.len : 1)) == NULL) {
        PyErr_NoMemory();
    } else {
        blob->size = (DWORD)view.len;
        memcpy(blob->data, view.buf, (size_t)view.len);
        copied = true;
    }
    PyBuffer_Release(&view);
    return copied;
}

/* PyArg_ParseTuple() takes what is no tuple for a bug of its caller. */
static bool is_tuple(PyObject *value, const char *what) {
    if (PyTuple_Check(value)) {
        return true;
    }
    PyErr_Format(PyExc_TypeError, "%s, not %R", what, value);
    return false;
}

static int parse_endpoint(PyObject *value, void *result) {
    const char *host;
    int port;
    if (!is_tuple(value, "an endpoint is a (host, port) tuple") ||
        !PyArg_ParseTuple(value, "si;an endpoint is a (host, port) tuple", &host, &port)) {
        return 0;
    }
    if (port < 0 || port > 0xFFFF || !endpoint_parse(host, (uint16_t)port, result)) {
        PyErr_Format(PyExc_ValueError, "not a numeric address and port: (%s, %d)", host, port);
        return 0;
    }
    return 1;
}

static int parse_socket(PyObject *value, void *result) {
    unsigned long long handle = PyLong_AsUnsignedLongLong(value);
    *(SOCKET *)result = (SOCKET)handle;
    return !(handle == (unsigned long long)-1 && PyErr_Occurred());
}

/* ---- the scripted provider ------------------------------------------------------------------- */

static bool fill_steps(Script *script, PyObject *steps) {
    Py_ssize_t count = PyTuple_Size(steps);
    script->steps = calloc((size_t)count + 1, sizeof *script->steps);
    script->calls = calloc(SCRIPT_MAX_CALLS, sizeof *script->calls);
    if (script->steps == NULL || script->calls == NULL) {
        PyErr_NoMemory();
        return false;
    }
    script->step_count = (size_t)count;
    for (Py_ssize_t i = 0; i < count; i++) {
        ScriptStep *step = &script->steps[i];
        unsigned long code, returned;
        int pending, cancellable;
        PyObject *data, *item = PyTuple_GetItem(steps, i);
        if (!is_tuple(item, "a step is a tuple of code, data, returned, delay and two flags") ||
            !PyArg_ParseTuple(item, "kOkdpp", &code, &data, &returned, &step->delay, &pending,
                              &cancellable) ||
            !copy_blob(data, &step->data)) {
            return false;
        }
        step->code = (DWORD)code;
        step->returned = (DWORD)returned;
        step->pending = pending != 0;
        step->uncancellable = cancellable == 0;
    }
    return true;
}

static PyObject *scripted_start(PyObject *module, PyObject *args) {
    ModuleState *state = module_state(module);
    PyObject *records, *context, *steps;
    if (!PyArg_ParseTuple(args, "OOO!", &records, &context, &PyTuple_Type, &steps)) {
        return NULL;
    }
    Script *script = calloc(1, sizeof *script);
    if (script == NULL) {
        return PyErr_NoMemory();
    }
    if (!copy_blob(records, &script->records) || !copy_blob(context, &script->context) ||
        (PyTuple_Size(steps) > 0 && !fill_steps(script, steps)) || !activate(state)) {
        script_free(script);
        return NULL;
    }
    free_retired(state);
    script_start(script);
    atomic_store(&state->provider, &provider_scripted);
    Py_RETURN_NONE;
}

/* [(code, input, capacity), ...] of the script's recorded calls. */
static PyObject *calls_of(const Script *script) {
    script_lock();
    size_t count = script->call_count < SCRIPT_MAX_CALLS ? script->call_count : SCRIPT_MAX_CALLS;
    script_unlock(); /* a recorded call does not change any more */
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list != NULL && i < count; i++) {
        const ScriptCall *call = &script->calls[i];
        const char *input = call->input.data != NULL ? call->input.data : ""; /* "y#": no None */
        PyObject *item = Py_BuildValue("(ky#k)", (unsigned long)call->code, input,
                                       (Py_ssize_t)call->input.size, (unsigned long)call->capacity);
        if (item == NULL || PyList_Append(list, item) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(item);
    }
    return list;
}

static PyObject *scripted_calls(PyObject *module, PyObject *unused) {
    (void)unused;
    ModuleState *state = module_state(module);
    return require_active(state, &provider_scripted) ? calls_of(script_current()) : NULL;
}

static PyObject *scripted_abort(PyObject *module, PyObject *args) {
    SOCKET socket;
    if (!require_active(module_state(module), &provider_scripted) ||
        !PyArg_ParseTuple(args, "O&", parse_socket, &socket)) {
        return NULL;
    }
    simulated_abort(socket);
    Py_RETURN_NONE;
}

static PyObject *scripted_stop(PyObject *module, PyObject *unused) {
    (void)unused;
    ModuleState *state = module_state(module);
    if (!require_active(state, &provider_scripted)) {
        return NULL;
    }
    end_script(state);
    Py_RETURN_NONE;
}

/* ---- the engine ------------------------------------------------------------------------------ */

static PyObject *engine_start(PyObject *module, PyObject *args) {
    ModuleState *state = module_state(module);
    unsigned long too_small, minimum, not_redirected, no_context;
    int names_size;
    unsigned long long secret;
    if (!PyArg_ParseTuple(args, "kpkkkK", &too_small, &names_size, &minimum, &not_redirected,
                          &no_context, &secret) ||
        !activate(state)) {
        return NULL;
    }
    const EngineDialect dialect = {.too_small = (DWORD)too_small,
                                   .names_size = (DWORD)names_size,
                                   .minimum = (DWORD)minimum,
                                   .not_redirected = (DWORD)not_redirected,
                                   .no_context = (DWORD)no_context};
    engine_open(&dialect, secret);
    atomic_store(&state->provider, &provider_engine);
    Py_RETURN_NONE;
}

static PyObject *engine_stop(PyObject *module, PyObject *unused) {
    (void)unused;
    ModuleState *state = module_state(module);
    if (!require_active(state, &provider_engine)) {
        return NULL;
    }
    engine_close();
    deactivate(state);
    Py_RETURN_NONE;
}

static PyObject *flow_added(bool added) {
    if (!added) {
        return PyErr_NoMemory();
    }
    Py_RETURN_NONE;
}

/* A blob has been checked to fit by whoever made it: engine_records() or add_driver(). */
static FlowData flow_data(unsigned long long id, const Py_buffer *records,
                          const Py_buffer *context) {
    return (FlowData){.id = id,
                      .records = records->buf,
                      .records_size = (DWORD)records->len,
                      .context = context->buf,
                      .context_size = (DWORD)context->len};
}

static PyObject *add_flow(PyObject *module, PyObject *args) {
    SOCKET app;
    Endpoint local, remote;
    unsigned long long id;
    Py_buffer records, context;
    if (!require_active(module_state(module), &provider_engine) ||
        !PyArg_ParseTuple(args, "O&O&O&Ky*y*", parse_socket, &app, parse_endpoint, &local,
                          parse_endpoint, &remote, &id, &records, &context)) {
        return NULL;
    }
    FlowData flow = flow_data(id, &records, &context);
    bool added = engine_add_flow(app, &local, &remote, &flow);
    PyBuffer_Release(&records);
    PyBuffer_Release(&context);
    return flow_added(added);
}

static PyObject *remove_flow(PyObject *module, PyObject *args) {
    Endpoint local, remote;
    if (!require_active(module_state(module), &provider_engine) ||
        !PyArg_ParseTuple(args, "O&O&", parse_endpoint, &local, parse_endpoint, &remote)) {
        return NULL;
    }
    return PyBool_FromLong(engine_remove_flow(&local, &remote));
}

static PyObject *add_datagram_flow(PyObject *module, PyObject *args) {
    SOCKET app;
    Endpoint app_end;
    unsigned short port;
    unsigned long long id;
    Py_buffer records, context;
    if (!require_active(module_state(module), &provider_engine) ||
        !PyArg_ParseTuple(args, "O&O&HKy*y*", parse_socket, &app, parse_endpoint, &app_end, &port,
                          &id, &records, &context)) {
        return NULL;
    }
    FlowData flow = flow_data(id, &records, &context);
    bool added = engine_add_datagram_flow(app, &app_end, port, &flow);
    PyBuffer_Release(&records);
    PyBuffer_Release(&context);
    return flow_added(added);
}

static PyObject *set_target(PyObject *module, PyObject *args) {
    SOCKET socket;
    Endpoint destination;
    const char *target;
    if (!require_active(module_state(module), &provider_engine) ||
        !PyArg_ParseTuple(args, "O&O&s", parse_socket, &socket, parse_endpoint, &destination,
                          &target)) {
        return NULL;
    }
    return flow_added(engine_set_target(socket, &destination, target, (DWORD)strlen(target)));
}

static PyObject *target_of(PyObject *module, PyObject *args) {
    SOCKET socket;
    Endpoint destination;
    if (!require_active(module_state(module), &provider_engine) ||
        !PyArg_ParseTuple(args, "O&O&", parse_socket, &socket, parse_endpoint, &destination)) {
        return NULL;
    }
    DWORD size;
    bool no_memory;
    char *target = engine_target_of(socket, &destination, &size, &no_memory);
    PyObject *result =
        no_memory ? PyErr_NoMemory() : PyUnicode_FromStringAndSize(target, (Py_ssize_t)size);
    free(target);
    return result;
}

static PyObject *add_listener(PyObject *module, PyObject *args) {
    unsigned short port;
    unsigned long long id;
    Py_buffer records, context;
    if (!require_active(module_state(module), &provider_engine) ||
        !PyArg_ParseTuple(args, "HKy*y*", &port, &id, &records, &context)) {
        return NULL;
    }
    FlowData flow = flow_data(id, &records, &context);
    bool added = engine_add_listener(port, &flow);
    PyBuffer_Release(&records);
    PyBuffer_Release(&context);
    return flow_added(added);
}

static PyObject *remove_listener(PyObject *module, PyObject *args) {
    unsigned short port;
    if (!require_active(module_state(module), &provider_engine) ||
        !PyArg_ParseTuple(args, "H", &port)) {
        return NULL;
    }
    return PyBool_FromLong(engine_remove_listener(port));
}

static PyObject *flow_id(PyObject *module, PyObject *args) {
    SOCKET accepted;
    if (!require_active(module_state(module), &provider_engine) ||
        !PyArg_ParseTuple(args, "O&", parse_socket, &accepted)) {
        return NULL;
    }
    return PyLong_FromUnsignedLongLong(engine_flow_id(accepted));
}

static PyObject *records_of(PyObject *module, PyObject *args) {
    SOCKET socket;
    if (!require_active(module_state(module), &provider_engine) ||
        !PyArg_ParseTuple(args, "O&", parse_socket, &socket)) {
        return NULL;
    }
    DWORD size;
    bool no_memory;
    char *records = engine_records_of(socket, &size, &no_memory);
    PyObject *result =
        no_memory ? PyErr_NoMemory() : PyBytes_FromStringAndSize(records, (Py_ssize_t)size);
    free(records);
    return result;
}

static PyObject *make_records(PyObject *module, PyObject *args) {
    Py_buffer payload;
    if (!require_active(module_state(module), &provider_engine) ||
        !PyArg_ParseTuple(args, "y*", &payload)) {
        return NULL;
    }
    PyObject *records = NULL;
    if (payload.len > MAX_BLOB) {
        PyErr_Format(PyExc_ValueError, "simulated records may hold %d bytes, not %zd", MAX_BLOB,
                     payload.len);
    } else {
        records = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)RECORDS_MARK_SIZE + payload.len);
    }
    if (records != NULL) {
        char *bytes = PyBytes_AsString(records);
        memcpy(bytes + RECORDS_MARK_SIZE, payload.buf, (size_t)payload.len);
        engine_mark(bytes, (DWORD)PyBytes_Size(records));
    }
    PyBuffer_Release(&payload);
    return records;
}

static PyObject *counts(PyObject *module, PyObject *unused) {
    (void)unused;
    if (!require_active(module_state(module), &provider_engine)) {
        return NULL;
    }
    size_t flows, sockets;
    engine_counts(&flows, &sockets);
    return Py_BuildValue("(nn)", (Py_ssize_t)flows, (Py_ssize_t)sockets);
}

int simulator_observe(ModuleState *state, DWORD code, SOCKET socket, DWORD error, DWORD size) {
    if (state->observer == NULL) {
        return 0;
    }
    PyObject *result = PyObject_CallFunction(state->observer, "kKkk", (unsigned long)code,
                                             (unsigned long long)socket, (unsigned long)error,
                                             (unsigned long)size);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

static PyObject *set_observer(PyObject *module, PyObject *observer) {
    ModuleState *state = module_state(module);
    if (state->observer == NULL) { /* once: calls read it without a lock */
        state->observer = Py_NewRef(observer);
    }
    Py_RETURN_NONE;
}

/* ---- the active provider as C functions ------------------------------------------------------ */

static const Provider *active_provider(ModuleState *state) {
    const Provider *provider = atomic_load(&state->provider);
    if (provider == &provider_winsock) {
        PyErr_SetString(PyExc_RuntimeError, "no Engine or Scripted is active");
        return NULL;
    }
    return provider;
}

static PyObject *wsaioctl_address(PyObject *module, PyObject *unused) {
    (void)unused;
    const Provider *provider = active_provider(module_state(module));
    return provider == NULL ? NULL : PyLong_FromVoidPtr((void *)(uintptr_t)provider->ioctl);
}

static PyObject *wsa_get_last_error_address(PyObject *module, PyObject *unused) {
    (void)unused;
    const Provider *provider = active_provider(module_state(module));
    return provider == NULL ? NULL : PyLong_FromVoidPtr((void *)(uintptr_t)provider->last_error);
}

PyMethodDef simulator_methods[] = {
    {"scripted_start", scripted_start, METH_VARARGS, NULL},
    {"scripted_calls", scripted_calls, METH_NOARGS, NULL},
    {"scripted_abort", scripted_abort, METH_VARARGS, NULL},
    {"scripted_stop", scripted_stop, METH_NOARGS, NULL},
    {"engine_start", engine_start, METH_VARARGS, NULL},
    {"engine_stop", engine_stop, METH_NOARGS, NULL},
    {"engine_add_flow", add_flow, METH_VARARGS, NULL},
    {"engine_add_datagram_flow", add_datagram_flow, METH_VARARGS, NULL},
    {"engine_set_target", set_target, METH_VARARGS, NULL},
    {"engine_target_of", target_of, METH_VARARGS, NULL},
    {"engine_remove_flow", remove_flow, METH_VARARGS, NULL},
    {"engine_add_listener", add_listener, METH_VARARGS, NULL},
    {"engine_remove_listener", remove_listener, METH_VARARGS, NULL},
    {"engine_flow_id", flow_id, METH_VARARGS, NULL},
    {"engine_records_of", records_of, METH_VARARGS, NULL},
    {"engine_make_records", make_records, METH_VARARGS, NULL},
    {"engine_counts", counts, METH_NOARGS, NULL},
    {"engine_set_observer", set_observer, METH_O, NULL},
    {"wsaioctl_address", wsaioctl_address, METH_NOARGS, NULL},
    {"wsa_get_last_error_address", wsa_get_last_error_address, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};
