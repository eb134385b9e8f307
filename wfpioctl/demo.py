"""The verb ``demo``: an app, two vendors' proxies and an origin, on real connections.

The proxies are what would run on Windows: they use only the public functions and plain sockets.
The drivers and the kernel are the simulated engine's.
"""

import argparse
import contextlib
import http.client
import importlib.util
import json
import os
import shutil
import socket
import socketserver
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from . import context
from .redirect import create_connection, read_redirect
from .simulator import Connected, Connection, Driver, Engine, Queried, RecordsSet

DESTINATION = ("203.0.113.80", 80)  # a documentation address: only the engine's route leads there
BODY_SIZE = 65_536
CONCURRENCY = 32
TIMEOUT = 30.0


class Origin(socketserver.ThreadingTCPServer):
    """A real HTTP server with one body, random in each run."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 512

    def __init__(self) -> None:
        self.body: bytes = os.urandom(BODY_SIZE)
        super().__init__(("127.0.0.1", 0), OriginHandler)


class OriginHandler(socketserver.StreamRequestHandler):
    server: Origin  # pyright: ignore[reportIncompatibleVariableOverride]

    def handle(self) -> None:
        while self.rfile.readline().strip():
            pass
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {BODY_SIZE}\r\nConnection: close\r\n\r\n"
        self.wfile.write(head.encode() + self.server.body)


class Proxy(socketserver.ThreadingTCPServer):
    """A vendor's inspecting proxy.  A forgetful one does not set the records (W55)."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 512

    def __init__(self, forgetful: bool = False) -> None:
        self.forgetful = forgetful
        self.errors: list[OSError] = []
        super().__init__(("127.0.0.1", 0), ProxyHandler)


class ProxyHandler(socketserver.BaseRequestHandler):
    server: Proxy  # pyright: ignore[reportIncompatibleVariableOverride]

    def handle(self) -> None:
        redirect = read_redirect(self.request)
        if redirect is None:
            return  # never an open proxy
        destination = context.decode(redirect.context, "wfpsampler").address
        try:
            if self.server.forgetful:
                upstream = socket.create_connection(destination[:2], TIMEOUT)
            else:
                upstream = create_connection(redirect, destination, TIMEOUT)
        except OSError as error:
            self.server.errors.append(error)
            return
        with upstream:
            reply = threading.Thread(target=copy, args=(upstream, self.request), daemon=True)
            reply.start()
            copy(self.request, upstream)
            reply.join()


def copy(source: socket.socket, target: socket.socket) -> None:
    """Copy until the source ends, then pass the end on."""
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[tuple[str, int]]:
    """Run a server in a thread; yields its address."""
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server.server_address  # type: ignore[misc]
        finally:
            server.shutdown()
            thread.join()


def original_destination(connection: Connection) -> bytes:
    """The context that both vendors' drivers leave: WFPSampler's layout (W70)."""
    return context.encode(context.OriginalDestination(connection.destination), "wfpsampler")


def fetch() -> bytes:
    """The app: one HTTP request to the destination, and the body that came."""
    app = http.client.HTTPConnection(*DESTINATION, timeout=TIMEOUT)
    try:
        app.request("GET", "/")
        return app.getresponse().read()
    finally:
        app.close()


def act_one(connections: int, advance: Callable[[], None]) -> dict[str, Any]:
    """Both proxies set the records: the flow passes each of them once and reaches the origin."""
    origin = Origin()
    failures: list[str] = []

    def one_connection(_: int) -> None:
        try:
            if fetch() != origin.body:
                failures.append("the app received other bytes than the origin sent")
        except (OSError, http.client.HTTPException) as error:
            failures.append(f"{type(error).__name__}: {error}")
        advance()

    with (
        Engine() as engine,
        serving(origin) as origin_address,
        serving(Proxy()) as acme,
        serving(Proxy()) as globex,
    ):
        engine.route(DESTINATION, origin_address)
        for name, proxy in (("acme", acme), ("globex", globex)):
            engine.add_driver(name, proxy=proxy, match=DESTINATION, context=original_destination)
        started = time.perf_counter()
        with ThreadPoolExecutor(CONCURRENCY) as pool:
            list(pool.map(one_connection, range(connections)))
        seconds = time.perf_counter() - started
        hops = describe(engine) if connections == 1 else []
    return {
        "connections": connections,
        "failures": failures,
        "bytes_each": BODY_SIZE,
        "seconds": round(seconds, 3),
        "hops": hops,
    }


def act_two() -> dict[str, Any]:
    """A proxy forgets SET: its own driver redirects it for ever, until the engine ends it."""
    proxy = Proxy(forgetful=True)
    with Engine() as engine, serving(proxy) as acme:
        engine.add_driver("acme", proxy=acme, match=DESTINATION, context=original_destination)
        try:
            fetch()
            app = "the app received an answer"
        except (OSError, http.client.HTTPException) as error:
            app = f"{type(error).__name__}: {error}"
        hops = describe(engine)
    return {"looped": bool(proxy.errors), "error": str(*proxy.errors), "app": app, "hops": hops}


