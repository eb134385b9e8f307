"""The engine against an independent model of W50 to W54, W56 and W60, driven at random.

The model knows no sockets and no bytes: a connection is the tuple of driver numbers that redirected
it.  Hypothesis lets apps and proxies connect, forget or corrupt SET, and lose tags, and compares
what the engine says after each step.
"""

import contextlib
import socket
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support import ORIGINAL, TIMEOUT, accept, address_of, listen, reset

import wfpioctl
from wfpioctl.simulator import Driver, Engine

DRIVERS = 3


def model_redirector(records: tuple[int, ...]) -> int | None:
    """Which driver redirects a connect that carries these records: the first that may (W51)."""
    for driver in range(DRIVERS):
        if driver not in records:  # neither by self nor previously by self (W50)
            return driver
    return None


@dataclass
class Hop:
    """A connection that was redirected to a proxy."""

    records: tuple[int, ...]
    app: socket.socket
    accepted: socket.socket
    tagged: bool
    blobs: list[bytes] = field(default_factory=list)


def end(hop: Hop) -> None:
    """Reset the connection: a port that waits in TIME_WAIT would be missed in a long run."""
    reset(hop.app)
    hop.accepted.close()


class EngineAgainstModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.stack = contextlib.ExitStack()
        self.engine = self.stack.enter_context(Engine(max_hops=1000))
        self.listeners = [self.stack.enter_context(listen()) for _ in range(DRIVERS)]
        self.origin = self.stack.enter_context(listen())
        self.engine.route(ORIGINAL, address_of(self.origin))
        self.drivers: list[Driver] = [
            self.engine.add_driver(
                str(number), proxy=address_of(listener), match=ORIGINAL, context=bytes([number])
            )
            for number, listener in enumerate(self.listeners)
        ]
        self.hops: list[Hop] = []

    def teardown(self) -> None:
        for hop in self.hops:
            end(hop)
        self.stack.close()

    def connect(self, outbound: socket.socket, records: tuple[int, ...]) -> None:
        """Connect for real, and check where the model says that it arrives."""
        outbound.settimeout(TIMEOUT)
        outbound.connect(ORIGINAL)
        by = model_redirector(records)
        if by is None:
            with accept(self.origin) as arrived:
                assert wfpioctl.read_redirect(arrived) is None
                reset(outbound)
            return
        tagged = not self.drivers[by].lose_tag
        hop = Hop((*records, by), outbound, accept(self.listeners[by]), tagged)
        self.hops.append(hop)

    @rule()
    def an_app_connects(self) -> None:
        self.connect(socket.socket(), ())

    @precondition(lambda self: self.hops)
    @rule(data=st.data())
    def a_proxy_goes_on(self, data: st.DataObject) -> None:
        hop = data.draw(st.sampled_from(self.hops))
        how = data.draw(st.sampled_from(["set", "transfer", "forget", "corrupt"]))
        position, flip = data.draw(st.integers(0, 10_000)), data.draw(st.integers(1, 255))
        outbound = socket.socket()  # after the last draw, which may end the run
        if not hop.tagged:  # the query says not redirected: the records are lost (W60)
            self.connect(outbound, ())
            return
        carried = hop.records
        if how == "set":
            wfpioctl.set_redirect_records(outbound, wfpioctl.query_redirect_records(hop.accepted))
        elif how == "transfer":
            wfpioctl.transfer_redirect_records(hop.accepted, outbound)
        else:
            if how == "corrupt":
                blob = bytearray(wfpioctl.query_redirect_records(hop.accepted))
                blob[position % len(blob)] ^= flip
                with pytest.raises(wfpioctl.InvalidArgumentError):
                    wfpioctl.set_redirect_records(outbound, blob)
            carried = ()
        self.connect(outbound, carried)

    @rule(number=st.integers(0, DRIVERS - 1), lost=st.booleans())
    def a_driver_loses_or_keeps_the_tag(self, number: int, lost: bool) -> None:
        self.drivers[number].lose_tag = lost

    @precondition(lambda self: self.hops)
    @rule(data=st.data())
    def a_connection_ends(self, data: st.DataObject) -> None:
        """Its descriptors' numbers are used again by the next ones (W19)."""
        end(self.hops.pop(data.draw(st.integers(0, len(self.hops) - 1))))

    @invariant()
    def every_proxy_reads_what_the_model_says(self) -> None:
        for hop in self.hops[-4:]:
            redirect = wfpioctl.read_redirect(hop.accepted)
            if not hop.tagged:
                assert redirect is None
                continue
            assert redirect is not None
            assert redirect.context == bytes([hop.records[-1]])  # the newest one's (W56)


def profile(examples: int) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=20,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


class TestModel(EngineAgainstModel.TestCase):
    settings = profile(40)


@pytest.mark.slow
@pytest.mark.timeout(3600)
class TestModelAtLength(EngineAgainstModel.TestCase):
    settings = profile(10_000)
