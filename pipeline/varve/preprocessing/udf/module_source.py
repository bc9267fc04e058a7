"""Reads a user's Python module as text, with the modules next to it that it imports; runs nothing.

Knows nothing of modules that are installed or loaded in this process.
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
    """The text of a Python file."""

    name: str
    path: str
    text: str = field(repr=False)
    is_package: bool

    @property
    def relative_path(self) -> str:
        """Path below the folder in which modules are searched."""
        return f"{self.name.replace('.', '/')}{'/__init__' if self.is_package else ''}.py"


@dataclass(frozen=True, slots=True)
class Code:
    """A function and the text that defines it."""

    module: str
    function: str
    modules: tuple[Module, ...]  # the function's module and the local modules that it imports; empty if it is installed
    sha256: str  # of the modules' names and texts, or of the installed module's file

    @property
    def name(self) -> str:
        """module:function, as a job file writes it."""
        return f"{self.module}:{self.function}"


def describe_error(error: BaseException, code: Code | None = None) -> str:
    """An error of user code in one line: class, message and, with `code`, the line in the user's file."""
    try:
        message = one_line(error)
    except Exception:  # noqa: BLE001 (the error's class is user code, and its __str__ may raise)
        message = ""
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    # Text that cannot be written as UTF-8 would make the whole part fail.
    return text.encode(errors="replace").decode() + (_location(error, code) if code else "")


def _location(error: BaseException, code: Code) -> str:
    if isinstance(error, SyntaxError):
        return f" ({Path(error.filename or '').name}, line {error.lineno})"
    paths = {module.path for module in code.modules}
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in paths]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


def find_module_file(root: Path, name: str) -> Path | None:
    """The Python file of a module below a folder, or None."""
    path = root.joinpath(*name.split("."))
    candidates = (path / "__init__.py", path.with_suffix(".py"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def read_with_imports(root: Path, name: str, key: str) -> Iterator[Module]:
    """Read a module, its packages, and all modules of the same folder that they import, also inside functions.

    Raises:
        JobError: a file cannot be read, or is not Python.
    """
    pending, seen = [name], set[str]()
    while pending:
        parts = pending.pop().split(".")
        # Python runs the packages of a module before the module.
        for module_name in (".".join(parts[: depth + 1]) for depth in range(len(parts))):
            path = find_module_file(root, module_name)
            if module_name in seen or path is None:
                continue
            seen.add(module_name)
            module = _read(module_name, path, key)
            yield module
            pending += _imported_names(module, key)


def _read(name: str, path: Path, key: str) -> Module:
    try:
        text = importlib.util.decode_source(path.read_bytes())
    except (OSError, SyntaxError, UnicodeDecodeError) as e:
        msg = f"{key}: {path} cannot be read: {describe_error(e)}"
        raise JobError(msg) from e
    return Module(name, str(path), text, is_package=path.name == "__init__.py")


def _imported_names(module: Module, key: str) -> Iterator[str]:
    """Full names that a module imports; for `from a import b` both a and a.b, because b may be a module."""
    try:
        tree = ast.parse(module.text, module.path)
    except (SyntaxError, ValueError) as e:
        msg = f"{key}: {module.path} is not valid Python: {describe_error(e)}"
        raise JobError(msg) from e
    package = module.name.split(".") if module.is_package else module.name.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            if base:
                yield base
            yield from (f"{base}.{alias.name}" if base else alias.name for alias in node.names)


def is_same_file(path: str, other: str | Path) -> bool:
    """Whether two paths are the same file after links are resolved, such as those of a mounted ConfigMap."""
    return Path(path).resolve() == Path(other).resolve()
