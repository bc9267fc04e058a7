"""How a cluster's head is reached: its address, headers for a proxy before it, who vouches for its certificate.

Knows nothing of what is asked of it.
"""

import json
import os
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from varve.errors import JobError, RunError

_CONNECT_S = 10.0


def checked(address: str) -> str:
    """The address, once somebody listens there: Ray's client waits for minutes, or takes RAY_ADDRESS instead.

    Raises:
        JobError: the address has another form.
        RunError: nobody listens there.
    """
    parts = urlsplit(address)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        msg = f"--to {address}: expected http://HOST:8265 or https://HOST, the address of the head's dashboard"
        raise JobError(msg)
    for variable in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        os.environ.pop(variable, None)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname, port), timeout=_CONNECT_S).close()
    except OSError as e:
        msg = (
            f"{address}: nobody answers at {parts.hostname}, port {port}: {e.strerror or e}. Is the cluster up, "
            "and its dashboard (port 8265) reachable from here?"
        )
        raise RunError(msg) from e
    return address.rstrip("/")


def headers() -> dict[str, Any] | None:
    """Further headers for a proxy before the head, as Ray's own commands take them.

    Raises:
        JobError: they are no JSON.
    """
    given = os.environ.get("RAY_JOB_HEADERS")
    try:
        return json.loads(given) if given else None
    except ValueError as e:
        msg = "RAY_JOB_HEADERS is no JSON mapping of header to value"
        raise JobError(msg) from e


def authority() -> str | bool:
    """Who vouches for the head's certificate: said aloud, since what follows the output does not ask `requests`.

    Raises:
        JobError: the certificates are not there.
    """
    given = os.environ.get("REQUESTS_CA_BUNDLE")
    if given and not Path(given).exists():
        msg = f"REQUESTS_CA_BUNDLE: {given}: no such file or folder of certificates"
        raise JobError(msg)
    return given or True
