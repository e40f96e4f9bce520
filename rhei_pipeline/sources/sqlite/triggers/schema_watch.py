"""Records schema changes that leave no difference in the source, so that every mirror sees them.

What the schema was when it was last looked at stands in the source, beside the logs. Where the
count of changes since says more than the differences, the logged tables are marked: an entry of
their logs asks each mirror to compare its rows whole once it has come so far.
"""

import logging
import sqlite3
from collections.abc import Mapping
from dataclasses import replace

from rhei_pipeline.sources.sqlite import column_identities
from rhei_pipeline.sources.sqlite.column_identities import (
    Identities,
    carried,
    note_identities,
    read_identities,
)
from rhei_pipeline.sources.sqlite.schema_objects import SchemaState
from rhei_pipeline.sources.sqlite.triggers.ddl import CLOCK, log_table
from rhei_pipeline.sources.sqlite.triggers.renamed_logs import rename_in_log
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
    if not (_exists(connection, _STATE) and _exists(connection, column_identities.COLUMNS)):
        return False  # or an older version of this package did
    found = connection.execute(
        f"select version from {_STATE} where version = (select schema_version"
        " from temp.pragma_schema_version)"
    )
    return found.fetchone() is not None


def mark_changed(connection: sqlite3.Connection) -> None:
    """Mark the logged tables whose rows schema changes may have changed without an event.

    Within a writing transaction, before it changes the schema itself. The logs of the others, and
    their columns' identities, go on by the names that columns have now.
    """
    if is_noted(connection):
        return
    state, known = SchemaState.read(connection), _known_identities(connection)
    before, logged = _noted(connection, state, known), _logged(state)
    for name in sorted(state.changed_unseen(before, logged)):
        _log.warning(
            "table %r: a schema change may have changed rows that triggers did not log; they are "
            "compared",
            name,
        )
        mark(connection, name, add_entry(connection, name))
    kept = {name: names for name, names in state.former_names(before).items() if name in logged}
    for name, former in kept.items():
        rename_in_log(connection, name, {n: old for n, old in former.items() if n != old})
    gone = state.after(before).gone
    found = {
        name: carried(state.columns[name], former, known.get(name, {}), gone[name])
        for name, former in kept.items()
    }
    _note(connection, found)


def changed_unseen(connection: sqlite3.Connection) -> set[str]:
    """Return the tables that `mark_changed` would mark; changes nothing."""
    if is_noted(connection):
        return set()
    state = SchemaState.read(connection)
    before = _noted(connection, state, _known_identities(connection))
    return state.changed_unseen(before, _logged(state))


def add_entry(connection: sqlite3.Connection, table: str) -> int:
    """Add an entry that tells of no change to a table's log; return its number."""
    log = quote(log_table(table))
    connection.execute(f"insert into {log}(at) values({CLOCK})")
    return int(connection.execute(f"select max(seq) from {log}").fetchone()[0])


def mark(connection: sqlite3.Connection, table: str, entry: int) -> None:
    """Make each mirror that has not reached an entry of a log compare the whole table."""
    connection.execute(_TABLES[1])
    connection.execute(f"insert or replace into {_RESCANS} values(?, ?)", (table, entry))


def note(connection: sqlite3.Connection) -> None:
    """Note the schema as it is now, within the writing transaction that made it so."""
    _note(connection, _known_identities(connection))


def _note(connection: sqlite3.Connection, known: Mapping[str, Identities]) -> None:
    """Note the schema, and which column is which; `known`: of the columns by their names now."""
    for text in (*_TABLES, column_identities.TABLE):
        connection.execute(text)
    state = SchemaState.read(connection)
    connection.execute(f"delete from {_STATE}")
    connection.execute(f"insert into {_STATE} values(?, ?)", (state.version, state.text()))
    identities = {}
    for name in _logged(state):
        own, had = state.columns[name], known.get(name, {})
        gone = [column for column, identity in had.items() if not identity]
        identities[name] = carried(own, {column: column for column in own}, had, gone)
    note_identities(connection, state.version, identities)


def marks(connection: sqlite3.Connection) -> Mapping[str, int]:
    """Return the entry, by table, at which its rows are to be compared."""
    if not _exists(connection, _RESCANS):
        return {}
    return dict(connection.execute(f"select tbl, seq from {_RESCANS}").fetchall())


def _known_identities(connection: sqlite3.Connection) -> Mapping[str, Identities]:
    """Return which column was which when the schema was noted."""
    if not _exists(connection, _STATE):
        return {}
    row = connection.execute(f"select version from {_STATE}").fetchone()
    return {} if row is None else read_identities(connection, row[0])


def _noted(
    connection: sqlite3.Connection, state: SchemaState, known: Mapping[str, Identities]
) -> SchemaState:
    if _exists(connection, _STATE):
        row = connection.execute(f"select version, objects from {_STATE}").fetchone()
        if row is not None:
            version, text = row
            there = {name: [n for n, of in own.items() if of] for name, own in known.items()}
            gone = {name: {n for n, of in own.items() if not of} for name, own in known.items()}
            return replace(SchemaState.parse(version, text, there), gone=gone)
    return SchemaState(state.version, {})  # nothing is known: every definition counts as another


def _logged(state: SchemaState) -> set[str]:
    return {
        name
        for kind, name in state.objects
        if kind == "table" and ("table", log_table(name)) in state.objects
    }


def _exists(connection: sqlite3.Connection, table: str) -> bool:
    found = connection.execute("select 1 from sqlite_master where name = ?", (table,))
    return found.fetchone() is not None
