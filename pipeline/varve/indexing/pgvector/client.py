"""The packages psycopg and pgvector, or the message that they are missing.

Everything in this folder imports them from here; nothing outside imports this folder before an address asks for it.
"""

from varve.errors import JobError, first_line

try:
    import pgvector
    import psycopg
    from pgvector.psycopg import register_vector
    from psycopg import sql
    from psycopg.conninfo import conninfo_to_dict
    from psycopg.rows import dict_row
except ImportError as e:
    _MSG = f"the target postgresql needs psycopg and pgvector ({first_line(e)}): run pip install '.[pgvector]' in "
    raise JobError(_MSG + "Varve's folder") from e

__all__ = ["conninfo_to_dict", "dict_row", "keyword", "pgvector", "psycopg", "register_vector", "sql"]


def keyword(text: str) -> sql.SQL:
    """A type, operator or number of Varve's own in a statement; never text of a user."""
    return sql.SQL(text)  # pyright: ignore[reportArgumentType] (is not a literal)
