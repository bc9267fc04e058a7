"""A proxy that injects faults: 503, connections broken before or after the effect, repeats, delays, truncated bodies.

python -m tests.servers.proxy PORT UPSTREAM_PORT

The Host header is kept, so signatures stay valid. Google's header for create-if-absent becomes that of S3.
POST /__faults?slow_down=.3&seed=7 sets the share of requests that each fault affects (other faults are set to 0) and
clears the counts. GET /__counts returns how often each fault and method occurred. POST /__cut breaks all open
connections and that of the next request. POST /__fill?status=507 refuses writes with this status, until status=0.
"""

import asyncio
import json
import random
import socket
import struct
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, ClientTimeout, TCPConnector, web

from tests.servers.processes import answers, end, free_port, start
from tests.waiting import wait_until

_HOP = frozenset({"connection", "expect", "transfer-encoding", "content-length", "date", "server", "content-type"})
_SLOW_S = 1.0
_ABSENT = {"x-goog-if-generation-match": ("If-None-Match", "*")}
_SLOW_DOWN = (
    '<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code>'
    "<Message>Please reduce your request rate.</Message></Error>"
)
_FULL = (
    '<?xml version="1.0" encoding="UTF-8"?><Error><Code>QuotaExceeded</Code>'
    "<Message>The quota of the bucket is used up.</Message></Error>"
)
_WRITES = ("PUT", "POST")


@dataclass(frozen=True)
class Faults:
    """Share of the requests that each fault affects."""

    slow_down: float = 0.0  # 503, without an effect
    reset: float = 0.0  # the connection breaks before the effect
    lost: float = 0.0  # the connection breaks after the effect
    truncate: float = 0.0  # the connection breaks after half of the body
    twice: float = 0.0  # the request reaches the server twice, and its second answer is returned
    latency_s: float = 0.0
    slow: float = 0.0  # the request waits for a second
    unconditional: float = 0.0  # the condition of create-if-absent is dropped
    methods: str = ""  # affected methods, separated by commas; empty: all
    match: str = ""  # affected paths contain this text
    seed: int = 0


@dataclass
class Proxy:
    upstream: int
    faults: Faults = field(default_factory=Faults)
    draw: random.Random = field(default_factory=random.Random)
    counts: Counter = field(default_factory=Counter)
    cut_next: bool = False
    full_status: int = 0
    open: dict = field(default_factory=dict)
    session: ClientSession | None = None

    async def set_faults(self, request: web.Request) -> web.Response:
        kinds = {f.name: type(f.default) for f in fields(Faults)}
        self.faults = Faults(**{key: kinds[key](value) for key, value in request.query.items()})
        self.draw.seed(self.faults.seed)
        self.counts.clear()
        return web.json_response(vars(self.faults))

    async def get_counts(self, _request: web.Request) -> web.Response:
        return web.json_response(dict(self.counts))

    async def cut(self, _request: web.Request) -> web.Response:
        requests = list(self.open.values())
        for request in requests:
            _reset(request)
        self.cut_next = True
        return web.json_response({"cut": len(requests)})

    async def fill(self, request: web.Request) -> web.Response:
        refused, self.full_status = self.counts["full"], int(request.query["status"])
        self.counts["full"] = 0
        return web.json_response({"refused": refused})

    def _draw_fault(self, fault: str, faults: Faults) -> bool:
        occurs = self.draw.random() < getattr(faults, fault)
        self.counts[fault] += occurs
        return occurs

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.open[id(request)] = request
        try:
            return await self._handle(request)
        finally:
            del self.open[id(request)]

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        faults = self.faults
        self.counts["requests"] += 1
        self.counts[request.method] += 1
        await asyncio.sleep(faults.latency_s)
        if (faults.methods and request.method not in faults.methods.split(",")) or faults.match not in request.path_qs:
            faults = Faults()
        body = await request.read()
        if self._draw_fault("slow", faults):
            await asyncio.sleep(_SLOW_S)
        if refusal := self._refuse(request, faults):
            return refusal
        headers = [(k, v) for k, v in request.headers.items() if k.lower() not in _HOP - {"date", "content-type"}]
        headers = [_ABSENT.get(k.lower(), (k, v)) for k, v in headers]
        if self._draw_fault("unconditional", faults):
            headers = [(k, v) for k, v in headers if k.lower() != "if-none-match"]
        cut, self.cut_next = self.cut_next, False
        lost, truncated = self._draw_fault("lost", faults), self._draw_fault("truncate", faults)
        if self._draw_fault("twice", faults):
            async with self._forward(request, headers, body) as first:
                await first.read()
        async with self._forward(request, headers, body) as answer:
            content = await answer.read()
            if lost or cut:
                return _reset(request)
            response = web.Response(status=answer.status, body=content)
            for key, value in answer.headers.items():
                if key.lower() not in _HOP:
                    response.headers.add(key, value)
            if "Content-Type" in answer.headers:
                response.headers["Content-Type"] = answer.headers["Content-Type"]
            if request.method == "HEAD":
                response.headers["Content-Length"] = answer.headers.get("Content-Length", "0")
            elif truncated and len(content) > 1:
                return await _half(request, response, content)
            return response

    def _refuse(self, request: web.Request, faults: Faults) -> web.Response | None:
        """An answer without an effect, if one is due."""
        if self._draw_fault("slow_down", faults):
            return web.Response(status=503, content_type="application/xml", text=_SLOW_DOWN)
        if self._draw_fault("reset", faults):
            return _reset(request)
        if self.full_status and request.method in _WRITES and "delete" not in request.query:
            self.counts["full"] += 1
            return web.Response(status=self.full_status, content_type="application/xml", text=_FULL)
        return None

    def _forward(self, request: web.Request, headers: list[tuple[str, str]], body: bytes) -> Any:
        """The answer of the server, in a context."""
        assert self.session
        return self.session.request(
            request.method,
            f"http://127.0.0.1:{self.upstream}{request.raw_path}",
            headers=headers,
            data=body,
            allow_redirects=False,
            skip_auto_headers=["Content-Type", "User-Agent", "Accept", "Accept-Encoding"],
        )


