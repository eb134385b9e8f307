"""UDP through the engine's drivers: redirected flows, as apps and proxies see them."""

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Any

import pytest
from loops import Runner
from support import ORIGINAL, TIMEOUT, Udp, address_of, running

from wfpioctl import datagram
from wfpioctl.datagram import Datagram, MessageProtocol
from wfpioctl.simulator import Action, Connected, Engine, Queried, RecordsSet, RedirectLoopError
from wfpioctl.simulator.records import decode_records

ELSEWHERE = ("203.0.113.8", 53)


@pytest.fixture
def proxy(udp: Udp) -> socket.socket:
    """A proxy's socket."""
    return udp()


def redirect(engine: Engine, proxy: socket.socket, name: str = "A", **options: Any) -> None:
    """Add a UDP driver in front of a proxy, and let the proxy have its metadata."""
    options.setdefault("context", name.encode())
    engine.add_driver(name, proxy=address_of(proxy), protocol="udp", **options)
    datagram.enable_redirect_metadata(proxy)


def connects(engine: Engine) -> list[Connected]:
    return [event for event in engine.trace if isinstance(event, Connected)]


def sending(name: str) -> Callable[[socket.socket, bytes], object]:
    """A way to send to ORIGINAL that needs no connection."""
    ways: dict[str, Callable[[socket.socket, bytes], object]] = {
        "sendto": lambda sock, data: sock.sendto(data, ORIGINAL),
        "sendto with flags": lambda sock, data: sock.sendto(data, 0, ORIGINAL),
        "datagram.sendmsg": lambda sock, data: datagram.sendmsg(sock, data, ORIGINAL),
        "sendmsg": lambda sock, data: sock.sendmsg([data], (), 0, ORIGINAL),
    }
    return ways[name]


def receive(proxy: socket.socket) -> Datagram:
    return datagram.recvmsg(proxy, 65_535)


@pytest.mark.parametrize(
    "way",
    [
        "sendto",
        "sendto with flags",
        "datagram.sendmsg",
        pytest.param(
            "sendmsg",
            marks=pytest.mark.skipif(not hasattr(socket.socket, "sendmsg"), reason="W44"),
        ),
    ],
)
def test_W40_W61_an_apps_datagrams_go_to_the_proxy_the_first_with_the_data(
    engine: Engine, proxy: socket.socket, udp: Udp, way: str
) -> None:
    redirect(engine, proxy, match=ORIGINAL)
    app = udp()
    for data in (b"one", b"two"):
        sending(way)(app, data)
    first, second = receive(proxy), receive(proxy)
    assert (first.data, first.address, first.context) == (b"one", app.getsockname(), b"A")
    assert first.records is not None
    assert decode_records(first.records)[1][0].context == b"A"
    assert second == (b"two", app.getsockname(), 0, None, None)
    (event,) = connects(engine)
    assert (event.protocol, event.destination, event.target) == ("udp", ORIGINAL, address_of(proxy))
    assert Queried(1, "IP_WFP_REDIRECT_RECORDS", 0, len(first.records)) in engine.trace


def test_a_connected_app_talks_to_the_proxy(engine: Engine, proxy: socket.socket, udp: Udp) -> None:
    redirect(engine, proxy)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as app:
        app.settimeout(TIMEOUT)
        app.connect(ORIGINAL)
        app.send(b"question")
        question = receive(proxy)
        assert question.context == b"A"
        datagram.sendmsg(proxy, b"answer", question.address)
        assert app.recv(100) == b"answer"


def test_an_answer_belongs_to_the_flow_that_it_answers(
    engine: Engine, proxy: socket.socket, udp: Udp
) -> None:
    redirect(engine, proxy)  # whatever is sent, to anyone
    server = udp()
    engine.route(ORIGINAL, address_of(server))
    app, outbound = udp(), udp()
    app.sendto(b"question", ORIGINAL)
    question = receive(proxy)
    datagram.sendmsg(outbound, question.data, ORIGINAL, records=question.records)
    asked = datagram.recvmsg(server, 100)
    datagram.sendmsg(server, b"answer", asked.address)
    answer = datagram.recvmsg(outbound, 100)
    assert answer.address == server.getsockname()
    datagram.sendmsg(proxy, answer.data, question.address)
    assert app.recvfrom(100) == (b"answer", proxy.getsockname())
    assert len(connects(engine)) == 2


