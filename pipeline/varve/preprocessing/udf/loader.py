"""The user's own code, run from the texts that were found.

Invariants: only modules that the job names, and what these import, are run; each once in a process, and the same text
everywhere, that of the hash.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import ExecutionLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from inspect import signature
from types import ModuleType
from typing import Any

from varve.errors import JobError
from varve.preprocessing.udf.module_source import Code, Module, is_same, tell

_SHOWN = 100


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


def is_ours(module: ModuleType) -> bool:
    """Whether a loaded module is run from its text."""
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
        if file is None or not any(is_same(file, module.path) for module in code.modules):
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
    for name in [name for name, module in sys.modules.items() if is_ours(module)]:
        del sys.modules[name]
