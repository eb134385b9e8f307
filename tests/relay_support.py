"""A relay in a thread of its own, in front of an origin, for tests with blocking sockets."""

import asyncio
import contextlib
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import pytest
from support import ORIGINAL, TIMEOUT, address_of, listen, running

from wfpioctl import context
from wfpioctl.relay import Counters, Relay
from wfpioctl.simulator import Driver, Engine

T = TypeVar("T")

BODY = bytes(range(256)) * 400
"""What http() serves."""


class AwaitingLoop(asyncio.SelectorEventLoop):
    """Cannot watch descriptors, as the proactor: the relay takes the same way as on Windows."""

    def add_reader(self, *args: Any) -> Any:
        raise NotImplementedError

    add_writer = add_reader


def _loops() -> Iterator[Any]:
    if sys.platform == "win32":
        yield pytest.param(asyncio.ProactorEventLoop, id="proactor")
    yield pytest.param(asyncio.SelectorEventLoop, id="selector")
    yield pytest.param(AwaitingLoop, id="awaiting")
    with contextlib.suppress(ImportError):
        import uvloop

        yield pytest.param(uvloop.new_event_loop, marks=pytest.mark.linux_program, id="uvloop")


every_loop = pytest.mark.parametrize("new_loop", [*_loops()])


class Running:
    """A Relay on an event loop in another thread."""

    def __init__(self, relay: Relay, loop: asyncio.AbstractEventLoop) -> None:
        self.relay = relay
        self.loop = loop

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(TIMEOUT)

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.relay.address[:2]
        return host, port

    @property
    def counters(self) -> Counters:
        async def look() -> Counters:
            return self.relay.counters

        return self.call(look())

    def settled(self, active: int = 0) -> Counters:
        """The counters, as soon as so many connections are left."""
        return self.when(lambda counters: counters.active == active)

    def when(self, condition: Callable[[Counters], bool]) -> Counters:
        deadline = time.monotonic() + TIMEOUT
        while not condition(counters := self.counters):
            assert time.monotonic() < deadline, counters
        return counters


@contextlib.contextmanager
def relaying(
    new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop, **options: Any
) -> Iterator[Running]:
    """Run a relay; afterwards every connection must be accounted for, and no callback failed."""
    complaints: list[dict[str, Any]] = []
    loop = new_loop()
    loop.set_exception_handler(lambda loop, context: complaints.append(context))
    relay = Relay(**options)

    def run() -> None:
        asyncio.set_event_loop(loop)
        loop.run_forever()

    with contextlib.closing(loop), running(run):
        try:
            there = Running(relay, loop)
            there.call(relay.start())
            try:
                yield there
            finally:
                there.call(relay.drain(0))
        finally:
            loop.call_soon_threadsafe(loop.stop)
    total = relay.counters
    assert not complaints
    assert total.active == 0
    assert total.accepted == total.finished + total.failed + total.refused.total()
    assert total.failed == total.errors.total()


def blob(destination: tuple[str, int] = ORIGINAL) -> bytes:
    return context.encode(context.OriginalDestination(destination), "wfpsampler")


def redirect_to(relay: Running, engine: Engine, origin: tuple[str, int]) -> Driver:
    """Let connects to ORIGINAL pass the relay, and what the relay sends there reach the origin."""
    engine.route(ORIGINAL, origin)
    return engine.add_driver("A", proxy=relay.address, match=ORIGINAL, context=blob())


@contextlib.contextmanager
def serving(serve: Callable[[socket.socket], object]) -> Iterator[tuple[str, int]]:
    """An origin: calls ``serve`` in a thread for each connection that comes."""
    closed = threading.Event()

    def guarded(sock: socket.socket) -> None:
        with sock, contextlib.suppress(ConnectionError):
            sock.settimeout(TIMEOUT)
            serve(sock)

    def accept_all() -> None:
        threads = []
        while True:
            sock, _ = listener.accept()
            if closed.is_set():
                sock.close()
                break
            threads.append(threading.Thread(target=guarded, args=(sock,), daemon=True))
            threads[-1].start()
        for thread in threads:
            thread.join(TIMEOUT)

    with listen(backlog=1024) as listener:
        listener.settimeout(None)
        address = address_of(listener)
        with running(accept_all):
            try:
                yield address
            finally:
                closed.set()
                with socket.socket() as last:
                    last.connect(address)


def echo(sock: socket.socket) -> None:
    while data := sock.recv(1 << 16):
        sock.sendall(data)


def http(sock: socket.socket) -> None:
    """An HTTP/1.1 origin with keep-alive and one body."""
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()
    with sock.makefile("rb") as lines:
        while lines.readline():
            while lines.readline().strip():
                pass
            sock.sendall(head + BODY)


def program(name: str) -> str:
    """The program's path; without it the test is skipped."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"no {name} here")
    return path
