"""Counts the machine instructions of a call with valgrind's callgrind: the same number every time.

One process runs each workload twice, with a different number of calls; callgrind writes the counts
apart.  The difference of the two is what the calls cost, without anything else.  The budget is in
floors (instructions of the minimal C extension in the same run), so that it holds for every build
of the interpreter.
"""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .binding import scripted
from .rows import Unavailable

BUDGET = Path(__file__).with_name("budget.json")
CALLS = 2_000, 6_000

FLOOR = "floor extension, a socket object"
WORKLOADS: Mapping[str, Callable[[dict[str, Any]], tuple[Callable[..., Any], tuple[Any, ...]]]] = {
    FLOOR: lambda n: (n["floor"], (n["accepted"],)),
    "floor extension, an int handle": lambda n: (n["floor"], (n["handle"],)),
    "query_redirect_records, a socket object": lambda n: (n["query"], (n["accepted"],)),
    "query_redirect_records, an int handle": lambda n: (n["query"], (n["handle"],)),
    "set_redirect_records": lambda n: (n["set_records"], (n["outbound"], b"r" * 128)),
    "floor extension, transfer": lambda n: (n["floor_transfer"], (n["accepted"], n["outbound"])),
    "transfer_redirect_records": lambda n: (n["transfer"], (n["accepted"], n["outbound"])),
    "read_redirect": lambda n: (n["read_redirect"], (n["accepted"],)),
}


def count() -> dict[str, int]:
    """Return the instructions of one call for each workload."""
    if shutil.which("valgrind") is None:
        raise Unavailable("valgrind is not installed")
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(
            [
                *("valgrind", "--tool=callgrind", "--dump-before=benchmark_mark"),
                f"--callgrind-out-file={scratch}/out",
                *(sys.executable, "-m", "benchmarks.instructions"),
            ],
            env=os.environ | {"PYTHONHASHSEED": "0", "PYTHONMALLOC": "pymalloc"},
            cwd=Path(__file__).parent.parent,
            check=True,
            capture_output=True,
            timeout=600,
        )
        # The first dump ends before the first loop; what follows the last mark is not a loop.
        loops = [_total(Path(f"{scratch}/out.{i + 2}")) for i in range(2 * len(WORKLOADS))]
    few, many = CALLS
    return {
        name: round((loops[2 * i + 1] - loops[2 * i]) / (many - few))
        for i, name in enumerate(WORKLOADS)
    }


def _total(dump: Path) -> int:
    found = re.search(r"^(?:totals|summary): (\d+)", dump.read_text(), re.MULTILINE)
    if found is None:
        raise ValueError(f"callgrind's {dump.name} has no total")
    return int(found[1])


def in_floors(counts: Mapping[str, int]) -> dict[str, float]:
    return {name: round(count / counts[FLOOR], 3) for name, count in counts.items()}


def compare() -> list[str]:
    """Print what each call costs beside its budget; return the names of those that exceed it."""
    limits: dict[str, float] = json.loads(BUDGET.read_text())["floors"]
    counts = count()
    exceeded = []
    for name, floors in in_floors(counts).items():
        line = f"{counts[name]:6,} instructions = {floors:.3f} floors: {name}"
        if name in limits:
            line += f" (budget: {limits[name]:.2f})"
            if floors > limits[name]:
                exceeded.append(name)
                line += "  EXCEEDED"
        print(line)
    if exceeded:
        print(f"A call became dearer.  If that is meant, say so in {BUDGET.name}.")
    return exceeded


def child() -> None:
    """Run every workload; callgrind writes a dump at each mark."""
    with scripted() as names:
        workloads = [choose(names) for choose in WORKLOADS.values()]
        for function, arguments in workloads:
            run(function, arguments, 1_000)  # warm up: caches, adaptive bytecode, free lists
        mark = names["mark"]
        for function, arguments in workloads:
            for calls in CALLS:
                mark()
                run(function, arguments, calls)
        mark()


def run(function: Callable[..., Any], arguments: tuple[Any, ...], calls: int) -> None:
    if len(arguments) == 1:
        [only] = arguments
        for _ in itertools.repeat(None, calls):
            function(only)
    else:
        first, second = arguments
        for _ in itertools.repeat(None, calls):
            function(first, second)


if __name__ == "__main__":
    child()
