"""Overlapped operations: their results, their end by every way there is, completion routines."""

import _thread
import contextlib
import ctypes
import errno
import math
import pickle
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, get_origin

import pytest
from loops import pending
from support import (
    ORIGINAL,
    TIMEOUT,
    Pair,
    Redirected,
    accept,
    address_of,
    every_dialect,
    open_handles,
    running,
)

import wfpioctl
from wfpioctl import _wfpioctl, overlapped
from wfpioctl.errors import CODES
from wfpioctl.overlapped import Operation
from wfpioctl.simulator import Engine, RecordsSet, Scripted, Step

HANDLE = 4321  # any handle will do for a script


class Function(NamedTuple):
    """One of the three functions, in its synchronous and its overlapped form."""

    synchronous: Callable[..., Any]
    overlapped: Callable[..., Operation[Any]]
    args: tuple[bytes, ...]

    def call(self, sock: Any) -> Any:
        return self.synchronous(sock, *self.args)

    def start(self, sock: Any, **kw: Any) -> Operation[Any]:
        return self.overlapped(sock, *self.args, **kw)


FUNCTIONS = [
    Function(wfpioctl.query_redirect_records, overlapped.query_redirect_records, ()),
    Function(wfpioctl.query_redirect_context, overlapped.query_redirect_context, ()),
    Function(wfpioctl.set_redirect_records, overlapped.set_redirect_records, (b"records",)),
]

every_function = pytest.mark.parametrize(
    "function", FUNCTIONS, ids=[function.synchronous.__name__ for function in FUNCTIONS]
)

# What may happen to an operation: it ends in the call, or later.
ENDINGS: dict[str, dict[str, Any]] = {
    "at once": {},
    "pending": {"pending": True},
    "after a while": {"pending": True, "delay": 0.01},
}
every_ending = pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)

NEVER = Step(data=b"never", pending=True, delay=math.inf)


def is_set(operation: Operation[Any]) -> bool:
    """Whether the operation's event is set, without looking at the operation."""
    if sys.platform == "win32":
        wait = ctypes.WinDLL("kernel32").WaitForSingleObject
        wait.argtypes = ctypes.c_void_p, ctypes.c_uint32
        return bool(wait(operation.event, 0) == 0)
    return select.select([operation.event], [], [], 0)[0] != []


def failure(function: Callable[[], object]) -> wfpioctl.RedirectError:
    with pytest.raises(wfpioctl.RedirectError) as caught:
        function()
    return caught.value


