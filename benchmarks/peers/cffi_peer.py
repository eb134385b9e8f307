"""The query by cffi in API mode: the C wrapper is compiled, the buffers are not cleared."""

from collections.abc import Callable
from typing import Any

from wfpioctl.constants import SIO_QUERY_WFP_CONNECTION_REDIRECT_RECORDS
from wfpioctl.errors import error_from_code

CAPACITY = 4096

DECLARATIONS = """
int WSAIoctl(uintptr_t socket, uint32_t code, void *input, uint32_t input_size, void *output,
             uint32_t output_size, uint32_t *returned, void *overlapped, void *completion);
int WSAGetLastError(void);
void use_provider(uintptr_t ioctl, uintptr_t last_error);
"""

# In place of Winsock's own functions, those of the provider that is measured.
SOURCE = """
#include <stdint.h>
#ifdef _WIN32
#define WSAAPI __stdcall
#else
#define WSAAPI
#endif
typedef int(WSAAPI *Ioctl)(uintptr_t, uint32_t, void *, uint32_t, void *, uint32_t, uint32_t *,
                           void *, void *);
typedef int(WSAAPI *LastError)(void);
static Ioctl ioctl_of_provider;
static LastError last_error_of_provider;
#define WSAIoctl ioctl_of_provider
#define WSAGetLastError last_error_of_provider
static void use_provider(uintptr_t ioctl, uintptr_t last_error) {
    ioctl_of_provider = (Ioctl)ioctl;
    last_error_of_provider = (LastError)last_error;
}
"""


def make_query(module: Any, ioctl_address: int, last_error_address: int) -> Callable[[int], bytes]:
    """Return query(handle) on one provider."""
    ffi = module.ffi
    null = ffi.NULL
    unpack = ffi.buffer
    allocate = ffi.new_allocator(should_clear_after_alloc=False)
    characters = ffi.typeof("char[]")
    number = ffi.typeof("uint32_t *")
    ioctl, last_error = module.lib.WSAIoctl, module.lib.WSAGetLastError
    module.lib.use_provider(ioctl_address, last_error_address)

    def query(handle: int) -> bytes:
        buffer = allocate(characters, CAPACITY)
        returned = allocate(number)
        if ioctl(
            handle, SIO_QUERY_WFP_CONNECTION_REDIRECT_RECORDS, null, 0,
            buffer, CAPACITY, returned, null, null,
        ):  # fmt: skip
            raise error_from_code("SIO_QUERY_WFP_CONNECTION_REDIRECT_RECORDS", last_error())
        result: bytes = unpack(buffer, returned[0])[:]
        return result

    return query
