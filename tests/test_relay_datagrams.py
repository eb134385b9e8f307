"""The relay for UDP."""

import asyncio
import contextlib
import errno
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import is_wine
from loops import LOOPS, SEEN, loop_params
from relay_support import blob
from support import ORIGINAL, TIMEOUT, address_of, running

from wfpioctl import ProtocolOptionError, _wfpioctl
from wfpioctl.datagram import Datagram
from wfpioctl.relay import Counters, DatagramRelay, Decision
from wfpioctl.simulator import Engine, RecordsSet

every_loop = pytest.mark.parametrize("new_loop", loop_params())


@contextlib.contextmanager
def relaying(
    new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop, **options: Any
) -> Iterator[DatagramRelay]:
    """Run a relay in a thread; afterwards every flow must be accounted for."""
    loop = new_loop()
    complaints: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda loop, context: complaints.append(context))
    relay = DatagramRelay(**options)
    with contextlib.closing(loop), running(loop.run_forever):
        try:
            asyncio.run_coroutine_threadsafe(relay.start(), loop).result(TIMEOUT)
            try:
                yield relay
            finally:
                asyncio.run_coroutine_threadsafe(relay.close(), loop).result(TIMEOUT)
        finally:
            loop.call_soon_threadsafe(loop.stop)
    total = relay.counters
    assert not complaints
    assert total.active == 0
    assert total.accepted == total.finished + total.failed + total.refused.total()


def udp() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(TIMEOUT)
    sock.bind(("127.0.0.1", 0))
    return sock


@pytest.fixture
def app() -> Iterator[socket.socket]:
    with udp() as sock:
        yield sock


@pytest.fixture
def origin() -> Iterator[socket.socket]:
    with udp() as sock:
        yield sock


def when(relay: DatagramRelay, condition: Callable[[Counters], bool]) -> Counters:
    """The counters, once they are so; the app asks again, for datagrams get lost."""
    while not condition(counters := relay.counters):
        pass
    return counters


@every_loop
def test_flows_find_their_clients(
    new_loop: Callable[[], asyncio.AbstractEventLoop], app: socket.socket, origin: socket.socket
) -> None:
    with (
        relaying(new_loop, direct=True, to=address_of(origin)) as relay,
        udp() as other,
    ):
        app.sendto(b"from app", relay.address)
        data, one = origin.recvfrom(100)
        assert data == b"from app"
        other.sendto(b"from other", relay.address)
        data, two = origin.recvfrom(100)
        assert data == b"from other"
        assert one != two
        origin.sendto(b"to other", ("127.0.0.1", two[1]))
        origin.sendto(b"to app", ("127.0.0.1", one[1]))
        assert app.recvfrom(100) == (b"to app", relay.address)
        assert other.recvfrom(100) == (b"to other", relay.address)
        app.sendto(b"again", relay.address)
        assert origin.recvfrom(100) == (b"again", one)
        counters = when(relay, lambda counters: counters.bytes_up == 8 + 10 + 5)
        assert (counters.active, counters.bytes_down) == (2, 8 + 6)


def test_what_was_not_redirected_is_refused(engine: Engine, app: socket.socket) -> None:
    with relaying() as relay:
        app.sendto(b"x", relay.address)
        counters = when(relay, lambda counters: counters.refused.total() == 1)
        assert counters.refused == {"not redirected": 1}


def test_W42_the_first_datagram_carries_the_records(
    engine: Engine, app: socket.socket, origin: socket.socket
) -> None:
    async def main() -> None:
        async with DatagramRelay() as relay:
            context = blob(address_of(origin))
            for records in (_wfpioctl.engine_make_records(b"records"), None):
                relay.message_received(
                    Datagram(b"x", app.getsockname(), 0, records, records and context)
                )
                assert await loop.sock_recv(origin, 10) == b"x"
            assert relay.counters.active == 1
            relay.message_received(  # the engine refuses what it has not given out
                Datagram(b"x", ("127.0.0.1", 9), 0, b"forged" * 10, context)
            )
            while not (errors := relay.counters.errors):
                await asyncio.sleep(0)
            assert [side for side, _ in errors] == ["upstream"]
        assert relay.counters.finished == 1

    origin.setblocking(False)
    loop = asyncio.new_event_loop()
    with contextlib.closing(loop):
        loop.run_until_complete(main())


