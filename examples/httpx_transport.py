"""httpx with redirect records: a transport whose connections all carry those of one redirect.

``httpx.Client(transport=RedirectTransport(redirect))``; see httpx_proxy.py.  A client for each
redirect, so that no pooled connection is shared between different records (W27).
"""

import socket
import ssl
from typing import Any

import httpcore
import httpx

import wfpioctl


class Stream(httpcore.NetworkStream):
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self.sock.settimeout(timeout)
        return self.sock.recv(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.sock.settimeout(timeout)
        self.sock.sendall(buffer)

    def close(self) -> None:
        self.sock.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: Any = None
    ) -> httpcore.NetworkStream:
        return Stream(ssl_context.wrap_socket(self.sock, server_hostname=server_hostname))


class Backend(httpcore.NetworkBackend):
    """How httpcore's connections are made: with the records set."""

    def __init__(self, redirect: wfpioctl.Redirect) -> None:
        self.redirect = redirect

    def connect_tcp(self, host: str, port: int, timeout: Any = None, *_: Any, **__: Any) -> Stream:
        return Stream(wfpioctl.create_connection(self.redirect, (host, port), timeout))


class RedirectTransport(httpx.BaseTransport):
    """Lets httpx use a pool whose connections carry a redirect's records."""

    def __init__(self, redirect: wfpioctl.Redirect) -> None:
        self.pool = httpcore.ConnectionPool(network_backend=Backend(redirect))

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = self.pool.request(
            request.method, str(request.url), headers=request.headers.raw, content=request.read()
        )
        return httpx.Response(answer.status, headers=answer.headers, content=answer.content)

    def close(self) -> None:
        self.pool.close()
