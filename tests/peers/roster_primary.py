"""A primary's web server for scenario tests: serves roster files as PROTOCOL.md has it, on loopback.

Plain `http.server` in a thread: nothing of ours is imported to answer requests.
"""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self


class RosterPrimary:
    """Serves `files` (path → octets, ETag) to who presents `token`; `asked` has all requests."""

    def __init__(self, token: str) -> None:
        self.files: dict[str, tuple[bytes, str]] = {}
        self.asked: list[tuple[str, str]] = []
        self._token = token
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._make_handler())
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/"

    def publish(self, domain: str, data: bytes, serial: int) -> None:
        """Serve this roster from now on."""
        self.files[f"/v1/rosters/{domain}"] = (data, f'"{serial}"')

    def _make_handler(self) -> type[BaseHTTPRequestHandler]:
        primary = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                known = self.headers.get("If-None-Match", "")
                primary.asked.append((self.path, known))
                if self.headers.get("Authorization") != f"Bearer {primary._token}":
                    self._answer(401, b"")
                    return
                data, etag = primary.files.get(self.path.partition("?")[0], (None, ""))
                if data is None:
                    self._answer(404, b"")
                elif known == etag:
                    self._answer(304, b"")
                else:
                    self._answer(200, data, etag)

            def _answer(self, status: int, body: bytes, etag: str = "") -> None:
                self.send_response(status)
                if etag:
                    self.send_header("ETag", etag)
                if status != 304:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        return Handler

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
