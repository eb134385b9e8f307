"""The relay itself: decides where each accepted connection goes, connects it, and keeps count."""

import asyncio
import enum
import inspect
import ipaddress
import logging
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from ..context import (
    LAYOUTS,
    ContextError,
    Layout,
    OneOf,
    OriginalDestination,
    decode,
    original_destination,
)
from ..errors import NotConnectedError, NotSupportedError, RedirectError
from ..redirect import Redirect, read_redirect, socket_factory
from .counters import Counters, Ended, Outcome
from .listener import Listener
from .pipes import CHUNK, Exchange, Side, SideError

Address = tuple[Any, ...]
"""(host, port), or (host, port, flowinfo, scope_id) for IPv6; the host is numeric."""

_log = logging.getLogger("wfpioctl.relay")

_RESET_ON_CLOSE = struct.pack("HH" if sys.platform == "win32" else "ii", 1, 0)
_SWEEPS = 4  # for idle connections, in each idle timeout


class Decision(enum.Enum):
    """What a policy may answer, beside another address to go to."""

    PERMIT = "permit"
    BLOCK = "block"


@dataclass(frozen=True, slots=True)
class Flow:
    """What a policy decides on.

    Attributes:
        client: the client's address.
        destination: where the relay is about to go.
        redirect: the connection's redirect, or None if it was not redirected.
        original: what the context says: destination, process and so on; None if nothing.
    """

    client: Address
    destination: Address
    redirect: Redirect | None
    original: OriginalDestination | None


Answer = Decision | Address
Policy = Callable[[Flow], Answer | Awaitable[Answer]]
"""Decides on a flow, at once or as a coroutine: PERMIT, BLOCK, or an address to go to instead.

The address is numeric.  Whatever a policy raises blocks the flow, and is logged and counted.
"""


class IdleTimeoutError(TimeoutError):
    """No byte has moved for longer than the relay allows."""


class _RefusedError(Exception):
    """Why a connection is not relayed; ``detail`` is for the log."""

    def __init__(self, reason: str, detail: object = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


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
        connect_timeout: seconds for the connection to the destination, the policy's time included.
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
        if to is not None:
            ipaddress.ip_address(to[0])
        self._listen = listen
        self._layout = LAYOUTS[layout] if isinstance(layout, str) else layout
        self._to = to
        self._direct = direct
        self._policy = policy
        self._max_connections = max_connections
        self._connect_timeout = connect_timeout
        self._idle_timeout = idle_timeout
        self._buffer = memoryview(bytearray(CHUNK))
        self._connections: set[_Connection] = set()
        self._total = Counters()
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
        total = self._total
        moved = [c.exchange.moved for c in self._connections if c.exchange is not None]
        return Counters(
            accepted=total.accepted,
            active=len(self._connections),
            finished=total.finished,
            failed=total.failed,
            refused=Counter(total.refused),
            bytes_up=total.bytes_up + sum(up for up, _ in moved),
            bytes_down=total.bytes_down + sum(down for _, down in moved),
            errors=Counter(total.errors),
        )

    async def drain(self, timeout: float | None = None) -> bool:
        """Accept no more, and wait until the connections have ended; then reset what is left.

        ``timeout`` is in seconds; None is for ever.  Returns whether all had ended by then.
        """
        await self._listener.close()
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
        self._total.accepted += 1
        connection.task = self._loop.create_task(self._relay(connection))
        connection.task.add_done_callback(lambda task: self._account(connection, task))
        if len(self._connections) >= self._max_connections:
            self._listener.pause()

    async def _relay(self, connection: _Connection) -> None:
        """Relay to an orderly end, or raise _RefusedError or SideError."""
        client = connection.client
        redirect = self._read_redirect(client)
        flow = self._flow(connection, redirect)
        connection.destination = destination = await self._decide(flow)
        if self._listener.is_reached_by(destination):
            raise _RefusedError("loop", "the destination is the relay itself")
        with self._outbound(destination, redirect) as upstream:
            try:
                await self._connect(upstream, destination)
                for sock in (client, upstream):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.exchange = Exchange(client, upstream, self._buffer)
                await connection.exchange.run()
            except BaseException:
                _reset_on_close(upstream)
                raise

    def _read_redirect(self, client: socket.socket) -> Redirect | None:
        try:
            redirect = read_redirect(client)
        except NotConnectedError as error:  # it has gone already
            raise SideError("client", error) from None
        except NotSupportedError as error:
            if not self._direct:
                raise _RefusedError("not supported", error) from None
            redirect = None
        except RedirectError as error:
            raise SideError("relay", error) from None
        if redirect is None and not self._direct:
            raise _RefusedError("not redirected")
        return redirect

    def _flow(self, connection: _Connection, redirect: Redirect | None) -> Flow:
        original = None
        try:
            if redirect is not None and redirect.context:
                original = decode(redirect.context, self._layout)
            elif self._to is None:
                original = original_destination(connection.client, self._layout)
        except ContextError as error:
            if self._to is None:
                raise _RefusedError("bad context", error) from None
        except NotSupportedError:
            pass
        except RedirectError as error:
            raise SideError("relay", error) from None
        if self._to is not None:
            return Flow(connection.peer, self._to, redirect, original)
        if original is None:
            raise _RefusedError("no destination")
        return Flow(connection.peer, original.address, redirect, original)

    async def _decide(self, flow: Flow) -> Address:
        if self._policy is None:
            return flow.destination
        try:
            answer = self._policy(flow)
            if inspect.isawaitable(answer):
                async with asyncio.timeout(self._connect_timeout):
                    answer = await answer
            if answer is Decision.PERMIT:
                return flow.destination
            if answer is not Decision.BLOCK:
                host, _port = answer[:2]
                ipaddress.ip_address(host)
                return answer
        except Exception as error:
            _log.exception("the policy failed; the connection is blocked")
            raise _RefusedError("policy failed", repr(error)) from None
        raise _RefusedError("blocked")

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
            async with asyncio.timeout(self._connect_timeout):
                await self._loop.sock_connect(upstream, destination)
        except OSError as error:
            raise SideError("upstream", error) from None

    def _account(self, connection: _Connection, task: "asyncio.Task[None]") -> None:
        """Count, log and close a connection whose task has ended."""
        total = self._total
        outcome: Outcome = "failed"
        side: Side | None = None
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is None:
            outcome, reason = "finished", ""
            total.finished += 1
        elif isinstance(error, _RefusedError):
            outcome, reason = "refused", str(error)
            total.refused[error.reason] += 1
        else:
            if not isinstance(error, SideError):
                if not task.cancelled():
                    _log.error("a fault of the relay", exc_info=error)
                error = SideError("relay", error)
            side, reason = error.side, str(error)
            total.failed += 1
            total.errors[side, type(error.error).__name__] += 1
        if error is not None:
            _reset_on_close(connection.client)
        connection.client.close()
        up, down = (0, 0) if connection.exchange is None else connection.exchange.moved
        total.bytes_up += up
        total.bytes_down += down
        if _log.isEnabledFor(logging.INFO):
            seconds = time.monotonic() - connection.since
            _log.info(
                Ended(
                    outcome,
                    connection.peer,
                    connection.destination,
                    side,
                    reason,
                    up,
                    down,
                    seconds,
                )
            )
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
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
