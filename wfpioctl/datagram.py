"""UDP: datagrams with the redirect records and the context of their flow (W40 to W44).

A redirected UDP flow has no accepted socket to ask.  Its records and context come with the datagram
that created it, once :func:`enable_redirect_metadata` has said that they are wanted; later ones of
the flow carry none (W61), so a proxy remembers them by the sender's address.  The first datagram
that goes on to the destination carries the records (W42)::

    datagram.enable_redirect_metadata(sock)
    received = datagram.recvmsg(sock, 65535)
    datagram.sendmsg(outbound, received.data, destination, records=received.records)

On Windows, whose Python has no ``socket.recvmsg`` (W44), this is WSARecvMsg and WSASendMsg.
Elsewhere it is recvmsg(2) and sendmsg(2), and only the simulated engine knows of records.
"""

from __future__ import annotations

import asyncio
import selectors
import socket
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from . import _wfpioctl
from ._wfpioctl import enable_redirect_metadata

if TYPE_CHECKING:
    from _typeshed import HasFileno, ReadableBuffer, WriteableBuffer

__all__ = [
    "Datagram",
    "MessageProtocol",
    "MessageTransport",
    "Received",
    "create_endpoint",
    "enable_redirect_metadata",
    "recvmsg",
    "recvmsg_into",
    "sendmsg",
]

Address = tuple[Any, ...]
"""As the socket module gives it: (host, port), or (host, port, flowinfo, scope_id) for IPv6."""

_Result = TypeVar("_Result")
_Protocol = TypeVar("_Protocol", bound="MessageProtocol")


class Datagram(NamedTuple):
    """One received datagram.

    Attributes:
        data: the payload, cut off at the size that was asked for.
        address: who sent it; None where the socket's family is neither IPv4 nor IPv6.
        flags: the system's ``socket.MSG_*`` flags.  MSG_TRUNC: the payload was longer than the
            room for it.  MSG_CTRUNC: the control data was, or it was malformed; what can be
            trusted of it is there.
        records: the flow's redirect records, to be sent on as they are (W26); None if the datagram
            carried none.
        context: what the driver left for the proxy; None if the datagram carried none.
    """

    data: bytes
    address: Address | None
    flags: int
    records: bytes | None
    context: bytes | None


class Received(NamedTuple):
    """One datagram received into a buffer: a Datagram with ``size`` in bytes instead of data."""

    size: int
    address: Address | None
    flags: int
    records: bytes | None
    context: bytes | None


def recvmsg(sock: int | HasFileno, bufsize: int, flags: int = 0, /) -> Datagram:
    """Receive one datagram of at most ``bufsize`` bytes; 65,535 hold any.

    ``sock`` is a UDP socket: an int handle or an object with ``fileno()``.  A socket object's
    timeout is honoured: TimeoutError; one that does not block raises BlockingIOError.  Other
    failures are the OSErrors of ``socket.recvfrom``, except that a datagram longer than ``bufsize``
    is no error on any system: its flags hold MSG_TRUNC.

    There is room for 16 KiB of control data.  What exceeds it is lost with its datagram, and flags
    hold MSG_CTRUNC.  With ``socket.MSG_PEEK`` nothing is lost: the room grows, up to 1 MiB.
    """
    return Datagram(*_wait_for(sock, selectors.EVENT_READ, _wfpioctl.recvmsg, bufsize, flags))


def recvmsg_into(
    sock: int | HasFileno, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0, /
) -> Received:
    """Receive one datagram into a writable buffer, as recvmsg() does.

    At most ``nbytes`` bytes are written, or the buffer's length if ``nbytes`` is 0.
    """
    return Received(
        *_wait_for(sock, selectors.EVENT_READ, _wfpioctl.recvmsg_into, buffer, nbytes, flags)
    )


