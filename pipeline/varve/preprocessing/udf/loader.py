"""Imports the user's modules from their texts and returns functions.

Invariants: only modules that a job names, and the modules that these import, are run; each module is run once in a
process; every process runs the text that was hashed.
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
from varve.preprocessing.udf.module_source import Code, Module, describe_error, is_same_file

_MAX_SIGNATURE = 100  # characters in a message


def load(code: Code, key: str) -> Callable[[Any], Any]:
    """Import a function; its module is run once in a process. `key` of the job is for messages.

    Raises:
        JobError: the import fails, or the module has no such function with one argument.
    """
    try:
        module = _load_module(code)
    except (Exception, SystemExit) as e:
        is_missing = isinstance(e, ImportError)
        hint = ". Modules that it imports must be in the same folder, or installed on every node" if is_missing else ""
        msg = f"{key}: {code.module} cannot be imported: {describe_error(e, code)}{hint}"
        raise JobError(msg) from e
    function = getattr(module, code.function, None)
    if not callable(function):
        problem = "" if function is None else f": it is a {type(function).__name__}"
        functions = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        hint = f". Functions of the module: {', '.join(functions)}" if functions else ""
        msg = f"{key}: {module.__file__} has no function {code.function!r}{problem}{hint}"
        raise JobError(msg)
    try:
        signature(function).bind(object())
    except TypeError:
        parameters = str(signature(function))
        shown = parameters if len(parameters) <= _MAX_SIGNATURE else "(...)"
        msg = f"{key}: {code.name}{shown} cannot be called with one argument, a pyarrow.RecordBatch of rows"
        raise JobError(msg) from None
    except ValueError:
        pass  # functions written in C may have no signature
    return function


class _SourceFinder(MetaPathFinder, ExecutionLoader):
    """Imports modules from their texts."""

    def __init__(self, modules: Sequence[Module]) -> None:
        self.modules = {module.name: module for module in modules}
        # Parent packages without a file are namespace packages.
        paths = [name.split(".") for name in self.modules]
        parents = {".".join(path[:depth]) for path in paths for depth in range(1, len(path))}
        self._namespaces = parents - set(self.modules)

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:  # noqa: ARG002 (signature of MetaPathFinder)
        if fullname in self._namespaces:
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


def is_user_module(module: ModuleType) -> bool:
    """Whether a loaded module was imported from a text by this file."""
    return isinstance(getattr(module, "__loader__", None), _SourceFinder)


_loaded: dict[str, ModuleType] = {}  # hash and name → module


def _load_module(code: Code) -> ModuleType:
    if not code.modules:
        return importlib.import_module(code.module)
    key = f"{code.sha256} {code.module}"
    if key not in _loaded:
        if not all(map(_is_unchanged, code.modules)):
            _unload_user_modules()
        sys.meta_path.insert(0, _SourceFinder(code.modules))
        module = importlib.import_module(code.module)
        file = getattr(module, "__file__", None)
        if file is None or not any(is_same_file(file, own.path) for own in code.modules):
            msg = f"this process has another module of that name: {file or 'a part of Python'}"
            raise ImportError(msg)
        _loaded[key] = module
    return _loaded[key]


def _is_unchanged(module: Module) -> bool:
    """Whether no user module with this name and another text is loaded."""
    loader = getattr(sys.modules.get(module.name), "__loader__", None)
    return not isinstance(loader, _SourceFinder) or loader.modules[module.name] == module


def _unload_user_modules() -> None:
    """Remove the modules of an earlier job with other texts; functions that are in use keep their modules."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _SourceFinder)]
    for name in [name for name, module in sys.modules.items() if is_user_module(module)]:
        del sys.modules[name]
