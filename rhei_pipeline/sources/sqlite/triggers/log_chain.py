"""The logs of one table, in the order in which they were written.

A log is made for one shape of its table. When capture is made again for another shape, the log of
before is *retired*: it is kept under another name until every mirror has read it, with the shape
it was written in. Entries are numbered on from one log to the next.
"""

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from rhei_pipeline.model.schema import TableSchema
from rhei_pipeline.sources.sqlite.triggers.ddl import CONTINUED, key_places, log_table, value_places
from rhei_pipeline.sql.text import quote

#: Which logs there are of which tables.
LOGS = "_rhei_logs"
_TABLE = (
    f"create table if not exists {LOGS}(tbl text not null collate nocase, first integer not null,"
    " retired text, shape text not null, primary key(tbl, first)) without rowid"
)

#: Beside a shape: those that it had with other names, the oldest first.
_FORMERLY = "formerly"

#: Table, first entry, its name once it is retired, shape.
_Noted = tuple[str, int, str | None, str]


@dataclass(frozen=True, slots=True)
class TriggerLog:
    """One log of a table.

    Attributes:
        name: Its name in the source.
        first: The number of its first entry, which tells of no change; 0 where it was not noted.
        shape: The table that it was made for, as JSON; None for one of before this was noted.
        retired: Whether triggers write into another one by now.
    """

    name: str
    first: int = 0
    shape: str | None = None
    retired: bool = False

    @property
    def schema(self) -> TableSchema | None:
        """The table that it was made for, as the mirror saw it that had it made."""
        schemas = self.schemas
        return schemas[-1] if schemas else None

    @property
    def schemas(self) -> tuple[TableSchema, ...]:
        """The same, and before it those with the names that columns had earlier in this log."""
        return () if self.shape is None else _schemas_of(self.shape)

    def places(self, schema: TableSchema) -> list[str]:
        """Return where it keeps a table's columns, the key's first; `null` for one it lacks."""
        made_for = self.schema or schema
        parts = value_places(made_for)
        rows = ["entry"] + ["rest"] * (len(parts) - 1)
        kept = [f"entry.{place}" for place in key_places(made_for)]
        kept += [f"{row}.{place}" for row, part in zip(rows, parts, strict=False) for place in part]
        at: dict[str, str] = {}
        for each in self.schemas or [made_for]:  # no name was ever that of two columns
            at |= zip(_key_first(each), kept, strict=True)
        return [at.get(name, "null") for name in _key_first(schema)]

    def entries(self, schema: TableSchema) -> str:
        """Write where its places are read from: each entry, and what continues it."""
        log = quote(self.name)
        if len(value_places(self.schema or schema)) <= 1:
            return f"{log} entry"
        continued = f"rest.seq = entry.seq + 1 and rest.live = {CONTINUED}"
        return f"{log} entry left join {log} rest on {continued}"


@lru_cache(maxsize=1024)
def _schemas_of(shape: str) -> tuple[TableSchema, ...]:
    """Read a shape once, not in each cycle: that takes most of a millisecond."""
    form = json.loads(shape)
    return tuple(TableSchema.from_json(each) for each in (*form.get(_FORMERLY, ()), form))


def _key_first(schema: TableSchema) -> list[str]:
    return [*schema.primary_key, *(column.name for column in schema.value_columns)]


def find_logs(connection: sqlite3.Connection, table: str) -> list[TriggerLog]:
    """Return the logs of a table that are still there, the one written into last."""
    current = log_table(table) if exists(connection, log_table(table)) else None
    noted = _noted(connection, " where tbl = ?", table) if exists(connection, LOGS) else []
    return _in_order(noted, current)


def current_log(connection: sqlite3.Connection, table: str) -> TriggerLog | None:
    """Return the log of a table that is written into; None if there is none."""
    logs = find_logs(connection, table)
    return logs[-1] if logs and not logs[-1].retired else None


def all_logs(connection: sqlite3.Connection) -> dict[bytes, list[TriggerLog]]:
    """Return the logs of every table, by its folded name, each as `find_logs` returns them.

    They stay the same as long as the schema does: logs come and go with it.
    """
    own = log_table("")
    rows = connection.execute(
        "select name from sqlite_master where type = 'table' and substr(name, 1, 6) = '_rhei_'"
    )
    standing = {name for (name,) in rows}
    current = {folded(name.removeprefix(own)): name for name in standing if name.startswith(own)}
    noted: dict[bytes, list[_Noted]] = {}
    for row in _noted(connection) if LOGS in standing else ():
        if row[2] is None or row[2] in standing:
            noted.setdefault(folded(row[0]), []).append(row)
    found = {n: _in_order(noted.get(n, []), current.get(n)) for n in {*noted, *current}}
    return {name: logs for name, logs in found.items() if logs}