def test_a_socket_that_is_not_bound_can_send_anywhere_afterwards(
    engine: Engine, proxy: socket.socket, udp: Udp
) -> None:
    redirect(engine, proxy)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as app:
        app.sendto(b"x", ORIGINAL)
        assert receive(proxy).context == b"A"
        assert app.getsockname()[0] == "0.0.0.0"


def test_a_flow_is_one_socket_and_one_destination(
    engine: Engine, proxy: socket.socket, udp: Udp
) -> None:
    redirect(engine, proxy, context=lambda connection: repr(connection.destination).encode())
    app, other = udp(), udp()
    for sock, destination in ((app, ORIGINAL), (app, ELSEWHERE), (other, ORIGINAL)):
        sock.sendto(b"x", destination)
    contexts = [receive(proxy).context for _ in range(3)]
    assert contexts == [repr(each).encode() for each in (ORIGINAL, ELSEWHERE, ORIGINAL)]


def test_a_new_socket_with_an_old_ones_port_makes_a_flow_of_its_own(
    engine: Engine, proxy: socket.socket
) -> None:
    redirect(engine, proxy)
    for _ in range(3):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as app:
            app.bind(("127.0.0.1", 0))
            app.sendto(b"x", ORIGINAL)
            port = address_of(app)[1]
        received = receive(proxy)
        assert received.records is not None
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
            again.bind(("127.0.0.1", port))
            again.sendto(b"y", ORIGINAL)
            assert receive(proxy).records not in (None, received.records)


def test_of_many_threads_first_datagrams_one_makes_the_flow(
    engine: Engine, proxy: socket.socket, udp: Udp
) -> None:
    redirect(engine, proxy)
    app = udp()
    with running(*[lambda: app.sendto(b"x", ORIGINAL)] * 8):
        received = [receive(proxy) for _ in range(8)]
    assert [each.records is not None for each in received].count(True) == 1
    assert len(connects(engine)) == 1


def test_tcp_drivers_leave_udp_alone_and_the_reverse(
    engine: Engine, proxy: socket.socket, udp: Udp, listener: socket.socket
) -> None:
    engine.add_driver("T", proxy=address_of(listener))
    engine.route(ORIGINAL, address_of(proxy))
    app = udp()
    app.sendto(b"x", ORIGINAL)
    datagram.enable_redirect_metadata(proxy)
    assert receive(proxy)[3:] == (None, None)
    redirect(engine, proxy, "U")
    app.sendto(b"y", ELSEWHERE)
    assert receive(proxy).context == b"U"
    with socket.create_connection(ORIGINAL, TIMEOUT):
        listener.accept()[0].close()
    assert [event.target for event in connects(engine)] == [
        address_of(proxy),
        address_of(proxy),
        address_of(listener),
    ]


def test_a_driver_knows_two_protocols(engine: Engine) -> None:
    with pytest.raises(ValueError, match=r"protocol must be .* not 'sctp'"):
        engine.add_driver("A", proxy=("127.0.0.1", 1), protocol="sctp")


def test_W42_W54_two_proxies_inspect_one_flow_and_it_goes_on_to_the_destination(
    engine: Engine, udp: Udp
) -> None:
    proxies = {"A": udp(), "B": udp()}
    for name, sock in proxies.items():
        redirect(engine, sock, name, match=ORIGINAL)
    destination, app = udp(), udp()
    engine.route(ORIGINAL, address_of(destination))
    app.sendto(b"hello", ORIGINAL)
    for name, sock in proxies.items():
        received = receive(sock)
        assert received.context == name.encode()
        datagram.sendmsg(udp(), received.data, ORIGINAL, records=received.records)
    assert destination.recv(100) == b"hello"
    actions = [[verdict.action for verdict in event.verdicts] for event in connects(engine)]
    assert actions == [
        [Action.REDIRECT, Action.LEAVE],
        [Action.PERMIT, Action.REDIRECT],
        [Action.PERMIT, Action.PERMIT],
    ]
    assert [event.code for event in engine.trace if isinstance(event, RecordsSet)] == [0, 0]


