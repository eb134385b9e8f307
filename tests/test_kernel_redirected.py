"""A real driver redirects real connections: from the app through the proxy to the origin.

The driver is the eBPF program .github/kernel/redirect.c, attached by the workflow kernel.yml on a
test machine; without it (WFPIOCTL_KERNEL_REDIRECT is not set) everything here is skipped.
"""

import os
import socket
import struct
from collections.abc import Iterator

import pytest

import wfpioctl

TIMEOUT = 10.0
REDIRECTED_PORT = 18080  # of any IPv4 address, to ...
PROXY = ("127.0.0.1", 15001)

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(
        "WFPIOCTL_KERNEL_REDIRECT" not in os.environ,
        reason="needs the driver of .github/kernel, attached; see .github/workflows/kernel.yml",
    ),
]


@pytest.fixture
def own_address() -> str:
    """This machine's address on its network: what is sent there is not loopback to a callout."""
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing
        host: str = probe.getsockname()[0]
        return host


@pytest.fixture
def proxy() -> Iterator[socket.socket]:
    with socket.create_server(PROXY) as listener:
        listener.settimeout(TIMEOUT)
        yield listener


@pytest.fixture
def origin(own_address: str) -> Iterator[socket.socket]:
    with socket.create_server((own_address, REDIRECTED_PORT)) as listener:
        listener.settimeout(TIMEOUT)
        yield listener


@pytest.fixture
def accepted(proxy: socket.socket, own_address: str) -> Iterator[socket.socket]:
    """The proxy's end of a connection that an app made to the origin's address."""
    with (
        socket.create_connection((own_address, REDIRECTED_PORT), TIMEOUT),
        proxy.accept()[0] as accepted,
    ):
        yield accepted


def test_W74_context_is_what_the_driver_wrote(accepted: socket.socket, own_address: str) -> None:
    redirect = wfpioctl.read_redirect(accepted)
    assert redirect is not None
    expected = socket.inet_aton(own_address) + struct.pack("!HH", REDIRECTED_PORT, 0)
    assert redirect.context == expected


def test_W54_with_the_records_set_the_proxy_reaches_the_origin(
    accepted: socket.socket, origin: socket.socket, own_address: str
) -> None:
    redirect = wfpioctl.read_redirect(accepted)
    assert redirect is not None
    destination = own_address, REDIRECTED_PORT
    with (
        wfpioctl.create_connection(redirect, destination, TIMEOUT) as upstream,
        origin.accept()[0] as served,
    ):
        served.sendall(b"from the origin")
        assert upstream.recv(64) == b"from the origin"


def test_W55_without_them_it_meets_itself(
    accepted: socket.socket, proxy: socket.socket, own_address: str
) -> None:
    assert wfpioctl.read_redirect(accepted) is not None
    with (
        socket.create_connection((own_address, REDIRECTED_PORT), TIMEOUT),
        proxy.accept()[0] as again,
    ):
        assert wfpioctl.read_redirect(again) is not None


def test_transfer_is_query_and_set(
    accepted: socket.socket, origin: socket.socket, own_address: str
) -> None:
    with socket.socket() as upstream:
        upstream.settimeout(TIMEOUT)
        size = wfpioctl.transfer_redirect_records(accepted, upstream)
        assert size == len(wfpioctl.query_redirect_records(accepted))
        upstream.connect((own_address, REDIRECTED_PORT))
        origin.accept()[0].close()


@pytest.mark.parametrize("size", [0, 1, 3, 4, 8])
def test_W13_small_buffer_names_the_size(accepted: socket.socket, size: int) -> None:
    """wfpioctl's own answer; the kernel's code is asked for in a buffer of the usual size."""
    buffer = bytearray(size)
    with pytest.raises(wfpioctl.InsufficientBufferError) as caught:
        wfpioctl.query_redirect_records_into(accepted, buffer)
    assert caught.value.required_size == len(wfpioctl.query_redirect_records(accepted))