@lru_cache(maxsize=4096)  # each cycle asks for every table
def folded(name: str) -> bytes:
    """Return a name as SQLite compares it: without the case of its ASCII letters."""
    return name.encode().lower()


def _in_order(noted: Sequence[_Noted], current: str | None) -> list[TriggerLog]:
    found = [
        TriggerLog(name, first, shape, retired=True) for _, first, name, shape in noted if name
    ]
    if current is not None:
        shapes = [(first, shape) for _, first, name, shape in noted if name is None]
        found += [TriggerLog(current, *row) for row in shapes] or [TriggerLog(current)]
    return found


def tables_with_retired_logs(connection: sqlite3.Connection) -> list[str]:
    """Return the tables that have logs nobody writes into any more."""
    if not exists(connection, LOGS):
        return []
    rows = connection.execute(f"select distinct tbl from {LOGS} where retired is not null")
    return [name for (name,) in rows]


def newest_entry(connection: sqlite3.Connection, log: str) -> int:
    """Return the number of a log's newest entry; 0 where it has none."""
    return int(connection.execute(f"select max(seq) from {quote(log)}").fetchone()[0] or 0)


def holds_images(connection: sqlite3.Connection, log: str) -> bool:
    """Return whether a log holds rows as they were, and not only the keys touched."""
    found = connection.execute(
        "select 1 from temp.pragma_table_info(?) where name = 'live'", (log,)
    )
    return found.fetchone() is not None


def retire(
    connection: sqlite3.Connection, table: str, known: TableSchema | None, *, keep_keys: bool
) -> None:
    """Set the log that is written into aside, in a writing transaction; its triggers are gone.

    One that holds no versions is dropped, as a copy tells the same; unless `keep_keys` is given:
    the table is as it was, and no mirror has to copy it. `known` is the table that a log was made
    for of which that was not noted.
    """
    connection.execute(_TABLE)
    log = current_log(connection, table)
    connection.execute(f"delete from {LOGS} where tbl = ? and retired is null", (table,))
    if log is None:
        return
    newest = newest_entry(connection, log.name)
    shape = log.shape or (known and json.dumps(known.to_json()))
    was_cleared = newest < max(log.first, 1)
    is_kept = keep_keys or holds_images(connection, log.name)
    if was_cleared or shape is None or not is_kept:
        connection.execute(f"drop table {quote(log.name)}")
        return
    # Numbers set this name apart from those of all other objects of ours, whatever tables are
    # called; and logs of one table never end at the same entry.
    name = f"_rhei_retired_{newest}_{table}"
    connection.execute(f"alter table {quote(log.name)} rename to {quote(name)}")
    connection.execute(f"insert into {LOGS} values(?, ?, ?, ?)", (table, log.first, name, shape))


def note_log(connection: sqlite3.Connection, schema: TableSchema, first: int) -> None:
    """Note that a table's log was made, for which shape, and with which entry it begins."""
    shape = json.dumps(schema.to_json())
    connection.execute(f"insert into {LOGS} values(?, ?, null, ?)", (schema.name, first, shape))


def note_renamed(connection: sqlite3.Connection, log: TriggerLog, schema: TableSchema) -> None:
    """Note the shape with other names for which a log is written by now."""
    former = [each.to_json() for each in log.schemas]
    shape = json.dumps(schema.to_json() | {_FORMERLY: former})
    where = "tbl = ? and retired is null"
    connection.execute(f"update {LOGS} set shape = ? where {where}", (shape, schema.name))


def drop_retired(connection: sqlite3.Connection, log: TriggerLog) -> None:
    """Drop a retired log, in a writing transaction."""
    connection.execute(f"drop table if exists {quote(log.name)}")
    connection.execute(f"delete from {LOGS} where retired = ?", (log.name,))


def drop_all(connection: sqlite3.Connection, table: str) -> None:
    """Drop all logs of a table, in a writing transaction; its triggers are gone."""
    for log in find_logs(connection, table):
        connection.execute(f"drop table if exists {quote(log.name)}")
    if exists(connection, LOGS):
        connection.execute(f"delete from {LOGS} where tbl = ?", (table,))


def exists(connection: sqlite3.Connection, table: str) -> bool:
    """Return whether there is a table of that name; SQLite compares names without case."""
    # Found by its name alone, however many there are.
    found = connection.execute("select 1 from temp.pragma_table_info(?) limit 1", (table,))
    return found.fetchone() is not None


def _noted(connection: sqlite3.Connection, where: str = "", *bound: str) -> list[_Noted]:
    rows = connection.execute(
        f"select tbl, first, retired, shape from {LOGS}{where} order by tbl, first", bound
    )
    return rows.fetchall()
