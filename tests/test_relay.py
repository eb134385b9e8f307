"""The relay as a library: where it goes, what it refuses, and that no byte is lost on the way."""

import asyncio
import contextlib
import logging
import random
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import is_wine
from relay_support import Running, blob, echo, every_loop, redirect_to, relaying, serving
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

from wfpioctl.relay import Decision, Flow, Relay
from wfpioctl.simulator import Engine, RecordsSet

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


def test_at_the_limit_clients_wait_in_the_backlog(engine: Engine, origin: tuple[str, int]) -> None:
    with relaying(max_connections=2) as relay:
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


@every_loop
def test_out_of_descriptors_is_a_pause_not_an_end(
    relay: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import errno

    plain_accept = socket.socket.accept
    failures = iter([OSError(errno.EMFILE, "Too many open files")])

    def accept_once_failing(self: socket.socket) -> Any:
        if address_of(self) == relay.address:
            for failure in failures:
                raise failure
        return plain_accept(self)

    monkeypatch.setattr(socket.socket, "accept", accept_once_failing)
    assert ask() == b"hello"
    assert "accept failed" in caplog.text


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
