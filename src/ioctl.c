/* The growth rule of W15, around the provider's ioctl. */
#include "ioctl.h"

#include <stdlib.h>

/* The codes that mean "too small" in the wild when no size is named (W13, W15). */
static const DWORD too_small_codes[] = {
    ERROR_INSUFFICIENT_BUFFER, ERROR_MORE_DATA, WSAEFAULT, WSAEMSGSIZE, WSAENOBUFS,
};

bool ioctl_is_too_small(DWORD error, DWORD returned, DWORD capacity) {
    if (returned > capacity) {
        return true;
    }
    for (size_t i = 0; i < sizeof too_small_codes / sizeof too_small_codes[0]; i++) {
        if (error == too_small_codes[i]) {
            return true;
        }
    }
    return false;
}

DWORD ioctl_next_capacity(DWORD capacity, DWORD returned) {
    if (returned > capacity) {
        return returned <= IOCTL_MAX_CAPACITY ? returned : 0;
    }
    if (capacity >= IOCTL_MAX_CAPACITY) {
        return 0;
    }
    return capacity <= IOCTL_MAX_CAPACITY / 2 ? capacity * 2 : IOCTL_MAX_CAPACITY;
}

static bool answer_grow(Answer *answer, DWORD capacity) {
    answer_free(answer); /* the old content is no answer: no realloc */
    answer->heap = malloc(capacity);
    if (answer->heap == NULL) {
        return false;
    }
    answer->data = answer->heap;
    answer->capacity = capacity;
    return true;
}

void answer_free(Answer *answer) {
    free(answer->heap);
    answer->heap = NULL;
}

Outcome ioctl_query(const Provider *provider, SOCKET socket, DWORD code, Answer *answer) {
    Outcome outcome = {0};
    for (int tries = 1;; tries++) {
        DWORD returned = 0;
        int status = provider->ioctl(socket, code, NULL, 0, answer->data, answer->capacity,
                                     &returned, NULL, NULL);
        outcome.error = status == 0 ? 0 : (DWORD)provider->last_error();
        if (status == 0 && returned <= answer->capacity) {
            answer->size = returned;
            return outcome;
        }
        if (status == 0) { /* a success that claims more than fits is a size, not an answer */
            outcome.error = ERROR_INSUFFICIENT_BUFFER;
        }
        if (!ioctl_is_too_small(outcome.error, returned, answer->capacity)) {
            outcome.failed = true;
            outcome.required = 0; /* an earlier try may have been told a size */
            return outcome;
        }
        outcome.required = returned > answer->capacity ? returned : 0;
        DWORD capacity = ioctl_next_capacity(answer->capacity, returned);
        if (capacity == 0 || tries == IOCTL_MAX_TRIES) {
            outcome.failed = outcome.too_small = true;
            return outcome;
        }
        if (!answer_grow(answer, capacity)) {
            outcome.failed = outcome.no_memory = true;
            return outcome;
        }
    }
}

Outcome ioctl_set(const Provider *provider, SOCKET socket, const void *records, DWORD size) {
    Outcome outcome = {0};
    DWORD returned = 0; /* not the records' size: ignored (W24) */
    /* WSAIoctl takes its input as a plain pointer but only reads it. */
    if (provider->ioctl(socket, SIO_SET_WFP_CONNECTION_REDIRECT_RECORDS, (void *)(uintptr_t)records,
                        size, NULL, 0, &returned, NULL, NULL) != 0) {
        outcome.error = (DWORD)provider->last_error();
        outcome.failed = true;
    }
    return outcome;
}