def sendmsg(
    sock: int | HasFileno,
    data: ReadableBuffer,
    address: Address | None,
    /,
    *,
    records: ReadableBuffer | None = None,
) -> int:
    """Send one datagram to ``address``; return the number of bytes sent.

    ``address`` has a numeric host; None is the peer of a connected socket.  ``records`` are those
    of the flow that is proxied, and go with its first datagram (W42): 1 byte to 1 MiB, else
    ValueError.  A system without WFP refuses to send records: OSError, EOPNOTSUPP.  Timeouts and
    other failures are those of ``socket.sendto``.
    """
    return _wait_for(sock, selectors.EVENT_WRITE, _wfpioctl.sendmsg, data, address, records)


# What waits for one socket without a limit on its number, where there is such a thing.
_Selector: type[selectors.BaseSelector] = getattr(
    selectors, "PollSelector", selectors.SelectSelector
)


def _wait_for(sock: Any, event: int, call: Callable[..., _Result], /, *arguments: Any) -> _Result:
    """``call(sock, *arguments)``, repeated until it does not block or the socket's timeout is over.

    A socket object with a timeout is non-blocking underneath, and only the object knows.
    """
    try:
        return call(sock, *arguments)
    except BlockingIOError:
        timeout = sock.gettimeout() if hasattr(sock, "gettimeout") else None
        if not timeout:
            raise
    deadline = time.monotonic() + timeout
    with _Selector() as selector:
        selector.register(sock, event)
        while (left := deadline - time.monotonic()) > 0:
            if selector.select(left):
                try:
                    return call(sock, *arguments)
                except BlockingIOError:
                    continue  # another thread was faster
    raise TimeoutError("timed out")


# ------------------------------------------------------------------------------------------ asyncio


class MessageProtocol(asyncio.BaseProtocol):
    """What create_endpoint() calls: a DatagramProtocol that gets whole Datagrams."""

    def message_received(self, datagram: Datagram) -> None:
        """Called with each datagram."""

    def error_received(self, exc: OSError) -> None:
        """Called when receiving or sending raised an OSError; the endpoint goes on."""


async def create_endpoint(
    protocol_factory: Callable[[], _Protocol],
    local_addr: Address | None = None,
    remote_addr: Address | None = None,
    *,
    family: int = socket.AF_UNSPEC,
    sock: socket.socket | None = None,
    redirect_metadata: bool = True,
) -> tuple[MessageTransport, _Protocol]:
    """``loop.create_datagram_endpoint`` for a MessageProtocol, on any event loop.

    Give addresses to bind and to connect to, whose hosts may be names, or a datagram socket of your
    own (for dual stack, or options), which the transport then owns.  ``redirect_metadata`` calls
    enable_redirect_metadata() on it, before it is bound; an outbound socket needs none.

    On a loop without ``add_reader`` (Windows' proactor) a thread waits for the socket.
    """
    loop = asyncio.get_running_loop()
    if sock is None:
        sock = await _open(loop, local_addr, remote_addr, family, redirect_metadata)
    elif local_addr is not None or remote_addr is not None or family != socket.AF_UNSPEC:
        raise ValueError("create_endpoint(): give addresses and family, or sock, not both")
    elif sock.type != socket.SOCK_DGRAM:
        raise ValueError(f"create_endpoint(): sock must be a datagram socket, not {sock!r}")
    else:
        sock.setblocking(False)
        if redirect_metadata:
            enable_redirect_metadata(sock)
    try:
        protocol = protocol_factory()
        transport = MessageTransport(loop, sock, protocol)
    except BaseException:
        sock.close()
        raise
    try:
        transport._start()
    except BaseException:
        transport.abort()
        raise
    return transport, protocol


async def _open(
    loop: asyncio.AbstractEventLoop,
    local_addr: Address | None,
    remote_addr: Address | None,
    family: int,
    redirect_metadata: bool,
) -> socket.socket:
    """A socket that is bound and connected as asked; the first address of a name is used."""
    ends: dict[str, Any] = {}
    for name, address in (("local", local_addr), ("remote", remote_addr)):
        if address is not None:
            found = await loop.getaddrinfo(
                address[0], address[1], family=family, type=socket.SOCK_DGRAM
            )
            family, _, _, _, ends[name] = found[0]
    if not ends:
        raise ValueError("create_endpoint(): give local_addr, remote_addr or sock")
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        if redirect_metadata:
            enable_redirect_metadata(sock)
        if "local" in ends:
            sock.bind(ends["local"])
        if "remote" in ends:
            sock.connect(ends["remote"])
    except BaseException:
        sock.close()
        raise
    return sock


