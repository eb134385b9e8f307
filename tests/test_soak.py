"""Hours in minutes: many connections through two proxies, and the relay under load.

    WFPIOCTL_SOAK=1000000 python -m pytest -m slow tests/test_soak.py

Nothing is lost, and memory, descriptors and the engine's tables stay flat.
"""

import contextlib
import gc
import os
import random
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable

import pytest
from relay_support import redirect_to, relaying
from support import ORIGINAL, TIMEOUT, accept, address_of, listen, reset, running

import wfpioctl
from wfpioctl.simulator import Engine

CONNECTIONS = int(os.environ.get("WFPIOCTL_SOAK", "20000"))
SECONDS = float(os.environ.get("WFPIOCTL_SOAK_SECONDS", "30"))

MIB = 1 << 20

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(4 * 3600),
    pytest.mark.skipif(sys.platform != "linux", reason="counts what /proc shows"),
]


def resident() -> int:
    """This process's resident memory, in bytes."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class Flat:
    """What is measured after a warm-up must not have grown at the end."""

    def __init__(self) -> None:
        gc.collect()
        self.memory, self.descriptors = resident(), descriptors()
        self.threads = threading.active_count()
        self.started = time.monotonic()

    def check(self, what: str) -> None:
        gc.collect()
        grown = resident() - self.memory
        print(
            f"\n{what} in {time.monotonic() - self.started:.0f} s; memory {self.memory / MIB:.1f}"
            f" {grown / MIB:+.1f} MiB, descriptors {self.descriptors}"
            f" {descriptors() - self.descriptors:+d}"
        )
        assert grown < 8 * MIB
        assert descriptors() <= self.descriptors
        assert threading.active_count() <= self.threads


def test_connections_through_two_proxies() -> None:
    """app, driver A, proxy A, driver B, proxy B, origin; 256 random bytes each way."""
    pattern = random.Random(1).randbytes(1 << 16)
    with listen() as a, listen() as b, listen() as origin, Engine(trace_limit=100) as engine:
        engine.add_driver("A", proxy=address_of(a), match=ORIGINAL, context=b"for A")
        engine.add_driver("B", proxy=address_of(b), match=ORIGINAL, context=b"for B")
        engine.route(ORIGINAL, address_of(origin))

        def hop(listener: socket.socket, context: bytes) -> tuple[socket.socket, socket.socket]:
            accepted = accept(listener)
            redirect = wfpioctl.read_redirect(accepted)
            assert redirect is not None
            assert redirect.context == context
            return accepted, wfpioctl.create_connection(redirect, ORIGINAL, TIMEOUT)

        def connection(number: int) -> None:
            app = socket.create_connection(ORIGINAL, TIMEOUT)
            accepted_a, outbound_a = hop(a, b"for A")
            accepted_b, outbound_b = hop(b, b"for B")
            server = accept(origin)
            assert wfpioctl.read_redirect(server) is None
            data = pattern[number & 0x7FFF :][:256]
            way = [(app, accepted_a), (outbound_a, accepted_b), (outbound_b, server)]
            for source, sink in [*way, *((sink, source) for source, sink in reversed(way))]:
                source.sendall(data)
                assert sink.recv(len(data), socket.MSG_WAITALL) == data
            for sock in (app, accepted_a, outbound_a, accepted_b, outbound_b, server):
                reset(sock)  # no port waits in TIME_WAIT

        for number in range(min(5000, CONNECTIONS)):
            connection(number)
        flat = Flat()
        for number in range(CONNECTIONS):
            connection(number)
        flat.check(f"{CONNECTIONS} connections through two proxies")
        assert engine.flow_count < 1000


class Clients:
    """Clients of the relay, each of a kind that chance chooses; what comes back must be whole."""

    def __init__(self) -> None:
        self.whole = self.cut = 0
        self.ended = threading.Event()
        self.lock = threading.Lock()

    def run(self, seed: int) -> None:
        rng = random.Random(seed)
        kinds: list[Callable[[], None]] = [
            lambda: self.send_and_receive(rng, 16_384, 0),
            lambda: self.send_and_receive(rng, 16_384, 0.001),  # a slow reader
            lambda: self.send_and_receive(rng, 1, 0),  # byte by byte
            lambda: self.send_and_reset(rng),
        ]
        while not self.ended.is_set():
            rng.choice(kinds)()

    def send_and_receive(self, rng: random.Random, chunk: int, pause: float) -> None:
        data = rng.randbytes(rng.randrange(1, 40 * chunk))
        with socket.create_connection(ORIGINAL, TIMEOUT) as app:

            def send() -> None:
                for at in range(0, len(data), chunk):
                    app.sendall(data[at : at + chunk])
                app.shutdown(socket.SHUT_WR)

            received = bytearray()
            with running(send):
                while part := app.recv(chunk):
                    received += part
                    time.sleep(pause)
        assert received == data
        with self.lock:
            self.whole += 1

    def send_and_reset(self, rng: random.Random) -> None:
        app = socket.create_connection(ORIGINAL, TIMEOUT)
        app.sendall(rng.randbytes(rng.randrange(1, 10_000)))
        reset(app)
        with self.lock:
            self.cut += 1


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        sock: socket.socket = self.request
        with contextlib.suppress(ConnectionError):
            while data := sock.recv(1 << 16):
                sock.sendall(data)


class Origin(socketserver.ThreadingTCPServer):
    """Keeps nothing of a connection that is over, so that what grows is not the test."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128


def test_the_relay_under_load() -> None:
    """Clients that read slowly, that reset, that send byte by byte; what arrives is whole."""
    clients = Clients()
    with (
        Engine(trace_limit=100) as engine,
        Origin(("127.0.0.1", 0), Echo) as origin,
        relaying() as relay,
    ):
        threading.Thread(target=origin.serve_forever, daemon=True).start()
        redirect_to(relay, engine, address_of(origin.socket))
        with running(*[lambda seed=seed: clients.run(seed) for seed in range(4)]) as threads:
            try:
                time.sleep(SECONDS / 3)
                memory, open_before = resident(), descriptors()
                deadline = time.monotonic() + SECONDS * 2 / 3
                while time.monotonic() < deadline and all(each.is_alive() for each in threads):
                    time.sleep(0.1)
            finally:
                clients.ended.set()
        total = relay.settled()
        origin.shutdown()
        grown = resident() - memory
        print(
            f"\n{clients.whole} whole, {clients.cut} reset in {SECONDS:.0f} s; memory"
            f" {memory / MIB:.1f} {grown / MIB:+.1f} MiB; relay: {total.finished} finished,"
            f" {total.failed} failed, {dict(total.errors)}"
        )
        assert grown < 16 * MIB
        assert descriptors() <= open_before
        assert clients.whole > 0
        assert total.finished >= clients.whole
