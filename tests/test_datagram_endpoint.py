"""Datagrams on event loops: endpoints."""

import asyncio
import errno
import gc
import queue
import selectors
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from loops import Runner, loop_params
from support import LOOPBACKS, TIMEOUT, Udp, address_of

from wfpioctl import ProtocolOptionError, _wfpioctl, datagram
from wfpioctl.datagram import Datagram, MessageProtocol, MessageTransport
from wfpioctl.simulator import Engine
from wfpioctl.simulator.records import encode_records

UNUSED = ("192.0.2.1", 9)


class LoopWithoutReaders(asyncio.SelectorEventLoop):
    """A loop that cannot watch sockets, like the proactor's; ``told``: a thread has called it."""

    def __init__(self) -> None:
        super().__init__()
        self.told = threading.Event()

    def remove_reader(self, fd: object) -> bool:
        raise NotImplementedError

    def call_soon_threadsafe(self, *arguments: Any, **options: Any) -> Any:
        try:
            return super().call_soon_threadsafe(*arguments, **options)
        finally:
            self.told.set()


@pytest.fixture(params=[*loop_params(), pytest.param(LoopWithoutReaders, id="no readers")])
def run(request: pytest.FixtureRequest) -> Iterator[Runner]:
    """A function that runs a coroutine, on each kind of loop of this system and on a poor one."""
    runner = Runner(request.param)
    yield runner
    assert runner.complaints == []


class Collector(MessageProtocol):
    """Collects what the transport calls; ``next`` waits for it."""

    def __init__(self) -> None:
        self.calls: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.calls.put_nowait(("made", transport))

    def connection_lost(self, exc: Exception | None) -> None:
        self.calls.put_nowait(("lost", exc))

    def message_received(self, datagram: Datagram) -> None:
        self.calls.put_nowait(("message", datagram))

    def error_received(self, exc: OSError) -> None:
        self.calls.put_nowait(("error", exc))

    def pause_writing(self) -> None:
        self.calls.put_nowait(("pause", None))

    def resume_writing(self) -> None:
        self.calls.put_nowait(("resume", None))

    async def next(self, kind: str) -> Any:
        called, value = await asyncio.wait_for(self.calls.get(), TIMEOUT)
        assert called == kind
        return value


async def endpoint(**arguments: Any) -> tuple[MessageTransport, Collector]:
    arguments.setdefault("redirect_metadata", False)
    transport, protocol = await datagram.create_endpoint(Collector, **arguments)
    assert await protocol.next("made") is transport
    return transport, protocol


@pytest.mark.parametrize("family", LOOPBACKS)
def test_endpoints_exchange_datagrams(run: Runner, family: int) -> None:
    async def body() -> None:
        host = "::1" if family == socket.AF_INET6 else "127.0.0.1"
        server, served = await endpoint(local_addr=(host, 0))
        client, answered = await endpoint(remote_addr=server.get_extra_info("sockname"))
        for transport in (server, client):
            sockname = transport.get_extra_info("sockname")
            assert repr(transport) == f"<MessageTransport open {sockname}>"
            assert transport.get_extra_info("socket").gettimeout() == 0
            assert transport.get_write_buffer_size() == 0
        client.sendto(b"question")
        question = await served.next("message")
        assert question.data == b"question"
        assert question.address == client.get_extra_info("sockname")
        for number in range(20):
            server.sendto(b"%d" % number, question.address)
        for number in range(20):
            assert (await answered.next("message")).data == b"%d" % number
        assert client.get_extra_info("peername") == server.get_extra_info("sockname")
        for transport, protocol in ((server, served), (client, answered)):
            transport.close()
            transport.close()
            assert transport.is_closing()
            sockname = transport.get_extra_info("sockname")
            assert repr(transport) == f"<MessageTransport closing {sockname}>"
            assert await protocol.next("lost") is None
            assert transport.get_extra_info("socket").fileno() == -1

    run(body())


