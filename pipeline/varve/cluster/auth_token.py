"""Ray's token authentication: whether this process uses the token that the user has.

Ray reads RAY_AUTH_MODE when it is imported. `ray start` and a local Ray turn token mode on by themselves, and a local
Ray leaves a token in the home folder; a program that joins a cluster does not turn it on. Knows nothing of jobs.
Invariant: neither importing this file nor asking a cluster imports ray into this process.
"""

import os
import subprocess
import sys
from pathlib import Path

_TIMEOUT_S = 10.0


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


def _has_token() -> bool:
    in_environment = any(os.environ.get(variable) for variable in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    return in_environment or (Path.home() / ".ray/auth_token").is_file()


def _answers_without_token(address: str) -> bool:
    health_check = ["health-check", "--skip-version-check", "--address", address]
    command = [sys.executable, "-m", "ray.scripts.scripts", *health_check]
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
