"""The documentation's pages as blocks of code, commands, sections and links.

Conventions of the pages: a block whose first line is `# NAME.py` or `# NAME.yaml` is the file of that name; `text`
blocks are output; where examples run, the installed copy of the model replaces its id on the Hub.
"""

import argparse
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest

from varve.cli.main import COMMANDS, run_command

ROOT = Path(__file__).parents[2]
README, JOBS, LAKES, SEARCH, INFRA, PIPELINE = PAGES = (
    "README.md",
    "jobs/README.md",
    "jobs/lakes.md",
    "jobs/search.md",
    "infra/README.md",
    "pipeline/README.md",
)
MODEL_ID = "sentence-transformers/all-MiniLM-L6-v2"

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"# ([\w-]+\.(?:py|yaml))\b")
_CODE = re.compile(r"`([^`\n]+)`")
_OPERATORS = {"&&", "||", ";", "|", ">", ">>", "&"}
# Commands of other programs, whose flags are not ours.
_OTHERS = ("docker", "kubectl", "pip", "pytest", "ray", "sbatch")
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


class Block(NamedTuple):
    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str | None:
        """The file that the block is, by its first line."""
        found = _FILE.match(self.text)
        return found[1] if found else None


class Command(NamedTuple):
    argv: list[str]
    has_environment: bool

    @property
    def is_local(self) -> bool:
        """Whether it needs no cluster, no store and no minutes."""
        on_cluster = "--to" in self.argv and self.argv[0] != "index"
        far = self.has_environment or on_cluster or any("://" in argument for argument in self.argv)
        return not far and self.argv[0] not in {"submit", "demo"}


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    """The blocks of code of a page, in order."""
    text = read(page)
    return [Block(page, text.count("\n", 0, m.start()) + 1, m[1], m[2]) for m in _BLOCK.finditer(text)]


def all_blocks(language: str) -> list[Block]:
    return [block for page in PAGES for block in blocks(page) if block.language == language]


def commands(text: str) -> list[Command]:
    """The commands of Varve in a block of bash, in order."""
    found: list[Command] = []
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word not in _OPERATORS:
                words.append(word)
                continue
            assigned = len(words) - len(list(_without_environment(words)))
            argv = words[assigned:]
            if argv[:1] == ["varve"]:
                found.append(Command(argv[1:], assigned > 0))
            words = []
    return found


def _without_environment(words: list[str]) -> list[str]:
    at = next((at for at, word in enumerate(words) if not re.match(r"[A-Za-z_]\w*=", word)), len(words))
    return words[at:]


def prose(page: str) -> str:
    """A page without its blocks of code."""
    return _BLOCK.sub("", read(page))


def flags(text: str) -> set[str]:
    """Flags of Varve that inline code of a text names."""
    return {flag for code in _CODE.findall(text) if not code.startswith(_OTHERS) for flag in _FLAG.findall(code)}


def sections(page: str) -> dict[str, str]:
    """heading → text up to the next heading, blocks of code left out."""
    parts = re.split(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def table(text: str, header: str) -> list[list[str]]:
    """The rows of all tables with this header, cell by cell."""
    rows: list[list[str]] = []
    for lines in re.findall(rf"^{re.escape(header)}\n\|[ |-]+\|\n((?:\|.*\n)*)", text + "\n", re.MULTILINE):
        rows += [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines.splitlines()]
    return rows


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.+)$", _BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


class _ParserMade(Exception):  # noqa: N818 (it is no error)
    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def parser_of(name: str) -> argparse.ArgumentParser:
    """The parser of a command's arguments."""

    def stop(parser: argparse.ArgumentParser, _argv: object = None) -> None:
        raise _ParserMade(parser)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(argparse.ArgumentParser, "parse_args", stop)
        try:
            run_command([name])
        except _ParserMade as made:
            return made.parser
    msg = f"varve {name} parses no arguments"
    raise AssertionError(msg)


def flags_of(name: str) -> set[str]:
    """The flags of a command, without --help and --json."""
    listed = re.findall(r"^  (?:-\w, )?(--[a-z-]+)", parser_of(name).format_help(), re.MULTILINE)
    return set(listed) - {"--help", "--json"}


def all_flags() -> set[str]:
    return {flag for name in COMMANDS for flag in flags_of(name)} | {"--help", "--json", "--version"}
