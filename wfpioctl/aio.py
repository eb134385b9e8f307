"""The IOCTLs, connections and servers for asyncio::

    async def handle(reader, writer, redirect):
        upstream_reader, upstream_writer = await aio.open_connection(redirect, host, port)
        ...

    server = await aio.start_redirect_server(handle, "127.0.0.1", 8080)

An IOCTL that answers at once, as the real kernel does as far as anybody has seen, never touches the
event loop.  One that pends is awaited by its event; cancelling the await cancels it, and its memory
is taken care of.  Every ``sock`` may be a socket, a handle, a transport or a ``StreamWriter``.
"""

from __future__ import annotations

import asyncio
import inspect
import socket
import sys
from typing import TYPE_CHECKING, Any, TypeVar

from ._wfpioctl import overlapped_call
from .constants import (
    ERROR_NOT_FOUND,
    FWP_E_NOT_FOUND,
    SIO_QUERY_WFP_CONNECTION_REDIRECT_CONTEXT,
    SIO_QUERY_WFP_CONNECTION_REDIRECT_RECORDS,
    SIO_SET_WFP_CONNECTION_REDIRECT_RECORDS,
    WSAEINVAL,
)
from .errors import RedirectError
from .redirect import Redirect

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from _typeshed import HasFileno, ReadableBuffer

    from .overlapped import Operation

    Socket = int | HasFileno | asyncio.BaseTransport | asyncio.StreamWriter
    ClientConnected = Callable[
        [asyncio.StreamReader, asyncio.StreamWriter, Redirect | None], Awaitable[None] | None
    ]

__all__ = [
    "create_connection",
    "open_connection",
    "query_redirect_context",
    "query_redirect_records",
    "read_redirect",
    "set_redirect_records",
    "start_redirect_server",
    "transfer_redirect_records",
]

T = TypeVar("T")
P = TypeVar("P", bound=asyncio.BaseProtocol)

_RECORDS = SIO_QUERY_WFP_CONNECTION_REDIRECT_RECORDS
_CONTEXT = SIO_QUERY_WFP_CONNECTION_REDIRECT_CONTEXT
_SET = SIO_SET_WFP_CONNECTION_REDIRECT_RECORDS

_NOT_REDIRECTED = frozenset({ERROR_NOT_FOUND, FWP_E_NOT_FOUND, WSAEINVAL})  # W17


# ---- the IOCTLs ----------------------------------------------------------------------------------


async def query_redirect_records(sock: Socket, /) -> bytes:
    """Return the redirect records of an accepted connection, as opaque bytes.

    Raises what ``wfpioctl.query_redirect_records()`` raises, and OperationAbortedError if the
    socket is closed meanwhile.
    """
    try:
        answer = overlapped_call(_RECORDS, sock, None)
    except TypeError as error:
        answer = overlapped_call(_RECORDS, _unwrap(sock, error), None)
    return answer if type(answer) is bytes else await _end(answer)


async def query_redirect_context(sock: Socket, /) -> bytes:
    """Return the context that the redirecting driver left; b"" is redirected without one (W16).

    Raises as ``query_redirect_records()`` does.
    """
    try:
        answer = overlapped_call(_CONTEXT, sock, None)
    except TypeError as error:
        answer = overlapped_call(_CONTEXT, _unwrap(sock, error), None)
    return answer if type(answer) is bytes else await _end(answer)


async def set_redirect_records(sock: Socket, records: ReadableBuffer, /) -> None:
    """Set redirect records on a socket that is neither bound nor connected yet (W23).

    Raises what ``wfpioctl.set_redirect_records()`` raises, and OperationAbortedError if the
    socket is closed meanwhile.
    """
    try:
        answer = overlapped_call(_SET, sock, records)
    except TypeError as error:
        answer = overlapped_call(_SET, _unwrap(sock, error), records)
    if answer is not None:
        await _end(answer)


async def transfer_redirect_records(accepted: Socket, outbound: Socket, /) -> int:
    """Query the records of an accepted socket and set them on an outbound one.

    Returns the records' size in bytes; 0 if they are empty, and then nothing was set.
    """
    records = await query_redirect_records(accepted)
    if records:
        await set_redirect_records(outbound, records)
    return len(records)


async def read_redirect(sock: Socket, /) -> Redirect | None:
    """Return the Redirect of an accepted connection, or None if nobody redirected it.

    The rules are those of ``wfpioctl.read_redirect()``.
    """
    try:
        records = await query_redirect_records(sock)
    except RedirectError as error:
        if error.winerror in _NOT_REDIRECTED:
            return None
        raise
    try:
        return Redirect(records, await query_redirect_context(sock))
    except RedirectError as error:
        if error.winerror in _NOT_REDIRECTED:  # redirected, and carries none (W16)
            return Redirect(records)
        raise


def _unwrap(wrapper: Any, error: TypeError) -> Any:
    """The socket in a transport or StreamWriter; ``error`` is why that is not one itself."""
    if not hasattr(wrapper, "get_extra_info"):
        raise error
    return wrapper.get_extra_info("socket")


# ---- operations that pend ------------------------------------------------------------------------


async def _end(operation: Operation[T]) -> T:
    """Wait for an operation.  Leaving, by whatever way, cancels it if it still pends."""
    with operation:
        while operation.pending:
            await _wait_for_event(operation)
        return operation.result()


if sys.platform == "win32":

    async def _wait_for_event(operation: Operation[Any]) -> None:
        loop = asyncio.get_running_loop()
        if not isinstance(loop, asyncio.ProactorEventLoop):
            from ._windows_wait import wait_for_handle

            await wait_for_handle(operation.event)
            return
        waiter = loop._proactor.wait_for_handle(operation.event)  # type: ignore[attr-defined]
        # A handle must not be closed while the proactor waits for it: the operation, whose event it
        # is, stays for as long.  If the await is cancelled, so is the operation: that sets the
        # event, and ends the proactor's wait.
        waiter.add_done_callback(lambda _: operation)
        await asyncio.shield(waiter)

