"""A transparent proxy on ``socketserver``: a thread for each connection.

``python examples/socketserver_proxy.py 127.0.0.1:8080`` listens where a driver redirects
connections to, and takes each one on to where it was going.
"""

import selectors
import socket
import socketserver
import sys

import wfpioctl


class Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        redirect = wfpioctl.read_redirect(self.request)
        if redirect is None:
            return  # nobody redirected it: there is nowhere to go
        with wfpioctl.create_connection(redirect) as outbound:
            splice(self.request, outbound)


def splice(one: socket.socket, other: socket.socket) -> None:
    """Copy both ways until both directions have ended."""
    with selectors.DefaultSelector() as selector:
        selector.register(one, selectors.EVENT_READ, other)
        selector.register(other, selectors.EVENT_READ, one)
        while selector.get_map():
            for key, _ in selector.select():
                source, sink = key.fileobj, key.data
                if data := source.recv(1 << 16):
                    sink.sendall(data)
                else:
                    selector.unregister(source)
                    sink.shutdown(socket.SHUT_WR)


class Proxy(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 512

    def handle_error(self, request: object, client_address: object) -> None:
        print(f"{client_address}: {sys.exc_info()[1]!r}", file=sys.stderr)


if __name__ == "__main__":
    host, _, port = sys.argv[1].rpartition(":")
    with Proxy((host, int(port)), Handler) as proxy:
        proxy.serve_forever()
