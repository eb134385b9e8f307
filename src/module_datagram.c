/* The Python face of datagrams (W40 to W44): what wfpioctl/datagram.py builds on.

   Where a datagram call fails, the system's error is raised as the socket module raises it; only
   the socket options, which are WFP's own, fail with a RedirectError. */
#include "module.h"

#include "message.h"

#include <limits.h>
#include <string.h>

/* ---- arguments ------------------------------------------------------------------------------- */

static bool int_argument(const char *function, const char *argument, PyObject *value, int most,
                         int *result) {
    if (!is_int(value)) {
        PyErr_Format(PyExc_TypeError, "%s(): %s must be an int, not %.100R", function, argument,
                     value);
        return false;
    }
    int overflow;
    long number = PyLong_AsLongAndOverflow(value, &overflow);
    if (overflow != 0 || number < 0 || number > most) {
        PyErr_Format(PyExc_ValueError, "%s(): %s must be from 0 to %d, not %R", function, argument,
                     most, value);
        return false;
    }
    *result = (int)number;
    return true;
}

static bool wrong_address(const char *function, PyObject *address) {
    PyErr_Format(PyExc_TypeError,
                 "%s(): address must be (host, port), (host, port, flowinfo, scope_id) or None,"
                 " not %.200R",
                 function, address);
    return false;
}

static bool wrong_host(const char *function, PyObject *host) {
    PyErr_Format(PyExc_ValueError,
                 "%s(): address must have a numeric host, not %.200R; socket.getaddrinfo()"
                 " resolves names",
                 function, host);
    return false;
}

/* IPv4 or IPv6 by the host's form, as the socket module gives addresses. */
static bool address_argument(const char *function, PyObject *value,
                             struct sockaddr_storage *storage, int *size) {
    Py_ssize_t count = PyTuple_Check(value) ? PyTuple_Size(value) : 0;
    PyObject *host = count >= 2 ? PyTuple_GetItem(value, 0) : NULL;
    if (host == NULL || count > 4 || !PyUnicode_Check(host)) {
        return wrong_address(function, value);
    }
    int port, flowinfo = 0, scope_id = 0;
    if (!int_argument(function, "port", PyTuple_GetItem(value, 1), 0xFFFF, &port) ||
        (count > 2 &&
         !int_argument(function, "flowinfo", PyTuple_GetItem(value, 2), 0xFFFFF, &flowinfo)) ||
        (count > 3 &&
         !int_argument(function, "scope_id", PyTuple_GetItem(value, 3), INT_MAX, &scope_id))) {
        return false;
    }
    Py_ssize_t length;
    const char *text = PyUnicode_AsUTF8AndSize(host, &length);
    if (text == NULL || strlen(text) != (size_t)length) {
        PyErr_Clear();
        return wrong_host(function, host);
    }
    struct sockaddr_in ipv4 = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    if (count == 2 && inet_pton(AF_INET, text, &ipv4.sin_addr) == 1) {
        memcpy(storage, &ipv4, sizeof ipv4);
        *size = sizeof ipv4;
        return true;
    }
    struct sockaddr_in6 ipv6 = {.sin6_family = AF_INET6,
                                .sin6_port = htons((uint16_t)port),
                                .sin6_flowinfo = htonl((uint32_t)flowinfo),
                                .sin6_scope_id = (uint32_t)scope_id};
    if (inet_pton(AF_INET6, text, &ipv6.sin6_addr) != 1) {
        return wrong_host(function, host);
    }
    memcpy(storage, &ipv6, sizeof ipv6);
    *size = sizeof ipv6;
    return true;
}

/* ---- results --------------------------------------------------------------------------------- */

static PyObject *address_result(const struct sockaddr_storage *storage, int size) {
    char text[INET6_ADDRSTRLEN];
    if (size >= (int)sizeof(struct sockaddr_in) && storage->ss_family == AF_INET) {
        struct sockaddr_in ipv4;
        memcpy(&ipv4, storage, sizeof ipv4);
        inet_ntop(AF_INET, &ipv4.sin_addr, text, sizeof text);
        return Py_BuildValue("(si)", text, ntohs(ipv4.sin_port));
    }
    if (size >= (int)sizeof(struct sockaddr_in6) && storage->ss_family == AF_INET6) {
        struct sockaddr_in6 ipv6;
        memcpy(&ipv6, storage, sizeof ipv6);
        inet_ntop(AF_INET6, &ipv6.sin6_addr, text, sizeof text);
        return Py_BuildValue("(sikk)", text, ntohs(ipv6.sin6_port),
                             (unsigned long)ntohl(ipv6.sin6_flowinfo),
                             (unsigned long)ipv6.sin6_scope_id);
    }
    return Py_NewRef(Py_None);
}

