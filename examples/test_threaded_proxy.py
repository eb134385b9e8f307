"""How a proxy's author tests it: with pytest, and the fixture that comes with wfpioctl.

``python -m pytest examples`` runs it, on any system: no driver, no elevated process.
"""

import socket
import threading
from collections.abc import Iterator

import pytest
import threaded_proxy

from wfpioctl import context
from wfpioctl.simulator import Engine

DESTINATION = ("203.0.113.7", 443)  # where the app wants to go; there is no such host
CONTEXT = context.encode(context.OriginalDestination(DESTINATION), "wfpsampler")


@pytest.fixture(scope="module")
def proxy() -> tuple[str, int]:
    """The proxy under test, as it is."""
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=threaded_proxy.serve, args=(listener,), daemon=True).start()
    return listener.getsockname()


@pytest.fixture
def origin(wfp_engine: Engine) -> Iterator[None]:
    """A host at DESTINATION that says hello."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        wfp_engine.route(DESTINATION, listener.getsockname())

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.sendall(b"hello")

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


@pytest.mark.wfp_dialect  # with every answer that a kernel may give
def test_it_goes_on_to_the_destination(
    wfp_engine: Engine, proxy: tuple[str, int], origin: None
) -> None:
    wfp_engine.add_driver("acme", proxy=proxy, match=DESTINATION, context=CONTEXT)
    with socket.create_connection(DESTINATION, timeout=10) as app:
        assert app.recv(5) == b"hello"


def test_it_is_no_open_proxy(wfp_engine: Engine, proxy: tuple[str, int]) -> None:
    with socket.create_connection(proxy, timeout=10) as stranger:
        assert stranger.recv(1) == b""
