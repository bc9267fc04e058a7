"""A local HTTP server whose answers are files: the body of the first pattern that a path matches, with its headers.

Knows nothing of clients. Invariants: an answer ends its connection; a status that clients repeat by design is replaced;
what no pattern matches is not found.
"""

import json
import os
import re
import threading
from collections.abc import Mapping
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

_REPEATED = {408, 409, 429, *range(500, 600)}
_MAX_STATUS = 599
OTHER_HOST = "http://other-host"  # in headers: is replaced by another name of the server, as of a CDN


class AnsweringServer(ThreadingHTTPServer):
    """Answers from `folder`: PATTERN → (name of the body, name of a JSON file with its status and headers).

    The names may hold groups of the pattern, such as \\1.
    """

    daemon_threads = True
    folder = Path()
    answers: Mapping[str, tuple[str, str]] = {}

    @property
    def address(self) -> str:
        """http://HOST:PORT."""
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, body) for a path."""
        for pattern, (body, head) in self.answers.items():
            if match := re.search(pattern, path):
                names = self.folder / match.expand(body), self.folder / match.expand(head)
                if all(name.is_file() for name in names):
                    status, headers = self._head(names[1].read_bytes())
                    return status, headers, names[0].read_bytes()
        return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"

    def _head(self, content: bytes) -> tuple[int, dict[str, str]]:
        try:
            saved: Any = json.loads(content)
            status = int(saved["status"])
            headers = {str(key): str(value) for key, value in saved["headers"].items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
            return 200, {}
        other = f"http://localhost:{self.server_port}"
        is_sent = 200 <= status <= _MAX_STATUS and status not in _REPEATED
        return status if is_sent else 403, {key: value.replace(OTHER_HOST, other) for key, value in headers.items()}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        server = self.server
        assert isinstance(server, AnsweringServer)
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, headers, body = server.answer(unquote(self.path))
        lines = [f"HTTP/1.1 {status} x", *(f"{key}: {value}" for key, value in headers.items()), "Connection: close"]
        if not {"content-length", "transfer-encoding"} & {key.lower() for key in headers}:
            lines.append(f"Content-Length: {len(body)}")
        self.close_connection = True
        self.wfile.write("\r\n".join([*lines, "", ""]).encode("utf-8", "replace"))
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _answer  # noqa: N815 (names of the library)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the library's name)
        """Print nothing."""


@lru_cache
def answering_server() -> AnsweringServer:
    """The server of this process, at HF_ENDPOINT, which clients of the Hub read when they are imported."""
    port = urlsplit(os.environ.get("HF_ENDPOINT", "")).port
    server = AnsweringServer(("127.0.0.1", port or 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
