"""The scripted provider itself: it plays what it was told, records what it got, and lets go."""

import contextlib
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from support import TIMEOUT, Pair, running

import wfpioctl
from wfpioctl.simulator import Call, Engine, Scripted, Step


def test_fixed_answers_on_any_handle() -> None:
    with Scripted(records=b"records", context=b"context") as script:
        assert wfpioctl.query_redirect_records(12345) == b"records"
        assert wfpioctl.query_redirect_context(0) == b"context"
        assert wfpioctl.set_redirect_records(3, b"anything") is None
        assert wfpioctl.read_redirect(3) == wfpioctl.Redirect(b"records", b"context")
    assert script.calls == []


@pytest.mark.parametrize("size", [4097, 1 << 20])
def test_fixed_answers_of_any_size(size: int) -> None:
    with Scripted(records=b"r" * size, context=b"c" * size):
        assert wfpioctl.query_redirect_records(3) == b"r" * size
        assert wfpioctl.query_redirect_context(3) == b"c" * size


def test_fixed_answer_over_the_cap() -> None:
    size = (1 << 20) + 1
    with Scripted(records=bytes(size)), pytest.raises(wfpioctl.InsufficientBufferError) as caught:
        wfpioctl.query_redirect_records(3)
    assert caught.value.required_size == size


def test_steps_are_played_in_order_and_the_last_for_ever() -> None:
    with Scripted(steps=[Step(10050), Step(data=b"1"), Step(data=b"2")]):
        with pytest.raises(wfpioctl.NetworkDownError):
            wfpioctl.query_redirect_records(3)
        assert [wfpioctl.query_redirect_records(3) for _ in range(4)] == [b"1", b"2", b"2", b"2"]


def test_calls_can_be_read_during_and_after() -> None:
    with Scripted(steps=[Step()]) as script:
        assert script.calls == []
        wfpioctl.set_redirect_records(3, b"records")
        expected = [Call(wfpioctl.SIO_SET_WFP_CONNECTION_REDIRECT_RECORDS, b"records", 0)]
        assert script.calls == expected
    assert script.calls == expected


def test_a_script_can_be_entered_again() -> None:
    script = Scripted(steps=[Step(data=b"1"), Step(data=b"2")])
    for _ in range(2):
        with script:
            assert wfpioctl.query_redirect_records(3) == b"1"
        assert len(script.calls) == 1


def test_delay_is_at_least_what_was_asked_for() -> None:
    with Scripted(steps=[Step(data=b"late", delay=0.05)]):
        start = time.perf_counter()
        assert wfpioctl.query_redirect_records(3) == b"late"
        assert time.perf_counter() - start >= 0.045


BLOCKING: dict[str, Callable[[], object]] = {
    "query_redirect_records": lambda: wfpioctl.query_redirect_records(3),
    "query_redirect_context": lambda: wfpioctl.query_redirect_context(3),
    "query_redirect_records_into": lambda: wfpioctl.query_redirect_records_into(3, bytearray(9)),
    "query_redirect_context_into": lambda: wfpioctl.query_redirect_context_into(3, bytearray(9)),
    "set_redirect_records": lambda: wfpioctl.set_redirect_records(3, b"records"),
    "transfer_redirect_records": lambda: wfpioctl.transfer_redirect_records(3, 4),
    "read_redirect": lambda: wfpioctl.read_redirect(3),
}


@contextlib.contextmanager
def waiting_in(call: Callable[[], object]) -> Iterator[None]:
    """Let a thread's call wait in the provider; leaving ends the script, and so the call."""
    outcome: list[BaseException | object] = []

    def run() -> None:
        try:
            outcome.append(call())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    with Scripted(steps=[Step(delay=math.inf)]) as script:
        thread.start()
        while not script.calls and thread.is_alive():
            time.sleep(0)
        assert not outcome
        yield
    thread.join(TIMEOUT)
    assert [type(each) for each in outcome] == [wfpioctl.OperationAbortedError]


@pytest.mark.parametrize("call", BLOCKING.values(), ids=BLOCKING)
def test_other_threads_run_during_a_call_and_the_scripts_end_aborts_it(
    call: Callable[[], object],
) -> None:
    """The GIL is released around the provider's call; without that, this would hang."""
    with waiting_in(call):
        pass


