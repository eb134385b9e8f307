"""The simulated engine's life, its data plane and its side doors."""

import ctypes
import socket
import sys
import threading
import time
import timeit
from contextlib import ExitStack
from typing import Any

import pytest
from support import (
    LOOPBACKS,
    ORIGINAL,
    TIMEOUT,
    Redirected,
    accept,
    address_of,
    every_dialect,
    listen,
    reset,
    running,
)

import wfpioctl
from wfpioctl import _wfpioctl
from wfpioctl.simulator import (
    DIALECTS,
    Connected,
    Dialect,
    Engine,
    Queried,
    RecordsSet,
    Scripted,
    Step,
    wsa_get_last_error_address,
    wsaioctl_address,
)

NO_SOCKET = (1 << 8 * ctypes.sizeof(ctypes.c_void_p)) - 1  # INVALID_SOCKET
RECORDS = "SIO_QUERY_WFP_CONNECTION_REDIRECT_RECORDS"
CONTEXT = "SIO_QUERY_WFP_CONNECTION_REDIRECT_CONTEXT"


# ---- life ----


def test_configuration_outlives_the_with_block(listener: socket.socket) -> None:
    engine = Engine()
    engine.add_driver("A", proxy=address_of(listener), context=b"context")
    for _ in range(2):
        with (
            engine,
            socket.create_connection(ORIGINAL, TIMEOUT),
            accept(listener) as accepted,
        ):
            assert wfpioctl.query_redirect_context(accepted) == b"context"


def test_flows_do_not_outlive_the_with_block(listener: socket.socket) -> None:
    engine = Engine()
    engine.add_driver("A", proxy=address_of(listener))
    with ExitStack() as stack:
        with engine:
            stack.enter_context(socket.create_connection(ORIGINAL, TIMEOUT))
            accepted = stack.enter_context(accept(listener))
            records = wfpioctl.query_redirect_records(accepted)
        with engine:
            assert engine.flow_count == 0
            assert wfpioctl.read_redirect(accepted) is None
            with pytest.raises(wfpioctl.InvalidArgumentError):
                wfpioctl.set_redirect_records(stack.enter_context(socket.socket()), records)


