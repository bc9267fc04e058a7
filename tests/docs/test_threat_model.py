"""Each line of the threat model names a test that exists."""

import ast
import re

import pytest

from tests.docs.pages import ROOT, read

PAGE = "infra/threat-model.md"
_HELD = re.compile(r"^\| (?P<line>[^|`\n]*.*?) \| (?P<tests>`tests/.*`) \|$", re.MULTILINE)
LINES = [(match["line"], re.findall(r"`(tests/[^`]*)`", match["tests"])) for match in _HELD.finditer(read(PAGE))]


def functions_of(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_row_about_what_is_not_trusted_names_its_tests():
    untrusted = read(PAGE).split("## What is not trusted")[1]
    rows = [
        row for row in untrusted.splitlines() if row.startswith("| ") and row not in {"| | test |", "| --- | --- |"}
    ]
    assert len(rows) == len(LINES)


@pytest.mark.parametrize(("line", "names"), LINES, ids=[line for line, _ in LINES])
def test_line_is_held_by_tests_that_exist(line, names):
    assert names, line
    for name in names:
        path, _, test = name.partition("::")
        assert (ROOT / path).is_file(), name
        assert not test or test in functions_of(path), name
