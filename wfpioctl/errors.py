"""What the IOCTLs raise: one class for each code that a caller may want to catch.

All are OSErrors, and those whose code has a built-in exception are that one too, so that code which
catches ``PermissionError`` or ``ConnectionError`` goes on working.  ``winerror`` is the only
discriminator (all Win32 codes share one errno) and exists on every system.
"""

from __future__ import annotations

import errno

from . import constants as c

TYPE_CHECKING = False  # typing.TYPE_CHECKING without typing, whose import outlasts all of ours
if TYPE_CHECKING:
    from typing import Self

__all__ = [
    "AccessDeniedError",
    "BadAddressError",
    "CallbackInProgressError",
    "InsufficientBufferError",
    "InvalidArgumentError",
    "IoctlInterruptedError",
    "NetworkDownError",
    "NotASocketError",
    "NotConnectedError",
    "NotRedirectedError",
    "NotSupportedError",
    "OperationAbortedError",
    "ProtocolOptionError",
    "RedirectError",
    "error_from_code",
]


class RedirectError(OSError):
    """An IOCTL failed.  The base of all errors here, and the class for every code without its own.

    Attributes:
        operation: the IOCTL's name, such as ``"SIO_QUERY_WFP_CONNECTION_REDIRECT_RECORDS"``.
        winerror: the Winsock or Win32 code, on every system; unsigned.
        errno: the running system's ``errno`` constant of that name (``EINVAL`` for Win32 codes).
        strerror: operation, meaning and symbolic name of the code, as one line.
        required_size: bytes that the answer needs, where the provider said so, else None.
    """

    def __init__(self, operation: str, winerror: int, required_size: int | None = None) -> None:
        code = CODES.get(winerror, _UNEXPECTED)
        message = f"{operation}: {code.text}"
        if required_size is not None:
            message += f"; {required_size} bytes are required"
        super().__init__(code.errno, message)
        self.operation = operation
        self.winerror = winerror
        self.required_size = required_size

    def __str__(self) -> str:
        return f"[WinError {self.winerror}] {self.strerror}"

    def __reduce__(self) -> tuple[type[Self], tuple[str, int, int | None]]:
        return type(self), (self.operation, self.winerror, self.required_size)


class InvalidArgumentError(RedirectError):
    """WSAEINVAL: an argument, or the socket's state, is not valid for the IOCTL."""


class InsufficientBufferError(RedirectError):
    """The answer does not fit: the caller's buffer is too small, or growth ended at 1 MiB (W15)."""


class NotRedirectedError(RedirectError):
    """ERROR_NOT_FOUND or FWP_E_NOT_FOUND: nobody redirected this connection (W17)."""


class NotSupportedError(RedirectError):
    """WSAEOPNOTSUPP: the system has no such IOCTL; it needs Windows 8 or Server 2012 (W10)."""


class NotConnectedError(RedirectError, ConnectionError):
    """WSAENOTCONN: the socket is not connected (W18)."""


class NotASocketError(RedirectError):
    """WSAENOTSOCK: the handle is no socket, or a closed one (W19)."""


class AccessDeniedError(RedirectError, PermissionError):
    """WSAEACCES: setting records needs an elevated process (W20)."""


class IoctlInterruptedError(RedirectError, InterruptedError):
    """WSAEINTR: the call was interrupted (W20)."""


class OperationAbortedError(RedirectError):
    """WSA_OPERATION_ABORTED: cancelled, or the socket was closed meanwhile (W20)."""


class BadAddressError(RedirectError):
    """WSAEFAULT, where it is not about the size of a buffer (W20)."""


class CallbackInProgressError(RedirectError):
    """WSAEINPROGRESS: a blocking call or a callback is in progress (W20)."""


class NetworkDownError(RedirectError):
    """WSAENETDOWN: the network subsystem failed (W20)."""


class ProtocolOptionError(RedirectError):
    """WSAENOPROTOOPT: the socket's protocol does not know this IOCTL (W20)."""


