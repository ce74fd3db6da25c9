"""An HTTP server on loopback that misbehaves on request."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class BadServer:
    """`files` by path; `tricks` by path are called instead of the honest answer.

    `asked` is what came: (path, Range header or empty).
    """

    files: dict[str, bytes] = field(default_factory=dict)
    tricks: dict[str, Callable[[Handler], None]] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    address: str = ""

    def publish(self, folder: str, name: str, content: bytes) -> None:
        """A file and its checksum file."""
        self.files[f"/{folder}{name}"] = content
        digest = hashlib.sha512(content).hexdigest()
        other = "SHA512 (other-file) = " + "0" * 128
        self.files[f"/{folder}CHECKSUM.SHA512"] = f"{other}\nSHA512 ({name}) = {digest}\n".encode()


class Handler(BaseHTTPRequestHandler):
    """One request; tricks use `head` and `body`."""

    bad: BadServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.bad.asked.append((self.path, self.headers.get("Range", "")))
        self.close_connection = True
        trick = self.bad.tricks.get(self.path)
        if trick:
            trick(self)
        elif self.path in self.bad.files:
            self.honest()
        else:
            self.send_error(404)

    def honest(self, stop_after: int | None = None) -> None:
        """The file, from where Range says; dropped after `stop_after` bytes."""
        content = self.bad.files[self.path]
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        if start >= len(content):
            self.head(416, {"Content-Range": f"bytes */{len(content)}", "Content-Length": "0"})
            return
        rest = content[start:]
        headers = {"Content-Length": str(len(rest))}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.head(206 if start else 200, headers)
        self.body(rest[:stop_after])

    def head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()

    def body(self, data: bytes) -> None:
        self.wfile.write(data)
        self.wfile.flush()

    def hang(self) -> None:
        """Send nothing more until the test is over."""
        self.bad.over.wait(30)

    def drip(self) -> None:
        """A byte now and then."""
        while not self.bad.over.is_set():
            try:
                self.body(b"x")
            except OSError:
                return
            time.sleep(0.05)

    def log_message(self, *_args: object) -> None:
        pass


def start() -> tuple[BadServer, ThreadingHTTPServer]:
    """A server that is listening; the caller ends it."""
    bad = BadServer()
    handler = type("Bound", (Handler,), {"bad": bad})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    bad.address = f"http://127.0.0.1:{server.server_port}/"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return bad, server
