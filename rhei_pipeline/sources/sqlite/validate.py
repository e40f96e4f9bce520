"""Findings of `rhei check` about an SQLite file: what prevents capture, why, and how to fix it."""

import sqlite3
from collections.abc import Callable, Iterator, Sequence

from rhei_pipeline.errors import SchemaError
from rhei_pipeline.model.reports import Finding, Severity
from rhei_pipeline.model.schema import TableOptions
from rhei_pipeline.sources.sqlite.catalog import read_table

#: Two connections of older versions that write and checkpoint at once may damage the file
#: (sqlite.org/wal.html, "The WAL-Reset Bug").
_SOUND_WAL = (3, 51, 3)
_TRIGGER = "select 1 from sqlite_master where type = 'trigger' and name = '_rhei_insert_' || ?"


def findings(
    connection: sqlite3.Connection, tables: Sequence[str], options: Callable[[str], TableOptions]
) -> Iterator[Finding]:
    """Check the file and each table."""
    if sqlite3.sqlite_version_info < _SOUND_WAL:
        yield Finding(
            Severity.WARNING,
            f"this Python's SQLite is {sqlite3.sqlite_version}",
            "before 3.51.3, two processes that checkpoint at the same time can damage a WAL "
            "database",
            "use a Python that is built with a newer SQLite",
        )
    (journal,) = connection.execute("pragma journal_mode").fetchone()
    if not connection.execute("pragma database_list").fetchone()[2]:
        yield Finding(
            Severity.NOTE,
            "the source's file does not exist yet",
            "it is to be created, with 'create: true'",
            "rhei sync",
        )
    elif journal != "wal":
        yield Finding(
            Severity.WARNING,
            f"the journal mode is {journal!r}",
            "without WAL a sync and the application wait for each other",
            "none: the first sync switches it to WAL",
        )
    for name in tables:
        yield from _table(connection, name, options(name))


def _table(connection: sqlite3.Connection, name: str, options: TableOptions) -> Iterator[Finding]:
    try:
        schema = read_table(connection, name, options).schema
    except SchemaError as error:
        why = "the table is left out until this is fixed"
        yield Finding(Severity.ERROR, error.message, why, error.hint or "", error.table or name)
        return
    if connection.execute(_TRIGGER, (schema.name,)).fetchone() is None:
        yield Finding(
            Severity.NOTE,
            "changes are not captured yet",
            "triggers are installed by the first sync",
            "rhei sync",
            schema.name,
        )
