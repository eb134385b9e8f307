/* One datagram with its control data, against a provider.  No Python in it. */
#ifndef WFPIOCTL_MESSAGE_H
#define WFPIOCTL_MESSAGE_H

#include "control_message.h"
#include "provider.h"

#include <stdbool.h>

#define MESSAGE_USUAL_CONTROL 16384u /* bytes; the most that public programs give (W12) */
#define MESSAGE_MAX_CONTROL 1048576u /* bytes; never grow past this */

typedef struct {
    DWORD error; /* a code as WSARecvMsg's on Windows, elsewhere an errno */
    bool failed;
    bool no_memory; /* the heap, not the provider, failed */
} MessageOutcome;

typedef struct {
    struct sockaddr_storage address;
    int address_size; /* 0: nobody named */
    DWORD size;       /* bytes of data, never more than there was room for */
    DWORD flags;      /* MSG_TRUNC, MSG_CTRUNC and what else the system sets */
    RedirectData redirect;
    char *heap; /* control data that outgrew `usual` */
    size_t usual[MESSAGE_USUAL_CONTROL / sizeof(size_t)];
} Message;

/* Receive one datagram into `data`.  A datagram or control data that was cut short is no failure:
   the flags say so.  The control buffer grows only for MSG_PEEK, for without it the datagram, and
   with it the control data, is gone once it was received.  Give a received message back with
   message_free(). */
MessageOutcome message_receive(const Provider *provider, SOCKET socket, void *data, DWORD capacity,
                               DWORD flags, Message *message);

void message_free(Message *message);

/* Send one datagram, to `address` or (NULL) to the socket's peer, with records or (NULL) without.
 */
MessageOutcome message_send(const Provider *provider, SOCKET socket, const void *data, DWORD size,
                            const struct sockaddr_storage *address, int address_size,
                            const void *records, DWORD records_size, DWORD *sent);

#endif
