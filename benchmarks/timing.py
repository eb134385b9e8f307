"""Times statements side by side: short slices in turns, and a ratio for each turn.

A turn gives every contestant one slice of a few milliseconds, so that whatever else the machine
does meets all of them alike; the order rotates from turn to turn.  pyperf would give each one
processes of its own, minutes apart, which on a shared machine measures the neighbours.
"""

import sys
import time
import timeit
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from .rows import Finding, Goal, Settings, finding

# A thread's own time does not count what others do meanwhile; Windows has it in steps of 16 ms.
CLOCK = time.perf_counter if sys.platform == "win32" else time.thread_time

UNROLLED = 10  # copies of the statement in the loop: makes the loop's own cost negligible


@dataclass(slots=True)
class Contestant:
    """A statement, and the names in it; ``within`` is entered for each of its slices."""

    name: str
    statement: str
    names: Mapping[str, Any]
    within: Callable[[], AbstractContextManager[object]] = nullcontext
    timer: timeit.Timer = field(init=False)

    def __post_init__(self) -> None:
        copies = "\n".join([self.statement] * UNROLLED)
        self.timer = timeit.Timer(copies, timer=CLOCK, globals=dict(self.names))

    def calibrate(self, seconds: float) -> int:
        """Return the loops that take about ``seconds``."""
        loops = 1
        while (taken := self.time(loops)) < seconds / 4:
            loops *= 2
        return max(1, round(loops * seconds / taken))

    def time(self, loops: int) -> float:
        """Return the seconds that so many loops take, with the garbage collector off."""
        with self.within():
            return self.timer.timeit(loops)


class Contest:
    """The nanoseconds that a call of each contestant took, turn by turn."""

    def __init__(self, contestants: Sequence[Contestant], settings: Settings) -> None:
        turns = settings.pick(15, 101)
        seconds = settings.pick(2, 5) / 1000
        runners = [(each, each.calibrate(seconds)) for each in contestants]
        self.times: dict[str, list[float]] = {each.name: [] for each in contestants}
        for turn in range(turns):
            for each, loops in runners[turn % len(runners) :] + runners[: turn % len(runners)]:
                taken = each.time(loops)
                self.times[each.name].append(taken / (loops * UNROLLED) * 1e9)

    def cost(self, name: str, goal: Goal | None = None, what: str = "") -> Finding:
        """Nanoseconds a call."""
        return finding(f"{what or name}, a call", self.times[name], "ns", goal)

    def ratio(self, slow: str, fast: str, what: str, goal: Goal | None = None) -> Finding:
        """How many times longer ``slow`` takes than ``fast``."""
        pairs = zip(self.times[slow], self.times[fast], strict=True)
        return finding(what, [a / b for a, b in pairs], "x", goal)