class MessageTransport(asyncio.DatagramTransport):
    """The transport of create_endpoint(): a DatagramTransport that sends records too.

    ``get_extra_info`` knows "socket", "sockname" and "peername".
    """

    _MAX_SIZE = 65_535  # bytes of a datagram
    _HIGH_WATER = 65_536  # bytes that wait, from which on the protocol is asked to pause
    _LOW_WATER = 16_384

    def __init__(
        self, loop: asyncio.AbstractEventLoop, sock: socket.socket, protocol: MessageProtocol
    ) -> None:
        super().__init__({"socket": sock, "sockname": sock.getsockname(), "peername": _peer(sock)})
        self._loop = loop
        self._sock = sock
        self._protocol = protocol
        self._waiting: deque[tuple[bytes, Address | None, bytes | None]] = deque()
        self._waiting_size = 0
        self._paused = False
        self._closing = False
        self._readiness: _LoopReadiness | _ThreadReadiness
        try:
            self._readiness = _LoopReadiness(loop, sock)
        except NotImplementedError:
            self._readiness = _ThreadReadiness(loop, sock)

    def _start(self) -> None:
        self._protocol.connection_made(self)
        if not self._closing:
            self._readiness.watch(selectors.EVENT_READ, self._receive)

    def __repr__(self) -> str:
        state = "closing" if self._closing else "open"
        return f"<MessageTransport {state} {self.get_extra_info('sockname')}>"

    # ---- receiving ----

    def _receive(self) -> None:
        try:
            received = _wfpioctl.recvmsg(self._sock, self._MAX_SIZE)
        except (BlockingIOError, InterruptedError):
            self._watch_anew()
        except OSError as error:
            self._watch_anew()
            self._protocol.error_received(error)
        else:
            self._protocol.message_received(Datagram(*received))

    def _watch_anew(self) -> None:
        """Go on after the socket had an error: uvloop's add_reader and add_writer end with it."""
        self._readiness.forget(selectors.EVENT_READ)
        self._readiness.forget(selectors.EVENT_WRITE)
        if not self._closing:
            self._readiness.watch(selectors.EVENT_READ, self._receive)
        if self._waiting:
            self._readiness.watch(selectors.EVENT_WRITE, self._flush)

    # ---- sending ----

    def sendto(self, data: Any, addr: Any = None) -> None:
        """Send a datagram without records."""
        self.sendmsg(data, addr)

    def sendmsg(
        self, data: Any, addr: Address | None = None, *, records: bytes | None = None
    ) -> None:
        """Send a datagram as datagram.sendmsg() does, now or when the socket is ready.

        An OSError goes to the protocol's error_received().
        """
        if self._closing:
            raise RuntimeError("sendmsg(): the transport is closing")
        if not self._waiting and self._send(data, addr, records):
            return
        payload = bytes(data)
        self._waiting.append((payload, addr, records))
        self._waiting_size += len(payload)
        self._readiness.watch(selectors.EVENT_WRITE, self._flush)
        if self._waiting_size > self._HIGH_WATER and not self._paused:
            self._paused = True
            self._protocol.pause_writing()

    def _send(self, data: Any, addr: Address | None, records: bytes | None) -> bool:
        """Send, or report why not; False: the socket is not ready."""
        try:
            _wfpioctl.sendmsg(self._sock, data, addr, records)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self._watch_anew()
            self._protocol.error_received(error)
        return True

    def _flush(self) -> None:
        while self._waiting and self._send(*self._waiting[0]):
            if not self._waiting:
                return  # the protocol heard of an error, and aborted
            self._waiting_size -= len(self._waiting.popleft()[0])
        if not self._waiting:
            self._readiness.forget(selectors.EVENT_WRITE)
            if self._closing:
                self._finish()
        if self._paused and self._waiting_size <= self._LOW_WATER:
            self._paused = False
            self._protocol.resume_writing()

    def get_write_buffer_size(self) -> int:
        """Bytes of the datagrams that wait for the socket."""
        return self._waiting_size

    # ---- the end ----

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        """Receive no more; send what waits; then the protocol's connection_lost(None)."""
        if self._closing:
            return
        self._closing = True
        self._readiness.forget(selectors.EVENT_READ)
        if not self._waiting:
            self._finish()

    def abort(self) -> None:
        """close(), without sending what waits."""
        self._waiting.clear()
        self._waiting_size = 0
        if self._closing:
            self._finish()
        else:
            self.close()

    def _finish(self) -> None:
        if self._sock.fileno() == -1:
            return
        self._readiness.close()
        self._sock.close()
        self._loop.call_soon(self._protocol.connection_lost, None)

    def __del__(self) -> None:
        if self._sock.fileno() != -1:
            warnings.warn(
                f"unclosed transport {self!r}", ResourceWarning, stacklevel=2, source=self
            )
            self._readiness.close()
            self._sock.close()