def test_W42_later_datagrams_need_no_records(
    engine: Engine, proxy: socket.socket, udp: Udp
) -> None:
    redirect(engine, proxy)
    destination, outbound = udp(), udp()
    engine.route(ORIGINAL, address_of(destination))
    udp().sendto(b"x", ORIGINAL)
    datagram.sendmsg(outbound, b"one", ORIGINAL, records=receive(proxy).records)
    datagram.sendmsg(outbound, b"two", ORIGINAL)
    assert [destination.recv(100), destination.recv(100)] == [b"one", b"two"]


def test_W25_forged_records_make_no_flow(engine: Engine, proxy: socket.socket, udp: Udp) -> None:
    redirect(engine, proxy)
    with pytest.raises(OSError) as caught:  # noqa: PT011
        datagram.sendmsg(udp(), b"x", ORIGINAL, records=bytes(100))
    assert caught.value.errno == errno.EINVAL
    assert engine.trace == [RecordsSet(0, 10022, 100)]


def test_W55_a_proxy_that_sends_no_records_ends_with_an_error(
    engine: Engine, proxy: socket.socket, udp: Udp
) -> None:
    redirect(engine, proxy)
    udp().sendto(b"x", ORIGINAL)

    def forward() -> None:
        while True:
            received = receive(proxy)
            udp().sendto(received.data, ORIGINAL)

    with pytest.raises(RedirectLoopError, match="does not set the redirect records"):
        forward()
    assert len(connects(engine)) <= engine.max_hops + 2


@pytest.mark.parametrize("fault", ["lose_tag", "off_machine"])
def test_W59_W60_the_data_may_be_lost_on_the_way(
    engine: Engine, proxy: socket.socket, udp: Udp, fault: str
) -> None:
    redirect(engine, proxy, **{fault: True})
    udp().sendto(b"x", ORIGINAL)
    assert receive(proxy)[3:] == (None, None)


def test_W58_a_driver_may_block(engine: Engine, proxy: socket.socket, udp: Udp) -> None:
    redirect(engine, proxy, deny=True)
    with pytest.raises(PermissionError):
        udp().sendto(b"x", ORIGINAL)


def test_without_interception_the_engine_tells_the_target(udp: Udp) -> None:
    with Engine(intercept=False) as engine:
        proxy, app = udp(), udp()
        redirect(engine, proxy)
        app.sendto(b"x", engine.datagram_target(app, ORIGINAL))
        assert receive(proxy).context == b"A"


def test_what_is_no_address_fails_as_it_does_without_an_engine(
    engine: Engine, proxy: socket.socket, udp: Udp
) -> None:
    redirect(engine, proxy)
    app = udp()
    with pytest.raises(TypeError):
        app.sendto(b"x", "203.0.113.7")
    with pytest.raises(TypeError):
        app.sendto(b"x")  # type: ignore[call-overload]
    app.close()
    with pytest.raises(OSError) as caught:  # noqa: PT011
        app.sendto(b"x", ORIGINAL)
    assert caught.value.errno in (errno.EBADF, errno.ENOTSOCK)
    assert engine.trace == []


def test_asyncio_datagrams_are_redirected(
    run_seen: Runner, engine: Engine, proxy: socket.socket
) -> None:
    async def body() -> None:
        redirect(engine, proxy)
        loop = asyncio.get_running_loop()
        answers: asyncio.Queue[bytes] = asyncio.Queue()

        class App(asyncio.DatagramProtocol):
            def datagram_received(self, data: bytes, addr: object) -> None:
                answers.put_nowait(data)

        class Proxy(MessageProtocol):
            def connection_made(self, transport: Any) -> None:
                self.transport = transport

            def message_received(self, datagram: Datagram) -> None:
                self.transport.sendmsg(datagram.context or b"none", datagram.address)

        server, _ = await datagram.create_endpoint(Proxy, sock=proxy)
        for options in ({"remote_addr": ORIGINAL}, {"local_addr": ("127.0.0.1", 0)}):
            app, _ = await loop.create_datagram_endpoint(App, **options)
            address = None if "remote_addr" in options else ORIGINAL
            for expected in (b"A", b"none"):
                app.sendto(b"x", address)
                assert await asyncio.wait_for(answers.get(), TIMEOUT) == expected
            app.close()
        server.close()
        await asyncio.sleep(0)

    run_seen(body())
