"""One committed state of a SQLite source, read through its logs."""

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
import pyarrow as pa

from rhei_pipeline.errors import SchemaError
from rhei_pipeline.model.changes import ChangeBatch, DeadLetter, Position, RowBatch
from rhei_pipeline.model.instants import instant
from rhei_pipeline.model.schema import Mode, Table, TableSchema
from rhei_pipeline.model.type_names import INSTANT
from rhei_pipeline.protocols import Rescan
from rhei_pipeline.sources.sqlite.admission import Admission, Values
from rhei_pipeline.sources.sqlite.catalog import SqliteTable
from rhei_pipeline.sources.sqlite.cursors import MOST_CHOSEN, Rows, Take, wide_rows
from rhei_pipeline.sources.sqlite.event_rows import event_batches
from rhei_pipeline.sources.sqlite.packed import integers
from rhei_pipeline.sources.sqlite.rows import ReadRows, SqliteRowReader
from rhei_pipeline.sources.sqlite.triggers.ddl import CLOCK, CONTINUED, has_key, key_places
from rhei_pipeline.sources.sqlite.triggers.log_catalog import LogCatalog
from rhei_pipeline.sources.sqlite.triggers.log_chain import TriggerLog, holds_images
from rhei_pipeline.sources.table_reads import TableReads
from rhei_pipeline.sql.text import conjunction, disjunction, quote

#: What an entry tells of an event, beside the row.
_TOLD = ("entry.seq", "entry.at", "entry.live")


@dataclass(frozen=True, slots=True)
class _Reading:
    """What to read of a table after a position.

    Attributes:
        logs: In this order, each from its first entry behind the position.
        until: Where it ends, in a log that was made for another shape; None: at the newest entry.
        next_log: That log.
    """

    logs: tuple[TriggerLog, ...]
    until: Position | None = None
    next_log: TriggerLog | None = None


