"""A transparent proxy for anyio, on asyncio or trio; the kernel's answers at once need no thread.

``python examples/anyio_proxy.py 127.0.0.1:8080`` listens where a driver redirects connections to,
and takes each one on to where it was going.
"""

import socket
import sys
from typing import TypeVar

import anyio
from anyio.abc import SocketAttribute, SocketStream

import wfpioctl
from wfpioctl import context, overlapped

T = TypeVar("T")


async def answer(operation: overlapped.Operation[T]) -> T:
    """Wait for an overlapped operation; cancelling the wait cancels it."""
    with operation:
        while operation.pending:
            if sys.platform == "win32":  # anyio cannot await a handle
                await anyio.to_thread.run_sync(operation.result, abandon_on_cancel=True)
            else:
                await anyio.wait_readable(operation.event)
        return operation.result()


async def connect(records: bytes, address: context.Address) -> SocketStream:
    sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
    try:
        sock.setblocking(False)
        await answer(overlapped.set_redirect_records(sock, records))
        try:
            sock.connect(address)
        except BlockingIOError:
            await anyio.wait_writable(sock)
            if error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(error, f"cannot connect to {address}") from None
        return await SocketStream.from_socket(sock)
    except BaseException:
        sock.close()
        raise


async def copy(source: SocketStream, sink: SocketStream) -> None:
    try:
        async for data in source:
            await sink.send(data)
        await sink.send_eof()
    except anyio.BrokenResourceError:
        pass  # one side is gone, and the other will be told


async def handle(accepted: SocketStream) -> None:
    async with accepted:
        sock = accepted.extra(SocketAttribute.raw_socket)
        try:
            records = await answer(overlapped.query_redirect_records(sock))
            found = await answer(overlapped.query_redirect_context(sock))
        except wfpioctl.NotRedirectedError:
            return  # there is nowhere to go
        destination = context.decode(found, "wfpsampler").address
        async with await connect(records, destination) as outbound, anyio.create_task_group() as tg:
            tg.start_soon(copy, outbound, accepted)
            await copy(accepted, outbound)


async def main(host: str, port: int) -> None:
    async with await anyio.create_tcp_listener(local_host=host, local_port=port) as listener:
        await listener.serve(handle)


if __name__ == "__main__":
    host, _, port = sys.argv[1].rpartition(":")
    anyio.run(main, host, int(port))
