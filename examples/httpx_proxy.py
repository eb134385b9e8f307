"""An inspecting HTTP proxy whose client is httpx, on the standard library's HTTP server.

``python examples/httpx_proxy.py 127.0.0.1:8080`` listens where a driver redirects HTTP connections
to.  Each connection has a client of its own, with its records.
"""

import http.server
import sys

import httpx
from httpx_transport import RedirectTransport

import wfpioctl
from wfpioctl import context


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.redirect = wfpioctl.read_redirect(self.request)
        if self.redirect is not None:
            self.client = httpx.Client(transport=RedirectTransport(self.redirect))

    def finish(self) -> None:
        super().finish()
        if self.redirect is not None:
            self.client.close()

    def do_GET(self) -> None:
        if self.redirect is None:
            self.send_error(403, "nobody redirected this connection")
            return
        host, port = context.decode(self.redirect.context, "wfpsampler").address[:2]
        try:
            answer = self.client.get(
                httpx.URL(scheme="http", host=host, port=port, raw_path=self.path.encode()),
                headers={"Host": self.headers["Host"]},
            )
        except (OSError, httpx.HTTPError) as error:
            self.send_error(502, str(error))
            return
        self.send_response(answer.status_code)
        self.send_header("Content-Type", answer.headers.get("Content-Type", "text/plain"))
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    def log_message(self, *args: object) -> None:
        pass


class Proxy(http.server.ThreadingHTTPServer):
    request_queue_size = 512

    def handle_error(self, request: object, client_address: object) -> None:
        print(f"{client_address}: {sys.exc_info()[1]!r}", file=sys.stderr)


if __name__ == "__main__":
    host, _, port = sys.argv[1].rpartition(":")
    with Proxy((host, int(port)), Handler) as proxy:
        proxy.serve_forever()
