"""The user's own code that a job names: found, read and hashed without being run; loaded, wherever it is needed.

What lies beside the job file or on the Python path travels to the workers as source text, with those of its neighbours
that it imports; an installed package is imported there by its name. Knows nothing of features or rows. Invariants: only
modules that the job names, and what these import, are run; the same text is run everywhere, that of the hash.
"""

import ast
import importlib
import importlib.util
import json
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.abc import ExecutionLoader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.errors import JobError

_INSTALLED = ("site-packages", "dist-packages")
_SHOWN = 100
_STDLIB = Path(sysconfig.get_path("stdlib"))


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


def find_code(python: str, folder: str, key: str) -> Code:
    """Read the text of a function's module, and of its neighbours that it imports; nothing is run.

    Args:
        python: module:function.
        folder: where modules are looked for first; then on the Python path.
        key: of the job, for messages.

    Raises:
        JobError: there is no such module, it is not Python, or its name is taken.
    """
    name, _, function = python.partition(":")
    roots = _roots(folder)
    root = next((root for root in roots if _file(root, name)), None)
    if root is None:
        return Code(name, function, (), _installed_hash(name, folder, roots, key))
    modules = tuple(sorted(_closure(root, name, key), key=lambda module: module.name))
    for top in {module.name.partition(".")[0] for module in modules}:
        _refuse_taken(top, root, key)
    content = json.dumps([[module.name, module.text] for module in modules])
    return Code(name, function, modules, sha256(content.encode()).hexdigest())


def load(code: Code, key: str) -> Callable[[Any], Any]:
    """The function, from a module that is run once in a process.

    Raises:
        JobError: the module fails when it is imported, or has no such function of one argument.
    """
    try:
        module = _load_module(code)
    except (Exception, SystemExit) as e:
        hint = ". What it imports lies beside it or is installed, on every node" if isinstance(e, ImportError) else ""
        msg = f"{key}: {code.module} can't be imported: {tell(e, code)}{hint}"
        raise JobError(msg) from e
    function = getattr(module, code.function, None)
    if not callable(function):
        what = "has no function" if function is None else f"has a {type(function).__name__}, no function,"
        known = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        hint = f". It has {', '.join(known)}" if known else ""
        msg = f"{key}: {module.__file__} {what} {code.function!r}{hint}"
        raise JobError(msg)
    try:
        signature(function).bind(object())
    except TypeError:
        takes = str(signature(function))
        shown = takes if len(takes) <= _SHOWN else "(...)"
        msg = f"{key}: {code.name}{shown} can't be called with one argument: it is given a pyarrow.RecordBatch of rows"
        raise JobError(msg) from None
    except ValueError:
        pass  # functions written in C may not say what they take
    return function


def tell(error: BaseException, code: Code | None = None) -> str:
    """What went wrong in the user's code, in one line: kind, message and, with `code`, the line of their file."""
    try:
        words = " ".join(str(error).split())
    except Exception:  # noqa: BLE001 (their class, their __str__)
        words = ""
    told = f"{type(error).__name__}: {words[:300]}" if words else type(error).__name__
    # What could not be written as UTF-8 must not cost more than the row it is told of.
    return told.encode(errors="replace").decode() + (_line_of(error, code) if code else "")


def _line_of(error: BaseException, code: Code) -> str:
    if isinstance(error, SyntaxError):
        return f" ({Path(error.filename or '').name}, line {error.lineno})"
    paths = {module.path for module in code.modules}
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in paths]
    return f" ({Path(lines[-1].filename).name}, line {lines[-1].lineno})" if lines else ""


def _roots(folder: str) -> list[Path]:
    """Folders whose Python files are the user's own, in the order in which they are looked at."""
    entries = [Path(folder), *(Path(entry) for entry in sys.path)]
    own = [entry.resolve() for entry in entries if entry.is_dir() and not _is_installed(entry)]
    return list(dict.fromkeys(own))


def _is_installed(path: Path) -> bool:
    return any(part in _INSTALLED for part in path.parts) or path.is_relative_to(_STDLIB)


