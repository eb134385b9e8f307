"""W50 to W60: who sees what, who may redirect, and where a connect ends up."""

import errno
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from support import ORIGINAL, TIMEOUT, accept, address_of, every_dialect, listen

import wfpioctl
from wfpioctl.simulator import (
    Action,
    Connected,
    Connection,
    Engine,
    RedirectRecord,
    RedirectState,
    Verdict,
)
from wfpioctl.simulator.records import decode_records, redirect_state

NOT = RedirectState.NOT_REDIRECTED
SELF = RedirectState.REDIRECTED_BY_SELF
OTHER = RedirectState.REDIRECTED_BY_OTHER
PREVIOUSLY = RedirectState.PREVIOUSLY_REDIRECTED_BY_SELF

ELSEWHERE = ("198.51.100.9", 9)  # another machine (RFC 5737)


def connects(engine: Engine) -> list[Connected]:
    return [event for event in engine.trace if isinstance(event, Connected)]


def verdicts(event: Connected) -> list[tuple[str, RedirectState, Action]]:
    return [(verdict.driver, verdict.state, verdict.action) for verdict in event.verdicts]


def handles(records: bytes) -> list[int]:
    """Whose redirections the records hold: for tests alone, as they are opaque (W26)."""
    return [record.handle for record in decode_records(records)[1]]


@pytest.mark.parametrize(
    ("handles", "state"),
    [
        ([], NOT),
        ([1], SELF),
        ([2], OTHER),
        ([2, 3], OTHER),
        ([1, 2], PREVIOUSLY),
        ([1, 2, 3], PREVIOUSLY),
        ([2, 1], SELF),
        ([1, 2, 1], SELF),
    ],
)
def test_W50_state_that_the_owner_of_handle_1_sees(
    handles: list[int], state: RedirectState
) -> None:
    assert redirect_state(1, [RedirectRecord(handle, b"") for handle in handles]) is state


def test_W51_states_in_which_a_driver_may_redirect() -> None:
    assert {state for state in RedirectState if state.may_redirect} == {NOT, OTHER}


class Chain:
    """Driver A and its proxy, driver B and its proxy, and the destination, all in one thread."""

    def __init__(self, engine: Engine, stack: ExitStack) -> None:
        self.engine = engine
        self.stack = stack
        self.proxy_a, self.proxy_b, self.end = (stack.enter_context(listen()) for _ in range(3))
        self.a = engine.add_driver(
            "A", proxy=address_of(self.proxy_a), match=ORIGINAL, context=b"of A"
        )
        self.b = engine.add_driver(
            "B", proxy=address_of(self.proxy_b), match=ORIGINAL, context=b"of B"
        )
        engine.route(ORIGINAL, address_of(self.end))

    def connect(self, accepted: socket.socket | None = None) -> None:
        """Connect to ORIGINAL, as an app, or as the proxy of an accepted connection."""
        sock = self.stack.enter_context(socket.socket())
        sock.settimeout(TIMEOUT)
        if accepted is not None:
            wfpioctl.transfer_redirect_records(accepted, sock)
        sock.connect(ORIGINAL)

    def accept(self, listener: socket.socket) -> socket.socket:
        return self.stack.enter_context(accept(listener))


@pytest.fixture
def chain(engine: Engine) -> Iterator[Chain]:
    with ExitStack() as stack:
        yield Chain(engine, stack)


@every_dialect
def test_W53_W54_two_vendors_inspect_one_flow(chain: Chain) -> None:
    """app -> A -> B -> destination, with the records growing on the way."""
    a, b, engine = chain.a, chain.b, chain.engine

    chain.connect()
    at_a = chain.accept(chain.proxy_a)
    assert handles(wfpioctl.query_redirect_records(at_a)) == [a.handle]
    assert verdicts(connects(engine)[0]) == [
        ("A", NOT, Action.REDIRECT),
        ("B", NOT, Action.LEAVE),
    ]

    chain.connect(at_a)
    at_b = chain.accept(chain.proxy_b)
    assert handles(wfpioctl.query_redirect_records(at_b)) == [a.handle, b.handle]
    assert verdicts(connects(engine)[1]) == [
        ("A", SELF, Action.PERMIT),
        ("B", OTHER, Action.REDIRECT),
    ]

    chain.connect(at_b)
    at_end = chain.accept(chain.end)
    assert wfpioctl.read_redirect(at_end) is None
    assert verdicts(connects(engine)[2]) == [
        ("A", PREVIOUSLY, Action.PERMIT),
        ("B", SELF, Action.PERMIT),
    ]
    assert [event.target for event in connects(engine)] == [
        a.proxy,
        b.proxy,
        address_of(chain.end),
    ]


