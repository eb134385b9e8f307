"""Every example, with the real clients that it is for: curl, wrk, a browser's way to keep alive."""

import asyncio
import contextlib
import http.client
import importlib
import os
import random
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from relay_support import BODY, blob, program, serving
from relay_support import http as http_origin
from support import ORIGINAL, TIMEOUT, listen, running

from wfpioctl.simulator import Connected, Engine, RecordsSet

EXAMPLES = Path(__file__).parent.parent / "examples"

Address = tuple[str, int]

every_server = pytest.mark.parametrize(
    "server",
    ["threaded_proxy", "socketserver_proxy", "streams_proxy", "aiohttp_proxy", "httpx_proxy"],
)
NEEDS = {"aiohttp_proxy": ["aiohttp"], "httpx_proxy": ["httpx", "httpcore"]}


@pytest.fixture(autouse=True)
def examples_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)


@contextlib.contextmanager
def threads(serve: Callable[[socket.socket], object]) -> Iterator[Address]:
    """Run an example that accepts in a thread of its own."""

    def until_closed() -> None:
        with contextlib.suppress(OSError):
            serve(listener)

    with listen(backlog=512) as listener:
        listener.settimeout(None)
        with running(until_closed):
            yield listener.getsockname()
            if sys.platform != "win32":
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()


@contextlib.contextmanager
def coroutines(serve: Callable[[socket.socket], Any]) -> Iterator[Address]:
    """Run an example that is a coroutine, in a loop of its own, until it is cancelled."""
    loop = asyncio.new_event_loop()

    async def until_cancelled() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await task
        for _ in range(10):  # what was accepted in the last turn has its task a few turns later
            await asyncio.sleep(0)
            while others := asyncio.all_tasks() - {asyncio.current_task()}:
                for each in others:
                    each.cancel()
                await asyncio.gather(*others, return_exceptions=True)
        await loop.shutdown_default_executor()

    with contextlib.closing(loop), listen(backlog=512) as listener:
        listener.setblocking(False)
        task = loop.create_task(serve(listener))
        with running(lambda: loop.run_until_complete(until_cancelled())):
            yield listener.getsockname()
            loop.call_soon_threadsafe(task.cancel)


@contextlib.contextmanager
def servers(server: Any) -> Iterator[Address]:
    """Run an example that is a socketserver."""
    server.daemon_threads = False  # closing it waits for them
    with server, running(lambda: server.serve_forever(0.01)):
        yield server.server_address
        server.shutdown()


def start(name: str) -> AbstractContextManager[Address]:
    for package in NEEDS.get(name, ()):
        pytest.importorskip(package)
    module = importlib.import_module(name)
    if hasattr(module, "Proxy"):
        return servers(module.Proxy(("127.0.0.1", 0), module.Handler))
    if asyncio.iscoroutinefunction(module.serve):
        return coroutines(module.serve)
    return threads(module.serve)


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine(trace_limit=200_000) as engine:
        yield engine


@pytest.fixture
def proxy(engine: Engine, server: str) -> Iterator[Address]:
    """An example; what connects to it counts as redirected from ORIGINAL, an HTTP server."""
    with serving(http_origin) as origin, start(server) as address:
        redirect(engine, address, origin)
        yield address


def redirect(engine: Engine, proxy: Address, origin: Address) -> None:
    engine.route(ORIGINAL, origin)
    engine.add_driver("A", proxy=proxy, match=ORIGINAL, context=blob())
    engine.redirect_listener(proxy[1], original=ORIGINAL)


def assert_set(engine: Engine) -> None:
    """Whatever reached the origin had the records set, so that no driver redirected it again."""
    codes = [event.code for event in engine.trace if isinstance(event, RecordsSet)]
    assert codes
    assert set(codes) == {0}


@pytest.mark.linux_program
@every_server
def test_curl(engine: Engine, proxy: Address) -> None:
    url = f"http://127.0.0.1:{proxy[1]}/"
    done = subprocess.run(
        [program("curl"), "--silent", "--fail", url, url],
        capture_output=True,
        timeout=TIMEOUT,
        check=True,
    )
    assert done.stdout == BODY * 2
    assert_set(engine)


@every_server
def test_a_browser_that_keeps_its_connections(engine: Engine, proxy: Address) -> None:
    tabs = [http.client.HTTPConnection(*ORIGINAL, timeout=TIMEOUT) for _ in range(3)]
    for _ in range(5):
        for tab in tabs:
            tab.request("GET", "/")
        for tab in tabs:
            assert tab.getresponse().read() == BODY
    for tab in tabs:
        tab.close()
    assert_set(engine)
    redirected = [event for event in engine.trace if isinstance(event, Connected) and event.flow_id]
    assert len(redirected) == len(tabs), "a connection was not kept, or was redirected again"


