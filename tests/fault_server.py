# SPDX-License-Identifier: Apache-2.0
"""An HTTP server on loopback that answers as badly as it is told to."""

import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Optional

Answer = Callable[[BaseHTTPRequestHandler], None]


@dataclass(frozen=True)
class Request:
    """What a client asked for."""

    method: str
    path: str
    byte_range: Optional[str]
    if_range: Optional[str]


class FaultServer:
    """A context manager; it gives each path's answers in turn, and the last for ever.

    `answers` has the answers by path, `requests` what was asked, in order.
    """

    def __init__(self):
        self.answers: dict[str, list[Answer]] = {}
        self.requests: list[Request] = []

    def __enter__(self):
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        # A request that comes while another waits must not wait for it at the end.
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        # A short poll lets the server stop at once.
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                ranges = self.headers["Range"], self.headers["If-Range"]
                owner.requests.append(Request(self.command, self.path, *ranges))
                answers = owner.answers.get(self.path, [status(404)])
                answer = answers.pop(0) if len(answers) > 1 else answers[0]
                answer(self)

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        return Handler


def file(
    body: bytes,
    *,
    etag: Optional[str] = '"v1"',
    ranges: bool = True,
    length: Optional[int] = None,
    stop: Optional[int] = None,
    end: Optional[Answer] = None,
) -> Answer:
    """Answer with `body`, or the range of it that is asked for if `ranges`.

    `length` is the Content-Length that is told. After `stop` bytes of this answer no
    more come: `end` happens, and the connection closes.
    """

    def answer(handler: BaseHTTPRequestHandler) -> None:
        start = 0
        asked = handler.headers["Range"]
        if ranges and asked and handler.headers["If-Range"] in (None, etag):
            start = int(asked[len("bytes=") : -1])
        if start and start >= len(body):
            return status(416, **{"Content-Range": f"bytes */{len(body)}"})(handler)
        handler.send_response(206 if start else 200)
        if start:
            content_range = f"bytes {start}-{len(body) - 1}/{len(body)}"
            handler.send_header("Content-Range", content_range)
        if etag:
            handler.send_header("ETag", etag)
        told = len(body) - start if length is None else length
        handler.send_header("Content-Length", str(told))
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(body[start:][:stop])
            if end:
                end(handler)

    return answer


def chunked(body: bytes) -> Answer:
    """Answer without telling the length, and close before the body's end is told."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(body), body))
        handler.close_connection = True

    return answer


def status(code: int, **headers: str) -> Answer:
    """Answer with a status and no file."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def until(event: threading.Event) -> Answer:
    """End an answer with silence until `event`; ten seconds at most."""
    return lambda handler: event.wait(10)


def reset(handler: BaseHTTPRequestHandler) -> None:
    """End an answer with a reset of the connection."""
    handler.wfile.flush()
    on_without_waiting = struct.pack("ii", 1, 0)
    handler.connection.setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, on_without_waiting
    )
    handler.connection.close()
