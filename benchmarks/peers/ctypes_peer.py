"""The calls by ctypes: with buffers made for each call, and with buffers kept for each thread."""

import ctypes
import sys
import threading
from collections.abc import Callable

from wfpioctl.constants import (
    SIO_QUERY_WFP_CONNECTION_REDIRECT_RECORDS,
    SIO_SET_WFP_CONNECTION_REDIRECT_RECORDS,
)
from wfpioctl.errors import error_from_code

CAPACITY = 4096

DWORD = ctypes.c_uint32
Buffer = ctypes.c_char * CAPACITY
if sys.platform == "win32":
    prototype = ctypes.WINFUNCTYPE
else:
    prototype = ctypes.CFUNCTYPE
IOCTL = prototype(
    ctypes.c_int,
    ctypes.c_size_t,
    DWORD,
    ctypes.c_void_p,
    DWORD,
    ctypes.c_void_p,
    DWORD,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_void_p,
)
LAST_ERROR = prototype(ctypes.c_int)


Query = Callable[[int], bytes]


class CtypesPeer:
    """query_fresh(), query_cached() and set_records() on one provider, for handles."""

    def __init__(self, ioctl_address: int, last_error_address: int) -> None:
        self.last_error = LAST_ERROR(last_error_address)
        self.query_fresh = self._make_query_fresh(IOCTL(ioctl_address))
        self.query_cached = self._make_query_cached(IOCTL(ioctl_address))
        self.set_records = self._make_set(IOCTL(ioctl_address))

    def _make_query_fresh(self, ioctl: Callable[..., int]) -> Query:
        def query_fresh(handle: int) -> bytes:
            buffer = Buffer()
            returned = DWORD()
            if ioctl(
                handle, SIO_QUERY_WFP_CONNECTION_REDIRECT_RECORDS, None, 0,
                buffer, CAPACITY, ctypes.byref(returned), None, None,
            ):  # fmt: skip
                self._fail("SIO_QUERY_WFP_CONNECTION_REDIRECT_RECORDS")
            result: bytes = buffer[: returned.value]  # type: ignore[assignment]
            return result

        return query_fresh

    def _make_query_cached(self, ioctl: Callable[..., int]) -> Query:
        class Kept(threading.local):
            def __init__(self) -> None:
                self.buffer = Buffer()
                self.returned = DWORD()
                self.returned_reference = ctypes.byref(self.returned)

        kept = Kept()

        def query_cached(handle: int) -> bytes:
            buffer = kept.buffer
            if ioctl(
                handle, SIO_QUERY_WFP_CONNECTION_REDIRECT_RECORDS, None, 0,
                buffer, CAPACITY, kept.returned_reference, None, None,
            ):  # fmt: skip
                self._fail("SIO_QUERY_WFP_CONNECTION_REDIRECT_RECORDS")
            result: bytes = buffer[: kept.returned.value]  # type: ignore[assignment]
            return result

        return query_cached

    def _make_set(self, ioctl: Callable[..., int]) -> Callable[[int, bytes], None]:
        def set_records(handle: int, records: bytes) -> None:
            returned = DWORD()
            if ioctl(
                handle, SIO_SET_WFP_CONNECTION_REDIRECT_RECORDS, records, len(records),
                None, 0, ctypes.byref(returned), None, None,
            ):  # fmt: skip
                self._fail("SIO_SET_WFP_CONNECTION_REDIRECT_RECORDS")

        return set_records

    def _fail(self, operation: str) -> None:
        raise error_from_code(operation, self.last_error())
