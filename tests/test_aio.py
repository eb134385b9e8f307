"""The coroutines, on every event loop of the system: results, ends, connections, servers."""

import asyncio
import contextlib
import gc
import math
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, NamedTuple

import pytest
from loops import Runner, drive, pending
from support import (
    ORIGINAL,
    ORIGINAL6,
    TIMEOUT,
    Redirected,
    accept,
    address_of,
    every_dialect,
    listen,
    needs_ipv6,
    running,
)

import wfpioctl
from wfpioctl import aio, context, overlapped
from wfpioctl.errors import CODES
from wfpioctl.simulator import Engine, RecordsSet, Scripted, Step
from wfpioctl.simulator.records import encode_records

HANDLE = 4321  # any handle will do for a script

NEVER = Step(data=b"never", pending=True, delay=math.inf)


class Function(NamedTuple):
    """One of the three functions, in its synchronous and its asyncio form."""

    synchronous: Callable[..., Any]
    coroutine: Callable[..., Coroutine[Any, Any, Any]]
    args: tuple[bytes, ...]

    def call(self, sock: Any) -> Any:
        return self.synchronous(sock, *self.args)

    def start(self, sock: Any) -> Coroutine[Any, Any, Any]:
        return self.coroutine(sock, *self.args)


FUNCTIONS = [
    Function(wfpioctl.query_redirect_records, aio.query_redirect_records, ()),
    Function(wfpioctl.query_redirect_context, aio.query_redirect_context, ()),
    Function(wfpioctl.set_redirect_records, aio.set_redirect_records, (b"records",)),
]

every_function = pytest.mark.parametrize(
    "function", FUNCTIONS, ids=[function.synchronous.__name__ for function in FUNCTIONS]
)


async def until_pending(count: int) -> None:
    """Let other tasks run until so many operations pend."""
    async with asyncio.timeout(TIMEOUT):
        while pending() != count:
            await asyncio.sleep(0)