def test_inactive_engine_refuses_to_connect() -> None:
    with pytest.raises(RuntimeError, match="not active"):
        Engine().connect(ORIGINAL)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dialect": "klingon"}, "dialect must be one of .*'documented'.* not 'klingon'"),
        ({"max_hops": 0}, "max_hops must be at least 1, not 0"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Engine(**arguments)


@pytest.mark.parametrize(
    "address", ["203.0.113.7", None, (), ("203.0.113.7",), ["203.0.113.7", 443]]
)
def test_what_is_no_address_is_said(address: Any) -> None:
    with pytest.raises(TypeError, match=r"an address must be a \(host, port\) tuple, not"):
        Engine().add_driver("A", proxy=address)


def test_names_are_resolved_once(engine: Engine, listener: socket.socket) -> None:
    driver = engine.add_driver("A", proxy=("localhost", address_of(listener)[1]), match=ORIGINAL)
    assert driver.proxy[0] in ("127.0.0.1", "::1")


def test_a_context_has_an_end(engine: Engine, tcp: socket.socket) -> None:
    engine.add_driver("A", proxy=("127.0.0.1", 9), context=lambda _: bytes((1 << 26) + 1))
    with pytest.raises(ValueError, match="driver 'A': a context holds at most 67108864 bytes"):
        tcp.connect(ORIGINAL)


def test_an_engine_that_cannot_start_leaves_nothing_behind() -> None:
    before = socket.socket.connect
    engine = Engine()
    driver = engine.add_driver("A", proxy=("127.0.0.1", 9))
    engine.redirect_listener(9, original=ORIGINAL, driver=driver)
    driver.context = lambda _: b"".join([1 / 0])  # type: ignore[list-item]
    with pytest.raises(ZeroDivisionError), engine:
        pass
    assert socket.socket.connect is before
    driver.context = b"context"
    with engine:
        assert engine.trace == []


def test_dialect_of_ones_own(redirected: Redirected) -> None:
    assert redirected.engine.dialect is DIALECTS["documented"]
    own = Dialect("own", not_redirected=4711)
    assert Engine(dialect=own).dialect is own


def test_dialects_answer_every_disagreement_in_both_ways() -> None:
    """W13 to W17: what the sources say differently, some dialect does differently."""
    dialects = DIALECTS.values()
    assert {each.too_small for each in dialects} == {122, 234, 10014, 10040, 10055}
    assert {each.names_size for each in dialects} == {True, False}
    assert {each.minimum for each in dialects} == {0, 4}
    assert {each.not_redirected for each in dialects} == {1168, 0x80320008, 10022}
    assert {bool(each.no_context) for each in dialects} == {True, False}


# ---- the ways in ----


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("family", LOOPBACKS)
def test_explicit_connect(intercept: bool, family: socket.AddressFamily) -> None:
    destination = ("2001:db8::7", 443) if family == socket.AF_INET6 else ORIGINAL
    with Engine(intercept=intercept) as engine, listen(family) as listener:
        engine.add_driver("A", proxy=address_of(listener), match=destination)
        with engine.connect(destination, timeout=TIMEOUT) as app, accept(listener) as accepted:
            assert app.gettimeout() == TIMEOUT
            assert wfpioctl.read_redirect(accepted) is not None
        with socket.socket(family) as app:
            engine.connect_socket(app, destination)
            with accept(listener) as accepted:
                assert wfpioctl.read_redirect(accepted) is not None
        assert len(engine.trace) == 6


def test_route(engine: Engine, listener: socket.socket) -> None:
    engine.route(ORIGINAL, address_of(listener))
    with socket.create_connection(ORIGINAL, TIMEOUT) as app, accept(listener) as accepted:
        app.sendall(b"x")
        assert accepted.recv(1) == b"x"
        assert wfpioctl.read_redirect(accepted) is None
    assert engine.trace[0] == Connected(0, ORIGINAL, address_of(listener), ())


@every_dialect
def test_redirect_listener(engine: Engine, listener: socket.socket) -> None:
    """Whatever connects to the port is an app, even one that knows nothing of the engine."""
    proxy = address_of(listener)
    engine.add_driver("A", proxy=proxy, match=ORIGINAL, context=b"of A")
    engine.redirect_listener(proxy[1], original=ORIGINAL)
    seen = set()
    for _ in range(2):
        with socket.socket() as app:
            super(socket.socket, app).connect(proxy)  # not intercepted
            with accept(listener) as accepted, socket.socket() as outbound:
                assert wfpioctl.query_redirect_context(accepted) == b"of A"
                wfpioctl.transfer_redirect_records(accepted, outbound)
                seen.add(wfpioctl.query_redirect_records(accepted))
    assert len(seen) == 1  # the engine did not see the connects: all are one flow


def test_redirect_listener_before_the_engine_is_active(listener: socket.socket) -> None:
    engine = Engine()
    engine.redirect_listener(address_of(listener)[1], original=ORIGINAL)
    for _ in range(2):
        with (
            engine,
            socket.create_connection(address_of(listener), TIMEOUT),
            accept(listener) as accepted,
        ):
            assert wfpioctl.read_redirect(accepted) is not None


def test_redirect_listener_for_a_driver_of_choice(engine: Engine, listener: socket.socket) -> None:
    port = address_of(listener)[1]
    engine.add_driver("A", proxy=address_of(listener), context=b"of A")
    other = engine.add_driver("B", proxy=address_of(listener), match=ORIGINAL, context=b"of B")
    engine.redirect_listener(port, original=ORIGINAL, driver=other)
    with socket.socket() as app:
        super(socket.socket, app).connect(address_of(listener))
        with accept(listener) as accepted:
            assert wfpioctl.query_redirect_context(accepted) == b"of B"


# ---- the trace ----


def test_trace_tells_it_all_in_order(engine: Engine) -> None:
    with ExitStack() as stack:
        proxy, end = (stack.enter_context(listen()) for _ in range(2))
        engine.add_driver("A", proxy=address_of(proxy), match=ORIGINAL, context=b"context")
        engine.route(ORIGINAL, address_of(end))
        stack.enter_context(socket.create_connection(ORIGINAL, TIMEOUT))
        redirect = wfpioctl.read_redirect(stack.enter_context(accept(proxy)))
        assert redirect is not None
        stack.enter_context(wfpioctl.create_connection(redirect, ORIGINAL, TIMEOUT))
        accepted = stack.enter_context(accept(end))
        assert wfpioctl.read_redirect(accepted) is None
        at_proxy, at_end = address_of(proxy), address_of(end)
    size = len(redirect.records)
    first, *middle, last, asked = engine.trace
    assert isinstance(first, Connected)
    assert (first.flow_id, first.destination, first.target) == (1, ORIGINAL, at_proxy)
    assert (first.records_size, first.context_size, first.hop, first.error) == (size, 7, 1, "")
    assert middle == [
        Queried(1, RECORDS, 0, size),
        Queried(1, CONTEXT, 0, 7),
        RecordsSet(1, 0, size),
    ]
    assert isinstance(last, Connected)
    assert (last.flow_id, last.destination, last.target) == (0, ORIGINAL, at_end)
    assert asked == Queried(0, RECORDS, 1168, 0)


def test_trace_tells_of_failures(redirected: Redirected, tcp: socket.socket) -> None:
    with pytest.raises(wfpioctl.NotConnectedError):
        wfpioctl.query_redirect_context(tcp)
    with pytest.raises(wfpioctl.InvalidArgumentError):
        wfpioctl.set_redirect_records(tcp, b"forged")
    assert redirected.engine.trace[-2:] == [Queried(0, CONTEXT, 10057, 0), RecordsSet(0, 10022, 6)]


def test_trace_keeps_the_newest_events() -> None:
    with Engine(trace_limit=3) as engine, socket.socket() as sock:
        for size in range(1, 10):
            with pytest.raises(wfpioctl.InvalidArgumentError):
                wfpioctl.set_redirect_records(sock, bytes(size))
        assert [event.size for event in engine.trace] == [7, 8, 9]  # type: ignore[union-attr]


# ---- the data plane ----


def test_a_call_that_an_ending_engine_overtakes_is_not_traced(
    redirected: Redirected, tcp: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, look_up = redirected.engine, _wfpioctl.engine_records_of
    records = wfpioctl.query_redirect_records(redirected.accepted)
    before = engine.trace

    def end_and_look_up(handle: int) -> bytes:
        engine.__exit__(None, None, None)
        return look_up(handle)

    monkeypatch.setattr(_wfpioctl, "engine_records_of", end_and_look_up)
    wfpioctl.set_redirect_records(tcp, records)
    assert engine.trace == before
    engine.__enter__()  # the fixture's end is still to come


def test_a_fault_of_a_running_engine_is_not_hidden(
    redirected: Redirected, tcp: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = wfpioctl.query_redirect_records(redirected.accepted)

    def fail(handle: int) -> bytes:
        raise RuntimeError("a fault of the engine")

    monkeypatch.setattr(_wfpioctl, "engine_records_of", fail)
    with pytest.raises(RuntimeError, match="a fault of the engine"):
        wfpioctl.set_redirect_records(tcp, records)


def test_state_never_passes_to_a_new_socket_with_the_same_number(redirected: Redirected) -> None:
    sock = socket.socket()
    handle = sock.fileno()
    wfpioctl.transfer_redirect_records(redirected.accepted, sock)
    assert _wfpioctl.engine_records_of(handle)
    sock.close()
    with socket.socket() as successor:
        assert successor.fileno() == handle
        assert _wfpioctl.engine_records_of(handle) == b""


def from_source(
    source: tuple[str, int], destination: tuple[str, int], unseen: bool = False
) -> socket.socket:
    """Connect from a port that an aborted connection has just left, unseen by the engine or not."""
    sock = socket.socket()
    try:
        sock.settimeout(TIMEOUT)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(source)
        if unseen:
            super(socket.socket, sock).connect(destination)
        else:
            sock.connect(destination)
    except BaseException:
        sock.close()
        raise
    return sock


@pytest.mark.parametrize("asks", [True, False])
@pytest.mark.parametrize("next_one", ["direct", "lost tag", "route", "redirected"])
def test_redirect_never_passes_to_a_later_connection_between_the_same_ends(
    engine: Engine, listener: socket.socket, asks: bool, next_one: str
) -> None:
    """Asked about or not, a redirect ends with its connection."""
    proxy = address_of(listener)
    driver = engine.add_driver("A", proxy=proxy, match=ORIGINAL, context=b"old")
    app = socket.create_connection(ORIGINAL, TIMEOUT)
    source = app.getsockname()
    with accept(listener) as accepted:
        if asks:
            assert wfpioctl.query_redirect_context(accepted) == b"old"
        reset(app)

    driver.context = b"new"
    driver.lose_tag = next_one == "lost tag"
    other = ("203.0.113.8", 8)
    engine.route(other, proxy)
    destination = {"direct": proxy, "route": other}.get(next_one, ORIGINAL)
    with from_source(source, destination), accept(listener) as accepted:
        assert accepted.getpeername() == source
        redirect = wfpioctl.read_redirect(accepted)
    assert (redirect.context if redirect else None) == (
        b"new" if next_one == "redirected" else None
    )


def test_redirect_that_was_asked_about_never_passes_to_a_connection_that_the_engine_did_not_see(
    engine: Engine, listener: socket.socket
) -> None:
    proxy = address_of(listener)
    engine.add_driver("A", proxy=proxy, match=ORIGINAL)
    app = socket.create_connection(ORIGINAL, TIMEOUT)
    source = app.getsockname()
    with accept(listener) as accepted:
        assert wfpioctl.read_redirect(accepted) is not None
        reset(app)
    with from_source(source, proxy, unseen=True), accept(listener) as accepted:
        assert accepted.getpeername() == source
        assert wfpioctl.read_redirect(accepted) is None


def test_finished_flows_give_their_memory_back(engine: Engine, listener: socket.socket) -> None:
    engine.add_driver("A", proxy=address_of(listener), match=ORIGINAL)
    most = 0
    for _ in range(600):
        with (
            socket.create_connection(ORIGINAL, TIMEOUT),
            accept(listener) as accepted,
            socket.socket() as outbound,
        ):
            wfpioctl.transfer_redirect_records(accepted, outbound)
        most = max(most, *_wfpioctl.engine_counts())
    assert most < 300
    assert engine.flow_count < 300


def test_failed_connect_leaves_no_flow(engine: Engine, nowhere: tuple[str, int]) -> None:
    engine.add_driver("A", proxy=nowhere)
    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(ORIGINAL, TIMEOUT)
    assert engine.flow_count == 0


def synthetic_ends(number: int) -> tuple[tuple[str, int], tuple[str, int]]:
    source = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
    return (source, 1), ("127.0.0.1", 80)


def test_a_million_flows(redirected: Redirected) -> None:
    """The time for a query does not grow with the flows, and each is found again."""

    def query() -> object:
        return wfpioctl.query_redirect_context(redirected.accepted)

    engine, million = redirected.engine, 1_000_000
    before = min(timeit.repeat(query, number=1000, repeat=7))
    for number in range(million):
        _wfpioctl.engine_add_flow(NO_SOCKET, *synthetic_ends(number), number + 2, b"", b"")
    assert engine.flow_count == million + 1
    after = min(timeit.repeat(query, number=1000, repeat=7))
    assert after < before * 5
    assert query() == b"context"
    for number in range(0, million, 9973):
        assert _wfpioctl.engine_remove_flow(*synthetic_ends(number))
        assert not _wfpioctl.engine_remove_flow(*synthetic_ends(number))
    assert engine.flow_count == million - million // 9973


def test_threads_share_an_engine(engine: Engine) -> None:
    """Each thread has its own listener, driver and flows; nothing gets mixed up."""

    def work(number: int) -> None:
        destination = ("203.0.113.7", 1000 + number)
        context = b"%d" % number
        with listen() as listener:
            engine.add_driver("A", proxy=address_of(listener), match=destination, context=context)
            for _ in range(50):
                with (
                    socket.create_connection(destination, TIMEOUT),
                    accept(listener) as accepted,
                    socket.socket() as outbound,
                ):
                    assert wfpioctl.query_redirect_context(accepted) == context
                    records = wfpioctl.query_redirect_records(accepted)
                    wfpioctl.transfer_redirect_records(accepted, outbound)
                    assert _wfpioctl.engine_records_of(outbound.fileno()) == records

    with running(*[lambda number=number: work(number) for number in range(4)]):
        pass


def test_engines_come_and_go_while_threads_call(listener: socket.socket) -> None:
    """Each call gets an answer of the engine, or of what there is without one."""
    stop = threading.Event()
    answers: set[object] = set()

    def work() -> None:
        while not stop.is_set():
            try:
                redirect = wfpioctl.read_redirect(accepted)
                answers.add(redirect and redirect.context)
            except wfpioctl.RedirectError as error:
                answers.add(error.winerror)

    def come_and_go() -> None:
        try:
            for number in range(200):
                with Engine() as engine:
                    engine.add_driver("A", proxy=address_of(listener), context=b"of A")
                    engine.redirect_listener(address_of(listener)[1], original=ORIGINAL)
                    time.sleep(number % 3 / 10_000)
                with Scripted(b"records", b"script"):
                    pass
        finally:
            stop.set()

    with (
        socket.create_connection(address_of(listener), TIMEOUT),
        accept(listener) as accepted,
        running(work, work, come_and_go),
    ):
        pass
    assert b"of A" in answers
    assert answers <= {b"of A", b"script", b"", None, 10045}


# ---- the provider as C functions ----

FUNCTION = ctypes.WINFUNCTYPE if sys.platform == "win32" else ctypes.CFUNCTYPE
DWORD = ctypes.c_uint32
WSAIoctl = FUNCTION(
    ctypes.c_int,  # 0 or SOCKET_ERROR
    ctypes.c_size_t,  # SOCKET s
    DWORD,  # dwIoControlCode
    ctypes.c_void_p,  # lpvInBuffer
    DWORD,  # cbInBuffer
    ctypes.c_void_p,  # lpvOutBuffer
    DWORD,  # cbOutBuffer
    ctypes.POINTER(DWORD),  # lpcbBytesReturned
    ctypes.c_void_p,  # lpOverlapped
    ctypes.c_void_p,  # lpCompletionRoutine
)
WSAGetLastError = FUNCTION(ctypes.c_int)


def call_as_c(
    handle: int, code: int, data: bytes | None = None, capacity: int = 0
) -> tuple[int, int, bytes]:
    """WSAIoctl through its address; returns the code (0 is success), the size and the bytes."""
    output = ctypes.create_string_buffer(b"\xaa" * capacity, capacity) if capacity else None
    returned = DWORD(0xAAAA)
    ioctl, last_error = WSAIoctl(wsaioctl_address()), WSAGetLastError(wsa_get_last_error_address())
    status = ioctl(
        handle, code, data, len(data or b""), output, capacity, ctypes.byref(returned), None, None
    )
    assert status in (0, -1)
    error = last_error() & 0xFFFFFFFF if status else 0
    return error, returned.value, output.raw if output else b""


@every_dialect
class TestAsC:
    def test_queries(self, redirected: Redirected) -> None:
        handle = redirected.accepted.fileno()
        records = wfpioctl.query_redirect_records(handle)
        query = wfpioctl.SIO_QUERY_WFP_CONNECTION_REDIRECT_RECORDS
        size = len(records)
        assert call_as_c(handle, query, None, size) == (0, size, records)
        assert call_as_c(handle, query, None, size + 2) == (0, size, records + b"\xaa\xaa")

    def test_W13_W15_too_small(self, redirected: Redirected) -> None:
        """The dialect's code; nothing is written."""
        dialect = redirected.engine.dialect
        query = wfpioctl.SIO_QUERY_WFP_CONNECTION_REDIRECT_CONTEXT
        answer = call_as_c(redirected.accepted.fileno(), query, None, 6)
        assert answer == (dialect.too_small, 7 if dialect.names_size else 0, b"\xaa" * 6)

    @pytest.mark.parametrize("capacity", [0, 1, 3])
    def test_W13_W14_less_than_a_ulong(self, redirected: Redirected, capacity: int) -> None:
        dialect = redirected.engine.dialect
        query = wfpioctl.SIO_QUERY_WFP_CONNECTION_REDIRECT_CONTEXT
        answer = call_as_c(redirected.accepted.fileno(), query, None, capacity)
        if dialect.minimum:
            assert answer == (10022, 0, b"\xaa" * capacity)
        else:
            size = 7 if dialect.names_size else 0
            assert answer == (dialect.too_small, size, b"\xaa" * capacity)

    def test_set(self, redirected: Redirected, tcp: socket.socket) -> None:
        records = wfpioctl.query_redirect_records(redirected.accepted)
        code = wfpioctl.SIO_SET_WFP_CONNECTION_REDIRECT_RECORDS
        assert call_as_c(tcp.fileno(), code, records) == (0, 0, b"")
        assert _wfpioctl.engine_records_of(tcp.fileno()) == records
        assert call_as_c(tcp.fileno(), code, b"") == (10022, 0, b"")

    def test_W07_wrong_values_that_circulate(self, redirected: Redirected) -> None:
        for code in (0x480000DC, 0x58000026, 0, 0xFFFFFFFF):
            assert call_as_c(redirected.accepted.fileno(), code, None, 99)[0] == 10045


@pytest.mark.linux_program
@pytest.mark.usefixtures("engine")
def test_a_connection_that_is_neither_ipv4_nor_ipv6_is_not_supported() -> None:
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other, pytest.raises(wfpioctl.NotSupportedError):
        wfpioctl.query_redirect_records(one)


def test_scripted_provider_as_c() -> None:
    with Scripted(steps=[Step(4711, data=b"xyz", returned=99)]) as script:
        assert call_as_c(12345, 0xDEADBEEF, b"in", 2) == (4711, 99, b"xy")
        assert script.calls == [(0xDEADBEEF, b"in", 2)]


def test_without_a_simulator_there_is_no_address() -> None:
    for address in (wsaioctl_address, wsa_get_last_error_address):
        with pytest.raises(RuntimeError, match="no Engine or Scripted is active"):
            address()


def test_address_called_after_the_engine(redirected: Redirected) -> None:
    """C code may hold on to the address; then it is told that nothing is supported."""
    engine, handle = redirected.engine, redirected.accepted.fileno()
    ioctl, last_error = WSAIoctl(wsaioctl_address()), WSAGetLastError(wsa_get_last_error_address())
    engine.__exit__(None, None, None)
    try:
        query = wfpioctl.SIO_QUERY_WFP_CONNECTION_REDIRECT_CONTEXT
        output = ctypes.create_string_buffer(99)
        status = ioctl(handle, query, None, 0, output, 99, ctypes.byref(DWORD()), None, None)
        assert (status, last_error()) == (-1, 10045)
    finally:
        engine.__enter__()
