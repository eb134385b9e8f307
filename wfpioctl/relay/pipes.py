"""Copies bytes between two connected sockets, both ways, until both directions have ended.

Either side may end its direction while the other goes on (half-close), and a side that does not
read stops the other from being read (backpressure): of each direction at most one chunk is held.
What fails is noted with the side whose socket it was.

A loop that watches descriptors calls back, which costs one read and one write for each chunk and
nothing else.  The proactor cannot watch: it awaits each read and write.
"""

import asyncio
import contextlib
import socket
from typing import Literal

CHUNK = 65_536
"""Bytes read at once: the most that is held for a side that does not read."""

Side = Literal["client", "upstream", "relay"]
"""Whose error it was; the relay's own are timeouts, limits, and being stopped."""


class SideError(Exception):
    """What ended a connection too early, and on which side."""

    def __init__(self, side: Side, error: BaseException) -> None:
        super().__init__(side, error)
        self.side: Side = side
        self.error = error

    def __str__(self) -> str:
        return f"{type(self.error).__name__}: {self.error}"


class Exchange:
    """Two sockets, non-blocking and connected, and what goes between them.

    ``buffer`` has CHUNK bytes.  All exchanges of one loop can share it: it holds nothing between
    two events.
    """

    __slots__ = ("_error", "_loop", "_over", "_pipes")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        client: socket.socket,
        upstream: socket.socket,
        buffer: memoryview,
    ) -> None:
        self._loop = loop
        self._pipes = (
            _Pipe(self, ("client", client), ("upstream", upstream), buffer),
            _Pipe(self, ("upstream", upstream), ("client", client), buffer),
        )
        self._over: asyncio.Future[None] = loop.create_future()
        self._error: SideError | None = None

    @property
    def moved(self) -> tuple[int, int]:
        """Bytes so far: from the client to the upstream, and back."""
        up, down = self._pipes
        return up.moved, down.moved

    async def run(self, *, watching: bool) -> None:
        """Copy until both directions have ended in order; raise SideError if they have not.

        ``watching``: whether the loop can watch descriptors.
        """
        if watching:
            await self._run_watching()
        else:
            await self._run_awaiting()
        if self._error is not None:
            raise self._error

    async def _run_watching(self) -> None:
        for pipe in self._pipes:
            pipe.start(self._loop)
        try:
            await self._over
        finally:
            for pipe in self._pipes:
                pipe.stop()

    async def _run_awaiting(self) -> None:
        tasks = [self._loop.create_task(pipe.run(self._loop)) for pipe in self._pipes]
        try:
            await self._over
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    @property
    def end_is_passed_on(self) -> bool:
        """Whether a side is to be told that the other has ended; if not, its socket's close does,
        which follows."""
        up, down = self._pipes
        return not (up.ended or down.ended) and self._error is None

    def fail(self, side: Side, error: BaseException) -> None:
        """End both directions now."""
        self.note(side, error)
        if not self._over.done():
            self._over.set_result(None)

    def note(self, side: Side, error: BaseException) -> None:
        """Remember an error that leaves the other direction alone; the first one counts."""
        if self._error is None:
            self._error = SideError(side, error)

    def direction_ended(self) -> None:
        up, down = self._pipes
        if up.ended and down.ended and not self._over.done():
            self._over.set_result(None)


class _Pipe:
    """One direction: everything that ``source`` sends goes to ``target``, and then its end."""

    __slots__ = (
        "_buffer", "_exchange", "_loop", "_pending", "_source", "_source_fd", "_source_side",
        "_target", "_target_fd", "_target_side", "ended", "moved",
    )  # fmt: skip
    _source_side: Side
    _target_side: Side

    def __init__(
        self,
        exchange: Exchange,
        source: tuple[Side, socket.socket],
        target: tuple[Side, socket.socket],
        buffer: memoryview,
    ) -> None:
        self._exchange = exchange
        self._source_side, self._source = source
        self._target_side, self._target = target
        self._buffer = buffer
        self._pending = b""  # read and not yet written
        self.moved = 0
        self.ended = False

    # ---- on a loop that watches descriptors ----

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._source_fd = self._source.fileno()  # the loop is several times slower with objects
        self._target_fd = self._target.fileno()
        loop.add_reader(self._source_fd, self._readable)

    def stop(self) -> None:
        if not self.ended:
            self._loop.remove_reader(self._source_fd)
            self._loop.remove_writer(self._target_fd)

    def _readable(self) -> None:
        try:
            size = self._source.recv_into(self._buffer)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._exchange.fail(self._source_side, error)
            return
        if size == 0:
            self._loop.remove_reader(self._source_fd)
            self._pass_end_on()
            return
        try:
            sent = self._target.send(self._buffer[:size])
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self._loop.remove_reader(self._source_fd)
            self._target_failed(error)
            return
        self.moved += sent
        if sent < size:
            self._pending = bytes(self._buffer[sent:size])
            self._loop.remove_reader(self._source_fd)
            self._loop.add_writer(self._target_fd, self._writable)

    def _writable(self) -> None:
        try:
            sent = self._target.send(self._pending)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._loop.remove_writer(self._target_fd)
            self._target_failed(error)
            return
        self.moved += sent
        self._pending = self._pending[sent:]
        if not self._pending:
            self._loop.remove_writer(self._target_fd)
            self._loop.add_reader(self._source_fd, self._readable)

    # ---- on the proactor ----

    async def run(self, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            try:
                data = await loop.sock_recv(self._source, CHUNK)
            except OSError as error:
                self._exchange.fail(self._source_side, error)
                return
            if not data:
                self._pass_end_on()
                return
            try:
                await _send_all(loop, self._target, data)
            except OSError as error:
                self._target_failed(error)
                return
            self.moved += len(data)

    # ---- on both ----

    def _pass_end_on(self) -> None:
        if self._exchange.end_is_passed_on:
            with contextlib.suppress(OSError):  # reset meanwhile: the other direction meets it
                self._target.shutdown(socket.SHUT_WR)
        self._end()

    def _target_failed(self, error: OSError) -> None:
        """The target takes no more; what it has sent before still goes the other way."""
        self._exchange.note(self._target_side, error)
        self._end()

    def _end(self) -> None:
        self.ended = True
        self._exchange.direction_ended()


async def _send_all(loop: asyncio.AbstractEventLoop, sock: socket.socket, data: bytes) -> None:
    """Send everything.  The proactor's ``sock_sendall`` sends once, and returns how much that was:
    Windows takes all of it, but Wine less when the other direction ends meanwhile."""
    rest = memoryview(data)
    while rest:
        sent: int | None = await loop.sock_sendall(sock, rest)  # type: ignore[func-returns-value]
        rest = rest[len(rest) if sent is None else sent :]