def outcome(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except wfpioctl.RedirectError as error:
        return type(error), str(error), error.winerror, error.required_size


class TestAtOnce:
    """An operation that completes at once never touches a loop: there is none here."""

    @every_dialect
    def test_on_the_engine(self, redirected: Redirected, tcp: socket.socket) -> None:
        accepted = redirected.accepted
        records = drive(aio.query_redirect_records(accepted))
        assert records == wfpioctl.query_redirect_records(accepted)
        assert drive(aio.query_redirect_context(accepted)) == b"context"
        assert drive(aio.read_redirect(accepted)) == wfpioctl.read_redirect(accepted)
        assert drive(aio.set_redirect_records(tcp, records)) is None
        with socket.socket() as other:
            assert drive(aio.transfer_redirect_records(accepted, other)) == len(records)
        assert isinstance(redirected.engine.trace[-1], RecordsSet)

    @every_function
    @pytest.mark.parametrize("code", [code for code in (*CODES, 1, 0xFFFFFFFF) if code != 997])
    def test_W30_errors_are_the_synchronous_ones(self, function: Function, code: int) -> None:
        with Scripted(steps=[Step(code=code)]):
            assert outcome(lambda: drive(function.start(HANDLE))) == outcome(
                lambda: function.call(HANDLE)
            )

    def test_W15_growth(self) -> None:
        with Scripted(steps=[Step(code=122, returned=9000), Step(data=bytes(9000))]):
            assert drive(aio.query_redirect_records(HANDLE)) == bytes(9000)

    @every_dialect
    def test_W17_not_redirected(self, engine: Engine, pair: Any) -> None:
        assert drive(aio.read_redirect(pair.server)) is None

    @every_dialect
    def test_W16_no_context(self, engine: Engine, listener: socket.socket) -> None:
        engine.add_driver("A", proxy=address_of(listener))
        with socket.create_connection(ORIGINAL, TIMEOUT), accept(listener) as accepted:
            redirect = drive(aio.read_redirect(accepted))
            assert redirect == wfpioctl.read_redirect(accepted)
            assert redirect.context == b""

    def test_other_failures_of_read_redirect_are_raised(self) -> None:
        for steps in [Step(code=10057)], [Step(data=b"r"), Step(code=10057)]:
            with Scripted(steps=steps), pytest.raises(wfpioctl.NotConnectedError):
                drive(aio.read_redirect(HANDLE))

    def test_empty_records_are_not_set(self) -> None:
        with Scripted(steps=[Step()]) as script:
            assert drive(aio.transfer_redirect_records(HANDLE, HANDLE)) == 0
            assert len(script.calls) == 1

    @every_function
    @pytest.mark.parametrize("bad", ["7", None, True, -2, 1 << 70, object()])
    def test_bad_sockets_are_refused_alike(self, function: Function, bad: Any) -> None:
        with pytest.raises((TypeError, ValueError, OverflowError)) as synchronous:
            function.call(bad)
        with pytest.raises(synchronous.type) as caught:
            drive(function.start(bad))
        assert str(caught.value) == str(synchronous.value)

    @every_function
    def test_W19_a_closed_socket(self, function: Function) -> None:
        closed = socket.socket()
        closed.close()
        with pytest.raises(wfpioctl.NotASocketError):
            drive(function.start(closed))


class TestPending:
    @every_function
    @pytest.mark.parametrize("delay", [0, 0.01])
    def test_is_awaited(self, run: Runner, function: Function, delay: float) -> None:
        with Scripted(steps=[Step(data=b"answer", pending=True, delay=delay)]) as script:
            assert run(function.start(HANDLE)) == (None if function.args else b"answer")
            assert len(script.calls) == 1

    @every_function
    @pytest.mark.parametrize("code", [995, 997, 1168, 10013, 10045, 10057])
    def test_W30_errors_are_the_synchronous_ones(
        self, run: Runner, function: Function, code: int
    ) -> None:
        with Scripted(steps=[Step(code=code)]):
            synchronous = outcome(lambda: function.call(HANDLE))
        with Scripted(steps=[Step(code=code, pending=True)]):
            assert outcome(lambda: run(function.start(HANDLE))) == synchronous

    def test_W15_growth(self, run: Runner) -> None:
        steps = [
            Step(code=122, returned=9000, pending=True, delay=0.01),
            Step(data=bytes(9000), pending=True, delay=0.01),
        ]
        with Scripted(steps=steps) as script:
            assert run(aio.query_redirect_records(HANDLE)) == bytes(9000)
            assert [call.capacity for call in script.calls] == [4096, 9000]

    def test_a_last_try_that_fails_at_once(self, run: Runner) -> None:
        steps = [Step(code=122, returned=5000, pending=True), Step(code=10057)]
        with Scripted(steps=steps), pytest.raises(wfpioctl.NotConnectedError):
            run(aio.query_redirect_records(HANDLE))

    def test_others_run_meanwhile(self, run: Runner) -> None:
        async def main() -> list[bytes]:
            task = asyncio.create_task(aio.query_redirect_records(HANDLE))
            await until_pending(1)
            first = await aio.query_redirect_context(HANDLE)
            assert not task.done()
            return [first, await task]

        steps = [Step(data=b"slow", pending=True, delay=0.3), Step(data=b"quick", pending=True)]
        with Scripted(steps=steps):
            assert run(main()) == [b"quick", b"slow"]

    def test_many_at_once(self, run: Runner) -> None:
        async def main() -> list[bytes]:
            return await asyncio.gather(*[aio.query_redirect_records(HANDLE) for _ in range(200)])

        steps = [Step(data=b"%d" % i, pending=True, delay=i % 7 / 1000) for i in range(200)]
        with Scripted(steps=steps):
            assert run(main()) == [b"%d" % i for i in range(200)]

    def test_transfer_and_read(self, run: Runner) -> None:
        with Scripted(steps=[Step(data=b"answer", pending=True)]) as script:
            assert run(aio.transfer_redirect_records(HANDLE, HANDLE + 4)) == 6
            assert script.calls[-1].input == b"answer"
            assert run(aio.read_redirect(HANDLE)) == wfpioctl.Redirect(b"answer", b"answer")

    def test_two_loops_in_two_threads(self, run: Runner) -> None:
        results: list[bytes] = []

        def other() -> None:
            results.append(run(aio.query_redirect_records(HANDLE)))

        with Scripted(steps=[Step(data=b"answer", pending=True, delay=0.02)]):
            thread = threading.Thread(target=other)
            thread.start()
            other()
            thread.join(TIMEOUT)
        assert results == [b"answer"] * 2


class TestEnds:
    def test_cancellation_cancels_the_operation(self, run: Runner) -> None:
        async def main() -> None:
            task = asyncio.create_task(aio.query_redirect_records(HANDLE))
            await until_pending(1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert pending() == 0

        before = overlapped.counters()
        with Scripted(steps=[NEVER]):
            run(main())
        assert overlapped.counters().cancelled == before.cancelled + 1

    def test_cancellation_that_the_driver_ignores(self, run: Runner) -> None:
        """The await ends at once; the memory stays with the operation until that ends."""

        async def main() -> None:
            task = asyncio.create_task(aio.query_redirect_records(HANDLE))
            await until_pending(1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert pending() == 1
            await aio.query_redirect_records(HANDLE)  # ends after it
            await until_pending(0)

        with Scripted(steps=[Step(pending=True, delay=0.05, cancellable=False)]):
            run(main())

    def test_timeout(self, run: Runner) -> None:
        async def main() -> None:
            async with asyncio.timeout(0.02):
                await aio.query_redirect_records(HANDLE)

        with Scripted(steps=[NEVER]):
            with pytest.raises(TimeoutError):
                run(main())
            assert pending() == 0

    def test_W20_the_socket_is_closed_meanwhile(self, run: Runner) -> None:
        async def main(script: Scripted) -> None:
            task = asyncio.create_task(aio.query_redirect_records(HANDLE))
            await until_pending(1)
            script.abort(HANDLE)
            with pytest.raises(wfpioctl.OperationAbortedError):
                await task

        with Scripted(steps=[NEVER]) as script:
            run(main(script))

    def test_the_script_ends_meanwhile(self, run: Runner) -> None:
        async def main() -> None:
            with Scripted(steps=[NEVER]):
                task = asyncio.create_task(aio.query_redirect_records(HANDLE))
                await until_pending(1)
            with pytest.raises(wfpioctl.OperationAbortedError):
                await task

        run(main())

    def test_the_runner_ends_meanwhile(self, run: Runner) -> None:
        """asyncio.run cancels what is left."""

        async def main() -> asyncio.Task[bytes]:
            task = asyncio.create_task(aio.query_redirect_records(HANDLE))
            await until_pending(1)
            return task

        with Scripted(steps=[NEVER]):
            assert run(main()).cancelled()
            assert pending() == 0

    @pytest.mark.filterwarnings("ignore:Task was destroyed")
    def test_the_loop_is_closed_meanwhile(self, run: Runner) -> None:
        """Without cancelling anything: the task dies with the loop, and the operation with it."""
        with Scripted(steps=[NEVER]):
            loop = run.new_loop()
            task = loop.create_task(aio.query_redirect_records(HANDLE))
            loop.run_until_complete(until_pending(1))
            loop.close()
            del task, loop
            gc.collect()
            assert pending() == 0
        # The one complaint is asyncio's own, of the task.
        messages = [context["message"] for context in run.complaints]
        assert set(messages) <= {"Task was destroyed but it is pending!"}
        run.complaints.clear()

    def test_a_cancellation_that_comes_with_the_end_wins(self, run: Runner) -> None:
        """The loop has been told of the end, and of the cancellation, in one of its rounds."""

        async def main(script: Scripted) -> None:
            task = asyncio.create_task(aio.query_redirect_records(HANDLE))
            await until_pending(1)
            script.abort(HANDLE)
            asyncio.get_running_loop().call_soon(task.cancel)
            with pytest.raises(asyncio.CancelledError):
                await task

        with Scripted(steps=[NEVER]) as script:
            run(main(script))

    def test_an_operation_that_ends_with_its_cancellation(self, run: Runner) -> None:
        """Whoever is first wins, and nothing is left either way."""

        async def main() -> None:
            for _ in range(50):
                task = asyncio.create_task(aio.query_redirect_records(HANDLE))
                await asyncio.sleep(0)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    assert await task == b"answer"

        with Scripted(steps=[Step(data=b"answer", pending=True)]):
            run(main())


class TestSockets:
    """Whatever holds a socket."""

    @pytest.mark.parametrize(
        "of",
        [
            lambda writer: writer,
            lambda writer: writer.transport,
            lambda writer: writer.get_extra_info("socket"),
            lambda writer: writer.get_extra_info("socket").fileno(),
        ],
        ids=["StreamWriter", "transport", "TransportSocket", "handle"],
    )
    def test_of_an_accepted_connection(
        self, run: Runner, engine: Engine, of: Callable[[asyncio.StreamWriter], Any]
    ) -> None:
        async def main() -> None:
            found: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

            async def accepted(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                async with closing(writer):
                    found.set_result(await aio.read_redirect(of(writer)))
                    with socket.socket() as outbound:
                        size = await aio.transfer_redirect_records(of(writer), outbound)
                        assert size == len(found.result().records)

            server = await asyncio.start_server(accepted, "127.0.0.1", 0)
            async with server:
                engine.add_driver(
                    "A", proxy=address_of(server.sockets[0]), match=ORIGINAL, context=b"context"
                )
                async with app() as reader:
                    assert (await found).context == b"context"
                    assert await reader.read() == b""

        run(main())

    def test_of_a_closed_transport(self, run: Runner) -> None:
        async def main() -> None:
            with listen() as listener:
                _, writer = await asyncio.open_connection(*address_of(listener))
                writer.close()
                await writer.wait_closed()
                with pytest.raises((wfpioctl.NotASocketError, TypeError)):
                    await aio.query_redirect_records(writer)

        run(main())


class TestConnections:
    """From a redirected connection on to the destination: the driver must not see a new flow."""

    @pytest.fixture
    def destination(self, redirected: Redirected) -> Iterator[socket.socket]:
        """Where connections to ORIGINAL end that pass the driver."""
        with listen() as sock:
            redirected.engine.route(ORIGINAL, address_of(sock))
            yield sock

    @pytest.fixture
    def redirect(self, redirected: Redirected) -> wfpioctl.Redirect:
        redirect = wfpioctl.read_redirect(redirected.accepted)
        assert redirect is not None
        return redirect

    def test_open_connection(
        self, run: Runner, redirect: wfpioctl.Redirect, destination: socket.socket
    ) -> None:
        async def main() -> None:
            reader, writer = await aio.open_connection(redirect, *ORIGINAL, limit=1000)
            async with closing(writer):
                with accept(destination) as server:
                    writer.write(b"to")
                    await writer.drain()
                    assert server.recv(10) == b"to"
                    server.sendall(b"fro")
                assert await reader.read() == b"fro"

        run(main())

    def test_create_connection(
        self, run: Runner, redirect: wfpioctl.Redirect, destination: socket.socket
    ) -> None:
        async def main() -> None:
            transport, protocol = await aio.create_connection(redirect, asyncio.Protocol, *ORIGINAL)
            assert type(protocol) is asyncio.Protocol
            transport.close()
            await asyncio.sleep(0)

        run(main())
        accept(destination).close()

    def test_W23_local_addr_is_bound_after_set(
        self, run: Runner, redirect: wfpioctl.Redirect, destination: socket.socket
    ) -> None:
        async def main() -> None:
            _, writer = await aio.open_connection(redirect, *ORIGINAL, local_addr=("127.0.0.1", 0))
            async with closing(writer):
                accept(destination).close()
                assert writer.get_extra_info("sockname")[0] == "127.0.0.1"

        run(main())

    @pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNSPEC])
    def test_W70_the_original_destination(
        self, run: Runner, engine: Engine, listener: socket.socket, family: int
    ) -> None:
        original = context.OriginalDestination(ORIGINAL)
        engine.add_driver(
            "A",
            proxy=address_of(listener),
            match=ORIGINAL,
            context=context.encode(original, "wfpsampler"),
        )

        async def main(redirect: wfpioctl.Redirect, destination: socket.socket) -> None:
            _, writer = await aio.open_connection(redirect, family=family)
            async with closing(writer):
                accept(destination).close()

        with (
            listen() as destination,
            socket.create_connection(ORIGINAL, TIMEOUT),
            accept(listener) as accepted,
        ):
            engine.route(ORIGINAL, address_of(destination))
            redirect = wfpioctl.read_redirect(accepted)
            assert redirect is not None
            run(main(redirect, destination))

    @needs_ipv6
    def test_W70_the_original_destination_in_ipv6(self, run: Runner, engine: Engine) -> None:
        original = context.encode(context.OriginalDestination(ORIGINAL6), "wfpsampler")

        async def main() -> None:
            _, writer = await aio.open_connection(wfpioctl.Redirect(records, original))
            async with closing(writer):
                accept(destination).close()

        records = encode_records(1, [])
        with listen(socket.AF_INET6) as destination:
            engine.route(ORIGINAL6, address_of(destination))
            run(main())

    def test_tls_is_asked_of_the_host_by_its_name(
        self, run: Runner, engine: Engine, listener: socket.socket
    ) -> None:
        async def main() -> None:
            port = address_of(listener)[1]
            with pytest.raises(OSError):  # noqa: PT011 - TLS's errors and resets are such
                await aio.open_connection(redirect, "localhost", port, ssl=True)

        def read_the_hello() -> None:
            with accept(listener) as server:
                hello.append(server.recv(1 << 16))

        hello: list[bytes] = []
        redirect = wfpioctl.Redirect(encode_records(1, []))
        with running(read_the_hello):
            run(main())
        assert b"localhost" in hello[0]

    @pytest.mark.parametrize("where", [("127.0.0.1", None), (None, 443)])
    def test_host_and_port_come_together(self, run: Runner, where: Any) -> None:
        with pytest.raises(ValueError, match="give host and port, or neither"):
            run(aio.open_connection(wfpioctl.Redirect(b"r"), *where))

    def test_records_that_cannot_be_set(self, run: Runner) -> None:
        with Scripted(steps=[Step(code=10013, pending=True)]) as script:
            with pytest.raises(wfpioctl.AccessDeniedError):
                run(aio.open_connection(wfpioctl.Redirect(b"r"), "127.0.0.1", 9))
            assert len(script.calls) == 1

    def test_W23_each_address_is_tried_with_its_own_set(
        self, run: Runner, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The first refuses, the second accepts."""

        async def main(port: int, refused: int) -> None:
            resolve(monkeypatch, "two.test", [("127.0.0.1", refused), ("127.0.0.1", port)])
            _, writer = await aio.open_connection(wfpioctl.Redirect(b"records"), "two.test", port)
            async with closing(writer):
                assert writer.get_extra_info("peername")[1] == port

        with listen() as refusing, listen() as listener:
            refused = address_of(refusing)[1]
            refusing.close()
            with Scripted(steps=[Step()]) as script:
                run(main(address_of(listener)[1], refused))
                assert [call.input for call in script.calls] == [b"records"] * 2

    def test_no_address_can_be_connected_to(
        self, run: Runner, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One error is raised as it is; several are told in one."""

        async def main(addresses: list[tuple[str, int]]) -> None:
            resolve(monkeypatch, "none.test", addresses)
            await aio.open_connection(wfpioctl.Redirect(b"records"), "none.test", 9)

        refused = []
        for _ in range(2):
            with listen() as listener:
                refused.append(address_of(listener))
        with Scripted(records=b""):
            with pytest.raises(ConnectionRefusedError):
                run(main(refused[:1]))
            # The proactor's errors do not name the address, and so are the same.
            with pytest.raises(OSError, match=r"Multiple exceptions: .*, .*|WinError 1225"):
                run(main(refused))
            with pytest.raises(OSError, match="resolves to no address"):
                run(main([]))

    def test_cancelled_while_connecting(self, run: Runner) -> None:
        """The socket is closed: an unclosed one would be a ResourceWarning."""

        async def main() -> None:
            task = asyncio.create_task(aio.open_connection(wfpioctl.Redirect(b"r"), "127.0.0.1", 9))
            await until_pending(1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        with Scripted(steps=[NEVER]):
            run(main())
        gc.collect()

    def test_unknown_arguments_are_refused(self, run: Runner) -> None:
        async def main(address: tuple[str, int]) -> None:
            await aio.open_connection(wfpioctl.Redirect(b"r"), *address, colour="red")

        with listen() as listener, Scripted(records=b""), pytest.raises(TypeError, match="colour"):
            run(main(address_of(listener)))
        gc.collect()


class TestServer:
    @pytest.mark.parametrize("kind", ["function", "coroutine function"])
    def test_tells_the_redirect(self, run: Runner, engine: Engine, kind: str) -> None:
        async def main() -> None:
            found: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

            def called(
                _: asyncio.StreamReader,
                writer: asyncio.StreamWriter,
                redirect: wfpioctl.Redirect | None,
            ) -> None:
                found.set_result(redirect)
                writer.close()

            async def awaited(*args: Any) -> None:
                called(*args)

            callback = called if kind == "function" else awaited
            server = await aio.start_redirect_server(callback, "127.0.0.1", 0)
            async with server:
                engine.add_driver(
                    "A", proxy=address_of(server.sockets[0]), match=ORIGINAL, context=b"context"
                )
                async with app() as reader:
                    assert (await found).context == b"context"
                    assert await reader.read() == b""

        run(main())

    def test_a_connection_that_nobody_redirected(self, run: Runner, engine: Engine) -> None:
        async def main() -> None:
            found: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

            async def called(_: Any, writer: asyncio.StreamWriter, redirect: Any) -> None:
                found.set_result(redirect)
                writer.close()

            server = await aio.start_redirect_server(called, "127.0.0.1", 0)
            async with server, app(address_of(server.sockets[0])) as reader:
                assert await found is None
                assert await reader.read() == b""

        run(main())

    def test_a_redirect_that_cannot_be_read(self, run: Runner) -> None:
        """The connection is closed, the error is reported, and the callback is not called."""

        async def main() -> None:
            def called(*_: Any) -> None:
                raise AssertionError("there is no redirect to call with")

            server = await aio.start_redirect_server(called, "127.0.0.1", 0)
            async with server, app(address_of(server.sockets[0])) as reader:
                assert await reader.read() == b""

        with Scripted(steps=[Step(code=10050, pending=True)]):
            run(main())
        (complaint,) = run.complaints
        assert isinstance(complaint["exception"], wfpioctl.NetworkDownError)
        assert complaint["message"] == "the redirect of a connection could not be read"
        run.complaints.clear()


def resolve(monkeypatch: pytest.MonkeyPatch, host: str, addresses: list[tuple[str, int]]) -> None:
    """Have the running loop resolve a host to these.  (uvloop resolves each address again.)"""
    kind = type(asyncio.get_running_loop())
    getaddrinfo = kind.getaddrinfo

    async def patched(loop: Any, asked: str, *args: Any, **kwargs: Any) -> list[Any]:
        if asked == host:
            return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", address) for address in addresses]
        return await getaddrinfo(loop, asked, *args, **kwargs)

    monkeypatch.setattr(kind, "getaddrinfo", patched)


@contextlib.asynccontextmanager
async def app(address: tuple[str, int] = ORIGINAL) -> AsyncIterator[asyncio.StreamReader]:
    """An app's connection; its socket connects by itself, for the engine does not see uvloop's."""
    loop = asyncio.get_running_loop()
    sock = await loop.run_in_executor(None, socket.create_connection, address, TIMEOUT)
    sock.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=sock)
    async with closing(writer):
        yield reader


@contextlib.asynccontextmanager
async def closing(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    try:
        yield
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