@pytest.mark.parametrize(
    "use",
    [
        lambda buffer: wfpioctl.query_redirect_records_into(3, buffer),
        lambda buffer: wfpioctl.query_redirect_context_into(3, buffer),
        lambda buffer: wfpioctl.set_redirect_records(3, buffer),
    ],
    ids=["query_redirect_records_into", "query_redirect_context_into", "set_redirect_records"],
)
def test_a_buffer_in_use_cannot_be_resized_or_released_by_another_thread(
    use: Callable[[object], object],
) -> None:
    buffer = bytearray(8192)
    with waiting_in(lambda: use(buffer)):
        with pytest.raises(BufferError):
            buffer.append(0)
        with pytest.raises(BufferError):
            buffer.clear()
    view = memoryview(buffer)
    with waiting_in(lambda: use(view)), pytest.raises(BufferError):
        view.release()
    view.release()
    buffer.clear()  # and everything is given back


def test_many_threads_share_a_script() -> None:
    def work() -> None:
        for _ in range(500):
            assert wfpioctl.query_redirect_records(3) == b"records"

    with Scripted(steps=[Step(data=b"records")]) as script:
        with running(*[work] * 4):
            pass
        assert len(script.calls) == 2000


def test_recorded_calls_are_bounded() -> None:
    with Scripted(steps=[Step()]) as script:
        for _ in range(10_001):
            wfpioctl.set_redirect_records(3, b"x")
        assert len(script.calls) == 10_000


# ---- one at a time ----

FACTORIES: dict[str, Callable[[], Engine | Scripted]] = {
    "Engine": Engine,
    "Engine(intercept=False)": lambda: Engine(intercept=False),
    "Scripted": Scripted,
}


@pytest.mark.parametrize("second", FACTORIES.values(), ids=FACTORIES)
@pytest.mark.parametrize("first", FACTORIES.values(), ids=FACTORIES)
def test_only_one_is_active_at_a_time(
    first: Callable[[], Engine | Scripted], second: Callable[[], Engine | Scripted], pair: Pair
) -> None:
    connects = socket.socket.connect, socket.socket.connect_ex
    with first():
        active = socket.socket.connect
        with pytest.raises(RuntimeError, match="another Engine or Scripted is active"), second():
            pytest.fail("two at once")
        assert socket.socket.connect is active, "the refused one took something with it"
        if first is FACTORIES["Scripted"]:
            assert wfpioctl.query_redirect_records(pair.server) == b""
    assert (socket.socket.connect, socket.socket.connect_ex) == connects
    with second():
        pass


@pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES)
def test_the_same_one_cannot_be_entered_twice(factory: Callable[[], Engine | Scripted]) -> None:
    simulator = factory()
    with simulator:
        with pytest.raises(RuntimeError, match="is active"), simulator:
            pytest.fail("entered twice")
        if isinstance(simulator, Scripted):
            assert simulator.calls == []
    with simulator:
        pass


@pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES)
def test_winsock_is_back_after_an_exception(
    factory: Callable[[], Engine | Scripted], pair: Pair
) -> None:
    connects = socket.socket.connect, socket.socket.connect_ex
    with pytest.raises(ZeroDivisionError), factory():
        raise ZeroDivisionError
    assert (socket.socket.connect, socket.socket.connect_ex) == connects
    with pytest.raises(wfpioctl.NotSupportedError):
        wfpioctl.query_redirect_records(pair.server)


def test_only_one_of_many_threads_gets_in() -> None:
    barrier = threading.Barrier(4)
    entered: list[int] = []
    refused: list[int] = []

    def enter() -> None:
        barrier.wait()
        try:
            with Scripted():
                entered.append(1)
                barrier.wait()
        except RuntimeError:
            refused.append(1)
            barrier.wait()

    with running(*[enter] * 4):
        pass
    assert (len(entered), len(refused)) == (1, 3)


# ---- nonsense is refused by name ----


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"code": -1}, "code must be .* not -1"),
        ({"code": 1 << 32}, "code must be"),
        ({"returned": -1}, "returned must be .* not -1"),
        ({"returned": 1 << 32}, "returned must be"),
        ({"delay": -0.5}, "delay must be .* not -0.5"),
        ({"delay": math.nan}, "delay must be .* not nan"),
    ],
)
def test_bad_steps(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Step(**arguments)  # type: ignore[arg-type]


def test_bad_scripts() -> None:
    with pytest.raises(ValueError, match="at least one Step"):
        Scripted(steps=[])
    with pytest.raises(ValueError, match="not both"):
        Scripted(b"records", steps=[Step()])
