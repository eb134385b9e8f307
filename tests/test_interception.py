"""While an engine is active, Python's own connects go through it; otherwise they are untouched."""

import asyncio
import contextlib
import errno
import http.client
import http.server
import socket
import sys
import threading
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from support import (
    ORIGINAL,
    ORIGINAL6,
    TIMEOUT,
    accept,
    address_of,
    listen,
    needs_ipv6,
    running,
)

import wfpioctl
from wfpioctl.simulator import Connected, Connection, Engine

Closing = Callable[[socket.socket], socket.socket]


@pytest.fixture
def proxied(engine: Engine, listener: socket.socket) -> Engine:
    """An engine whose driver sends what goes to ORIGINAL to the listener."""
    engine.add_driver("A", proxy=address_of(listener), match=ORIGINAL, context=b"context")
    return engine


def was_redirected(listener: socket.socket) -> bool:
    with accept(listener) as accepted:
        redirect = wfpioctl.read_redirect(accepted)
        return redirect is not None and redirect.context == b"context"


# ---- sockets ----


def test_connect(proxied: Engine, listener: socket.socket, tcp: socket.socket) -> None:
    tcp.connect(ORIGINAL)
    assert was_redirected(listener)


def test_connect_ex(proxied: Engine, listener: socket.socket, tcp: socket.socket) -> None:
    assert tcp.connect_ex(ORIGINAL) == 0
    assert was_redirected(listener)


def test_create_connection(proxied: Engine, listener: socket.socket) -> None:
    with socket.create_connection(ORIGINAL, TIMEOUT):
        assert was_redirected(listener)


def test_subclass_of_socket(proxied: Engine, listener: socket.socket) -> None:
    class Socket(socket.socket):
        pass

    with Socket() as sock:
        sock.connect(ORIGINAL)
        assert was_redirected(listener)


def test_nonblocking_connect(proxied: Engine, listener: socket.socket, tcp: socket.socket) -> None:
    tcp.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        tcp.connect(ORIGINAL)
    assert was_redirected(listener)


def test_bound_socket_keeps_its_port(
    proxied: Engine, listener: socket.socket, tcp: socket.socket
) -> None:
    tcp.bind(("", 0))
    port = tcp.getsockname()[1]
    tcp.connect(ORIGINAL)
    assert tcp.getsockname()[1] == port
    assert was_redirected(listener)


def test_app_sees_a_connection_like_any_other(
    proxied: Engine, listener: socket.socket, tcp: socket.socket
) -> None:
    tcp.connect(ORIGINAL)
    with accept(listener) as accepted:
        tcp.sendall(b"request")
        assert accepted.recv(7) == b"request"
        accepted.sendall(b"response")
        assert tcp.recv(8) == b"response"


def binding(*failures: int, always: int = 0) -> Callable[[socket.socket, Any], None]:
    """A bind() that fails with these errors, one after the other."""
    plain, left = socket.socket.bind, iter(failures)

    def bind(self: socket.socket, address: Any) -> None:
        code = next(left, always)
        if code:
            raise OSError(code, "bind")
        plain(self, address)

    return bind


@pytest.mark.skipif(sys.platform == "darwin", reason="has one IPv4 loopback address")
def test_where_an_address_has_no_port_left_the_next_loopback_address_has(
    proxied: Engine, listener: socket.socket, tcp: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket.socket, "bind", binding(errno.EADDRINUSE, errno.EADDRINUSE))
    tcp.connect(ORIGINAL)
    assert tcp.getsockname()[0] == "127.0.0.3"
    assert was_redirected(listener)