def describe(engine: Engine) -> list[dict[str, Any]]:
    """The engine's trace, as one table row for each connect."""
    names = {driver.proxy: f"{driver.name}'s proxy" for driver in engine.drivers}
    hops: list[dict[str, Any]] = []
    for event in engine.trace:
        if isinstance(event, Connected):
            hops.append(
                {
                    "hop": len(hops) + 1,
                    "who": connecting(event, engine.drivers),
                    "target": names.get(event.target or DESTINATION, "the origin"),
                    "verdicts": [
                        {"driver": v.driver, "sees": v.state.value, "does": v.action.value}
                        for v in event.verdicts
                    ],
                    "records": event.records_size,
                    "context": event.context_size,
                    "set": 0,
                    "error": event.error,
                }
            )
        elif isinstance(event, RecordsSet) and event.code == 0:
            hops[-1]["set"] = event.size
        else:
            assert isinstance(event, Queried | RecordsSet)
    return hops


def connecting(event: Connected, drivers: list[Driver]) -> str:
    """Who makes this connect: the owner of the newest record, or the app if there are none."""
    for verdict in event.verdicts:
        if verdict.state.name == "REDIRECTED_BY_SELF":
            return f"{verdict.driver}'s proxy"
    return "the app" if event.hop == 1 else f"{drivers[0].name}'s proxy"


def print_hops(hops: list[dict[str, Any]], most: int = 6) -> None:
    print("  hop  who connects    driver  sees                           does")
    print("  ---  --------------  ------  -----------------------------  -----------")
    shown = hops if len(hops) <= most else [*hops[: most // 2], None, hops[-1]]
    for hop in shown:
        if hop is None:
            print(f"  ...  and so on, {len(hops) - most // 2 - 1} times more")
            continue
        number, who = f"{hop['hop']:>3}", hop["who"]
        for verdict in hop["verdicts"]:
            row = f"{verdict['driver']:<6}  {verdict['sees']:<29}  {verdict['does']}"
            print(f"  {number:>3}  {who:<14}  {row}")
            number = who = ""
        if hop["error"]:
            outcome = "ended by the engine"
        elif hop["records"]:
            set_text = f"sets {hop['set']} bytes" if hop["set"] else "sets nothing"
            outcome = (
                f"to {hop['target']}: records {hop['records']} bytes,"
                f" context {hop['context']} bytes; it {set_text}"
            )
        else:
            outcome = f"to {hop['target']}"
        print(f"       -> {outcome}")


@contextlib.contextmanager
def progress(total: int, wanted: bool) -> Iterator[Callable[[], None]]:
    """A progress bar where rich is installed and somebody looks; else nothing."""
    if not wanted or importlib.util.find_spec("rich") is None:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("connections", total=total)
        yield lambda: bar.advance(task)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Act one: an app's connection passes two vendors' proxies and reaches the origin. "
        "Act two: a proxy forgets to set the records and loops, until the simulated engine ends it."
        " Exit code 0: every byte was right, and act two looped as it must."
    )
    parser.add_argument(
        "--connections",
        type=connection_count,
        default=1,
        metavar="N",
        help="repeat act one N times, up to 32 at once (default: 1)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def connection_count(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if not 1 <= number <= 1_000_000:
        raise argparse.ArgumentTypeError(f"must be a number from 1 to 1000000, not {text!r}")
    return number


def run(options: argparse.Namespace) -> int:
    connections = options.connections
    with progress(connections, wanted=connections > 1 and not options.json) as advance:
        one = act_one(connections, advance)
    two = act_two()
    good = not one["failures"] and two["looped"]
    if options.json:
        print(json.dumps({"act_one": one, "act_two": two, "good": good}, indent=2))
        return 0 if good else 1

    print(f"Act one: an app goes to {DESTINATION[0]}, past the proxies of two vendors.\n")
    if connections == 1:
        print_hops(one["hops"])
        if not one["failures"]:
            print(f"\n  The app received {BODY_SIZE:,} bytes, exactly those of the origin.")
    else:
        rate = connections / one["seconds"]
        print(
            f"  {connections:,} connections of {BODY_SIZE:,} bytes in {one['seconds']:.1f} s:"
            f" {rate:,.0f} a second, {len(one['failures'])} failures"
        )
    for failure in one["failures"][:10]:
        print(f"  FAILED: {failure}")

    print("\nAct two: acme's proxy forgets to set the redirect records.\n")
    print_hops(two["hops"])
    if two["looped"]:
        print("\n  Its last connect failed, as it must:")
        width = min(shutil.get_terminal_size().columns, 100)
        print(textwrap.fill(two["error"], width, initial_indent="  ", subsequent_indent="  "))
    else:
        print(f"\n  FAILED: it did not loop; {two['app']}")
    return 0 if good else 1
