"""Answers of a SQLite source as Arrow, typed by what the values are."""

import sqlite3
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import pyarrow as pa

from rhei_pipeline.errors import QueryError, QueryLimitError
from rhei_pipeline.model.query_limits import NO_LIMITS, AnswerLimits
from rhei_pipeline.model.schema import Column
from rhei_pipeline.sources.sqlite.cursors import fetch, gather, run, size_of
from rhei_pipeline.sources.sqlite.placeholders import by_number
from rhei_pipeline.sources.sqlite.types import InvalidText, admit_column
from rhei_pipeline.sql.read_only import WRITING, refuse_writing, returns_nothing

_FETCH_ROWS = 50_000

_DENIED = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_AUTH}

#: Types that values of one class become as they are.
_STRUCT_TYPES = {pa.int64(): int, pa.float64(): float, pa.string(): str, pa.binary(): bytes}
_TYPES: tuple[tuple[set[type], pa.DataType], ...] = (
    ({int}, pa.int64()),
    ({float}, pa.float64()),
    ({int, float}, pa.float64()),
    ({str}, pa.string()),
    ({bytes}, pa.binary()),
)


def query(
    connection: sqlite3.Connection,
    sql: str,
    params: Sequence[Any] = (),
    columns: Sequence[Column | None] | None = None,
    limits: AnswerLimits = NO_LIMITS,
) -> pa.Table:
    """Run one reading statement on a connection that refuses to write.

    Shape: one column for each of the statement's, in its order and with its names. SQLite types
    values, not columns. What `columns` tells of a column is its type, also without a value in it;
    untold, or where values do not fit, a column of integers and reals becomes float64, one
    without a value null.

    Raises:
        QueryError: It is not a reading statement, SQLite refuses it, or a column mixes classes.
        QueryLimitError: Its answer is larger than `limits` allow.
    """
    refuse_writing(sql, "sqlite")
    with _reading():
        names, rows = _rows(connection, sql, params, limits)
    declared = (
        columns if columns is not None and len(columns) == len(names) else [None] * len(names)
    )
    if len(rows) == 1:
        shape = _plain_shape(tuple(names), tuple(declared), tuple(map(type, rows[0])))
        if shape is not None:
            return pa.Table.from_struct_array(pa.array(rows, shape))
    found = list(zip(*rows, strict=True)) or [()] * len(names)
    arrays = [_typed(*each) for each in zip(names, found, declared, strict=True)]
    return pa.table(arrays, names)


def returned(
    connection: sqlite3.Connection, sql: str, params: Sequence[Any], limits: AnswerLimits
) -> pa.Table:
    """Run one writing statement in an open transaction; return its rows, typed by the values.

    Raises:
        QueryError: It returns none, or a column mixes classes.
        QueryLimitError: Its answer is larger than `limits` allow.
    """
    with _reading():
        cursor = run(connection, sql, params)
        if cursor.description is None:
            raise returns_nothing()
        names = [column[0] for column in cursor.description]
        rows = _bounded(gather(cursor, _fetched_at_once(limits)), limits)
    found = list(zip(*rows, strict=True)) or [()] * len(names)
    return pa.table(list(map(_array, names, found)), names)


@lru_cache(maxsize=1024)
def _plain_shape(
    names: tuple[str, ...], columns: tuple[Column | None, ...], kinds: tuple[type, ...]
) -> pa.StructType | None:
    """Return how a row of these classes is one struct as it is; None where it takes a closer look.

    A point read's row becomes Arrow in one step that way, for a third of what a step a column
    costs.
    """
    fields = []
    for name, column, kind in zip(names, columns, kinds, strict=True):
        plain = column is not None and column.epoch is None and column.type in _STRUCT_TYPES
        if column is None or not plain or kind not in {_STRUCT_TYPES[column.type], type(None)}:
            return None
        fields.append((name, column.type))
    return pa.struct(fields)