@pytest.mark.parametrize("code", [errno.EADDRINUSE, errno.EACCES], ids=["in use", "no access"])
def test_a_connect_for_which_no_port_is_left_fails(
    proxied: Engine, tcp: socket.socket, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(socket.socket, "bind", binding(always=code))
    with pytest.raises(OSError) as caught:  # noqa: PT011 - its number is compared
        tcp.connect(ORIGINAL)
    assert caught.value.errno == code
    assert proxied.flow_count == 0


def listen_on_another_loopback_address() -> socket.socket:
    sock = socket.socket()
    sock.settimeout(TIMEOUT)
    sock.bind(("127.0.0.2", 0))
    sock.listen()
    return sock


@pytest.mark.skipif(sys.platform == "darwin", reason="has one IPv4 loopback address")
def test_a_proxy_on_another_loopback_address(engine: Engine, closing: Closing) -> None:
    there = closing(listen_on_another_loopback_address())
    engine.add_driver("A", proxy=address_of(there), match=ORIGINAL, context=b"context")
    closing(socket.create_connection(ORIGINAL, TIMEOUT))
    assert was_redirected(there)


@needs_ipv6
class TestIPv6:
    def test_ipv6_to_ipv6(self, engine: Engine, closing: Closing) -> None:
        listener = closing(listen(socket.AF_INET6))
        engine.add_driver("A", proxy=address_of(listener), match=ORIGINAL6, context=b"context")
        closing(socket.create_connection(ORIGINAL6, TIMEOUT))
        assert was_redirected(listener)

    def test_ipv6_app_to_an_ipv4_proxy(
        self, engine: Engine, listener: socket.socket, closing: Closing
    ) -> None:
        engine.add_driver("A", proxy=address_of(listener), match=ORIGINAL6, context=b"context")
        closing(socket.create_connection(ORIGINAL6, TIMEOUT))
        assert was_redirected(listener)

    def test_ipv4_app_to_an_ipv6_proxy(self, engine: Engine, closing: Closing) -> None:
        """No kernel can do that."""
        listener = closing(listen(socket.AF_INET6))
        engine.add_driver("A", proxy=address_of(listener), match=ORIGINAL)
        with pytest.raises(OSError, match="cannot be sent to") as caught:
            socket.create_connection(ORIGINAL, TIMEOUT)
        assert caught.value.errno == errno.EAFNOSUPPORT

    @pytest.mark.skipif(sys.platform == "darwin", reason="has one IPv4 loopback address")
    def test_bound_ipv6_app_to_an_ipv4_proxy_on_another_loopback_address(
        self, engine: Engine, closing: Closing
    ) -> None:
        there = closing(listen_on_another_loopback_address())
        engine.add_driver("A", proxy=address_of(there), match=ORIGINAL6, context=b"context")
        for bind in (True, False):
            sock = closing(socket.socket(socket.AF_INET6))
            if bind:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                sock.bind(("::", 0))
            sock.connect(ORIGINAL6)
            assert was_redirected(there)

    def test_v4_mapped_destination_is_the_ipv4_one(
        self, proxied: Engine, listener: socket.socket, closing: Closing
    ) -> None:
        sock = closing(socket.socket(socket.AF_INET6))
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.connect((f"::ffff:{ORIGINAL[0]}", ORIGINAL[1]))
        assert was_redirected(listener)
        assert connects(proxied)[0].destination == ORIGINAL

    def test_dual_stack_listener(self, engine: Engine, closing: Closing) -> None:
        listener = closing(socket.create_server(("::", 0), family=socket.AF_INET6,
                                                dualstack_ipv6=True))  # fmt: skip
        listener.settimeout(TIMEOUT)
        proxy = ("127.0.0.1", listener.getsockname()[1])
        engine.add_driver("A", proxy=proxy, match=ORIGINAL, context=b"context")
        closing(socket.create_connection(ORIGINAL, TIMEOUT))
        assert was_redirected(listener)


def connects(engine: Engine) -> list[Connected]:
    return [event for event in engine.trace if isinstance(event, Connected)]


def test_host_names_are_resolved_before_drivers_look(
    proxied: Engine, listener: socket.socket, tcp: socket.socket
) -> None:
    address = address_of(listener)
    tcp.connect(("localhost", address[1]))
    with accept(listener) as accepted:
        assert wfpioctl.read_redirect(accepted) is None
    assert [event.destination for event in connects(proxied)] == [address]


# ---- what is not the engine's business ----


def test_other_connects_pass_untouched(
    proxied: Engine, listener: socket.socket, tcp: socket.socket
) -> None:
    tcp.connect(address_of(listener))
    with accept(listener) as accepted:
        assert wfpioctl.read_redirect(accepted) is None


def test_udp_connects_pass_untouched(proxied: Engine, closing: Closing) -> None:
    receiver = closing(socket.socket(type=socket.SOCK_DGRAM))
    receiver.bind(("127.0.0.1", 0))
    sender = closing(socket.socket(type=socket.SOCK_DGRAM))
    sender.connect(receiver.getsockname())
    sender.send(b"x")
    receiver.settimeout(TIMEOUT)
    assert receiver.recv(1) == b"x"
    assert proxied.trace == []


def test_socket_pairs_pass_untouched(engine: Engine, listener: socket.socket) -> None:
    """On Windows they connect by TCP; an event loop has one inside."""
    engine.add_driver("A", proxy=address_of(listener))  # matches everything
    for sock in socket.socketpair():
        sock.close()
    asyncio.new_event_loop().close()
    assert engine.trace == []


@pytest.mark.linux_program
def test_unix_connects_pass_untouched(proxied: Engine, tmp_path: Any, closing: Closing) -> None:
    listener = closing(socket.socket(socket.AF_UNIX))
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    for way in ("connect", "connect_ex"):
        sock = closing(socket.socket(socket.AF_UNIX))
        assert not getattr(sock, way)(str(tmp_path / "s"))
        assert sock.getpeername() == str(tmp_path / "s")


@pytest.mark.linux_program  # W44: Windows' sockets have no sendmsg
def test_messages_that_name_no_destination_pass_untouched(engine: Engine, closing: Closing) -> None:
    engine.route(ORIGINAL, ("127.0.0.1", 9))
    near, far = map(closing, socket.socketpair())
    assert near.sendmsg([b"on", b"e"]) == 3
    assert far.recv(10) == b"one"
    assert engine.trace == []


@pytest.mark.linux_program
def test_connect_ex_says_that_the_time_is_over_as_without_an_engine(
    engine: Engine, tcp: socket.socket
) -> None:
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as full,
        socket.create_connection(address_of(full)),
        socket.socket() as plain,
    ):
        engine.route(ORIGINAL, address_of(full))
        for sock in (tcp, plain):
            sock.settimeout(0.01)
        assert tcp.connect_ex(ORIGINAL) == super(socket.socket, plain).connect_ex(address_of(full))