@every_dialect
def test_W56_context_is_the_newest_records(chain: Chain) -> None:
    chain.connect()
    at_a = chain.accept(chain.proxy_a)
    assert wfpioctl.query_redirect_context(at_a) == b"of A"
    chain.connect(at_a)
    assert wfpioctl.query_redirect_context(chain.accept(chain.proxy_b)) == b"of B"


def test_W26_records_are_passed_on_unaltered(chain: Chain) -> None:
    """The contexts of all earlier redirections are still in them."""
    chain.connect()
    at_a = chain.accept(chain.proxy_a)
    chain.connect(at_a)
    records = wfpioctl.query_redirect_records(chain.accept(chain.proxy_b))
    assert decode_records(records)[1] == [
        RedirectRecord(chain.a.handle, b"of A"),
        RedirectRecord(chain.b.handle, b"of B"),
    ]


def test_W52_two_handles_of_one_vendor_see_other(engine: Engine, listener: socket.socket) -> None:
    """Same name, same proxy: it is the handle that counts."""
    for _ in range(2):
        engine.add_driver("vendor", proxy=address_of(listener), match=ORIGINAL)
    with ExitStack() as stack:
        stack.enter_context(socket.create_connection(ORIGINAL, TIMEOUT))
        accepted = stack.enter_context(accept(listener))
        outbound = stack.enter_context(socket.socket())
        outbound.settimeout(TIMEOUT)
        wfpioctl.transfer_redirect_records(accepted, outbound)
        outbound.connect(ORIGINAL)
        again = stack.enter_context(accept(listener))
        assert len(set(handles(wfpioctl.query_redirect_records(again)))) == 2
    assert verdicts(connects(engine)[1]) == [
        ("vendor", SELF, Action.PERMIT),
        ("vendor", OTHER, Action.REDIRECT),
    ]


def test_W28_without_set_the_flow_is_a_new_one(engine: Engine) -> None:
    """A driver that only looks at flows of one app sees the proxy's own flow instead."""
    with ExitStack() as stack:
        chain = Chain(engine, stack)
        chain.a.match = lambda connection: not engine.trace  # the app's connect alone
        chain.connect()
        chain.accept(chain.proxy_a)
        chain.connect()
        at_b = chain.accept(chain.proxy_b)
        assert handles(wfpioctl.query_redirect_records(at_b)) == [chain.b.handle]


def test_W57_context_is_the_drivers_own_affair(engine: Engine, listener: socket.socket) -> None:
    """Bytes of any kind, or made anew for each connection from what the callout sees."""
    seen: list[Connection] = []

    def context(connection: Connection) -> bytes:
        seen.append(connection)
        return repr(connection.destination).encode()

    engine.add_driver("A", proxy=address_of(listener), context=context)
    for port in (80, 443):
        destination = (ORIGINAL[0], port)
        with socket.create_connection(destination, TIMEOUT), accept(listener) as accepted:
            assert wfpioctl.query_redirect_context(accepted) == repr(destination).encode()
    assert [each.destination[1] for each in seen] == [80, 443]
    assert seen[0].records == ()


def refused(connect: Callable[[], object]) -> None:
    """Expect what a connect that Windows refuses with WSAEACCES raises."""
    with pytest.raises(PermissionError) as caught:
        connect()
    assert caught.value.errno == errno.EACCES
    assert getattr(caught.value, "winerror", 10013) == 10013


