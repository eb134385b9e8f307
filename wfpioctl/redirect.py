"""Redirects as objects: read one off an accepted socket, go on to the destination with it."""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from ._wfpioctl import read_redirect_parts, set_redirect_records

__all__ = ["Redirect", "create_connection", "read_redirect", "socket_factory"]


class HasFileno(Protocol):
    """A socket, a transport's socket, or whatever else wraps a socket handle."""

    def fileno(self) -> int: ...


@dataclass(frozen=True, slots=True, repr=False)
class Redirect:
    """What the kernel knows of a redirected connection.

    Attributes:
        records: the redirect records, opaque bytes to be set on the outbound socket (W26).
        context: what the driver left for the proxy; b"" if nothing (W16).  wfpioctl.context
            decodes the known layouts.
    """

    records: bytes
    context: bytes = b""

    def __repr__(self) -> str:
        records, context = len(self.records), len(self.context)
        return f"<Redirect records={records} bytes context={context} bytes>"


def read_redirect(sock: int | HasFileno) -> Redirect | None:
    """Return the Redirect of an accepted connection, or None if nobody redirected it.

    ``sock`` is the accepted socket (W21): an int handle or an object with ``fileno()``.  None
    stands for the codes of W17 and only those; every other failure raises its RedirectError.
    None can also mean that the data was lost on the way (W60): decide what your proxy does then.
    """
    parts = read_redirect_parts(sock)
    return None if parts is None else Redirect(*parts)


def create_connection(
    redirect: Redirect,
    address: tuple[str, int] | None = None,
    timeout: float | None = ...,  # type: ignore[assignment]
    source_address: tuple[str, int] | None = None,
) -> socket.socket:
    raise NotImplementedError


def socket_factory(redirect: Redirect) -> Callable[[Any], socket.socket]:
    raise NotImplementedError