def outcome(function: Callable[[], object]) -> object:
    """What a call returns, or the type and number of what it raises."""
    try:
        return function()
    except Exception as error:
        return type(error), getattr(error, "errno", None)


CANNOT_CONNECT = [
    "nonsense",
    None,
    ("127.0.0.1",),
    ["127.0.0.1", 80],
    ("127.0.0.1", "80"),
    ("127.0.0.1", -1),
    ("127.0.0.1", 1 << 16),
    ("127.0.0.1", 80, 0, 0),
    ("::1", 80),
    ("host.invalid", 80),
    ("x" * 300, 80),
]


@pytest.mark.parametrize("address", CANNOT_CONNECT, ids=lambda value: repr(value)[:25])
def test_address_that_cannot_be_connected_to(
    listener: socket.socket, tcp: socket.socket, address: Any
) -> None:
    """The errors are those without an engine, though a driver matches everything."""
    connect, connect_ex = (lambda: tcp.connect(address)), (lambda: tcp.connect_ex(address))
    plain = outcome(connect), outcome(connect_ex)
    with Engine() as engine:
        engine.add_driver("A", proxy=address_of(listener))
        assert (outcome(connect), outcome(connect_ex)) == plain


def test_closed_socket(engine: Engine, listener: socket.socket) -> None:
    engine.add_driver("A", proxy=address_of(listener))
    sock = socket.socket()
    sock.close()
    with pytest.raises(OSError) as caught:  # noqa: PT011 - it is compared
        sock.connect(ORIGINAL)
    number = sock.connect_ex(ORIGINAL)
    assert number in (caught.value.errno, getattr(caught.value, "winerror", None))
    assert number in (errno.EBADF, 10038)


def test_refused_connect(engine: Engine, tcp: socket.socket, nowhere: tuple[str, int]) -> None:
    engine.add_driver("A", proxy=nowhere, match=ORIGINAL)
    assert tcp.connect_ex(ORIGINAL) in (errno.ECONNREFUSED, 10061)
    assert engine.flow_count == 0


