/* One IOCTL against a provider: capacity, growth, outcome.  No Python in it. */
#ifndef WFPIOCTL_IOCTL_H
#define WFPIOCTL_IOCTL_H

#include "provider.h"

#include <stdbool.h>
#include <stdlib.h>

#define IOCTL_USUAL_CAPACITY 4096u  /* bytes; one call suffices in the usual case (W12) */
#define IOCTL_MAX_CAPACITY 1048576u /* bytes; never grow past this (W15) */
#define IOCTL_MAX_TRIES 12 /* 4 KiB to 1 MiB takes 9; a named size that moves, a few more */

typedef struct {
    DWORD error;    /* 0, or the provider's code */
    bool failed;    /* a provider may fail with code 0: never derive one from the other */
    bool too_small; /* growth ended at the cap or out of tries: the code is about the size */
    bool no_memory; /* the heap, not the provider, failed */
    DWORD required; /* bytes that the provider named, or 0 */
} Outcome;

/* Where an answer goes.  `data` starts as the caller's memory; growth moves it to `heap`, or to
   wherever the caller's `grow` puts it (false: no memory). */
typedef struct Answer {
    char *data;
    DWORD capacity;
    DWORD size;
    char *heap;
    int tries; /* that brought no answer */
    bool (*grow)(struct Answer *answer, DWORD capacity);
} Answer;

/* What the provider says to one try. */
typedef struct {
    bool succeeded;
    DWORD error; /* 0, or its code */
    DWORD returned;
} Reply;

/* Does this failure mean that the output buffer was too small (W13, W15)? */
bool ioctl_is_too_small(DWORD error, DWORD returned, DWORD capacity);

/* The capacity to try next, or 0 when growth ends here. */
DWORD ioctl_next_capacity(DWORD capacity, DWORD returned);

/* Is the reply to a QUERY an answer?  Then answer->size is set. */
static inline bool ioctl_accept(Answer *answer, const Reply *reply) {
    if (!reply->succeeded || reply->returned > answer->capacity) {
        return false;
    }
    answer->size = reply->returned;
    return true;
}

/* It is none.  True: the answer has grown, try again.  False: the outcome is final. */
bool ioctl_grow(Answer *answer, const Reply *reply, Outcome *outcome);

/* One try of a QUERY: is there an answer? */
static inline bool ioctl_try(const Provider *provider, SOCKET socket, DWORD code, Answer *answer,
                             Reply *reply) {
    reply->returned = 0;
    reply->succeeded = provider->ioctl(socket, code, NULL, 0, answer->data, answer->capacity,
                                       &reply->returned, NULL, NULL) == 0;
    reply->error = reply->succeeded ? 0 : (DWORD)provider->last_error();
    return ioctl_accept(answer, reply);
}

/* What follows a first try that brought no answer: growth and more tries, or the failure. */
Outcome ioctl_try_again(const Provider *provider, SOCKET socket, DWORD code, Answer *answer,
                        Reply *reply);

/* One try is the usual case, and inline: it is what every connection pays. */
static inline Outcome ioctl_query(const Provider *provider, SOCKET socket, DWORD code,
                                  Answer *answer) {
    Reply reply;
    if (ioctl_try(provider, socket, code, answer, &reply)) {
        return (Outcome){0};
    }
    return ioctl_try_again(provider, socket, code, answer, &reply);
}

static inline Outcome ioctl_set(const Provider *provider, SOCKET socket, const void *records,
                                DWORD size) {
    DWORD returned = 0; /* not the records' size: ignored (W24) */
    /* WSAIoctl takes its input as a plain pointer but only reads it. */
    if (provider->ioctl(socket, SIO_SET_WFP_CONNECTION_REDIRECT_RECORDS, (void *)(uintptr_t)records,
                        size, NULL, 0, &returned, NULL, NULL) == 0) {
        return (Outcome){0};
    }
    return (Outcome){.error = (DWORD)provider->last_error(), .failed = true};
}

/* Give back what growth allocated. */
static inline void answer_free(Answer *answer) {
    if (answer->heap != NULL) {
        free(answer->heap);
        answer->heap = NULL;
    }
}

#endif
