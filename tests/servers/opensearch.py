"""An emulator of OpenSearch that keeps documents in memory: real bulk requests, mappings, counts and aliases.

It does not search vectors.
"""

import json
import os
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers.processes import answers, end, free_port, start
from tests.waiting import wait_until


@contextmanager
def opensearch(folder: Path) -> Iterator[str]:
    """Start the server on the loopback interface; yields its URL."""
    port, log = free_port(), folder / "opensearch.log"
    binary = next((Path(sys.prefix) / "lib").glob("python*/site-packages/osmem_server/bin/osmem*"))
    command = [str(binary), "-no-ja", "-no-stdin-watch", "-addr", f"127.0.0.1:{port}", "-parent-pid", str(os.getpid())]
    process = start(command, log)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: answers(url), "OpenSearch", log)
        yield url
    finally:
        end([process])


def ask(url: str, method: str = "GET", body: object = None) -> dict:
    """The JSON body of a response."""
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, content, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)
