/* Control buffers: the entries that come with a datagram, in Winsock's layout.  No I/O.

   An entry is a WSACMSGHDR and data, both aligned to sizeof(size_t); WSA_CMSG_NXTHDR and its kin
   trust the lengths in the buffer, so they are not used here. */
#ifndef WFPIOCTL_CONTROL_MESSAGE_H
#define WFPIOCTL_CONTROL_MESSAGE_H

#include "winsock_types.h"

#include <stdbool.h>
#include <stddef.h>

/* What a control buffer says about redirection, as pointers into it; NULL where it says nothing. */
typedef struct {
    const char *records;
    size_t records_size;
    const char *context;
    size_t context_size;
} RedirectData;

/* Find the first records and the first context (W40).  Unknown and empty (W43) entries are skipped.
   `truncated` says that the system cut the buffer short: its last entry then does not count, for
   nothing tells whether it is whole.  False: it was truncated, or a length in it is impossible; the
   entries before that one count. */
bool control_parse(const void *buffer, size_t size, bool truncated, RedirectData *found);

/* The bytes that an entry with this much data takes. */
size_t control_space(size_t data_size);

/* Write an entry at `buffer`, which holds control_space(data_size) bytes; return that number. */
size_t control_write(void *buffer, int level, int type, const void *data, size_t data_size);

/* The level that the control messages of this peer have.  An IPv4 peer of a dual-stack socket has a
   mapped address, but its messages are IPv4's. */
int control_level(const struct sockaddr_storage *peer);

#endif
