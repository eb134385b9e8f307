"""Redirects as objects: reading one, and going on to the destination with it."""

import asyncio
import pickle
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from support import (
    LOOPBACKS,
    ORIGINAL,
    TIMEOUT,
    Pair,
    Redirected,
    accept,
    address_of,
    every_dialect,
    listen,
    needs_ipv6,
)

import wfpioctl
from wfpioctl import Redirect, _wfpioctl, context
from wfpioctl.simulator import Connected, Engine, RecordsSet, Scripted, Step
from wfpioctl.simulator.addresses import bound

Closing = Callable[[socket.socket], socket.socket]


def destination(host: str, port: int) -> bytes:
    """The original destination as Microsoft's WFPSampler leaves it (W70)."""
    return context.encode(context.OriginalDestination((host, port)), "wfpsampler")


# ---- reading ----


@every_dialect
class TestReadRedirect:
    def test_records_and_context(self, redirected: Redirected) -> None:
        redirect = wfpioctl.read_redirect(redirected.accepted)
        assert redirect == Redirect(
            wfpioctl.query_redirect_records(redirected.accepted), b"context"
        )

    def test_W16_no_context(self, engine: Engine, listener: socket.socket) -> None:
        """In every dialect, also where the kernel denies that there is one."""
        engine.add_driver("A", proxy=address_of(listener))
        with socket.create_connection(ORIGINAL, TIMEOUT), accept(listener) as accepted:
            redirect = wfpioctl.read_redirect(accepted)
        assert redirect is not None
        assert redirect.records
        assert redirect.context == b""

    def test_W17_not_redirected(self, engine: Engine, pair: Pair) -> None:
        assert wfpioctl.read_redirect(pair.server) is None
        assert wfpioctl.read_redirect(pair.client) is None

    def test_W18_not_connected_is_not_the_same(self, engine: Engine, tcp: socket.socket) -> None:
        with pytest.raises(wfpioctl.NotConnectedError):
            wfpioctl.read_redirect(tcp)


def test_redirect_is_a_value() -> None:
    redirect = Redirect(b"records", b"context")
    assert redirect == Redirect(b"records", b"context") != Redirect(b"records")
    assert {redirect: 1}[Redirect(b"records", b"context")] == 1
    assert pickle.loads(pickle.dumps(redirect)) == redirect
    with pytest.raises(AttributeError):
        redirect.records = b""  # type: ignore[misc]


def test_W26_repr_shows_sizes_and_not_what_is_none_of_ours() -> None:
    assert repr(Redirect(b"secret", b"secrets")) == "<Redirect records=6 bytes context=7 bytes>"


# ---- going on ----


@pytest.fixture
def redirect(redirected: Redirected) -> Redirect:
    """The Redirect of an active engine's connection; its driver matches only ORIGINAL."""
    redirect = wfpioctl.read_redirect(redirected.accepted)
    assert redirect is not None
    return redirect


@pytest.fixture
def end(engine: Engine) -> Iterator[socket.socket]:
    """Where ORIGINAL really is."""
    with listen() as sock:
        engine.route(ORIGINAL, address_of(sock))
        yield sock


@pytest.mark.thread_unsafe
def test_W23_records_are_set_before_the_connect(
    engine: Engine, redirect: Redirect, end: socket.socket
) -> None:
    with wfpioctl.create_connection(redirect, ORIGINAL, TIMEOUT) as sock, accept(end) as accepted:
        accepted.sendall(b"x")
        assert sock.recv(1) == b"x"
        assert _wfpioctl.engine_records_of(sock.fileno()) == redirect.records
    set_at, connected = engine.trace[-2:]
    assert isinstance(set_at, RecordsSet)
    assert isinstance(connected, Connected)
    assert connected.target == address_of(end)


