"""W55: a proxy that does not SET is redirected to itself, and the engine ends that clearly.

And what merely looks like it is none: many connections at once.
"""

import asyncio
import contextlib
import errno
import queue
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import ORIGINAL, TIMEOUT, address_of, listen, read_all, running

import wfpioctl
from wfpioctl.simulator import Connected, Engine, RedirectLoopError

Handle = Callable[[socket.socket], None]


@contextlib.contextmanager
def threaded_proxy(handle: Handle) -> Iterator[tuple[str, int]]:
    """A proxy that gives each connection a thread, in which `handle` does what it does."""
    threads: list[threading.Thread] = []

    def serve() -> None:
        while True:
            accepted, _ = listener.accept()
            if done.is_set():
                accepted.close()
                return
            thread = threading.Thread(target=handle, args=(accepted,), daemon=True)
            threads.append(thread)
            thread.start()

    done = threading.Event()
    with listen(backlog=1000) as listener, running(serve):
        listener.settimeout(None)
        address = address_of(listener)
        try:
            yield address
        finally:
            done.set()
            with socket.socket() as last:
                super(socket.socket, last).connect(address)
    for thread in threads:
        thread.join(TIMEOUT)


class Catch:
    """Handlers that forget SET; what their connects raise ends up in `errors`."""

    def __init__(self) -> None:
        self.errors: queue.SimpleQueue[OSError] = queue.SimpleQueue()

    def connect_and_wait(self, accepted: socket.socket) -> None:
        """Go on to ORIGINAL without SET, and wait until the other side is closed."""
        with accepted:
            try:
                with socket.create_connection(ORIGINAL, TIMEOUT) as outbound:
                    read_all(outbound)
            except OSError as error:
                self.errors.put(error)

    def ask_and_connect(self, accepted: socket.socket) -> None:
        assert wfpioctl.read_redirect(accepted) is not None
        self.connect_and_wait(accepted)

    def ask_here_and_connect_elsewhere(self, accepted: socket.socket) -> None:
        assert wfpioctl.read_redirect(accepted) is not None
        thread = threading.Thread(target=self.connect_and_wait, args=(accepted,))
        thread.start()
        thread.join(TIMEOUT)


@pytest.fixture
def catch() -> Catch:
    return Catch()


def hops(engine: Engine) -> list[int]:
    return [event.hop for event in engine.trace if isinstance(event, Connected)]


def check(error: OSError, proxy: tuple[str, int]) -> None:
    assert isinstance(error, RedirectLoopError)
    assert error.errno == errno.ELOOP
    host, port = ORIGINAL
    assert f"connect to {host}:{port}: driver 'A' redirected its own proxy again" in str(error)
    assert f"the proxy at {proxy[0]}:{proxy[1]} does not set the redirect records" in str(error)


@pytest.mark.parametrize("max_hops", [1, 16])
def test_W55_threaded_proxy_that_asks_and_forgets_set(catch: Catch, max_hops: int) -> None:
    with Engine(max_hops=max_hops) as engine, threaded_proxy(catch.ask_and_connect) as proxy:
        engine.add_driver("A", proxy=proxy, match=ORIGINAL)
        with socket.create_connection(ORIGINAL, TIMEOUT) as app:
            assert read_all(app) == b""
        check(catch.errors.get(timeout=TIMEOUT), proxy)
        assert hops(engine) == [*range(1, max_hops + 2)]
        last = [event for event in engine.trace if isinstance(event, Connected)][-1]
        assert last.target is None
        assert "does not set" in last.error


