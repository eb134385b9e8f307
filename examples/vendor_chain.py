"""Three vendors' proxies on one machine: threads, asyncio and aiohttp, each on a thread of its own.

``python examples/vendor_chain.py`` shows how one request passes all three, because each of them
sets the records: no driver redirects the same flow twice.  Drivers and kernel are simulated.
"""

import asyncio
import http.client
import http.server
import socket
import threading

import aiohttp_proxy
import streams_proxy
import threaded_proxy

from wfpioctl import context
from wfpioctl.simulator import Action, Connected, Engine

DESTINATION = ("203.0.113.80", 80)  # a documentation address: only the engine's route leads there
CONTEXT = context.encode(context.OriginalDestination(DESTINATION), "wfpsampler")

PROXIES = {
    "acme": threaded_proxy.serve,
    "globex": lambda listener: asyncio.run(streams_proxy.serve(listener)),
    "initech": lambda listener: asyncio.run(aiohttp_proxy.serve(listener)),
}


class Origin(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello from the origin\n")

    def log_message(self, *args: object) -> None:
        pass


def main() -> None:
    with Engine() as engine, http.server.HTTPServer(("127.0.0.1", 0), Origin) as origin:
        threading.Thread(target=origin.serve_forever, daemon=True).start()
        engine.route(DESTINATION, origin.server_address[:2])
        for name, serve in PROXIES.items():
            listener = socket.create_server(("127.0.0.1", 0))
            threading.Thread(target=serve, args=(listener,), daemon=True).start()
            engine.add_driver(
                name, proxy=listener.getsockname(), match=DESTINATION, context=CONTEXT
            )
        app = http.client.HTTPConnection(*DESTINATION, timeout=10)
        app.request("GET", "/")
        print(app.getresponse().read().decode(), end="")
        app.close()
        for event in engine.trace:
            if isinstance(event, Connected):
                by = [v.driver for v in event.verdicts if v.action is Action.REDIRECT]
                print("redirected by", by[0]) if by else print("permitted by all, to the origin")
        origin.shutdown()


if __name__ == "__main__":
    main()
