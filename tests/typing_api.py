"""What the public API promises to type checkers.  mypy and pyright check it; it also runs."""

import socket
from collections.abc import Callable
from typing import Any, assert_type

import wfpioctl
from wfpioctl import context, datagram, overlapped, simulator


def queries(sock: socket.socket) -> None:
    assert_type(wfpioctl.query_redirect_records(sock), bytes)
    assert_type(wfpioctl.query_redirect_context(sock.fileno()), bytes)
    assert_type(wfpioctl.query_redirect_records_into(sock, bytearray(64)), int)
    assert_type(wfpioctl.query_redirect_context_into(sock, memoryview(bytearray(64)), 32), int)
    assert_type(wfpioctl.read_redirect(sock), wfpioctl.Redirect | None)


def outbound(accepted: socket.socket, sock: socket.socket) -> None:
    wfpioctl.set_redirect_records(sock, b"records")
    wfpioctl.set_redirect_records(sock, memoryview(b"records"))
    assert_type(wfpioctl.transfer_redirect_records(accepted, sock), int)


def connections(redirect: wfpioctl.Redirect) -> None:
    assert_type(redirect.records, bytes)
    assert_type(redirect.context, bytes)
    assert_type(wfpioctl.socket_factory(redirect), Callable[[Any], socket.socket])
    assert_type(wfpioctl.create_connection(redirect, ("192.0.2.1", 443), 5.0), socket.socket)
    assert_type(wfpioctl.create_connection(redirect, timeout=None), socket.socket)


def contexts(sock: socket.socket, blob: bytes) -> None:
    layout = context.Layout("acme", [context.sockaddr("destination")])
    assert_type(context.decode(blob, layout), context.OriginalDestination)
    assert_type(context.original_destination(sock), context.OriginalDestination | None)
    assert_type(context.encode(context.decode(blob, "wfpsampler"), layout), bytes)


def datagrams(sock: socket.socket) -> None:
    received = datagram.recvmsg(sock, 65535)
    assert_type(received, datagram.Datagram)
    assert_type(received.records, bytes | None)
    assert_type(datagram.sendmsg(sock, received.data, ("192.0.2.1", 53), records=b"records"), int)


def operations(sock: socket.socket) -> None:
    with overlapped.query_redirect_records(sock) as operation:
        assert_type(operation, overlapped.Operation[bytes])
        assert_type(operation.result(timeout=1.0), bytes)
    assert_type(overlapped.set_redirect_records(sock, b"records").result(), None)


def errors(error: wfpioctl.RedirectError) -> None:
    assert_type(error.operation, str)
    assert_type(error.winerror, int)
    assert_type(error.required_size, int | None)
    assert isinstance(error, OSError)


def wrong_calls(sock: socket.socket, redirect: wfpioctl.Redirect) -> None:
    """Each of these is refused: an ignore that is not needed is an error of its own."""
    wfpioctl.query_redirect_records("3")  # type: ignore[arg-type]
    wfpioctl.query_redirect_records(sock=sock)  # type: ignore[call-arg]
    wfpioctl.set_redirect_records(sock, "records")  # type: ignore[arg-type]
    redirect.records = b""  # type: ignore[misc]


def simulated() -> None:
    with simulator.Engine(dialect="ulong") as engine:
        assert_type(engine, simulator.Engine)
        assert_type(engine.trace, list[simulator.Event])
        driver = engine.add_driver("acme", proxy=("127.0.0.1", 15001))
        assert_type(driver, simulator.Driver)


if __name__ == "__main__":
    with simulator.Scripted(records=b"records", context=b"context"), socket.socket() as sock:
        queries(sock)
        outbound(sock, sock)
        operations(sock)
        redirect = wfpioctl.read_redirect(sock)
        assert redirect is not None
        assert callable(wfpioctl.socket_factory(redirect))
    simulated()
