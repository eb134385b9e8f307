"""Run by a free-threaded interpreter: how much more two threads get done than one.  Prints JSON."""

import json
import socket
import sys
import threading
import time
from collections.abc import Callable

import wfpioctl
from wfpioctl import simulator

RECORDS = bytes(range(128))
CALLS = 200_000


def query(sock: socket.socket, outbound: socket.socket) -> None:
    function = wfpioctl.query_redirect_records
    for _ in range(CALLS):
        function(sock)


def transfer(sock: socket.socket, outbound: socket.socket) -> None:
    function = wfpioctl.transfer_redirect_records
    for _ in range(CALLS):
        function(sock, outbound)


def compute(sock: socket.socket, outbound: socket.socket) -> None:
    """No call at all: what the machine and the interpreter themselves give."""
    value = 0
    for i in range(2 * CALLS):
        value = (value * 31 + i) % 1_000_003


def seconds(work: Callable[[socket.socket, socket.socket], None], count: int) -> float:
    """Return the seconds that so many threads need, each for the whole work on its own sockets."""
    pairs = [(socket.socket(), socket.socket()) for _ in range(count)]
    barrier = threading.Barrier(count + 1)

    def run(pair: tuple[socket.socket, socket.socket]) -> None:
        barrier.wait()
        work(*pair)

    threads = [threading.Thread(target=run, args=(pair,)) for pair in pairs]
    for thread in threads:
        thread.start()
    barrier.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    taken = time.perf_counter() - start
    for pair in pairs:
        for sock in pair:
            sock.close()
    return taken


def main() -> None:
    works = {
        "query_redirect_records": query,
        "transfer_redirect_records": transfer,
        "no call, only computing": compute,
    }
    ratios: dict[str, list[float]] = {name: [] for name in works}
    with simulator.Scripted(RECORDS):
        for _ in range(int(sys.argv[1])):
            for name, work in works.items():
                alone, together = seconds(work, 1), seconds(work, 2)
                ratios[name].append(2 * alone / together)
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