class SqliteTriggerSnapshot(TableReads):
    """A `SourceSnapshot` inside an open read transaction.

    Args:
        connection: In that transaction.
        catalogue: Returns what is known of a table at a version of the schema.
        logs: What the connection knows of the tables' logs.
        marks: By table, the entry of its log at which its rows are to be compared whole.
        as_given: Returns the shape of a log as this mirror would know that of its table.
        read_rows: Reads rows of tables whole.
    """

    shares_log = False

    def __init__(
        self,
        connection: sqlite3.Connection,
        catalogue: Callable[[str, int], SqliteTable],
        logs: LogCatalog,
        marks: Mapping[str, int],
        as_given: Callable[[TableSchema, TableSchema], TableSchema],
        *,
        read_rows: ReadRows = SqliteRowReader.rows,
    ) -> None:
        self._connection = connection
        self._catalogue_at = catalogue
        self._logs = logs
        self._marks = marks
        self._as_given = as_given
        self._read_rows = read_rows
        self._readings: dict[tuple[str, Position], tuple[Table, _Reading | None]] = {}
        self._ends: dict[str, Position] = {}
        self._readers: dict[str, SqliteRowReader] = {}
        # The first read fixes the snapshot; DEFERRED transactions have none before it.
        connection.execute("select 1 from sqlite_master").fetchone()
        (now,) = connection.execute(f"select {CLOCK}").fetchone()
        self.clock = instant(now)
        self.schema_version = int(connection.execute("pragma schema_version").fetchone()[0])
        logs.follow(self.schema_version)

    def head(self, table: Table) -> Position:
        """Return the newest entry's place and its time.

        Of a table in a shape of before: where the entries end that are of this shape, behind the
        position that was proved.
        """
        return self._ends.get(table.name) or self._logs.newest(table.name)

    def origin(self, table: Table) -> Position:
        """Return the newest entry: rows and log are one state."""
        return self._logs.newest_alone(table.name)

    def proves(self, table: Table, position: Position) -> bool:
        """Return whether the position's entry is kept and has the same time."""
        if self._logs.is_at_rest(table, position):
            self._ends.pop(table.name, None)
            return True
        reading = self._reading(table, position)
        if reading is not None and reading.until is not None:
            self._ends[table.name] = reading.until
            return True
        self._ends.pop(table.name, None)
        if reading is not None and self._logs.newest(table.name) == position:
            self._logs.note_rest(table)
        return reading is not None

    def pending(self, table: Table, after: Position) -> int:
        """Return the number of entries after the position: they are numbered without gaps."""
        newest = self._logs.newest(table.name)
        if newest is after:
            return 0
        reading = self._reading(table, after)
        end = reading and reading.until
        return (end or newest).order - after.order

    def oldest_pending(self, table: Table, after: Position) -> datetime | None:
        """Return the time of the first entry after the position."""
        for log in self._logs_behind(table, after):
            row = self._connection.execute(
                f"select at from {quote(log.name)} where seq > ? order by seq limit 1",
                (after.order,),
            ).fetchone()
            if row is not None:
                return instant(row[0])
        return None

    def changes(self, table: Table, after: Position, limit: int) -> Iterator[ChangeBatch]:
        """Read versions of a temporal table, net changes of a destructive one."""
        if table.mode is Mode.DESTRUCTIVE:
            yield from self.net_changes(table, after, limit)
            return
        # From the logs alone, in the shape they were made in: the table may have changed since.
        for log in self._logs_behind(table, after):
            chosen = [*_TOLD, *log.places(table.schema)]
            entries = (
                f" from {log.entries(table.schema)} where entry.seq > ?1 and entry.live is not null"
                f" and entry.live <> {CONTINUED} order by entry.seq"
            )
            take = wide_rows(self._connection, chosen, entries, (after.order,))
            admission = Admission(table.schema, self.clock, len(_TOLD), _told)
            yield from event_batches(admission, take, limit)

    def net_changes(self, table: Table, after: Position, limit: int) -> Iterator[ChangeBatch]:
        """Join the touched keys to the rows they have now."""
        source = self._catalogue(table.name)
        count = self.pending(table, after)
        chosen, touched = _net_sql(source, self._logs_behind(table, after))
        take = wide_rows(self._connection, chosen, touched, (after.order,))
        if not source.binary_key:
            take = _splitting(take, len(source.schema.primary_key))
        admission = Admission(source.schema, self.clock, 1, self._seen_now)
        for batch in event_batches(admission, take, limit):
            yield replace(batch, count=count, net=source.binary_key)
            count = 0
            del batch

    def next_shape(self, table: Table, after: Position) -> TableSchema | None:
        """Return the schema of the log that follows the one read to its end."""
        reading = self._reading(table, after)
        if reading is None or reading.logs or reading.next_log is None:
            return None
        return self._made_for(reading.next_log, table) if reading.next_log.retired else None

    def _logs_behind(self, table: Table, after: Position) -> Sequence[TriggerLog]:
        reading = self._reading(table, after)
        return self._logs.logs(table.name)[-1:] if reading is None else reading.logs

    def _reading(self, table: Table, after: Position) -> _Reading | None:
        """Return what to read behind a position; None where the logs do not hold that."""
        asked, found = self._readings.get((table.name, after), (None, None))
        if asked is not table:
            found = self._find_reading(table, after)
            self._readings[table.name, after] = table, found
        return found

    def _find_reading(self, table: Table, after: Position) -> _Reading | None:
        logs = self._logs.logs(table.name)
        here = next((n for n in reversed(range(len(logs))) if logs[n].first <= after.order), None)
        if here is None or not self._holds(table, logs[here], after):
            return None
        behind = logs[here:]
        if table.mode is Mode.DESTRUCTIVE:
            # What its logs have besides keys is not wanted, and rows of another shape are copied.
            return _Reading(tuple(behind)) if self._holds_keys(table, behind) else None
        if self._present(table) == table.schema:
            return _Reading(tuple(behind)) if self._can_read(table, behind, after) else None
        if not self._is_of_shape(behind[0], table, after):
            at_begin = after.order == behind[0].first
            return _Reading((), after, behind[0]) if at_begin else None
        return self._up_to_another_shape(table, behind)

    def _holds_keys(self, table: Table, logs: Sequence[TriggerLog]) -> bool:
        """Return whether these logs have all keys touched of a table that is as it was."""
        if len(logs) == 1:
            return not logs[0].retired
        shapes, key = [log.schema for log in logs], table.schema.primary_key
        is_same = all(shape is not None and shape.primary_key == key for shape in shapes)
        return is_same and self._present(table) == table.schema

    def _up_to_another_shape(self, table: Table, logs: Sequence[TriggerLog]) -> _Reading | None:
        shapes = [self._made_for(log, table) for log in logs]
        same = [shape == shapes[0] for shape in shapes]
        end = same.index(False) if False in same else len(logs)
        if end == len(logs):
            return _Reading(tuple(logs))
        until = self._first_entry(logs[end])
        return None if until is None else _Reading(tuple(logs[:end]), until, logs[end])

    def _is_of_shape(self, log: TriggerLog, table: Table, after: Position) -> bool:
        """Return whether a log was written for a table that the source has otherwise by now.

        The mirror that had the log made may know columns by other types. But its first entry is
        also where the log before it ends, and there only the very same shape will do.
        """
        made_for = self._made_for(log, table)
        if made_for is None or made_for == table.schema:
            return True
        if made_for == self._present(table) or after.order == log.first:
            return False
        return _order_of_columns(made_for) == _order_of_columns(table.schema)

    def _can_read(self, table: Table, logs: Sequence[TriggerLog], after: Position) -> bool:
        """Return whether all these logs can be read as versions of a table as it is now.

        One of another shape can, by its columns' names, once the log before it has been read.
        """
        if not logs[0].retired:
            return True
        key, began = set(table.schema.primary_key), after.order == logs[0].first
        shapes = [log.schema for log in logs]
        return (began or self._made_for(logs[0], table) == table.schema) and all(
            holds_images(self._connection, log.name)
            and (shape is None or set(shape.primary_key) == key)
            for log, shape in zip(logs, shapes, strict=True)
        )

    def _made_for(self, log: TriggerLog, table: Table) -> TableSchema | None:
        """Return the table that a log was made for, as this mirror would know it.

        By the names that the table has, if the log had them once.
        """
        known = [self._as_given(schema, table.schema) for schema in log.schemas]
        return table.schema if table.schema in known else next(reversed(known), None)

    def _catalogue(self, name: str) -> SqliteTable:
        return self._catalogue_at(name, self.schema_version)

    def _present(self, table: Table) -> TableSchema | None:
        try:
            return self._catalogue(table.name).schema
        except SchemaError:
            return None

    def _holds(self, table: Table, log: TriggerLog, position: Position) -> bool:
        """Return whether a log of a table has the entry of a position."""
        if not log.retired and self._logs.newest(table.name) == position:
            return True
        row = self._connection.execute(
            f"select at from {quote(log.name)} where seq = ?", (position.order,)
        ).fetchone()
        return row is not None and str(row[0]) == position.proof

    def _first_entry(self, log: TriggerLog) -> Position | None:
        row = self._connection.execute(
            f"select at from {quote(log.name)} where seq = ?", (log.first,)
        ).fetchone()
        return None if row is None else Position(log.first, str(row[0]))

    def rows(self, table: Table, resume: str | None, limit: int) -> RowBatch | None:
        """Read the next rows in key order."""
        return self._read_rows(self._reader(table), resume, limit)

    def keyless(self, table: Table) -> tuple[DeadLetter, ...]:
        """Return the rows whose key is null."""
        return self._reader(table).keyless()

    def keyless_count(self, table: Table, where: str) -> int:
        """Count the rows whose key is null."""
        return self._reader(table).keyless_count(where)

    def rescan(self, table: Table, after: Position) -> Rescan:
        """Return whether a rescan is needed: after a schema change; triggers see other changes.

        A table whose shape is another by now is copied anyway.
        """
        is_due = after.order < self._marks.get(table.name, 0)
        return Rescan.ALL if is_due and self._present(table) == table.schema else Rescan.NONE

    def _reader(self, table: Table) -> SqliteRowReader:
        if table.name not in self._readers:
            self._readers[table.name] = SqliteRowReader(
                self._connection, self._catalogue(table.name), self.clock
            )
        return self._readers[table.name]

    def _seen_now(self, values: Values) -> list[pa.Array]:
        """Return the fields of events that tell what is there now."""
        live = integers(values[0]).cast(pa.bool_())
        now = pa.repeat(pa.scalar(self.clock, INSTANT), len(live))
        return [pa.array(np.zeros(len(live), np.int64)), now, live]


