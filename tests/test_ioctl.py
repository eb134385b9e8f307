"""The calls on a redirected connection, in every dialect: what they return and what they change."""

import inspect
import socket
import sys
from collections.abc import Callable
from typing import Any

import pytest
from support import (
    LOOPBACKS,
    ORIGINAL,
    ORIGINAL6,
    QUERIES,
    TIMEOUT,
    Pair,
    Redirected,
    accept,
    address_of,
    every_dialect,
    every_query,
    listen,
)

import wfpioctl
from wfpioctl import _wfpioctl
from wfpioctl.simulator import Call, Engine, RecordsSet, Scripted, Step

Closing = Callable[[socket.socket], socket.socket]
Query = Callable[[Any], object]


@every_dialect
class TestQuery:
    def test_context_is_what_the_driver_left(self, redirected: Redirected) -> None:
        assert wfpioctl.query_redirect_context(redirected.accepted) == b"context"

    def test_records_are_the_same_each_time(self, redirected: Redirected) -> None:
        records = wfpioctl.query_redirect_records(redirected.accepted)
        assert isinstance(records, bytes)
        assert len(records) > 0
        assert wfpioctl.query_redirect_records(redirected.accepted) == records

    def test_into_writes_the_same_bytes_and_no_more(self, redirected: Redirected) -> None:
        buffer = bytearray(b"\xaa" * 8192)
        for whole, into in (
            (wfpioctl.query_redirect_records, wfpioctl.query_redirect_records_into),
            (wfpioctl.query_redirect_context, wfpioctl.query_redirect_context_into),
        ):
            expected = whole(redirected.accepted)
            buffer[:] = b"\xaa" * len(buffer)
            assert into(redirected.accepted, buffer) == len(expected)
            assert buffer == expected.ljust(len(buffer), b"\xaa")

    @pytest.mark.parametrize("spare", [0, 1, 3, 100])
    def test_W14_into_a_small_buffer_that_is_enough(
        self, redirected: Redirected, spare: int
    ) -> None:
        """No dialect's idea of a too small buffer is seen: not even less than a ULONG."""
        redirected.driver.context = b"abc"
        buffer = bytearray(7 + spare)
        assert wfpioctl.query_redirect_context_into(redirected.accepted, buffer) == 7
        assert buffer[:7] == b"context"

    def test_W13_into_a_buffer_one_byte_too_small(self, redirected: Redirected) -> None:
        """Nothing is written, and the size is named even if the kernel does not name it."""
        buffer = bytearray(b"\xaa" * 6)
        with pytest.raises(wfpioctl.InsufficientBufferError) as caught:
            wfpioctl.query_redirect_context_into(redirected.accepted, buffer)
        assert caught.value.required_size == 7
        assert caught.value.winerror == 122
        assert buffer == b"\xaa" * 6

    def test_W13_an_empty_buffer_probes_the_size(self, redirected: Redirected) -> None:
        with pytest.raises(wfpioctl.InsufficientBufferError) as caught:
            wfpioctl.query_redirect_records_into(redirected.accepted, bytearray())
        records = wfpioctl.query_redirect_records(redirected.accepted)
        assert caught.value.required_size == len(records)

    def test_nbytes_limits_what_is_written(self, redirected: Redirected) -> None:
        buffer = bytearray(b"\xaa" * 5000)
        with pytest.raises(wfpioctl.InsufficientBufferError):
            wfpioctl.query_redirect_context_into(redirected.accepted, buffer, 6)
        assert buffer == b"\xaa" * 5000
        assert wfpioctl.query_redirect_context_into(redirected.accepted, buffer, 7) == 7
        assert buffer[:8] == b"context\xaa"

    @pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 70_000, 1 << 20])
    def test_W12_context_of_any_size(
        self, engine: Engine, listener: socket.socket, size: int
    ) -> None:
        context = bytes(i * 31 & 0xFF for i in range(997)) * (size // 997 + 1)
        context = context[:size]
        engine.add_driver("A", proxy=address_of(listener), context=context)
        with socket.create_connection(ORIGINAL, TIMEOUT), accept(listener) as accepted:
            assert wfpioctl.query_redirect_context(accepted) == context
            buffer = bytearray(size)
            assert wfpioctl.query_redirect_context_into(accepted, buffer) == size
            assert buffer == context

    @pytest.mark.parametrize("size", [4096, 4097, 16_384, 1 << 20])
    def test_W12_records_of_any_size(
        self, engine: Engine, listener: socket.socket, size: int
    ) -> None:
        engine.add_driver("A", proxy=address_of(listener), records_size=size)
        with (
            socket.create_connection(ORIGINAL, TIMEOUT),
            accept(listener) as accepted,
            socket.socket() as outbound,
        ):
            assert len(wfpioctl.query_redirect_records(accepted)) == size
            assert wfpioctl.transfer_redirect_records(accepted, outbound) == size

    def test_W15_an_answer_over_the_cap(self, engine: Engine, listener: socket.socket) -> None:
        engine.add_driver("A", proxy=address_of(listener), context=bytes((1 << 20) + 1))
        with socket.create_connection(ORIGINAL, TIMEOUT), accept(listener) as accepted:
            with pytest.raises(wfpioctl.InsufficientBufferError) as caught:
                wfpioctl.query_redirect_context(accepted)
            assert caught.value.winerror == engine.dialect.too_small
            names_size = engine.dialect.names_size
            assert caught.value.required_size == ((1 << 20) + 1 if names_size else None)

    def test_W16_no_context(self, engine: Engine, listener: socket.socket) -> None:
        """It is an answer; only a kernel that denies it makes it an error."""
        engine.add_driver("A", proxy=address_of(listener))
        with socket.create_connection(ORIGINAL, TIMEOUT), accept(listener) as accepted:
            assert wfpioctl.query_redirect_records(accepted)
            if engine.dialect.no_context:
                with pytest.raises(wfpioctl.NotRedirectedError):
                    wfpioctl.query_redirect_context(accepted)
            else:
                assert wfpioctl.query_redirect_context(accepted) == b""
                assert wfpioctl.query_redirect_context_into(accepted, bytearray(1)) == 0
                assert wfpioctl.query_redirect_context_into(accepted, bytearray()) == 0

    @every_query
    def test_W17_not_redirected(self, engine: Engine, pair: Pair, query: Query) -> None:
        with pytest.raises(wfpioctl.RedirectError) as caught:
            query(pair.server)
        error = caught.value
        assert error.winerror == engine.dialect.not_redirected
        kind = (
            wfpioctl.InvalidArgumentError
            if error.winerror == 10022
            else wfpioctl.NotRedirectedError
        )
        assert type(error) is kind

    @every_query
    def test_W21_the_app_side_has_no_redirect(self, redirected: Redirected, query: Query) -> None:
        with pytest.raises(wfpioctl.RedirectError) as caught:
            query(redirected.app)
        assert caught.value.winerror == redirected.engine.dialect.not_redirected

    @every_query
    def test_W18_W21_the_listener_is_not_connected(
        self, redirected: Redirected, listener: socket.socket, query: Query
    ) -> None:
        with pytest.raises(wfpioctl.NotConnectedError):
            query(listener)


@every_dialect
class TestSet:
    @pytest.mark.thread_unsafe
    def test_W23_W24_set_before_connect(self, redirected: Redirected, tcp: socket.socket) -> None:
        records = wfpioctl.query_redirect_records(redirected.accepted)
        assert wfpioctl.set_redirect_records(tcp, records) is None
        assert redirected.engine.trace[-1] == RecordsSet(1, 0, len(records))

    def test_W23_set_on_a_connected_socket(self, redirected: Redirected, pair: Pair) -> None:
        records = wfpioctl.query_redirect_records(redirected.accepted)
        for sock in pair:
            with pytest.raises(wfpioctl.InvalidArgumentError):
                wfpioctl.set_redirect_records(sock, records)

    def test_W25_the_whole_buffer_instead_of_the_returned_length(
        self, redirected: Redirected, tcp: socket.socket
    ) -> None:
        buffer = bytearray(1024)
        size = wfpioctl.query_redirect_records_into(redirected.accepted, buffer)
        with pytest.raises(wfpioctl.InvalidArgumentError):
            wfpioctl.set_redirect_records(tcp, buffer)
        wfpioctl.set_redirect_records(tcp, memoryview(buffer)[:size])

    @pytest.mark.parametrize("position", [0, 8, 16, -1])
    def test_W26_altered_records(
        self, redirected: Redirected, tcp: socket.socket, position: int
    ) -> None:
        records = bytearray(wfpioctl.query_redirect_records(redirected.accepted))
        records[position] ^= 1
        with pytest.raises(wfpioctl.InvalidArgumentError):
            wfpioctl.set_redirect_records(tcp, records)

    def test_W26_records_of_another_machine(
        self, dialect: str, listener: socket.socket, tcp: socket.socket
    ) -> None:
        with Engine(dialect=dialect) as engine:
            engine.add_driver("A", proxy=address_of(listener))
            with socket.create_connection(ORIGINAL, TIMEOUT), accept(listener) as accepted:
                foreign = wfpioctl.query_redirect_records(accepted)
        with Engine(dialect=dialect), pytest.raises(wfpioctl.InvalidArgumentError):
            wfpioctl.set_redirect_records(tcp, foreign)

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_records_may_be_any_contiguous_bytes_like(
        self, redirected: Redirected, tcp: socket.socket, kind: Callable[[bytes], Any]
    ) -> None:
        records = wfpioctl.query_redirect_records(redirected.accepted)
        wfpioctl.set_redirect_records(tcp, kind(records))

    def test_transfer_sets_what_it_queries(
        self, redirected: Redirected, tcp: socket.socket
    ) -> None:
        size = wfpioctl.transfer_redirect_records(redirected.accepted, tcp)
        records = wfpioctl.query_redirect_records(redirected.accepted)
        assert size == len(records)
        assert _wfpioctl.engine_records_of(tcp.fileno()) == records

    def test_transfer_names_the_half_that_failed(self, redirected: Redirected, pair: Pair) -> None:
        with pytest.raises(wfpioctl.InvalidArgumentError) as caught:
            wfpioctl.transfer_redirect_records(redirected.accepted, pair.client)
        assert caught.value.operation == "SIO_SET_WFP_CONNECTION_REDIRECT_RECORDS"

        with socket.socket() as outbound:
            with pytest.raises(wfpioctl.RedirectError) as caught:
                wfpioctl.transfer_redirect_records(pair.server, outbound)
            assert caught.value.operation == "SIO_QUERY_WFP_CONNECTION_REDIRECT_RECORDS"
            assert _wfpioctl.engine_records_of(outbound.fileno()) == b""


def test_transfer_of_empty_records_sets_nothing() -> None:
    with Scripted(records=b"") as scripted:
        assert wfpioctl.transfer_redirect_records(3, 4) == 0
    assert scripted.calls == []


def test_W11_arguments_of_the_calls() -> None:
    """QUERY has no input, SET no output."""
    with Scripted(steps=[Step(data=b"records")]) as scripted:
        wfpioctl.query_redirect_records(3)
        wfpioctl.query_redirect_context(3)
        wfpioctl.set_redirect_records(3, b"records")
    assert scripted.calls == [
        Call(wfpioctl.SIO_QUERY_WFP_CONNECTION_REDIRECT_RECORDS, b"", 4096),
        Call(wfpioctl.SIO_QUERY_WFP_CONNECTION_REDIRECT_CONTEXT, b"", 4096),
        Call(wfpioctl.SIO_SET_WFP_CONNECTION_REDIRECT_RECORDS, b"records", 0),
    ]


@pytest.mark.parametrize("returned", [0, 1, 6, 8, 0xFFFFFFFF])
def test_W24_what_set_returns_is_ignored(returned: int) -> None:
    with Scripted(steps=[Step(returned=returned)]):
        assert wfpioctl.set_redirect_records(3, b"records") is None


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("family", LOOPBACKS)
@every_query
def test_both_families(
    engine: Engine, family: socket.AddressFamily, query: Query, closing: Closing
) -> None:
    listener = closing(listen(family))
    engine.add_driver("A", proxy=address_of(listener), context=b"context")
    app = closing(socket.socket(family))
    app.settimeout(TIMEOUT)
    app.connect(ORIGINAL6 if family == socket.AF_INET6 else ORIGINAL)
    assert query(closing(accept(listener)))


class HasFileno:
    """What wraps a socket: a transport's socket, trio's, ssl's ..."""

    def __init__(self, number: int) -> None:
        self.number = number

    def fileno(self) -> int:
        return self.number


@every_query
def test_handle_may_be_of_a_subclass_of_int(redirected: Redirected, query: Query) -> None:
    class Handle(int):
        pass

    assert query(Handle(redirected.accepted.fileno())) == query(redirected.accepted)


@every_query
def test_socket_may_be_a_handle_or_have_a_fileno(redirected: Redirected, query: Query) -> None:
    expected = query(redirected.accepted)
    handle = redirected.accepted.fileno()
    assert query(handle) == query(HasFileno(handle)) == expected


class Forwarding(socket.socket):
    """A socket that stands for another one."""

    meant: socket.socket

    def fileno(self) -> int:
        return self.meant.fileno()


@every_query
def test_a_subclass_of_socket_may_have_a_fileno_of_its_own(
    redirected: Redirected, query: Query
) -> None:
    with Forwarding() as standing:
        standing.meant = redirected.accepted
        assert query(standing) == query(redirected.accepted)


@pytest.mark.parametrize("function", ["query_redirect_records", "transfer_redirect_records"])
def test_success_runs_no_python_code(function: str) -> None:
    """The public function is the C function, and nothing but it runs."""
    events: list[str] = []
    call = getattr(wfpioctl, function)
    arguments = (3,) if function.startswith("query") else (3, 4)
    with Scripted(records=b"records"):
        sys.setprofile(lambda frame, event, argument: events.append(event))
        try:
            call(*arguments)
        finally:
            sys.setprofile(None)
    assert events == ["c_call", "c_return", "c_call"]  # the last one is sys.setprofile itself
    assert call is getattr(_wfpioctl, function)


@pytest.mark.parametrize("function", [*QUERIES, "set_redirect_records"])
def test_public_functions_document_their_signature(function: str) -> None:
    public = getattr(wfpioctl, function)
    assert "sock" in inspect.signature(public).parameters
    assert public.__doc__
