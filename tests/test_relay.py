"""The relay as a library: where it goes, what it refuses, and that no byte is lost on the way."""

import asyncio
import contextlib
import errno
import itertools
import logging
import os
import random
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from conftest import is_wine
from relay_support import (
    AwaitingLoop,
    Running,
    blob,
    echo,
    every_loop,
    redirect_to,
    relaying,
    serving,
)
from support import (
    ORIGINAL,
    TIMEOUT,
    accept,
    address_of,
    every_dialect,
    needs_ipv6,
    read_all,
    reset,
    running,
)

from wfpioctl.context import Layout, OriginalDestination, sockaddr
from wfpioctl.relay import Decision, Flow, Relay
from wfpioctl.relay.listener import is_local
from wfpioctl.simulator import Engine, RecordsSet, Scripted, Step

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

LOTS = 1 << 27  # bytes; more than all the buffers on the way hold

needs_resets = pytest.mark.skipif(is_wine(), reason="Wine ends in order what it should reset")


@pytest.fixture
def new_loop() -> Callable[[], asyncio.AbstractEventLoop]:
    return asyncio.new_event_loop


@pytest.fixture
def origin() -> Iterator[tuple[str, int]]:
    """Sends back what it gets."""
    with serving(echo) as address:
        yield address


@pytest.fixture
def relay(
    engine: Engine, origin: tuple[str, int], new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> Iterator[Running]:
    """A relay between the app and the origin."""
    with relaying(new_loop) as relay:
        redirect_to(relay, engine, origin)
        yield relay


def app(address: tuple[str, int] = ORIGINAL) -> socket.socket:
    return socket.create_connection(address, TIMEOUT)


def ask(data: bytes = b"hello", address: tuple[str, int] = ORIGINAL) -> bytes:
    """Send, end, and read to the end."""
    with app(address) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        return read_all(sock)


def assert_reset(sock: socket.socket) -> None:
    """The connection ends with a reset; in Wine with an end, for its close knows no other."""
    with contextlib.suppress(ConnectionError):
        read_all(sock)
        assert is_wine(), "the connection ended in order"


def assert_refused(address: tuple[str, int] = ORIGINAL) -> None:
    with contextlib.suppress(ConnectionError), app(address) as sock:
        assert_reset(sock)


# ---- the way ----


@every_loop
@every_dialect
def test_goes_on_to_the_original_destination_with_the_records(
    relay: Running, engine: Engine
) -> None:
    assert ask(b"hello") == b"hello"
    counters = relay.settled()
    assert (counters.finished, counters.bytes_up, counters.bytes_down) == (1, 5, 5)
    [was_set] = [event for event in engine.trace if isinstance(event, RecordsSet)]
    assert was_set.code == 0
    assert was_set.size > 0


def test_to_replaces_the_destination(engine: Engine, origin: tuple[str, int]) -> None:
    with relaying(to=origin) as relay:
        engine.add_driver("A", proxy=relay.address, match=ORIGINAL, context=b"of no known layout")
        assert ask() == b"hello"


def test_another_layout(engine: Engine, origin: tuple[str, int]) -> None:
    from wfpioctl import context

    with relaying(layout="tunless") as relay:
        engine.route(ORIGINAL, origin)
        described = context.OriginalDestination(ORIGINAL, process_id=7, image_path="app.exe")
        engine.add_driver(
            "A",
            proxy=relay.address,
            match=ORIGINAL,
            context=context.encode(described, "tunless"),
        )
        assert ask() == b"hello"


@needs_ipv6
def test_ipv6(engine: Engine, origin: tuple[str, int]) -> None:
    with relaying(listen=("::1", 0), to=origin) as relay:
        engine.add_driver("A", proxy=relay.address, match=ORIGINAL)
        with socket.socket(socket.AF_INET6) as sock:
            sock.settimeout(TIMEOUT)
            sock.connect((f"::ffff:{ORIGINAL[0]}", ORIGINAL[1]))
            sock.sendall(b"six")
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock) == b"six"


# ---- what is refused ----


def refused(relay: Running) -> dict[str, int]:
    return dict(relay.settled().refused)


def test_what_was_not_redirected_is_refused(engine: Engine) -> None:
    with relaying() as relay:
        assert_refused(relay.address)
        assert refused(relay) == {"not redirected": 1}