/* y# makes None of a NULL. */
static PyObject *message_result(PyObject *data, const Message *message) {
    const RedirectData *redirect = &message->redirect;
    return Py_BuildValue(
        "(NNky#y#)", data, address_result(&message->address, message->address_size),
        (unsigned long)message->flags, redirect->records, (Py_ssize_t)redirect->records_size,
        redirect->context, (Py_ssize_t)redirect->context_size);
}

/* ---- calls ----------------------------------------------------------------------------------- */

/* Receive, again after a signal whose handler did not raise (PEP 475); false with an exception. */
static bool receive(ModuleState *state, SOCKET socket, void *data, DWORD capacity, DWORD flags,
                    Message *message) {
    for (;;) {
        CallCount *count;
        const Provider *provider = calls_enter(state, &count);
        MessageOutcome outcome;
        Py_BEGIN_ALLOW_THREADS
            outcome = message_receive(provider, socket, data, capacity, flags, message);
        Py_END_ALLOW_THREADS
        call_end(count);
        if (!outcome.failed) {
            return true;
        }
        message_free(message);
        if (outcome.no_memory) {
            PyErr_NoMemory();
            return false;
        }
        if (outcome.error != SOCKET_EINTR) {
            set_socket_error((int)outcome.error);
            return false;
        }
        if (PyErr_CheckSignals() < 0) {
            return false;
        }
    }
}

BIG_FRAME PyObject *receive_bytes(ModuleState *state, SOCKET socket, int bufsize, DWORD flags) {
    PyObject *data = PyBytes_FromStringAndSize(NULL, bufsize); /* nobody else has it yet */
    if (data == NULL) {
        return NULL;
    }
    Message message;
    if (!receive(state, socket, PyBytes_AsString(data), (DWORD)bufsize, flags, &message)) {
        Py_DECREF(data);
        return NULL;
    }
    if (message.size < (DWORD)bufsize) {
        PyObject *whole = data;
        data = PyBytes_FromStringAndSize(PyBytes_AsString(whole), (Py_ssize_t)message.size);
        Py_DECREF(whole);
    }
    PyObject *result = data == NULL ? NULL : message_result(data, &message);
    message_free(&message);
    return result;
}

BIG_FRAME PyObject *receive_into(ModuleState *state, SOCKET socket, char *memory, DWORD capacity,
                                 DWORD flags) {
    Message message;
    if (!receive(state, socket, memory, capacity, flags, &message)) {
        return NULL;
    }
    PyObject *size = PyLong_FromUnsignedLong(message.size);
    PyObject *result = size == NULL ? NULL : message_result(size, &message);
    message_free(&message);
    return result;
}

PyDoc_STRVAR(recvmsg_doc, "recvmsg($module, sock, bufsize, flags=0, /)\n--\n\n"
                          "Receive one datagram: (data, address, flags, records, context).\n\n"
                          "The core of wfpioctl.datagram.recvmsg(), without the waiting.");

static PyObject *py_recvmsg(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    static const char function[] = "recvmsg";
    ModuleState *state = module_state(module);
    SOCKET socket;
    int bufsize, flags = 0;
    if (wrong_count(function, nargs, 2, 3) ||
        !handle_argument(state, function, "sock", args[0], &socket) ||
        !int_argument(function, "bufsize", args[1], INT_MAX, &bufsize) ||
        (nargs > 2 && !int_argument(function, "flags", args[2], INT_MAX, &flags))) {
        return NULL;
    }
    return receive_bytes(state, socket, bufsize, (DWORD)flags);
}

PyDoc_STRVAR(recvmsg_into_doc,
             "recvmsg_into($module, sock, buffer, nbytes=0, flags=0, /)\n--\n\n"
             "Receive one datagram into a buffer: (size, address, flags, records, context).\n\n"
             "The core of wfpioctl.datagram.recvmsg_into(), without the waiting.");