def test_W40_W42_an_endpoint_gets_and_sends_records(run: Runner, engine: Engine, udp: Udp) -> None:
    async def body() -> None:
        transport, protocol = await endpoint(local_addr=("127.0.0.1", 0), redirect_metadata=True)
        app = udp()
        records = encode_records(1, [])
        port = transport.get_extra_info("sockname")[1]
        _wfpioctl.engine_add_datagram_flow(
            app.fileno(), address_of(app), port, 1, records, b"context"
        )
        app.sendto(b"one", ("127.0.0.1", port))
        received = await protocol.next("message")
        assert received == (b"one", app.getsockname(), 0, records, b"context")
        transport.sendmsg(b"two", received.address, records=received.records)
        assert app.recv(100) == b"two"
        transport.sendmsg(b"two", received.address, records=b"forged" * 10)
        assert (await protocol.next("error")).errno == errno.EINVAL
        transport.abort()
        assert await protocol.next("lost") is None

    run(body())


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="only such datagrams wait for room")
@pytest.mark.parametrize("abort", [False, True])
def test_datagrams_wait_for_a_socket_that_is_not_ready(run: Runner, abort: bool) -> None:
    async def body() -> None:
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with far:
            far.setblocking(False)
            transport, protocol = await endpoint(sock=near)
            assert near.gettimeout() == 0
            count = 0
            while protocol.calls.empty():
                transport.sendto(b"%d".ljust(1000) % count)
                count += 1
            await protocol.next("pause")
            assert transport.get_write_buffer_size() > 65_536
            far.send(b"nobody waits for it any more")
            if abort:
                transport.abort()
                transport.abort()
                assert transport.get_write_buffer_size() == 0
            else:
                loop = asyncio.get_running_loop()
                transport.close()
                for number in range(count):
                    data = await asyncio.to_thread(_recv, far)
                    assert data == b"%d".ljust(1000) % number
                assert loop.is_running()
                await protocol.next("resume")
            assert await protocol.next("lost") is None
        await asyncio.sleep(0)
        assert protocol.calls.empty()

    def _recv(sock: socket.socket) -> bytes:
        sock.settimeout(TIMEOUT)
        return sock.recv(2000)

    run(body())


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="only such datagrams wait for room")
@pytest.mark.parametrize("size", [1, 300_000], ids=["a few", "many"])
def test_what_waited_arrives_in_order_and_the_endpoint_goes_on(run: Runner, size: int) -> None:
    """The protocol is asked to pause, and then to go on, once and only if much waits."""

    async def body() -> None:
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with far:
            far.settimeout(TIMEOUT)
            transport, protocol = await endpoint(sock=near)
            count = 0
            while transport.get_write_buffer_size() < size:
                transport.sendto(b"%d".ljust(1000) % count)
                count += 1
            for number in range(count):
                assert await asyncio.to_thread(far.recv, 2000) == b"%d".ljust(1000) % number
            assert transport.get_write_buffer_size() == 0
            if size > 1:
                await protocol.next("pause")
                await protocol.next("resume")
            transport.sendto(b"again")
            assert far.recv(100) == b"again"
            transport.abort()
            transport.abort()
            await protocol.next("lost")
            assert protocol.calls.empty()

    run(body())


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="only such datagrams wait for room")
def test_abort_ends_what_close_waits_for(run: Runner) -> None:
    async def body() -> None:
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with far:
            transport, protocol = await endpoint(sock=near)
            while not transport.get_write_buffer_size():
                transport.sendto(bytes(1000))
            transport.close()
            transport.abort()
            await protocol.next("lost")
            assert near.fileno() == -1

    run(body())