def _file(root: Path, name: str) -> Path | None:
    """The Python file of a module below a folder."""
    path = root.joinpath(*name.split("."))
    candidates = (path / "__init__.py", path.with_suffix(".py"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _installed_hash(name: str, folder: str, roots: Sequence[Path], key: str) -> str:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        shown = ", ".join(str(root) for root in roots if root != Path(folder).resolve())
        msg = (
            f"{key}: there is no module {name!r}: looked for {name.replace('.', '/')}.py in {Path(folder).resolve()}"
            f"{', in ' + shown if shown else ''} and among installed packages"
        )
        raise JobError(msg)
    return sha256(Path(spec.origin).read_bytes()).hexdigest()


def _closure(root: Path, name: str, key: str) -> Iterator[Module]:
    """A module, its packages, and whatever of the same folder they import, in functions too."""
    waiting, seen = [name], set()
    while waiting:
        # A module's packages are run before it.
        parts = waiting.pop().split(".")
        for wanted in (".".join(parts[: depth + 1]) for depth in range(len(parts))):
            path = _file(root, wanted)
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


def _refuse_taken(top: str, root: Path, key: str) -> None:
    """Refuse a module whose name another one bears too: which of the two is imported would depend on the process."""
    own = _file(root, top)
    elsewhere = [entry for entry in sys.path if Path(entry).resolve() != root]
    spec = PathFinder.find_spec(top, elsewhere)
    other = spec.origin if spec is not None and spec.loader is not None else None
    if other and own and _is_same(other, own):
        other = None
    loaded = sys.modules.get(top)
    if loaded is not None and not _is_ours(loaded) and not _comes_from(loaded, own):
        other = getattr(loaded, "__file__", None) or "a part of Python"
    if top in sys.stdlib_module_names:
        other = other or "a part of Python"
    if other:
        msg = f"{key}: {own or root / top} has the name of another module, {other}: rename yours"
        raise JobError(msg)


def _comes_from(module: ModuleType, own: Path | None) -> bool:
    """Whether a loaded module is the user's own; one without a file stands for a folder."""
    file = getattr(module, "__file__", None)
    return file is None or (own is not None and _is_same(file, own))


def _is_same(file: str, other: str | Path) -> bool:
    """Whether two paths lead to one file: any of them may be a link, as in a mounted ConfigMap."""
    return Path(file).resolve() == Path(other).resolve()


class _Texts(MetaPathFinder, ExecutionLoader):
    """Gives modules out of their texts."""

    def __init__(self, modules: Sequence[Module]) -> None:
        self.modules = {module.name: module for module in modules}
        # A package without a file of its own is there for the modules in it.
        paths = [name.split(".") for name in self.modules]
        parents = {".".join(path[:depth]) for path in paths for depth in range(1, len(path))}
        self._folders = parents - set(self.modules)

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:  # noqa: ARG002 (Python calls it so)
        if fullname in self._folders:
            return ModuleSpec(fullname, None, is_package=True)
        if fullname not in self.modules:
            return None
        return importlib.util.spec_from_file_location(
            fullname,
            self.modules[fullname].path,
            loader=self,
            submodule_search_locations=[] if self.is_package(fullname) else None,
        )

    def get_filename(self, fullname: str) -> str:
        return self.modules[fullname].path

    def get_source(self, fullname: str) -> str:
        return self.modules[fullname].text

    def is_package(self, fullname: str) -> bool:
        return self.modules[fullname].is_package


def _is_ours(module: ModuleType) -> bool:
    return isinstance(getattr(module, "__loader__", None), _Texts)


_loaded: dict[str, ModuleType] = {}  # hash → module


def _load_module(code: Code) -> ModuleType:
    if not code.modules:
        return importlib.import_module(code.module)
    key = f"{code.sha256} {code.module}"
    if key not in _loaded:
        if not all(map(_has_room, code.modules)):
            _forget()
        sys.meta_path.insert(0, _Texts(code.modules))
        loaded = importlib.import_module(code.module)
        file = getattr(loaded, "__file__", None)
        if file is None or not any(_is_same(file, module.path) for module in code.modules):
            msg = f"its name is taken in this process by {file or 'a part of Python'}"
            raise ImportError(msg)
        _loaded[key] = loaded
    return _loaded[key]


def _has_room(module: Module) -> bool:
    """Whether nothing stands under a module's name but the same text."""
    loader = getattr(sys.modules.get(module.name), "__loader__", None)
    return not isinstance(loader, _Texts) or loader.modules[module.name] == module


def _forget() -> None:
    """Make room where an earlier job of this process has loaded other texts; its functions keep what they have."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Texts)]
    for name in [name for name, module in sys.modules.items() if _is_ours(module)]:
        del sys.modules[name]