async def _half(request: web.Request, response: web.Response, content: bytes) -> web.StreamResponse:
    truncated = web.StreamResponse(status=response.status, headers=response.headers)
    truncated.headers["Content-Length"] = str(len(content))
    await truncated.prepare(request)
    await truncated.write(content[: len(content) // 2])
    return _reset(request)


def _reset(request: web.Request) -> web.Response:
    if request.transport is not None:
        connection = request.transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()
    return web.Response(status=500)


async def _make(upstream: int) -> web.Application:
    proxy = Proxy(upstream)
    app = web.Application(client_max_size=1 << 34)
    proxy.session = ClientSession(
        auto_decompress=False, connector=TCPConnector(limit=64), timeout=ClientTimeout(total=300)
    )
    app.router.add_post("/__faults", proxy.set_faults)
    app.router.add_get("/__counts", proxy.get_counts)
    app.router.add_post("/__cut", proxy.cut)
    app.router.add_post("/__fill", proxy.fill)
    app.router.add_route("*", "/{path:.*}", proxy.handle)
    return app


class Control:
    """Sets the faults of a running proxy and reads its counts."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint

    def faults(self, **shares: float | str) -> None:
        query = "&".join(f"{key}={value}" for key, value in shares.items())
        self._request(f"/__faults?{query}", "POST")

    def counts(self) -> Counter:
        return Counter(self._request("/__counts", "GET"))

    def cut(self) -> int:
        return self._request("/__cut", "POST")["cut"]

    def fill(self, status: int) -> int:
        """Refuse writes with a status from now on, or no more if it is 0; returns how many were refused before."""
        return self._request(f"/__fill?status={status}", "POST")["refused"]

    def _request(self, path: str, method: str) -> dict:
        request = urllib.request.Request(self.endpoint + path, method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)


@contextmanager
def proxy(upstream: str, folder: Path, port: int | None = None) -> Iterator[Control]:
    """A proxy in front of a server; yields its control, whose `endpoint` clients use instead of the server's."""
    port, log = port or free_port(), folder / "proxy.log"
    command = [sys.executable, "-m", "tests.servers.proxy", str(port), upstream.rpartition(":")[2]]
    process = start(command, log)
    control = Control(f"http://127.0.0.1:{port}")
    try:
        wait_until(lambda: answers(f"{control.endpoint}/__counts"), "the proxy", log)
        yield control
    finally:
        end([process])


if __name__ == "__main__":
    web.run_app(
        _make(int(sys.argv[2])), host="127.0.0.1", port=int(sys.argv[1]), print=lambda *_: None, access_log=None
    )
