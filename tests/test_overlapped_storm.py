"""100,000 operations from 4 threads, started, claimed, cancelled, dropped and aborted at random.

The seed is printed; the memory checks run this too (W29).
"""

import math
import random

import pytest
from loops import pending
from support import running

import wfpioctl
from wfpioctl import overlapped
from wfpioctl.overlapped import Operation
from wfpioctl.simulator import Scripted, Step

OPERATIONS = 100_000
THREADS = 4
HANDLES = range(4000, 4032)
KEPT = 50  # operations that a thread holds at most

STEPS = [
    Step(data=b"at once"),
    Step(data=b"soon", pending=True),
    Step(data=b"late", pending=True, delay=0.002),
    Step(data=b"never", pending=True, delay=math.inf),
    Step(code=10057),
    Step(code=1168, pending=True, delay=0.001),
    Step(code=122, returned=70_000, pending=True),
    Step(code=234, pending=True, delay=0.001),
    Step(data=b"stubborn" * 500, pending=True, delay=0.005, cancellable=False),
]


class Storm:
    """What one thread does: each step is one of the things that can happen to an operation."""

    def __init__(self, seed: int, script: Scripted) -> None:
        self.random = random.Random(seed)
        self.script = script
        self.kept: list[Operation[bytes] | Operation[None]] = []
        self.ended: dict[type, int] = {}

    def start(self) -> None:
        sock = self.random.choice(HANDLES)
        match self.random.randrange(3):
            case 0:
                self.kept.append(overlapped.query_redirect_records(sock))
            case 1:
                self.kept.append(overlapped.query_redirect_context(sock))
            case 2:
                records = bytes(self.random.choice([1, 4096, 4097, 20_000]))
                self.kept.append(overlapped.set_redirect_records(sock, records))

    def claim(self) -> None:
        operation = self.random.choice(self.kept)
        try:
            operation.result(self.random.choice([0, 0, 0.0005]))
            end: type = bytes
        except (TimeoutError, wfpioctl.RedirectError) as error:
            end = type(error)
        self.ended[end] = self.ended.get(end, 0) + 1

    def cancel(self) -> None:
        self.random.choice(self.kept).cancel()

    def drop(self) -> None:
        del self.kept[self.random.randrange(len(self.kept))]

    def abort(self) -> None:
        self.script.abort(self.random.choice(HANDLES))

    def look(self) -> None:
        operation = self.random.choice(self.kept)
        assert operation.event
        assert repr(operation)

    def run(self) -> None:
        for _ in range(OPERATIONS // THREADS):
            self.start()
            for action in self.random.choices(
                [self.claim, self.cancel, self.drop, self.abort, self.look], [4, 3, 4, 1, 1], k=2
            ):
                if self.kept:
                    action()
            while len(self.kept) > KEPT:
                self.drop()
        self.kept.clear()


@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore:.* was dropped while pending:ResourceWarning")
def test_storm() -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    before = overlapped.counters()
    steps = random.Random(seed).choices(STEPS, [6, 4, 2, 3, 2, 1, 2, 1, 1], k=OPERATIONS)
    with Scripted(steps=[*steps, Step(pending=True)]) as script:
        storms = [Storm(seed + i, script) for i in range(THREADS)]
        with running(*[storm.run for storm in storms]):
            pass
    assert pending() == 0
    after = overlapped.counters()
    assert after.started - before.started >= OPERATIONS
    for counter in "completed", "failed", "cancelled", "orphaned":
        assert getattr(after, counter) > getattr(before, counter), counter
    ends = {end for storm in storms for end in storm.ended}
    assert ends >= {bytes, TimeoutError, wfpioctl.OperationAbortedError, wfpioctl.NotConnectedError}
