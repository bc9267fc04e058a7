"""The user's own code that a job names: found, read and hashed without being run.

What lies beside the job file or on the Python path is the user's own, and travels as text; an installed package is
imported on the workers by its name. Invariant: no name leads to one module here and to another there.
"""

import importlib.util
import json
import sys
import sysconfig
from collections.abc import Sequence
from hashlib import sha256
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

from varve.errors import JobError
from varve.preprocessing.udf.loader import is_ours
from varve.preprocessing.udf.module_source import Code, closure, file_of, is_same

_INSTALLED = ("site-packages", "dist-packages")
_STDLIB = Path(sysconfig.get_path("stdlib"))


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
    root = next((root for root in roots if file_of(root, name)), None)
    if root is None:
        return Code(name, function, (), _installed_hash(name, folder, roots, key))
    modules = tuple(sorted(closure(root, name, key), key=lambda module: module.name))
    for top in {module.name.partition(".")[0] for module in modules}:
        _refuse_taken(top, root, key)
    content = json.dumps([[module.name, module.text] for module in modules])
    return Code(name, function, modules, sha256(content.encode()).hexdigest())


def _roots(folder: str) -> list[Path]:
    """Folders whose Python files are the user's own, in the order in which they are looked at."""
    entries = [Path(folder), *(Path(entry) for entry in sys.path)]
    own = [entry.resolve() for entry in entries if entry.is_dir() and not _is_installed(entry)]
    return list(dict.fromkeys(own))


def _is_installed(path: Path) -> bool:
    return any(part in _INSTALLED for part in path.parts) or path.is_relative_to(_STDLIB)


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


def _refuse_taken(top: str, root: Path, key: str) -> None:
    """Refuse a module whose name another one bears too: which of the two is imported would depend on the process."""
    own = file_of(root, top)
    elsewhere = [entry for entry in sys.path if Path(entry).resolve() != root]
    spec = PathFinder.find_spec(top, elsewhere)
    other = spec.origin if spec is not None and spec.loader is not None else None
    if other and own and is_same(other, own):
        other = None
    loaded = sys.modules.get(top)
    if loaded is not None and not is_ours(loaded) and not _comes_from(loaded, own):
        other = getattr(loaded, "__file__", None) or "a part of Python"
    if top in sys.stdlib_module_names:
        other = other or "a part of Python"
    if other:
        msg = f"{key}: {own or root / top} has the name of another module, {other}: rename yours"
        raise JobError(msg)


def _comes_from(module: ModuleType, own: Path | None) -> bool:
    """Whether a loaded module is the user's own; one without a file stands for a folder."""
    file = getattr(module, "__file__", None)
    return file is None or (own is not None and is_same(file, own))