@pytest.mark.linux_program
@every_server
def test_wrk(engine: Engine, proxy: Address) -> None:
    done = subprocess.run(
        [program("wrk"), "-t1", "-c8", "-d1", f"http://127.0.0.1:{proxy[1]}/"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
    )
    requests = re.search(r"(\d+) requests in", done.stdout)
    assert requests is not None
    assert int(requests[1]) > 8
    assert "Non-2xx" not in done.stdout
    assert "Socket errors" not in done.stdout
    assert_set(engine)


@every_server
def test_W21_a_stranger_is_refused(engine: Engine, server: str) -> None:
    with start(server) as address, socket.create_connection(address, TIMEOUT) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\nHost: elsewhere\r\nConnection: close\r\n\r\n")
        answer = b""
        with contextlib.suppress(ConnectionError):
            while data := stranger.recv(1 << 16):
                answer += data
        assert answer == b"" or b" 403 " in answer.partition(b"\r\n")[0]


def test_W27_aiohttps_pools_are_keyed_on_the_records(engine: Engine) -> None:
    with serving(http_origin) as origin, start("aiohttp_proxy") as address:
        redirect(engine, address, origin)
        for _ in range(3):  # three connections of the app, each with records of its own
            app = http.client.HTTPConnection(*ORIGINAL, timeout=TIMEOUT)
            app.request("GET", "/")
            assert app.getresponse().read() == BODY
            app.close()
    flows = [event.flow_id for event in engine.trace if isinstance(event, RecordsSet)]
    assert len(set(flows)) == 3


# ---- TLS ----


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate that it signed itself, in one file."""
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    subprocess.run(
        [program("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt",
         "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=allowed.example",
         "-keyout", file, "-out", file.with_suffix(".crt")],
        check=True, capture_output=True, timeout=TIMEOUT,
    )  # fmt: skip
    file.write_bytes(file.read_bytes() + file.with_suffix(".crt").read_bytes())
    return file


@pytest.mark.linux_program
def test_the_tls_passthrough_knows_the_name(
    engine: Engine, certificate: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import sni_proxy

    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)

    def https(sock: socket.socket) -> None:
        with tls.wrap_socket(sock, server_side=True) as wrapped:
            http_origin(wrapped)

    def fetch(name: str) -> "subprocess.CompletedProcess[bytes]":
        where = "--resolve", f"{name}:{address[1]}:127.0.0.1", f"https://{name}:{address[1]}/"
        return subprocess.run(
            [program("curl"), "--silent", "--insecure", *where],
            capture_output=True,
            timeout=TIMEOUT,
            check=False,
        )

    def serve(listener: socket.socket) -> Any:
        return sni_proxy.serve(listener, {"forbidden.example"})

    with serving(https) as origin, coroutines(serve) as address:
        redirect(engine, address, origin)
        assert fetch("allowed.example").stdout == BODY
        assert fetch("forbidden.example").returncode != 0
    assert_set(engine)
    assert capsys.readouterr().out == (
        "server name: allowed.example\nserver name: forbidden.example\n"
    )


def test_a_hello_in_pieces() -> None:
    from sni_proxy import server_name

    outgoing = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(
        ssl.MemoryBIO(), outgoing, server_hostname="a.example"
    )
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    hello = outgoing.read()
    assert server_name(hello) == "a.example"
    assert {server_name(hello[:size]) for size in range(0, len(hello), 7)} == {None}
    with pytest.raises(ssl.SSLError):
        server_name(b"GET / HTTP/1.1\r\n\r\n")


# ---- other programs ----


def free_port() -> int:
    """A port that no outgoing connection is given by chance."""
    while True:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


@pytest.mark.linux_program
def test_mitmproxy(tmp_path: Path) -> None:
    pytest.importorskip("mitmproxy")
    port = free_port()
    with serving(http_origin) as origin:
        environment = os.environ | {
            "PYTHONPATH": str(Path(__file__).parent),
            "WFPIOCTL_TEST_PROXY_PORT": str(port),
            "WFPIOCTL_TEST_ORIGIN_PORT": str(origin[1]),
        }
        with subprocess.Popen(
            [sys.executable, "-c", "from mitmproxy.tools.main import mitmdump; mitmdump()",
             "--mode", "transparent", "--listen-host", "127.0.0.1", "--listen-port", str(port),
             "--set", f"confdir={tmp_path}", "-s", EXAMPLES / "mitmproxy_addon.py",
             "-s", Path(__file__).parent / "mitmproxy_engine.py"],
            env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
            stderr=subprocess.STDOUT,
        ) as mitmdump:  # fmt: skip
            said = ""
            assert mitmdump.stdout is not None
            while "listening at" not in said:
                line = mitmdump.stdout.readline()
                assert line, said
                said += line
            url = f"http://127.0.0.1:{port}/"
            done = subprocess.run(
                [program("curl"), "--silent", "--fail", url, url],
                capture_output=True,
                timeout=TIMEOUT,
                check=False,
            )
            mitmdump.send_signal(signal.SIGINT)
            said += mitmdump.communicate(timeout=TIMEOUT)[0]
        assert done.stdout == BODY * 2, said
        assert "codes of SET: [0]" in said


def test_three_vendors_on_three_loops(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("aiohttp")
    done = subprocess.run(
        [sys.executable, EXAMPLES / "vendor_chain.py"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
    )
    assert done.stdout.splitlines() == [
        "hello from the origin",
        "redirected by acme",
        "redirected by globex",
        "redirected by initech",
        "permitted by all, to the origin",
    ]
    assert done.stderr == ""


def test_the_suite_of_a_small_proxy() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", EXAMPLES],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "7 passed" in done.stdout


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short_and_says_how_it_runs(example: Path) -> None:
    source = example.read_text()
    assert len(source.splitlines()) <= 80
    assert source.startswith('"""')
    assert "``" in source.split('"""')[1]
    assert "_wfpioctl" not in source
