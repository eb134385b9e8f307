"""UDP: datagrams, and the control data that comes with the first of a redirected flow."""

import contextlib
import errno
import mmap
import random
import socket
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from support import LOOPBACKS, TIMEOUT, Udp, address_of, needs_ipv6, running

from wfpioctl import ProtocolOptionError, RedirectError, _wfpioctl, datagram
from wfpioctl.datagram import Datagram, Received
from wfpioctl.simulator import Engine, Scripted
from wfpioctl.simulator.records import encode_records

MAX_CONTROL = 1 << 20
UNUSED = ("192.0.2.1", 9)


# ---- sending and receiving ----


@pytest.mark.parametrize("family", LOOPBACKS)
def test_a_datagram_arrives_with_the_address_that_socket_gives(udp: Udp, family: int) -> None:
    sender, receiver = udp(family), udp(family)
    assert datagram.sendmsg(sender, b"hello", receiver.getsockname()) == 5
    assert datagram.recvmsg(receiver, 100) == (b"hello", sender.getsockname(), 0, None, None)


def test_handles_and_objects_are_sockets_alike(udp: Udp) -> None:
    sender, receiver = udp(), udp()
    datagram.sendmsg(sender.fileno(), memoryview(b"hello"), address_of(receiver))
    receiver.setblocking(True)
    assert datagram.recvmsg(receiver.fileno(), 100).data == b"hello"


def test_a_connected_socket_sends_to_its_peer(udp: Udp) -> None:
    sender, receiver = udp(), udp()
    sender.connect(receiver.getsockname())
    datagram.sendmsg(sender, b"hello", None)
    assert datagram.recvmsg(receiver, 100).data == b"hello"


@pytest.mark.parametrize("size", [0, 1, 4096, 65_507])
def test_a_datagram_of_any_size_arrives_whole(udp: Udp, size: int) -> None:
    sender, receiver = udp(), udp()
    data = random.Random(size).randbytes(size)
    datagram.sendmsg(sender, data, receiver.getsockname())
    received = datagram.recvmsg(receiver, 65_535)
    assert (received.data, received.flags) == (data, 0)


def test_a_datagram_that_is_too_long_is_cut_and_says_so(udp: Udp) -> None:
    sender, receiver = udp(), udp()
    sender.sendto(b"hello", receiver.getsockname())
    sender.sendto(b"next", receiver.getsockname())
    received = datagram.recvmsg(receiver, 3)
    assert (received.data, received.flags) == (b"hel", socket.MSG_TRUNC)
    assert received.address == sender.getsockname()
    assert datagram.recvmsg(receiver, 100).data == b"next"


def test_no_room_at_all_still_takes_the_datagram(udp: Udp) -> None:
    sender, receiver = udp(), udp()
    sender.sendto(b"hello", receiver.getsockname())
    sender.sendto(b"", receiver.getsockname())
    assert datagram.recvmsg(receiver, 0)[:3] == (b"", sender.getsockname(), socket.MSG_TRUNC)
    assert datagram.recvmsg(receiver, 0)[:3] == (b"", sender.getsockname(), 0)


def test_a_datagram_that_was_peeked_at_comes_again(udp: Udp) -> None:
    sender, receiver = udp(), udp()
    sender.sendto(b"hello", receiver.getsockname())
    assert datagram.recvmsg(receiver, 100, socket.MSG_PEEK)[:3] == (
        b"hello",
        sender.getsockname(),
        0,
    )
    assert datagram.recvmsg(receiver, 100).data == b"hello"


@pytest.mark.skipif(sys.platform == "win32", reason="Winsock knows no such input flag")
def test_a_size_that_the_system_claims_is_not_believed(udp: Udp) -> None:
    sender, receiver = udp(), udp()
    sender.sendto(b"hello", receiver.getsockname())
    received = datagram.recvmsg(receiver, 3, socket.MSG_TRUNC)  # Linux returns 5 for this
    assert (received.data, received.flags) == (b"hel", socket.MSG_TRUNC)


