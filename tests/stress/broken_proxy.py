"""An HTTP proxy in front of a Hub that breaks the connection at a chosen request.

Clients use the proxy's endpoint as theirs. Requests are numbered from 1; `break_at` sets which one is broken, and where:

    before   the connection is cut, and the Hub receives nothing
    midway   the Hub receives half of the request, then both connections are cut
    after    the Hub responds, and the client receives nothing

After that, the network stays down for `outage` more requests (0: a hiccup, which the client's own retry recovers from).
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULTS = ("before", "midway", "after")
FOREVER = 10**9


@dataclass
class Proxy:
    """The running proxy, its fault and its log.

    Attributes:
        seen: a "METHOD path" for each request of the client, in order.
        delivered: those that the Hub received completely and answered with success.
        before_request: called with the number of a request just before it is forwarded.
    """

    endpoint: str
    hub: str
    seen: list[str] = field(default_factory=list)
    delivered: list[str] = field(default_factory=list)
    before_request: Callable[[int], None] = lambda number: None
    broken: tuple[int, str, int] = (FOREVER, "before", 0)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def break_at(self, number: int, fault: str, outage: int = 0) -> None:
        """Break request `number`, counted from now, and the `outage` ones after it."""
        assert fault in FAULTS
        self.repair()
        self.broken = (number, fault, outage)

    def repair(self) -> None:
        """Restart the count, without faults."""
        self.seen, self.delivered, self.before_request = [], [], lambda number: None
        self.broken = (FOREVER, "before", 0)

    @property
    def uploads(self) -> list[str]:
        """The SHA-256 of each LFS object that the Hub received completely, once for each upload."""
        puts = [line.split("?")[0] for line in self.delivered if line.startswith("PUT /lfs-objects/")]
        return [line.rsplit("/", 1)[1] for line in puts]

    def fault_of(self, number: int) -> str | None:
        first, fault, outage = self.broken
        if number == first:
            return fault
        return "before" if first < number <= first + outage else None


class Handler(BaseHTTPRequestHandler):
    """Forwards a request, or half of it, or drops the response."""

    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def handle_one(self) -> None:
        body = self.read_body()
        with self.proxy.lock:
            self.proxy.seen.append(line := f"{self.command} {self.path}")
            number = len(self.proxy.seen)
        fault = self.proxy.fault_of(number)
        self.proxy.before_request(number)
        if fault == "before":
            return self.cut()
        if fault == "midway":
            self.send_half(body)
            return self.cut()
        status, headers, content = self.forward(body)
        if status < 400:
            with self.proxy.lock:
                self.proxy.delivered.append(line)
        if fault == "after":
            return self.cut()
        self.respond(status, headers, content)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_one

    def read_body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def forwarded_headers(self, body: bytes) -> dict[str, str]:
        """The request's headers; `Host` stays that of the proxy, so that the URLs in the Hub's responses lead here."""
        dropped = ("transfer-encoding", "content-length", "connection")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
        return headers | {"Content-Length": str(len(body)), "Connection": "close"}

    def forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = HTTPConnection(self.proxy.hub.removeprefix("http://"), timeout=60)
        with contextlib.closing(connection):
            connection.request(self.command, self.path, body, self.forwarded_headers(body))
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read()

    def send_half(self, body: bytes) -> None:
        """Send half of the body, or half of the headers if there is no body."""
        lines = [f"{self.command} {self.path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in self.forwarded_headers(body).items()]
        head = "\r\n".join(lines).encode() + b"\r\n\r\n"
        half = head + body[: len(body) // 2] if body else head[: len(head) // 2]
        host, port = self.proxy.hub.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(half)

    def respond(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        self.send_response_only(status)
        dropped = {"connection", "transfer-encoding"} | (
            {"content-length"} if self.command != "HEAD" else set()
        )
        for name, value in headers:
            if name.lower() not in dropped:
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")  # so that the client's pool holds no dead connection
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        self.close_connection = True

    def cut(self) -> None:
        """Reset the connection, as a network failure would."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.connection.close()

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@contextmanager
def broken_proxy(hub: str) -> Iterator[Proxy]:
    """Serve a proxy for the Hub at that endpoint while the `with` block runs; it works until `break_at` is called."""
    handler = type("ProxyHandler", (Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    handler.proxy = Proxy(f"http://127.0.0.1:{server.server_address[1]}", hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield handler.proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
