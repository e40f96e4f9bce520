"""Rows of a SQLite table as batches: what every way to capture from SQLite reads the same way."""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from itertools import chain, islice
from sys import getsizeof
from typing import Any

import pyarrow as pa

from rhei_pipeline.changes.null_keys import NULL_KEY
from rhei_pipeline.model.changes import (
    EVENT_FIELDS,
    ChangeBatch,
    DeadLetter,
    RowBatch,
    event_schema,
    key_text,
)
from rhei_pipeline.model.plain_values import plain_value
from rhei_pipeline.model.portions import portions
from rhei_pipeline.model.schema import Column, TableSchema
from rhei_pipeline.sources.mended_rows import mended
from rhei_pipeline.sources.rejections import Rejection, without
from rhei_pipeline.sources.sqlite.catalog import SqliteTable
from rhei_pipeline.sources.sqlite.types import InvalidText, admit, decode_key, encode_key, plain
from rhei_pipeline.sql.text import disjunction, listed, quote

#: Columns that one select can return (SQLITE_MAX_COLUMN).
MOST_CHOSEN = 2_000
_KEYS = 10_000
#: How a place to go on at begins if the key there is still to be read.
_FROM = "from"


@dataclass(frozen=True, slots=True)
class SqliteRowReader:
    """Reads whole rows of one table within an open read transaction.

    Attributes:
        clock: The source's clock; dead letters are dated by it.
        condition: SQL that a row must meet to count as one; empty for all rows.
    """

    connection: sqlite3.Connection
    source: SqliteTable
    clock: datetime
    condition: str = ""

    def rows(self, resume: str | None, limit: int) -> RowBatch | None:
        """Read the next rows in key order; None when there are no more."""
        ordered, params = self.ordered(resume)
        columns = listed(column.name for column in key_first(self.source.schema))
        sql = f"select {columns}{ordered} limit ?"
        rows = next(fetch(self.connection, sql, [*params, limit], limit), None)
        return None if rows is None else self._batch(rows)

    def draw(self, share: float, limit: int) -> Iterator[RowBatch]:
        """Yield rows drawn by lot, each with the same chance."""
        schema = self.source.schema
        conditions = [f"{quote(name)} is not null" for name in self.source.nullable_key]
        conditions += [self.condition] if self.condition else []
        conditions.append("abs(random() % 1000000000) < ?")
        sql = (
            f"select {listed(column.name for column in key_first(schema))}"
            f" from {quote(schema.name)} where {' and '.join(conditions)}"
        )
        for rows in fetch(self.connection, sql, (round(share * 1_000_000_000),), limit):
            yield self._batch(rows)

    def _batch(self, rows: list[tuple[Any, ...]]) -> RowBatch:
        schema = self.source.schema
        columns = key_first(schema)
        arrays, rejections = admit(rows, columns)
        letters = _letters(schema, rejections, arrays, rows, self.clock)
        found = pa.table(without(arrays, rejections), [column.name for column in columns])
        resume = encode_key(rows[-1][: len(schema.primary_key)])
        return RowBatch(found.select(list(schema.names)), resume, letters)

    def keyless(self) -> tuple[DeadLetter, ...]:
        """Name the keys that are null in part or whole: nothing can tell their rows apart."""
        schema = self.source.schema
        if not self.source.nullable_key:
            return ()
        also = f" and {self.condition}" if self.condition else ""
        sql = (
            f"select distinct {listed(schema.primary_key)} from {quote(schema.name)}"
            f" where ({self._has_no_key()}){also}"
        )
        letters: list[DeadLetter] = []
        for rows in fetch(self.connection, sql, (), _KEYS):
            arrays, _ = admit(rows, schema.key_columns)
            missing = [
                Rejection(number, schema.primary_key[row.index(None)], NULL_KEY)
                for number, row in enumerate(rows)
            ]
            letters += _letters(schema, missing, arrays, rows, self.clock)
        return tuple(letters)

    def keyless_count(self, where: str) -> int:
        """Count the rows whose key is null in part or whole."""
        if not self.source.nullable_key:
            return 0
        return self.count(f"({self._has_no_key()}) and ({where})")

    def _has_no_key(self) -> str:
        return disjunction(f"{quote(name)} is null" for name in self.source.nullable_key)

    def count(self, where: str = "true") -> int:
        """Count the rows."""
        name, condition = quote(self.source.schema.name), self.condition or "true"
        found = self.connection.execute(
            f"select count(*) from {name} where {condition} and ({where})"
        )
        return int(found.fetchone()[0])

    def start_at(self, key: pa.Table) -> str:
        """Return where `rows` goes on with a key."""
        values = [column[0].as_py() for column in key.columns]
        return _FROM + encode_key([v.isoformat() if isinstance(v, date) else v for v in values])

    def orders_bytewise(self) -> bool:
        """Return whether keys are ordered by the bytes of their texts in UTF-8."""
        if not any(pa.types.is_string(c.type) for c in self.source.schema.key_columns):
            return True
        (encoding,) = self.connection.execute("pragma encoding").fetchone()
        return self.source.binary_key and encoding == "UTF-8"

    def ordered(self, resume: str | None) -> tuple[str, list[Any]]:
        """Write what follows the columns in a `select` of the rows after `resume`, in key order."""
        schema = self.source.schema
        key = listed(schema.primary_key)
        conditions = [f"{quote(name)} is not null" for name in self.source.nullable_key]
        params: list[Any] = []
        if resume is not None:
            operator = ">=" if resume.startswith(_FROM) else ">"
            placeholders, params = decode_key(resume.removeprefix(_FROM))
            conditions.append(f"({key}) {operator} ({', '.join(placeholders)})")
        if self.condition:
            conditions.append(self.condition)
        where = f" where {' and '.join(conditions)}" if conditions else ""
        return f" from {quote(schema.name)}{where} order by {key}", params