def test_second_connect_of_one_socket(
    proxied: Engine, listener: socket.socket, tcp: socket.socket
) -> None:
    tcp.settimeout(None)  # with a timeout, Linux lets a second connect pass
    tcp.connect(ORIGINAL)
    assert was_redirected(listener)
    with pytest.raises(OSError) as caught:  # noqa: PT011 - it is compared
        tcp.connect(ORIGINAL)
    assert caught.value.errno == errno.EISCONN


def test_not_intercepted() -> None:
    before = socket.socket.connect, socket.socket.connect_ex
    with Engine(intercept=False):
        assert (socket.socket.connect, socket.socket.connect_ex) == before


def test_what_was_there_is_there_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where somebody else has put something in the place of connect()."""
    inherited = vars(socket.socket).get("connect")
    with Engine():
        assert "connect" in vars(socket.socket)
    assert vars(socket.socket).get("connect") is inherited

    def connect(self: socket.socket, address: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(socket.socket, "connect", connect)
    with Engine(), socket.socket() as sock, pytest.raises(ZeroDivisionError):
        sock.connect(("127.0.0.1", 1))
    assert socket.socket.connect is connect


def test_what_somebody_else_has_restored_already_is_left_alone() -> None:
    inherited = socket.socket.sendto
    with Engine():
        assert socket.socket.sendto is not inherited
        del socket.socket.sendto
    assert socket.socket.sendto is inherited


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
def test_a_connect_during_which_the_engine_ends_goes_on_as_a_plain_one(
    listener: socket.socket, closing: Closing, kind: int
) -> None:
    def end(connection: Connection) -> bool:
        stack.close()
        return True

    sock = closing(socket.socket(type=kind))
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(Engine())
        protocol = "tcp" if kind == socket.SOCK_STREAM else "udp"
        engine.add_driver("A", proxy=("127.0.0.1", 9), match=end, protocol=protocol)
        sock.connect(address_of(listener))
    assert sock.getpeername() == address_of(listener)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
def test_what_a_callout_raises_comes_out_of_the_connect(
    engine: Engine, closing: Closing, kind: int
) -> None:
    def fail(connection: Connection) -> bool:
        raise RuntimeError("a fault of the callout")

    for protocol in ("tcp", "udp"):
        engine.add_driver("A", proxy=("127.0.0.1", 9), match=fail, protocol=protocol)
    with pytest.raises(RuntimeError, match="a fault of the callout"):
        closing(socket.socket(type=kind)).connect(ORIGINAL)


def test_connects_while_engines_come_and_go(listener: socket.socket) -> None:
    """A connect that an ending engine overtakes goes on as a plain one."""
    stop = threading.Event()
    address = address_of(listener)

    def app() -> None:
        while not stop.is_set():
            with socket.create_connection(address, TIMEOUT), accept(listener):
                pass

    def come_and_go() -> None:
        try:
            for _ in range(300):
                with Engine() as engine:
                    engine.add_driver("A", proxy=address)
        finally:
            stop.set()

    with running(app, app, come_and_go):
        pass


# ---- clients ----


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    redirects: list[object]

    def do_GET(self) -> None:
        self.redirects.append(wfpioctl.read_redirect(self.connection))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def web(engine: Engine) -> Iterator[list[object]]:
    """An HTTP proxy that answers by itself what is redirected to it: yields what it was told."""

    class Own(Handler):
        redirects: list[object] = []  # noqa: RUF012 - of this class alone

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Own) as server:
        engine.add_driver("A", proxy=server.server_address[:2], match=(ORIGINAL[0], 80))
        thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01))
        thread.start()
        yield Own.redirects
        server.shutdown()
        thread.join()


def test_http_client(web: list[object]) -> None:
    with contextlib.closing(http.client.HTTPConnection(ORIGINAL[0], timeout=TIMEOUT)) as client:
        client.request("GET", "/")
        assert client.getresponse().read() == b"ok"
    assert isinstance(web[0], wfpioctl.Redirect)


def test_urllib(web: list[object]) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{ORIGINAL[0]}/", timeout=TIMEOUT) as response:
        assert response.read() == b"ok"
    assert isinstance(web[0], wfpioctl.Redirect)


LOOPS: list[Any] = [pytest.param(asyncio.SelectorEventLoop, id="selector")]
if sys.platform == "win32":
    LOOPS.append(pytest.param(asyncio.ProactorEventLoop, id="proactor"))

every_loop = pytest.mark.parametrize("loop_factory", LOOPS)


@every_loop
def test_aiohttp(web: list[object], loop_factory: Callable[[], Any]) -> None:
    aiohttp = pytest.importorskip("aiohttp")

    async def main() -> None:
        async with (
            aiohttp.ClientSession(trust_env=False) as session,
            session.get(f"http://{ORIGINAL[0]}/") as response,
        ):
            assert await response.read() == b"ok"

    run(loop_factory, main())
    assert isinstance(web[0], wfpioctl.Redirect)


def test_httpx(web: list[object]) -> None:
    httpx = pytest.importorskip("httpx")
    with httpx.Client(trust_env=False) as client:
        assert client.get(f"http://{ORIGINAL[0]}/").content == b"ok"
    assert isinstance(web[0], wfpioctl.Redirect)


# ---- event loops ----


def run(loop_factory: Callable[[], Any], main: Any) -> None:
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(asyncio.wait_for(main, TIMEOUT))


@contextlib.asynccontextmanager
async def serving(seen: list[object]) -> AsyncIterator[tuple[str, int]]:
    """An asyncio server that notes the redirect of each connection and closes it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(wfpioctl.read_redirect(writer.get_extra_info("socket")))
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1000)
    async with server:
        yield server.sockets[0].getsockname()[:2]