class TestOnTheEngine:
    @every_dialect
    def test_answers_are_those_of_the_synchronous_calls(self, redirected: Redirected) -> None:
        accepted = redirected.accepted
        with overlapped.query_redirect_records(accepted) as operation:
            assert operation.result() == wfpioctl.query_redirect_records(accepted)
        with overlapped.query_redirect_context(accepted) as operation:
            assert not operation.pending
            assert operation.result(timeout=0) == b"context"

    @every_dialect
    @pytest.mark.parametrize("size", [0, 4096, 4097, 1 << 20])
    def test_W12_answers_of_any_size(
        self, engine: Engine, listener: socket.socket, size: int
    ) -> None:
        context = bytes(i * 31 & 0xFF for i in range(997)) * (size // 997 + 1)
        engine.add_driver("A", proxy=address_of(listener), context=context[:size] or b"-")
        with socket.create_connection(ORIGINAL, TIMEOUT), accept(listener) as accepted:
            expected = wfpioctl.query_redirect_context(accepted)
            assert overlapped.query_redirect_context(accepted).result() == expected
            assert len(expected) == max(size, 1)

    def test_set(self, redirected: Redirected, tcp: socket.socket) -> None:
        records = wfpioctl.query_redirect_records(redirected.accepted)
        assert overlapped.set_redirect_records(tcp, records).result() is None
        assert isinstance(redirected.engine.trace[-1], RecordsSet)
        assert _wfpioctl.engine_records_of(tcp.fileno()) == records

    def test_W12_a_set_of_large_records(
        self, engine: Engine, listener: socket.socket, tcp: socket.socket
    ) -> None:
        engine.add_driver("A", proxy=address_of(listener), records_size=1 << 20)
        with socket.create_connection(ORIGINAL, TIMEOUT), accept(listener) as accepted:
            records = overlapped.query_redirect_records(accepted).result()
        assert len(records) == 1 << 20
        overlapped.set_redirect_records(tcp, memoryview(records)).result()

    @every_dialect
    def test_W17_not_redirected(self, engine: Engine, pair: Pair) -> None:
        same(
            failure(lambda: wfpioctl.query_redirect_records(pair.server)),
            failure(overlapped.query_redirect_records(pair.server).result),
        )

    @every_function
    def test_W18_W23_the_wrong_state_of_a_socket(
        self,
        engine: Engine,
        tcp: socket.socket,
        pair: Pair,
        function: Function,
    ) -> None:
        sock = pair.client if function.args else tcp
        same(failure(lambda: function.call(sock)), failure(function.start(sock).result))

    def test_the_trace_tells_both_forms(self, redirected: Redirected, pair: Pair) -> None:
        for sock in redirected.accepted, pair.server:
            before = len(redirected.engine.trace)
            with contextlib.suppress(wfpioctl.RedirectError):
                wfpioctl.query_redirect_records(sock)
            with contextlib.suppress(wfpioctl.RedirectError):
                overlapped.query_redirect_records(sock).result()
            first, second = redirected.engine.trace[before:]
            assert first == second


def same(one: wfpioctl.RedirectError, other: wfpioctl.RedirectError) -> None:
    """Both are the same error, in every respect."""
    assert type(one) is type(other)
    assert str(one) == str(other)
    assert (one.winerror, one.errno, one.operation, one.required_size) == (
        other.winerror,
        other.errno,
        other.operation,
        other.required_size,
    )


@every_function
class TestErrors:
    @pytest.mark.parametrize(
        ("ending", "code"),
        [
            (ending, code)
            for ending in ENDINGS.values()
            for code in (*CODES, 1, 10_093, 0xFFFFFFFF)
            if not (ending and code == 996)  # WSA_IO_INCOMPLETE is no end: it means pending
        ],
    )
    def test_W30_every_code_is_the_same_error_in_both_forms(
        self,
        function: Function,
        code: int,
        ending: dict[str, Any],
    ) -> None:
        with Scripted(steps=[Step(code=code)]):
            synchronous = failure(lambda: function.call(HANDLE))
        with Scripted(steps=[Step(code=code, **ending)]):
            same(synchronous, failure(function.start(HANDLE).result))

    def test_W10_without_a_simulator(
        self,
        function: Function,
        pair: Pair,
    ) -> None:
        """Winsock's own word: here or on a Windows that does not redirect this connection."""
        same(
            failure(lambda: function.call(pair.server)),
            failure(lambda: function.start(pair.server).result(TIMEOUT)),
        )

    @pytest.mark.parametrize("bad", ["7", None, True, 1.5, -2, 1 << 70, object])
    def test_bad_sockets_are_refused_at_the_start_alike(
        self,
        function: Function,
        bad: Any,
    ) -> None:
        with pytest.raises((TypeError, ValueError, OverflowError)) as synchronous:
            function.call(bad)
        with pytest.raises(synchronous.type, match=f"^{re.escape(str(synchronous.value))}$"):
            function.start(bad)

    def test_W19_a_closed_socket(
        self,
        function: Function,
    ) -> None:
        closed = socket.socket()
        closed.close()
        same(failure(lambda: function.call(closed)), failure(lambda: function.start(closed)))


@pytest.mark.parametrize("records", [b"", bytes((1 << 20) + 1), "text", memoryview(b"abcd")[::2]])
def test_bad_records_are_refused_at_the_start_alike(records: Any) -> None:
    with pytest.raises((TypeError, ValueError, BufferError)) as synchronous:
        wfpioctl.set_redirect_records(HANDLE, records)
    with pytest.raises(synchronous.type, match=f"^{re.escape(str(synchronous.value))}$"):
        overlapped.set_redirect_records(HANDLE, records)


class TestGrowth:
    @pytest.mark.parametrize(
        "steps",
        [
            [Step(code=122, returned=9000), Step(data=bytes(9000))],
            [Step(code=234), Step(code=10055), Step(data=bytes(16384))],
            [Step(returned=5000), Step(data=bytes(5000))],
            [Step(code=122, returned=(1 << 20) + 1)],
            [Step(code=10040)],
            [Step(code=122, returned=5000), Step(code=122, returned=6000), Step(code=10057)],
        ],
    )
    @every_ending
    def test_W15_grows_like_the_synchronous_call(
        self, steps: list[Step], ending: dict[str, Any]
    ) -> None:
        """The same calls, with the same capacities, to the same end."""

        def outcome(function: Callable[[], bytes]) -> bytes | str:
            try:
                return function()
            except wfpioctl.RedirectError as error:
                return f"{type(error)} {error}"

        with Scripted(steps=steps) as script:
            synchronous = outcome(lambda: wfpioctl.query_redirect_context(HANDLE))
        later = [Step(s.code, s.data, s.returned, **ending) for s in steps]
        with Scripted(steps=later) as later_script:
            operation = overlapped.query_redirect_context(HANDLE)
            assert outcome(operation.result) == synchronous
        assert later_script.calls == script.calls
        assert len(script.calls) > 1 or isinstance(synchronous, str)

    def test_the_event_is_set_again_for_the_last_try(self) -> None:
        """Also where the kernel sets none: it fails at once after the first try pended."""
        steps = [Step(code=122, returned=5000, pending=True, delay=0.01), Step(code=10057)]
        with Scripted(steps=steps):
            operation = overlapped.query_redirect_context(HANDLE)
            with pytest.raises(wfpioctl.NotConnectedError):
                operation.result(TIMEOUT)
            assert is_set(operation)

    def test_a_cancelled_operation_does_not_start_again(self) -> None:
        """Its first try ends, too small, after the cancellation."""
        slow = Step(code=122, returned=5000, pending=True, delay=0.02, cancellable=False)
        with Scripted(steps=[slow, NEVER]) as script:
            operation = overlapped.query_redirect_context(HANDLE)
            operation.cancel()
            with pytest.raises(wfpioctl.OperationAbortedError):
                operation.result(TIMEOUT)
            assert len(script.calls) == 1


class TestResult:
    @every_ending
    def test_can_be_claimed_again(self, ending: dict[str, Any]) -> None:
        with Scripted(steps=[Step(data=b"answer", **ending)]):
            operation = overlapped.query_redirect_records(HANDLE)
            assert [operation.result(), operation.result(0)] == [b"answer"] * 2
        assert operation.result() == b"answer"  # it needs no provider any more

    def test_an_error_can_be_claimed_again(self) -> None:
        with Scripted(steps=[Step(code=10057, pending=True)]):
            operation = overlapped.query_redirect_records(HANDLE)
            first, second = failure(operation.result), failure(operation.result)
        same(first, second)
        assert first is not second

    def test_timeout_leaves_it_pending(self) -> None:
        with Scripted(steps=[NEVER]), overlapped.query_redirect_records(HANDLE) as operation:
            with pytest.raises(TimeoutError, match=r"RECORDS: still pending after 0\.01 s"):
                operation.result(0.01)
            with pytest.raises(TimeoutError):
                operation.result(timeout=0)
            assert operation.pending

    @pytest.mark.parametrize(
        ("bad", "error"), [(-1, ValueError), (math.nan, ValueError), ("1", TypeError)]
    )
    def test_bad_timeouts(self, bad: Any, error: type[Exception]) -> None:
        with Scripted(records=b"r"):
            operation = overlapped.query_redirect_records(HANDLE)
            with pytest.raises(error):
                operation.result(bad)
            assert operation.result(math.inf) == b"r"

    @pytest.mark.parametrize("code", [0, 10057])
    def test_of_one_operation_in_many_threads(self, code: int) -> None:
        results: list[bytes | int] = []
        steps = [
            Step(code=122, returned=5000, pending=True, delay=0.02),
            Step(code=code, data=b"answer", pending=True, delay=0.02),
        ]
        with Scripted(steps=steps) as script:
            operation = overlapped.query_redirect_records(HANDLE)

            def claim() -> None:
                try:
                    results.append(operation.result(TIMEOUT))
                except wfpioctl.RedirectError as error:
                    results.append(error.winerror)

            with running(*[claim] * 8):
                pass
            assert len(script.calls) == 2
        assert results == [code or b"answer"] * 8

    def test_a_signal_interrupts_it(self) -> None:
        with Scripted(steps=[NEVER]), overlapped.query_redirect_records(HANDLE) as operation:
            waiting = threading.Event()

            def interrupt() -> None:
                waiting.wait(TIMEOUT)
                _thread.interrupt_main()

            def wait() -> None:
                waiting.set()
                operation.result(TIMEOUT)

            before = signal.signal(signal.SIGINT, signal.default_int_handler)
            try:  # a shell's background job ignores it
                with running(interrupt), pytest.raises(KeyboardInterrupt):
                    wait()
            finally:
                signal.signal(signal.SIGINT, before)
            assert operation.pending


def test_a_pending_step_only_delays_a_synchronous_call() -> None:
    with Scripted(steps=[Step(data=b"answer", pending=True, delay=0.01)]):
        assert wfpioctl.query_redirect_records(HANDLE) == b"answer"


def test_no_step_can_end_by_saying_that_it_pends() -> None:
    with pytest.raises(ValueError, match="WSA_IO_INCOMPLETE"):
        Step(code=996, pending=True)


class TestEvent:
    @pytest.mark.linux_program  # there, an event is a descriptor
    def test_there_is_none_to_be_had(self) -> None:
        import resource

        def start() -> Operation[bytes]:
            return overlapped.query_redirect_records(HANDLE)

        with Scripted(steps=[NEVER]), contextlib.ExitStack() as operations:
            for _ in range(20):  # no event is left over from earlier ones
                operations.enter_context(start())
            limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
            try:
                with pytest.raises(OSError, match="Too many open files") as caught:
                    start()
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            assert caught.value.errno == errno.EMFILE
            operations.enter_context(start())

    @pytest.mark.parametrize("code", [0, 10057])
    @every_ending
    def test_is_set_when_it_has_ended(self, code: int, ending: dict[str, Any]) -> None:
        with Scripted(steps=[Step(code=code, **ending)]):
            operation = overlapped.query_redirect_records(HANDLE)
            with contextlib.suppress(wfpioctl.RedirectError):
                operation.result()
            assert is_set(operation)
            assert not operation.pending

    def test_is_not_set_before(self) -> None:
        """Not even that of an operation whose memory had a set event before."""
        for steps in [Step()], [Step(pending=True)]:
            with Scripted(steps=steps):
                overlapped.query_redirect_records(HANDLE).result()
        with Scripted(steps=[NEVER]), overlapped.query_redirect_records(HANDLE) as operation:
            assert not is_set(operation)
            operation.cancel()
            assert is_set(operation)

    def test_is_the_operations_own(self) -> None:
        with Scripted(steps=[NEVER]):
            first = overlapped.query_redirect_records(HANDLE)
            second = overlapped.query_redirect_records(HANDLE)
            assert first.event != second.event
            first.cancel()
            assert not is_set(second)
            second.cancel()


class TestEnds:
    def test_cancel_again_and_again(self) -> None:
        with Scripted(steps=[NEVER]):
            operation = overlapped.query_redirect_records(HANDLE)
            operation.cancel()
            operation.cancel()
            assert not operation.pending
            assert failure(operation.result).winerror == 995
            operation.cancel()
            with pytest.raises(wfpioctl.OperationAbortedError):
                operation.result()

    def test_cancel_comes_too_late(self) -> None:
        with Scripted(steps=[Step(data=b"answer")]):
            operation = overlapped.query_redirect_records(HANDLE)
            operation.cancel()
            assert operation.result() == b"answer"

    def test_a_driver_may_end_a_cancelled_operation_with_success(self) -> None:
        step = Step(data=b"answer", pending=True, delay=0.02, cancellable=False)
        with Scripted(steps=[step]):
            operation = overlapped.query_redirect_records(HANDLE)
            operation.cancel()
            assert operation.pending
            assert operation.result() == b"answer"

    def test_with_cancels(self) -> None:
        with Scripted(steps=[NEVER]):
            with overlapped.query_redirect_records(HANDLE) as operation:
                assert operation.pending
            with pytest.raises(wfpioctl.OperationAbortedError):
                operation.result(0)

    def test_W20_its_socket_is_closed(self) -> None:
        """Only that socket's operations end."""
        with Scripted(steps=[NEVER]) as script:
            closed = overlapped.query_redirect_records(HANDLE)
            other = overlapped.query_redirect_records(HANDLE + 4)
            script.abort(HANDLE)
            with pytest.raises(wfpioctl.OperationAbortedError):
                closed.result(0)
            assert other.pending
            other.cancel()

    def test_the_script_ends(self) -> None:
        with Scripted(steps=[NEVER]):
            operations = [overlapped.query_redirect_records(HANDLE) for _ in range(10)]
        for operation in operations:
            with pytest.raises(wfpioctl.OperationAbortedError):
                operation.result(0)

    def test_the_script_ends_while_a_thread_waits(self) -> None:
        with contextlib.ExitStack() as stack:
            script = stack.enter_context(Scripted(steps=[NEVER]))
            operation = overlapped.query_redirect_records(HANDLE)
            started = threading.Event()

            def wait() -> None:
                started.set()
                assert failure(lambda: operation.result(TIMEOUT)).winerror == 995

            with running(wait):
                assert started.wait(TIMEOUT)
                assert script.calls
                stack.close()

    def test_each_result_keeps_to_its_own_script(self) -> None:
        """An operation that has to be started again finds the provider that there is then."""
        with Scripted(steps=[Step(code=122, returned=5000, pending=True, delay=0)]):
            operation = overlapped.query_redirect_records(HANDLE)
            while not is_set(operation):
                pass
        with Scripted(records=b"of another"):
            assert operation.result() == b"of another"


def drop() -> None:
    """Start an operation that pends, and forget it."""
    with pytest.warns(ResourceWarning, match=rf"RECORDS on socket {HANDLE} was dropped while"):
        assert overlapped.query_redirect_records(HANDLE).pending


class TestDropped:
    def test_while_pending_is_cancelled_and_warned_of(self) -> None:
        before = overlapped.counters()
        with Scripted(steps=[NEVER]):
            drop()
            assert pending() == 0
        after = overlapped.counters()
        assert after.cancelled == before.cancelled + 1
        assert after.orphaned == before.orphaned

    def test_a_warning_that_is_an_error_cannot_be_raised(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is reported as every error is that nobody can catch."""
        reported: list[type[BaseException] | None] = []
        monkeypatch.setattr(sys, "unraisablehook", lambda error: reported.append(error.exc_type))
        with Scripted(steps=[NEVER]), warnings.catch_warnings():
            warnings.simplefilter("error", ResourceWarning)
            overlapped.query_redirect_records(HANDLE)
        assert reported == [ResourceWarning]
        assert pending() == 0

    @pytest.mark.parametrize("step", [Step(), Step(code=10057), Step(pending=True)])
    def test_after_its_end_is_not_warned_of(self, step: Step) -> None:
        with Scripted(steps=[step]):
            operation = overlapped.query_redirect_records(HANDLE)
            while operation.pending:
                pass
            del operation

    def test_after_cancel_is_not_warned_of(self) -> None:
        with Scripted(steps=[NEVER]):
            overlapped.query_redirect_records(HANDLE).cancel()

    def test_W29_the_memory_outlives_a_pending_operation(self) -> None:
        """A driver that does not react to cancellation writes to it, long after."""
        before = overlapped.counters()
        step = Step(data=b"late" * 1000, pending=True, delay=0.05, cancellable=False)
        with Scripted(steps=[step]):
            drop()
            orphaned = overlapped.counters()
            assert orphaned.orphaned == before.orphaned + 1
            assert orphaned.given_back == before.given_back
            # Started later, it ends later: then the orphan has ended too.
            assert len(overlapped.query_redirect_records(HANDLE).result(TIMEOUT)) == 4000
        after = overlapped.counters()
        assert after.given_back == before.given_back + 1
        assert after.completed == before.completed + 2

    def test_an_orphan_does_not_start_again(self) -> None:
        step = Step(code=122, returned=5000, pending=True, delay=0.02, cancellable=False)
        with Scripted(steps=[step]) as script:
            overlapped.query_redirect_records(HANDLE).cancel()
            later = overlapped.query_redirect_records(HANDLE)
            later.cancel()
            with pytest.raises(wfpioctl.OperationAbortedError):
                later.result(TIMEOUT)
            assert len(script.calls) == 2

    def test_at_interpreter_exit(self) -> None:
        """Whether cancellation helps or not, Python ends, at once and without a word."""
        program = """if True:
            import math
            from wfpioctl import overlapped
            from wfpioctl.simulator import Scripted, Step
            steps = [Step(pending=True, delay=math.inf, cancellable=c) for c in (True, False)]
            script = Scripted(steps=steps)
            script.__enter__()
            operations = [overlapped.query_redirect_records(7) for _ in range(3)]
            routine = overlapped.query_redirect_context(7, completion=print)
            assert all(each.pending for each in operations)
            print("end")
        """
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, timeout=TIMEOUT, check=False
        )
        assert (done.returncode, done.stdout.split(), done.stderr) == (0, [b"end"], b"")


class TestMany:
    @pytest.fixture
    def descriptors(self) -> Iterator[None]:
        """Room for an event each: elsewhere than on Windows they are file descriptors."""
        if sys.platform == "win32":
            yield
            return
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard < 11_000:
            pytest.skip(f"needs 11,000 file descriptors; the system's limit is {hard}")
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 11_000), hard))
        yield
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    def test_10000_pending_at_once(self, descriptors: None) -> None:
        count = 10_000
        before = overlapped.counters()
        steps = [Step(data=b"%d" % i, pending=True, delay=math.inf) for i in range(count // 2)]
        with Scripted(steps=[*steps, NEVER]) as script:
            operations = [overlapped.query_redirect_records(HANDLE + i) for i in range(count)]
            assert pending() == count
            for operation in operations[: count // 2]:
                operation.cancel()
            assert pending() <= count
            for i in range(count // 2, count - 10):
                script.abort(HANDLE + i) if i % 100 == 0 else operations[i].cancel()
            assert sum(operation.pending for operation in operations) == 10
        for operation in operations:
            with pytest.raises(wfpioctl.OperationAbortedError):
                operation.result(0)
        after = overlapped.counters()
        assert after.cancelled - before.cancelled == count

    def test_10000_complete_in_time(self, descriptors: None) -> None:
        step = Step(data=b"answer", pending=True, delay=0.2)
        with Scripted(steps=[step]):
            operations = [overlapped.query_redirect_records(HANDLE) for _ in range(10_000)]
            assert {operation.result(TIMEOUT) for operation in operations} == {b"answer"}

    def test_descriptors_stay_flat(self) -> None:
        """Events are used again, and closed."""

        def work() -> None:
            with Scripted(steps=[Step(pending=True), Step(), NEVER]):
                for _ in range(50):
                    operation = overlapped.query_redirect_records(HANDLE)
                    assert operation.event
                    operation.cancel()

        work()
        before = open_handles()
        work()
        assert open_handles() <= before + 1


class TestCompletionRoutine:
    @pytest.fixture
    def ran(self) -> list[Operation[Any]]:
        return []

    @every_function
    @pytest.mark.parametrize("code", [0, 10057])
    @every_ending
    def test_runs_in_sleep_and_nowhere_else(
        self,
        ran: list[Operation[Any]],
        function: Function,
        code: int,
        ending: dict[str, Any],
    ) -> None:
        with Scripted(steps=[Step(code=code, data=b"answer", **ending)]):
            operation = function.start(HANDLE, completion=ran.append)
            assert ran == []
            assert overlapped.sleep(TIMEOUT) == 1
            assert ran == [operation]
            assert not operation.pending
            if code:
                assert failure(operation.result).winerror == code
            else:
                assert operation.result() == (None if function.args else b"answer")
            assert is_set(operation)
            assert overlapped.sleep(0) == 0
        assert len(ran) == 1

    def test_on_the_engine(self, redirected: Redirected, ran: list[Operation[Any]]) -> None:
        operation = overlapped.query_redirect_context(redirected.accepted, completion=ran.append)
        assert overlapped.sleep(TIMEOUT) == 1
        assert ran[0] is operation
        assert operation.result() == b"context"

    def test_without_a_simulator(self, pair: Pair, ran: list[Operation[Any]]) -> None:
        operation = overlapped.query_redirect_context(pair.server, completion=ran.append)
        assert overlapped.sleep(TIMEOUT) == 1
        with pytest.raises(wfpioctl.RedirectError):
            operation.result()

    def test_of_fixed_answers(self, ran: list[Operation[Any]]) -> None:
        with Scripted(records=b"r", context=b""):
            overlapped.query_redirect_records(HANDLE, completion=ran.append)
            overlapped.query_redirect_context(HANDLE, completion=ran.append)
            overlapped.set_redirect_records(HANDLE, b"r", completion=ran.append)
            assert overlapped.sleep(TIMEOUT) == 3
            assert overlapped.sleep(0) == 0
        assert [each.result() for each in ran] == [b"r", b"", None]

    @every_ending
    def test_W15_runs_once_when_the_answer_has_grown(
        self, ran: list[Operation[Any]], ending: dict[str, Any]
    ) -> None:
        steps = [Step(code=122, returned=9000, **ending), Step(data=bytes(9000), **ending)]
        with Scripted(steps=steps) as script:
            overlapped.query_redirect_records(HANDLE, completion=ran.append)
            assert overlapped.sleep(TIMEOUT) == 1
            assert [call.capacity for call in script.calls] == [4096, 9000]
        assert [each.result() for each in ran] == [bytes(9000)]

    def test_cancellation_and_a_closed_socket_run_it(self, ran: list[Operation[Any]]) -> None:
        with Scripted(steps=[NEVER]) as script:
            overlapped.query_redirect_records(HANDLE, completion=ran.append).cancel()
            assert overlapped.sleep(TIMEOUT) == 1
            overlapped.query_redirect_records(HANDLE, completion=ran.append)
            script.abort(HANDLE)
            assert overlapped.sleep(TIMEOUT) == 1
        assert [failure(each.result).winerror for each in ran] == [995, 995]

    def test_sleep_ends_when_the_time_is_over(self, ran: list[Operation[Any]]) -> None:
        with Scripted(steps=[NEVER]):
            operation = overlapped.query_redirect_records(HANDLE, completion=ran.append)
            before = time.monotonic()
            assert overlapped.sleep(0.06) == 0
            assert time.monotonic() - before >= 0.05  # SleepEx counts in ticks
            operation.cancel()
            assert overlapped.sleep(TIMEOUT) == 1

    @pytest.mark.parametrize(
        ("bad", "error"), [(-1, ValueError), (math.nan, ValueError), ("1", TypeError)]
    )
    def test_sleep_refuses_bad_times(self, bad: Any, error: type[Exception]) -> None:
        with pytest.raises(error):
            overlapped.sleep(bad)

    def test_an_exception_comes_out_of_sleep_and_stops_no_other(
        self, ran: list[Operation[Any]]
    ) -> None:
        def bad(operation: Operation[bytes]) -> None:
            raise LookupError("mine")

        with Scripted(records=b"r"):
            for completion in bad, ran.append, bad:
                overlapped.query_redirect_records(HANDLE, completion=completion)
            with pytest.raises(LookupError, match="mine"):
                overlapped.sleep(TIMEOUT)
            with pytest.raises(LookupError, match="mine"):
                overlapped.sleep(TIMEOUT)
            assert len(ran) == 1
            assert overlapped.sleep(0) == 0

    def test_a_routine_may_start_the_next_operation(self, ran: list[Operation[Any]]) -> None:
        def again(operation: Operation[bytes]) -> None:
            ran.append(operation)
            if len(ran) < 3:
                overlapped.query_redirect_records(HANDLE, completion=again)

        with Scripted(steps=[Step(pending=True)]):
            overlapped.query_redirect_records(HANDLE, completion=again)
            while len(ran) < 3:
                assert overlapped.sleep(TIMEOUT) == 1

    @pytest.mark.parametrize("waits", [False, True], ids=["later", "at once"])
    def test_runs_in_the_thread_that_started_it(
        self, ran: list[Operation[Any]], waits: bool
    ) -> None:
        threads: list[threading.Thread] = []
        began, slept = threading.Event(), threading.Event()

        def other() -> None:
            overlapped.query_redirect_records(
                HANDLE, completion=lambda _: threads.append(threading.current_thread())
            )
            began.set()
            assert waits or slept.wait(TIMEOUT)  # it is due all the while
            assert overlapped.sleep(TIMEOUT) == 1

        with Scripted(steps=[Step(pending=waits)]), running(other) as started:
            assert began.wait(TIMEOUT)
            assert overlapped.sleep(0.02) == 0
            slept.set()
        assert threads == started

    def test_result_in_another_thread_waits_for_the_routine(
        self, ran: list[Operation[Any]]
    ) -> None:
        with Scripted(steps=[Step(data=b"answer", pending=True)]):
            operation = overlapped.query_redirect_records(HANDLE, completion=ran.append)
            results: list[bytes] = []
            with running(lambda: results.append(operation.result(TIMEOUT))):
                assert overlapped.sleep(TIMEOUT) == 1
        assert ran == [operation]
        assert results == [b"answer"]

    def test_result_in_its_own_thread_waits_alertably(self, ran: list[Operation[Any]]) -> None:
        """Or it would wait for ever.  The routine still runs in the next sleep."""
        with Scripted(steps=[Step(data=b"answer", pending=True, delay=0.01)]):
            operation = overlapped.query_redirect_records(HANDLE, completion=ran.append)
            assert operation.result(TIMEOUT) == b"answer"
            assert ran == []
            assert overlapped.sleep(0) == 1
            assert ran == [operation]

    def test_many(self, ran: list[Operation[Any]]) -> None:
        with Scripted(steps=[Step(pending=True, delay=0.01), Step(pending=True)]):
            for _ in range(500):
                overlapped.query_redirect_records(HANDLE, completion=ran.append)
            total = 0
            while total < 500:
                total += overlapped.sleep(TIMEOUT)
        assert len({id(each) for each in ran}) == len(ran) == 500


class TestType:
    def test_operations_come_from_the_functions_only(self) -> None:
        with pytest.raises(TypeError, match="cannot create"):
            Operation()
        with pytest.raises(TypeError):
            Operation.result = None  # type: ignore[method-assign,assignment]
        with Scripted(records=b"r"):
            operation = overlapped.query_redirect_records(HANDLE)
        with pytest.raises(AttributeError):
            operation.pending = True  # type: ignore[misc]
        with pytest.raises(TypeError):
            pickle.dumps(operation)
        assert get_origin(Operation[bytes]) is Operation

    def test_repr_says_which_and_how(self) -> None:
        states = []
        with Scripted(steps=[Step(), Step(code=10057), NEVER]):
            for _ in range(3):
                with overlapped.query_redirect_context(HANDLE) as operation:
                    states.append(repr(operation))
        name = f"<Operation SIO_QUERY_WFP_CONNECTION_REDIRECT_CONTEXT on socket {HANDLE}"
        assert states == [f"{name} done>", f"{name} failed>", f"{name} pending>"]