#: Reads the next rows of a reader's table, as `SqliteRowReader.rows` does.
ReadRows = Callable[[SqliteRowReader, str | None, int], RowBatch | None]


def key_first(schema: TableSchema) -> list[Column]:
    """Return the columns, those of the key first."""
    return [*schema.key_columns, *schema.value_columns]


def event_batch(
    schema: TableSchema,
    own: list[pa.Array],
    rows: list[tuple[Any, ...]],
    clock: datetime,
    first: int = 0,
) -> ChangeBatch:
    """Turn rows, key first, into a batch of events; those that do not fit become dead letters.

    `own` are the event's fields of ours, one array each, the last of them whether the row is there;
    every row counts as one event. Keys that are null stay among the events. The key stands at the
    place `first` of each row.
    """
    columns = key_first(schema)
    arrays, rejections = admit(rows, columns, first)
    letters = _letters(schema, rejections, arrays, rows, clock, first)
    rejected, gone = _present_and_gone(rejections, letters, own[-1])
    names = [*(field.name for field in EVENT_FIELDS), *(column.name for column in columns)]
    events = pa.table(without([*own, *arrays], rejections), names)
    wanted = event_schema(schema)
    admitted = events.select(wanted.names).cast(wanted)
    keys = pa.table(arrays[: len(schema.primary_key)], list(schema.primary_key))
    resolved = (*gone, *mended(keys, rejections, letters))
    return ChangeBatch(admitted, len(rows), rejected=rejected, resolved=resolved)


