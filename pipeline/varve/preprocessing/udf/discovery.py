"""Finds, reads and hashes the user's functions that a job names, without running them.

Modules next to the job file or on the Python path are the user's own and are sent to workers as text. An installed
package is imported on the workers by name. Invariant: a name is the same module on the driver and on every worker.
"""

import json
import sys
import sysconfig
from collections.abc import Sequence
from hashlib import sha256
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from varve.errors import JobError
from varve.preprocessing.udf.loader import is_user_module
from varve.preprocessing.udf.module_source import Code, find_module_file, is_same_file, read_with_imports

_INSTALLED = ("site-packages", "dist-packages")
_STDLIB = Path(sysconfig.get_path("stdlib"))


def find_code(python: str, folder: str, key: str) -> Code:
    """Read the module of a function and the user's modules that it imports; runs nothing.

    Args:
        python: module:function.
        folder: where modules are searched first, before the Python path.
        key: of the job, for messages.

    Raises:
        JobError: the module does not exist, is not valid Python, or has the name of another module.
    """
    name, _, function = python.partition(":")
    roots = _user_folders(folder)
    root = next((root for root in roots if find_module_file(root, name)), None)
    if root is None:
        return Code(name, function, (), _hash_installed(name, folder, roots, key))
    modules = tuple(sorted(read_with_imports(root, name, key), key=lambda module: module.name))
    for top_level in {module.name.partition(".")[0] for module in modules}:
        _check_name_is_free(top_level, root, key)
    content = json.dumps([[module.name, module.text] for module in modules])
    return Code(name, function, modules, sha256(content.encode()).hexdigest())


def _user_folders(folder: str) -> list[Path]:
    """Folders with the user's own Python files, in search order."""
    entries = [Path(folder), *(Path(entry) for entry in sys.path)]
    own = [entry.resolve() for entry in entries if entry.is_dir() and not _is_installed(entry)]
    return list(dict.fromkeys(own))


def _is_installed(path: Path) -> bool:
    return any(part in _INSTALLED for part in path.parts) or path.is_relative_to(_STDLIB)


def _hash_installed(name: str, folder: str, roots: Sequence[Path], key: str) -> str:
    """SHA-256 of an installed module's file."""
    spec = _find_spec(name)
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        searched = dict.fromkeys([str(Path(folder).resolve()), *map(str, roots), "installed packages"])
        msg = f"{key}: module {name!r} does not exist: searched {name.replace('.', '/')}.py in {', '.join(searched)}"
        raise JobError(msg)
    return sha256(Path(spec.origin).read_bytes()).hexdigest()


def _find_spec(name: str) -> ModuleSpec | None:
    """Find an installed module without importing its packages, as `importlib.util.find_spec` would."""
    spec, path = None, None
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        full_name = ".".join(parts[:depth])
        specs = (finder.find_spec(full_name, path) for finder in sys.meta_path if hasattr(finder, "find_spec"))
        spec = next((found for found in specs if found is not None), None)
        if spec is None or (depth < len(parts) and spec.submodule_search_locations is None):
            return None
        path = spec.submodule_search_locations
    return spec


def _check_name_is_free(name: str, root: Path, key: str) -> None:
    """Reject a top-level name that another module has too: which of them is imported would depend on the process."""
    own = find_module_file(root, name)
    elsewhere = [entry for entry in sys.path if Path(entry).resolve() != root]
    spec = PathFinder.find_spec(name, elsewhere)
    other = spec.origin if spec is not None and spec.loader is not None else None
    if other and own and is_same_file(other, own):
        other = None
    loaded = sys.modules.get(name)
    if loaded is not None and not is_user_module(loaded) and not _has_file(loaded, own):
        other = getattr(loaded, "__file__", None) or "a part of Python"
    if name in sys.stdlib_module_names:
        other = other or "a part of Python"
    if other:
        msg = f"{key}: {own or root / name} has the name of another module, {other}: rename yours"
        raise JobError(msg)


def _has_file(module: ModuleType, own: Path | None) -> bool:
    """Whether a loaded module is the user's own file, or a namespace package, which has no file."""
    file = getattr(module, "__file__", None)
    return file is None or (own is not None and is_same_file(file, own))
