"""A transparent proxy for trio, which needs no thread for what the kernel answers at once.

``python examples/trio_proxy.py 127.0.0.1:8080`` listens where a driver redirects connections to,
and takes each one on to where it was going.
"""

import sys
from typing import TypeVar

import trio

import wfpioctl
from wfpioctl import context, overlapped

T = TypeVar("T")


async def answer(operation: overlapped.Operation[T]) -> T:
    """Wait for an overlapped operation; cancelling the wait cancels it."""
    with operation:
        while operation.pending:
            if sys.platform == "win32":
                await trio.lowlevel.WaitForSingleObject(operation.event)
            else:
                await trio.lowlevel.wait_readable(operation.event)
        return operation.result()


async def connect(records: bytes, address: context.Address) -> trio.SocketStream:
    sock = trio.socket.socket(trio.socket.AF_INET6 if ":" in address[0] else trio.socket.AF_INET)
    try:
        await answer(overlapped.set_redirect_records(sock, records))
        await sock.connect(address)
        return trio.SocketStream(sock)
    except BaseException:
        sock.close()
        raise


async def copy(source: trio.SocketStream, sink: trio.SocketStream) -> None:
    try:
        async for data in source:
            await sink.send_all(data)
        await sink.send_eof()
    except trio.BrokenResourceError:
        pass  # one side is gone, and the other will be told


async def handle(accepted: trio.SocketStream) -> None:
    async with accepted:
        try:
            records = await answer(overlapped.query_redirect_records(accepted.socket))
            found = await answer(overlapped.query_redirect_context(accepted.socket))
        except wfpioctl.NotRedirectedError:
            return  # there is nowhere to go
        destination = context.decode(found, "wfpsampler").address
        async with await connect(records, destination) as outbound, trio.open_nursery() as nursery:
            nursery.start_soon(copy, outbound, accepted)
            await copy(accepted, outbound)


if __name__ == "__main__":
    host, _, port = sys.argv[1].rpartition(":")
    trio.run(lambda: trio.serve_tcp(handle, int(port), host=host))