@pytest.mark.parametrize(
    "fault",
    [
        {"process_id": None},
        {"proxy": ELSEWHERE},
        {"proxy": ("2001:db8::1", 80)},
        {"proxy": ("255.255.255.255", 80)},
    ],
    ids=["no process id", "not of this machine", "IPv6 not of this machine", "of all machines"],
)
def test_W58_redirection_that_is_set_up_wrong(
    engine: Engine, listener: socket.socket, fault: dict[str, Any]
) -> None:
    engine.add_driver("A", **{"proxy": address_of(listener), "match": ORIGINAL} | fault)
    refused(lambda: socket.create_connection(ORIGINAL, TIMEOUT))
    [event] = connects(engine)
    assert event.target is None
    assert "'A'" in event.error


def test_W58_names_the_process_of_the_proxy(redirected: Any) -> None:
    assert redirected.driver.process_id == os.getpid()


def test_W59_redirect_to_another_machine_carries_nothing(
    engine: Engine, listener: socket.socket
) -> None:
    engine.add_driver("A", proxy=address_of(listener), context=b"context", off_machine=True)
    with socket.create_connection(ORIGINAL, TIMEOUT), accept(listener) as accepted:
        assert wfpioctl.read_redirect(accepted) is None
    [event] = connects(engine)
    assert event.target == address_of(listener)
    assert (event.records_size, event.context_size) == (0, 0)


@every_dialect
def test_W60_tag_that_is_lost_on_the_way(engine: Engine, listener: socket.socket) -> None:
    """It was redirected, and every query says that it was not."""
    driver = engine.add_driver("A", proxy=address_of(listener), context=b"c", lose_tag=True)
    with socket.create_connection(ORIGINAL, TIMEOUT), accept(listener) as accepted:
        assert wfpioctl.read_redirect(accepted) is None
        with pytest.raises(wfpioctl.RedirectError) as caught:
            wfpioctl.query_redirect_context(accepted)
        assert caught.value.winerror == engine.dialect.not_redirected
    assert connects(engine)[0].target == driver.proxy

    driver.lose_tag = False  # a fault may end at any time
    with socket.create_connection(ORIGINAL, TIMEOUT), accept(listener) as accepted:
        assert wfpioctl.read_redirect(accepted) is not None


def test_driver_that_denies(engine: Engine, listener: socket.socket) -> None:
    """The first that blocks decides, even where an earlier one has redirected."""
    engine.add_driver("A", proxy=address_of(listener), match=ORIGINAL)
    engine.add_driver("B", proxy=address_of(listener), match=ORIGINAL, deny=True)
    engine.add_driver("C", proxy=address_of(listener), match=ORIGINAL)
    refused(lambda: socket.create_connection(ORIGINAL, TIMEOUT))
    [event] = connects(engine)
    assert event.verdicts == (
        Verdict("A", NOT, Action.REDIRECT),
        Verdict("B", NOT, Action.BLOCK),
    )
    with socket.create_connection(address_of(listener), TIMEOUT), accept(listener):
        pass  # what it does not match it does not block


def test_driver_that_does_not_match(engine: Engine, listener: socket.socket) -> None:
    engine.add_driver("A", proxy=ELSEWHERE, match=("203.0.113.99", 1))
    engine.route(ORIGINAL, address_of(listener))
    with socket.create_connection(ORIGINAL, TIMEOUT), accept(listener) as accepted:
        assert wfpioctl.read_redirect(accepted) is None
    [event] = connects(engine)
    assert verdicts(event) == [("A", NOT, Action.NO_MATCH)]
    assert event.flow_id == 0


def test_match_that_raises_is_the_connects_error(
    engine: Engine, listener: socket.socket, tcp: socket.socket
) -> None:
    def match(connection: Connection) -> bool:
        raise ZeroDivisionError

    engine.add_driver("A", proxy=address_of(listener), match=match)
    with pytest.raises(ZeroDivisionError):
        tcp.connect(ORIGINAL)


def test_match_sees_the_earlier_redirections(chain: Chain) -> None:
    seen: list[list[int]] = []
    chain.b.match = lambda connection: bool(
        seen.append([record.handle for record in connection.records]) or True
    )
    chain.connect()
    chain.connect(chain.accept(chain.proxy_a))
    assert seen == [[], [chain.a.handle]]
