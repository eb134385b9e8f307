"""Calls from several threads: while the provider blocks, beside a busy thread, without a GIL."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import wfpioctl
from wfpioctl import simulator

from .binding import RECORDS
from .build import cache
from .rows import Finding, Row, Settings, Unavailable, at_least, finding

ROOT = Path(__file__).parent.parent

THREADS = 8
BLOCKED = 0.001  # seconds


def blocked(settings: Settings) -> Iterator[Finding]:
    """8 threads against one, on a provider that blocks as a kernel may."""
    calls = settings.pick(50, 200)
    ratios = []
    with simulator.Scripted(steps=[simulator.Step(data=RECORDS, delay=BLOCKED)]):
        for _ in range(settings.pick(5, 21)):
            alone, together = (run_threads(n, calls) for n in (1, THREADS))
            ratios.append(THREADS * alone / together)
    yield finding(f"{THREADS} threads against one", ratios, "x", at_least(7.5))


def run_threads(count: int, calls: int) -> float:
    """Return the seconds in which each of so many threads makes so many calls."""

    def work() -> None:
        query = wfpioctl.query_redirect_records
        barrier.wait()
        for _ in range(calls):
            query(3)

    barrier = threading.Barrier(count + 1)
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    barrier.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start


def beside_a_busy_thread(settings: Settings) -> Iterator[Finding]:
    """One thread computes; another makes a connection's two calls, fused and apart."""
    for name, delay in ("answers at once", 0.0), ("takes 50 us", 50e-6):
        samples = latencies(settings.pick(2, 20), delay)
        for what, taken in samples.items():
            for percent, microseconds in percentiles(taken):
                yield finding(f"provider {name}: {what}, p{percent:g}", [microseconds], "us")


def latencies(seconds: float, delay: float) -> dict[str, list[float]]:
    """Return the microseconds that each connection's calls took, fused and apart in turns."""
    query, set_records = wfpioctl.query_redirect_records, wfpioctl.set_redirect_records
    transfer = wfpioctl.transfer_redirect_records
    fused: list[float] = []
    apart: list[float] = []
    done = False

    def compute() -> None:
        value = 0
        while not done:
            value = (value * 31 + 7) % 1_000_003

    step = simulator.Step(data=RECORDS, delay=delay)
    provider = simulator.Scripted(steps=[step]) if delay else simulator.Scripted(RECORDS)
    with provider, socket.socket() as accepted, socket.socket() as outbound:
        busy = threading.Thread(target=compute)
        busy.start()
        clock = time.perf_counter
        end = clock() + seconds
        while clock() < end:
            time.sleep(0.0001)  # a connection begins: the loop waits for it, with the GIL released
            start = clock()
            transfer(accepted, outbound)
            fused.append((clock() - start) * 1e6)
            time.sleep(0.0001)
            start = clock()
            set_records(outbound, query(accepted))
            apart.append((clock() - start) * 1e6)
        done = True
        busy.join()
    return {"transfer": fused, "query + set": apart}


def percentiles(samples: Sequence[float]) -> Iterator[tuple[float, float]]:
    ordered = sorted(samples)
    for percent in 50, 99, 99.9:
        yield percent, ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def without_gil(settings: Settings) -> Iterator[Finding]:
    """2 threads against one in a free-threaded interpreter that has this package."""
    if sys.platform == "win32":
        raise Unavailable("tools/freethreaded.py builds its interpreter on Debian")
    if (os.cpu_count() or 1) < 2:
        raise Unavailable("needs two processors")
    python = free_threaded_python()
    rounds = str(settings.pick(5, 31))
    command = [str(python), str(Path(__file__).with_name("scaling.py")), rounds]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, cwd=cache())
    samples: dict[str, list[float]] = json.loads(answer.stdout)
    for what, ratios in samples.items():
        goal = at_least(1.8) if what == "query_redirect_records" else None
        yield finding(f"{what}, 2 threads against one", ratios, "x", goal)


def free_threaded_python() -> Path:
    """Return the interpreter of an environment that has this very checkout's package."""
    builder = [sys.executable, str(ROOT / "tools" / "freethreaded.py")]
    built = subprocess.run(builder, capture_output=True, text=True, check=False)
    if built.returncode:
        raise Unavailable(built.stderr.strip())
    environment = cache() / "freethreaded-environment"
    python = environment / "bin" / "python"
    if not python.exists():
        run([built.stdout.strip(), "-m", "venv", environment])
        run([python, "-m", "pip", "install", "--quiet", "setuptools>=77"])
    with tempfile.TemporaryDirectory() as scratch:  # so that no build is left in the checkout
        copy = Path(scratch) / "wfpioctl"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "*.so", "build", "docs"))
        run([
            *(python, "-m", "pip", "install", "--quiet", "--force-reinstall"),
            *("--no-deps", "--no-build-isolation", copy),
        ])  # fmt: skip
    return python


def run(command: Sequence[str | Path]) -> None:
    # The version comes from git, and the copy has none.
    environment = os.environ | {"SETUPTOOLS_SCM_PRETEND_VERSION": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"{command[-1]}: {done.stderr.strip()[-300:]}")


ROWS = [
    Row(f"{THREADS} threads, the provider blocks for 1 ms", blocked),
    Row("beside a busy thread", beside_a_busy_thread),
    Row("free-threaded 3.13, 2 threads", without_gil),
]
