"""An inspecting HTTP proxy: aiohttp as its server and as its client.

``python examples/aiohttp_proxy.py 127.0.0.1:8080`` listens where a driver redirects HTTP
connections to.  Each request goes on to the destination of its connection, through a pool of
connections that all carry this connection's records: pools are keyed on the records (W27).
"""

import asyncio
import socket
import sys

import aiohttp
from aiohttp import web

import wfpioctl
from wfpioctl import context

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "upgrade", "proxy-connection", "te"}
POOLS = web.AppKey("POOLS", dict[bytes, aiohttp.ClientSession])
MOST_POOLS = 1000


async def pool(app: web.Application, redirect: wfpioctl.Redirect) -> aiohttp.ClientSession:
    """The session whose connections carry these records; the oldest gives way to a new one."""
    pools = app[POOLS]
    if redirect.records not in pools:
        if len(pools) >= MOST_POOLS:
            await pools.pop(next(iter(pools))).close()
        connector = aiohttp.TCPConnector(socket_factory=wfpioctl.socket_factory(redirect))
        pools[redirect.records] = aiohttp.ClientSession(
            connector=connector, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
        )
    return pools[redirect.records]


async def handle(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    redirect = wfpioctl.read_redirect(request.transport.get_extra_info("socket"))
    if redirect is None:
        raise web.HTTPForbidden(text="nobody redirected this connection\n")
    destination = context.decode(redirect.context, "wfpsampler")
    host = f"[{destination.host}]" if ":" in destination.host else destination.host
    async with (await pool(request.app, redirect)).request(
        request.method,
        f"http://{host}:{destination.port}{request.raw_path}",
        headers=[(k, v) for k, v in request.headers.items() if k.lower() not in HOP_BY_HOP],
        data=request.content if request.can_read_body else None,
        allow_redirects=False,
    ) as answer:
        kept = [(k, v) for k, v in answer.headers.items() if k.lower() not in HOP_BY_HOP]
        response = web.StreamResponse(status=answer.status, reason=answer.reason)
        response.headers.extend(kept)
        await response.prepare(request)
        async for piece in answer.content.iter_any():
            await response.write(piece)
        return response


async def close_pools(app: web.Application) -> None:
    for session in app[POOLS].values():
        await session.close()


async def serve(listener: socket.socket) -> None:
    app = web.Application()
    app[POOLS] = {}
    app.on_cleanup.append(close_pools)
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.SockSite(runner, listener, backlog=512).start()
        await asyncio.Event().wait()  # until cancelled
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    host, _, port = sys.argv[1].rpartition(":")
    asyncio.run(serve(socket.create_server((host, int(port)))))
