/* The growth rule of src/ioctl.c against a provider whose every answer is the fuzzer's. */
#include "ioctl.h"

#include <stdlib.h>
#include <string.h>

static const uint8_t *input;
static size_t left;
static int calls;
static DWORD first_capacity, last_error;

static void require(bool condition) {
    if (!condition) {
        abort();
    }
}

static DWORD next_word(void) {
    DWORD word = 0;
    size_t size = left < sizeof word ? left : sizeof word;
    if (size != 0) {
        memcpy(&word, input, size);
    }
    input += size;
    left -= size;
    return word;
}

/* A status, a code, and what it says that it returned; it fills what it may, and no more. */
static int liar_ioctl(SOCKET socket, DWORD code, void *in, DWORD in_size, void *out, DWORD capacity,
                      DWORD *returned, WSAOVERLAPPED *overlapped,
                      LPWSAOVERLAPPED_COMPLETION_ROUTINE completion) {
    (void)socket, (void)code, (void)overlapped, (void)completion;
    require(in == NULL && in_size == 0 && *returned == 0);
    require(capacity >= first_capacity && capacity <= IOCTL_MAX_CAPACITY);
    memset(out, ++calls, capacity);
    DWORD kind = next_word();
    static const DWORD sizes[] = {0, 1, 4095, 4096, 4097, 1048575, 1048576, 1048577, 0xFFFFFFFF};
    *returned = kind & 1 ? sizes[next_word() % (sizeof sizes / sizeof *sizes)] : next_word();
    if (kind & 2) {
        *returned = capacity + (next_word() & 3) - 1;
    }
    static const DWORD codes[] = {0, 122, 234, 10014, 10040, 10055, 10022, 997, 10004};
    last_error = kind & 4 ? codes[next_word() % (sizeof codes / sizeof *codes)] : next_word();
    return kind & 8 ? 0 : SOCKET_ERROR;
}

static int liar_last_error(void) { return (int)last_error; }

static const Provider liar = {.ioctl = liar_ioctl, .last_error = liar_last_error};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    input = data;
    left = size;
    calls = 0;
    first_capacity = 1 + next_word() % (next_word() & 1 ? 64 : 8192);
    char *memory = malloc(first_capacity);
    Answer answer = {.data = memory, .capacity = first_capacity};
    Outcome outcome = ioctl_query(&liar, 5, SIO_QUERY_WFP_CONNECTION_REDIRECT_RECORDS, &answer);
    require(calls >= 1 && calls <= IOCTL_MAX_TRIES);
    require(!outcome.no_memory && !(outcome.too_small && !outcome.failed));
    if (!outcome.failed) {
        require(answer.size <= answer.capacity);
        for (DWORD i = 0; i < answer.size; i++) { /* the last call's bytes, all of them readable */
            require((uint8_t)answer.data[i] == (uint8_t)calls);
        }
    } else {
        require(outcome.required == 0 || outcome.required > first_capacity);
        require(!outcome.too_small ||
                ioctl_is_too_small(outcome.error, outcome.required, answer.capacity));
    }
    require(answer.heap == NULL || answer.data == answer.heap);
    answer_free(&answer);
    free(memory);
    return 0;
}