static PyObject *py_recvmsg_into(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    static const char function[] = "recvmsg_into";
    ModuleState *state = module_state(module);
    SOCKET socket;
    Py_buffer view;
    int flags = 0;
    if (wrong_count(function, nargs, 2, 4) ||
        !handle_argument(state, function, "sock", args[0], &socket) ||
        (nargs > 3 && !int_argument(function, "flags", args[3], INT_MAX, &flags)) ||
        !buffer_argument(function, "buffer", "writable contiguous bytes-like", args[1],
                         PyBUF_WRITABLE, &view)) {
        return NULL;
    }
    PyObject *result = NULL;
    Py_ssize_t nbytes = 0;
    if (nargs < 3 || nbytes_argument(function, args[2], view.len, &nbytes)) {
        Py_ssize_t room = nbytes != 0 ? nbytes : view.len;
        DWORD capacity = room < INT_MAX ? (DWORD)room : INT_MAX;
        result = receive_into(state, socket, view.buf, capacity, (DWORD)flags);
    }
    PyBuffer_Release(&view);
    return result;
}

/* One datagram whose arguments are converted; NULL buffers and addresses are absent. */
typedef struct {
    SOCKET socket;
    Py_buffer data, records;
    struct sockaddr_storage address;
    int address_size; /* 0: none */
} Sending;

static PyObject *send_datagram(ModuleState *state, const Sending *sending) {
    for (;;) {
        CallCount *count;
        const Provider *provider = calls_enter(state, &count);
        MessageOutcome outcome;
        DWORD sent;
        Py_BEGIN_ALLOW_THREADS
            outcome = message_send(
                provider, sending->socket, sending->data.buf, (DWORD)sending->data.len,
                sending->address_size != 0 ? &sending->address : NULL, sending->address_size,
                sending->records.buf, (DWORD)sending->records.len, &sent);
        Py_END_ALLOW_THREADS
        call_end(count);
        if (!outcome.failed) {
            return PyLong_FromUnsignedLong(sent);
        }
        if (outcome.no_memory) {
            return PyErr_NoMemory();
        }
        if (outcome.error != SOCKET_EINTR) {
            return set_socket_error((int)outcome.error);
        }
        if (PyErr_CheckSignals() < 0) {
            return NULL;
        }
    }
}

PyDoc_STRVAR(sendmsg_doc, "sendmsg($module, sock, data, address, records=None, /)\n--\n\n"
                          "Send one datagram; return the number of bytes sent.\n\n"
                          "The core of wfpioctl.datagram.sendmsg(), without the waiting.");

static PyObject *py_sendmsg(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    static const char function[] = "sendmsg";
    ModuleState *state = module_state(module);
    Sending sending = {0};
    bool has_records = nargs > 3 && !Py_IsNone(args[3]);
    if (wrong_count(function, nargs, 3, 4) ||
        !handle_argument(state, function, "sock", args[0], &sending.socket) ||
        (!Py_IsNone(args[2]) &&
         !address_argument(function, args[2], &sending.address, &sending.address_size)) ||
        !buffer_argument(function, "data", "contiguous bytes-like", args[1], PyBUF_SIMPLE,
                         &sending.data)) {
        return NULL;
    }
    if (has_records && !records_argument(function, args[3], &sending.records)) {
        PyBuffer_Release(&sending.data);
        return NULL;
    }
    /* The system's word for too long a datagram also serves for one that its API cannot name. */
    PyObject *result = sending.data.len > INT_MAX ? set_socket_error(SOCKET_EMSGSIZE)
                                                  : send_datagram(state, &sending);
    if (has_records) {
        PyBuffer_Release(&sending.records);
    }
    PyBuffer_Release(&sending.data);
    return result;
}

/* W41 */
static const struct {
    int level, option;
    const char *name;
} metadata_options[] = {
    {IPPROTO_IP, IP_WFP_REDIRECT_RECORDS, "IP_WFP_REDIRECT_RECORDS"},
    {IPPROTO_IP, IP_WFP_REDIRECT_CONTEXT, "IP_WFP_REDIRECT_CONTEXT"},
    {IPPROTO_IPV6, IP_WFP_REDIRECT_RECORDS, "IPV6_WFP_REDIRECT_RECORDS"},
    {IPPROTO_IPV6, IP_WFP_REDIRECT_CONTEXT, "IPV6_WFP_REDIRECT_CONTEXT"},
};

