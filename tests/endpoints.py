"""An S3 endpoint that can be told to fail: at a request, or in the middle of a body."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

RETRYLESS = ("400 Bad Request", "ExpiredToken")
"""A refusal that the client does not ask again after."""


class Endpoint(ThreadingHTTPServer):
    """Serves ``objects``, by ``bucket/key``, whole and in ranges."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []
        """The range of each GET of an object."""
        self.good: float = float("inf")
        """GETs that are answered before all are refused."""
        self.cut = 0
        """GETs whose body breaks off in the middle."""
        self.checksum = ""
        """The CRC-32 that is claimed of every object, in base64."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Endpoint

    def do_HEAD(self) -> None:
        found = self.server.objects.get(self.path.lstrip("/"))
        self._send("200 OK" if found is not None else "404 Not Found", found or b"")

    def do_GET(self) -> None:
        if "list-type=2" in self.path:
            return self._send("200 OK", b"<ListBucketResult><KeyCount>0</KeyCount></ListBucketResult>")
        self.server.asked.append(self.headers.get("Range", ""))
        if len(self.server.asked) > self.server.good:
            status, code = RETRYLESS
            return self._send(status, f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode())
        found = self.server.objects[self.path.lstrip("/")]
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted is None:
            return self._send("200 OK", found)
        start, stop = int(wanted[1]), min(int(wanted[2]) + 1, len(found))
        return self._send("206 Partial Content", found[start:stop], f"bytes {start}-{stop - 1}/{len(found)}")

    def _send(self, status: str, data: bytes, part: str = "") -> None:
        self.send_response(int(status[:3]), status[4:])
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", '"1"')
        if part:
            self.send_header("Content-Range", part)
        if self.server.checksum:
            self.send_header("x-amz-checksum-crc32", self.server.checksum)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.server.cut > 0 and len(data) > 1:
            self.server.cut -= 1
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@contextmanager
def endpoint() -> Iterator[Endpoint]:
    """One that lives as long as the block."""
    server = Endpoint()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
