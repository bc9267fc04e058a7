"""Builds an index in Qdrant in a process that kills itself at a chosen request.

The process ends by SIGKILL before the request, while it is answered, or after its answer.
"""

import os
import random
import signal
import threading
import time
from unittest.mock import patch

import httpx

from tests.index_sources import build, open_source
from varve.config.index import Index
from varve.indexing.qdrant.qdrant_target import QdrantTarget

MOMENTS = ("before", "while", "after")


class Requests:
    """Counts the requests of this process, and ends it at one of them."""

    def __init__(self, seed: int, dies_at: int | None) -> None:
        self.random = random.Random(seed)
        self.moment = self.random.choice(MOMENTS)
        self.dies_at, self.count = dies_at, 0
        self.send = httpx.Client.send

    def __call__(self, client: httpx.Client, request: httpx.Request, **options) -> httpx.Response:
        self.count += 1
        if self.count != self.dies_at:
            return self.send(client, request, **options)
        if self.moment == "before":
            _die()
        if self.moment == "while":
            threading.Thread(target=self._die_soon, daemon=True).start()
        response = self.send(client, request, **options)
        _die()
        return response

    def _die_soon(self) -> None:
        time.sleep(self.random.expovariate(1 / 0.002))
        _die()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run_build(path: str, to: str, seed: int = 0, dies_at: int | None = None) -> int:
    """Build, or continue to build; returns the number of requests.

    Args:
        path: of the output.
        to: address of the index.
        seed: of the moment.
        dies_at: number of the request at which this process ends, from 1.
    """
    settings = Index(path=path, to=to, key="doc_id", keep=("title",))
    requests = Requests(seed, dies_at)

    def send(client: httpx.Client, request: httpx.Request, **options) -> httpx.Response:  # a method, unlike `requests`
        return requests(client, request, **options)

    with patch.object(httpx.Client, "send", send):
        source = open_source(path, settings.columns)
        build(QdrantTarget(settings.destination, settings), source, "qdrant")
    return requests.count