@pytest.mark.parametrize("new_loop", [LOOPS[name] for name in SEEN], ids=SEEN)
def test_W40_W42_a_redirected_flow_goes_through_the_relay_and_back(
    engine: Engine,
    app: socket.socket,
    origin: socket.socket,
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """App, driver, relay and origin: nothing is handed over by the test itself."""
    with relaying(new_loop) as relay:
        proxy = relay.address[0], relay.address[1]
        engine.add_driver("A", proxy=proxy, match=ORIGINAL, protocol="udp", context=blob())
        engine.route(ORIGINAL, address_of(origin))
        for sent in (b"first", b"second"):
            app.sendto(sent, ORIGINAL)
            arrived, upstream = origin.recvfrom(100)
            assert arrived == sent
            origin.sendto(sent.upper(), upstream)
            assert app.recv(100) == sent.upper()
    assert [event.code for event in engine.trace if isinstance(event, RecordsSet)] == [0]


def test_a_flow_ends_when_nothing_moves(app: socket.socket, origin: socket.socket) -> None:
    with relaying(direct=True, to=address_of(origin), idle_timeout=0.1) as relay:
        app.sendto(b"x", relay.address)
        assert origin.recv(1) == b"x"
        when(relay, lambda counters: counters.finished == 1)
        app.sendto(b"y", relay.address)
        assert origin.recv(1) == b"y"
        assert relay.counters.accepted == 2


def test_too_many_flows_are_refused(app: socket.socket, origin: socket.socket) -> None:
    with relaying(direct=True, to=address_of(origin), max_flows=1) as relay, udp() as other:
        app.sendto(b"x", relay.address)
        assert origin.recv(1) == b"x"
        other.sendto(b"y", relay.address)
        counters = when(relay, lambda counters: counters.refused.total() == 1)
        assert counters.refused == {"too many flows": 1}


def test_what_comes_before_the_policy_has_decided_waits(
    app: socket.socket, origin: socket.socket
) -> None:
    async def slow(flow: object) -> Decision:
        await asyncio.sleep(0.1)
        return Decision.PERMIT

    with relaying(direct=True, to=address_of(origin), policy=slow) as relay:
        for number in range(10):
            app.sendto(bytes([number]), relay.address)
        for number in range(10):
            assert origin.recv(1) == bytes([number])


def test_of_what_comes_before_the_decision_only_so_much_waits(
    app: socket.socket, origin: socket.socket
) -> None:
    async def main() -> None:
        async with DatagramRelay(direct=True, to=address_of(origin)) as relay:
            for number in range(100):  # the flow's task has no turn meanwhile
                data = bytes([number])
                relay.message_received(Datagram(data, app.getsockname(), 0, None, None))
            for number in range(64):
                assert await asyncio.to_thread(origin.recv, 10) == bytes([number])
            assert relay.counters.bytes_up == 64

    asyncio.run(main())


def test_the_counters_can_be_read_from_any_thread(origin: socket.socket) -> None:
    ended = threading.Event()

    def come_and_go() -> None:
        try:
            for _ in range(50):
                with contextlib.ExitStack() as stack:
                    for _ in range(10):
                        stack.enter_context(udp()).sendto(b"x", relay.address)
        finally:
            ended.set()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with relaying(direct=True, to=address_of(origin)) as relay, running(come_and_go):
            before = relay.counters
            while not ended.is_set():
                now = relay.counters
                assert now.accepted >= before.accepted
                before = now
    finally:
        sys.setswitchinterval(interval)


def test_an_answer_that_comes_with_the_end_is_dropped(
    app: socket.socket, origin: socket.socket
) -> None:
    async def main() -> None:
        complaints: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, each: complaints.append(each))
        async with DatagramRelay(direct=True, to=address_of(origin)) as relay:
            app.sendto(b"question", relay.address)
            _, upstream = await asyncio.to_thread(origin.recvfrom, 100)
            closing = asyncio.create_task(relay.close())
            origin.sendto(b"answer", ("127.0.0.1", upstream[1]))
            await closing
        assert complaints == []
        app.settimeout(0)
        with pytest.raises(BlockingIOError):
            app.recv(100)

    asyncio.run(main())


def test_a_flow_for_which_the_system_has_no_socket_fails(
    app: socket.socket, origin: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves none open: that would be a ResourceWarning."""

    def bind(self: socket.socket, address: object) -> None:
        raise OSError(errno.ENOBUFS, "bind")

    with relaying(direct=True, to=address_of(origin)) as relay:
        with monkeypatch.context() as patch:
            patch.setattr(socket.socket, "bind", bind)
            app.sendto(b"x", relay.address)
            counters = when(relay, lambda counters: counters.errors.total() == 1)
            assert counters.errors == {("relay", "OSError"): 1}
        app.sendto(b"y", relay.address)
        assert origin.recv(10) == b"y"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has redirects")
def test_where_there_are_no_redirects_it_starts_only_for_what_is_direct() -> None:
    async def main() -> None:
        with pytest.raises(ProtocolOptionError):
            await DatagramRelay().start()

    asyncio.run(main())


def test_a_destination_that_is_the_relay_is_refused(engine: Engine, app: socket.socket) -> None:
    async def main() -> None:
        async with DatagramRelay() as relay:
            records = _wfpioctl.engine_make_records(b"records")
            context = blob((relay.address[0], relay.address[1]))
            relay.message_received(Datagram(b"x", app.getsockname(), 0, records, context))
            while not (refused := relay.counters.refused):
                await asyncio.sleep(0)
            assert refused == {"loop": 1}

    asyncio.run(main())


@pytest.mark.skipif(is_wine(), reason="Wine binds to addresses that it does not have")
def test_strangers_do_not_answer(app: socket.socket) -> None:
    from wfpioctl.relay.datagrams import _Flow

    flow = _Flow(DatagramRelay(), app.getsockname())
    flow.destination = ORIGINAL
    flow.message_received(Datagram(b"injected", ("198.51.100.1", 443), 0, None, None))
    assert flow.down == 0
