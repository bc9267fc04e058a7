"""The tables that the suites of all formats run on: what each format's module offers, and a fixture over all of them.

A module `tests/lake/backend_FORMAT.py` has a class `Backend(root)`, where `root` is a local folder or the URI of
a bucket; the environment has the credentials. A format without a module is left out.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pytest

from tests.servers.seaweed import SeaweedServer

KINDS = ("iceberg-sqlite", "iceberg-rest", "delta-disk", "delta-s3", "lance-disk", "lance-s3")
SCHEMA = pa.schema([("doc_id", pa.int64()), ("lang", pa.string()), ("body", pa.string())])
_NUMBERS = count()


class Backend(Protocol):
    """One source table `docs`, and a place for its features.

    Attributes:
        address: of the source, for `parse_table_address`.
        features_address: of a table that does not exist yet.
    """

    address: str
    features_address: str

    def create(self, rows: pa.Table, partition: str | None = None) -> None:
        """Create the source; columns doc_id int64, lang string, body string."""
        ...

    def append(self, rows: pa.Table) -> None:
        """Add rows."""
        ...

    def update(self, rows: pa.Table) -> None:
        """Give rows with known keys new texts, in the format's own way."""
        ...

    def delete(self, keys: list[int]) -> None:
        """Remove rows."""
        ...

    def compact(self) -> None:
        """Rewrite the files; no row changes."""
        ...

    def read(self, address: str) -> pa.Table:
        """All rows of a table through the format's own library."""
        ...


def rows(keys: Any, text: str = "text {}", lang: Callable[[int], str | None] | None = None) -> pa.Table:
    """Rows of the source; the language of a row is by default "de" or "en"."""
    keys = list(keys)
    langs = [lang(key) if lang else ("de", "en")[key % 2] for key in keys]
    return pa.table([keys, langs, [text.format(key) for key in keys]], schema=SCHEMA)


def available(kind: str) -> bool:
    """Whether the format of a kind has a module."""
    return find_spec(f"tests.lake.backend_{kind.partition('-')[0]}") is not None


def make_backend(kind: str, folder: Path, seaweed: Callable[[], SeaweedServer], environment: Any) -> Backend:
    """A backend without tables.

    Args:
        kind: one of `KINDS`.
        folder: empty, for tables on disk.
        seaweed: starts the server unless it runs.
        environment: pytest's monkeypatch.
    """
    name, _, place = kind.partition("-")
    root = str(folder)
    if place in {"s3", "rest"}:
        server = seaweed()
        for variable, value in server.environment().items():
            environment.setenv(variable, value)
        root = server.new_folder()
    elif name == "iceberg":
        for variable in server_variables():
            environment.delenv(variable, raising=False)
        environment.setenv("PYICEBERG_CATALOG__LAKE__TYPE", "sql")
        environment.setenv("PYICEBERG_CATALOG__LAKE__URI", f"sqlite:///{folder}/catalog.db")
        environment.setenv("PYICEBERG_CATALOG__LAKE__WAREHOUSE", f"file://{folder}/warehouse")
    module = import_module(f"tests.lake.backend_{name}")
    return module.Backend(root)


def server_variables() -> list[str]:
    """Names of all variables that lead clients to a server."""
    return list(SeaweedServer("", "", "").environment())


@pytest.fixture(params=KINDS)
def backend(request, tmp_path, monkeypatch) -> Backend:
    """A backend of each format and place."""
    if not available(request.param):
        pytest.skip(f"no module tests/lake/backend_{request.param.partition('-')[0]}.py")
    return make_backend(request.param, tmp_path, lambda: request.getfixturevalue("seaweed"), monkeypatch)


def new_name() -> str:
    """A name that no other test of this process uses."""
    return f"t{next(_NUMBERS)}"
