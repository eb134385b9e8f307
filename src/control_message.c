/* The parser and the builder of control buffers. */
#include "control_message.h"

#include <string.h>

#define ALIGNED(size) (((size) + sizeof(size_t) - 1) & ~(sizeof(size_t) - 1))
#define DATA_OFFSET ALIGNED(sizeof(WSACMSGHDR))

/* Take an entry if it is records or a context, and the first such. */
static void take(const WSACMSGHDR *header, const char *data, size_t size, RedirectData *found) {
    if ((header->cmsg_level != IPPROTO_IP && header->cmsg_level != IPPROTO_IPV6) || size == 0) {
        return;
    }
    if (header->cmsg_type == IP_WFP_REDIRECT_RECORDS && found->records == NULL) {
        found->records = data;
        found->records_size = size;
    } else if (header->cmsg_type == IP_WFP_REDIRECT_CONTEXT && found->context == NULL) {
        found->context = data;
        found->context_size = size;
    }
}

bool control_parse(const void *buffer, size_t size, bool truncated, RedirectData *found) {
    *found = (RedirectData){0};
    const char *entry = buffer;
    size_t left = size;
    while (left >= sizeof(WSACMSGHDR)) {
        WSACMSGHDR header;
        memcpy(&header, entry, sizeof header); /* the buffer need not be aligned */
        if (header.cmsg_len == 0) {
            header.cmsg_len = DATA_OFFSET; /* a header and nothing else (W43) */
        }
        if (header.cmsg_len < DATA_OFFSET || header.cmsg_len > left) {
            return false;
        }
        size_t next = ALIGNED(header.cmsg_len); /* cannot wrap: `left` is a size in memory */
        bool is_last = next >= left || left - next < sizeof(WSACMSGHDR);
        if (!(is_last && truncated)) {
            take(&header, entry + DATA_OFFSET, header.cmsg_len - DATA_OFFSET, found);
        }
        if (is_last) {
            break;
        }
        entry += next;
        left -= next;
    }
    return !truncated;
}

size_t control_space(size_t data_size) { return DATA_OFFSET + ALIGNED(data_size); }

size_t control_write(void *buffer, int level, int type, const void *data, size_t data_size) {
    const WSACMSGHDR header = {
        .cmsg_len = DATA_OFFSET + data_size, .cmsg_level = level, .cmsg_type = type};
    size_t space = control_space(data_size);
    memset(buffer, 0, space); /* no byte of padding is left over from anything else */
    memcpy(buffer, &header, sizeof header);
    memcpy((char *)buffer + DATA_OFFSET, data, data_size);
    return space;
}

int control_level(const struct sockaddr_storage *peer) {
    if (peer->ss_family != AF_INET6) {
        return IPPROTO_IP;
    }
    struct sockaddr_in6 ipv6;
    memcpy(&ipv6, peer, sizeof ipv6);
    return IN6_IS_ADDR_V4MAPPED(&ipv6.sin6_addr) ? IPPROTO_IP : IPPROTO_IPV6;
}