def _present_and_gone(
    rejections: Sequence[Rejection], letters: Sequence[DeadLetter], live: pa.Array
) -> tuple[tuple[DeadLetter, ...], tuple[tuple[str, None], ...]]:
    """Return the letters of rows that were there, and the keys that have no row in the end."""
    pairs = sorted(zip(rejections, letters, strict=True), key=lambda pair: pair[0].row)
    there = [live[rejection.row].as_py() for rejection, _ in pairs]
    last = {letter.key: alive for (_, letter), alive in zip(pairs, there, strict=True)}
    return (
        tuple(letter for (_, letter), alive in zip(pairs, there, strict=True) if alive),
        tuple((key, None) for key, alive in last.items() if not alive),
    )


def _letters(
    schema: TableSchema,
    rejections: Sequence[Rejection],
    arrays: Sequence[pa.Array],
    rows: Sequence[tuple[Any, ...]],
    clock: datetime,
    first: int = 0,
) -> tuple[DeadLetter, ...]:
    names = schema.primary_key

    def key(row: int) -> dict[str, object]:
        # As admitted where it was, so that the key reads the same once its row is accepted.
        admitted = (plain_value(array[row]) for array in arrays)
        raw = (plain(value) for value in rows[row][first:])
        parts = zip(names, admitted, raw, strict=False)
        return {name: given if value is None else value for name, value, given in parts}

    return tuple(
        DeadLetter(schema.name, key_text(key(misfit.row)), misfit.column, misfit.reason, clock)
        for misfit in rejections
    )


def fetch(
    connection: sqlite3.Connection, sql: str, params: Sequence[Any], size: int
) -> Iterator[list[tuple[Any, ...]]]:
    """Run a query and yield its rows in lists of at most `size`, and of bounded bytes.

    Text that is not UTF-8 makes the driver fail in mid-row. The query is then run again from its
    start with a reader that keeps such text as `InvalidText`; inside one snapshot it meets the
    same rows in the same order.
    """
    seen = 0
    try:
        for rows in gather(connection.execute(sql, params), size):
            seen += len(rows)
            yield rows
            del rows
    except sqlite3.OperationalError as error:
        if "UTF-8" not in str(error):
            raise
        yield from _fetch_tolerant(connection, sql, params, size, skip=seen)


def fetch_wide(
    connection: sqlite3.Connection,
    chosen: Sequence[str],
    source: str,
    params: Sequence[Any],
    size: int,
) -> Iterator[list[tuple[Any, ...]]]:
    """Run `select chosen` + `source` as `fetch` does, however many columns are chosen.

    More than one select can return are read by several side by side, so `source` must then give
    its rows in one order.
    """
    parts = [chosen[i : i + MOST_CHOSEN] for i in range(0, len(chosen), MOST_CHOSEN)]
    streams = [
        fetch(connection, f"select {', '.join(part)}{source}", params, size) for part in parts
    ]
    if len(streams) == 1:
        yield from streams[0]
        return
    flat = (chain.from_iterable(stream) for stream in streams)
    whole = (tuple(chain.from_iterable(pieces)) for pieces in zip(*flat, strict=True))
    while rows := list(islice(whole, size)):
        yield rows


def _fetch_tolerant(
    connection: sqlite3.Connection, sql: str, params: Sequence[Any], size: int, *, skip: int
) -> Iterator[list[tuple[Any, ...]]]:
    ordinary = connection.text_factory
    connection.text_factory = _tolerant_text
    try:
        cursor = connection.execute(sql, params)
        if skip:  # the driver takes 0 for "all"
            cursor.fetchmany(skip)
        yield from gather(cursor, size)
    finally:
        connection.text_factory = ordinary


def _tolerant_text(raw: bytes) -> str | InvalidText:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return InvalidText(raw)


def gather(cursor: sqlite3.Cursor, size: int) -> Iterator[list[tuple[Any, ...]]]:
    """Yield a cursor's rows in lists of at most `size`, and of bounded bytes."""
    yield from portions(cursor.fetchmany, size_of, size)


def size_of(rows: Sequence[tuple[Any, ...]]) -> int:
    """Return how many bytes the values of rows take, about."""
    return sum(map(getsizeof, chain.from_iterable(rows)))
