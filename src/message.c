/* Receiving and sending one datagram: the control buffer's size, and what truncation means. */
#include "message.h"

#include <stdlib.h>
#include <string.h>

/* WSARecvMsg fails with WSAEMSGSIZE where recvmsg(2) succeeds: the flags tell the same. */
static bool is_only_truncated(DWORD error, DWORD flags) {
    return error == SOCKET_EMSGSIZE && (flags & (MSG_TRUNC | MSG_CTRUNC)) != 0;
}

static bool receive_once(const Provider *provider, SOCKET socket, WSABUF *data, DWORD flags,
                         WSABUF *control, Message *message, DWORD *error) {
    WSAMSG header = {.name = (struct sockaddr *)&message->address,
                     .namelen = sizeof message->address,
                     .lpBuffers = data,
                     .dwBufferCount = 1,
                     .Control = *control,
                     .dwFlags = flags};
    DWORD received = 0;
    int status = provider->recvmsg(socket, &header, &received, NULL, NULL);
    *error = status == 0 ? 0 : (DWORD)provider->last_error();
    if (status != 0 && !is_only_truncated(*error, header.dwFlags)) {
        return false;
    }
    /* A provider's numbers are checked against what it was given before they are used. */
    if ((header.dwFlags & MSG_TRUNC) != 0 || received > data->len) {
        received = data->len;
    }
    if (header.Control.len < control->len) {
        control->len = header.Control.len;
    }
    message->size = received;
    message->flags = header.dwFlags;
    message->address_size = header.namelen;
    return true;
}

MessageOutcome message_receive(const Provider *provider, SOCKET socket, void *data, DWORD capacity,
                               DWORD flags, Message *message) {
    MessageOutcome outcome = {0};
    WSABUF buffer = {.buf = data, .len = capacity};
    WSABUF control = {.buf = (char *)message->usual, .len = sizeof message->usual};
    DWORD control_capacity = control.len;
    message->heap = NULL;
    for (;;) {
        outcome.failed =
            !receive_once(provider, socket, &buffer, flags, &control, message, &outcome.error);
        if (outcome.failed) {
            return outcome;
        }
        if ((message->flags & MSG_CTRUNC) == 0 || (flags & MSG_PEEK) == 0 ||
            control_capacity >= MESSAGE_MAX_CONTROL) {
            break;
        }
        message_free(message);
        control_capacity *= 2;
        message->heap = malloc(control_capacity);
        if (message->heap == NULL) {
            outcome.failed = outcome.no_memory = true;
            return outcome;
        }
        control = (WSABUF){.buf = message->heap, .len = control_capacity};
    }
    bool truncated = (message->flags & MSG_CTRUNC) != 0;
    if (!control_parse(control.buf, control.len, truncated, &message->redirect)) {
        message->flags |= MSG_CTRUNC;
    }
    return outcome;
}

void message_free(Message *message) {
    free(message->heap);
    message->heap = NULL;
}

MessageOutcome message_send(const Provider *provider, SOCKET socket, const void *data, DWORD size,
                            const struct sockaddr_storage *address, int address_size,
                            const void *records, DWORD records_size, DWORD *sent) {
    MessageOutcome outcome = {0};
    /* WSASendMsg takes what it sends as plain pointers but only reads it. */
    WSABUF buffer = {.buf = (char *)(uintptr_t)data, .len = size};
    WSAMSG header = {.name = (struct sockaddr *)(uintptr_t)address,
                     .namelen = address_size,
                     .lpBuffers = &buffer,
                     .dwBufferCount = 1};
    char *control = NULL;
    if (records != NULL) {
        struct sockaddr_storage peer = {0};
        if (address != NULL) {
            peer = *address;
        } else {
            winsock_peer(socket, &peer); /* where there is none, sending says so */
        }
        control = malloc(control_space(records_size));
        if (control == NULL) {
            outcome.failed = outcome.no_memory = true;
            return outcome;
        }
        header.Control.buf = control;
        header.Control.len = (DWORD)control_write(control, control_level(&peer),
                                                  IP_WFP_REDIRECT_RECORDS, records, records_size);
    }
    *sent = 0;
    if (provider->sendmsg(socket, &header, 0, sent, NULL, NULL) != 0) {
        outcome.error = (DWORD)provider->last_error();
        outcome.failed = true;
    }
    free(control);
    return outcome;
}