async def visit(destination: tuple[str, int]) -> None:
    reader, writer = await asyncio.open_connection(*destination)
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()


@every_loop
def test_W22_streams(engine: Engine, loop_factory: Callable[[], Any]) -> None:
    """The proactor's server accepts with AcceptEx (and SO_UPDATE_ACCEPT_CONTEXT)."""

    async def main() -> None:
        seen: list[object] = []
        async with serving(seen) as proxy:
            engine.add_driver("A", proxy=proxy, match=ORIGINAL, context=b"context")
            await visit(ORIGINAL)
            await visit(proxy)
        assert isinstance(seen[0], wfpioctl.Redirect)
        assert seen[1] is None

    run(loop_factory, main())


@every_loop
def test_sock_connect(engine: Engine, loop_factory: Callable[[], Any]) -> None:
    async def main() -> None:
        seen: list[object] = []
        async with serving(seen) as proxy:
            engine.add_driver("A", proxy=proxy, match=ORIGINAL)
            with socket.socket() as sock:
                sock.setblocking(False)
                loop = asyncio.get_running_loop()
                await loop.sock_connect(sock, ORIGINAL)
                assert await loop.sock_recv(sock, 1) == b""
        assert isinstance(seen[0], wfpioctl.Redirect)

    run(loop_factory, main())


@every_loop
def test_several_loops_at_once(engine: Engine, loop_factory: Callable[[], Any]) -> None:
    def work(number: int) -> None:
        async def main() -> None:
            seen: list[Any] = []
            destination = ("203.0.113.7", 1000 + number)
            context = b"%d" % number
            async with serving(seen) as proxy:
                engine.add_driver("A", proxy=proxy, match=destination, context=context)
                await asyncio.gather(*[visit(destination) for _ in range(20)])
            assert [redirect.context for redirect in seen] == [context] * 20

        run(loop_factory, main())

    with running(*[lambda number=number: work(number) for number in range(3)]):
        pass


@every_loop
def test_refused_connect_on_a_loop(engine: Engine, loop_factory: Callable[[], Any]) -> None:
    """The loop is told what a socket would be told (W58)."""

    async def main() -> None:
        engine.add_driver("A", proxy=("127.0.0.1", 9), deny=True)
        with pytest.raises(PermissionError):
            await asyncio.open_connection(*ORIGINAL)

    run(loop_factory, main())