def test_recvmsg_into_writes_no_more_than_it_may(udp: Udp) -> None:
    sender, receiver = udp(), udp()
    buffer = bytearray(b"........")
    sender.sendto(b"hello", receiver.getsockname())
    received = datagram.recvmsg_into(receiver, buffer, 3)
    assert received == Received(3, sender.getsockname(), socket.MSG_TRUNC, None, None)
    assert buffer == b"hel....."
    sender.sendto(b"hello", receiver.getsockname())
    assert datagram.recvmsg_into(receiver, memoryview(buffer)[3:], 0, socket.MSG_PEEK).size == 5
    assert datagram.recvmsg_into(receiver, memoryview(buffer)[3:]).size == 5
    assert buffer == b"helhello"


# ---- waiting ----


def test_a_timeout_is_honoured(udp: Udp) -> None:
    receiver = udp()
    receiver.settimeout(0.01)
    with pytest.raises(TimeoutError, match=r"^timed out$"):
        datagram.recvmsg(receiver, 100)
    with pytest.raises(TimeoutError):
        datagram.recvmsg_into(receiver, bytearray(100))


def test_a_socket_that_does_not_block_raises(udp: Udp) -> None:
    receiver = udp()
    receiver.setblocking(False)
    with pytest.raises(BlockingIOError):
        datagram.recvmsg(receiver, 100)
    with pytest.raises(BlockingIOError):
        datagram.recvmsg(receiver.fileno(), 100)


@pytest.mark.parametrize("timeout", [None, TIMEOUT])
def test_waiting_ends_with_the_datagram(udp: Udp, timeout: float | None) -> None:
    sender, receiver = udp(), udp()
    receiver.settimeout(timeout)
    received: list[Datagram] = []
    with running(lambda: received.append(datagram.recvmsg(receiver, 100))):
        sender.sendto(b"hello", receiver.getsockname())
    assert received[0].data == b"hello"


