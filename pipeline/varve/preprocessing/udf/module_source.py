"""A user's Python file as text, with those of its neighbours that it imports; nothing is run.

Knows nothing of what is installed or loaded in this process.
"""

import ast
import importlib.util
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from varve.errors import JobError, one_line


@dataclass(frozen=True, slots=True)
class Module:
    """A Python file as it was read."""

    name: str
    path: str
    text: str = field(repr=False)
    is_package: bool

    @property
    def place(self) -> str:
        """Its path below the folder in which modules are looked for."""
        return f"{self.name.replace('.', '/')}{'/__init__' if self.is_package else ''}.py"


@dataclass(frozen=True, slots=True)
class Code:
    """A function, and the text that defines it."""

    module: str
    function: str
    modules: tuple[Module, ...]  # the function's and those beside it that it imports; none of an installed package
    sha256: str  # of their names and texts, or of the installed module's file

    @property
    def name(self) -> str:
        """As the job writes it: module:function."""
        return f"{self.module}:{self.function}"


def tell(error: BaseException, code: Code | None = None) -> str:
    """What went wrong in the user's code, in one line: kind, message and, with `code`, the line of their file."""
    try:
        words = one_line(error)
    except Exception:  # noqa: BLE001 (their class, their __str__)
        words = ""
    told = f"{type(error).__name__}: {words}" if words else type(error).__name__
    # What could not be written as UTF-8 must not cost more than the row it is told of.
    return told.encode(errors="replace").decode() + (_line_of(error, code) if code else "")


def _line_of(error: BaseException, code: Code) -> str:
    if isinstance(error, SyntaxError):
        return f" ({Path(error.filename or '').name}, line {error.lineno})"
    paths = {module.path for module in code.modules}
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in paths]
    return f" ({Path(lines[-1].filename).name}, line {lines[-1].lineno})" if lines else ""


def file_of(root: Path, name: str) -> Path | None:
    """The Python file of a module below a folder."""
    path = root.joinpath(*name.split("."))
    candidates = (path / "__init__.py", path.with_suffix(".py"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def closure(root: Path, name: str, key: str) -> Iterator[Module]:
    """A module, its packages, and whatever of the same folder they import, in functions too."""
    waiting, seen = [name], set()
    while waiting:
        # A module's packages are run before it.
        parts = waiting.pop().split(".")
        for wanted in (".".join(parts[: depth + 1]) for depth in range(len(parts))):
            path = file_of(root, wanted)
            if wanted in seen or path is None:
                continue
            seen.add(wanted)
            module = _read(wanted, path, key)
            yield module
            waiting += _imports(module, key)


def _read(name: str, path: Path, key: str) -> Module:
    try:
        text = importlib.util.decode_source(path.read_bytes())
    except (OSError, SyntaxError, UnicodeDecodeError) as e:
        msg = f"{key}: {path} can't be read: {tell(e)}"
        raise JobError(msg) from e
    return Module(name, str(path), text, is_package=path.name == "__init__.py")


def _imports(module: Module, key: str) -> Iterator[str]:
    """Full names that a module's text imports; of `from a import b` both a and a.b, since b may be a module."""
    try:
        tree = ast.parse(module.text, module.path)
    except (SyntaxError, ValueError) as e:
        msg = f"{key}: {module.path} is not Python: {tell(e)}"
        raise JobError(msg) from e
    package = module.name.split(".") if module.is_package else module.name.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            if base:
                yield base
            yield from (f"{base}.{alias.name}" if base else alias.name for alias in node.names)


def is_same(file: str, other: str | Path) -> bool:
    """Whether two paths lead to one file: any of them may be a link, as in a mounted ConfigMap."""
    return Path(file).resolve() == Path(other).resolve()
