"""UDP in the engine: where the datagrams of a socket to one destination go.

The first of them walks the callouts, as a connect does, and all go where it was sent; what answers
them belongs to their flow and walks no callout.  The datagram that makes a flow carries the flow's
data to the proxy (W40), and only that one (W61).

Datagrams are real, and so are their sources: a reply comes from the proxy's address, not from the
original destination's.  Flows of one socket to several destinations that have one proxy get their
data in the order in which they began.
"""

import itertools
import socket
import threading
import weakref
from typing import Any, Protocol

from .. import _wfpioctl
from .. import constants as c
from . import addresses
from .records import MARK_SIZE, RedirectRecord, decode_records
from .trace import Queried, RecordsSet

Address = tuple[Any, ...]


class ControlPlane(Protocol):
    """What this half of an engine needs of the other."""

    def place_datagram(
        self, sock: socket.socket, destination: tuple[str, int], records: list[RedirectRecord]
    ) -> tuple[str, int]: ...

    def note(self, event: Queried | RecordsSet) -> None: ...


class Datagrams:
    """Knows where each socket's datagrams go, and tells the engine what the proxies do."""

    def __init__(self, control_plane: ControlPlane) -> None:
        self._control_plane = control_plane
        self._lock = threading.RLock()  # of two threads' first datagrams, one makes the flow
        self._flows: dict[tuple[tuple[str, int], int], weakref.ref[socket.socket]] = {}
        """(app's end, port that it sends to): the app's socket."""

    def after_fork_in_child(self) -> None:
        """A thread that is not there any more may have held the lock."""
        self._lock = threading.RLock()

    def target(self, sock: socket.socket, address: Address, records: bytes | None) -> Address:
        """Return where a datagram to ``address``, with these records, is really to be sent."""
        destination = addresses.destination_of(sock, address)
        if destination is None:  # the socket says best what is wrong
            return address
        if self._is_answer(sock, destination):
            return address
        earlier: list[RedirectRecord] = []
        if records is not None:
            if not is_genuine(records):  # the data plane refuses it
                self._control_plane.note(RecordsSet(0, c.WSAEINVAL, len(records)))
                return address
            flow_id, earlier = decode_records(records)
            self._control_plane.note(RecordsSet(flow_id, 0, len(records)))
        with self._lock:
            known = _wfpioctl.engine_target_of(sock.fileno(), destination)
            if known:
                host, port = known.split()
                target = host, int(port)
            else:
                addresses.bind_anywhere(sock)  # as sending does, but before anyone can answer
                target = self._control_plane.place_datagram(sock, destination, earlier)
                _wfpioctl.engine_set_target(sock.fileno(), destination, "{} {}".format(*target))
                self._remember(sock, target)
        return address if target == destination else addresses.as_seen_from(sock, target)

    def _is_answer(self, sock: socket.socket, destination: tuple[str, int]) -> bool:
        own = addresses.bound(sock)
        if own is None:
            return False
        with self._lock:
            app = self._flows.get((destination, own[1]))
        return app is not None and is_open(app())

    def _remember(self, sock: socket.socket, target: tuple[str, int]) -> None:
        for oldest in [*itertools.islice(self._flows, 2)]:  # closed ones go as new ones come
            known = self._flows.pop(oldest)
            if is_open(known()):
                self._flows[oldest] = known
        end = addresses.bind_towards(sock, addresses.as_seen_from(sock, target))
        self._flows[addresses.numeric(end), target[1]] = weakref.ref(sock)

    def clear(self) -> None:
        """Forget all flows."""
        self._flows.clear()

    def received(self, records: bytes) -> None:
        """A proxy got the first datagram of a flow, with its records."""
        flow_id, _ = decode_records(records)
        self._control_plane.note(Queried(flow_id, "IP_WFP_REDIRECT_RECORDS", 0, len(records)))


def is_open(sock: socket.socket | None) -> bool:
    return sock is not None and sock.fileno() != -1


def is_genuine(records: bytes) -> bool:
    """Whether this engine made these records."""
    return records == _wfpioctl.engine_make_records(records[MARK_SIZE:])
