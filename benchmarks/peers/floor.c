/* The least that a C extension can do for one call, and the call itself in a loop.

   query() is what one would write for this one IOCTL: no other codes, no growth rule, no errors
   with a meaning, no state.  What it costs is the floor for any binding.  It is built twice:
   against the full API of the running version, and against the limited API, which wfpioctl keeps
   to. */
#define PY_SSIZE_T_CLEAN
#include "winsock_types.h"

#include <Python.h>

#define CAPACITY 4096

typedef int(WSAAPI *Ioctl)(SOCKET, DWORD, void *, DWORD, void *, DWORD, DWORD *, WSAOVERLAPPED *,
                           LPWSAOVERLAPPED_COMPLETION_ROUTINE);

static Ioctl provider_ioctl;
static PyObject *fileno_name;

#ifdef Py_LIMITED_API
#define CALL_FILENO(sock) PyObject_CallMethodObjArgs(sock, fileno_name, NULL)
#else
#define CALL_FILENO(sock) PyObject_CallMethodNoArgs(sock, fileno_name)
#endif

static int query_records(SOCKET socket, char *buffer, DWORD capacity, DWORD *returned) {
    return provider_ioctl(socket, SIO_QUERY_WFP_CONNECTION_REDIRECT_RECORDS, NULL, 0, buffer,
                          capacity, returned, NULL, NULL);
}

/* More than the stack buffer holds: straight into a bytes object of the size that was named. */
static PyObject *query_large(SOCKET socket, DWORD size) {
    PyObject *result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    if (result == NULL) {
        return NULL;
    }
    char *buffer = PyBytes_AsString(result);
    DWORD returned = 0;
    int status;
    Py_BEGIN_ALLOW_THREADS
        status = query_records(socket, buffer, size, &returned);
    Py_END_ALLOW_THREADS
    if (status != 0 || returned != size) {
        Py_DECREF(result);
        PyErr_SetString(PyExc_OSError, "WSAIoctl failed");
        return NULL;
    }
    return result;
}

static int to_handle(PyObject *sock, SOCKET *socket) {
    PyObject *number = PyLong_CheckExact(sock) ? Py_NewRef(sock) : CALL_FILENO(sock);
    if (number == NULL) {
        return -1;
    }
    *socket = (SOCKET)PyLong_AsLongLong(number);
    Py_DECREF(number);
    return *socket == INVALID_SOCKET && PyErr_Occurred() ? -1 : 0;
}

static PyObject *query(PyObject *module, PyObject *sock) {
    (void)module;
    SOCKET socket;
    if (to_handle(sock, &socket) < 0) {
        return NULL;
    }
    char buffer[CAPACITY];
    DWORD returned = 0;
    int status;
    Py_BEGIN_ALLOW_THREADS
        status = query_records(socket, buffer, sizeof buffer, &returned);
    Py_END_ALLOW_THREADS
    if (status == 0) {
        return PyBytes_FromStringAndSize(buffer, (Py_ssize_t)returned);
    }
    if (returned > sizeof buffer) {
        return query_large(socket, returned);
    }
    PyErr_SetString(PyExc_OSError, "WSAIoctl failed");
    return NULL;
}

static int set_records(SOCKET socket, char *records, DWORD size) {
    DWORD returned = 0;
    return provider_ioctl(socket, SIO_SET_WFP_CONNECTION_REDIRECT_RECORDS, records, size, NULL, 0,
                          &returned, NULL, NULL);
}

static PyObject *set(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    SOCKET socket;
    char *records;
    Py_ssize_t size;
    if (nargs != 2 || to_handle(args[0], &socket) < 0 ||
        PyBytes_AsStringAndSize(args[1], &records, &size) < 0) {
        return NULL;
    }
    int status;
    Py_BEGIN_ALLOW_THREADS
        status = set_records(socket, records, (DWORD)size);
    Py_END_ALLOW_THREADS
    if (status != 0) {
        PyErr_SetString(PyExc_OSError, "WSAIoctl failed");
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *transfer(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    SOCKET accepted, outbound;
    if (nargs != 2 || to_handle(args[0], &accepted) < 0 || to_handle(args[1], &outbound) < 0) {
        return NULL;
    }
    char buffer[CAPACITY];
    DWORD returned = 0;
    int status;
    Py_BEGIN_ALLOW_THREADS
        status = query_records(accepted, buffer, sizeof buffer, &returned);
        if (status == 0) {
            status = set_records(outbound, buffer, returned);
        }
    Py_END_ALLOW_THREADS
    if (status != 0) {
        PyErr_SetString(PyExc_OSError, "WSAIoctl failed");
        return NULL;
    }
    return PyLong_FromUnsignedLong(returned);
}

/* call_often(socket, count): the call alone, as a C program makes it. */
static PyObject *call_often(PyObject *module, PyObject *args) {
    (void)module;
    Py_ssize_t socket, count;
    if (!PyArg_ParseTuple(args, "nn", &socket, &count)) {
        return NULL;
    }
    char buffer[CAPACITY];
    DWORD returned = 0;
    for (Py_ssize_t i = 0; i < count; i++) {
        if (query_records((SOCKET)socket, buffer, sizeof buffer, &returned) != 0) {
            PyErr_SetString(PyExc_OSError, "WSAIoctl failed");
            return NULL;
        }
    }
    Py_RETURN_NONE;
}

static PyObject *use_provider(PyObject *module, PyObject *address) {
    (void)module;
    void *pointer = PyLong_AsVoidPtr(address);
    if (pointer == NULL && PyErr_Occurred()) {
        return NULL;
    }
    provider_ioctl = (Ioctl)(uintptr_t)pointer;
    Py_RETURN_NONE;
}

/* Where callgrind, told to dump before this function, ends one measurement and begins the next. */
#ifdef _MSC_VER
__declspec(noinline)
#else
__attribute__((noinline))
#endif
    PyObject *benchmark_mark(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"query", query, METH_O, NULL},
    {"set", (PyCFunction)(void (*)(void))set, METH_FASTCALL, NULL},
    {"transfer", (PyCFunction)(void (*)(void))transfer, METH_FASTCALL, NULL},
    {"call_often", call_often, METH_VARARGS, NULL},
    {"use_provider", use_provider, METH_O, NULL},
    {"mark", benchmark_mark, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static int floor_exec(PyObject *module) {
    (void)module;
    fileno_name = PyUnicode_InternFromString("fileno");
    return fileno_name == NULL ? -1 : 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, (void *)(uintptr_t)floor_exec},
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "floor_peer",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit_floor_peer(void) { return PyModuleDef_Init(&module_def); }
