"""Which column of a SQLite table is which, whatever it is called.

SQLite has only names, so capture gives each column an identity, in a table beside its logs. A
column keeps it as long as each schema change is explained: one that was renamed is the same, one
that was dropped and added again is another. Identities are drawn by lot, so that no other one is
ever alike, though an older state of the file is put back.
"""

import json
import secrets
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from rhei_pipeline.model.kept_columns import KeptColumns
from rhei_pipeline.model.schema import TableSchema

#: Where identities are noted.
COLUMNS = "_rhei_column"
#: Creates that table.
TABLE = (
    f"create table if not exists {COLUMNS}(tbl text primary key, version integer not null,"
    " identities text not null) without rowid"
)
_DRAWN_BYTES = 8

#: A table's columns in their order, each with its identity; names that are gone have none.
Identities = Mapping[str, str]
_NONE: Identities = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class ColumnState:
    """What tells later which columns of a table are the ones that it has now.

    Attributes:
        names: Of all its columns, mirrored or not, in lower case.
        version: SQLite's count of schema changes.
        identities: By name; none where nobody captures the table, or a change is not explained yet.
    """

    names: Sequence[str]
    version: int = -1
    identities: Identities = field(default_factory=lambda: _NONE)

    def text(self) -> str:
        """Write it as JSON."""
        own = {"names": [*self.names], "version": self.version}
        return json.dumps(own | {"identities": {**self.identities}})

    @classmethod
    def of(cls, schema: TableSchema) -> "ColumnState | None":
        """Read what a schema has with it; of older versions, its names alone."""
        form = json.loads(schema.storage) if schema.storage else None
        return None if form is None else cls(form) if isinstance(form, list) else cls(**form)


def read_state(
    connection: sqlite3.Connection, version: int, table: str, names: Sequence[str]
) -> ColumnState:
    """Return what the schema says of a table's columns.

    `version`: SQLite's count of schema changes, from before the names were read. One that comes
    between is then counted as later, and so proves nothing.
    """
    known = read_identities(connection, version, table).get(table, _NONE)
    own = {name: identity for name, identity in known.items() if identity}
    return ColumnState([name.lower() for name in names], version, own)


def read_identities(
    connection: sqlite3.Connection, version: int, table: str | None = None
) -> dict[str, Identities]:
    """Return what is noted of one table, or of all, as of a count of schema changes."""
    if connection.execute("select 1 from temp.pragma_table_info(?)", (COLUMNS,)).fetchone() is None:
        return {}
    chosen, bound = ("", (version,)) if table is None else (" and tbl = ?", (version, table))
    rows = connection.execute(
        f"select tbl, identities from {COLUMNS} where version = ?{chosen}", bound
    )
    return {name: json.loads(text) for name, text in rows}


def note_identities(
    connection: sqlite3.Connection, version: int, identities: Mapping[str, Identities]
) -> None:
    """Note which column is which, of all captured tables, within a writing transaction."""
    connection.execute(f"delete from {COLUMNS}")
    connection.executemany(
        f"insert into {COLUMNS} values(?, ?, ?)",
        [(name, version, json.dumps({**known})) for name, known in identities.items()],
    )


def carried(
    names: Sequence[str], former: Mapping[str, str], known: Identities, gone: Iterable[str]
) -> Identities:
    """Return the identities of columns: those that they had by their former names, or new ones."""
    own = {
        name: known.get(former.get(name, ""), "") or secrets.token_hex(_DRAWN_BYTES)
        for name in names
    }
    return own | dict.fromkeys(gone, "")


def has_identities(schema: TableSchema) -> bool:
    """Return whether a table was described with what tells its columns apart."""
    state = ColumnState.of(schema)
    return state is not None and bool(state.identities)


def kept_by_identity(known: TableSchema, schema: TableSchema) -> KeptColumns | None:
    """Return which columns of a captured table are those that were known; None: not sure."""
    before, after = ColumnState.of(known), ColumnState.of(schema)
    if before is None or after is None or not before.identities or not after.identities:
        return None
    names = {identity: name for name, identity in before.identities.items()}
    former = {name: names.get(identity) for name, identity in after.identities.items()}
    return _kept(known, schema, {new: old for new, old in former.items() if old is not None})


def kept_by_count(known: TableSchema, schema: TableSchema) -> KeptColumns | None:
    """Return the same of a table that nobody captures; None unless one statement tells it all.

    One statement alone can rename a column, or drop or add one, and do nothing else to a table.
    """
    before, after = ColumnState.of(known), ColumnState.of(schema)
    if before is None or after is None:
        return None
    was, now = before.names, after.names
    # In one file, other names take a statement. As many statements are of another file.
    counts = {0, 1} if [*was] == [*now] else {1}
    if after.version - before.version not in counts:
        return None
    if len(was) == len(now):  # it was renamed, if it was this table at all
        former = dict(zip(now, was, strict=True))
    else:
        former = {name: name for name in now if name in was}
    spelled = {name.lower(): name for name in known.names}
    own = {name: spelled.get(former.get(name.lower(), "")) for name in schema.names}
    return _kept(known, schema, {new: old for new, old in own.items() if old is not None})


def _kept(known: TableSchema, schema: TableSchema, former: Mapping[str, str]) -> KeptColumns | None:
    """Return what is kept; None where a name is by now that of another column."""
    were = set(known.names)
    own = {name: former[name] for name in schema.names if former.get(name) in were}
    had = {name.lower(): name for name in known.names}
    is_taken = any(had.get(name.lower(), own.get(name)) != own.get(name) for name in schema.names)
    return None if is_taken else KeptColumns(own, frozenset({*schema.names} - own.keys()))
