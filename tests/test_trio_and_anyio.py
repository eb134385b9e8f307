"""The examples for trio and anyio: a redirected connection through each, and what may pend."""

import contextlib
import importlib
import math
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from loops import drive, pending
from support import ORIGINAL, TIMEOUT, accept, address_of, listen, read_all, running

import wfpioctl
from wfpioctl import context, overlapped
from wfpioctl.simulator import Connection, Engine, RecordsSet, Scripted, Step

trio = pytest.importorskip("trio")
anyio = pytest.importorskip("anyio")

# Not only Linux has them, but the Windows Pythons of tools/wine.py do not: trio needs cffi there.
pytestmark = pytest.mark.linux_program

EXAMPLES = Path(__file__).parent.parent / "examples"
HANDLE = 4321

# What runs each example's coroutines.
GROUNDS = {
    "trio": ("trio_proxy", "trio"),
    "anyio on asyncio": ("anyio_proxy", "asyncio"),
    "anyio on trio": ("anyio_proxy", "trio"),
}


class Ground:
    def __init__(self, example: ModuleType, backend: str) -> None:
        self.example = example
        self.backend = backend

    def run(self, function: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> Any:
        return anyio.run(function, *args, backend=self.backend)

    @contextlib.asynccontextmanager
    async def proxy(self) -> AsyncIterator[tuple[str, int]]:
        """The example's proxy, while the block lasts; its address."""
        if self.example.__name__ == "trio_proxy":
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            sock = listener.socket
            serve: tuple[Any, ...] = trio.serve_listeners, self.example.handle, [listener]
        else:
            listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
            sock = listener.extra(anyio.abc.SocketAttribute.raw_socket)
            serve = listener.serve, self.example.handle
        async with listener, anyio.create_task_group() as tasks:
            tasks.start_soon(*serve)
            yield address_of(sock)
            tasks.cancel_scope.cancel()


@pytest.fixture(params=list(GROUNDS.values()), ids=list(GROUNDS))
def ground(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Ground:
    monkeypatch.syspath_prepend(EXAMPLES)
    example, backend = request.param
    return Ground(importlib.import_module(example), backend)


def original_destination(connection: Connection) -> bytes:
    return context.encode(context.OriginalDestination(connection.destination), "wfpsampler")


def test_a_redirected_connection_reaches_its_destination(ground: Ground) -> None:
    def app() -> bytes:
        with socket.create_connection(ORIGINAL, TIMEOUT) as sock:
            sock.sendall(b"to")
            sock.shutdown(socket.SHUT_WR)
            return read_all(sock)

    def echo() -> None:
        with accept(destination) as sock:
            sock.sendall(read_all(sock) + b" and fro")

    async def main() -> bytes:
        async with ground.proxy() as proxy:
            engine.add_driver("A", proxy=proxy, match=ORIGINAL, context=original_destination)
            answer: bytes = await anyio.to_thread.run_sync(app)
            return answer

    with Engine() as engine, listen() as destination, running(echo):
        engine.route(ORIGINAL, address_of(destination))
        assert ground.run(main) == b"to and fro"
        assert [event.code for event in engine.trace if isinstance(event, RecordsSet)] == [0]


def test_a_connection_that_nobody_redirected_is_closed(ground: Ground) -> None:
    async def main() -> bytes:
        async with ground.proxy() as proxy:

            def app() -> bytes:
                with socket.create_connection(proxy, TIMEOUT) as sock:
                    return read_all(sock)

            answer: bytes = await anyio.to_thread.run_sync(app)
            return answer

    with Engine():
        assert ground.run(main) == b""


def test_at_once_needs_neither_loop_nor_thread(ground: Ground) -> None:
    with Scripted(records=b"records"):
        operation = overlapped.query_redirect_records(HANDLE)
        assert drive(ground.example.answer(operation)) == b"records"


@pytest.mark.parametrize("delay", [0, 0.01])
def test_pending_is_awaited(ground: Ground, delay: float) -> None:
    async def main() -> Any:
        return await ground.example.answer(overlapped.query_redirect_records(HANDLE))

    steps = [
        Step(code=122, returned=9000, pending=True, delay=delay),
        Step(data=bytes(9000), pending=True, delay=delay),
    ]
    with Scripted(steps=steps):
        assert ground.run(main) == bytes(9000)


def test_errors_are_raised(ground: Ground) -> None:
    async def main() -> None:
        await ground.example.answer(overlapped.query_redirect_records(HANDLE))

    steps = [Step(code=10057, pending=True)]
    with Scripted(steps=steps), pytest.raises(wfpioctl.NotConnectedError):
        ground.run(main)


def test_cancellation_cancels_the_operation(ground: Ground) -> None:
    async def main() -> None:
        with anyio.move_on_after(0.02) as scope:
            await ground.example.answer(overlapped.query_redirect_records(HANDLE))
        assert scope.cancelled_caught
        assert pending() == 0

    with Scripted(steps=[Step(pending=True, delay=math.inf)]):
        ground.run(main)