class Code:
    """What is known of a code; everything that does not change from error to error is made once.

    Attributes:
        name: its symbolic name in the SDK.
        error: the class that it raises.
        text: what it means here and its name, as a message has them.
        errno: the constant of that name, EINVAL for Win32 codes, as on Windows.
    """

    __slots__ = ("errno", "error", "name", "text")

    def __init__(self, name: str, meaning: str, error: type[RedirectError] = RedirectError) -> None:
        self.name: str = name
        self.error: type[RedirectError] = error
        self.text: str = f"{meaning} ({name})" if name else meaning
        is_winsock = name.startswith("WSAE")
        self.errno: int = getattr(errno, name.removeprefix("WSA")) if is_winsock else errno.EINVAL


_UNEXPECTED = Code("", "unexpected code")

CODES = {
    c.ERROR_INSUFFICIENT_BUFFER: Code(
        "ERROR_INSUFFICIENT_BUFFER", "the buffer is too small", InsufficientBufferError
    ),
    c.ERROR_MORE_DATA: Code("ERROR_MORE_DATA", "there is more data than the buffer holds"),
    c.WSA_OPERATION_ABORTED: Code(
        "WSA_OPERATION_ABORTED",
        "the operation was cancelled or its socket closed",
        OperationAbortedError,
    ),
    c.WSA_IO_INCOMPLETE: Code("WSA_IO_INCOMPLETE", "the operation has not completed"),
    c.WSA_IO_PENDING: Code("WSA_IO_PENDING", "the operation will complete later"),
    c.ERROR_NOT_FOUND: Code(
        "ERROR_NOT_FOUND", "nobody redirected this connection", NotRedirectedError
    ),
    c.WSAEINTR: Code("WSAEINTR", "the call was interrupted", IoctlInterruptedError),
    c.WSAEACCES: Code("WSAEACCES", "access denied: the process is not elevated", AccessDeniedError),
    c.WSAEFAULT: Code("WSAEFAULT", "bad address", BadAddressError),
    c.WSAEINVAL: Code(
        "WSAEINVAL", "an argument or the socket's state is not valid", InvalidArgumentError
    ),
    c.WSAEINPROGRESS: Code(
        "WSAEINPROGRESS", "a blocking call or a callback is in progress", CallbackInProgressError
    ),
    c.WSAENOTSOCK: Code("WSAENOTSOCK", "not a socket, or a closed one", NotASocketError),
    c.WSAEMSGSIZE: Code("WSAEMSGSIZE", "the message is larger than the buffer"),
    c.WSAENOPROTOOPT: Code(
        "WSAENOPROTOOPT", "the protocol does not know the operation", ProtocolOptionError
    ),
    c.WSAEOPNOTSUPP: Code(
        "WSAEOPNOTSUPP",
        "not supported here: it needs a TCP socket on Windows 8 / Server 2012 or later",
        NotSupportedError,
    ),
    c.WSAENETDOWN: Code("WSAENETDOWN", "the network is down", NetworkDownError),
    c.WSAENOBUFS: Code("WSAENOBUFS", "no buffer space is available"),
    c.WSAENOTCONN: Code("WSAENOTCONN", "the socket is not connected", NotConnectedError),
    c.FWP_E_NOT_FOUND: Code(
        "FWP_E_NOT_FOUND", "nobody redirected this connection", NotRedirectedError
    ),
}
"""What is known of each code; every other code is a RedirectError."""


def error_from_code(
    operation: str, winerror: int, required_size: int | None = None, too_small: bool = False
) -> RedirectError:
    """Build the error for a code.  The C module calls this, and everything else that has a code.

    ``too_small`` says that growth ended, so that whatever the code, the size was the matter (W15).
    """
    error = InsufficientBufferError if too_small else CODES.get(winerror, _UNEXPECTED).error
    return error(operation, winerror, required_size)
