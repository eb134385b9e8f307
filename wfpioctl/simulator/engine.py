"""The simulated engine's control plane: drivers, callouts, routes, and what happened.

Sockets are real; only the decision to redirect and the IOCTLs' answers are simulated.  The answers
come from the data plane in C (src/provider_engine.c), which is told of each flow from here.
"""

import errno
import itertools
import os
import secrets
import socket
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar

from .. import _wfpioctl
from .. import constants as c
from . import addresses
from .datagrams import Datagrams
from .dialects import DIALECTS, Dialect
from .interception import Interception
from .records import RedirectRecord, decode_records, encode_records, redirect_state
from .trace import Action, Address, Connected, Event, Queried, RecordsSet, Verdict

_Result = TypeVar("_Result")

MAX_CONTEXT_SIZE = 1 << 26
"""Bytes; a driver's context is a blob of any size, within reason."""


def _flows_of_a_loop() -> int:
    """How many open flows of one driver to one destination, none of them SET, must be a loop.

    It finds the loops of a proxy that never asks, or that asks in one thread and connects in
    another.  Both ends of a loop's flows are this process's, so its limit of files comes in too:
    the loop has to end before that does.
    """
    if sys.platform == "win32":
        return 2000
    import resource

    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2000 if files == resource.RLIM_INFINITY else max(50, min(2000, files // 2 - 64))


_OPERATIONS = {
    c.SIO_QUERY_WFP_CONNECTION_REDIRECT_RECORDS: "SIO_QUERY_WFP_CONNECTION_REDIRECT_RECORDS",
    c.SIO_QUERY_WFP_CONNECTION_REDIRECT_CONTEXT: "SIO_QUERY_WFP_CONNECTION_REDIRECT_CONTEXT",
}


class RedirectLoopError(OSError):
    """A proxy that does not SET was redirected to itself again and again (W55).

    A real kernel goes on for ever; the engine ends it.  ``errno`` is ELOOP.
    """


@dataclass(frozen=True, slots=True)
class Connection:
    """What a callout sees of a connect, for ``match`` and ``context`` callables.

    Attributes:
        destination: (host, port) where the app wants to go; host is numeric.
        source: (host, port) of the app's socket, or None while it is not bound.
        records: the earlier redirections of this flow, oldest first.
        protocol: "tcp" or "udp".
    """

    destination: Address
    source: Address | None = None
    records: Sequence[RedirectRecord] = ()
    protocol: str = "tcp"


Match = Callable[[Connection], bool]


@dataclass(slots=True, kw_only=True)
class Driver:
    """A vendor's driver: one redirect handle and one callout.  Its faults may change at any time.

    Attributes:
        name: for the trace.
        handle: the redirect handle; handles are compared, not names (W52).
        proxy: (host, port) to which it redirects.
        protocol: what it redirects, "tcp" or "udp"; UDP as wfpioctl.simulator.datagrams says.
        match: which connections concern it; None is all of them.
        context: bytes for the proxy, or a callable that makes them from a Connection.
        records_size: least length of its records, in bytes.
        process_id: of the proxy; without one the app's connect fails with WSAEACCES (W58).
        deny: block what matches, instead of redirecting it.
        lose_tag: redirect, but lose records and context on the way (W60).
        off_machine: the proxy is on another machine: it gets neither records nor context (W59).
    """

    name: str
    handle: int
    proxy: Address
    protocol: str = "tcp"
    match: Match | None = None
    context: bytes | Callable[[Connection], bytes] = b""
    records_size: int = 0
    process_id: int | None = field(default_factory=os.getpid)
    deny: bool = False
    lose_tag: bool = False
    off_machine: bool = False

    def __post_init__(self) -> None:
        if self.protocol not in ("tcp", "udp"):
            raise ValueError(f'Driver: protocol must be "tcp" or "udp", not {self.protocol!r}')

    def concerns(self, connection: Connection) -> bool:
        if self.protocol != connection.protocol:
            return False
        return self.match is None or self.match(connection)

    def context_for(self, connection: Connection) -> bytes:
        context = self.context(connection) if callable(self.context) else self.context
        if len(context) > MAX_CONTEXT_SIZE:
            raise ValueError(
                f"driver {self.name!r}: a context holds at most {MAX_CONTEXT_SIZE} bytes,"
                f" not {len(context)}"
            )
        return bytes(context)


@dataclass(slots=True)
class _Flow:
    """A redirected flow, as far as it matters for finding loops."""

    app: "weakref.ref[socket.socket]"
    driver: Driver
    destination: Address
    hop: int
    was_set: bool = False  # some socket carries its records: the chain goes on as it should

    def is_open(self) -> bool:
        sock = self.app()
        return sock is not None and sock.fileno() != -1


@dataclass(slots=True)
class _Plan:
    """Where a connect goes, and the flow that must be known before it is made."""

    event: Connected
    target: Address
    driver: Driver | None = None
    records: bytes = b""
    context: bytes = b""


_active: "Engine | None" = None
_handling: ContextVar[int] = ContextVar("wfpioctl_flow")  # the flow that this task has asked about


def _observe(code: int, handle: int, error: int, size: int) -> None:
    """The C module tells of each IOCTL that it made on the engine."""
    engine = _active
    try:
        if engine is not None:
            engine._observe(code, handle, error, size)
    except RuntimeError:
        if engine is _active:
            raise  # else its with block has just ended


def _after_fork_in_child() -> None:
    """A thread that is not there any more may have held a lock."""
    if _active is not None:
        _active._lock = threading.Lock()
        _active._datagrams.after_fork_in_child()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_after_fork_in_child)


def _refuse(name: str, winerror: int, message: str) -> OSError:
    """The OSError that a connect raises, as the running system's Python would build it."""
    if sys.platform == "win32":
        return OSError(0, message, None, winerror)
    return OSError(getattr(errno, name), message)


class Engine:
    """One machine's Windows Filtering Platform, with sockets that are real.

    While its with block lasts, the module's IOCTLs are answered by it and (unless ``intercept`` is
    false) Python's own connects and datagrams walk its drivers' callouts.  Entering raises
    RuntimeError while another Engine or a Scripted is active in the process.  It may be used from
    several threads and event loops at once.

    Args:
        dialect: which of the disagreeing answers the kernel gives: a Dialect or its name.
        intercept: whether Python's connects go through the engine by themselves.
        max_hops: how often a proxy that does not SET is redirected to itself before its connect
            raises RedirectLoopError.
        trace_limit: how many events ``trace`` keeps; the oldest are dropped first.
    """

    def __init__(
        self,
        *,
        dialect: Dialect | str = "documented",
        intercept: bool = True,
        max_hops: int = 16,
        trace_limit: int = 10_000,
    ) -> None:
        if isinstance(dialect, str):
            if dialect not in DIALECTS:
                raise ValueError(f"Engine(): dialect must be one of {[*DIALECTS]}, not {dialect!r}")
            dialect = DIALECTS[dialect]
        if max_hops < 1:
            raise ValueError(f"Engine(): max_hops must be at least 1, not {max_hops}")
        self.dialect = dialect
        self.max_hops = max_hops
        self.drivers: list[Driver] = []
        self._routes: dict[Address, Address] = {}
        self._listeners: dict[int, Callable[[], None]] = {}
        self._trace: deque[Event] = deque(maxlen=trace_limit)
        self._lock = threading.Lock()
        self._handles = itertools.count(0x1000)
        self._flow_ids = itertools.count(1)
        self._flows: dict[int, _Flow] = {}
        self._unset: dict[tuple[int, Address], dict[int, _Flow]] = {}
        self._flows_of_a_loop = _flows_of_a_loop()
        self._datagrams = Datagrams(self)
        self._interception = Interception(self) if intercept else None

    # ---- life ----

    def __enter__(self) -> Self:
        global _active
        d = self.dialect
        _wfpioctl.engine_start(
            d.too_small,
            d.names_size,
            d.minimum,
            d.not_redirected,
            d.no_context,
            secrets.randbits(64),
        )
        try:
            _wfpioctl.engine_set_observer(_observe)
            for register in self._listeners.values():
                register()
            if self._interception is not None:
                self._interception.install()
            _active = self
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        """Restore Python's connects and Winsock, whatever state the engine is in."""
        global _active
        _active = None
        try:
            if self._interception is not None:
                self._interception.uninstall()
        finally:
            _wfpioctl.engine_stop()
            with self._lock:
                self._flows.clear()
                self._unset.clear()
            self._datagrams.clear()

    # ---- the machine's configuration ----

    def add_driver(
        self,
        name: str,
        *,
        proxy: Address,
        match: Match | Address | None = None,
        context: bytes | Callable[[Connection], bytes] = b"",
        **faults: Any,
    ) -> Driver:
        """Register a redirect handle and its callout; drivers act in the order of these calls.

        ``match`` is a callable on a Connection, one destination (host, port), or None for every
        connection.  ``context`` is bytes, or a callable that makes them from a Connection.  The
        other keywords are attributes of the Driver that is returned.
        """
        if isinstance(match, tuple):
            wanted = addresses.numeric(match)
            predicate: Match | None = lambda connection: connection.destination == wanted  # noqa: E731
        else:
            predicate = match
        driver = Driver(
            name=name,
            handle=next(self._handles),
            proxy=addresses.numeric(proxy),
            match=predicate,
            context=context,
            **faults,
        )
        self.drivers.append(driver)
        return driver

    def route(self, original: Address, actual: Address) -> None:
        """Let connects to ``original`` that no driver redirects really go to ``actual``."""
        self._routes[addresses.numeric(original)] = addresses.numeric(actual)

    def redirect_listener(
        self, port: int, *, original: Address, driver: Driver | None = None
    ) -> None:
        """Let whatever connects to ``port`` count as redirected from ``original``.

        So any program can be the app.  It counts as redirected by ``driver``; by default by the
        driver whose proxy has that port, else by one that does not exist otherwise.
        """
        destination = addresses.numeric(original)
        if driver is None:
            driver = next((each for each in self.drivers if each.proxy[1] == port), None)
        if driver is None:
            driver = Driver(name="listener", handle=next(self._handles), proxy=("127.0.0.1", port))
        by_driver = driver

        def register() -> None:
            flow_id = next(self._flow_ids)
            context = by_driver.context_for(Connection(destination))
            records = encode_records(
                flow_id, [RedirectRecord(by_driver.handle, context)], by_driver.records_size
            )
            _wfpioctl.engine_add_listener(port, flow_id, records, context)

        if _active is self:
            register()
        self._listeners[port] = register

    @property
    def trace(self) -> list[Event]:
        """What happened so far, oldest first."""
        with self._lock:
            return list(self._trace)

    @property
    def flow_count(self) -> int:
        """Flows that the data plane knows at this moment."""
        return _wfpioctl.engine_counts()[0]

    # ---- connects ----

    def connect(self, address: Address, timeout: float | None = None) -> socket.socket:
        """Return a new socket, connected through the callouts; ``timeout`` is in seconds."""
        host, port = addresses.numeric(address)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout)
            self.connect_socket(sock, (host, port))
        except BaseException:
            sock.close()
            raise
        return sock

    def connect_socket(self, sock: socket.socket, address: tuple[Any, ...]) -> None:
        """``sock.connect(address)``, through the callouts whether or not connects are intercepted.

        Raises what connect() raises; PermissionError (WSAEACCES) where a driver blocks or is set up
        wrong (W58); RedirectLoopError where a proxy that does not SET meets itself (W55).
        """
        if _active is not self:
            raise RuntimeError("the Engine is not active")
        self.place_call(sock, address, lambda real: super(socket.socket, sock).connect(real))

    def place_call(
        self, sock: socket.socket, address: tuple[Any, ...], dial: Callable[[Any], _Result]
    ) -> _Result:
        """Walk the callouts, make the flow known, and ``dial`` the address that comes out."""
        try:
            real, ends = self._prepare(sock, address)
        except RuntimeError:
            if _active is self:
                raise
            return dial(address)  # the with block has just ended
        try:
            return dial(real)
        except BlockingIOError:
            raise
        except OSError:
            if ends is not None and _active is self:  # nobody will ever accept it
                _wfpioctl.engine_remove_flow(*ends)
            raise

    def _prepare(
        self, sock: socket.socket, address: tuple[Any, ...]
    ) -> tuple[tuple[Any, ...], tuple[Address, Address] | None]:
        """Return where to dial, and the ends of the flow that is now known, if any."""
        destination = addresses.destination_of(sock, address)
        if destination is None:  # the socket says best what is wrong
            return address, None
        _, records = decode_records(_wfpioctl.engine_records_of(sock.fileno()))
        plan = self._plan(sock, Connection(destination, addresses.bound(sock), tuple(records)))
        real = addresses.as_seen_from(sock, plan.target)
        ends = self._make_known(sock, real, plan)
        with self._lock:
            self._trace.append(plan.event)
        return (address if plan.target == destination else real), ends

    def _plan(self, sock: socket.socket, connection: Connection) -> _Plan:
        """Let each driver decide, in order; raise what the app's connect fails with."""
        destination, records = connection.destination, connection.records
        redirecting: Driver | None = None
        verdicts = []
        blocked = ""
        for driver in self.drivers:
            state = redirect_state(driver.handle, records)
            if not driver.concerns(connection):
                action = Action.NO_MATCH
            elif driver.deny:
                action = Action.BLOCK
                blocked = f"driver {driver.name!r} blocks it"
            elif not state.may_redirect:
                action = Action.PERMIT
            elif redirecting is not None:
                action = Action.LEAVE
            else:
                action = Action.REDIRECT
                redirecting = driver
            verdicts.append(Verdict(driver.name, state, action))
            if blocked:
                break
        if redirecting is not None and not blocked:
            blocked = _setup_fault(redirecting)
        if blocked:
            self._fail(connection, verdicts, blocked)
            host, port = destination
            raise _refuse("EACCES", c.WSAEACCES, f"connect to {host}:{port} refused: {blocked}")
        if redirecting is None:
            target = self._routes.get(destination, destination)
            event = Connected(0, destination, target, tuple(verdicts), protocol=connection.protocol)
            return _Plan(event, target)
        return self._plan_redirection(sock, connection, redirecting, verdicts)

    def _plan_redirection(
        self,
        sock: socket.socket,
        connection: Connection,
        driver: Driver,
        verdicts: list[Verdict],
    ) -> _Plan:
        destination = connection.destination
        flow = _Flow(weakref.ref(sock), driver, destination, self._hop(connection, driver))
        with self._lock:
            flow_id = next(self._flow_ids)
            unset = self._remember(flow_id, flow)
        if flow.hop > self.max_hops or unset > self._flows_of_a_loop:
            host, port = destination
            hops = max(flow.hop - 1, unset - 1)
            message = (
                f"connect to {host}:{port}: driver {driver.name!r} redirected its own proxy again"
                f" and again ({hops} times); the proxy at {driver.proxy[0]}:{driver.proxy[1]}"
                " does not set the redirect records on its outbound socket"
            )
            self._fail(connection, verdicts, message, hop=flow.hop)
            raise RedirectLoopError(errno.ELOOP, message)
        context = driver.context_for(connection)
        records = encode_records(
            flow_id,
            [*connection.records, RedirectRecord(driver.handle, context)],
            driver.records_size,
        )
        arrives = not driver.lose_tag and not driver.off_machine
        event = Connected(
            flow_id,
            destination,
            driver.proxy,
            tuple(verdicts),
            records_size=len(records) if arrives else 0,
            context_size=len(context) if arrives else 0,
            hop=flow.hop,
            protocol=connection.protocol,
        )
        return _Plan(event, driver.proxy, driver, records, context)

    def _remember(self, flow_id: int, flow: _Flow) -> int:
        """Keep a new flow; return how many of its kind are open and not SET (or not yet)."""
        for oldest in [*itertools.islice(self._flows, 2)]:  # closed ones go as new ones come
            known = self._flows.pop(oldest)
            if known.is_open():
                self._flows[oldest] = known
            else:
                self._forget_unset(oldest, known)
        self._flows[flow_id] = flow
        key = flow.driver.handle, flow.destination
        unset = self._unset.setdefault(key, {})
        unset[flow_id] = flow
        if len(unset) > self._flows_of_a_loop:
            unset = self._unset[key] = {i: each for i, each in unset.items() if each.is_open()}
        return len(unset)

    def _forget_unset(self, flow_id: int, flow: _Flow) -> None:
        key = flow.driver.handle, flow.destination
        unset = self._unset.get(key, {})
        unset.pop(flow_id, None)
        if not unset:
            self._unset.pop(key, None)

    def _hop(self, connection: Connection, driver: Driver) -> int:
        """How often this driver has now redirected what goes to one destination, in one chain.

        A proxy's task has asked about the flow that it handles.  If it connects to that flow's
        destination without having SET its records anywhere, the flow goes round in a loop.
        """
        if connection.records:
            return 1
        with self._lock:
            cause = self._flows.get(_handling.get(0))
        if (
            cause is None
            or cause.was_set
            or cause.driver is not driver
            or cause.destination != connection.destination
            or not cause.is_open()
        ):
            return 1
        return cause.hop + 1

    def _make_known(
        self, sock: socket.socket, real: tuple[Any, ...], plan: _Plan
    ) -> tuple[Address, Address] | None:
        """Bind the socket and tell the data plane of the flow, before anyone can accept it.

        A connect to a proxy that carries no redirect takes the place of an earlier one between the
        same ends, which the proxy may never have asked about.
        """
        carries = plan.event.records_size != 0
        if not carries and not self._is_proxy(plan.target):
            return None
        ends = addresses.bind_towards(sock, real), (real[0], real[1])
        if not carries:
            _wfpioctl.engine_remove_flow(*ends)
            return None
        _wfpioctl.engine_add_flow(
            sock.fileno(), *ends, plan.event.flow_id, plan.records, plan.context
        )
        return ends

    def _is_proxy(self, target: Address) -> bool:
        return target[1] in self._listeners or any(each.proxy == target for each in self.drivers)

    def _fail(
        self, connection: Connection, verdicts: list[Verdict], error: str, hop: int = 1
    ) -> None:
        event = Connected(
            0,
            connection.destination,
            None,
            tuple(verdicts),
            hop=hop,
            error=error,
            protocol=connection.protocol,
        )
        with self._lock:
            self._trace.append(event)

    # ---- datagrams ----

    def datagram_target(
        self, sock: socket.socket, address: tuple[Any, ...], records: bytes | None = None
    ) -> tuple[Any, ...]:
        """Return where a datagram of a UDP socket to ``address`` is to be sent, or connected to.

        The first datagram to each destination walks the callouts, with the ``records`` that go with
        it, and later ones go the same way; what is returned is to be passed to ``sock.sendto()``.
        Raises as connect_socket() does.  Where no driver looks at UDP and no route is set, nothing
        happens.
        """
        if not self._routes and not any(each.protocol == "udp" for each in self.drivers):
            return address
        try:
            return self._datagrams.target(sock, address, records)
        except RuntimeError:
            if _active is self:
                raise
            return address  # the with block has just ended

    def datagram_received(self, records: bytes) -> None:
        """Trace that a proxy got a flow's first datagram, with its records."""
        self._datagrams.received(records)

    def place_datagram(
        self, sock: socket.socket, destination: Address, records: list[RedirectRecord]
    ) -> Address:
        """Walk the callouts for a socket's first datagram to a destination; return its target."""
        connection = Connection(destination, addresses.bound(sock), tuple(records), "udp")
        plan = self._plan(sock, connection)
        if plan.event.records_size != 0:
            real = addresses.as_seen_from(sock, plan.target)
            end = addresses.bind_towards(sock, real)
            flow = plan.event.flow_id, plan.records, plan.context
            _wfpioctl.engine_add_datagram_flow(sock.fileno(), end, real[1], *flow)
        with self._lock:
            self._trace.append(plan.event)
        return plan.target

    # ---- what the proxies do ----

    def _observe(self, code: int, handle: int, error: int, size: int) -> None:
        if code == c.SIO_SET_WFP_CONNECTION_REDIRECT_RECORDS:
            flow_id = 0
            if error == 0:
                flow_id, _ = decode_records(_wfpioctl.engine_records_of(handle))
            event: Queried | RecordsSet = RecordsSet(flow_id, error, size)
        else:
            flow_id = _wfpioctl.engine_flow_id(handle) if error == 0 else 0
            event = Queried(flow_id, _OPERATIONS[code], error, size)
        self.note(event)

    def note(self, event: Queried | RecordsSet) -> None:
        """Trace what a proxy did, and remember what it says about loops."""
        flow_id = event.flow_id
        if isinstance(event, Queried) and flow_id:
            _handling.set(flow_id)
        with self._lock:
            flow = self._flows.get(flow_id)
            if isinstance(event, RecordsSet) and flow is not None:
                flow.was_set = True
                self._forget_unset(flow_id, flow)
            self._trace.append(event)


def _setup_fault(driver: Driver) -> str:
    """What is wrong with a driver's redirection (W58), or ""."""
    if driver.process_id is None:
        return f"driver {driver.name!r} names no target process"
    if not driver.off_machine and not addresses.is_own(driver.proxy[0]):
        return f"driver {driver.name!r} redirects to {driver.proxy[0]}, no address of this machine"
    return ""