else:

    async def _wait_for_event(operation: Operation[Any]) -> None:
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        loop.add_reader(operation.event, _wake, waiter)
        try:
            await waiter
        finally:
            loop.remove_reader(operation.event)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


# ---- connections ---------------------------------------------------------------------------------


async def create_connection(
    redirect: Redirect,
    protocol_factory: Callable[[], P],
    host: str | None = None,
    port: int | str | None = None,
    *,
    family: int = 0,
    proto: int = 0,
    flags: int = 0,
    local_addr: tuple[str, int] | None = None,
    **kwargs: Any,
) -> tuple[asyncio.Transport, P]:
    """Connect to the destination of a redirected connection, with its records set.

    Like ``loop.create_connection()``: each address that the host resolves to is tried in turn, with
    a new socket on which the records are set before it is bound and connected (W23).

    Args:
        redirect: what ``read_redirect()`` returned for the accepted socket.
        protocol_factory: makes the protocol.
        host, port: where to connect to; both None is the original destination, read from the
            context in the layout of Microsoft's WFPSampler (W70).
        family, proto, flags: for ``loop.getaddrinfo()``.
        local_addr: numeric (host, port) to bind to.
        kwargs: ``ssl``, ``server_hostname`` and their like, for ``loop.create_connection()``.

    Raises RedirectError where the records could not be set; OSError where no address could be
    connected to, as asyncio does: the only error, or one that has all their texts.
    """
    loop = asyncio.get_running_loop()
    if kwargs.get("ssl") and "server_hostname" not in kwargs:
        kwargs["server_hostname"] = host
    infos = await _resolve(redirect, host, port, family=family, proto=proto, flags=flags)
    sock = await _connect(redirect, infos, local_addr)
    try:
        return await loop.create_connection(protocol_factory, sock=sock, **kwargs)
    except BaseException:
        sock.close()
        raise


async def open_connection(
    redirect: Redirect,
    host: str | None = None,
    port: int | str | None = None,
    *,
    limit: int = 1 << 16,
    **kwargs: Any,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect like ``create_connection()``, and return (reader, writer).

    ``limit`` is the reader's, in bytes, as in ``asyncio.open_connection()``; ``kwargs`` are those
    of ``create_connection()``.
    """
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=limit, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport, _ = await create_connection(redirect, lambda: protocol, host, port, **kwargs)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


async def _resolve(
    redirect: Redirect, host: str | None, port: int | str | None, **hints: Any
) -> list[Any]:
    """Items of ``getaddrinfo()`` for a host, or for the destination that the context tells."""
    if (host is None) != (port is None):
        raise ValueError(f"give host and port, or neither, not host={host!r} and port={port!r}")
    address: tuple[Any, ...] = (host, port)
    if host is None:
        from .context import decode

        address = decode(redirect.context, "wfpsampler").address
    if len(address) == 4:
        return [(socket.AF_INET6, socket.SOCK_STREAM, 0, "", address)]
    loop = asyncio.get_running_loop()
    infos = await loop.getaddrinfo(*address, type=socket.SOCK_STREAM, **hints)
    if not infos:
        raise OSError(f"{address[0]!r} resolves to no address")
    return infos


async def _connect(
    redirect: Redirect, infos: list[Any], local_addr: tuple[str, int] | None
) -> socket.socket:
    """Return a socket that is connected to the first address that can be."""
    errors: list[OSError] = []
    for info in infos:
        try:
            return await _connect_one(redirect, info, local_addr)
        except RedirectError:
            raise  # the records' matter, and the same for every address
        except OSError as error:
            errors.append(error)
    texts = {str(error) for error in errors}
    if len(texts) == 1:
        raise errors[0]
    raise OSError(f"Multiple exceptions: {', '.join(str(error) for error in errors)}")


async def _connect_one(
    redirect: Redirect, info: Any, local_addr: tuple[str, int] | None
) -> socket.socket:
    family, kind, proto, _, address = info
    sock = socket.socket(family, kind, proto)
    try:
        sock.setblocking(False)
        await set_redirect_records(sock, redirect.records)
        if local_addr is not None:
            sock.bind(local_addr)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


# ---- servers -------------------------------------------------------------------------------------


async def start_redirect_server(
    client_connected_cb: ClientConnected,
    host: str | None = None,
    port: int | str | None = None,
    **kwargs: Any,
) -> asyncio.Server:
    """Start a server whose callback is told of each connection's Redirect.

    Like ``asyncio.start_server()``, whose ``kwargs`` these are, but the callback, a function or a
    coroutine function, takes (reader, writer, redirect); redirect is None for a connection that
    nobody redirected.  A connection whose redirect cannot be read is closed, and the error goes to
    the loop's exception handler.
    """

    handling: set[asyncio.Task[Any] | None] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A loop refers to tasks weakly, and a client that has gone no longer refers to its own.
        handling.add(asyncio.current_task())
        try:
            await handle(reader, writer)
        finally:
            handling.discard(asyncio.current_task())

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            redirect = await read_redirect(writer)
        except RedirectError as error:
            writer.close()
            asyncio.get_running_loop().call_exception_handler(
                {
                    "message": "the redirect of a connection could not be read",
                    "exception": error,
                    "transport": writer.transport,
                }
            )
            return
        result = client_connected_cb(reader, writer, redirect)
        if inspect.isawaitable(result):
            await result

    return await asyncio.start_server(connected, host, port, **kwargs)
