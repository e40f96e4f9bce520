"""One committed state of a SQLite source, read through its logs."""

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from rhei_pipeline.capture.sqlite.rows import RowReader, event_batch
from rhei_pipeline.capture.sqlite.trigger_sql import (
    CLOCK,
    has_key,
    key_places,
    log_table,
    value_places,
)
from rhei_pipeline.events import ChangeBatch, DeadLetter, Position, RowBatch
from rhei_pipeline.oltp.sqlite_schema import SqliteTable
from rhei_pipeline.oltp.sqlite_values import fetch
from rhei_pipeline.protocols import Audit
from rhei_pipeline.schema import INSTANT, Mode, Table, TableSchema
from rhei_pipeline.sql import listed, quote

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class TriggerSnapshot:
    """A `SourceSnapshot` inside an open read transaction.

    Args:
        connection: In that transaction.
        catalogue: Returns what is known of a table.
        marks: By table, the entry of its log at which its rows are to be compared whole.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        catalogue: Callable[[str], SqliteTable],
        marks: Mapping[str, int],
    ) -> None:
        self._connection = connection
        self._catalogue = catalogue
        self._marks = marks
        # The first read fixes the snapshot; DEFERRED transactions have none before it.
        connection.execute("select 1 from sqlite_master").fetchone()
        (now,) = connection.execute(f"select {CLOCK}").fetchone()
        self.clock = _instant(now)
        self.schema_version = int(connection.execute("pragma schema_version").fetchone()[0])

    def head(self, table: Table) -> Position:
        """Return the newest entry's place and its time."""
        row = self._connection.execute(
            f"select seq, at from {_log(table)} order by seq desc limit 1"
        ).fetchone()
        return Position(row[0], str(row[1]))

    def origin(self, table: Table) -> Position:
        """Return the head: rows and log are one state."""
        return self.head(table)

    def proves(self, table: Table, position: Position) -> bool:
        """Look for the entry at the position: it is kept, and it has the same time."""
        if not self._has_log(table):
            return False
        row = self._connection.execute(
            f"select at from {_log(table)} where seq = ?",
            (position.order,),
        ).fetchone()
        return row is not None and str(row[0]) == position.proof

    def _has_log(self, table: Table) -> bool:
        found = self._connection.execute(
            "select 1 from sqlite_master where type = 'table' and name = ?",
            (log_table(table.name),),
        )
        return found.fetchone() is not None

    def retains(self, position: Position) -> bool:  # noqa: ARG002
        """Keep nothing but what a table's own changes need."""
        return False

    def pending(self, table: Table, after: Position) -> int:
        """Subtract: entries are numbered without gaps."""
        return self.head(table).order - after.order

    def oldest_pending(self, table: Table, after: Position) -> datetime | None:
        """Return the time of the first entry behind the position."""
        row = self._connection.execute(
            f"select at from {_log(table)} where seq > ? order by seq limit 1",
            (after.order,),
        ).fetchone()
        return None if row is None else _instant(row[0])

    def changes(self, table: Table, after: Position, limit: int) -> Iterator[ChangeBatch]:
        """Read versions of a temporal table, net changes of a destructive one."""
        if table.mode is Mode.DESTRUCTIVE:
            yield from self.net_changes(table, after, limit)
            return
        # From the log alone, in the shape it was made in: the table may have changed since.
        places = ", ".join([*key_places(table.schema), *value_places(table.schema)])
        sql = (
            f"select seq, at, live, {places} from {_log(table)}"
            " where seq > ? and live is not null order by seq"
        )
        for rows in fetch(self._connection, sql, (after.order,), limit):
            yield self._versions(table.schema, rows)

    def net_changes(self, table: Table, after: Position, limit: int) -> Iterator[ChangeBatch]:
        """Join the touched keys to the rows they have now."""
        source = self._catalogue(table.name)
        count = self.pending(table, after)
        for rows in fetch(self._connection, _net_sql(source), (after.order,), limit):
            yield self._net_batch(source, rows, count)
            count = 0

    def rows(self, table: Table, resume: str | None, limit: int) -> RowBatch | None:
        """Read the next rows in key order."""
        return self._reader(table).rows(resume, limit)

    def keyless(self, table: Table) -> tuple[DeadLetter, ...]:
        """Name the rows whose key is null."""
        return self._reader(table).keyless()

    def count(self, table: Table) -> int:
        """Count the table's rows."""
        return self._reader(table).count()

    def audit(self, table: Table, after: Position) -> Audit:
        """Ask for one behind a schema change; a trigger sees every other change."""
        return Audit.ALL if after.order < self._marks.get(table.name, 0) else Audit.NONE

    def doubt(self, table: Table) -> None:
        """Have none: a trigger sees every change."""

    def _reader(self, table: Table) -> RowReader:
        return RowReader(self._connection, self._catalogue(table.name), self.clock)

    def _versions(self, schema: TableSchema, rows: list[tuple[Any, ...]]) -> ChangeBatch:
        sequence, at, live = (pa.array(values) for values in list(zip(*rows, strict=True))[:3])
        own = [sequence, at.cast(INSTANT), live.cast(pa.bool_())]
        values = [row[len(own) :] for row in rows]
        return event_batch(schema, own, values, self.clock)

    def _net_batch(
        self, source: SqliteTable, rows: list[tuple[Any, ...]], count: int
    ) -> ChangeBatch:
        if not source.binary_key:
            rows = _split_by_collation(rows, len(source.schema.primary_key))
        live = pa.array([row[0] for row in rows], pa.int64()).cast(pa.bool_())
        now = pa.repeat(pa.scalar(self.clock, INSTANT), len(rows))
        own = [pa.array(np.zeros(len(rows), np.int64)), now, live]
        batch = event_batch(source.schema, own, [row[1:] for row in rows], self.clock)
        return replace(batch, count=count, net=source.binary_key)


