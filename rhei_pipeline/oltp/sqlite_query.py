"""Answers of a SQLite source as Arrow, typed by what the values are."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from rhei_pipeline.errors import QueryError
from rhei_pipeline.oltp.sqlite_values import admit_column, fetch
from rhei_pipeline.schema import Column

_FETCH_ROWS = 50_000

_TYPES: tuple[tuple[set[type], pa.DataType], ...] = (
    ({int}, pa.int64()),
    ({float}, pa.float64()),
    ({int, float}, pa.float64()),
    ({str}, pa.string()),
    ({bytes}, pa.binary()),
)


def query(connection: sqlite3.Connection, sql: str, params: Sequence[Any] = ()) -> pa.Table:
    """Run one reading statement on a connection that refuses to write.

    Shape: one column for each of the statement's, in its order and with its names. SQLite types
    values, not columns: a column of integers and reals becomes float64, one without a value null.

    Raises:
        QueryError: It is not a reading statement, SQLite refuses it, or a column mixes classes.
    """
    with _reading():
        cursor = connection.execute(sql, params)
        if cursor.description is None:
            raise QueryError("this is not a reading statement", hint="use execute for writes")
        names = [column[0] for column in cursor.description]
        cursor.close()
        rows = [row for part in fetch(connection, sql, params, _FETCH_ROWS) for row in part]
    columns = list(zip(*rows, strict=True)) or [()] * len(names)
    return pa.table(
        [_array(name, values) for name, values in zip(names, columns, strict=True)], names
    )


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_READONLY:
            raise QueryError("a query only reads", hint="use execute for writes") from error
        raise


def _array(name: str, values: Sequence[Any]) -> pa.Array:
    found = set(map(type, values)) - {type(None)}
    if not found:
        return pa.nulls(len(values))
    for kinds, arrow_type in _TYPES:
        if found == kinds:
            array, misfits = admit_column(values, Column(name, arrow_type))
            if not misfits:
                return array
    raise QueryError(
        f"column {name!r} holds values of several classes",
        hint="cast it to one type in the query",
    )
