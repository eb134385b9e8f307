"""The C allocator fails, at each allocation in turn: MemoryError (or the code for it), and then all
is as before.

Only the instrumented builds have an allocator that can be told to fail, and with it the start of a
thread: tools/harden.py makes them.
"""

import contextlib
import ctypes
import gc
import socket
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from support import ORIGINAL, accept, address_of, listen

import wfpioctl
from wfpioctl import _wfpioctl, datagram, overlapped
from wfpioctl.simulator import Engine, Scripted, Step
from wfpioctl.simulator.records import encode_records

BIG = bytes(100_000)  # more than the stack holds: the answer is put on the heap

Call = Callable[[], object]


def failing_malloc() -> ctypes.c_long | None:
    """The extension's counter down to a failure, if it was built with one."""
    try:
        library = ctypes.CDLL(str(_wfpioctl.__file__))
        return ctypes.c_long.in_dll(library, "wfpioctl_failing_malloc")
    except (OSError, ValueError):
        return None


COUNTER = failing_malloc()

pytestmark = pytest.mark.skipif(
    COUNTER is None, reason="needs an instrumented build (tools/harden.py asan, or coverage)"
)


def sweep(call: Call, *errors: type[BaseException]) -> int:
    """Let each allocation of the call fail in turn; return how many failures raised."""
    assert COUNTER is not None
    call()
    raised = 0
    for number in range(1, 1000):
        COUNTER.value = number
        try:
            call()
        except (MemoryError, *errors):
            raised += 1
        left, COUNTER.value = COUNTER.value, 0
        if left > 0:  # the call made fewer allocations than that
            call()
            return raised
    raise AssertionError("the call never got through")


@pytest.mark.parametrize(
    ("call", "failures"),
    [
        (lambda: wfpioctl.query_redirect_records_into(5, bytearray(1 << 17), 5000), 1),
        (lambda: wfpioctl.query_redirect_context_into(5, bytearray(1 << 17), 5000), 1),
        (lambda: wfpioctl.transfer_redirect_records(5, 6), 1),
        (lambda: wfpioctl.read_redirect(5), 2),
    ],
    ids=["records_into", "context_into", "transfer", "read_redirect"],
)
def test_an_answer_that_does_not_grow_is_a_memory_error(call: Call, failures: int) -> None:
    def quiet() -> None:
        with contextlib.suppress(wfpioctl.InsufficientBufferError):  # 5000 bytes do not hold it
            call()

    with Scripted(BIG, BIG):
        assert sweep(quiet) == failures
        assert wfpioctl.query_redirect_records(5) == BIG


def test_a_script_that_does_not_start_leaves_none_active() -> None:
    def life() -> None:
        with Scripted(b"records", b"context"):
            assert wfpioctl.query_redirect_records(5) == b"records"
        with Scripted(steps=[Step(data=b"1"), Step(data=b"2")]):
            assert wfpioctl.query_redirect_records(5) == b"1"

    assert sweep(life) >= 8


def test_a_call_that_cannot_be_recorded_is_still_answered() -> None:
    def life() -> None:
        with Scripted(steps=[Step()]) as script:
            wfpioctl.set_redirect_records(5, b"records")
            assert script.calls[0].input in (b"records", b"")

    assert sweep(life) >= 1


def test_the_engine_survives_each_failure() -> None:
    """A flow that cannot be kept is a connect that fails; SET says WSAENOBUFS (W20)."""
    with listen() as listener, Engine() as engine:
        engine.add_driver("A", proxy=address_of(listener), match=ORIGINAL, context=b"context")
        engine.redirect_listener(1, original=ORIGINAL)
        listener.settimeout(0.5)

        def connection() -> None:
            engine.redirect_listener(1, original=ORIGINAL)
            with socket.socket() as app, socket.socket() as outbound:
                app.settimeout(5)
                app.connect(ORIGINAL)
                with accept(listener) as accepted:
                    wfpioctl.transfer_redirect_records(accepted, outbound)

        assert sweep(connection, wfpioctl.InsufficientBufferError, wfpioctl.RedirectError) >= 3
        gc.collect()
        with socket.create_connection(ORIGINAL, 5), accept(listener) as accepted:
            assert wfpioctl.query_redirect_context(accepted) == b"context"


def test_a_table_that_cannot_grow_takes_more_flows_all_the_same() -> None:
    assert COUNTER is not None
    with Engine() as engine:
        for number in range(2000):
            COUNTER.value = 2  # the entry's own memory is the first
            try:
                _wfpioctl.engine_add_flow(
                    2**31, ("127.0.0.1", number), ("127.0.0.1", 1), number, b"r", b"c"
                )
            except MemoryError:  # the first of a shard: there is no table yet
                COUNTER.value = 0
                _wfpioctl.engine_add_flow(
                    2**31, ("127.0.0.1", number), ("127.0.0.1", 1), number, b"r", b"c"
                )
        COUNTER.value = 0
        assert engine.flow_count == 2000


def test_datagrams_survive_each_failure() -> None:
    with (
        Engine() as engine,
        socket.socket(type=socket.SOCK_DGRAM) as app,
        socket.socket(type=socket.SOCK_DGRAM) as proxy,
    ):
        for sock in (app, proxy):
            sock.bind(("127.0.0.1", 0))
        datagram.enable_redirect_metadata(proxy)
        records = encode_records(1, [], 20_000)  # more than the room for control data holds
        _wfpioctl.engine_add_datagram_flow(
            app.fileno(), address_of(app), address_of(proxy)[1], 1, records, b"context"
        )

        def send() -> None:
            datagram.sendmsg(app, b"data", address_of(proxy), records=records)

        assert sweep(send) == 1

        def peek() -> None:
            peeked = datagram.recvmsg(proxy, 100, socket.MSG_PEEK)
            assert (peeked.records, peeked.context) == (records, b"context")

        assert sweep(peek) == 1
        assert engine.flow_count == 1


def test_an_operation_that_no_thread_can_end_fails_at_once() -> None:
    """A SET does; a QUERY takes WSAENOBUFS for a buffer too small, and tries again (W15)."""

    def call() -> None:
        overlapped.set_redirect_records(5, b"records").result(5)

    with Scripted(steps=[Step(pending=True)]):
        call()  # leaves a block to use again
        assert sweep(call, wfpioctl.RedirectError) == 2


def test_a_success_whose_routine_cannot_be_queued_is_a_failure() -> None:
    def call() -> None:
        operation = overlapped.set_redirect_records(5, b"records", completion=lambda _: None)
        assert overlapped.sleep(0) == 1
        operation.result(0)

    with Scripted(steps=[Step()]):
        call()
        assert sweep(call, wfpioctl.RedirectError) == 1


@pytest.mark.parametrize("size", [10, 100_000])
@pytest.mark.parametrize("completion", [None, lambda operation: None], ids=["event", "routine"])
def test_overlapped_operations_survive_each_failure(size: int, completion: Any) -> None:
    """An operation that cannot be made is a MemoryError; what fails later ends the operation."""
    steps = [Step(code=122, returned=size, pending=True), Step(data=bytes(size), pending=True)]

    def life() -> None:
        with Scripted(steps=steps):
            kept = [overlapped.query_redirect_records(5) for _ in range(20)]  # no spare is left
            del kept[:]
            query = overlapped.query_redirect_records(5, completion=completion)
            while completion is not None and overlapped.sleep(0.01):
                pass
            with contextlib.suppress(TimeoutError):
                query.result(0.01)
            overlapped.set_redirect_records(6, bytes(size)).cancel()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        assert sweep(life, wfpioctl.RedirectError) >= 1
        gc.collect()
