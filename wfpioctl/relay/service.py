"""The relay itself: decides where each accepted connection goes, connects it, and keeps count."""

import asyncio
import contextlib
import socket
import struct
import sys
import time
from types import TracebackType
from typing import Self

from ..context import Layout, OneOf, OriginalDestination, original_destination
from ..errors import NotConnectedError, NotSupportedError, RedirectError
from ..redirect import Redirect, read_redirect, socket_factory
from .connect import connect
from .counters import Books, Counters, IdleTimeoutError
from .decide import Address, Gate, Policy, RefusedError
from .listener import Listener, is_reached
from .pipes import CHUNK, Exchange, SideError

_RESET_ON_CLOSE = struct.pack("HH" if sys.platform == "win32" else "ii", 1, 0)
_SWEEPS = 4  # for idle connections, in each idle timeout


class _Connection:
    """An accepted connection, until its end."""

    __slots__ = ("client", "destination", "exchange", "moved", "peer", "since", "still", "task")

    task: asyncio.Task[None]

    def __init__(self, client: socket.socket, peer: Address) -> None:
        self.client = client
        self.peer = peer
        self.since = time.monotonic()
        self.destination: Address | None = None
        self.exchange: Exchange | None = None
        self.moved: tuple[int, int] = (0, 0)  # bytes, at the last sweep
        self.still = 0  # sweeps since a byte moved


