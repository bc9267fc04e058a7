"""Changes valid files at random: any bytes, and the structure of JSON, YAML, JSON lines, Parquet and safetensors.

Knows nothing of what reads the files. Invariant: the same random state and content give the same result.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from random import Random

from tests.fuzz.binary_changes import change_bytes, change_parquet, change_safetensors
from tests.fuzz.json_changes import change_json, change_json_text
from tests.fuzz.yaml_changes import change_yaml

Change = Callable[[Random, bytes], bytes]
_BYTES_SHARE = 0.2  # of changes that know no structure
_ENDLESS = (b"", b"[" * 50_000, b'{"a":' * 50_000, b"null", b"[]", b"0", b'"', b"\xff\xfe", b"\x00" * 64, b"1" * 5000)
_ENDLESS_SHARE = 0.01
_SPLICE_SHARE = 0.05


def mutate(random: Random, name: str, content: bytes, others: Sequence[bytes]) -> bytes:
    """A changed file.

    Args:
        random: where the changes come from.
        name: of the file, whose ending tells its structure.
        content: a valid file, or one that was changed before.
        others: contents of the same file, which may be mixed with it.
    """
    if random.random() < _ENDLESS_SHARE:
        return random.choice(_ENDLESS)
    if others and random.random() < _SPLICE_SHARE:
        other = random.choice(others)
        content = content[: random.randint(0, len(content))] + other[random.randint(0, len(other)) :]
    change = _find_change(name)
    if change is change_bytes or random.random() < _BYTES_SHARE:
        return change_bytes(random, content)
    try:
        return change(random, content)
    except Exception:  # noqa: BLE001 (earlier changes left no structure; each parser has errors of its own)
        return change_bytes(random, content)


def _find_change(name: str) -> Change:
    match PurePosixPath(name).suffix:
        case ".json" | ".metadata":
            return _change_json_lines if "_delta_log" in name else change_json
        case ".jsonl" | ".ndjson":
            return _change_json_lines
        case ".yaml" | ".yml" | ".md":
            return change_yaml
        case ".parquet":
            return change_parquet
        case ".safetensors":
            return change_safetensors
        case _:
            return change_bytes


def _change_json_lines(random: Random, content: bytes) -> bytes:
    lines = content.splitlines()
    place = random.randrange(len(lines))
    json.loads(lines[place])
    match random.randrange(6):
        case 0:
            del lines[place]
        case 1:
            lines.insert(random.randrange(len(lines)), lines[place])
        case 2:
            lines[place] = change_json_text(random, lines[place])
        case _:
            lines[place] = change_json(random, lines[place])
    return b"\n".join(lines) + b"\n"
