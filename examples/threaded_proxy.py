"""A transparent proxy in thirty lines: plain sockets, and two threads for each connection.

``python examples/threaded_proxy.py 127.0.0.1:8080`` listens where a driver redirects connections
to, and takes each one on to where it was going.
"""

import contextlib
import socket
import sys
import threading

import wfpioctl


def copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):  # one side is gone, and the other will be told
        while data := source.recv(1 << 16):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def handle(accepted: socket.socket) -> None:
    with accepted:
        redirect = wfpioctl.read_redirect(accepted)
        if redirect is None:
            return  # nobody redirected it: there is nowhere to go
        with wfpioctl.create_connection(redirect) as outbound:
            back = threading.Thread(target=copy, args=(outbound, accepted), daemon=True)
            back.start()
            copy(accepted, outbound)
            back.join()


def serve(listener: socket.socket) -> None:
    while True:
        accepted, _ = listener.accept()
        threading.Thread(target=handle, args=(accepted,), daemon=True).start()


if __name__ == "__main__":
    host, _, port = sys.argv[1].rpartition(":")
    with socket.create_server((host, int(port))) as listener:
        serve(listener)
