"""The binding itself, on a provider that costs a few nanoseconds."""

import contextlib
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import wfpioctl
from wfpioctl import simulator

from . import build
from .peers import cffi_peer
from .peers.ctypes_peer import CtypesPeer
from .rows import Finding, Goal, Row, Settings, Unavailable, at_least, at_most
from .timing import Contest, Contestant

RECORDS = bytes(range(128))
CONTEXT = bytes(256)

OURS = "wfpioctl"
FRESH = "ctypes, fresh buffers"
CACHED = "ctypes, kept buffers"
CFFI = "cffi, API mode"
FLOOR = "floor extension"
LIMITED_FLOOR = "floor extension, limited API"
LIMIT = "C loop"

GOALS: dict[str, Goal] = {FRESH: at_least(18), CACHED: at_least(12), CFFI: at_least(9)}


@contextlib.contextmanager
def scripted(records: bytes = RECORDS, **steps: Any) -> Iterator[dict[str, Any]]:
    """A scripted provider, and every name that the contestants' statements use."""
    with ExitStack() as stack:
        if steps:
            stack.enter_context(simulator.Scripted(**steps))
        else:
            stack.enter_context(simulator.Scripted(records, CONTEXT))
        addresses = simulator.wsaioctl_address(), simulator.wsa_get_last_error_address()
        accepted = stack.enter_context(socket.socket())
        floor = build.floor()
        floor.use_provider(addresses[0])
        ctypes_peer = CtypesPeer(*addresses)
        yield {
            "accepted": accepted,
            "outbound": stack.enter_context(socket.socket()),
            "handle": accepted.fileno(),
            "query": wfpioctl.query_redirect_records,
            "set_records": wfpioctl.set_redirect_records,
            "transfer": wfpioctl.transfer_redirect_records,
            "read_redirect": wfpioctl.read_redirect,
            "query_fresh": ctypes_peer.query_fresh,
            "query_cached": ctypes_peer.query_cached,
            "set_by_ctypes": ctypes_peer.set_records,
            "floor": floor.query,
            "floor_set": floor.set,
            "floor_transfer": floor.transfer,
            "call_often": floor.call_often,
            "mark": floor.mark,
            "addresses": addresses,
        }


def query(
    settings: Settings, ours: str, handle: str, of_the_floor: Goal
) -> Iterator[Finding | Unavailable]:
    """The query of 128 bytes; ``ours`` is what we are given, ``handle`` what the peers are."""
    with scripted() as names:
        contestants = [
            Contestant(OURS, f"query({ours})", names),
            Contestant(FRESH, f"query_fresh({handle})", names),
            Contestant(CACHED, f"query_cached({handle})", names),
            Contestant(FLOOR, f"floor({ours})", names),
            Contestant(LIMIT, "call_often(handle, 1000)", names),
        ]
        try:
            names["query_cffi"] = cffi_peer.make_query(build.cffi(), *names["addresses"])
            contestants.append(Contestant(CFFI, f"query_cffi({handle})", names))
        except Unavailable as reason:
            yield reason
        try:
            limited_floor = build.floor(limited_api=True)
            limited_floor.use_provider(names["addresses"][0])
            names["limited_floor"] = limited_floor.query
            contestants.append(Contestant(LIMITED_FLOOR, f"limited_floor({ours})", names))
        except Unavailable as reason:
            yield reason
        contest = Contest(contestants, settings)
    contest.times[LIMIT] = [each / 1000 for each in contest.times[LIMIT]]
    for name, goal in GOALS.items():
        if name in contest.times:
            yield contest.ratio(name, OURS, f"faster than {name}", goal)
    yield contest.ratio(OURS, FLOOR, f"of the {FLOOR}", of_the_floor)
    if LIMITED_FLOOR in contest.times:
        yield contest.ratio(OURS, LIMITED_FLOOR, f"of the {LIMITED_FLOOR}")
    for name in contest.times:
        yield contest.cost(name)