def _log(table: Table) -> str:
    return quote(log_table(table.name))


def _net_sql(source: SqliteTable) -> str:
    """Select `live`, the key (as logged where there is no row), then the other columns.

    Where the key's collation lets two spellings meet, the key as logged stands behind them all.
    """
    schema = source.schema
    places = key_places(schema)
    key = schema.primary_key
    joined = " and ".join(
        f"t.{quote(name)} = k.{place}" for name, place in zip(key, places, strict=True)
    )
    keys = ", ".join(f"k.{place}" for place in places)
    values = listed([column.name for column in schema.value_columns], "t")
    logged = "" if source.binary_key else listed(key, "t")
    told = "" if source.nullable_key else f" and {places[0]} is not null"
    chosen = ", ".join(filter(None, [_live_sql(source), keys, values, logged]))
    return (
        f"select {chosen} from"
        f" (select distinct {', '.join(places)} from {quote(log_table(schema.name))}"
        f" where seq > ?{told}) k left join {quote(schema.name)} t on {joined}"
    )


def _live_sql(source: SqliteTable) -> str:
    """Tell whether the touched key `k` has a row; one that is null in part meets none in a join."""
    live = f"t.{quote(source.schema.primary_key[0])} is not null"
    if not source.nullable_key:
        return live
    places = dict(zip(source.schema.primary_key, key_places(source.schema), strict=True))
    unknown = " or ".join(f"k.{places[name]} is null" for name in source.nullable_key)
    same = has_key(source, "r", [f"k.{place}" for place in places.values()])
    return (
        f"{live} or (({unknown})"
        f" and exists (select 1 from {quote(source.schema.name)} r where {same}))"
    )


def _split_by_collation(rows: list[tuple[Any, ...]], width: int) -> list[tuple[Any, ...]]:
    """Where a touched key met a row of another spelling, the touched spelling has no row.

    Each row is (live, key as logged, values, key of the row met). Spellings that are one key to
    the mirror as well, as 0.0 and -0.0, are told as the row has them now.
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


def _instant(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)