/* 0, or a Winsock code and the option that it is about. */
static DWORD enable_metadata(const Provider *provider, SOCKET socket, const char **name) {
    bool ipv4, ipv6;
    *name = metadata_options[0].name;
    DWORD error = winsock_families(socket, &ipv4, &ipv6);
    for (size_t i = 0; error == 0 && i < sizeof metadata_options / sizeof *metadata_options; i++) {
        const DWORD on = TRUE;
        if (!(metadata_options[i].level == IPPROTO_IP ? ipv4 : ipv6)) {
            continue;
        }
        *name = metadata_options[i].name;
        if (provider->setsockopt(socket, metadata_options[i].level, metadata_options[i].option,
                                 (const char *)&on, sizeof on) != 0) {
            error = (DWORD)provider->last_error();
        }
    }
    return error;
}

PyDoc_STRVAR(enable_redirect_metadata_doc,
             "enable_redirect_metadata($module, sock, /)\n--\n\n"
             "Let the system deliver redirect records and contexts with a socket's datagrams.\n\n"
             "sock is a UDP socket: an int handle or an object with fileno().  A dual-stack\n"
             "socket is enabled for both families.  Raises RedirectErrors whose operation is the\n"
             "option's name, such as 'IP_WFP_REDIRECT_RECORDS'; ProtocolOptionError where the\n"
             "system knows no such option.  (IP_WFP_REDIRECT_RECORDS, IP_WFP_REDIRECT_CONTEXT)");

static PyObject *py_enable_redirect_metadata(PyObject *module, PyObject *sock) {
    ModuleState *state = module_state(module);
    SOCKET socket;
    if (!handle_argument(state, "enable_redirect_metadata", "sock", sock, &socket)) {
        return NULL;
    }
    CallCount *count;
    const Provider *provider = calls_enter(state, &count);
    const char *name;
    DWORD error;
    Py_BEGIN_ALLOW_THREADS
        error = enable_metadata(provider, socket, &name);
    Py_END_ALLOW_THREADS
    call_end(count);
    return error == 0 ? Py_NewRef(Py_None) : raise_error(state, name, error);
}

PyDoc_STRVAR(parse_control_doc,
             "parse_control($module, control, flags=0, /)\n--\n\n"
             "Return (flags, records, context) as recvmsg() would for this control buffer.\n\n"
             "For tests: the parser alone, on any bytes.");

static PyObject *parse_control(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    static const char function[] = "parse_control";
    (void)module;
    Py_buffer view;
    int flags = 0;
    if (wrong_count(function, nargs, 1, 2) ||
        (nargs > 1 && !int_argument(function, "flags", args[1], INT_MAX, &flags)) ||
        !buffer_argument(function, "control", "contiguous bytes-like", args[0], PyBUF_SIMPLE,
                         &view)) {
        return NULL;
    }
    RedirectData found;
    if (!control_parse(view.buf, (size_t)view.len, (flags & MSG_CTRUNC) != 0, &found)) {
        flags |= MSG_CTRUNC;
    }
    PyObject *result =
        Py_BuildValue("(iy#y#)", flags, found.records, (Py_ssize_t)found.records_size,
                      found.context, (Py_ssize_t)found.context_size);
    PyBuffer_Release(&view);
    return result;
}

PyMethodDef datagram_methods[] = {
    {"recvmsg", (PyCFunction)(void (*)(void))py_recvmsg, METH_FASTCALL, recvmsg_doc},
    {"recvmsg_into", (PyCFunction)(void (*)(void))py_recvmsg_into, METH_FASTCALL, recvmsg_into_doc},
    {"sendmsg", (PyCFunction)(void (*)(void))py_sendmsg, METH_FASTCALL, sendmsg_doc},
    {"enable_redirect_metadata", py_enable_redirect_metadata, METH_O, enable_redirect_metadata_doc},
    {"parse_control", (PyCFunction)(void (*)(void))parse_control, METH_FASTCALL, parse_control_doc},
    {NULL, NULL, 0, NULL},
};
