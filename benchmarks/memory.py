"""Whether memory stays flat."""

import os
import socket
from collections.abc import Iterator

import wfpioctl
from wfpioctl import simulator

from .rows import Finding, Row, Settings, Unavailable, at_most, finding


def memory(settings: Settings) -> Iterator[Finding]:
    """Resident memory over many calls of every kind, after a warm-up of a tenth of them."""
    calls = settings.pick(200_000, 10_000_000)
    grown = []
    query, transfer = wfpioctl.query_redirect_records, wfpioctl.transfer_redirect_records
    read, set_records = wfpioctl.read_redirect, wfpioctl.set_redirect_records
    with socket.socket() as a, socket.socket() as b, simulator.Scripted(b"r" * 128, b"c" * 256):
        for loops in calls // 40, calls // 4:
            before = resident()
            for _ in range(loops):
                set_records(b, query(a))
                transfer(a, b)
                read(a)
            grown.append(resident() - before)
    yield finding(f"grown over {calls:,} calls", [grown[-1] / 1024], "KiB", at_most(64))


def resident() -> int:
    """Return the bytes that this process has in memory."""
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        raise Unavailable("needs /proc") from None


ROWS = [Row("memory", memory)]