def _peer(sock: socket.socket) -> Any:
    try:
        return sock.getpeername()
    except OSError:
        return None


class _LoopReadiness:
    """A socket's readiness, from a loop that has add_reader(); NotImplementedError if not."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        loop.remove_reader(sock)
        self._loop = loop
        self._sock = sock

    def watch(self, event: int, callback: Callable[[], None]) -> None:
        """Call back in the loop whenever the socket is ready for ``event``, until forgotten."""
        if event == selectors.EVENT_READ:
            self._loop.add_reader(self._sock, callback)
        else:
            self._loop.add_writer(self._sock, callback)

    def forget(self, event: int) -> None:
        if event == selectors.EVENT_READ:
            self._loop.remove_reader(self._sock)
        else:
            self._loop.remove_writer(self._sock)

    def close(self) -> None:
        if not self._loop.is_closed():
            self.forget(selectors.EVENT_READ)
            self.forget(selectors.EVENT_WRITE)


class _ThreadReadiness:
    """The same for other loops: a thread that waits for the socket, and for news of what to watch.

    An event that came is not watched again before its callback has run: the thread does not spin.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        self._loop = loop
        self._sock = sock
        self._callbacks: dict[int, Callable[[], None]] = {}  # touched by the loop's thread alone
        self._armed: set[int] = set()
        self._lock = threading.Lock()  # for _armed
        self._closed = False
        self._news, self._bell = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="wfpioctl-datagram", daemon=True)
        self._thread.start()

    def watch(self, event: int, callback: Callable[[], None]) -> None:
        self._callbacks[event] = callback
        self._arm(event)

    def forget(self, event: int) -> None:
        self._callbacks.pop(event, None)

    def close(self) -> None:
        self._callbacks.clear()
        self._closed = True
        self._bell.send(b"\0")
        self._thread.join()  # it is about to end, and must not select on a closed socket
        self._news.close()
        self._bell.close()

    def _arm(self, event: int) -> None:
        with self._lock:
            self._armed.add(event)
        self._bell.send(b"\0")

    def _call(self, event: int) -> None:
        callback = self._callbacks.get(event)
        if callback is not None:
            try:
                callback()
            finally:
                if event in self._callbacks:
                    self._arm(event)

    def _run(self) -> None:
        while not self._closed:
            with self._lock:
                armed = self._armed.copy()
            with _Selector() as selector:
                selector.register(self._news, selectors.EVENT_READ)
                if armed:
                    selector.register(self._sock, sum(armed))
                for key, events in selector.select():
                    if key.fileobj is self._news:
                        self._news.recv(4096)
                    else:
                        self._announce(event for event in armed if event & events)

    def _announce(self, events: Iterable[int]) -> None:
        for event in events:
            with self._lock:
                self._armed.discard(event)
            try:
                self._loop.call_soon_threadsafe(self._call, event)
            except RuntimeError:  # the loop was closed, and its transport was not
                self._closed = True
                return
