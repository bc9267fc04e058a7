"""Makes a built table the published one, in one transaction, and removes builds that it supersedes.

Invariants: readers see the previous table or the new one, each complete, and never neither; the record is a comment of
the table, so it is renamed, dumped and dropped with it; a table without Varve's comment is neither renamed nor dropped,
and nothing that depends on a table is dropped with it.
"""

import json
import re
from dataclasses import asdict
from typing import Any

from varve.errors import JobError, RunError, one_line
from varve.indexing.pgvector.client import keyword, psycopg, sql
from varve.indexing.pgvector.connection import lock_name, transaction
from varve.indexing.pgvector.table_name import (
    GRAPH,
    KEY,
    PARTS,
    POSITION_INDEX,
    TableName,
    exists,
    read_comment,
    write_comment,
)
from varve.indexing.record import IndexRecord

# Readers wait while a reader before them holds the old table, so publishing waits a moment only, and is repeated.
_LOCK_TIMEOUT = "SET LOCAL lock_timeout = '3s'"
_GRANTS = """
SELECT a.privilege_type, a.is_grantable, CASE WHEN a.grantee <> 0 THEN pg_get_userbyid(a.grantee) END
FROM pg_class c, aclexplode(c.relacl) a WHERE c.oid = to_regclass(%s) AND a.grantee <> c.relowner
"""
_STAGED_LEDGERS = """
SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relkind = 'r' AND starts_with(c.relname, %s)
"""
_STAGED = re.compile(r"__[0-9a-f]{8}" + PARTS)


def published_record(connection: psycopg.Connection, name: TableName) -> IndexRecord | None:
    """The record of the published table; None if there is none."""
    noted = read_comment(connection, name)
    if noted is None or "record" not in noted:
        return None
    return IndexRecord.decode(json.dumps(noted["record"]).encode(), f"the comment of the table {name}")


def publish(connection: psycopg.Connection, name: TableName, staged: TableName, record: IndexRecord) -> IndexRecord:
    """Replace the published table by the built one.

    Returns:
        The record that is published: if another process has published this build, that of the other one.

    Raises:
        JobError: there is a table of this name that Varve did not make.
        RunError: the build is missing, or other objects of the database depend on the old table.
    """
    with transaction(connection):
        lock_name(connection, str(name))
        connection.execute(_LOCK_TIMEOUT)
        noted, old = read_comment(connection, staged.add(PARTS)), read_comment(connection, name)
        if staged == name or noted is None or not exists(connection, staged):
            return _published_by_another(connection, name, staged, old)
        grants = _remove_old(connection, name, old)
        _rename(connection, name, staged)
        for privilege, with_grant, role in grants:
            _grant(connection, name, privilege, role, with_grant=with_grant)
        write_comment(connection, name, noted | {"state": "published", "record": asdict(record)})
        write_comment(connection, name.add(PARTS), noted | {"state": "published"})
    return record


def _published_by_another(
    connection: psycopg.Connection, name: TableName, staged: TableName, old: dict[str, Any] | None
) -> IndexRecord:
    record = published_record(connection, name)
    if record is None or old is None or staged not in {name, name.staged(old["fingerprint"])}:
        msg = f"{staged} is missing: it was dropped. Run the same command again"
        raise RunError(msg)
    return record


def _remove_old(connection: psycopg.Connection, name: TableName, old: dict[str, Any] | None) -> list[tuple]:
    """Drop the published table and its ledger; returns the rights that others had: (privilege, with grant, role)."""
    if not exists(connection, name):
        return []
    if old is None or old.get("table") != name.table:
        msg = f"{name} exists, and Varve did not make it. Rename it, or choose another table=NAME"
        raise JobError(msg)
    grants = connection.execute(_GRANTS, [name.quoted.as_string(connection)]).fetchall()
    try:
        connection.execute(sql.SQL("DROP TABLE {}").format(name.quoted))
        connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(name.add(PARTS).quoted))
    except psycopg.errors.DependentObjectsStillExist as e:
        msg = (
            f"{name} cannot be replaced: {one_line(e.diag.message_detail or e)}. Drop that object, run the same "
            "command again, and create it again"
        )
        raise RunError(msg) from e
    return grants


def _rename(connection: psycopg.Connection, name: TableName, staged: TableName) -> None:
    for suffix in ("", PARTS):
        statement = sql.SQL("ALTER TABLE {} RENAME TO {}")
        new = sql.Identifier(name.add(suffix).table)
        connection.execute(statement.format(staged.add(suffix).quoted, new))
    for suffix in (KEY, POSITION_INDEX, GRAPH, PARTS + KEY):
        if exists(connection, staged.add(suffix)):
            statement = sql.SQL("ALTER INDEX {} RENAME TO {}")
            new = sql.Identifier(name.add(suffix).table)
            connection.execute(statement.format(staged.add(suffix).quoted, new))


def _grant(
    connection: psycopg.Connection, name: TableName, privilege: str, role: str | None, *, with_grant: bool
) -> None:
    grantee = sql.Identifier(role) if role else sql.SQL("PUBLIC")
    end = sql.SQL(" WITH GRANT OPTION") if with_grant else sql.SQL("")
    statement = sql.SQL("GRANT {} ON {} TO {}{}").format(keyword(privilege), name.quoted, grantee, end)
    connection.execute(statement)


def remove_superseded(connection: psycopg.Connection, name: TableName) -> None:
    """Drop interrupted builds of this name that began before the published one.

    A build that began later is kept: it may be running. So is one whose tables are locked at this moment.
    """
    published = read_comment(connection, name)
    if published is None:
        return
    for (ledger,) in connection.execute(_STAGED_LEDGERS, [name.schema, f"{name.table}__"]).fetchall():
        if not _STAGED.fullmatch(ledger.removeprefix(name.table)):
            continue
        staged = TableName(name.schema, ledger.removesuffix(PARTS))
        noted = read_comment(connection, staged.add(PARTS))
        if noted and noted.get("table") == name.table and noted["begun_at"] <= published["begun_at"]:
            _drop_unless_used(connection, staged)


def _drop_unless_used(connection: psycopg.Connection, staged: TableName) -> None:
    try:
        with connection.transaction():
            connection.execute("SET LOCAL lock_timeout = '100ms'")
            for table in (staged.add(PARTS), staged):
                connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(table.quoted))
    except psycopg.errors.LockNotAvailable:
        return
