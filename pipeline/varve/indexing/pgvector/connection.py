"""Connections to PostgreSQL: opened, repeated after failures that pass, and their errors as messages.

Invariants: only failures that pass are repeated (a lost connection, a server that restarts, too many clients), and the
work that is repeated is a transaction that finds what an earlier attempt committed; no message holds a credential.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from varve.errors import JobError, RunError, one_line
from varve.indexing.pgvector.address import Address
from varve.indexing.pgvector.client import psycopg

T = TypeVar("T")

PATIENCE_S = 120.0  # a server that restarts after a crash is available again within minutes
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.2, 5.0
# SQLSTATE: connection failures, shutdown and start of the server, too many clients, deadlock, a lock that others hold.
_TRANSIENT = ("08", "57P01", "57P02", "57P03", "53300", "40P01", "40001", "55P03")
_NO_LIMITS = "SELECT set_config(name, '0', true) FROM unnest(%s::text[]) AS name"
_LIMITS = ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"]
# Text of a server's refusal → what to do. Errors of a connection that is being opened have no SQLSTATE.
_REFUSALS = {
    "password authentication failed": "set PGPASSWORD, or PGPASSFILE, and check the user before the @",
    "no password supplied": "set PGPASSWORD, or PGPASSFILE",
    "no pg_hba.conf entry": "the server's pg_hba.conf must allow this user from this machine",
    "does not exist": "create it, or correct the address",
    "not permitted to log in": "choose another user before the @",
    "permission denied for database": "ask its owner for the right CONNECT",
    "definition of service": "correct the parameter service, or PGSERVICEFILE",
    "certificate": "check sslmode and sslrootcert",
    "SSL": "check the parameter sslmode",
    "could not translate host name": "correct the host of the address",
}

logger = logging.getLogger("varve")


@contextmanager
def connect(address: Address) -> Iterator[psycopg.Connection]:
    """A connection in autocommit mode, closed at the end.

    Raises:
        RunError: the server cannot be reached, or refuses the connection or a statement.
    """
    try:
        with _open(address) as connection:
            yield connection
    except psycopg.Error as e:
        raise _failure(address, e) from e


def repeat(address: Address, patience_s: float, work: Callable[[psycopg.Connection], T]) -> T:
    """Run work on a connection, and again on a new one after a failure that passes.

    Args:
        address: of the database.
        patience_s: seconds after which a failure is final.
        work: may be repeated: an attempt whose commit was not confirmed may have been committed.

    Raises:
        RunError: the server refuses a statement, or cannot be reached for `patience_s`.
    """

    def attempt() -> T:
        with _open(address) as connection:
            return work(connection)

    retrying = Retrying(
        retry=retry_if_exception(is_transient),
        stop=stop_after_delay(patience_s),
        wait=wait_random_exponential(multiplier=_FIRST_PAUSE_S, max=_MAX_PAUSE_S),
        reraise=True,
    )
    try:
        return retrying(attempt)
    except psycopg.Error as e:
        raise _failure(address, e) from e


@contextmanager
def transaction(connection: psycopg.Connection) -> Iterator[None]:
    """A transaction without the limits that a role may have: a build takes hours."""
    with connection.transaction():
        connection.execute(_NO_LIMITS, [_LIMITS])
        yield


def lock_name(connection: psycopg.Connection, name: str) -> None:
    """Wait until no other transaction works on this name; released at the end of the transaction."""
    connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"varve {name}"])


def _open(address: Address) -> psycopg.Connection:
    """A connection whose search path finds the types of pgvector.

    Statements are not prepared, so that a connection pool may be between Varve and the server.
    """
    connection = psycopg.connect(address.uri, autocommit=True, prepare_threshold=None, client_encoding="UTF8")
    try:
        connection.execute(_FIND_TYPES)
    except BaseException:
        connection.close()
        raise
    return connection


_FIND_TYPES = """
SELECT set_config('search_path', concat_ws(', ', nullif(current_setting('search_path'), ''), quote_ident(n.nspname)),
                  false)
FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
WHERE e.extname = 'vector' AND n.nspname <> ALL (current_schemas(true))
"""


def is_transient(error: BaseException) -> bool:
    """Whether the same statement may succeed later."""
    if not isinstance(error, psycopg.Error):
        return False
    if error.sqlstate:
        return error.sqlstate.startswith(_TRANSIENT)
    return isinstance(error, psycopg.OperationalError) and _refusal(error) is None


def _refusal(error: psycopg.Error) -> str | None:
    return next((advice for text, advice in _REFUSALS.items() if text in str(error)), None)


def _failure(address: Address, error: psycopg.Error) -> RunError | JobError:
    """The error as one message with what to do."""
    text = one_line(error).rstrip(".?")
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return JobError(f"{address}: {text}. Ask the owner of the database for this right, or choose another user")
    if isinstance(error, psycopg.errors.UndefinedTable):
        return RunError(f"{address}: {text}: another process has published or removed it. Run the command again")
    if isinstance(error, psycopg.errors.LockNotAvailable):
        msg = f"{address}: {text}: another session reads or changes the table in a long transaction (see "
        return RunError(msg + "pg_stat_activity). End that transaction, then run the same command again: it resumes")
    if is_transient(error):
        return RunError(
            f"{address} does not answer: {text}. Check that the server runs, and the host and port; then run the same "
            "command again: it resumes"
        )
    advice = _refusal(error) if not error.sqlstate else None
    detail = error.diag.message_detail
    return RunError(
        f"{address}: {text}{f'. {advice[0].upper()}{advice[1:]}' if advice else ''}{_in_brackets(detail, text)}"
    )


def _in_brackets(detail: str | None, text: str) -> str:
    return f" ({one_line(detail)})" if detail and one_line(detail) not in text else ""
