"""One function hammered from many threads, on every provider: each answer is a whole one.

What a data race would do here is rarely seen; tools/harden.py tsan runs this where it is.
"""

import contextlib
import math
import socket
import sys
import threading
from collections.abc import Callable

import pytest
from support import ORIGINAL, Redirected, accept, address_of, end_child, listen, running

import wfpioctl
from wfpioctl import overlapped
from wfpioctl.simulator import Engine, Scripted, Step

THREADS = 8
CALLS = 300


def hammer(call: Callable[[], object], calls: int = CALLS) -> None:
    """Let all threads call at once."""
    start = threading.Barrier(THREADS)

    def work() -> None:
        start.wait(20)
        for _ in range(calls):
            call()

    with running(*[work] * THREADS):
        pass


@pytest.mark.parametrize("size", [100, 100_000])
def test_a_fixed_script(size: int) -> None:
    records, context = b"r" * size, b"c" * size

    def call() -> None:
        assert wfpioctl.query_redirect_records(5) == records
        assert wfpioctl.read_redirect(5) == (records, context)
        assert wfpioctl.transfer_redirect_records(5, 6) == size
        buffer = bytearray(size)
        assert wfpioctl.query_redirect_context_into(5, buffer) == size
        assert buffer == context
        wfpioctl.set_redirect_records(6, records)

    with Scripted(records, context):
        hammer(call)


def test_steps() -> None:
    steps = [Step(data=bytes([number]) * 64) for number in range(256)]

    def call() -> None:
        answer = wfpioctl.query_redirect_records(5)
        assert answer == answer[:1] * 64

    with Scripted(steps=steps) as script:
        hammer(call)
        assert len(script.calls) == THREADS * CALLS


def test_errors() -> None:
    def call() -> None:
        with pytest.raises(wfpioctl.NetworkDownError):
            wfpioctl.query_redirect_records(5)

    with Scripted(steps=[Step(10050)]):
        hammer(call)


def test_one_connection_of_the_engine(redirected: Redirected) -> None:
    accepted = redirected.accepted
    records = wfpioctl.query_redirect_records(accepted)

    def call() -> None:
        assert wfpioctl.query_redirect_records(accepted) == records
        assert wfpioctl.query_redirect_context(accepted) == b"context"

    hammer(call)


def test_one_outbound_socket(redirected: Redirected) -> None:
    """Each SET replaces the records that another thread may be reading."""
    with socket.socket() as outbound:
        hammer(lambda: wfpioctl.transfer_redirect_records(redirected.accepted, outbound))


def test_connections_come_and_go() -> None:
    with listen(backlog=1000) as listener, Engine(trace_limit=100) as engine:
        engine.add_driver("A", proxy=address_of(listener), match=ORIGINAL, context=b"context")
        accepting = threading.Lock()

        def call() -> None:
            with (
                accepting,
                socket.create_connection(ORIGINAL, 20),
                accept(listener) as accepted,
                socket.socket() as outbound,
            ):
                redirect = wfpioctl.read_redirect(accepted)
                assert redirect is not None
                wfpioctl.set_redirect_records(outbound, redirect.records)
            assert engine.flow_count <= 10_000

        hammer(call, 50)


def test_engines_come_and_go_under_calls() -> None:
    """The answer is the engine's or the system's, whichever is active at that moment."""
    ended = threading.Event()

    def work() -> None:
        with socket.socket() as sock:
            while not ended.is_set():
                with pytest.raises(wfpioctl.RedirectError):
                    wfpioctl.query_redirect_records(sock)

    with running(*[work] * 4):
        for _ in range(100):
            with Engine():
                pass
        ended.set()


