"""Tests our triggers before they are committed: no statement of the application may fail."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

from rhei_pipeline.errors import SchemaError
from rhei_pipeline.sql.text import quote

#: How deep expressions may be in a trial: half of what SQLite allows unless it was built otherwise,
#: since the application's own SQLite may allow less than this process's.
_DEPTH = 500


@contextmanager
def writes_go_on(connection: sqlite3.Connection, table: str) -> Iterator[None]:
    """Hold a block that makes capture of a table, within a writing transaction, to doing no harm.

    Raises:
        SchemaError: Capture could not be made, or a statement that writes into the table would
            compile no more; the transaction is to be rolled back.
    """
    before = passing(connection, table)
    try:
        yield
        for sql in before:
            _compile(connection, sql)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_ERROR_MISSING_COLLSEQ:
            raise _own_collation(table, error) from error
        if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
            raise
        raise SchemaError(
            f"its changes cannot be captured by triggers: {error}",
            table=table,
            hint="shorten its key or its unique indexes, mirror fewer of its columns with"
            " 'columns', or set 'capture: {method: polling}'",
        ) from error


def _own_collation(table: str, error: sqlite3.Error) -> SchemaError:
    return SchemaError(
        f"its changes cannot be captured by triggers: {error}, which only the application defines",
        table=table,
        hint="set 'capture: {method: polling}', or drop the unique indexes that use it",
    )


def passing(connection: sqlite3.Connection, table: str) -> list[str]:
    """Return the statements of a trial that SQLite compiles, triggers included."""
    return [sql for sql in _writes(connection, table) if _compiles(connection, sql)]


def _writes(connection: sqlite3.Connection, table: str) -> list[str]:
    name = quote(table)
    found = connection.execute("select name from temp.pragma_table_info(?) limit 1", (table,))
    column = quote(found.fetchone()[0])
    return [
        f"insert into {name} default values",
        f"replace into {name} default values",
        f"update {name} set {column} = {column}",
        f"delete from {name}",
    ]


def _compiles(connection: sqlite3.Connection, sql: str) -> bool:
    try:
        _compile(connection, sql)
    except sqlite3.OperationalError:
        return False
    return True


def _compile(connection: sqlite3.Connection, sql: str) -> None:
    """Compile a statement with SQLite, without running it."""
    # The driver keeps compiled statements by their text, and `explain` does not look whether the
    # schema is still the same.
    traced = f"explain {sql} -- {uuid4()}"
    usual = connection.setlimit(sqlite3.SQLITE_LIMIT_EXPR_DEPTH, _DEPTH)
    try:
        connection.execute(traced).close()
    finally:
        connection.setlimit(sqlite3.SQLITE_LIMIT_EXPR_DEPTH, usual)
