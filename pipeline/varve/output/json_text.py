"""Reads JSON that anybody may have written: bounded in depth, without text that cannot be written again."""

import json
import re
from typing import Any

# About 2 million parts.
MAX_BYTES = 1024**3
# A job may be nested 50 levels. Code that reads a document calls itself per level, several frames deep.
_MAX_DEPTH = 100
_TOO_DEEP = f"it is nested more than {_MAX_DEPTH} levels deep"
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")


def parse_object(content: bytes | str) -> dict[str, Any]:
    """Parse a document that is an object.

    Raises:
        ValueError: it is not UTF-8, not JSON or no object, is nested too deep, or holds half of a surrogate pair.
    """
    try:
        text = content if isinstance(content, str) else content.decode()  # json.loads accepts surrogates in bytes
        value = json.loads(text)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as e:
        raise ValueError(_TOO_DEEP) from e
    if not isinstance(value, dict):
        msg = f"expected an object, not {type(value).__name__}"
        raise ValueError(msg)  # noqa: TRY004 (the content is wrong, not an argument)
    _check_depth(value)
    return value


def _check_depth(value: dict[str, Any]) -> None:
    """Check the depth, one level after the other."""
    level: list[Any] = [value]
    for _ in range(_MAX_DEPTH):
        entries = (each.values() if type(each) is dict else each for each in level)
        level = [each for values in entries for each in values if type(each) in {dict, list}]
        if not level:
            return
    raise ValueError(_TOO_DEEP)
