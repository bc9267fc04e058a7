"""Reads JSON that anybody may have written: bounded in depth, without text that cannot be written again."""

import json
import re
from typing import Any

# About 2 million parts.
MAX_BYTES = 1024**3
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_object(content: bytes | str) -> dict[str, Any]:
    """Parse a document that is an object.

    Raises:
        ValueError: it is not JSON or no object, is nested too deep, or holds half of a surrogate pair.
    """
    try:
        value = json.loads(content)
        text = content.encode(errors="surrogatepass") if isinstance(content, str) else content
        if _ESCAPED_SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as e:
        msg = "it is nested too deep"
        raise ValueError(msg) from e
    if not isinstance(value, dict):
        msg = f"expected an object, not {type(value).__name__}"
        raise ValueError(msg)  # noqa: TRY004 (the content is wrong, not an argument)
    return value
