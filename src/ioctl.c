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

Outcome ioctl_grow(const Provider *provider, SOCKET socket, DWORD code, Answer *answer, DWORD error,
                   DWORD returned) {
    for (int tries = 1;; tries++) {
        Outcome outcome = {.error = error, .failed = true};
        if (!ioctl_is_too_small(error, returned, answer->capacity)) {
            return outcome;
        }
        outcome.required = returned > answer->capacity ? returned : 0;
        DWORD capacity = ioctl_next_capacity(answer->capacity, returned);
        if (capacity == 0 || tries == IOCTL_MAX_TRIES) {
            outcome.too_small = true;
            return outcome;
        }
        if (!answer_grow(answer, capacity)) {
            outcome.no_memory = true;
            return outcome;
        }
        if (ioctl_try(provider, socket, code, answer, &error, &returned)) {
            return (Outcome){0};
        }
    }
}