def test_W23_records_are_set_before_the_bind(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of the calls, where the caller has a source address."""
    calls: list[str] = []

    class Spy(socket.socket):
        def bind(self, address: Any) -> None:
            calls.append(f"bind {len(script.calls)}")
            super().bind(address)

        def connect(self, address: Any) -> None:
            calls.append(f"connect {len(script.calls)}")

    monkeypatch.setattr(socket, "socket", Spy)
    with Scripted(steps=[Step()]) as script:
        made = wfpioctl.create_connection(
            Redirect(b"records"), ("127.0.0.1", 9), source_address=("127.0.0.1", 0)
        )
        made.close()
    assert calls == ["bind 1", "connect 1"]
    assert script.calls[0].input == b"records"


def test_original_destination_is_read_from_the_context(
    redirected: Redirected, listener: socket.socket, end: socket.socket, closing: Closing
) -> None:
    redirected.driver.context = destination(*ORIGINAL)
    closing(socket.create_connection(ORIGINAL, TIMEOUT))
    redirect = wfpioctl.read_redirect(closing(accept(listener)))
    assert redirect is not None
    with wfpioctl.create_connection(redirect, timeout=TIMEOUT):
        accept(end).close()


@pytest.mark.parametrize("data", [b"", b"context", bytes(256)], ids=["none", "other", "zeros"])
def test_context_of_another_layout(redirect: Redirect, data: bytes) -> None:
    """Then the caller must say where to go; no socket is made."""
    with pytest.raises(context.ContextError):
        wfpioctl.create_connection(Redirect(redirect.records, data))


@pytest.mark.parametrize("family", LOOPBACKS)
def test_families(
    engine: Engine, redirect: Redirect, family: socket.AddressFamily, closing: Closing
) -> None:
    there = closing(listen(family))
    sock = closing(wfpioctl.create_connection(redirect, address_of(there), TIMEOUT))
    assert sock.family == family


@needs_ipv6
def test_a_full_ipv6_address_is_not_resolved(
    redirect: Redirect, closing: Closing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a decoded context has it: the scope of a link-local address is not lost on the way."""
    monkeypatch.setattr(socket, "getaddrinfo", None)
    there = closing(listen(socket.AF_INET6))
    address = there.getsockname()
    assert len(address) == 4
    sock = closing(wfpioctl.create_connection(redirect, address, TIMEOUT))
    assert sock.getpeername() == address


def test_host_name(redirect: Redirect, listener: socket.socket) -> None:
    address = ("localhost", address_of(listener)[1])
    with wfpioctl.create_connection(redirect, address, TIMEOUT), accept(listener):
        pass


@pytest.mark.parametrize("timeout", [None, 7.5])
def test_timeout(redirect: Redirect, end: socket.socket, timeout: float | None) -> None:
    with wfpioctl.create_connection(redirect, ORIGINAL, timeout) as sock:
        assert sock.gettimeout() == timeout
        accept(end).close()


def test_default_timeout(redirect: Redirect, end: socket.socket) -> None:
    socket.setdefaulttimeout(7.5)
    try:
        with wfpioctl.create_connection(redirect, ORIGINAL) as sock:
            assert sock.gettimeout() == 7.5
    finally:
        socket.setdefaulttimeout(None)
    accept(end).close()


def test_source_address(redirect: Redirect, end: socket.socket) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        source = address_of(free)
    with wfpioctl.create_connection(redirect, ORIGINAL, TIMEOUT, source) as sock:
        assert sock.getsockname() == source
        accept(end).close()


def resolving_to(*addresses: tuple[str, int]) -> Callable[..., Any]:
    def getaddrinfo(*arguments: object, **options: object) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", address) for address in addresses]

    return getaddrinfo


def test_each_address_is_tried_with_a_new_socket(
    engine: Engine,
    redirect: Redirect,
    listener: socket.socket,
    nowhere: tuple[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolve = resolving_to(nowhere, nowhere, address_of(listener))
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with (
        wfpioctl.create_connection(redirect, ("example.invalid", 80), TIMEOUT) as sock,
        accept(listener) as accepted,
    ):
        assert sock.getpeername() == accepted.getsockname()
    assert sum(isinstance(event, RecordsSet) for event in engine.trace) == 3


def test_last_attempts_error_names_all_attempts(
    redirect: Redirect, nowhere: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", resolving_to(nowhere, ("127.0.0.1", 0)))
    with pytest.raises(OSError) as caught:  # noqa: PT011 - its notes are compared
        wfpioctl.create_connection(redirect, ("example.invalid", 80), TIMEOUT)
    notes = [note.partition(":")[0] for note in caught.value.__notes__]
    assert notes == [f"{nowhere[0]} port {nowhere[1]}", "127.0.0.1 port 0"]


def test_the_error_of_an_only_attempt_has_no_note(
    redirect: Redirect, nowhere: tuple[str, int]
) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - its notes are compared
        wfpioctl.create_connection(redirect, nowhere, TIMEOUT)
    assert not hasattr(caught.value, "__notes__")


def test_host_that_resolves_to_nothing(redirect: Redirect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", resolving_to())
    with pytest.raises(OSError, match=r"'example\.invalid' resolves to no address"):
        wfpioctl.create_connection(redirect, ("example.invalid", 80))


def test_records_that_cannot_be_set(redirect: Redirect, listener: socket.socket) -> None:
    """Nothing is connected, and no socket is left open (an unclosed one fails the test)."""
    forged = Redirect(b"forged", b"")
    with pytest.raises(wfpioctl.InvalidArgumentError):
        wfpioctl.create_connection(forged, address_of(listener))
    with pytest.raises(wfpioctl.InvalidArgumentError):
        wfpioctl.socket_factory(forged)((socket.AF_INET, socket.SOCK_STREAM, 0))
    listener.settimeout(0)
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_W20_set_that_needs_an_elevated_process() -> None:
    with Scripted(steps=[Step(10013)]), pytest.raises(PermissionError):
        wfpioctl.create_connection(Redirect(b"records"), ("127.0.0.1", 9))


# ---- for clients that take a socket factory ----


def test_socket_factory(redirect: Redirect, end: socket.socket) -> None:
    make = wfpioctl.socket_factory(redirect)
    with ExitStack() as stack:
        for info in socket.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM):
            sock = stack.enter_context(make(info))
            assert (sock.family, sock.type, sock.proto) == info[:3]
            assert bound(sock) is None
            assert _wfpioctl.engine_records_of(sock.fileno()) == redirect.records


def test_W27_factories_keep_records_apart(
    engine: Engine, redirect: Redirect, listener: socket.socket, closing: Closing
) -> None:
    closing(socket.create_connection(ORIGINAL, TIMEOUT))
    other = wfpioctl.read_redirect(closing(accept(listener)))
    assert other is not None
    assert other.records != redirect.records
    info = (socket.AF_INET, socket.SOCK_STREAM, 0)
    for each in (redirect, other):
        sock = closing(wfpioctl.socket_factory(each)(info))
        assert _wfpioctl.engine_records_of(sock.fileno()) == each.records


def test_aiohttp_takes_the_factory(engine: Engine, redirect: Redirect) -> None:
    aiohttp = pytest.importorskip("aiohttp")
    before = len(engine.trace)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def main() -> bytes:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            engine.route(ORIGINAL, server.sockets[0].getsockname())
            connector = aiohttp.TCPConnector(socket_factory=wfpioctl.socket_factory(redirect))
            host, port = ORIGINAL
            async with (
                aiohttp.ClientSession(connector=connector, trust_env=False) as session,
                session.get(f"http://{host}:{port}/") as response,
            ):
                return bytes(await response.read())

    assert asyncio.run(main()) == b"ok"
    assert [type(event) for event in engine.trace[before:]] == [RecordsSet, Connected]
