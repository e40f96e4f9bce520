"""One committed state of a SQLite source, read through its logs."""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from rhei_pipeline.capture.trigger_sql import CLOCK, key_places, log_table, value_places
from rhei_pipeline.events import (
    EVENT_FIELDS,
    ChangeBatch,
    DeadLetter,
    Position,
    RowBatch,
    event_schema,
    key_text,
)
from rhei_pipeline.oltp.rejections import Rejection, without
from rhei_pipeline.oltp.sqlite_schema import SqliteTable
from rhei_pipeline.oltp.sqlite_values import admit, decode_key, encode_key, fetch, plain
from rhei_pipeline.schema import INSTANT, Column, Mode, Table, TableSchema
from rhei_pipeline.sql import listed, quote

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NULL_KEY = "its primary key is null, so the row cannot be told from others"


class TriggerSnapshot:
    """A `SourceSnapshot` inside an open read transaction."""

    def __init__(
        self, connection: sqlite3.Connection, catalogue: Callable[[str], SqliteTable]
    ) -> None:
        self._connection = connection
        self._catalogue = catalogue
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
        sql = f"select seq, at, live, {places} from {_log(table)} where seq > ? order by seq"
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
        source = self._catalogue(table.name)
        sql, params = _rows_sql(source, resume, limit)
        rows = next(fetch(self._connection, sql, params, limit), None)
        if rows is None:
            return None
        columns = _key_first(source.schema)
        arrays, rejections = admit(rows, columns)
        letters = self._letters(source.schema, rejections, arrays, rows, first=0)
        found = pa.table(without(arrays, rejections), [column.name for column in columns])
        resume = encode_key(rows[-1][: len(source.schema.primary_key)])
        return RowBatch(found.select(list(source.schema.names)), resume, letters)

    def keyless(self, table: Table) -> tuple[DeadLetter, ...]:
        """Name the rows whose key is null: SQLite allows them, and nothing can tell them apart."""
        source = self._catalogue(table.name)
        nullable = [column for column in source.schema.key_columns if column.nullable]
        if not nullable:
            return ()
        condition = " or ".join(f"{quote(column.name)} is null" for column in nullable)
        (count,) = self._connection.execute(
            f"select count(*) from {quote(table.name)} where {condition}"
        ).fetchone()
        return (self._keyless_letter(source, nullable[0]),) if count else ()

    def count(self, table: Table) -> int:
        """Count the table's rows."""
        found = self._connection.execute(f"select count(*) from {quote(table.name)}")
        return int(found.fetchone()[0])

    def _versions(self, schema: TableSchema, rows: list[tuple[Any, ...]]) -> ChangeBatch:
        sequence, at, live = (pa.array(values) for values in list(zip(*rows, strict=True))[:3])
        own = [sequence, at.cast(INSTANT), live.cast(pa.bool_())]
        return self._batch(schema, own, rows, first=len(own), count=len(rows), net=False)

    def _net_batch(
        self, source: SqliteTable, rows: list[tuple[Any, ...]], count: int
    ) -> ChangeBatch:
        if not source.binary_key:
            rows = _split_by_collation(rows, len(source.schema.primary_key))
        live = pa.array([row[0] for row in rows], pa.int64()).cast(pa.bool_())
        now = pa.repeat(pa.scalar(self.clock, INSTANT), len(rows))
        own = [pa.array(np.zeros(len(rows), np.int64)), now, live]
        return self._batch(source.schema, own, rows, first=1, count=count, net=source.binary_key)

    def _batch(
        self,
        schema: TableSchema,
        own: list[pa.Array],
        rows: list[tuple[Any, ...]],
        *,
        first: int,
        count: int,
        net: bool,
    ) -> ChangeBatch:
        columns = _key_first(schema)
        arrays, rejections = admit(rows, columns, first)
        rejections += _null_keys(arrays, schema.key_columns)
        letters = self._letters(schema, rejections, arrays, rows, first)
        names = [*(field.name for field in EVENT_FIELDS), *(column.name for column in columns)]
        events = pa.table(without([*own, *arrays], rejections), names)
        wanted = event_schema(schema)
        return ChangeBatch(events.select(wanted.names).cast(wanted), count, net, letters)

    def _letters(
        self,
        schema: TableSchema,
        rejections: Sequence[Rejection],
        arrays: Sequence[pa.Array],
        rows: Sequence[tuple[Any, ...]],
        first: int,
    ) -> tuple[DeadLetter, ...]:
        names = schema.primary_key

        def key(row: int) -> dict[str, object]:
            # As admitted where it was, so that the key reads the same once its row is accepted.
            admitted = (array[row].as_py() for array in arrays)
            raw = (plain(value) for value in rows[row][first:])
            parts = zip(names, admitted, raw, strict=False)
            return {name: given if value is None else value for name, value, given in parts}

        return tuple(
            DeadLetter(
                schema.name, key_text(key(misfit.row)), misfit.column, misfit.reason, self.clock
            )
            for misfit in rejections
        )

    def _keyless_letter(self, source: SqliteTable, column: Column) -> DeadLetter:
        key = key_text(dict.fromkeys(source.schema.primary_key))
        return DeadLetter(source.schema.name, key, column.name, _NULL_KEY, self.clock)


def _key_first(schema: TableSchema) -> list[Column]:
    return [*schema.key_columns, *schema.value_columns]


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
    chosen = ", ".join(filter(None, [f"t.{quote(key[0])} is not null", keys, values, logged]))
    return (
        f"select {chosen} from"
        f" (select distinct {', '.join(places)} from {quote(log_table(schema.name))}"
        f" where seq > ?) k left join {quote(schema.name)} t on {joined}"
    )


def _split_by_collation(rows: list[tuple[Any, ...]], width: int) -> list[tuple[Any, ...]]:
    """Where a touched key met a row of another spelling, the touched spelling has no row.

    Each row is (live, key as logged, values, key of the row met).
    """
    split = []
    for row in rows:
        logged, met = row[1 : 1 + width], row[-width:]
        values = row[1 + width : -width]
        if row[0] and logged != met:
            split.append((0, *logged, *(None for _ in values)))
            split.append((1, *met, *values))
        else:
            split.append(row[:-width])
    return split


def _null_keys(arrays: Sequence[pa.Array], key: Sequence[Column]) -> list[Rejection]:
    return [
        Rejection(int(row), column.name, _NULL_KEY)
        for column, array in zip(key, arrays, strict=False)
        if array.null_count and column.nullable
        for row in np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))
    ]


def _rows_sql(source: SqliteTable, resume: str | None, limit: int) -> tuple[str, list[Any]]:
    schema = source.schema
    key = listed(schema.primary_key)
    columns = [*schema.primary_key, *(column.name for column in schema.value_columns)]
    conditions = [
        f"{quote(column.name)} is not null" for column in schema.key_columns if column.nullable
    ]
    params: list[Any] = []
    if resume is not None:
        placeholders, params = decode_key(resume)
        conditions.append(f"({key}) > ({', '.join(placeholders)})")
    where = f" where {' and '.join(conditions)}" if conditions else ""
    sql = f"select {listed(columns)} from {quote(schema.name)}{where} order by {key} limit ?"
    return sql, [*params, limit]


def _instant(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)
