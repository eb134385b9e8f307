"""The relay against others: requests and bytes through each, side by side.

A relay that is one process on one core carries as much a second as it carries in a second of the
processor's time; unlike a rate, that does not depend on who else wants the processor.  So the
ratios, and the goals, are those of processor time, and the rates are shown beside them.
"""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from .relays import HOST
from .rows import Finding, Goal, Row, Settings, Unavailable, at_least, finding

ROOT = Path(__file__).parent.parent
CONNECTIONS = 16  # of wrk
BULK_BLOCK = bytes(1 << 18)

OURS = "wfpioctl relay"
WITHOUT = "wfpioctl relay without the IOCTLs"
STREAMS = "asyncio streams"
HAPROXY = "HAProxy"
SOCAT = "socat"

HAPROXY_SETTINGS = """
defaults
    timeout connect 5s
    timeout client 60s
    timeout server 60s
"""
HTTP_SERVER = """
frontend server
    mode http
    bind {host}:{port}
    http-request return status 200 content-type text/plain string "ok"
"""
TCP_RELAY = """
listen relay
    mode tcp
    bind {host}:{port}
    server only {host}:{destination}
"""


def free_port() -> int:
    with socket.create_server((HOST, 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running(command: list[str], port: int) -> Iterator[int]:
    """A program, from the moment that it listens; its process id."""
    if shutil.which(command[0]) is None:
        raise Unavailable(f"{command[0]} is not installed")
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            wait_for(port, process)
            yield process.pid
        finally:
            process.terminate()


def wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection((HOST, port), 1):
            return
        time.sleep(0.05)
    raise Unavailable(f"{process.args!r} does not listen")


def haproxy(text: str, port: int, folder: str) -> contextlib.AbstractContextManager[int]:
    file = Path(folder) / f"{port}.cfg"
    file.write_text(HAPROXY_SETTINGS + text)
    return running(["haproxy", "-db", "-f", str(file)], port)


def processor_seconds(session: int) -> tuple[float, float]:
    """Return the processor time of a session's processes, and of their children that have ended:
    all of it, and that in the kernel."""
    time.sleep(0.2)  # a child that is just ending is neither there nor in its parent's sum
    user = kernel = 0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended: its parent has its time
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                user += int(fields[11]) + int(fields[13])
                kernel += int(fields[12]) + int(fields[14])
    a_second = os.sysconf("SC_CLK_TCK")
    return (user + kernel) / a_second, kernel / a_second


@dataclass(slots=True)
class Relay:
    """A running relay, and what it carried: a second, and a second of the processor's time; and how
    many per cent of that time the kernel took."""

    port: int
    process: int
    rates: list[float] = field(default_factory=list)
    efficiencies: list[float] = field(default_factory=list)
    kernel: list[float] = field(default_factory=list)

    def measure(self, carry: Callable[[int], tuple[float, float]]) -> None:
        """``carry(port)`` returns an amount and the seconds that it took."""
        before = processor_seconds(self.process)
        amount, seconds = carry(self.port)
        self.rates.append(amount / seconds)
        after = processor_seconds(self.process)
        taken, in_kernel = (b - a for a, b in zip(before, after, strict=True))
        self.efficiencies.append(amount / taken)
        self.kernel.append(100 * in_kernel / taken)


def relays(stack: ExitStack, destination: int) -> tuple[dict[str, Relay], list[Unavailable]]:
    """Start every relay towards a port; return them, and what is missing."""
    if sys.platform == "win32":
        raise Unavailable("the other relays, and /proc, are on Linux")
    running_relays, missing = {}, []
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    for name in OURS, WITHOUT, STREAMS, HAPROXY, SOCAT:
        port = free_port()
        python = [sys.executable, "-m", "benchmarks.relays"]
        ends = [str(port), str(destination)]
        if name == HAPROXY:
            text = TCP_RELAY.format(host=HOST, port=port, destination=destination)
            program = haproxy(text, port, folder)
        elif name == SOCAT:
            listen = f"TCP-LISTEN:{port},bind={HOST},fork,reuseaddr,backlog=1024"
            program = running(["socat", listen, f"TCP:{HOST}:{destination}"], port)
        else:
            kind = {OURS: "with-calls", WITHOUT: "without-calls", STREAMS: "streams"}[name]
            program = running([*python, kind, *ends], port)
        try:
            running_relays[name] = Relay(port, stack.enter_context(program))
        except Unavailable as reason:
            missing.append(reason)
    return running_relays, missing


def wrk(port: int, seconds: int, *options: str) -> tuple[float, float]:
    """Return how many requests were answered, and in how many seconds."""
    command = [
        "wrk",
        "-t1",
        f"-c{CONNECTIONS}",
        f"-d{seconds}s",
        *options,
        f"http://{HOST}:{port}/",
    ]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"(\d+) requests in ([\d.]+)s", output)
    if found is None or found[1] == "0":
        raise Unavailable(f"wrk got no answer: {output.strip()[-200:]}")
    return float(found[1]), float(found[2])


def requests(settings: Settings, *options: str) -> Iterator[Finding | Unavailable]:
    if shutil.which("wrk") is None:
        raise Unavailable("wrk is not installed")
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        server = free_port()
        stack.enter_context(haproxy(HTTP_SERVER.format(host=HOST, port=server), server, folder))
        contenders, missing = relays(stack, server)
        yield from missing
        for _ in range(settings.pick(3, 9)):
            for each in contenders.values():
                each.measure(lambda port: wrk(port, settings.pick(1, 2), *options))
    set_up = at_least(0.97) if options else None
    yield from compare(contenders, "requests", set_up)


def compare(
    contenders: Mapping[str, Relay], unit: str, set_up: Goal | None = None
) -> Iterator[Finding]:
    goals = {STREAMS: at_least(2), WITHOUT: set_up}
    ours = contenders[OURS]
    for name, each in contenders.items():
        if each is not ours:
            pairs = zip(ours.efficiencies, each.efficiencies, strict=True)
            yield finding(f"against {name}", [a / b for a, b in pairs], "x", goals.get(name))
    for name, each in contenders.items():
        yield finding(f"{name}, a processor second", each.efficiencies, unit)
    for name, each in contenders.items():
        yield finding(f"{name}, of that in the kernel", each.kernel, "%")
    for name, each in contenders.items():
        yield finding(f"{name}, a second", each.rates, unit)


def keep_alive(settings: Settings) -> Iterator[Finding | Unavailable]:
    return requests(settings)


def new_connections(settings: Settings) -> Iterator[Finding | Unavailable]:
    return requests(settings, "-H", "Connection: close")


def bulk(settings: Settings) -> Iterator[Finding | Unavailable]:
    """One connection, one direction, as iperf3 does by default."""
    size = settings.pick(200, 1000) << 20
    with ExitStack() as stack:
        sink = stack.enter_context(socket.create_server((HOST, 0)))
        threading.Thread(target=swallow, args=(sink,), daemon=True).start()
        contenders, missing = relays(stack, sink.getsockname()[1])
        yield from missing
        for _ in range(settings.pick(3, 9)):
            for each in contenders.values():
                each.measure(lambda port: send(port, size))
    yield from compare(contenders, "MB")


def swallow(sink: socket.socket) -> None:
    """Read each connection to its end, then answer with one byte."""
    buffer = bytearray(1 << 20)
    while True:
        try:
            accepted, _ = sink.accept()
        except OSError:
            return
        with accepted, contextlib.suppress(OSError):
            while accepted.recv_into(buffer):
                pass
            accepted.sendall(b"!")


def send(port: int, size: int) -> tuple[float, float]:
    """Return the megabytes that got to the other end, and in how many seconds."""
    with socket.create_connection((HOST, port)) as sock:
        start = time.perf_counter()
        for _ in range(size // len(BULK_BLOCK)):
            sock.sendall(BULK_BLOCK)
        sock.shutdown(socket.SHUT_WR)
        if sock.recv(1) != b"!":
            raise Unavailable("a relay lost the end of the stream")
        return size / 1e6, time.perf_counter() - start


ROWS = [
    Row("relay: requests, keep-alive", keep_alive),
    Row("relay: requests, a new connection each", new_connections),
    Row("relay: bulk, one connection", bulk),
]
