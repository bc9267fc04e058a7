"""Ray's token authentication: whether this process uses the token that the user has.

Ray reads RAY_AUTH_MODE when it is imported. `ray start` and a local Ray turn token mode on by themselves, and a local
Ray leaves a token in the home folder; a program that joins a cluster does not turn it on. Knows nothing of jobs.
Invariant: neither importing this file nor asking a cluster imports ray into this process.
"""

import os
import secrets
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

_TIMEOUT_S = 10.0
_TOKEN_BYTES = 32


def use_token(address: str | None) -> None:
    """Set RAY_AUTH_MODE, unless the user or an imported Ray has settled it.

    A process in token mode cannot work on a cluster without: it refuses the calls of the workers, and Ray reports only
    that its actors were cancelled.

    Args:
        address: of the Ray that this process will join, as in RAY_ADDRESS; None if it starts its own or talks to a
            dashboard only.
    """
    if "ray" in sys.modules or "RAY_AUTH_MODE" in os.environ or not _has_token():
        return
    os.environ["RAY_AUTH_MODE"] = "disabled" if address and _answers_without_token(address) else "token"


def make_token_private() -> None:
    """Make sure that no other user of the machine can read the token of a Ray that this process is about to start.

    Ray writes a new token that all users can read. A home folder that can't be written gets none: then this process
    and its subprocesses share one in their environment.
    """
    if os.environ.get("RAY_AUTH_MODE", "token") != "token" or _in_environment():
        return
    try:
        path = _token_file()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _write_new(path)
        if path.stat().st_uid == os.getuid():
            path.chmod(0o600)
    except (OSError, RuntimeError):  # RuntimeError: there is no home folder
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(_TOKEN_BYTES))


def _write_new(path: Path) -> None:
    """Write a token file, unless another process does: no process may read one without its content."""
    with NamedTemporaryFile("w", dir=path.parent) as file:  # with mode 0600
        file.write(secrets.token_hex(_TOKEN_BYTES))
        file.flush()
        with suppress(FileExistsError):
            os.link(file.name, path)


def _has_token() -> bool:
    return _in_environment() or _token_file().is_file()


def _in_environment() -> bool:
    return any(os.environ.get(variable) for variable in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))


def _token_file() -> Path:
    """Where Ray looks for the token.

    Raises:
        RuntimeError: the user has no home folder.
    """
    return Path.home() / ".ray/auth_token"


def _answers_without_token(address: str) -> bool:
    health_check = ["health-check", "--skip-version-check", "--address", address]
    # -P keeps the current folder off sys.path: a folder `ray` in it must not be imported.
    command = [sys.executable, "-P", "-m", "ray.scripts.scripts", *health_check]
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    try:
        answer = subprocess.run(  # noqa: S603 (the address is the user's own)
            command,
            env=environment,
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:  # no answer: joining reports it
        return False
    return answer.returncode == 0