def test_without_any_provider_everything_is_refused() -> None:
    with relaying(to=("127.0.0.1", 9)) as relay:
        assert_refused(relay.address)
        assert sum(refused(relay).values()) == 1


def test_W60_a_lost_tag_is_refused(relay: Running, engine: Engine) -> None:
    engine.drivers[0].lose_tag = True
    assert_refused()
    assert refused(relay) == {"not redirected": 1}


def test_direct_serves_what_was_not_redirected(origin: tuple[str, int]) -> None:
    with relaying(direct=True, to=origin) as relay:
        assert ask(address=relay.address) == b"hello"


def test_direct_without_a_destination_is_refused() -> None:
    with relaying(direct=True) as relay:
        assert_refused(relay.address)
        assert refused(relay) == {"no destination": 1}


def test_W16_no_context_is_refused(relay: Running, engine: Engine) -> None:
    engine.drivers[0].context = b""
    assert_refused()
    assert refused(relay) == {"no destination": 1}


def test_a_layout_that_fails_fails_the_connection_and_is_told(
    engine: Engine, origin: tuple[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    class Faulty(Layout):
        def decode(self, context: "ReadableBuffer", /) -> OriginalDestination:
            raise ZeroDivisionError

    with relaying(layout=Faulty("faulty", [sockaddr("destination")])) as relay:
        redirect_to(relay, engine, origin)
        assert_refused()
        assert errors(relay) == {("relay", "ZeroDivisionError"): 1}
    assert "a fault of the relay" in caplog.text


def test_an_undecodable_context_is_refused_and_told(
    relay: Running, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.drivers[0].context = b"\xff" * 256
    with caplog.at_level(logging.INFO, "wfpioctl.relay"):
        assert_refused()
        assert refused(relay) == {"bad context": 1}
    assert "bad context: wfpsampler: destination at offset 0" in caplog.text


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_destination_that_is_the_relay_is_refused(
    relay: Running, engine: Engine, host: str
) -> None:
    engine.drivers[0].context = blob((host, relay.address[1]))
    assert_refused()
    assert refused(relay) == {"loop": 1}


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("0.0.0.0", True),
        pytest.param(
            *("198.51.100.1", False),
            marks=pytest.mark.skipif(is_wine(), reason="binds to addresses that it does not have"),
        ),
    ],
)
def test_addresses_of_this_machine(host: str, local: bool) -> None:
    assert is_local((host, 80)) is local


# ---- the policy ----


def test_a_policy_sees_the_flow(engine: Engine, origin: tuple[str, int]) -> None:
    flows: list[Flow] = []

    def permit(flow: Flow) -> Decision:
        flows.append(flow)
        return Decision.PERMIT

    with relaying(policy=permit) as relay:
        redirect_to(relay, engine, origin)
        assert ask() == b"hello"
    [flow] = flows
    assert flow.destination == ORIGINAL
    assert flow.client[0] == "127.0.0.1"
    assert flow.redirect is not None
    assert flow.original is not None
    assert flow.original.address == ORIGINAL


def test_a_policy_rewrites(engine: Engine, origin: tuple[str, int]) -> None:
    with relaying(policy=lambda flow: origin) as relay:
        engine.add_driver("A", proxy=relay.address, match=ORIGINAL, context=blob())
        assert ask() == b"hello"


def test_a_policy_may_be_a_coroutine(engine: Engine, origin: tuple[str, int]) -> None:
    async def permit(flow: Flow) -> Decision:
        await asyncio.sleep(0)
        return Decision.PERMIT

    with relaying(policy=permit) as relay:
        redirect_to(relay, engine, origin)
        assert ask() == b"hello"


def test_with_a_destination_of_its_own_a_policy_also_sees_what_no_layout_fits(
    engine: Engine, origin: tuple[str, int]
) -> None:
    flows: list[Flow] = []

    def permit(flow: Flow) -> Decision:
        flows.append(flow)
        return Decision.PERMIT

    with relaying(to=origin, policy=permit) as relay:
        engine.add_driver("A", proxy=relay.address, match=ORIGINAL, context=b"of no known layout")
        assert ask() == b"hello"
    [flow] = flows
    assert (flow.destination, flow.original) == (origin, None)


def test_a_policy_blocks(engine: Engine, origin: tuple[str, int]) -> None:
    with relaying(policy=lambda flow: Decision.BLOCK) as relay:
        redirect_to(relay, engine, origin)
        assert_refused()
        assert refused(relay) == {"blocked": 1}


async def never(flow: Flow) -> Decision:
    await asyncio.Event().wait()
    raise AssertionError


@pytest.mark.parametrize(
    "policy",
    [
        pytest.param(lambda flow: 1 / 0, id="raises"),
        pytest.param(lambda flow: None, id="None"),
        pytest.param(lambda flow: ("name.example", 80), id="a name"),
        pytest.param(lambda flow: (), id="no address"),
        pytest.param(never, id="never"),
    ],
)
def test_a_policy_that_fails_blocks(
    policy: Any, engine: Engine, origin: tuple[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    with relaying(policy=policy, connect_timeout=0.2) as relay:
        redirect_to(relay, engine, origin)
        assert_refused()
        assert refused(relay) == {"policy failed": 1}
    assert "the policy failed" in caplog.text


# ---- errors, each on its side ----


def errors(relay: Running) -> dict[tuple[str, str], int]:
    return dict(relay.settled().errors)


@every_loop
def test_a_destination_that_refuses(
    engine: Engine,
    nowhere: tuple[str, int],
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    with relaying(new_loop) as relay:
        redirect_to(relay, engine, nowhere)
        assert_refused()
        assert errors(relay) == {("upstream", "ConnectionRefusedError"): 1}


@pytest.fixture
def distant(monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket that does not block, as the relay's, is not connected when it is first asked."""
    getpeername, asked = socket.socket.getpeername, set()

    def not_yet(self: socket.socket) -> Any:
        if self.gettimeout() == 0 and self not in asked:
            asked.add(self)
            raise OSError(errno.ENOTCONN, "not yet")
        return getpeername(self)

    monkeypatch.setattr(socket.socket, "getpeername", not_yet)


@every_loop
def test_a_destination_that_is_not_reached_at_once(distant: None, relay: Running) -> None:
    assert ask(b"hello") == b"hello"
    assert relay.settled().finished == 1


@pytest.mark.skipif(is_wine(), reason="Wine's accept fails for what was reset meanwhile")
@every_loop
def test_an_abort_that_comes_with_the_connection(
    distant: None,
    engine: Engine,
    origin: tuple[str, int],
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """The loop learns of both in one of its rounds."""

    def abort_and_permit(flow: Flow) -> Decision:
        relay.loop.call_soon(relay.relay.abort)
        return Decision.PERMIT

    with relaying(new_loop, policy=abort_and_permit) as relay:
        redirect_to(relay, engine, origin)
        assert_refused()
        assert errors(relay) == {("relay", "CancelledError"): 1}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows refuses what the backlog cannot hold")
def test_a_destination_that_does_not_answer(engine: Engine) -> None:
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as full,
        socket.create_connection(address_of(full)),
        relaying(connect_timeout=0.2) as relay,
    ):
        redirect_to(relay, engine, address_of(full))
        assert_refused()
        assert errors(relay) == {("upstream", "TimeoutError"): 1}


@needs_resets
@every_loop
def test_a_client_that_resets_is_a_reset_upstream(
    engine: Engine,
    listener: socket.socket,
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    with relaying(new_loop) as relay:
        redirect_to(relay, engine, address_of(listener))
        client = app()
        client.sendall(b"x")
        with accept(listener) as upstream:
            assert upstream.recv(1) == b"x"
            reset(client)
            assert_reset(upstream)
        [(side, _)] = errors(relay)
        assert side == "client"


@needs_resets
@every_loop
def test_an_upstream_that_resets_is_a_reset_for_the_client(
    engine: Engine,
    listener: socket.socket,
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    with relaying(new_loop) as relay:
        redirect_to(relay, engine, address_of(listener))
        with app() as client:
            client.sendall(b"x")
            upstream = accept(listener)
            assert upstream.recv(1) == b"x"
            reset(upstream)
            assert_reset(client)
        [(side, _)] = errors(relay)
        assert side == "upstream"


@needs_resets
@every_loop
def test_both_sides_that_reset_at_once_are_one_failure(
    engine: Engine,
    listener: socket.socket,
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    with relaying(new_loop) as relay:
        redirect_to(relay, engine, address_of(listener))
        client = app()
        client.sendall(b"x")
        upstream = accept(listener)
        assert upstream.recv(1) == b"x"

        async def reset_both() -> None:  # while the loop cannot look
            reset(client)
            reset(upstream)

        relay.call(reset_both())
        assert sum(errors(relay).values()) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="the proactor calls no send()")
@every_loop
@pytest.mark.parametrize("waits", [False, True], ids=["at once", "after a wait"])
def test_an_upstream_that_takes_no_more_may_still_answer(
    engine: Engine,
    listener: socket.socket,
    new_loop: Callable[[], asyncio.AbstractEventLoop],
    monkeypatch: pytest.MonkeyPatch,
    waits: bool,
) -> None:
    send, failed = socket.socket.send, threading.Event()
    waiting = iter([BlockingIOError] * waits)

    def send_nothing_upstream(self: socket.socket, *arguments: Any) -> int:
        if self.gettimeout() == 0 and self.getpeername() == listener.getsockname():
            for wait in waiting:
                raise wait
            failed.set()
            raise ConnectionResetError
        return send(self, *arguments)

    monkeypatch.setattr(socket.socket, "send", send_nothing_upstream)
    with relaying(new_loop) as relay:
        redirect_to(relay, engine, address_of(listener))
        with app() as client:
            client.sendall(b"an upload that nobody wants")
            with accept(listener) as upstream:
                assert failed.wait(TIMEOUT)
                upstream.sendall(b"413")
            assert client.recv(3) == b"413"
            assert_reset(client)
        assert errors(relay) == {("upstream", "ConnectionResetError"): 1}


@pytest.mark.parametrize("steps", [[Step(10050)], [Step(1168), Step(10050)]])
def test_a_query_that_fails_is_the_relays_error(steps: list[Step]) -> None:
    with Scripted(steps=steps), relaying(direct=True) as relay:
        assert_refused(relay.address)
        assert errors(relay) == {("relay", "NetworkDownError"): 1}


def test_a_refused_SET_is_the_relays_error(relay: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    from wfpioctl import redirect
    from wfpioctl.errors import error_from_code

    def deny(sock: object, records: object) -> None:
        raise error_from_code("SIO_SET_WFP_CONNECTION_REDIRECT_RECORDS", 10013)

    monkeypatch.setattr(redirect, "set_redirect_records", deny)
    assert_refused()
    assert errors(relay) == {("relay", "AccessDeniedError"): 1}


# ---- bytes ----


@every_loop
def test_half_close_of_the_client(
    engine: Engine,
    listener: socket.socket,
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    with relaying(new_loop) as relay:
        redirect_to(relay, engine, address_of(listener))
        with app() as client:
            client.sendall(b"question")
            client.shutdown(socket.SHUT_WR)
            with accept(listener) as upstream:
                assert read_all(upstream) == b"question"
                upstream.sendall(b"answer")
            assert read_all(client) == b"answer"
        assert relay.settled().finished == 1


@every_loop
def test_half_close_of_the_upstream(
    engine: Engine,
    listener: socket.socket,
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    with relaying(new_loop) as relay:
        redirect_to(relay, engine, address_of(listener))
        with app() as client:
            client.sendall(b"first")
            with accept(listener) as upstream:
                upstream.shutdown(socket.SHUT_WR)
                assert read_all(client) == b""
                client.sendall(b", then the rest")
                client.shutdown(socket.SHUT_WR)
                assert read_all(upstream) == b"first, then the rest"
        assert relay.settled().finished == 1


@every_loop
@pytest.mark.parametrize("seed", range(4))
def test_random_chunks_both_ways_at_once(relay: Running, seed: int) -> None:
    randomly = random.Random(seed)
    data = randomly.randbytes(3_000_000)

    def send(sock: socket.socket) -> None:
        view = memoryview(data)
        while view:
            size = randomly.choice((1, 3, 1000, 65_536, 65_537, 300_000))
            sock.sendall(view[:size])
            view = view[size:]
        sock.shutdown(socket.SHUT_WR)

    with app() as sock, running(lambda: send(sock)):
        assert read_all(sock) == data
    counters = relay.settled()
    assert (counters.bytes_up, counters.bytes_down) == (len(data), len(data))


@pytest.fixture
def reluctant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets that do not block, which are the relay's and no test's, do nothing every other time,
    and send at most 1,000 bytes."""

    def reluctantly(name: str) -> Callable[..., Any]:
        plain, turns = getattr(socket.socket, name), itertools.count()

        def call(self: socket.socket, data: Any, *rest: Any) -> Any:
            if self.gettimeout() == 0 and self.family != getattr(socket, "AF_UNIX", None):
                if next(turns) % 2:
                    raise BlockingIOError
                if name == "send":
                    data = memoryview(data)[:1000]
            return plain(self, data, *rest)

        return call

    for name in ("recv", "recv_into", "send"):
        monkeypatch.setattr(socket.socket, name, reluctantly(name))


@pytest.mark.skipif(sys.platform == "win32", reason="a loop's own sockets are no others there")
@every_loop
def test_sockets_that_are_not_ready_after_all_cost_no_byte(reluctant: None, relay: Running) -> None:
    data = random.randbytes(200_000)
    assert ask(data) == data
    assert relay.settled().finished == 1


def client_hello(name: bytes) -> bytes:
    """TLS's first message with this server name, in as many records as it needs."""
    server_name = b"\0" + len(name).to_bytes(2, "big") + name
    names = len(server_name).to_bytes(2, "big") + server_name
    extensions = b"\0\0" + len(names).to_bytes(2, "big") + names
    body = b"\3\3" + bytes(32) + b"\0" + b"\0\2\x13\1" + b"\1\0"
    body += len(extensions).to_bytes(2, "big") + extensions
    message = b"\1" + len(body).to_bytes(3, "big") + body
    parts = [message[at : at + 16_384] for at in range(0, len(message), 16_384)]
    return b"".join(b"\x16\3\1" + len(part).to_bytes(2, "big") + part for part in parts)


@every_loop
@pytest.mark.parametrize("size", [0, 255, 16_384, 65_526])
def test_a_tls_hello_with_any_server_name_passes_unchanged(relay: Running, size: int) -> None:
    """The relay looks at no byte: no name is too long for it."""
    hello = client_hello(b"a" * size)
    assert ask(hello) == hello
    assert relay.settled().finished == 1


@every_loop
def test_a_tls_hello_may_come_byte_by_byte(relay: Running) -> None:
    hello = client_hello(b"a" * 16_384)
    with app() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def send() -> None:
            for byte in hello:
                sock.sendall(bytes([byte]))
            sock.shutdown(socket.SHUT_WR)

        with running(send):
            assert read_all(sock) == hello


@every_loop
def test_a_slow_reader_stops_the_sender(
    engine: Engine,
    listener: socket.socket,
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    with relaying(new_loop) as relay:
        redirect_to(relay, engine, address_of(listener))
        with app() as client, accept(listener) as upstream:
            upstream.settimeout(0.3)
            sent = b""
            with contextlib.suppress(TimeoutError):
                while len(sent) < LOTS:
                    piece = random.randbytes(1 << 18)
                    sent += piece[: upstream.send(piece)]
            assert len(sent) < LOTS, "nothing ever stopped the sender"
            upstream.shutdown(socket.SHUT_WR)
            assert read_all(client) == sent


def test_what_the_upstream_said_before_it_reset_arrives(
    engine: Engine, listener: socket.socket
) -> None:
    with relaying() as relay:
        redirect_to(relay, engine, address_of(listener))
        with app() as client:
            with accept(listener) as upstream:
                client.sendall(b"an upload that nobody wants")
                upstream.sendall(b"413")
            assert client.recv(3) == b"413"


# ---- limits ----


@every_loop
def test_at_the_limit_clients_wait_in_the_backlog(
    engine: Engine,
    origin: tuple[str, int],
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    with relaying(new_loop, max_connections=2) as relay:
        redirect_to(relay, engine, origin)
        with app() as first, app() as second:
            relay.when(lambda counters: counters.accepted == 2)
            with app() as third:
                third.sendall(b"third")
                third.settimeout(0.2)
                with pytest.raises(TimeoutError):
                    third.recv(5)
                assert relay.counters.accepted == 2
                first.close()
                third.settimeout(TIMEOUT)
                assert third.recv(5) == b"third"
            second.sendall(b"second")
            assert second.recv(6) == b"second"


@every_loop
def test_an_idle_connection_is_reset(
    engine: Engine,
    origin: tuple[str, int],
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    with relaying(new_loop, idle_timeout=0.2) as relay:
        redirect_to(relay, engine, origin)
        with app() as client:
            assert_reset(client)
        assert errors(relay) == {("relay", "IdleTimeoutError"): 1}


def test_a_busy_connection_outlives_the_idle_timeout(
    engine: Engine, origin: tuple[str, int]
) -> None:
    with relaying(idle_timeout=0.4) as relay:
        redirect_to(relay, engine, origin)
        with app() as idle, app() as busy:
            idle.setblocking(False)
            alive = True
            while alive:  # as long as the idle one lives, and then it is dead
                busy.sendall(b".")
                assert busy.recv(1) == b"."
                try:
                    alive = idle.recv(1) != b""  # Wine sends a FIN where others send a RST
                except BlockingIOError:
                    continue
                except ConnectionError:
                    alive = False
            busy.sendall(b"!")
            assert busy.recv(1) == b"!"


def test_a_connection_that_is_being_decided_is_not_idle(
    engine: Engine, origin: tuple[str, int]
) -> None:
    flows: list[Flow] = []
    decided = asyncio.Event()

    async def permit_the_first(flow: Flow) -> Decision:
        flows.append(flow)
        if len(flows) > 1:
            await decided.wait()
        return Decision.PERMIT

    with relaying(idle_timeout=0.2, policy=permit_the_first, connect_timeout=TIMEOUT) as relay:
        redirect_to(relay, engine, origin)
        with app() as idle, app() as waiting:
            assert_reset(idle)
            relay.loop.call_soon_threadsafe(decided.set)
            waiting.sendall(b"x")
            assert waiting.recv(1) == b"x"


def test_without_an_idle_timeout_nothing_is_swept(engine: Engine, origin: tuple[str, int]) -> None:
    with relaying(idle_timeout=None) as relay:
        redirect_to(relay, engine, origin)
        assert ask() == b"hello"
        assert relay.call(relay.relay.drain()) is True


def test_the_counters_can_be_read_from_any_thread(relay: Running) -> None:
    """While connections come and go; what is counted only grows."""
    ended = threading.Event()

    def come_and_go() -> None:
        try:
            for _ in range(20):
                with contextlib.ExitStack() as stack:
                    for _ in range(10):
                        stack.enter_context(app())
        finally:
            ended.set()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with running(come_and_go):
            before = relay.relay.counters
            while not ended.is_set():
                now = relay.relay.counters
                assert now.accepted >= before.accepted
                assert now.finished >= before.finished
                before = now
    finally:
        sys.setswitchinterval(interval)


def test_hostile_clients_do_not_disturb_the_others(relay: Running) -> None:
    def reset_storm() -> None:
        for _ in range(100):
            with contextlib.suppress(ConnectionError):
                sock = app()
                sock.sendall(b"x" * 1000)
                reset(sock)

    def one_byte_at_a_time() -> None:
        with app() as sock:
            for byte in range(200):
                sock.sendall(bytes([byte]))
                assert sock.recv(1) == bytes([byte])

    def hold_and_say_nothing() -> None:
        with contextlib.ExitStack() as stack:
            for _ in range(50):
                stack.enter_context(app())
            assert ask(b"meanwhile") == b"meanwhile"

    with running(reset_storm, one_byte_at_a_time, hold_and_say_nothing):
        for number in range(50):
            data = number.to_bytes(2, "big") * 10_000
            assert ask(data) == data


def accepting(relay: Running, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Let the relay's next accept fail."""
    plain_accept = socket.socket.accept
    failures = iter([OSError(code, os.strerror(code))])

    def accept_once_failing(self: socket.socket) -> Any:
        if address_of(self) == relay.address:
            for failure in failures:
                raise failure
        return plain_accept(self)

    monkeypatch.setattr(socket.socket, "accept", accept_once_failing)


@every_loop
def test_out_of_descriptors_is_a_pause_not_an_end(
    relay: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    accepting(relay, monkeypatch, errno.EMFILE)
    assert ask() == b"hello"
    assert "accept failed" in caplog.text


@every_loop
def test_a_client_that_was_gone_when_accepted_disturbs_nobody(
    relay: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    accepting(relay, monkeypatch, errno.ECONNABORTED)
    assert ask() == b"hello"
    assert caplog.text == ""


# ---- the end ----


@every_loop
def test_drain_waits_for_what_is_left(relay: Running) -> None:
    with app() as client:
        client.sendall(b"before")
        assert client.recv(6) == b"before"
        draining = asyncio.run_coroutine_threadsafe(relay.relay.drain(TIMEOUT), relay.loop)
        relay.when(lambda _: relay.relay.closed)
        with pytest.raises(OSError):  # noqa: PT011 - refused, or reset
            ask()
        client.sendall(b"after")
        assert client.recv(5) == b"after"
        assert not draining.done()
    assert draining.result(TIMEOUT) is True
    assert relay.counters.failed == 0


def test_drain_at_the_limit(engine: Engine, origin: tuple[str, int]) -> None:
    with relaying(max_connections=1) as relay:
        redirect_to(relay, engine, origin)
        with app() as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            draining = asyncio.run_coroutine_threadsafe(relay.relay.drain(TIMEOUT), relay.loop)
            relay.when(lambda _: relay.relay.closed)
        assert draining.result(TIMEOUT) is True


class ToldLoop(AwaitingLoop):
    """``told``: a thread has handed it a connection."""

    def __init__(self) -> None:
        super().__init__()
        self.told = threading.Event()

    def call_soon_threadsafe(self, *arguments: Any, **options: Any) -> Any:
        handle = super().call_soon_threadsafe(*arguments, **options)
        if any(isinstance(argument, socket.socket) for argument in arguments):
            self.told.set()
        return handle


def test_what_a_thread_accepted_before_the_end_is_closed() -> None:
    with relaying(ToldLoop) as relay:

        async def accept_and_drain() -> socket.socket:  # while the loop cannot take it
            assert isinstance(relay.loop, ToldLoop)
            relay.loop.told.clear()
            client = app(relay.address)
            assert relay.loop.told.wait(TIMEOUT)
            await relay.relay.drain(0)
            return client

        with relay.call(accept_and_drain()) as client, contextlib.suppress(ConnectionError):
            assert client.recv(1) == b""
    assert relay.relay.counters.accepted == 0


@every_loop
def test_drain_resets_what_does_not_end_in_time(relay: Running) -> None:
    with app() as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        assert relay.call(relay.relay.drain(0.05)) is False
        assert_reset(client)
    assert errors(relay) == {("relay", "CancelledError"): 1}


def test_abort_ends_a_drain(relay: Running) -> None:
    with app() as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        draining = asyncio.run_coroutine_threadsafe(relay.relay.drain(TIMEOUT), relay.loop)
        relay.loop.call_soon_threadsafe(relay.relay.abort)
        assert draining.result(TIMEOUT) is True
        assert_reset(client)


def test_as_a_context_manager() -> None:
    async def main() -> None:
        async with Relay() as relay:
            reader, writer = await asyncio.open_connection(*relay.address)
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            assert relay.counters.refused.total() == 1

    asyncio.run(main())


@pytest.mark.parametrize(
    "options", [{"max_connections": 0}, {"to": ("name.example", 1)}, {"layout": "unheard of"}]
)
def test_bad_arguments(options: dict[str, Any]) -> None:
    with pytest.raises((ValueError, LookupError)):
        Relay(**options)


# ---- many at once ----


def test_five_hundred_at_once(relay: Running) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(app()) for _ in range(500)]
        relay.when(lambda counters: counters.active == 500)
        for number, client in enumerate(clients):
            client.sendall(number.to_bytes(4, "big"))
        for number, client in enumerate(clients):
            assert client.recv(4) == number.to_bytes(4, "big")
    counters = relay.settled()
    assert (counters.accepted, counters.finished) == (500, 500)