def test_engines_come_and_go_under_sets(redirected: Redirected) -> None:
    """What one engine was given, the next one does not know: its records are not genuine."""
    engine, records = redirected.engine, wfpioctl.query_redirect_records(redirected.accepted)
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            with socket.socket() as sock, contextlib.suppress(wfpioctl.RedirectError):
                wfpioctl.set_redirect_records(sock, records)

    with running(*[work] * 4):
        for _ in range(100):
            engine.__exit__(None, None, None)
            engine.__enter__()
        ended.set()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("provider", ["engine", "scripted"])
def test_a_fork_under_calls_can_go_on(redirected: Redirected, provider: str) -> None:
    """No lock of the provider stays locked in the child by a thread that is not there."""
    import os

    accepted, engine = redirected.accepted, redirected.engine
    script = Scripted(steps=[Step(data=b"context")])
    if provider == "scripted":
        engine.__exit__(None, None, None)
        script.__enter__()
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            assert wfpioctl.query_redirect_context(accepted) == b"context"

    try:
        with running(*[work] * 4):
            for _ in range(50):
                child = os.fork()
                if child == 0:  # nothing but the exit code may leave this branch
                    code = 1
                    try:
                        assert wfpioctl.query_redirect_context(accepted) == b"context"
                        code = 0
                    finally:
                        end_child(code)
                status = wait(child)
                assert status == 0, "the child hangs" if status is None else status
            ended.set()
    finally:
        ended.set()
        if provider == "scripted":
            script.__exit__(None, None, None)
            engine.__enter__()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_leaves_pending_operations_to_the_parent() -> None:
    """In the child they are aborted; its own pend and end as ever, the parent's too."""
    import os

    pending = Step(data=b"late", pending=True, delay=0.3)
    with Scripted(steps=[pending]):
        inherited = overlapped.query_redirect_records(5)
        child = os.fork()
        if child == 0:  # nothing but the exit code may leave this branch
            code = 1
            try:
                with contextlib.suppress(wfpioctl.OperationAbortedError):
                    inherited.result(5)
                    end_child(2)
                assert overlapped.query_redirect_records(5).result(5) == b"late"
                code = 0
            finally:
                end_child(code)
        assert inherited.result(5) == b"late"
        assert wait(child) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_under_overlapped_operations_can_go_on() -> None:
    import os

    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            assert overlapped.query_redirect_records(5).result(5) == b"records"

    with Scripted(steps=[Step(data=b"records", pending=True)]), running(*[work] * 3):
        try:
            for _ in range(30):
                child = os.fork()
                if child == 0:  # nothing but the exit code may leave this branch
                    code = 1
                    try:
                        assert overlapped.query_redirect_records(5).result(5) == b"records"
                        code = 0
                    finally:
                        end_child(code)
                assert wait(child) == 0
        finally:
            ended.set()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("kept", [True, False], ids=["an_inherited_block", "a_spare_block"])
def test_a_forked_childs_event_is_its_own(kept: bool) -> None:
    """Blocks are used again with their events, but not those that both processes have."""
    import os
    import select

    with Scripted(steps=[Step(data=b"answer", pending=True), Step(pending=True, delay=math.inf)]):
        inherited = [overlapped.query_redirect_records(5)]
        assert inherited[0].result(5) == b"answer"
        if not kept:
            inherited.clear()
        started, told = os.pipe()
        child = os.fork()
        if child == 0:  # nothing but the exit code may leave this branch
            code = 1
            try:
                inherited.clear()
                operation = overlapped.query_redirect_records(5)
                event = operation.event
                os.write(told, b".")
                code = 2 if select.select([event], [], [], 0.5)[0] else 0
            finally:
                end_child(code)
        os.read(started, 1)
        inherited.clear()
        aborted = overlapped.query_redirect_records(5)
        aborted.cancel()  # sets its event
        assert wait(child) == 0
        with pytest.raises(wfpioctl.OperationAbortedError):
            aborted.result(5)
        os.close(started)
        os.close(told)


def wait(child: int, seconds: float = 5) -> int | None:
    """The child's exit code, or None if it does not end; then it is killed."""
    import os
    import signal
    import time

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None
