"""Redirects as objects: read one off an accepted socket, go on to the destination with it."""

from __future__ import annotations

import socket
from collections import namedtuple
from types import EllipsisType

from ._wfpioctl import read_redirect_parts, set_redirect_records

__all__ = ["Redirect", "create_connection", "read_redirect", "socket_factory"]

Address = tuple[str, int] | tuple[str, int, int, int]


# Neither typing nor dataclasses, whose imports outlast all of ours.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NamedTuple, Protocol

    class HasFileno(Protocol):
        """A socket, a transport's socket, or whatever else wraps a socket handle."""

        def fileno(self) -> int: ...

    class _Redirect(NamedTuple):
        records: bytes
        context: bytes = b""
else:
    _Redirect = namedtuple("Redirect", "records context", defaults=[b""])


class Redirect(_Redirect):
    """What the kernel knows of a redirected connection, as a named tuple.

    Attributes:
        records: the redirect records, opaque bytes to be set on the outbound socket (W26).
        context: what the driver left for the proxy; b"" if nothing (W16).  wfpioctl.context
            decodes the known layouts.
    """

    __slots__ = ()

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
    return None if parts is None else Redirect._make(parts)


def create_connection(
    redirect: Redirect,
    address: Address | None = None,
    timeout: float | EllipsisType | None = ...,
    source_address: tuple[str, int] | None = None,
) -> socket.socket:
    """Connect to the destination of a redirected connection, with its records set.

    Like ``socket.create_connection()``: every address that the host resolves to is tried in turn,
    each with a new socket on which the records are set before it is bound and connected (W23).

    Args:
        redirect: what ``read_redirect()`` returned for the accepted socket.
        address: (host, port) to connect to, or for IPv6 (host, port, flowinfo, scope_id), such as
            the address of a decoded context; None is the original destination, read from the
            context in the layout of Microsoft's WFPSampler (W70).
        timeout: seconds for each attempt; None waits for ever; left out, it is
            ``socket.getdefaulttimeout()``.
        source_address: (host, port) to bind to.

    Raises OSError: the last attempt's error, with a note for each attempt if there were several.
    RedirectError where the records could not be set; ContextError (a ValueError) where ``address``
    is None and the context has another layout.
    """
    if address is None:
        from .context import decode

        address = decode(redirect.context, "wfpsampler").address
    make_socket = socket_factory(redirect)
    infos = _resolve(address)
    attempts: list[str] = []
    for number, info in enumerate(infos, 1):
        try:
            return _connect(make_socket, info, timeout, source_address)
        except OSError as error:
            attempts.append(f"{info[4][0]!s} port {info[4][1]}: {error}")
            if number == len(infos):
                for attempt in attempts if number > 1 else ():
                    error.add_note(attempt)
                raise
    raise OSError(f"create_connection(): {address[0]!r} resolves to no address")


def _resolve(address: Address) -> list[Any]:
    """The TCP addresses that a host has; a full IPv6 address is one already."""
    if len(address) == 4:
        return [(socket.AF_INET6, socket.SOCK_STREAM, 0, "", address)]
    host, port = address
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)


def _connect(
    make_socket: Callable[[Any], socket.socket],
    info: Any,
    timeout: float | EllipsisType | None,
    source_address: tuple[str, int] | None,
) -> socket.socket:
    sock = make_socket(info)
    try:
        if not isinstance(timeout, EllipsisType):
            sock.settimeout(timeout)
        if source_address is not None:
            sock.bind(source_address)
        sock.connect(info[4])
    except BaseException:
        sock.close()
        raise
    return sock


def socket_factory(redirect: Redirect) -> Callable[[Any], socket.socket]:
    """Return a callable that makes sockets with the records set, for clients that take one.

    It is called with an item of ``socket.getaddrinfo()``, as ``aiohttp.TCPConnector`` does, and
    returns a socket that is neither bound nor connected.  Keep one client session for each value of
    ``records``: a pooled connection must not be shared between flows (W27).
    """

    def make_socket(info: Any) -> socket.socket:
        family, kind, protocol = info[:3]
        sock = socket.socket(family, kind, protocol)
        try:
            set_redirect_records(sock, redirect.records)
        except BaseException:
            sock.close()
            raise
        return sock

    return make_socket
