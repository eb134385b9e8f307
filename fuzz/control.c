/* The parser of control buffers (src/control_message.c), on any bytes, and on what its own builder
   wrote around them. */
#include "control_message.h"

#include <stdlib.h>
#include <string.h>

static void require(bool condition) {
    if (!condition) {
        abort();
    }
}

/* What was found lies in the buffer; all of it is read, so that the sanitizer sees it. */
static void check(const char *buffer, size_t size, const char *data, size_t data_size) {
    static volatile size_t sum;
    if (data == NULL) {
        require(data_size == 0);
        return;
    }
    require(data_size > 0 && data >= buffer && data + data_size <= buffer + size);
    for (size_t i = 0; i < data_size; i++) {
        sum = sum + (unsigned char)data[i];
    }
}

static void parse(const char *buffer, size_t size, bool truncated, RedirectData *found) {
    bool whole = control_parse(buffer, size, truncated, found);
    require(!(whole && truncated));
    check(buffer, size, found->records, found->records_size);
    check(buffer, size, found->context, found->context_size);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    RedirectData found, again;
    char *buffer = malloc(size ? size : 1); /* its own: one byte too far is seen */
    memcpy(buffer, data, size);
    parse(buffer, size, false, &found);
    parse(buffer, size, true, &again); /* never more than without the cut */
    require(again.records == NULL || again.records == found.records);
    require(again.context == NULL || again.context == found.context);
    free(buffer);
    if (size < 3) {
        return 0;
    }

    /* Two entries of the builder's, then the input: the parser finds the entries whatever follows.
     */
    size_t records = 1 + data[0], context = 1 + data[1];
    char *filled = calloc(1, records > context ? records : context);
    size_t space = control_space(records) + control_space(context);
    buffer = malloc(space + size);
    memset(filled, 'r', records);
    char *end = buffer + control_write(buffer, data[2] & 1 ? IPPROTO_IP : IPPROTO_IPV6,
                                       IP_WFP_REDIRECT_RECORDS, filled, records);
    memset(filled, 'c', context);
    end += control_write(end, IPPROTO_IP, IP_WFP_REDIRECT_CONTEXT, filled, context);
    require(end == buffer + space);
    memcpy(end, data, size);
    parse(buffer, space + size, false, &found);
    require(found.records_size == records && found.records[records - 1] == 'r');
    require(found.context_size == context && found.context[context - 1] == 'c');
    free(buffer);
    free(filled);
    return 0;
}