def _told(values: Values) -> list[pa.Array]:
    """Return the fields of events as an entry tells them."""
    sequence, at, live = map(integers, values[: len(_TOLD)])
    return [sequence, at.cast(INSTANT), live.cast(pa.bool_())]


def _order_of_columns(schema: TableSchema) -> list[str]:
    return [*schema.primary_key, *(column.name for column in schema.value_columns)]


def _net_sql(source: SqliteTable, logs: Sequence[TriggerLog]) -> tuple[list[str], str]:
    """Write what to select, and from where: `live`, the key as logged, then the other columns.

    Where the key's collation lets two spellings meet, the key of the row stands behind them all.
    """
    schema = source.schema
    places = key_places(schema)
    key = schema.primary_key
    joined = conjunction(
        f"t.{quote(name)} = k.{place}" for name, place in zip(key, places, strict=True)
    )
    values = [*(column.name for column in schema.value_columns)]
    values += () if source.binary_key else key
    chosen = [_live_sql(source), *(f"k.{place}" for place in places)]
    chosen += [f"t.{quote(name)}" for name in values]
    having = "" if source.nullable_key else f" and {places[0]} is not null"
    touched = " union all ".join(_touched_sql(log, schema) for log in logs)
    keys = ", ".join(places)
    order = f" order by {keys}" if len(chosen) > MOST_CHOSEN else ""
    # Grouping sorts, where `distinct` keeps the order of the log: so rows are found one after
    # another, not scattered over the table.
    return chosen, (
        f" from (select {keys} from ({touched}) where true{having} group by {keys}{order}) k"
        f" left join {quote(schema.name)} t on {joined}"
    )


