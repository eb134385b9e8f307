"""What a relay counts, and what it says of each connection that has ended."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from .decide import RefusedError
from .pipes import Side, SideError

_log = logging.getLogger("wfpioctl.relay")

Outcome = Literal["finished", "failed", "refused"]


@dataclass(slots=True)
class Counters:
    """Numbers of connections and bytes; accepted = active + finished + failed + all refused.

    Attributes:
        accepted: connections taken from the listener.
        active: of these, not ended yet.
        finished: ended in order, in both directions.
        failed: ended by an error, a timeout or a stop.
        refused: how many were never connected, by reason.
        bytes_up: bytes that went from clients to destinations.
        bytes_down: bytes that went from destinations to clients.
        errors: how often which side had which class of error: {("upstream", "TimeoutError"): 3}.
    """

    accepted: int = 0
    active: int = 0
    finished: int = 0
    failed: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    bytes_up: int = 0
    bytes_down: int = 0
    errors: Counter[tuple[Side, str]] = field(default_factory=Counter)

    def __add__(self, other: "Counters") -> "Counters":
        names = [each.name for each in fields(Counters)]
        return Counters(*(getattr(self, name) + getattr(other, name) for name in names))


class IdleTimeoutError(TimeoutError):
    """No byte has moved for longer than the relay allows."""


@dataclass(frozen=True, slots=True)
class Ended:
    """One connection, when it is over: what the log says, one line each.

    Attributes:
        outcome: "finished", "failed" or "refused".
        client: (host, port, ...) of the client.
        destination: (host, port, ...) where it went, or None if that was not decided.
        side: whose error it was, or None.
        reason: the error, or why it was refused, or "".
        up: bytes from the client to the destination.
        down: bytes from the destination to the client.
        seconds: from accept to end.
    """

    outcome: Outcome
    client: tuple[Any, ...]
    destination: tuple[Any, ...] | None
    side: Side | None
    reason: str
    up: int
    down: int
    seconds: float

    def fields(self) -> dict[str, str | int | float]:
        """The same as plain values, for a structured log."""
        return {
            "outcome": self.outcome,
            "client": address_text(self.client),
            "destination": address_text(self.destination) if self.destination else "",
            "side": self.side or "",
            "reason": self.reason,
            "up": self.up,
            "down": self.down,
            "seconds": round(self.seconds, 6),
        }

    def __str__(self) -> str:
        return " ".join(
            f"{name}={_quoted(value)}" for name, value in self.fields().items() if value != ""
        )


class Books:
    """A relay's counters, and its log of what has ended."""

    def __init__(self) -> None:
        self._total = Counters()

    def counters(self, active: Sequence[tuple[int, int]]) -> Counters:
        """The numbers at this moment; ``active`` is what each active connection has moved."""
        total = self._total
        return replace(
            total,
            active=len(active),
            refused=Counter(total.refused),
            bytes_up=total.bytes_up + sum(up for up, _ in active),
            bytes_down=total.bytes_down + sum(down for _, down in active),
            errors=Counter(total.errors),
        )

    def accepted(self) -> None:
        self._total.accepted += 1

    def ended(
        self,
        client: tuple[Any, ...],
        destination: tuple[Any, ...] | None,
        since: float,
        moved: tuple[int, int],
        error: BaseException | None,
    ) -> None:
        """Count and log an end; ``since`` is the time.monotonic() of its beginning."""
        total = self._total
        outcome: Outcome = "failed"
        side: Side | None = None
        reason = ""
        if error is None:
            outcome = "finished"
            total.finished += 1
        elif isinstance(error, RefusedError):
            outcome, reason = "refused", str(error)
            total.refused[error.reason] += 1
        else:
            if not isinstance(error, SideError):
                if not isinstance(error, asyncio.CancelledError):
                    _log.error("a fault of the relay", exc_info=error)
                error = SideError("relay", error)
            side, reason = error.side, str(error)
            total.failed += 1
            total.errors[side, type(error.error).__name__] += 1
        up, down = moved
        total.bytes_up += up
        total.bytes_down += down
        if _log.isEnabledFor(logging.INFO):
            seconds = time.monotonic() - since
            _log.info(Ended(outcome, client, destination, side, reason, up, down, seconds))


def address_text(address: tuple[Any, ...]) -> str:
    """host:port, or [host]:port."""
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _quoted(value: str | float) -> str:
    """One word of a key=value line: quoted if it has a space, a quote, or what is no letter."""
    if not isinstance(value, str):
        return str(value)
    plain = value.isprintable() and not set(value) & set(" \"'\\=")
    return value if plain else ascii(value)
