"""An HTTP proxy in front of a Hub that breaks the connection at a request of one's choice.

In: the Hub's endpoint. Out: an endpoint to give to clients as theirs. Each request gets a number from 1 on; `break_at`
says which one is broken, and where:

    before   the connection is cut and the Hub hears nothing
    midway   the Hub gets half of the request, then both connections are cut
    after    the Hub answers and the client hears nothing

Once broken, the network stays down for `outage` more requests (0: a hiccup, which a client's own retry gets over).
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
    """The running proxy, its fault and what it has seen.

    Attributes:
        seen: a "METHOD path" for each request of the client, in order.
        delivered: those that reached the Hub whole, and were answered with a success.
        meanwhile: called with the request's number just before it is passed on.
    """

    endpoint: str
    hub: str
    seen: list[str] = field(default_factory=list)
    delivered: list[str] = field(default_factory=list)
    meanwhile: Callable[[int], None] = lambda number: None
    broken: tuple[int, str, int] = (FOREVER, "before", 0)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def break_at(self, number: int, fault: str, outage: int = 0) -> None:
        """Break request `number`, counted from now, and the `outage` ones after it."""
        assert fault in FAULTS
        self.mend()
        self.broken = (number, fault, outage)

    def mend(self) -> None:
        """Restart the count, with a network that holds."""
        self.seen, self.delivered, self.meanwhile = [], [], lambda number: None
        self.broken = (FOREVER, "before", 0)

    @property
    def uploads(self) -> list[str]:
        """The large files that the Hub received whole, by SHA-256, once for each time that they were sent."""
        puts = [line.split("?")[0] for line in self.delivered if line.startswith("PUT /lfs-objects/")]
        return [line.rsplit("/", 1)[1] for line in puts]

    def fault_of(self, number: int) -> str | None:
        first, fault, outage = self.broken
        if number == first:
            return fault
        return "before" if first < number <= first + outage else None


class Handler(BaseHTTPRequestHandler):
    """Passes one request on, or half of it, or keeps the answer to itself."""

    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def handle_one(self) -> None:
        body = self.read_body()
        with self.proxy.lock:
            self.proxy.seen.append(line := f"{self.command} {self.path}")
            number = len(self.proxy.seen)
        fault = self.proxy.fault_of(number)
        self.proxy.meanwhile(number)
        if fault == "before":
            return self.cut()
        if fault == "midway":
            self.send_half(body)
            return self.cut()
        status, headers, content = self.ask(body)
        if status < 400:
            with self.proxy.lock:
                self.proxy.delivered.append(line)
        if fault == "after":
            return self.cut()
        self.answer(status, headers, content)

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

    def passed_on(self, body: bytes) -> dict[str, str]:
        """The request's headers; `Host` stays that of the proxy, so that the Hub's addresses lead here."""
        dropped = ("transfer-encoding", "content-length", "connection")
        kept = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
        return kept | {"Content-Length": str(len(body)), "Connection": "close"}

    def ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = HTTPConnection(self.proxy.hub.removeprefix("http://"), timeout=60)
        with contextlib.closing(connection):
            connection.request(self.command, self.path, body, self.passed_on(body))
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read()

    def send_half(self, body: bytes) -> None:
        """Half of the body, or of the head where there is no body."""
        lines = [f"{self.command} {self.path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in self.passed_on(body).items()]
        head = "\r\n".join(lines).encode() + b"\r\n\r\n"
        half = head + body[: len(body) // 2] if body else head[: len(head) // 2]
        host, port = self.proxy.hub.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(half)

    def answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        self.send_response_only(status)
        dropped = (
            "connection",
            "transfer-encoding",
            *(() if self.command == "HEAD" else ("content-length",)),
        )
        for name, value in headers:
            if name.lower() not in dropped:
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(content)))
        self.send_header(
            "Connection", "close"
        )  # or the next request would find a dead connection in the pool
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        self.close_connection = True

    def cut(self) -> None:
        """End the connection as a dead network does: with a reset, not with a word."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.connection.close()

    def log_message(self, *_: object) -> None:
        """Nothing on the screen."""


@contextmanager
def broken_proxy(hub: str) -> Iterator[Proxy]:
    """Serve a proxy before the Hub at that endpoint while the `with` block runs; it holds until `break_at` is called."""
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
