"""Whether this process speaks to Ray with the token that is at hand.

Ray reads RAY_AUTH_MODE when it is imported, and a program that joins a cluster gets no token mode by itself; `ray
start` and a Ray of one's own do, and the latter leaves a token in the home folder for good. Knows nothing of
jobs. Invariant: importing this file, and asking a cluster, brings no ray into this process.
"""

import os
import subprocess
import sys
from pathlib import Path

_ANSWER_S = 10.0


def use_token(joins: str | None) -> None:
    """Set RAY_AUTH_MODE, where neither the user nor a Ray that is imported already has settled it.

    A process in token mode can't work on a cluster without: the workers' calls to it are refused, and Ray says only
    that its actors were cancelled.

    Args:
        joins: address of the Ray that this process will join, as in RAY_ADDRESS; None if it will start its own, or
            speak to a head's dashboard only.
    """
    if "ray" in sys.modules or "RAY_AUTH_MODE" in os.environ or not _at_hand():
        return
    os.environ["RAY_AUTH_MODE"] = "disabled" if joins and _answers_without(joins) else "token"


def _at_hand() -> bool:
    named = any(os.environ.get(variable) for variable in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    return named or (Path.home() / ".ray/auth_token").is_file()


def _answers_without(address: str) -> bool:
    ask = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--skip-version-check", "--address", address]
    try:
        answer = subprocess.run(  # noqa: S603 (the address is the user's own)
            ask, env=os.environ | {"RAY_AUTH_MODE": "disabled"}, capture_output=True, timeout=_ANSWER_S, check=False
        )
    except subprocess.TimeoutExpired:  # nobody is there: joining says so
        return False
    return answer.returncode == 0
