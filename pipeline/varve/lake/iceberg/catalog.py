"""Opens the catalogs that pyiceberg is configured for, and their tables.

Settings come from ~/.pyiceberg.yaml and PYICEBERG_CATALOG__NAME__... as pyiceberg reads them. Knows nothing of
features. Invariants: credentials stay in the catalog objects of this process; messages show none.
"""

import json
import re
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.exceptions import (
    ForbiddenError,
    NoSuchNamespaceError,
    NoSuchTableError,
    OAuthError,
    ServerError,
    ServiceUnavailableError,
    TooManyRequestsError,
    UnauthorizedError,
)
from pyiceberg.table import Table
from pyiceberg.utils.config import Config
from requests.exceptions import ConnectionError as UnreachableError
from requests.exceptions import Timeout
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from varve.config.table_address import TableAddress
from varve.errors import JobError, RunError, one_line

T = TypeVar("T")

_TRANSIENT = (ServiceUnavailableError, ServerError, TooManyRequestsError, UnreachableError, Timeout)
_DENIED = (ForbiddenError, OAuthError, UnauthorizedError)
_SECRET_NAMES = ("credential", "key", "password", "secret", "token")
_PASSWORD = re.compile(r"://[^/@:]*:([^/@]+)@")
_MAX_ATTEMPTS = 8
_MAX_SHOWN = 12
_MAX_AGE_S = 300.0  # well below the lifetime of credentials that a catalog lends


def open_catalog(name: str) -> Catalog:
    """The catalog of a name, opened once in a process for each set of settings.

    Raises:
        JobError: pyiceberg has no such catalog, or its settings are wrong.
        RunError: it does not answer.
    """
    # pyiceberg reads the environment when it is imported; variables that were set later count as well.
    settings = Config().get_catalog_config(name)
    if not settings:
        known = ", ".join(Config().get_known_catalogs()) or "none"
        msg = (
            f"iceberg://{name}: pyiceberg is not configured for a catalog {name!r} (configured: {known}): "
            f"set PYICEBERG_CATALOG__{name.upper()}__URI, or add it to ~/.pyiceberg.yaml"
        )
        raise JobError(msg)
    try:
        return _opened(name, json.dumps(settings, sort_keys=True))
    except _TRANSIENT as e:
        msg = f"iceberg://{name}: the catalog does not answer: {describe(e, name)}"
        raise RunError(msg) from None
    except Exception as e:  # noqa: BLE001 (each kind of catalog has its own errors for wrong settings)
        msg = f"iceberg://{name}: the catalog cannot be opened: {describe(e, name)}: correct its settings"
        raise JobError(msg) from None


@lru_cache(maxsize=16)
def _opened(name: str, settings: str) -> Catalog:
    return with_retries(lambda: load_catalog(name, **json.loads(settings)))


def find_table(address: TableAddress) -> Table | None:
    """The table as it is now; None if there is none.

    Raises:
        JobError: see `open_catalog`, or the catalog refuses access.
        RunError: the catalog does not answer.
    """
    catalog = open_catalog(address.catalog)
    try:
        return with_retries(lambda: catalog.load_table(address.name))
    except (NoSuchTableError, NoSuchNamespaceError):
        return None
    except _DENIED as e:
        msg = f"{address}: the catalog refuses access: {describe(e, address.catalog)}: correct its credentials"
        raise JobError(msg) from None
    except Exception as e:
        msg = f"{address}: the catalog does not return the table: {describe(e, address.catalog)}"
        raise RunError(msg) from e


def load_table(address: TableAddress) -> Table:
    """The table as it is now.

    Raises:
        JobError: there is none; and see `find_table`.
        RunError: see `find_table`.
    """
    if table := find_table(address):
        return table
    namespace, _, _ = address.name.rpartition(".")
    catalog = open_catalog(address.catalog)
    names = _listed(lambda: catalog.list_tables(namespace))
    place = f"tables of {namespace}"
    if not names:
        names, place = _listed(catalog.list_namespaces), f"namespaces of catalog {address.catalog}"
    shown = ", ".join(names[:_MAX_SHOWN]) or "none"
    msg = f"{address} does not exist. The {place}: {shown}{', ...' if len(names) > _MAX_SHOWN else ''}"
    raise JobError(msg)


def recent_table(address: TableAddress, version: int | None) -> Table:
    """The table as it is, or was a few minutes ago if that has the version: for reads of pinned versions."""
    loaded_s, table = _recent.get(address, (0.0, None))
    is_known = table is not None and (version is None or table.snapshot_by_id(version) is not None)
    if table is None or not is_known or time.monotonic() - loaded_s > _MAX_AGE_S:
        table = load_table(address)
        _recent[address] = time.monotonic(), table
    return table


def forget_table(address: TableAddress) -> None:
    """Let `recent_table` load the table again."""
    _recent.pop(address, None)


_recent: dict[TableAddress, tuple[float, Table]] = {}


def with_retries(request: Callable[[], T]) -> T:
    """Repeat a request that changes nothing after a transient error, for some seconds.

    Raises:
        Exception: the last failure.
    """
    retrying = Retrying(
        retry=retry_if_exception(is_transient),
        stop=stop_after_attempt(_MAX_ATTEMPTS),
        wait=wait_random_exponential(multiplier=0.1, max=2.0),
        reraise=True,
    )
    return retrying(request)


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    return isinstance(error, _TRANSIENT) or type(error).__name__ == "OperationalError"  # SQLAlchemy: a locked database


def is_denied(error: BaseException) -> bool:
    """Whether the catalog refuses the credentials."""
    return isinstance(error, _DENIED)


def describe(error: BaseException, name: str) -> str:
    """One line on an error, without the settings of the catalog that may be secret."""
    text = f"{type(error).__name__} {one_line(error)}"
    for key, value in (Config().get_catalog_config(name) or {}).items():
        if isinstance(value, str) and any(part in key.lower() for part in _SECRET_NAMES):
            for secret in (value, *value.split(":")) if "credential" in key else (value,):
                text = text.replace(secret, "...") if secret else text
        elif isinstance(value, str) and (password := _PASSWORD.search(value)):
            text = text.replace(password[1], "...")
    return text


def _listed(request: Callable[[], Any]) -> list[str]:
    try:
        return sorted(".".join(name) for name in with_retries(request))
    except Exception:  # noqa: BLE001 (names only make a message more useful)
        return []