def test_a_datagram_that_another_thread_took_is_not_the_one_that_is_waited_for(
    udp: Udp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting goes on, also within the last second of the timeout, where this clock stands."""
    sender, receiver = udp(), udp()
    receiver.settimeout(0.5)
    plain, tries = _wfpioctl.recvmsg, []

    def robbed(sock: socket.socket, *arguments: Any) -> Any:
        """Another thread is faster, until it has had two datagrams."""
        tries.append(sock)
        if len(tries) == 1:
            sender.sendto(b"first", receiver.getsockname())
        elif len(tries) <= 3:
            plain(sock, *arguments)
            sender.sendto(b"next", receiver.getsockname())
        else:
            return plain(sock, *arguments)
        raise BlockingIOError

    monkeypatch.setattr(_wfpioctl, "recvmsg", robbed)
    monkeypatch.setattr(datagram, "time", SimpleNamespace(monotonic=lambda: 0.0))
    assert datagram.recvmsg(receiver, 100).data == b"next"
    assert len(tries) == 4


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="only such datagrams wait for room")
def test_sending_waits_no_longer_than_the_timeout() -> None:
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with sender, receiver:
        sender.settimeout(0.01)

        def fill() -> None:
            while True:
                datagram.sendmsg(sender, bytes(1000), None)

        with pytest.raises(TimeoutError):
            fill()
        assert datagram.recvmsg(receiver, 1000).address is None
        assert datagram.recvmsg_into(receiver, bytearray(1000)).address is None


@pytest.mark.linux_program
def test_a_signal_interrupts_only_if_its_handler_raises(udp: Udp) -> None:
    import signal

    receiver = udp()
    receiver.settimeout(None)
    handled = 0

    def handle(number: int, frame: object) -> None:
        nonlocal handled
        handled += 1
        if handled == 1:
            signal.setitimer(signal.ITIMER_REAL, 0.01)
        else:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        with pytest.raises(KeyboardInterrupt):
            datagram.recvmsg(receiver, 100)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert handled == 2


@pytest.mark.linux_program
def test_a_signal_interrupts_sending_only_if_its_handler_raises() -> None:
    import signal

    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    handled = 0

    def handle(number: int, frame: object) -> None:
        nonlocal handled
        handled += 1
        if handled == 1:
            signal.setitimer(signal.ITIMER_REAL, 0.01)
        else:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, handle)
    try:
        with sender, receiver:
            sender.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    datagram.sendmsg(sender, bytes(1000), None)
            sender.setblocking(True)
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            with pytest.raises(KeyboardInterrupt):
                datagram.sendmsg(sender, bytes(1000), None)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert handled == 2


# ---- errors ----


def test_a_closed_socket_fails_as_those_of_socket_do(udp: Udp) -> None:
    sock = udp()
    sock.close()
    with pytest.raises(OSError) as expected:  # noqa: PT011
        sock.recvfrom(1)
    for call in (
        lambda: datagram.recvmsg(sock, 1),
        lambda: datagram.recvmsg_into(sock, bytearray(1)),
        lambda: datagram.sendmsg(sock, b"x", UNUSED),
    ):
        with pytest.raises(OSError) as caught:  # noqa: PT011
            call()
        assert type(caught.value) is OSError
        assert caught.value.errno == expected.value.errno
    with pytest.raises(RedirectError) as refused:
        datagram.enable_redirect_metadata(sock)
    assert refused.value.winerror == 10038


def test_a_datagram_that_no_system_sends_fails_as_in_socket(udp: Udp) -> None:
    sock = udp()
    with pytest.raises(OSError) as expected:  # noqa: PT011
        sock.sendto(bytes(70_000), address_of(sock))
    with pytest.raises(OSError) as caught:  # noqa: PT011
        datagram.sendmsg(sock, bytes(70_000), address_of(sock))
    assert caught.value.errno == expected.value.errno


@pytest.mark.linux_program  # which gives memory only once it is touched
def test_a_datagram_whose_size_no_call_can_name_is_too_long(udp: Udp) -> None:
    sock = udp()
    with mmap.mmap(-1, 1 << 31) as huge, pytest.raises(OSError, match="too long") as caught:
        datagram.sendmsg(sock, huge, address_of(sock))
    assert caught.value.errno == errno.EMSGSIZE


def test_W04_W41_a_system_without_WFP_has_no_such_option(udp: Udp) -> None:
    with pytest.raises(ProtocolOptionError) as caught:
        datagram.enable_redirect_metadata(udp())
    assert caught.value.operation == "IP_WFP_REDIRECT_RECORDS"
    assert caught.value.winerror == 10042


@pytest.mark.skipif(sys.platform == "win32", reason="a Windows kernel takes control data")
def test_records_are_never_dropped_in_silence(udp: Udp) -> None:
    sock = udp()
    with pytest.raises(OSError) as caught:  # noqa: PT011
        datagram.sendmsg(sock, b"x", address_of(sock), records=b"records")
    assert caught.value.errno == errno.EOPNOTSUPP


untyped: Any = datagram

BAD_ARGUMENTS: list[tuple[Callable[[Any], object], type[Exception], str]] = [
    (lambda s: untyped.recvmsg(s, -1), ValueError, r"recvmsg\(\): bufsize .* not -1$"),
    (lambda s: untyped.recvmsg(s, 1 << 70), ValueError, rf"recvmsg\(\): bufsize .* {1 << 70}$"),
    (lambda s: untyped.recvmsg(s, 1 << 31), ValueError, r"bufsize must be from 0 to 2147483647"),
    (lambda s: untyped.recvmsg(s, 1.5), TypeError, r"recvmsg\(\): bufsize .* not 1.5$"),
    (lambda s: untyped.recvmsg(s, 1, -1), ValueError, r"recvmsg\(\): flags .* not -1$"),
    (
        lambda s: untyped.recvmsg("s", 1),
        TypeError,
        r"recvmsg\(\): sock must be an int .* not 's'$",
    ),
    (lambda s: untyped.recvmsg(-5, 1), ValueError, r"recvmsg\(\): sock .* not -5$"),
    (
        lambda s: untyped.recvmsg_into(s, b"x"),
        TypeError,
        r"recvmsg_into\(\): buffer .* not b'x'$",
    ),
    (lambda s: untyped.recvmsg_into(s, bytearray(2), 3), ValueError, r"nbytes .* 2 bytes, not 3$"),
    (lambda s: untyped.sendmsg(s, "x", UNUSED), TypeError, r"sendmsg\(\): data .* not 'x'$"),
    (lambda s: untyped.sendmsg(s, b"", "host"), TypeError, r"address must be .* not 'host'$"),
    (lambda s: untyped.sendmsg(s, b"", ("host",)), TypeError, r"address must be .*"),
    (lambda s: untyped.sendmsg(s, b"", ("host", 1)), ValueError, r"numeric host, not 'host'"),
    (lambda s: untyped.sendmsg(s, b"", ("1.2.3.4\0", 1)), ValueError, r"numeric host"),
    (lambda s: untyped.sendmsg(s, b"", ("\udcff", 1)), ValueError, r"numeric host"),
    (lambda s: untyped.sendmsg(s, b"", ("1.2.3.4", 1, 0, 0)), ValueError, r"numeric host"),
    (lambda s: untyped.sendmsg(s, b"", ("::1", 65536)), ValueError, r"port .* not 65536$"),
    (lambda s: untyped.sendmsg(s, b"", ("::1", True)), TypeError, r"port .* not True$"),
    (lambda s: untyped.sendmsg(s, b"", ("::1", 1, 1 << 20)), ValueError, r"flowinfo .*"),
    (lambda s: untyped.sendmsg(s, b"", ("::1", 1, 0, -1)), ValueError, r"scope_id .* not -1$"),
    (lambda s: untyped.sendmsg(s, b"", UNUSED, records=b""), ValueError, r"1 to 1048576 .* not 0"),
    (
        lambda s: untyped.sendmsg(s, b"", UNUSED, records=bytes(MAX_CONTROL + 1)),
        ValueError,
        r"not 1048577$",
    ),
    (lambda s: untyped.sendmsg(s, b"", UNUSED, records="r"), TypeError, r"records .* not 'r'$"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD_ARGUMENTS)
def test_a_wrong_argument_is_named_with_its_value(
    udp: Udp, call: Callable[[socket.socket], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(udp())


# ---- the simulated engine's data plane ----


class Flow(NamedTuple):
    """An app's socket and the proxy's, and a UDP flow between them that the engine redirected."""

    app: socket.socket
    proxy: socket.socket
    records: bytes

    def send(self, data: bytes) -> None:
        self.app.sendto(data, self.proxy.getsockname())


@pytest.fixture
def flow(engine: Engine, udp: Udp) -> Callable[..., Flow]:
    """A function that makes a redirected flow."""

    def make(
        context: bytes = b"context",
        size: int = 100,
        family: int = socket.AF_INET,
        enable: bool = True,
        proxy: socket.socket | None = None,
    ) -> Flow:
        app = udp(family)
        proxy = proxy or udp(family)
        records = encode_records(1, [], size)
        _wfpioctl.engine_add_datagram_flow(
            app.fileno(), address_of(app), address_of(proxy)[1], 1, records, context
        )
        if enable:
            datagram.enable_redirect_metadata(proxy)
        return Flow(app, proxy, records)

    return make


@pytest.mark.parametrize("family", LOOPBACKS)
def test_W40_W61_only_the_first_datagram_of_a_flow_carries_the_data(
    flow: Callable[..., Flow], family: int
) -> None:
    redirected = flow(family=family)
    for data in (b"one", b"two"):
        redirected.send(data)
    first = datagram.recvmsg(redirected.proxy, 100)
    address = redirected.app.getsockname()
    assert first == (b"one", address, 0, redirected.records, b"context")
    assert datagram.recvmsg(redirected.proxy, 100) == (b"two", address, 0, None, None)


def test_W41_nothing_comes_unless_it_was_enabled(flow: Callable[..., Flow]) -> None:
    redirected = flow(enable=False)
    redirected.send(b"one")
    assert datagram.recvmsg(redirected.proxy, 100)[3:] == (None, None)
    datagram.enable_redirect_metadata(redirected.proxy)
    redirected.send(b"two")
    assert datagram.recvmsg(redirected.proxy, 100)[3:] == (None, None)


def test_W41_enabling_a_socket_says_nothing_of_a_later_one_with_its_number(
    flow: Callable[..., Flow], udp: Udp
) -> None:
    sock = udp()
    datagram.enable_redirect_metadata(sock)
    number = sock.fileno()
    sock.close()
    again = udp()
    if again.fileno() != number:
        pytest.skip("the system gave the new socket another number")
    redirected = flow(enable=False, proxy=again)
    redirected.send(b"one")
    assert datagram.recvmsg(again, 100)[3:] == (None, None)


@needs_ipv6
def test_W41_a_dual_stack_socket_is_enabled_for_both_families(
    flow: Callable[..., Flow], engine: Engine
) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as proxy:
        proxy.settimeout(TIMEOUT)
        proxy.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        datagram.enable_redirect_metadata(proxy)
        proxy.bind(("::", 0))
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            redirected = flow(family=family, proxy=proxy, enable=False)
            redirected.app.sendto(b"one", (host, address_of(proxy)[1]))
            assert datagram.recvmsg(proxy, 100).records == redirected.records


def test_a_script_takes_the_options_of_any_socket(tcp: socket.socket) -> None:
    with Scripted(b"records"):
        datagram.enable_redirect_metadata(tcp)


def test_without_a_datagram_a_redirected_socket_does_as_others_do(
    flow: Callable[..., Flow],
) -> None:
    redirected = flow()
    redirected.proxy.setblocking(False)
    with pytest.raises(BlockingIOError):
        datagram.recvmsg(redirected.proxy, 100)


@pytest.mark.linux_program
def test_datagrams_of_other_families_pass_an_engine_untouched(engine: Engine) -> None:
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with sender, receiver:
        datagram.sendmsg(sender, b"data", None)
        assert datagram.recvmsg(receiver, 100) == (b"data", None, 0, None, None)


def test_a_tcp_socket_has_no_such_option(engine: Engine, tcp: socket.socket) -> None:
    with pytest.raises(ProtocolOptionError):
        datagram.enable_redirect_metadata(tcp)


def test_W57_a_flow_without_a_context_has_records(flow: Callable[..., Flow]) -> None:
    redirected = flow(context=b"")
    redirected.send(b"one")
    assert datagram.recvmsg(redirected.proxy, 100)[3:] == (redirected.records, None)


def test_recvmsg_into_gives_records_and_context(flow: Callable[..., Flow]) -> None:
    redirected = flow()
    redirected.send(b"one")
    buffer = bytearray(100)
    received = datagram.recvmsg_into(redirected.proxy, buffer)
    assert received == (3, redirected.app.getsockname(), 0, redirected.records, b"context")


@pytest.mark.parametrize("size", [100, 20_000, 500_000])
def test_peeking_takes_nothing_and_makes_room(flow: Callable[..., Flow], size: int) -> None:
    redirected = flow(size=size)
    redirected.send(b"one")
    for _ in range(2):
        peeked = datagram.recvmsg(redirected.proxy, 2, socket.MSG_PEEK)
        assert peeked.flags == socket.MSG_TRUNC
        assert peeked[3:] == (redirected.records, b"context")


def test_W25_control_data_that_does_not_fit_is_reported_and_not_given(
    flow: Callable[..., Flow],
) -> None:
    redirected = flow(size=20_000)
    redirected.send(b"one")
    received = datagram.recvmsg(redirected.proxy, 100)
    assert received == (b"one", redirected.app.getsockname(), socket.MSG_CTRUNC, None, None)


def test_room_for_control_data_ends_at_1_MiB(flow: Callable[..., Flow]) -> None:
    redirected = flow(size=2 * MAX_CONTROL)
    redirected.send(b"one")
    peeked = datagram.recvmsg(redirected.proxy, 100, socket.MSG_PEEK)
    assert peeked == (b"one", redirected.app.getsockname(), socket.MSG_CTRUNC, None, None)


def test_records_that_fit_survive_a_context_that_does_not(flow: Callable[..., Flow]) -> None:
    redirected = flow(context=bytes(20_000))
    redirected.send(b"one")
    received = datagram.recvmsg(redirected.proxy, 100)
    assert received[2:] == (socket.MSG_CTRUNC, redirected.records, None)


@pytest.mark.parametrize("connected", [False, True])
def test_W42_records_go_with_a_datagram(
    flow: Callable[..., Flow], udp: Udp, connected: bool
) -> None:
    outbound, destination = udp(), udp()
    if connected:
        outbound.connect(destination.getsockname())
    address = None if connected else destination.getsockname()
    assert datagram.sendmsg(outbound, b"hello", address, records=flow().records) == 5
    assert destination.recv(100) == b"hello"


def test_W25_records_that_nobody_gave_out_are_refused(flow: Callable[..., Flow], udp: Udp) -> None:
    forged = bytearray(flow().records)
    forged[-1] ^= 1
    sock = udp()
    with pytest.raises(OSError) as caught:  # noqa: PT011
        datagram.sendmsg(sock, b"x", address_of(sock), records=forged)
    assert caught.value.errno == errno.EINVAL
