"""Changes of JSON documents: other values, keys, depths and sizes, and text that writers of JSON do not write."""

import json
from copy import deepcopy
from itertools import islice
from random import Random
from typing import Any

# A folder outside of what any target may write; targets that may not even read it say so.
OUTSIDE = "/tmp/varve-fuzz-outside"
VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 7, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**18, 10**40,
    -(10**40), 10**400, 1.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"), "", " ", "x", "0", "1", "-1", "null",
    "nan",
    "0" * 64, "../../../../outside", "..", ".", "/", "\\", OUTSIDE, f"{OUTSIDE}/x.json", f"file://{OUTSIDE}/x.parquet",
    "s3://nowhere/x", "s3://", "://", "http://127.0.0.1:9/x", "~", "~root/x", "/dev/zero", "/proc/self/mem",
    "\ud800", "a\0b",
    "a\nb", "\x1b[31m", "\u202e", "%s%n", "{0.__class__}", "${HOME}", "$(touch x)", "<script>", "'; DROP TABLE x; --",
    "é" * 300, "x" * 5000, [], [0], [[0, 1]], [None], {}, {"a": 1}, {"a": {}}, [10**18] * 3, [[]] * 50, {"": ""},
    "2026-01-01", "9999-12-31T23:59:59.999999+14:00", "1e999", "0x10", "float32", "int8", "list<list<float>>", "*",
    "a.b",
)  # fmt: skip
_RAW = (
    b"NaN", b"-Infinity", b"1e999", b"-0", b"01", b"1" * 5000, b'"\\ud800"', b'"\\u0000"', b"'x'", b"/*c*/1",
    b"[" * 3000,
    b"1.", b'"\xff"', b"{,}", b'"\n"', b"0.1e-99999", b'{"a":1,"a":2}',
)  # fmt: skip
_MAX_CHANGES = 3
_MAX_PLACES = 20_000  # aliases of YAML can make a document endless
_RAW_SHARE = 0.1
_MAX_FLOAT = 1e300
_PIECES = (
    "../", "/", "\0", "\ud800", " ", "\n", ".", ":", "0", "é", "%2e%2e/", "\\", "x" * 300, "'", '"', "${x}",
)  # fmt: skip


def change_json(random: Random, content: bytes) -> bytes:
    """Change one to three places of a document.

    Raises:
        ValueError, RecursionError: it is not JSON.
    """
    document = json.loads(content)
    for _ in range(random.randint(1, _MAX_CHANGES)):
        document = change_document(random, document)
    text = json.dumps(document, ensure_ascii=random.random() < 0.8, indent=random.choice((None, 1)))
    encoded = text.encode("utf-8", "surrogatepass")
    return change_json_text(random, encoded) if random.random() < _RAW_SHARE else encoded


def change_json_text(random: Random, content: bytes) -> bytes:
    """Replace one value by text that is seldom written, or repeat a key."""
    places = [at for at, byte in enumerate(content) if byte in b":,[{"]
    if not places:
        return random.choice(_RAW)
    at = random.choice(places) + 1
    end = next((stop for stop in range(at, len(content)) if content[stop] in b",]}"), len(content))
    if content[at - 1] in b"{" and random.random() < 0.5:
        return content[:at] + content[at:end] + b"," + content[at:]
    return content[:at] + random.choice(_RAW) + content[end:]


def change_document(random: Random, document: Any) -> Any:
    """Change one place of a document, in place where possible; returns it."""
    places = list(islice(_places(document), _MAX_PLACES))
    if not places:
        return deepcopy(random.choice(VALUES))
    parent, key = random.choice(places)
    match random.randrange(10):
        case 0:
            del parent[key]
        case 1:
            _rename(random, parent, key)
        case 2:
            parent[key] = _nested(random, parent[key])
        case 3:
            other, other_key = random.choice(places)
            parent[key] = deepcopy(other[other_key]) if len(places) < 500 else None
        case 4 | 5 | 6:
            parent[key] = _near(random, parent[key])
        case _:
            parent[key] = deepcopy(random.choice(VALUES))
    return document


def _places(document: Any) -> Any:
    """(parent, key) of each value."""
    stack = [document]
    while stack:
        parent = stack.pop()
        entries = parent.items() if isinstance(parent, dict) else enumerate(parent) if isinstance(parent, list) else ()
        for key, value in entries:
            yield parent, key
            if isinstance(value, (dict, list)):
                stack.append(value)


def _rename(random: Random, parent: Any, key: Any) -> None:
    if isinstance(parent, list):
        parent.insert(key, deepcopy(parent[random.randrange(len(parent))]))
        return
    names = [str(value) for value in VALUES if isinstance(value, str)]
    parent[random.choice([*names, f"{key}x", f"{key}_ids", str(key).upper()])] = parent.pop(key)


def _nested(random: Random, value: Any) -> Any:
    depth = random.choice((1, 2, 30, 900))
    for _ in range(depth):
        value = [value] if random.random() < 0.5 else {"a": value}
    return value


def _near(random: Random, value: Any) -> Any:
    """A value of the same type that is close to this one."""
    match value:
        case bool():
            near: tuple[Any, ...] = (not value, int(value))
        case int():
            near = (value + 1, value - 1, -value, value * 2, value * 10**6, float(min(value, 10**300)), str(value))
        case float():
            near = (value * 2, -value, value * 1e30, int(value) if abs(value) < _MAX_FLOAT else 0, str(value))
        case str():
            near = _near_texts(random, value)
        case list():
            near = (value * 2, value[::-1], value[:-1], [*value, None], [value], {"0": value})
        case dict():
            near = ({**value, "x": 1}, list(value), [value], {}, list(value.values()))
        case _:
            near = VALUES
    return deepcopy(random.choice(near))


def _near_texts(random: Random, value: str) -> tuple[str, ...]:
    at = random.randint(0, len(value))
    added = f"{value[:at]}{random.choice(_PIECES)}{value[at:]}"
    return added, added, value[:at], value.upper(), value * 2, f"../{value}", f"{OUTSIDE}/{value}"
