"""``python -m wfpioctl relay``, driven by real programs, stopped by real signals."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from relay_support import BODY, echo, http, program, serving
from support import TIMEOUT, read_all, running

linux_program = pytest.mark.linux_program


class Command:
    """The relay as a process of its own; ``log`` grows as it speaks.

    ``files`` are arguments of ulimit.
    """

    def __init__(self, *options: str, cwd: Path | None = None, files: str = "") -> None:
        self.log: list[str] = []
        self._listening = threading.Event()
        command = [sys.executable, "-m", "wfpioctl", "relay", "--listen", "127.0.0.1:0", *options]
        if files:
            command = ["sh", "-c", f'ulimit {files} && exec "$@"', "sh", *command]
        self.process = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            cwd=cwd,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._listening.wait(TIMEOUT), self.log

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                self.log.append(line)
                if match := re.search(r"listening on ([0-9.]+):(\d+)", line):
                    self.address = match[1], int(match[2])
                    self._listening.set()

    def stop(self) -> int:
        """Interrupt it; returns its exit code when it has said everything."""
        self.interrupt()
        code = self.process.wait(TIMEOUT)
        self._reader.join(TIMEOUT)
        return code

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def ask(self, data: bytes) -> bytes:
        with socket.create_connection(self.address, TIMEOUT) as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            return read_all(sock)


@contextlib.contextmanager
def command(*options: str, cwd: Path | None = None, files: str = "") -> Iterator[Command]:
    relay = Command(*options, cwd=cwd, files=files)
    try:
        yield relay
    finally:
        if relay.process.poll() is None:
            relay.process.kill()
            relay.process.wait()
        relay._reader.join(TIMEOUT)


def text(address: tuple[str, int]) -> str:
    return f"{address[0]}:{address[1]}"


@linux_program
def test_curl_is_the_redirected_app() -> None:
    curl = program("curl")
    with serving(http) as origin, command("--simulate", text(origin)) as relay:
        url = f"http://{text(relay.address)}/"
        done = subprocess.run(
            [curl, "--silent", "--fail", url, url], capture_output=True, timeout=TIMEOUT, check=True
        )
        assert done.stdout == BODY * 2
        assert relay.stop() == 0
    assert "outcome=finished client=127.0.0.1:" in "".join(relay.log)
    assert f"destination={text(origin)}" in "".join(relay.log)
    assert "stopped: 1 accepted, 1 finished, 0 failed, 0 refused" in relay.log[-1]


@linux_program
@pytest.mark.parametrize(
    "headers", [[], ["-H", "Connection: close"]], ids=["keep-alive", "new-connection-each"]
)
def test_wrk_meets_no_error(headers: list[str]) -> None:
    wrk = program("wrk")

    def once_or_more(sock: socket.socket) -> None:
        if not headers:
            http(sock)
            return
        with sock.makefile("rb") as lines:
            while lines.readline().strip():
                pass
        sock.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello")

    with serving(once_or_more) as origin, command("--simulate", text(origin)) as relay:
        done = subprocess.run(
            [wrk, "-t1", "-c16", "-d1", *headers, f"http://{text(relay.address)}/"],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=True,
        )
        requests = re.search(r"(\d+) requests in", done.stdout)
        assert requests is not None
        assert int(requests[1]) > 16
        assert "Non-2xx" not in done.stdout
        assert "Socket errors" not in done.stdout
        relay.stop()


def test_without_simulate_or_driver_nothing_passes() -> None:
    with command() as relay:
        with contextlib.suppress(ConnectionError):
            assert relay.ask(b"x") == b""
        if sys.platform != "win32":
            assert relay.stop() == 0
            assert "outcome=refused" in "".join(relay.log)


def test_to_and_direct_and_json() -> None:
    options = "--direct", "--log", "json", "--to"
    with serving(echo) as origin, command(*options, text(origin)) as relay:
        assert relay.ask(b"hello") == b"hello"
        if sys.platform == "win32":
            return
        relay.stop()
    lines = [json.loads(line) for line in relay.log]
    [ended] = [line for line in lines if "outcome" in line]
    assert ended["outcome"] == "finished"
    assert ended["destination"] == text(origin)
    assert (ended["up"], ended["down"]) == (5, 5)


@linux_program
def test_a_policy_of_the_current_folder(tmp_path: Path) -> None:
    with serving(echo) as origin:
        (tmp_path / "house_rules.py").write_text(
            "from wfpioctl.relay import Decision\n"
            "def block(flow): return Decision.BLOCK\n"
            f"def rewrite(flow): return {origin!r}\n"
        )
        where = "--simulate", "127.0.0.1:9", "--policy"
        with command(*where, "house_rules:rewrite", cwd=tmp_path) as relay:
            assert relay.ask(b"hello") == b"hello"
            assert relay.stop() == 0
        with command(*where, "house_rules:block", cwd=tmp_path) as relay:
            with contextlib.suppress(ConnectionError):
                assert relay.ask(b"hello") == b""
            assert relay.stop() == 0
        assert "outcome=refused" in "".join(relay.log)
        assert "reason=blocked" in "".join(relay.log)


@linux_program
def test_a_policy_that_fails_is_told_in_json(tmp_path: Path) -> None:
    (tmp_path / "house_rules.py").write_text("def fail(flow): return 1 // 0\n")
    where = "--simulate", "127.0.0.1:9", "--log", "json", "--policy", "house_rules:fail"
    with command(*where, cwd=tmp_path) as relay:
        with contextlib.suppress(ConnectionError):
            assert relay.ask(b"hello") == b""
        assert relay.stop() == 0
    [told] = [line for line in map(json.loads, relay.log) if "exception" in line]
    assert told["message"] == "the policy failed; the connection is blocked"
    assert told["exception"].startswith("Traceback")
    assert told["exception"].endswith("ZeroDivisionError: integer division or modulo by zero")


@linux_program
def test_uvloop_is_what_it_runs_on_or_what_it_needs(tmp_path: Path) -> None:
    uvloop = tmp_path / "uvloop.py"
    uvloop.write_text(
        "import asyncio, sys\n"
        "def new_event_loop():\n"
        "    print('a new loop', file=sys.stderr)\n"
        "    return asyncio.new_event_loop()\n"
    )
    with command("--uvloop", cwd=tmp_path) as relay:
        assert relay.stop() == 0
        assert relay.log[0] == "a new loop\n"
    uvloop.write_text("import no_such_module\n")
    done = run("--uvloop", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "wfpioctl relay: --uvloop needs uvloop, which is not installed\n"


@linux_program
def test_the_soft_limit_of_files_is_raised_for_the_connections() -> None:
    with command("--max-connections", "100", files="-S -n 64") as relay:
        limits = Path(f"/proc/{relay.process.pid}/limits").read_text()
        found = re.search(r"Max open files +(\d+)", limits)
        assert found is not None
        assert int(found[1]) == 2 * 100 + 100
        assert not any("files" in line for line in relay.log)
        assert relay.stop() == 0


@linux_program
def test_a_hard_limit_of_files_that_is_too_low_is_warned_of() -> None:
    with command("--max-connections", "100", files="-n 64") as relay:
        assert relay.stop() == 0
    assert "WARNING only 64 files may be open, 300 are needed" in relay.log[0]


@linux_program
def test_interrupted_once_it_drains_twice_it_stops() -> None:
    with (
        serving(echo) as origin,
        command("--simulate", text(origin)) as relay,
        socket.create_connection(relay.address, TIMEOUT) as sock,
    ):
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
        relay.interrupt()
        while not any("draining 1 connections" in line for line in relay.log):
            assert relay.process.poll() is None
        sock.sendall(b"y")
        assert sock.recv(1) == b"y"
        assert relay.stop() == 1
        with pytest.raises(ConnectionError):
            read_all(sock)


@linux_program
def test_the_drain_is_bounded() -> None:
    with (
        serving(echo) as origin,
        command("--drain-timeout", "0.1", "--simulate", text(origin)) as relay,
        socket.create_connection(relay.address, TIMEOUT) as sock,
    ):
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
        assert relay.stop() == 1


@linux_program
def test_a_live_table_on_a_terminal(tmp_path: Path) -> None:
    pytest.importorskip("rich")
    import pty

    def go(address: tuple[str, int]) -> None:
        with (
            contextlib.suppress(ConnectionError),
            socket.create_connection(address, TIMEOUT) as sock,
        ):
            sock.sendall(b"x" * 54_321)
            sock.shutdown(socket.SHUT_WR)
            read_all(sock)

    (tmp_path / "house_rules.py").write_text(
        "from wfpioctl.relay import Decision\n"
        "answers = iter([Decision.PERMIT, Decision.BLOCK, ('127.0.0.1', 1)])\n"
        "def decide(flow): return next(answers)\n"
    )
    ours, theirs = pty.openpty()
    with serving(echo) as origin, subprocess.Popen(
        [sys.executable, "-m", "wfpioctl", "relay", "--listen", "127.0.0.1:0",
         "--simulate", text(origin), "--policy", "house_rules:decide"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100", "NO_COLOR": "1"},
    ) as process:  # fmt: skip
        os.close(theirs)
        screen = ""
        while not (match := re.search(r"relay on 127.0.0.1:(\d+)", screen)):
            screen += os.read(ours, 1 << 16).decode()
        for _ in range(3):
            go(("127.0.0.1", int(match[1])))
        for row, total in (
            ("bytes down", "54,321"),
            ("refused: blocked", "1"),
            ("upstream: ConnectionRefusedError", "1"),
        ):
            while not re.search(rf"{row}\s+\S+\s+{total}", screen):
                screen += os.read(ours, 1 << 16).decode()
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # the terminal's end
            while os.read(ours, 1 << 16):
                pass
        assert process.wait(TIMEOUT) == 0
    os.close(ours)


def run(*options: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wfpioctl", "relay", *options],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=TIMEOUT,
        check=False,
        cwd=cwd,
    )


def test_an_address_in_use_is_said_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run("--listen", text(taken.getsockname()))
    assert done.returncode == 1
    assert "cannot listen on 127.0.0.1:" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "options",
    [
        ("--listen", "nowhere"),
        ("--listen", "127.0.0.1:99999"),
        ("--to", "[fe80::1%no-such-interface]:80"),
        ("--layout", "unheard-of"),
        ("--policy", "no_such_module:function"),
        ("--policy", "json:no_such_function"),
        ("--policy", "json"),
        ("--policy", "json:__name__"),
        ("--max-connections", "0"),
        ("--idle-timeout", "-1"),
        ("--connect-timeout", "soon"),
    ],
    ids="=".join,
)
def test_wrong_usage_is_exit_code_2(options: tuple[str, str]) -> None:
    done = run(*options)
    assert done.returncode == 2
    assert options[0] in done.stderr
    assert "Traceback" not in done.stderr


def test_udp_on_the_same_address() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as origin,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as app,
    ):
        for sock in (origin, app):
            sock.settimeout(TIMEOUT)
            sock.bind(("127.0.0.1", 0))
        with command("--udp", "--direct", "--to", text(origin.getsockname())) as relay:
            app.sendto(b"question", relay.address)
            data, sender = origin.recvfrom(100)
            assert data == b"question"
            origin.sendto(b"answer", sender)
            assert app.recvfrom(100) == (b"answer", relay.address)
            if sys.platform != "win32":
                assert relay.stop() == 0
                assert "up=8 down=6" in "".join(relay.log)


@pytest.mark.linux_program
@pytest.mark.slow
def test_five_thousand_connections_in_one_process(capsys: pytest.CaptureFixture[str]) -> None:
    import resource

    count = 5000
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < 2 * count + 100:
        pytest.skip(f"only {most} files may be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    def resident(relay: Command) -> int:
        pages = Path(f"/proc/{relay.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    with echoing() as origin, command("--log", "json", "--simulate", text(origin)) as relay:
        before = resident(relay)
        with contextlib.ExitStack() as stack:
            clients = []
            for number in range(count):  # from several addresses: each has 28,000 ports
                source = f"127.0.0.{2 + number % 8}", 0
                sock = socket.create_connection(relay.address, TIMEOUT, source_address=source)
                clients.append(stack.enter_context(sock))
            for number, sock in enumerate(clients):
                sock.sendall(number.to_bytes(4, "big"))
            for number, sock in enumerate(clients):
                assert sock.recv(4) == number.to_bytes(4, "big")
            each = (resident(relay) - before) / count
        assert relay.stop() == 0
    assert f"stopped: {count} accepted, {count} finished, 0 failed, 0 refused" in relay.log[-1]
    with capsys.disabled():
        print(f"\n{count} connections: {each:,.0f} bytes of memory for each")
    assert each < 20_000


@contextlib.contextmanager
def echoing() -> Iterator[tuple[str, int]]:
    """An origin for thousands of connections, in one thread."""
    import asyncio

    async def echo_back(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            while data := await reader.read(100):
                writer.write(data)

    async def main() -> None:
        server = await asyncio.start_server(echo_back, "127.0.0.1", 0, backlog=4096)
        async with server:
            address.append(server.sockets[0].getsockname())
            started.set()
            await stop.wait()
            while len(asyncio.all_tasks()) > 1:  # the connections' ends
                await asyncio.sleep(0.01)

    address: list[tuple[str, int]] = []
    started, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()
    with contextlib.closing(loop), running(lambda: loop.run_until_complete(main())):
        assert started.wait(TIMEOUT)
        yield address[0]
        loop.call_soon_threadsafe(stop.set)
