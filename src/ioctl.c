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
    if (answer->grow != NULL) {
        return answer->grow(answer, capacity);
    }
    answer_free(answer); /* the old content is no answer: no realloc */
    answer->heap = malloc(capacity);
    if (answer->heap == NULL) {
        return false;
    }
    answer->data = answer->heap;
    answer->capacity = capacity;
    return true;
}

bool ioctl_grow(Answer *answer, const Reply *reply, Outcome *outcome) {
    /* A success that claims more than fits is a size, not an answer. */
    const DWORD error = reply->succeeded ? ERROR_INSUFFICIENT_BUFFER : reply->error;
    *outcome = (Outcome){.error = error, .failed = true};
    if (!ioctl_is_too_small(error, reply->returned, answer->capacity)) {
        return false;
    }
    outcome->required = reply->returned > answer->capacity ? reply->returned : 0;
    DWORD capacity = ioctl_next_capacity(answer->capacity, reply->returned);
    if (capacity == 0 || ++answer->tries == IOCTL_MAX_TRIES) {
        outcome->too_small = true;
        return false;
    }
    outcome->no_memory = !answer_grow(answer, capacity);
    return !outcome->no_memory;
}

Outcome ioctl_try_again(const Provider *provider, SOCKET socket, DWORD code, Answer *answer,
                        Reply *reply) {
    Outcome outcome;
    while (ioctl_grow(answer, reply, &outcome)) {
        if (ioctl_try(provider, socket, code, answer, reply)) {
            return (Outcome){0};
        }
    }
    return outcome;
}