class Relay:
    """A transparent relay on one address; entering its async with block starts it.

    Args:
        listen: (host, port) to accept on; port 0 lets the system choose.
        layout: how the contexts are laid out: a Layout, a OneOf, or a name in context.LAYOUTS.
        to: (host, port) where everything goes, whatever the contexts say; the host is numeric.
        direct: also serve connections that were not redirected: they go to ``to``, or where
            SO_ORIGINAL_DST says (W05).  Without it they are refused, so that it is no open proxy.
        policy: asked about each connection before it is made.
        max_connections: served at once; at the limit nothing is accepted, and clients wait in the
            listener's backlog.
        connect_timeout: seconds for reaching the destination, and as many for the policy.
        idle_timeout: seconds without a byte in either direction before a connection is reset, at
            most a quarter more; None is for ever.

    A connection that fails or is refused is reset, so that no client takes the end of its data for
    the end of the answer.
    """

    def __init__(
        self,
        listen: Address = ("127.0.0.1", 0),
        *,
        layout: Layout | OneOf | str = "wfpsampler",
        to: Address | None = None,
        direct: bool = False,
        policy: Policy | None = None,
        max_connections: int = 10_000,
        connect_timeout: float = 10.0,
        idle_timeout: float | None = 300.0,
    ) -> None:
        if max_connections < 1:
            raise ValueError(f"Relay(): max_connections must be at least 1, not {max_connections}")
        self._listen = listen
        self._gate = Gate(layout, to, direct, policy, connect_timeout)
        self._max_connections = max_connections
        self._connect_timeout = connect_timeout
        self._idle_timeout = idle_timeout
        self._buffer = memoryview(bytearray(CHUNK))
        self._connections: set[_Connection] = set()
        self._books = Books()
        self._sweeper: asyncio.Task[None] | None = None

    # ---- life ----

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def start(self) -> None:
        """Listen and serve, until drain().  Raises OSError where the address cannot be had."""
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()  # set at each connection's end
        self._listener = Listener(self._listen, self._accept)
        if self._idle_timeout is not None:
            self._sweeper = self._loop.create_task(self._sweep(self._idle_timeout))

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.drain(0)

    @property
    def address(self) -> Address:
        """(host, port, ...) on which it listens."""
        return self._listener.address

    @property
    def closed(self) -> bool:
        """Whether it accepts no more."""
        return self._listener.closed

    @property
    def counters(self) -> Counters:
        """The numbers at this moment."""
        return self._books.counters(
            [c.exchange.moved if c.exchange else (0, 0) for c in [*self._connections]]
        )

    async def drain(self, timeout: float | None = None) -> bool:
        """Accept no more, and wait until the connections have ended; then reset what is left.

        ``timeout`` is in seconds; None is for ever.  Returns whether all had ended by then.
        """
        self._listener.close()
        try:
            async with asyncio.timeout(timeout):
                while self._connections:
                    self._ended.clear()
                    await self._ended.wait()
        except TimeoutError:
            return False
        finally:
            self.abort()
            tasks = [connection.task for connection in self._connections]
            if self._sweeper is not None:
                self._sweeper.cancel()
                tasks.append(self._sweeper)
            await asyncio.gather(*tasks, return_exceptions=True)
        return True

    def abort(self) -> None:
        """Reset every connection."""
        for connection in self._connections:
            connection.task.cancel()

    # ---- one connection ----

    def _accept(self, client: socket.socket, peer: Address) -> None:
        connection = _Connection(client, peer)
        self._connections.add(connection)
        self._books.accepted()
        connection.task = self._loop.create_task(self._relay(connection))
        connection.task.add_done_callback(lambda task: self._account(connection, task))
        if len(self._connections) >= self._max_connections:
            self._listener.pause()

    async def _relay(self, connection: _Connection) -> None:
        """Relay to an orderly end, or raise RefusedError or SideError."""
        client = connection.client
        redirect = self._read_redirect(client)
        destination = await self._gate.decide(
            connection.peer, redirect, lambda: self._ask_the_system(client)
        )
        connection.destination = destination
        if is_reached(destination, self.address):
            raise RefusedError("loop", "the destination is the relay itself")
        with self._outbound(destination, redirect) as upstream:
            try:
                await self._connect(upstream, destination)
                _send_at_once(client, upstream)
                exchange = Exchange(self._loop, client, upstream, self._buffer)
                connection.exchange = exchange
                await exchange.run(watching=self._listener.watches)
            except BaseException:
                _reset_on_close(upstream)
                raise

    def _read_redirect(self, client: socket.socket) -> Redirect | None:
        try:
            return read_redirect(client)
        except NotConnectedError as error:  # it has gone already
            raise SideError("client", error) from None
        except NotSupportedError as error:
            if not self._gate.direct:
                raise RefusedError("not supported", error) from None
            return None
        except RedirectError as error:
            raise SideError("relay", error) from None

    def _ask_the_system(self, client: socket.socket) -> OriginalDestination | None:
        try:
            return original_destination(client, self._gate.layout)
        except NotSupportedError:
            return None
        except RedirectError as error:
            raise SideError("relay", error) from None

    def _outbound(self, destination: Address, redirect: Redirect | None) -> socket.socket:
        """A socket for the destination, with the records set before all else (W23)."""
        family = socket.AF_INET6 if ":" in destination[0] else socket.AF_INET
        try:
            if redirect is None:
                sock = socket.socket(family)
            else:
                sock = socket_factory(redirect)((family, socket.SOCK_STREAM, 0))
        except OSError as error:
            raise SideError("relay", error) from None
        sock.setblocking(False)
        return sock

    async def _connect(self, upstream: socket.socket, destination: Address) -> None:
        try:
            await connect(
                *(self._loop, upstream, destination, self._connect_timeout),
                watches=self._listener.watches,
            )
        except OSError as error:
            raise SideError("upstream", error) from None

    def _account(self, connection: _Connection, task: "asyncio.Task[None]") -> None:
        """Close a connection whose task has ended, and put it on the books."""
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is not None:
            _reset_on_close(connection.client)
        connection.client.close()
        moved = (0, 0) if connection.exchange is None else connection.exchange.moved
        self._books.ended(connection.peer, connection.destination, connection.since, moved, error)
        if len(self._connections) == self._max_connections:
            self._listener.resume()
        self._connections.discard(connection)
        self._ended.set()

    async def _sweep(self, idle_timeout: float) -> None:
        """Fail what has been idle.  It costs nothing while bytes move."""
        while True:
            await asyncio.sleep(idle_timeout / _SWEEPS)
            for connection in self._connections:
                exchange = connection.exchange
                if exchange is None:
                    continue
                if exchange.moved != connection.moved:
                    connection.moved = exchange.moved
                    connection.still = 0
                    continue
                connection.still += 1
                if connection.still > _SWEEPS:
                    exchange.fail("relay", IdleTimeoutError(f"idle for {idle_timeout:g} s"))


def _reset_on_close(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # some systems refuse where the other side has reset it
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)


def _send_at_once(*socks: socket.socket) -> None:
    with contextlib.suppress(OSError):  # one has gone already: the exchange meets it
        for sock in socks:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
