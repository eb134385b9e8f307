"""Event loops for tests, and what every test has to leave behind: no operation, no complaint."""

import asyncio
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import pytest

from wfpioctl import overlapped

T = TypeVar("T")

LoopFactory = Callable[[], asyncio.AbstractEventLoop]

LOOPS: dict[str, LoopFactory] = {"selector": asyncio.SelectorEventLoop}
if sys.platform == "win32":
    LOOPS["proactor"] = asyncio.ProactorEventLoop
else:
    try:
        import uvloop
    except ImportError:
        pass
    else:
        LOOPS["uvloop"] = uvloop.new_event_loop


def loop_params() -> list[Any]:
    """Each kind of loop, for parametrize(); uvloop is marked as what only Linux has."""
    marks = {"uvloop": [pytest.mark.linux_program]}
    return [
        pytest.param(factory, id=name, marks=marks.get(name, ())) for name, factory in LOOPS.items()
    ]


def pending() -> int:
    """Return how many operations of this process pend."""
    counts = overlapped.counters()
    return counts.started - counts.completed - counts.failed - counts.cancelled


@pytest.fixture(autouse=True)
def balanced() -> Iterator[None]:
    """Every operation that a test starts ends before the test does, and leaves no memory."""
    yield
    counts = overlapped.counters()
    assert pending() == 0, counts
    assert counts.orphaned == counts.given_back, counts


def drive(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that must not wait for anything, without any loop."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    raise AssertionError("it waits")


class Runner:
    """Runs coroutines on one kind of loop; a call of the loop's exception handler is an error."""

    def __init__(self, factory: LoopFactory) -> None:
        self.factory = factory
        self.complaints: list[dict[str, Any]] = []

    def new_loop(self) -> asyncio.AbstractEventLoop:
        loop = self.factory()
        loop.set_exception_handler(lambda _, context: self.complaints.append(context))
        return loop

    def __call__(self, main: Coroutine[Any, Any, T]) -> T:
        with asyncio.Runner(loop_factory=self.new_loop) as runner:
            return runner.run(main)


def runner_of(factory: LoopFactory) -> Iterator[Runner]:
    runner = Runner(factory)
    yield runner
    assert runner.complaints == []


@pytest.fixture(params=loop_params())
def run(request: pytest.FixtureRequest) -> Iterator[Runner]:
    """A function that runs a coroutine, on each kind of loop of this system."""
    yield from runner_of(request.param)


SEEN = [name for name in LOOPS if name != "uvloop"]


@pytest.fixture(params=[LOOPS[name] for name in SEEN], ids=SEEN)
def run_seen(request: pytest.FixtureRequest) -> Iterator[Runner]:
    """As run, on the loops whose connects and datagrams an engine sees: uvloop's are libuv's."""
    yield from runner_of(request.param)
