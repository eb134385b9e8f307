"""The same calls on the simulated engine, whose own cost is a part of every number here."""

import socket
from collections.abc import Iterator

import wfpioctl
from wfpioctl import _wfpioctl, simulator

from . import build
from .rows import Finding, Row, Settings, at_most, finding
from .timing import Contest, Contestant

FEW, SOME, MANY = 1, 1_000, 1_000_000
BATCH = 50_000  # flows of one address: ports


def connected(engine: simulator.Engine, listener: socket.socket) -> tuple[socket.socket, ...]:
    app = engine.connect(("192.0.2.1", 443))
    accepted, _ = listener.accept()
    return app, accepted


def add_flows(first: int, count: int) -> None:
    """Tell the data plane of flows between addresses that nobody has."""
    records = b"r" * 16
    for number in range(first, count):
        host, port = divmod(number, BATCH)
        ends = (f"10.1.{host // 250}.{host % 250}", 1024 + port), ("10.2.0.1", 15001)
        _wfpioctl.engine_add_flow(2**64 - 1, *ends, 1000 + number, records, b"")


def flows(settings: Settings) -> Iterator[Finding]:
    """The data plane alone: its C function, called as a C program would."""
    floor = build.floor()
    times: dict[int, list[float]] = {}
    with socket.create_server(("127.0.0.1", 0)) as listener, simulator.Engine() as engine:
        engine.add_driver("bench", proxy=listener.getsockname()[:2], context=b"c" * 256)
        app, accepted = connected(engine, listener)
        floor.use_provider(simulator.wsaioctl_address())
        names = {"call_often": floor.call_often, "handle": accepted.fileno()}
        known = FEW
        for count in FEW, SOME, MANY:
            add_flows(known, count)
            known = count
            contest = Contest([Contestant("", "call_often(handle, 10)", names)], settings)
            times[count] = [each / 10 for each in contest.times[""]]
        app.close()
        accepted.close()
    for count, samples in times.items():
        yield finding(f"{count:,} flows, a query in C", samples, "ns")
    for count in SOME, MANY:
        pairs = zip(times[count], times[FEW], strict=True)
        ratios = [a / b for a, b in pairs]
        yield finding(f"{count:,} flows against {FEW}", ratios, "x", at_most(1.3))


def calls(settings: Settings) -> Iterator[Finding]:
    """What a test that uses the engine pays, its trace included."""
    with socket.create_server(("127.0.0.1", 0)) as listener, simulator.Engine() as engine:
        engine.add_driver("bench", proxy=listener.getsockname()[:2], context=b"c" * 256)
        app, accepted = connected(engine, listener)
        with socket.socket() as outbound:
            floor = build.floor()
            floor.use_provider(simulator.wsaioctl_address())
            names = {
                "accepted": accepted,
                "outbound": outbound,
                "query": wfpioctl.query_redirect_records,
                "transfer": wfpioctl.transfer_redirect_records,
                "set_records": wfpioctl.set_redirect_records,
                "floor": floor.query,
            }
            contestants = [
                Contestant("query", "query(accepted)", names),
                Contestant("transfer", "transfer(accepted, outbound)", names),
                Contestant("query + set", "set_records(outbound, query(accepted))", names),
                Contestant("floor extension (no trace)", "floor(accepted)", names),
            ]
            contest = Contest(contestants, settings)
        app.close()
        accepted.close()
    for name in contest.times:
        yield contest.cost(name)


ROWS = [
    Row("engine: 1, 1,000 and 1,000,000 flows", flows),
    Row("engine: calls from Python", calls),
]
