"""Nothing grows: references, blocks, the C heap, descriptors or handles, threads.

Each public function has a case for its success and one for its failure; a new public name without
a case fails the first test.
"""

import asyncio
import contextlib
import gc
import inspect
import math
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator
from types import ModuleType

import pytest
from loops import LoopFactory, loop_params
from relay_support import every_loop, redirect_to, relaying
from support import ORIGINAL, accept, address_of, listen, open_handles

import wfpioctl
from wfpioctl import aio, context, datagram, overlapped
from wfpioctl.simulator import Engine, Scripted, Step

CALLS = 300  # of each case, before and while counting
ROUNDS = 5
NOISE = CALLS // 3  # blocks; a leak of one a call is three times that

RECORDS = bytes(range(128))
CONTEXT = context.encode(context.OriginalDestination(("192.0.2.1", 80)), "wfpsampler")

Case = Callable[[], object]


def failing(call: Case, error: type[BaseException] = wfpioctl.RedirectError) -> Case:
    def case() -> None:
        with pytest.raises(error):
            call()

    return case


def connect_and_close() -> None:
    redirect = wfpioctl.Redirect(RECORDS, CONTEXT)
    with listen() as listener, wfpioctl.create_connection(redirect, address_of(listener), 5):
        accept(listener).close()


def connect_in_vain() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))  # bound, but nobody listens
        wfpioctl.create_connection(wfpioctl.Redirect(RECORDS), sock.getsockname(), 5)


def make_and_close() -> None:
    make = wfpioctl.socket_factory(wfpioctl.Redirect(RECORDS))
    make((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 1))).close()


def make_in_vain() -> None:
    make = wfpioctl.socket_factory(wfpioctl.Redirect(b""))
    make((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 1)))