@pytest.mark.parametrize("handler", ["connect_and_wait", "ask_here_and_connect_elsewhere"])
def test_W55_threaded_proxy_in_which_no_hop_can_be_told_from_the_next(
    engine: Engine, catch: Catch, handler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It never asks, or it asks in another thread than it connects in."""
    monkeypatch.setattr(engine, "_flows_of_a_loop", 60)
    with threaded_proxy(getattr(catch, handler)) as proxy:
        engine.add_driver("A", proxy=proxy, match=ORIGINAL)
        with socket.create_connection(ORIGINAL, TIMEOUT) as app:
            assert read_all(app) == b""
        check(catch.errors.get(timeout=TIMEOUT), proxy)
        assert len(hops(engine)) == 61


LOOPS: list[Any] = [pytest.param(asyncio.SelectorEventLoop, id="selector")]
if sys.platform == "win32":
    LOOPS.append(pytest.param(asyncio.ProactorEventLoop, id="proactor"))


@pytest.mark.parametrize("asks", [True, False])
@pytest.mark.parametrize("loop_factory", LOOPS)
def test_W55_asyncio_proxy_that_forgets_set(
    engine: Engine, loop_factory: Any, asks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_flows_of_a_loop", 60)
    errors: list[OSError] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if asks:
                assert wfpioctl.read_redirect(writer.get_extra_info("socket")) is not None
            onward, other = await asyncio.open_connection(*ORIGINAL)
            await onward.read()
            other.close()
            await other.wait_closed()
        except OSError as error:
            errors.append(error)
        finally:
            writer.close()

    async def main() -> tuple[str, int]:
        async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
            proxy = server.sockets[0].getsockname()
            engine.add_driver("A", proxy=proxy, match=ORIGINAL)
            reader, writer = await asyncio.open_connection(*ORIGINAL)
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()
            return proxy

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        proxy = runner.run(asyncio.wait_for(main(), TIMEOUT))
    check(errors[0], proxy)
    assert len(hops(engine)) == (17 if asks else 61)


@pytest.mark.linux_program
def test_W55_limit_lies_under_that_of_open_files() -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        for limit in (256, 1024, 4096):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            assert 50 <= Engine()._flows_of_a_loop < limit // 2
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_W55_is_no_matter_for_a_proxy_that_sets(engine: Engine) -> None:
    """Not even when it goes on to the same destination more often than any loop would."""

    def handle(accepted: socket.socket) -> None:
        with accepted:
            redirect = wfpioctl.read_redirect(accepted)
            assert redirect is not None
            for _ in range(40):
                wfpioctl.create_connection(redirect, ORIGINAL, TIMEOUT).close()

    with listen(backlog=1000) as end, threaded_proxy(handle) as proxy:
        engine.add_driver("A", proxy=proxy, match=ORIGINAL)
        engine.route(ORIGINAL, address_of(end))
        with socket.create_connection(ORIGINAL, TIMEOUT) as app:
            assert read_all(app) == b""
    assert max(hops(engine)) == 1


def test_connections_one_after_another_are_no_loop(engine: Engine, listener: Any) -> None:
    """An app that comes back again and again to a proxy that answers by itself."""
    engine.add_driver("A", proxy=address_of(listener), match=ORIGINAL)
    for _ in range(300):
        with socket.create_connection(ORIGINAL, TIMEOUT), listener.accept()[0] as accepted:
            assert wfpioctl.read_redirect(accepted) is not None
    assert max(hops(engine)) == 1


# Only the system's own kind of loop: Windows' select() takes 512 sockets.
@pytest.mark.parametrize("loop_factory", LOOPS[-1].values, ids=["default"])
def test_a_burst_of_connections_is_no_loop(engine: Engine, loop_factory: Any) -> None:
    """300 connects at once, all made before the proxy sees the first, through SET and back."""
    count = 300

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(1))
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        redirect = wfpioctl.read_redirect(writer.get_extra_info("socket"))
        assert redirect is not None
        sock = wfpioctl.socket_factory(redirect)((socket.AF_INET, socket.SOCK_STREAM, 0))
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ORIGINAL)
        onward, other = await asyncio.open_connection(sock=sock)
        other.write(await reader.readexactly(1))
        writer.write(await onward.readexactly(1))
        await writer.drain()
        for each in (other, writer):
            each.close()
            await each.wait_closed()

    async def app() -> None:
        reader, writer = await asyncio.open_connection(*ORIGINAL)
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        writer.close()
        await writer.wait_closed()

    async def main() -> None:
        async with (
            await asyncio.start_server(echo, "127.0.0.1", 0, backlog=1000) as end,
            await asyncio.start_server(relay, "127.0.0.1", 0, backlog=1000) as proxy,
        ):
            engine.add_driver("A", proxy=proxy.sockets[0].getsockname(), match=ORIGINAL)
            engine.route(ORIGINAL, end.sockets[0].getsockname())
            await asyncio.gather(*[app() for _ in range(count)])

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(asyncio.wait_for(main(), 2 * TIMEOUT))
    assert hops(engine) == [1] * 2 * count