def query_socket(settings: Settings) -> Iterator[Finding | Unavailable]:
    return query(settings, "accepted", "accepted.fileno()", at_most(1.1))


def query_handle(settings: Settings) -> Iterator[Finding | Unavailable]:
    return query(settings, "handle", "handle", at_most(1.2))


def query_large(settings: Settings) -> Iterator[Finding]:
    for size in 4096, 65536, 524288:
        with scripted(bytes(size)) as names:
            contestants = [
                Contestant(OURS, "query(accepted)", names),
                Contestant(FLOOR, "floor(accepted)", names),
            ]
            contest = Contest(contestants, settings)
        name = f"{size // 1024} KiB"
        yield contest.ratio(OURS, FLOOR, f"of the {FLOOR}, {name}", at_most(1.2))
        yield contest.cost(OURS, what=f"{OURS}, {name}")


def transfer(settings: Settings) -> Iterator[Finding]:
    pair = "set_by_ctypes(outbound.fileno(), query_fresh(accepted.fileno()))"
    with scripted() as names:
        contestants = [
            Contestant(OURS, "transfer(accepted, outbound)", names),
            Contestant("query + set", "set_records(outbound, query(accepted))", names),
            Contestant("ctypes pair", pair, names),
            Contestant(FLOOR, "floor_transfer(accepted, outbound)", names),
            Contestant("floor pair", "floor_set(outbound, floor(accepted))", names),
        ]
        contest = Contest(contestants, settings)
    yield contest.ratio("query + set", OURS, "faster than query + set", at_least(1.6))
    yield contest.ratio("floor pair", FLOOR, f"the same in the {FLOOR}")
    yield contest.ratio(OURS, FLOOR, f"of the {FLOOR}")
    yield contest.ratio("ctypes pair", OURS, "faster than the ctypes pair", at_least(25))
    for name in contest.times:
        yield contest.cost(name)


def read_redirect(settings: Settings) -> Iterator[Finding]:
    """Both on steps, which cost more than fixed answers: fixed answers cannot fail."""
    redirected, not_redirected = (
        lambda: simulator.Scripted(steps=[simulator.Step(data=RECORDS)]),
        lambda: simulator.Scripted(steps=[simulator.Step(code=1168)]),
    )
    with socket.socket() as accepted:
        names = {"read_redirect": wfpioctl.read_redirect, "accepted": accepted}
        contestants = [
            Contestant("redirected", "read_redirect(accepted)", names, redirected),
            Contestant("not redirected", "read_redirect(accepted)", names, not_redirected),
        ]
        contest = Contest(contestants, settings)
    yield contest.ratio("not redirected", "redirected", "of the successful path", at_most(1.3))
    for name in contest.times:
        yield contest.cost(name)


def failure(settings: Settings) -> Iterator[Finding]:
    def attempt(call: str) -> str:
        return f"try:\n    {call}\nexcept OSError:\n    pass"

    with scripted(steps=[simulator.Step(code=10057)]) as names:
        contestants = [
            Contestant(OURS, attempt("query(accepted)"), names),
            Contestant(FRESH, attempt("query_fresh(accepted.fileno())"), names),
            Contestant(CACHED, attempt("query_cached(accepted.fileno())"), names),
        ]
        contest = Contest(contestants, settings)
    for name in FRESH, CACHED:
        yield contest.ratio(name, OURS, f"faster than {name}", at_least(2))
    for name in contest.times:
        yield contest.cost(name)


ROWS = [
    Row("query_redirect_records, a socket object, 128 bytes", query_socket),
    Row("query_redirect_records, an int handle, 128 bytes", query_handle),
    Row("query_redirect_records, large records", query_large),
    Row("transfer_redirect_records", transfer),
    Row("read_redirect, not redirected", read_redirect),
    Row("a failure with an exception", failure),
]