def at_once(coroutine: Coroutine[object, object, object]) -> object:
    """Run a coroutine that ends without ever touching a loop."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits for something")


async def open_and_close() -> None:
    redirect = wfpioctl.Redirect(RECORDS, CONTEXT)
    with listen() as listener:
        _, writer = await aio.open_connection(redirect, *address_of(listener))
        writer.close()
        await writer.wait_closed()
        transport, _ = await aio.create_connection(
            redirect, asyncio.Protocol, *address_of(listener)
        )
        transport.close()


async def open_in_vain() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        redirect = wfpioctl.Redirect(RECORDS)
        with pytest.raises(OSError):  # noqa: PT011 - which, depends on the system
            await aio.open_connection(redirect, *sock.getsockname())
        with pytest.raises(OSError):  # noqa: PT011
            await aio.create_connection(redirect, asyncio.Protocol, *sock.getsockname())


async def serve_and_stop() -> None:
    server = await aio.start_redirect_server(lambda *_: None, "127.0.0.1", 0)
    server.close()
    await server.wait_closed()


async def serve_in_vain() -> None:
    with listen() as taken, pytest.raises(OSError):  # noqa: PT011
        await aio.start_redirect_server(lambda *_: None, *address_of(taken))


async def bind_and_close() -> None:
    transport, _ = await datagram.create_endpoint(
        datagram.MessageProtocol, ("127.0.0.1", 0), redirect_metadata=False
    )
    transport.close()


async def bind_in_vain() -> None:
    with pytest.raises(OSError):  # noqa: PT011
        await datagram.create_endpoint(datagram.MessageProtocol, ("203.0.113.1", 9))


def send_and_receive() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(5)
        for _ in range(2):
            datagram.sendmsg(sock, b"data", sock.getsockname())
        assert datagram.recvmsg(sock, 100).data == b"data"
        assert datagram.recvmsg_into(sock, bytearray(100)).size == 4


def receive_in_vain() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            datagram.recvmsg(sock, 100)
        with pytest.raises(BlockingIOError):
            datagram.recvmsg_into(sock, bytearray(100))
        with pytest.raises(ValueError, match="records"):
            datagram.sendmsg(sock, b"data", ("127.0.0.1", 9), records=b"")


def enable() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        datagram.enable_redirect_metadata(sock)


def completed(start: Callable[..., object], *arguments: object) -> Case:
    def case() -> None:
        with start(*arguments) as operation:  # type: ignore[attr-defined]
            operation.result(5)

    return case


SUCCESS: dict[str, Case] = {
    "query_redirect_records": lambda: wfpioctl.query_redirect_records(5),
    "query_redirect_context": lambda: wfpioctl.query_redirect_context(5),
    "query_redirect_records_into": lambda: wfpioctl.query_redirect_records_into(5, bytearray(128)),
    "query_redirect_context_into": lambda: wfpioctl.query_redirect_context_into(
        5, bytearray(8192), 4096
    ),
    "set_redirect_records": lambda: wfpioctl.set_redirect_records(5, RECORDS),
    "transfer_redirect_records": lambda: wfpioctl.transfer_redirect_records(5, 6),
    "read_redirect": lambda: wfpioctl.read_redirect(5),
    "create_connection": connect_and_close,
    "socket_factory": make_and_close,
    "overlapped.query_redirect_records": completed(overlapped.query_redirect_records, 5),
    "overlapped.query_redirect_context": completed(overlapped.query_redirect_context, 5),
    "overlapped.set_redirect_records": completed(overlapped.set_redirect_records, 5, RECORDS),
    "overlapped.counters": overlapped.counters,
    "overlapped.sleep": lambda: overlapped.sleep(0),
    "aio.query_redirect_records": lambda: at_once(aio.query_redirect_records(5)),
    "aio.query_redirect_context": lambda: at_once(aio.query_redirect_context(5)),
    "aio.set_redirect_records": lambda: at_once(aio.set_redirect_records(5, RECORDS)),
    "aio.transfer_redirect_records": lambda: at_once(aio.transfer_redirect_records(5, 6)),
    "aio.read_redirect": lambda: at_once(aio.read_redirect(5)),
    "aio.create_connection": lambda: asyncio.run(open_and_close()),
    "aio.open_connection": lambda: asyncio.run(open_and_close()),
    "aio.start_redirect_server": lambda: asyncio.run(serve_and_stop()),
    "datagram.create_endpoint": lambda: asyncio.run(bind_and_close()),
    "datagram.enable_redirect_metadata": enable,
    "datagram.recvmsg": send_and_receive,
    "datagram.recvmsg_into": send_and_receive,
    "datagram.sendmsg": send_and_receive,
}

FAILURE: dict[str, Case] = {
    "query_redirect_records": failing(lambda: wfpioctl.query_redirect_records(-1)),
    "query_redirect_context": failing(lambda: wfpioctl.query_redirect_context("5"), TypeError),  # type: ignore[arg-type]
    "query_redirect_records_into": failing(
        lambda: wfpioctl.query_redirect_records_into(5, bytearray(127)),
        wfpioctl.InsufficientBufferError,
    ),
    "query_redirect_context_into": failing(
        lambda: wfpioctl.query_redirect_context_into(5, bytearray(8), 9), ValueError
    ),
    "set_redirect_records": failing(lambda: wfpioctl.set_redirect_records(5, b""), ValueError),
    "transfer_redirect_records": failing(lambda: wfpioctl.transfer_redirect_records(5, -1)),
    "read_redirect": failing(lambda: wfpioctl.read_redirect(-2), ValueError),
    "create_connection": failing(connect_in_vain, OSError),
    "socket_factory": failing(make_in_vain, ValueError),
    "overlapped.query_redirect_records": failing(lambda: overlapped.query_redirect_records(-1)),
    "overlapped.query_redirect_context": failing(
        lambda: overlapped.query_redirect_context(2**80), OverflowError
    ),
    "overlapped.set_redirect_records": failing(
        lambda: overlapped.set_redirect_records(5, b""), ValueError
    ),
    "overlapped.counters": failing(lambda: overlapped.counters(1), TypeError),  # type: ignore[call-arg]
    "overlapped.sleep": failing(lambda: overlapped.sleep(-1), ValueError),
    "aio.query_redirect_records": failing(lambda: at_once(aio.query_redirect_records(-1))),
    "aio.query_redirect_context": failing(lambda: at_once(aio.query_redirect_context(-1))),
    "aio.set_redirect_records": failing(
        lambda: at_once(aio.set_redirect_records(5, b"")), ValueError
    ),
    "aio.transfer_redirect_records": failing(lambda: at_once(aio.transfer_redirect_records(5, -1))),
    "aio.read_redirect": failing(lambda: at_once(aio.read_redirect(-1))),
    "aio.create_connection": lambda: asyncio.run(open_in_vain()),
    "aio.open_connection": lambda: asyncio.run(open_in_vain()),
    "aio.start_redirect_server": lambda: asyncio.run(serve_in_vain()),
    "datagram.create_endpoint": lambda: asyncio.run(bind_in_vain()),
    "datagram.enable_redirect_metadata": failing(
        lambda: datagram.enable_redirect_metadata("5"),  # type: ignore[arg-type]
        TypeError,
    ),
    "datagram.recvmsg": receive_in_vain,
    "datagram.recvmsg_into": receive_in_vain,
    "datagram.sendmsg": receive_in_vain,
}

MODULES: dict[str, ModuleType] = {
    "": wfpioctl,
    "overlapped.": overlapped,
    "aio.": aio,
    "datagram.": datagram,
}

# These open sockets or loops: the operating system's counts tell more of them than Python's do.
SLOW_CASES = {
    name
    for name in SUCCESS
    if name.endswith(("create_connection", "open_connection", "server"))
    or name.startswith("datagram.")
}


def public_functions() -> set[str]:
    return {
        prefix + name
        for prefix, module in MODULES.items()
        for name in module.__all__
        if inspect.isroutine(getattr(module, name))
    }


@pytest.mark.parametrize("cases", [SUCCESS, FAILURE], ids=["success", "failure"])
def test_every_public_function_has_a_leak_test(cases: dict[str, Case]) -> None:
    assert set(cases) == public_functions()


@pytest.fixture(params=["scripted", "growing", "failing"])
def provider(request: pytest.FixtureRequest) -> Iterator[str]:
    """A provider that answers at once, one whose answers make the buffer grow, one that fails."""
    if request.param == "scripted":
        script = Scripted(RECORDS, CONTEXT)
    elif request.param == "growing":
        script = Scripted(bytes(100_000), bytes(100_000))
    else:
        script = Scripted(steps=[Step(10050)])
    with script:
        yield request.param


def count() -> int:
    """References where the interpreter counts them (a debug build), else allocated blocks."""
    gc.collect()
    references = getattr(sys, "gettotalrefcount", None)
    return int(references() if references else sys.getallocatedblocks())


def grows(case: Case) -> bool:
    """Whether calls leave something each time: what only happens once is no leak."""
    for _ in range(CALLS):
        case()
    for _ in range(ROUNDS):
        before = count()
        for _ in range(CALLS):
            case()
        if count() - before < NOISE:
            return False
    return True


def calls_of(cases: dict[str, Case]) -> list[object]:
    return [pytest.param(case, id=name) for name, case in cases.items() if name not in SLOW_CASES]


@pytest.mark.parametrize("case", calls_of(SUCCESS))
def test_a_call_leaves_nothing(case: Case, provider: str) -> None:
    def call() -> None:
        with contextlib.suppress(wfpioctl.RedirectError):
            case()

    assert not grows(call)


@pytest.mark.parametrize("case", calls_of(FAILURE))
def test_a_call_with_bad_arguments_leaves_nothing(case: Case) -> None:
    with Scripted(RECORDS, CONTEXT):
        assert not grows(case)


def test_a_redirected_connection_leaves_nothing() -> None:
    with listen() as listener, Engine(trace_limit=10) as engine:
        engine.add_driver("A", proxy=address_of(listener), match=ORIGINAL, context=CONTEXT)

        def connection() -> None:
            with (
                socket.create_connection(ORIGINAL, 5),
                accept(listener) as accepted,
                socket.socket() as outbound,
            ):
                wfpioctl.transfer_redirect_records(accepted, outbound)

        assert not grows(connection)
        assert engine.flow_count < CALLS


def test_simulators_leave_nothing() -> None:
    def life() -> None:
        with Scripted(steps=[Step(data=RECORDS)]) as script:
            wfpioctl.query_redirect_records(5)
            assert len(script.calls) == 1
        with Engine():
            pass

    assert not grows(life)


def leaves_open(case: Case, times: int = 200) -> bool:
    """Whether each round of calls leaves a handle or a descriptor."""
    case()
    for _ in range(ROUNDS):
        gc.collect()
        before = open_handles()
        for _ in range(times):
            case()
        gc.collect()
        if open_handles() <= before:
            return False
    return True


class TestHandles:
    """Handles on Windows, which are events, threads and sockets too; descriptors elsewhere."""

    @pytest.mark.parametrize("cases", [SUCCESS, FAILURE], ids=["success", "failure"])
    @pytest.mark.parametrize("name", sorted(SUCCESS))
    def test_a_call_leaves_none_open(self, name: str, cases: dict[str, Case]) -> None:
        real = name.startswith("datagram.")  # its data is what no script has
        with contextlib.nullcontext() if real else Scripted(RECORDS, CONTEXT):
            assert not leaves_open(cases[name], 20 if name in SLOW_CASES else 200)

    @pytest.mark.parametrize("completion", [None, lambda _: None], ids=["event", "routine"])
    @pytest.mark.parametrize("ending", ["success", "error", "cancelled", "aborted"])
    def test_an_operation_leaves_none_open(
        self, ending: str, completion: Callable[[object], object] | None
    ) -> None:
        code, delay = {"success": (0, 0.0), "error": (10057, 0.0)}.get(ending, (0, math.inf))

        def case() -> None:
            operation = overlapped.query_redirect_records(5, completion=completion)
            assert operation.event
            if ending == "cancelled":
                operation.cancel()
            elif ending == "aborted":
                script.abort(5)
            with contextlib.suppress(wfpioctl.RedirectError):
                operation.result(5)
            assert completion is None or overlapped.sleep(5) == 1

        with Scripted(steps=[Step(code, data=RECORDS, pending=True, delay=delay)]) as script:
            assert not leaves_open(case)

    @pytest.mark.filterwarnings("ignore:.*dropped while pending:ResourceWarning")
    def test_a_dropped_operation_leaves_none_open(self) -> None:
        def drop() -> None:
            assert overlapped.query_redirect_records(5).event

        with Scripted(steps=[Step(pending=True, delay=math.inf)]):
            assert not leaves_open(drop)

    @pytest.mark.parametrize("cancelled", [False, True])
    @pytest.mark.parametrize("new_loop", loop_params())
    def test_an_awaited_operation_leaves_none_open(
        self, new_loop: LoopFactory, cancelled: bool
    ) -> None:
        async def wait() -> None:
            task = asyncio.ensure_future(aio.query_redirect_records(5))
            if not cancelled:
                assert await task == RECORDS
                return
            await asyncio.sleep(0)  # it starts
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        step = Step(data=RECORDS, pending=True, delay=math.inf if cancelled else 0.0)
        with Scripted(steps=[step]), contextlib.closing(new_loop()) as loop:
            assert not leaves_open(lambda: loop.run_until_complete(wait()))

    @every_loop
    def test_a_connection_of_the_relay_leaves_none_open(self, new_loop: LoopFactory) -> None:
        with Engine() as engine, listen() as origin, relaying(new_loop) as relay:
            redirect_to(relay, engine, address_of(origin))

            def connection() -> None:
                with socket.create_connection(ORIGINAL, 5) as app, accept(origin) as server:
                    app.sendall(b"question")
                    assert server.recv(100) == b"question"
                    server.sendall(b"answer")
                    assert app.recv(100) == b"answer"
                relay.settled()

            assert not leaves_open(connection, 50)


@pytest.mark.linux_program  # psleak builds on psutil, which is no pure Python
class TestProcess:
    """The C heap, descriptors or handles, and threads, as the operating system counts them."""

    @pytest.mark.parametrize("name", sorted(SUCCESS))
    def test_the_process_does_not_grow(self, name: str) -> None:
        psleak = pytest.importorskip("psleak", reason="psleak is not installed")

        class Leak(psleak.MemoryLeakTestCase):  # type: ignore[misc, name-defined]
            times = 20 if name in SLOW_CASES else 200

            def runTest(self) -> None:
                for case in SUCCESS, FAILURE:
                    if name.startswith("datagram."):  # real sockets, whose data no script has
                        self.execute(case[name])
                    else:
                        with Scripted(bytes(100_000) if case is SUCCESS else RECORDS, CONTEXT):
                            self.execute(case[name])

        result = Leak().run()
        assert result is not None
        assert result.wasSuccessful(), result.failures + result.errors
