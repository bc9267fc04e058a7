"""Parses HOST[:PORT]/DATABASE?table=NAME: libpq's URI, and the name of the table.

Knows nothing of connections. Invariants: an address holds no credential, which libpq reads from PGPASSWORD, PGPASSFILE
or a service file; the names derived from a table's name are not longer than PostgreSQL allows.
"""

from dataclasses import dataclass
from typing import Self
from urllib.parse import parse_qsl, quote, urlencode

from varve.config.credentials import refuse_credentials
from varve.errors import JobError, first_line
from varve.indexing.pgvector.client import conninfo_to_dict, psycopg

DEFAULT_TABLE = "docs"
MAX_NAME_BYTES = 40  # of 63: `__12345678_position` is added while the index is built
_EXPECTED = "expected postgresql://[USER@]HOST[:PORT]/DATABASE?table=[SCHEMA.]NAME"
# A connection that waits hours for CREATE INDEX must not be closed by a firewall.
_DEFAULTS = {"connect_timeout": "10", "keepalives_idle": "60", "application_name": "varve"}


@dataclass(frozen=True, slots=True)
class Address:
    """Where an index is.

    Attributes:
        uri: of the database, as libpq reads it; without a password.
        schema: of the table; None: the first schema of the search path.
        table: name of the published table.
    """

    uri: str
    schema: str | None
    table: str

    @classmethod
    def parse(cls, destination: str) -> Self:
        """Parse a destination (`Index.destination`).

        Raises:
            JobError: it is malformed, or holds a credential; a credential is not shown.
        """
        try:
            refuse_credentials(f"postgresql://{destination}")
        except ValueError as e:
            msg = f"postgresql: {e} (PGPASSWORD, or PGPASSFILE)"
            raise JobError(msg) from None
        place, _, query = destination.partition("?")
        parameters = dict(parse_qsl(query, keep_blank_values=True))
        schema, table = _parse_table(parameters.pop("table", DEFAULT_TABLE))
        return cls(_make_uri(place, parameters), schema, table)

    def __str__(self) -> str:
        """The address with the table, for messages."""
        shown = self.uri.partition("?")[0]
        return f"{shown}?table={f'{self.schema}.' if self.schema else ''}{self.table}"


def _make_uri(place: str, parameters: dict[str, str]) -> str:
    """The URI of the database, checked by libpq itself."""
    given = f"postgresql://{place}"
    try:
        parsed = conninfo_to_dict(_with_query(given, parameters))
    except psycopg.Error as e:
        msg = f"{given} is not an address of PostgreSQL: {first_line(e)}; {_EXPECTED}"
        raise JobError(msg) from e
    if "dbname" not in parsed and "service" not in parsed:
        msg = f"{given} names no database: {_EXPECTED}"
        raise JobError(msg)
    return _with_query(given, {**{k: v for k, v in _DEFAULTS.items() if k not in parsed}, **parameters})


def _with_query(uri: str, parameters: dict[str, str]) -> str:
    return f"{uri}?{urlencode(parameters, quote_via=quote)}" if parameters else uri


def _parse_table(text: str) -> tuple[str | None, str]:
    """(schema or None, name)."""
    names = text.split(".")
    for name in names:
        if not name or "\0" in name or len(name.encode()) > MAX_NAME_BYTES or len(names) > 2:
            msg = f"table={text!r} is not allowed: expected NAME or SCHEMA.NAME, each of 1 to {MAX_NAME_BYTES} bytes"
            raise JobError(msg)
    return (names[0], names[1]) if len(names) == 2 else (None, names[0])
