"""Records schema changes that leave no difference in the source, so that every mirror sees them.

What the schema was when it was last looked at stands in the source, beside the logs. Where the
count of changes since says more than the differences, the logged tables are marked: an entry of
their logs asks each mirror to compare its rows whole once it has come so far.
"""

import logging
import sqlite3
from collections.abc import Mapping

from rhei_pipeline.sources.sqlite.schema_objects import SchemaState
from rhei_pipeline.sources.sqlite.triggers.ddl import CLOCK, log_table
from rhei_pipeline.sql.text import quote

_log = logging.getLogger(__name__)

_STATE = "_rhei_schema"
_RESCANS = "_rhei_rescan"
_TABLES = (
    f"create table if not exists {_STATE}(version integer not null, objects text not null)",
    f"create table if not exists {_RESCANS}(tbl text primary key, seq integer not null)"
    " without rowid",
)


def is_noted(connection: sqlite3.Connection) -> bool:
    """Return whether the schema is unchanged since it was last recorded."""
    if not _exists(connection, _STATE):
        return False
    found = connection.execute(
        f"select version from {_STATE} where version = (select schema_version"
        " from pragma_schema_version)"
    )
    return found.fetchone() is not None


def mark_changed(connection: sqlite3.Connection) -> None:
    """Mark the logged tables whose rows schema changes may have changed without an event.

    Within a writing transaction, before it changes the schema itself.
    """
    if is_noted(connection):
        return
    state = SchemaState.read(connection)
    logged = {name for kind, name in state.objects if kind == "table" and _is_logged(state, name)}
    for name in sorted(state.changed_unseen(_noted(connection, state), logged)):
        _log.warning(
            "table %r: a schema change may have changed rows that triggers did not log; they are "
            "compared",
            name,
        )
        log = quote(log_table(name))
        connection.execute(f"insert into {log}(at) values({CLOCK})")
        (newest,) = connection.execute(f"select max(seq) from {log}").fetchone()
        mark(connection, name, newest)


def mark(connection: sqlite3.Connection, table: str, entry: int) -> None:
    """Make each mirror that has not reached an entry of a log compare the whole table."""
    connection.execute(_TABLES[1])
    connection.execute(f"insert or replace into {_RESCANS} values(?, ?)", (table, entry))


def note(connection: sqlite3.Connection) -> None:
    """Note the schema as it is now, within the writing transaction that made it so."""
    for text in _TABLES:
        connection.execute(text)
    state = SchemaState.read(connection)
    connection.execute(f"delete from {_STATE}")
    connection.execute(f"insert into {_STATE} values(?, ?)", (state.version, state.text()))


def marks(connection: sqlite3.Connection) -> Mapping[str, int]:
    """Return the entry, by table, at which its rows are to be compared."""
    if not _exists(connection, _RESCANS):
        return {}
    return dict(connection.execute(f"select tbl, seq from {_RESCANS}").fetchall())


def _noted(connection: sqlite3.Connection, state: SchemaState) -> SchemaState:
    if _exists(connection, _STATE):
        row = connection.execute(f"select version, objects from {_STATE}").fetchone()
        if row is not None:
            return SchemaState.parse(*row)
    return SchemaState(state.version, {})  # nothing is known: every definition counts as another


def _is_logged(state: SchemaState, table: str) -> bool:
    return ("table", log_table(table)) in state.objects


def _exists(connection: sqlite3.Connection, table: str) -> bool:
    found = connection.execute("select 1 from sqlite_master where name = ?", (table,))
    return found.fetchone() is not None
