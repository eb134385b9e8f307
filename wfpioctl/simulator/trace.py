"""What happened in an engine, hop by hop: the events of ``Engine.trace``."""

import enum
from dataclasses import dataclass

from .records import RedirectState

Address = tuple[str, int]


class Action(enum.Enum):
    """What a driver's callout did with a connect."""

    REDIRECT = "redirect"
    PERMIT = "permit"
    BLOCK = "block"
    LEAVE = "leave alone"
    """An earlier callout has redirected this connect already (W53)."""
    NO_MATCH = "no match"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One driver's look at one connect."""

    driver: str
    state: RedirectState
    action: Action


@dataclass(frozen=True, slots=True)
class Connected:
    """A connect went through the callouts, or the first datagram to a destination.

    Attributes:
        flow_id: the flow that the redirection made; 0 if the connect was not redirected.
        destination: where the app wanted to go.
        target: where it was sent: a proxy, a route's end, or the destination; None if it failed.
        verdicts: each driver's, in their order.
        records_size: bytes of the records that the accepting side can query; 0 if none.
        context_size: bytes of its context.
        hop: 1, or more where a proxy that did not SET was redirected by its own driver (W55).
        error: why the connect was refused, or "".
        protocol: "tcp" or "udp".
    """

    flow_id: int
    destination: Address
    target: Address | None
    verdicts: tuple[Verdict, ...]
    records_size: int = 0
    context_size: int = 0
    hop: int = 1
    error: str = ""
    protocol: str = "tcp"


@dataclass(frozen=True, slots=True)
class Queried:
    """A proxy queried an accepted socket: which IOCTL, the code (0 is success), bytes returned.

    Or the records of a UDP flow came with a datagram: IP_WFP_REDIRECT_RECORDS.
    """

    flow_id: int
    operation: str
    code: int
    size: int


@dataclass(frozen=True, slots=True)
class RecordsSet:
    """A proxy set records on a socket: of which flow, the code (0 is success), their bytes.

    Or it sent them with a datagram.
    """

    flow_id: int
    code: int
    size: int


Event = Connected | Queried | RecordsSet
