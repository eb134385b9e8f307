"""What a row of the table is: a title, and a function that yields findings."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass


class Unavailable(Exception):
    """A row, or one peer in it, cannot be measured here; the message says why."""


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound that a finding should keep; ``at_least`` says from which side."""

    bound: float
    at_least: bool

    def is_met(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound


def at_least(bound: float) -> Goal:
    return Goal(bound, True)


def at_most(bound: float) -> Goal:
    return Goal(bound, False)


@dataclass(frozen=True, slots=True)
class Finding:
    """One measured value: the median over rounds, and the quartiles as its spread."""

    what: str
    value: float
    low: float
    high: float
    unit: str = "x"
    goal: Goal | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """How much to measure."""

    quick: bool = False

    def pick(self, quick: int, full: int) -> int:
        return quick if self.quick else full


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table."""

    title: str
    measure: Callable[[Settings], Iterable[Finding | Unavailable]]


def finding(
    what: str, samples: Sequence[float], unit: str = "x", goal: Goal | None = None
) -> Finding:
    """Sum up samples of one value."""
    low, middle, high = quartiles(samples)
    return Finding(what, middle, low, high, unit, goal)


def quartiles(samples: Sequence[float]) -> tuple[float, float, float]:
    if len(samples) == 1:
        return (samples[0],) * 3
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return low, middle, high