def _rows(
    connection: sqlite3.Connection, sql: str, params: Sequence[Any], limits: AnswerLimits
) -> tuple[list[str], list[tuple[Any, ...]]]:
    cursor = run(connection, sql, params)
    if cursor.description is None:
        raise QueryError("this is not a statement that only reads", hint=WRITING)
    names = [column[0] for column in cursor.description]
    try:
        return names, _bounded(gather(cursor, _fetched_at_once(limits)), limits)
    except sqlite3.OperationalError as error:
        if "UTF-8" not in str(error):
            raise
    cursor.close()
    found = fetch(connection, by_number(sql, params), params, _fetched_at_once(limits))
    return names, _bounded(found, limits)


def _fetched_at_once(limits: AnswerLimits) -> int:
    return _FETCH_ROWS if limits.rows is None else min(_FETCH_ROWS, limits.rows + 1)


def _bounded(lists: Iterator[list[tuple[Any, ...]]], limits: AnswerLimits) -> list[tuple[Any, ...]]:
    """Return all rows, as long as they are within the limits."""
    rows, held = next(lists, []), 0
    limits.refuse_rows(len(rows))
    for more in lists:
        # A single list is of bounded bytes anyhow, so that a short answer is not measured.
        held += size_of(more if held else [*rows, *more])
        limits.refuse_bytes(held)
        rows += more
        limits.refuse_rows(len(rows))
    return rows


def stream(
    connection: sqlite3.Connection,
    sql: str,
    params: Sequence[Any],
    columns: Sequence[Column],
    rows: int,
) -> Generator[pa.RecordBatch, None, None]:
    """Run one reading statement whose columns are known: an empty batch first, then its rows.

    Raises:
        QueryError: As `query`; or a value does not fit its column, after others were yielded.
    """
    refuse_writing(sql, "sqlite")
    with _reading():
        cursor = run(connection, sql, params)
        names = [column[0] for column in cursor.description]
        kept = [Column(name, known.type) for name, known in zip(names, columns, strict=True)]
        schema = pa.schema([(column.name, column.type) for column in kept])
        yield pa.RecordBatch.from_pylist([], schema)
        for found in gather(cursor, rows):
            arrays = [
                _admitted(values, column)
                for values, column in zip(zip(*found, strict=True), kept, strict=True)
            ]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def _admitted(values: Sequence[Any], column: Column) -> pa.Array:
    array, misfits = admit_column(values, column)
    if misfits:
        raise QueryError(
            f"column {column.name!r}: {misfits[0].reason}", hint="cast it to one type in the query"
        )
    return array


def _typed(name: str, values: Sequence[Any], column: Column | None) -> pa.Array:
    if column is None or pa.types.is_null(column.type):
        return _array(name, values)
    if not values:
        return pa.array([], column.type)
    array, misfits = admit_column(values, column)
    return _array(name, values) if misfits else array


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", None) in _DENIED:
            raise QueryError("a query only reads", hint=WRITING) from error
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_TOOBIG:
            raise QueryLimitError(
                "a value or row is larger than a query may make",
                hint="ask for less at once, or raise queries.query_bytes, of which it is a quarter",
            ) from error
        if "UTF-8" in str(error):
            raise _no_text() from error
        raise


def _no_text() -> QueryError:
    return QueryError(
        "a text in the answer is not UTF-8", hint="cast the column to blob in the query"
    )


def _array(name: str, values: Sequence[Any]) -> pa.Array:
    found = set(map(type, values)) - {type(None)}
    if not found:
        return pa.nulls(len(values))
    for kinds, arrow_type in _TYPES:
        if found == kinds:
            array, misfits = admit_column(values, Column(name, arrow_type))
            if not misfits:
                return array
    if InvalidText in found:
        raise _no_text()
    raise QueryError(
        f"column {name!r} holds values of several storage classes",
        hint="cast it to one type in the query",
    )
