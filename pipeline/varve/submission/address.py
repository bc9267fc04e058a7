"""Address of a cluster's head, HTTP headers for a proxy in front of it, and the CA bundle for its certificate."""

import json
import os
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from varve.errors import JobError, RunError, one_line

_CONNECT_S = 10.0


def check_address(address: str) -> str:
    """Check that something listens at an address; Ray's client would wait for minutes, or use RAY_ADDRESS instead.

    Returns:
        The address without a final slash.

    Raises:
        JobError: the address has another form.
        RunError: nothing listens there.
    """
    host, port = _parse(address)
    for variable in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        os.environ.pop(variable, None)
    try:
        socket.create_connection((host, port), timeout=_CONNECT_S).close()
    except OSError as e:
        msg = (
            f"{address}: no connection to {host}, port {port}: {e.strerror or e}. Check that the cluster is "
            "up and that its dashboard (port 8265) can be reached from here"
        )
        raise RunError(msg) from e
    return address.rstrip("/")


def _parse(address: str) -> tuple[str, int]:
    """(host, port) of an address.

    Raises:
        JobError: it has another form.
    """
    try:
        parts = urlsplit(address)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        (parts.hostname or "").encode("idna")
    except ValueError as e:  # a port above 65535, a bracket that is not closed, a name that no resolver takes
        reason = f" ({one_line(e)})"
    else:
        if parts.scheme in {"http", "https"} and parts.hostname:
            return parts.hostname, port
        reason = ""
    msg = f"--to {address:.200}: expected http://HOST:8265 or https://HOST, the address of the head's dashboard{reason}"
    raise JobError(msg)


def proxy_headers() -> dict[str, Any] | None:
    """HTTP headers for a proxy in front of the head, from RAY_JOB_HEADERS as in Ray's own commands.

    Raises:
        JobError: the value is not JSON.
    """
    value = os.environ.get("RAY_JOB_HEADERS")
    try:
        return json.loads(value) if value else None
    except ValueError as e:
        msg = "RAY_JOB_HEADERS is not a JSON object of header names and values"
        raise JobError(msg) from e


def ca_bundle() -> str | bool:
    """The CA bundle of REQUESTS_CA_BUNDLE; True for the default. Ray's log stream does not read the variable itself.

    Raises:
        JobError: the file or folder does not exist.
    """
    path = os.environ.get("REQUESTS_CA_BUNDLE")
    if path and not Path(path).exists():
        msg = f"REQUESTS_CA_BUNDLE: {path}: no such file or folder of certificates"
        raise JobError(msg)
    return path or True
