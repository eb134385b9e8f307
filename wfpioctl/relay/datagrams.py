"""The relay for UDP: a flow is what one client sends, and what comes back to it.

A flow's redirect comes with its first datagram, and its records go on with the first one that is
sent to the destination (W40 to W42).  Each flow has a socket of its own towards the destination, so
that answers find their client; it ends when nothing has moved for a while.
"""

import asyncio
import socket
import time
from types import TracebackType
from typing import Self

from ..context import Layout, OneOf
from ..datagram import Datagram, MessageProtocol, MessageTransport, create_endpoint
from ..errors import RedirectError
from ..redirect import Redirect
from .counters import Books, Counters
from .decide import Address, Gate, Policy, RefusedError
from .listener import is_local, is_reached
from .pipes import SideError

_MOST_WAITING = 64  # datagrams of a flow whose destination is not decided yet; more are dropped
_SWEEPS = 4  # for ended flows, in each idle timeout


class _Flow(MessageProtocol):
    """One client's flow; the protocol of its socket towards the destination."""

    def __init__(self, relay: "DatagramRelay", client: Address) -> None:
        self.relay = relay
        self.client = client
        self.since = time.monotonic()
        self.destination: Address | None = None
        self.upstream: MessageTransport | None = None
        self.waiting: list[bytes] = []
        self.up = self.down = 0
        self.moved: tuple[int, int] = (0, 0)  # bytes, at the last sweep
        self.still = 0  # sweeps since a byte moved
        self.error: SideError | None = None
        self.task: asyncio.Task[None]

    def send(self, data: bytes, records: bytes | None = None) -> None:
        """Send to the destination, as soon as that is known."""
        if self.upstream is not None:
            self.upstream.sendmsg(data, self.destination, records=records)
            self.up += len(data)
        elif len(self.waiting) < _MOST_WAITING:
            self.waiting.append(data)

    def message_received(self, datagram: Datagram) -> None:
        address = datagram.address
        assert address is not None
        assert self.destination is not None
        # Another vendor's proxy on this machine answers from its own address.
        if address[:2] == self.destination[:2] or is_local(address):
            self.relay.answer(datagram.data, self.client)
            self.down += len(datagram.data)

    def error_received(self, exc: OSError) -> None:
        self.error = SideError("upstream", exc)
        self.task.cancel()


class DatagramRelay(MessageProtocol):
    """A transparent relay for UDP; entering its async with block starts it.

    The arguments are those of Relay.  ``max_flows`` are served at once; more are refused.
    ``idle_timeout`` is in seconds, and is how a flow ends in order.
    """

    def __init__(
        self,
        listen: Address = ("127.0.0.1", 0),
        *,
        layout: Layout | OneOf | str = "wfpsampler",
        to: Address | None = None,
        direct: bool = False,
        policy: Policy | None = None,
        max_flows: int = 10_000,
        policy_timeout: float = 10.0,
        idle_timeout: float = 60.0,
    ) -> None:
        self._listen = listen
        self._gate = Gate(layout, to, direct, policy, policy_timeout)
        self._max_flows = max_flows
        self._idle_timeout = idle_timeout
        self._flows: dict[Address, _Flow] = {}
        self._books = Books()

    # ---- life ----

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def start(self) -> None:
        """Listen and serve, until close().  Raises OSError where the address cannot be had."""
        self._loop = asyncio.get_running_loop()
        try:
            self._transport, _ = await create_endpoint(lambda: self, self._listen)
        except RedirectError:  # a system without redirects
            if not self._gate.direct:
                raise
            self._transport, _ = await create_endpoint(
                lambda: self, self._listen, redirect_metadata=False
            )
        self._sweeper = self._loop.create_task(self._sweep())

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End every flow; datagrams have no end to wait for."""
        self._transport.close()
        tasks = [self._sweeper, *(flow.task for flow in self._flows.values())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def address(self) -> Address:
        """(host, port, ...) on which it listens."""
        address: Address = self._transport.get_extra_info("sockname")
        return address

    @property
    def counters(self) -> Counters:
        """The numbers at this moment; a connection is a flow."""
        return self._books.counters([(flow.up, flow.down) for flow in [*self._flows.values()]])

    # ---- one flow ----

    def message_received(self, datagram: Datagram) -> None:
        client = datagram.address
        assert client is not None
        flow = self._flows.get(client)
        if flow is None:
            flow = self._flows[client] = _Flow(self, client)
            self._books.accepted()
            redirect = None
            if datagram.records is not None:
                redirect = Redirect(datagram.records, datagram.context or b"")
            flow.task = self._loop.create_task(self._relay(flow, redirect))
            flow.task.add_done_callback(lambda task: self._account(flow, task))
        flow.send(datagram.data)

    def answer(self, data: bytes, client: Address) -> None:
        if not self._transport.is_closing():
            self._transport.sendto(data, client)

    async def _relay(self, flow: _Flow, redirect: Redirect | None) -> None:
        """Relay until cancelled, which is the orderly end, or raise RefusedError or SideError."""
        if len(self._flows) > self._max_flows:
            raise RefusedError("too many flows")
        destination = await self._gate.decide(flow.client, redirect)
        if is_reached(destination, self.address):
            raise RefusedError("loop", "the destination is the relay itself")
        flow.destination = destination
        try:
            sock = _outbound(destination)
        except OSError as error:
            raise SideError("relay", error) from None
        upstream, _ = await create_endpoint(lambda: flow, sock=sock, redirect_metadata=False)
        flow.upstream = upstream
        records = None if redirect is None else redirect.records
        try:
            for data in flow.waiting:
                flow.send(data, records)
                records = None
            flow.waiting.clear()
            await self._loop.create_future()
        finally:
            upstream.close()

    def _account(self, flow: _Flow, task: "asyncio.Task[None]") -> None:
        error = flow.error if task.cancelled() else task.exception()
        self._books.ended(flow.client, flow.destination, flow.since, (flow.up, flow.down), error)
        del self._flows[flow.client]

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self._idle_timeout / _SWEEPS)
            for flow in self._flows.values():
                if (flow.up, flow.down) != flow.moved:
                    flow.moved = flow.up, flow.down
                    flow.still = 0
                    continue
                flow.still += 1
                if flow.still > _SWEEPS:
                    flow.task.cancel()


def _outbound(destination: Address) -> socket.socket:
    """A socket for one flow.  It is not connected: a connect without records is redirected."""
    family = socket.AF_INET6 if ":" in destination[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.bind(("", 0))
    except BaseException:
        sock.close()
        raise
    return sock
