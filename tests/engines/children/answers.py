"""Answers requests on standard input with lines of JSON on standard output; what libraries print goes to stderr."""

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any


def answer(operations: Mapping[str, Callable[..., Any]]) -> None:
    """Run operations by name until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            result = {"value": operations[request["name"]](**request["arguments"])}
        except Exception as e:  # noqa: BLE001 (the test gets it)
            result = {"error": f"{type(e).__name__}: {e}"[:800]}
        print(json.dumps(result, default=str), file=answers)
