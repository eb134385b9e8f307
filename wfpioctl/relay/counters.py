"""What a relay counts, and what it says of each connection that has ended."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

from .pipes import Side

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
