"""The prose is plain English: none of the turns below, in docstrings, comments, messages, help or documents."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator

import pytest

from tests.docs.pages import ROOT, parser_of
from varve.cli.main import COMMANDS

# turn → what to write instead. Verbs in all their forms.
TURNS = {
    r"\b(is|are|was|were|be|been) told\b|\btold\b": "reports, is given, message",
    r"\bhears?\b|\bheard\b": "receives",
    r"\b(stands?|stood|standing) (in|on|at|as|by|back|above|below|between|within)\b": "is in",
    r"\b(stands?|stood|standing) beside\b|\bbeside\b": "next to, with, in addition to",
    r"\b(lay|lays|laid|laying) (down|out|over|upon|beside)\b": "writes, sets, arranges",
    r"\b(gives?|gave|given|giving) (it |them )?up\b": "fails, stops",
    r"\bin vain\b": "without effect",
    r"\bwithout a word\b": "silently",
    r"\b(those|they|these) who\b|\bwho (tokenize|encode|read|write|ask|submit)s?\b": "the task that, the user",
    r"\bthose that\b": "name the things",
    r"\b(what|all that) is left\b": "the rest",
    r"\bnobody\b": "no one, nothing",
    r"\bits likes?\b|\btheir likes?\b": "similar",
    r"\bis no (folder|file|price|module|number|json|image|part|key|yaml)\b": "is not a ...",
    r"\bno price\b": "free",
    r"\b(that|which|it) is none\b": "that is not one",
    r"\bof one's own\b|\bof somebody's own\b|\bof ours\b": "your own",
    r"\b(mend|mends|mended|mending)\b": "fix",
    r"\b(heed|heeds|heeded)\b": "respect",
    r"\b(comes?|came|coming) along\b": "is included",
    r"\b(goes|go|went|going|gone) on\b": "resumes, continues",
    r"\ba look\b|\bwithout looking\b": "reading, inspecting",
    r"\bby hand of\b": "by",
    r"\bin words\b": "as text",
    r"\bonce more\b": "again",
    r"\bkin\b": "family",
    r"\bfor the goodbye\b|\bpart(s|ing)? from Ray\b": "shut down",
    r"\bsomebody('s)?\b": "a user",
    r"\b(says|say) (so|that|how|which|what|whether|why|where)\b": "reports, states",
}
PATTERN = re.compile("|".join(f"(?:{turn})" for turn in TURNS).replace(" ", r"\s+"), re.IGNORECASE)
C_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)

Prose = Iterator[tuple[int, str]]  # line, text


def prose_of_python(text: str) -> Prose:
    """Comments, docstrings and messages: all strings with a space in them."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value


def prose_of_c(text: str) -> Prose:
    for comment in C_COMMENT.finditer(text):
        yield text.count("\n", 0, comment.start()) + 1, comment[0]


def prose_of_script(text: str) -> Prose:
    """Comments of YAML and of shell; lines below each other are one text."""
    yield 1, re.sub(r"^(?!\s*#).*$", "", text, flags=re.MULTILINE).replace("#", " ")


def prose_of_document(text: str) -> Prose:
    """All of it but inline code; code blocks hold comments, which are prose too."""
    yield 1, re.sub(r"`[^`\n]+`", "CODE", text)


READERS = {
    ".py": prose_of_python, ".c": prose_of_c, ".h": prose_of_c, ".jinja": prose_of_document, ".md": prose_of_document,
    ".yaml": prose_of_script, ".yml": prose_of_script, ".sh": prose_of_script, ".sbatch": prose_of_script,
}  # fmt: skip
FOLDERS = ("pipeline", "jobs", "infra")
FILES = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in READERS]


def turns(prose: Prose) -> list[str]:
    """`LINE: turn` of each turn that is not plain, also where it spans two lines."""
    return [
        f"{line + text.count(chr(10), 0, match.start())}: {' '.join(match[0].split())}"
        for line, text in prose
        for match in PATTERN.finditer(text)
    ]


@pytest.mark.parametrize("path", sorted([*ROOT.glob("*.md"), *FILES]), ids=lambda path: str(path.relative_to(ROOT)))
def test_prose_is_in_plain_english(path):
    found = turns(READERS[path.suffix](path.read_text(encoding="utf-8")))
    assert not found, "\n".join(f"{path.relative_to(ROOT)}:{turn}" for turn in found)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_in_plain_english(name):
    assert not turns([(1, f"{COMMANDS[name]}\n{parser_of(name).format_help()}")])