def test_a_protocol_is_paused_above_64_KiB_and_resumed_at_16(
    run: Runner, udp: Udp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A KiB a datagram, and a system that takes only as many as the test lets it."""
    room = 0

    def sendmsg(*arguments: object) -> int:
        nonlocal room
        if not room:
            raise BlockingIOError
        room -= 1
        return 1024

    async def body() -> None:
        nonlocal room
        transport, protocol = await endpoint(remote_addr=address_of(udp()))

        async def waits(kibibytes: int) -> None:
            while transport.get_write_buffer_size() != kibibytes << 10:
                await asyncio.sleep(0)

        for _ in range(2):
            for _ in range(64):
                transport.sendto(bytes(1024))
            assert protocol.calls.empty()
            transport.sendto(bytes(1024))
            await protocol.next("pause")
            transport.sendto(bytes(1024))
            room = 49
            await waits(17)
            assert protocol.calls.empty()
            room = 1
            await waits(16)
            await protocol.next("resume")
            room = 16
            await waits(0)
            assert protocol.calls.empty()
        transport.close()
        await protocol.next("lost")

    monkeypatch.setattr(_wfpioctl, "sendmsg", sendmsg)
    run(body())


@pytest.mark.linux_program
def test_an_error_of_the_socket_goes_to_the_protocol_and_the_endpoint_goes_on(
    run: Runner, udp: Udp
) -> None:
    """Nobody is at the other end, and its system says so: only to Linux' connected sockets."""

    async def body() -> None:
        other = udp()
        address = address_of(other)
        other.close()
        transport, protocol = await endpoint(remote_addr=address)
        for _ in range(2):
            transport.sendto(b"x")
            assert type(await protocol.next("error")) is ConnectionRefusedError
        with socket.socket(type=socket.SOCK_DGRAM) as peer:
            peer.bind(address)
            peer.sendto(b"hello", transport.get_extra_info("sockname"))
            assert (await protocol.next("message")).data == b"hello"
        transport.close()
        await protocol.next("lost")

    run(body())


@pytest.mark.linux_program  # Wine does not wake both
def test_of_two_endpoints_of_one_socket_one_gets_the_datagram(run: Runner, udp: Udp) -> None:
    async def body() -> None:
        first, protocol = await endpoint(local_addr=("127.0.0.1", 0))
        second, _ = await datagram.create_endpoint(
            lambda: protocol, sock=first.get_extra_info("socket").dup(), redirect_metadata=False
        )
        await protocol.next("made")
        app = udp()
        for number in range(20):
            app.sendto(b"%d" % number, first.get_extra_info("sockname"))
            assert (await protocol.next("message")).data == b"%d" % number
        assert protocol.calls.empty()
        for transport in (first, second):
            transport.close()
            await protocol.next("lost")

    run(body())


def sends_fail(monkeypatch: pytest.MonkeyPatch, *outcomes: OSError | None) -> None:
    """Let the next sends come to that; the others, and those of None, go to the system."""
    left = list(outcomes)
    send = _wfpioctl.sendmsg

    def sendmsg(*arguments: Any) -> int:
        if left and (outcome := left.pop(0)) is not None:
            raise outcome
        return send(*arguments)

    monkeypatch.setattr(_wfpioctl, "sendmsg", sendmsg)


@pytest.mark.linux_program
def test_a_closing_endpoint_sends_what_waits_after_an_error_of_the_socket(
    run: Runner, udp: Udp, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        other = udp()
        address = address_of(other)
        other.close()
        transport, protocol = await endpoint(remote_addr=address)
        sends_fail(monkeypatch, BlockingIOError(), None, BlockingIOError())
        transport.sendto(b"one")
        transport.sendto(b"two")
        transport.close()
        transport.get_extra_info("socket").send(b"this has an error that the next send gets")
        assert type(await protocol.next("error")) is ConnectionRefusedError
        await protocol.next("lost")

    run(body())


def test_a_protocol_may_close_at_once(run: Runner) -> None:
    class Closing(Collector):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            transport.close()

    async def body() -> None:
        transport, protocol = await datagram.create_endpoint(
            Closing, ("127.0.0.1", 0), redirect_metadata=False
        )
        await protocol.next("made")
        await protocol.next("lost")
        assert transport.is_closing()

    run(body())


def test_a_datagram_that_the_thread_saw_before_the_close_is_not_received(udp: Udp) -> None:
    async def body() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, LoopWithoutReaders)
        transport, protocol = await endpoint(local_addr=("127.0.0.1", 0))
        loop.told.clear()
        udp().sendto(b"x", transport.get_extra_info("sockname"))
        assert loop.told.wait(TIMEOUT)
        transport.close()
        await protocol.next("lost")
        assert protocol.calls.empty()

    Runner(LoopWithoutReaders)(body())


def test_a_thread_whose_loop_was_closed_ends_and_the_endpoint_is_warned_of(udp: Udp) -> None:
    async def body() -> tuple[str, int]:
        transport, _ = await endpoint(local_addr=("127.0.0.1", 0))
        return address_of(transport.get_extra_info("socket"))

    before = {*threading.enumerate()}
    loop = LoopWithoutReaders()
    address = loop.run_until_complete(body())
    loop.close()
    started = {*threading.enumerate()} - before
    [thread] = [each for each in started if each.name == "wfpioctl-datagram"]
    udp().sendto(b"x", address)
    thread.join(TIMEOUT)
    assert not thread.is_alive()
    with pytest.warns(ResourceWarning, match="unclosed"):  # the transport, or its sockets
        gc.collect()


def test_a_protocol_may_abort_when_it_hears_of_an_error(
    run: Runner, udp: Udp, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Aborting(Collector):
        def error_received(self, exc: OSError) -> None:
            super().error_received(exc)
            transport.abort()

    async def body() -> None:
        nonlocal transport
        transport, protocol = await datagram.create_endpoint(
            Aborting, remote_addr=address_of(udp()), redirect_metadata=False
        )
        await protocol.next("made")
        refused = PermissionError(errno.EPERM, "no")
        sends_fail(monkeypatch, BlockingIOError(), refused)
        transport.sendto(b"one")
        transport.sendto(b"two")
        assert await protocol.next("error") is refused
        await protocol.next("lost")

    transport: MessageTransport
    run(body())


def test_a_protocol_may_close_when_it_is_resumed(
    run: Runner, udp: Udp, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Closing(Collector):
        def resume_writing(self) -> None:
            super().resume_writing()
            transport.close()

    async def body() -> None:
        nonlocal transport
        transport, protocol = await datagram.create_endpoint(
            Closing, remote_addr=address_of(udp()), redirect_metadata=False
        )
        await protocol.next("made")
        sends_fail(monkeypatch, BlockingIOError())
        transport.sendto(bytes(40_000))
        transport.sendto(bytes(40_000))
        for kind in ("pause", "resume", "lost"):
            await protocol.next(kind)

    transport: MessageTransport
    run(body())


def test_the_thread_announces_an_event_once_and_not_while_the_loop_is_busy(
    udp: Udp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a loop without readers; a thread that asks again and again takes a whole processor."""

    class Loop(LoopWithoutReaders):
        announced: queue.Queue[int] = queue.Queue()

        def call_soon_threadsafe(self, callback: Any, *args: Any, **options: Any) -> asyncio.Handle:
            if isinstance(args[0], int):  # not a future of a name's addresses
                self.announced.put(args[0])
            return super().call_soon_threadsafe(callback, *args, **options)

    def announced() -> int:
        return Loop.announced.get(timeout=TIMEOUT)

    async def body() -> None:
        transport, protocol = await endpoint(local_addr=("127.0.0.1", 0))
        app = udp()
        app.sendto(b"one", transport.get_extra_info("sockname"))
        assert announced() == selectors.EVENT_READ
        sends_fail(monkeypatch, BlockingIOError())
        transport.sendto(b"two", address_of(app))
        assert announced() == selectors.EVENT_WRITE
        await protocol.next("message")
        while transport.get_write_buffer_size():
            await asyncio.sleep(0)
        app.sendto(b"three", transport.get_extra_info("sockname"))
        assert announced() == selectors.EVENT_READ
        transport.close()
        await protocol.next("lost")
        assert Loop.announced.empty()

    Runner(Loop)(body())


def test_what_a_protocol_raises_goes_to_the_loop_and_the_endpoint_goes_on(
    run: Runner, udp: Udp
) -> None:
    class Raising(Collector):
        def message_received(self, datagram: Datagram) -> None:
            super().message_received(datagram)
            if datagram.data == b"bad":
                raise ZeroDivisionError

    async def body() -> None:
        problems: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, each: problems.append(each))
        transport, protocol = await datagram.create_endpoint(
            Raising, ("127.0.0.1", 0), redirect_metadata=False
        )
        await protocol.next("made")
        app = udp()
        for data in (b"bad", b"good"):
            app.sendto(data, transport.get_extra_info("sockname"))
            assert (await protocol.next("message")).data == data
        assert [type(each["exception"]) for each in problems] == [ZeroDivisionError]
        transport.close()
        await protocol.next("lost")
        with pytest.raises(RuntimeError, match=r"^sendmsg\(\): the transport is closing$"):
            transport.sendto(b"x", UNUSED)

    run(body())


def test_create_endpoint_says_what_is_wrong_and_leaves_nothing_open(run: Runner, udp: Udp) -> None:
    class Broken(MessageProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            raise ZeroDivisionError

    async def body() -> None:
        sock = udp()
        with pytest.raises(ValueError, match=r"^create_endpoint\(\): give local_addr, .*sock$"):
            await datagram.create_endpoint(Collector)
        for unwanted in (
            {"local_addr": ("127.0.0.1", 0)},
            {"remote_addr": UNUSED},
            {"family": socket.AF_INET},
        ):
            with pytest.raises(ValueError, match=r"^create_endpoint\(\): give .* not both$"):
                await datagram.create_endpoint(Collector, sock=sock, **unwanted)
        with pytest.raises(socket.gaierror):
            await datagram.create_endpoint(Collector, ("127.0.0.1", 0), family=socket.AF_INET6)
        with socket.socket() as stream, pytest.raises(ValueError, match="datagram socket, not"):
            await datagram.create_endpoint(Collector, sock=stream)
        with pytest.raises(OSError) as caught:  # noqa: PT011
            await datagram.create_endpoint(Collector, address_of(sock), redirect_metadata=False)
        assert caught.value.errno in (errno.EADDRINUSE, getattr(errno, "WSAEADDRINUSE", None))
        with pytest.raises(ProtocolOptionError):
            await datagram.create_endpoint(Collector, ("127.0.0.1", 0))
        with pytest.raises(ZeroDivisionError):
            await datagram.create_endpoint(Broken, ("127.0.0.1", 0), redirect_metadata=False)
        with pytest.raises(ZeroDivisionError):
            await datagram.create_endpoint(
                lambda: 1 // 0,  # type: ignore[arg-type, return-value]
                ("127.0.0.1", 0),
                redirect_metadata=False,
            )

    run(body())
    gc.collect()  # an unclosed socket would be a warning, which is an error


def test_a_forgotten_endpoint_is_closed_and_warned_of() -> None:
    run = Runner(asyncio.SelectorEventLoop)

    async def body() -> None:
        await datagram.create_endpoint(MessageProtocol, ("127.0.0.1", 0), redirect_metadata=False)

    def forget() -> None:
        run(body())
        gc.collect()

    with pytest.warns(ResourceWarning, match="unclosed transport <MessageTransport open") as caught:
        forget()
    assert isinstance(caught[0].source, MessageTransport)  # for tracemalloc: where it was made


def test_an_endpoint_that_is_never_closed_does_not_keep_a_process() -> None:
    """On a loop without readers a thread waits for the socket."""
    program = (
        "import asyncio\n"
        "from wfpioctl.datagram import MessageProtocol, create_endpoint\n"
        "class Loop(asyncio.SelectorEventLoop):\n"
        "    def remove_reader(self, fd): raise NotImplementedError\n"
        "made = create_endpoint(MessageProtocol, ('127.0.0.1', 0), redirect_metadata=False)\n"
        "endpoint = Loop().run_until_complete(made)\n"
        "print(endpoint[0])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=TIMEOUT
    )
    assert done.stdout.startswith("<MessageTransport open")
