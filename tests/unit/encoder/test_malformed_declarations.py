"""Small files of a checkpoint with any content: a message, and never another error."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.declarations import read
from tests.declared_checkpoints import CLUSTERED
from varve.encoder.checkpoint.declared_vectors import DeclaredVectors
from varve.errors import JobError

NASTY = [None, [], {}, "", "x" * 5000, "a\0b", -1, 10**400, float("inf"), True, [None], {"a": [{}]}]
FILES = [b"", b"null", b"[]", b"{}", b"[[]]", b"3", b"\xff\xfe", b"[" * 10**5, b"NaN"]


def places(content: Any) -> list[tuple[Any, ...]]:
    """The place of each value in a JSON document; of a list, only the first."""
    pairs = (
        content.items() if isinstance(content, dict) else enumerate(content[:1]) if isinstance(content, list) else ()
    )
    return [(key, *rest) for key, value in pairs for rest in ((), *places(value))]


def replaced(content: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy of a JSON document with another value in one place."""
    if not place:
        return value
    copy = dict(content) if isinstance(content, dict) else list(content)
    copy[place[0]] = replaced(content[place[0]], place[1:], value)
    return copy


def outcome(folder: Path, role: str) -> DeclaredVectors | JobError:
    try:
        return read(folder, role)
    except JobError as error:
        return error


def check_outcome(folder: Path, role: str) -> None:
    """It is refused by a message, or is a declaration that can be described."""
    found = outcome(folder, role)
    if isinstance(found, JobError):
        assert str(found).startswith("model.role: ")
        return
    assert found.problem is None or found.problem.startswith("model.name: ")
    if found.declaration:
        assert found.declaration.describe(64, found.declaration.text.prompt)
        hash(found.declaration)  # no lists and no objects within


@pytest.mark.parametrize(
    ("shape", "role"),
    [
        ("two Dense, LayerNorm and Normalize", "none"),
        ("SPLADE without inference for queries", "query"),
        (CLUSTERED, "query"),
        ("PyLate with expansion", "query"),
        ("Stanford's ColBERT", "document"),
    ],
)
def test_malformed_files_are_refused_and_never_raise_another_error(shape, role, declared, tmp_path):
    folder = shutil.copytree(declared(shape), tmp_path / "model", ignore=shutil.ignore_patterns("tokenizer*"))
    for file in [*folder.rglob("*.json"), *folder.glob("artifact.metadata")]:
        valid = file.read_bytes()
        content = json.loads(valid) if file != folder / "config.json" else {}
        documents = [replaced(content, place, value) for place in places(content) for value in NASTY]
        for malformed in [*FILES, *(json.dumps(document).encode() for document in documents)]:
            file.write_bytes(malformed)
            check_outcome(folder, role)
        file.unlink()
        file.mkdir()
        check_outcome(folder, role)
        file.rmdir()
        file.write_bytes(valid)