def _touched_sql(log: TriggerLog, schema: TableSchema) -> str:
    kept = zip(log.places(schema), key_places(schema), strict=False)
    keys = ", ".join(f"{place} as {name}" for place, name in kept)
    return f"select {keys} from {quote(log.name)} entry where entry.seq > ?1"


def _live_sql(source: SqliteTable) -> str:
    """Return SQL that is true if the touched key `k` has a row; a null key joins no row."""
    live = f"t.{quote(source.schema.primary_key[0])} is not null"
    if not source.nullable_key:
        return live
    places = dict(zip(source.schema.primary_key, key_places(source.schema), strict=True))
    unknown = disjunction(f"k.{places[name]} is null" for name in source.nullable_key)
    same = has_key(source, "r", [f"k.{place}" for place in places.values()])
    return (
        f"{live} or (({unknown})"
        f" and exists (select 1 from {quote(source.schema.name)} r where {same}))"
    )


def _splitting(take: Take, width: int) -> Take:
    """Return what takes rows, each split by its collation."""
    return lambda count: _split_by_collation(take(count), width)


def _split_by_collation(rows: Rows, width: int) -> Rows:
    """Where a touched key met a row of another spelling, the touched spelling has no row.

    Each row is (live, key as logged, values, key of the row met). Spellings that are one key to
    the mirror as well, as 0.0 and -0.0, are given as the row has them now.
    """
    split = []
    for row in rows:
        logged, met = row[1 : 1 + width], row[-width:]
        values = row[1 + width : -width]
        if not row[0] or None in logged:
            split.append(row[:-width])
            continue
        if logged != met:
            split.append((0, *logged, *(None for _ in values)))
        split.append((1, *met, *values))
    return split
