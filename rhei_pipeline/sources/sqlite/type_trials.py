"""Which types would take a column's values that were rejected: found by trying them."""

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from rhei_pipeline.model.reports import TypeProposal
from rhei_pipeline.model.schema import TableSchema
from rhei_pipeline.model.type_names import named_type, type_name
from rhei_pipeline.sources.sqlite.cursors import fetch
from rhei_pipeline.sources.sqlite.types import admit_column
from rhei_pipeline.sql.text import quote

#: The types that are tried; of those that fit alike, the one that tells most comes first.
TRIED = (
    *("timestamp_s", "timestamp_ms", "timestamp_us", "timestamptz", "timestamp", "date", "time"),
    *("int64", "float64", "decimal(38,9)", "string", "binary"),
)
#: So many letters, and other rows, are tried.
_MOST = 10_000
_KEYS_AT_ONCE = 100
#: From 1990 to 2100: what is counted in another unit lies elsewhere.
_PLAUSIBLE_SECONDS = range(631_152_000, 4_102_444_800)
_TICKS = {"s": 1, "ms": 1_000, "us": 1_000_000}


def proposals(
    connection: sqlite3.Connection,
    table: TableSchema,
    column: str,
    keys: Sequence[tuple[object, ...]],
) -> Iterator[TypeProposal]:
    """Yield each other type that takes some of the values of a column in rows with these keys.

    Args:
        connection: Open on the source.
        table: The table as it is mirrored.
        column: The column.
        keys: The keys of its dead letters.
    """
    present = next(each for each in table.columns if each.name == column)
    letters = _of_keys(connection, table, column, keys[:_MOST])
    others = _first(connection, table, column)
    fitting = _taken(others, present)
    now = type_name(present.type, present.epoch, present.logical)
    for name in TRIED:
        kind, epoch, logical = named_type(name)
        tried = replace(present, type=kind, epoch=epoch, overridden=True, logical=logical)
        healed = len(_taken(letters, tried))
        if healed and name != now and letters:
            refused = len(fitting - _taken(others, tried))
            yield TypeProposal(
                table.name, column, name, len(letters), healed, refused, len(fitting)
            )


def _taken(values: Sequence[Any], column: Any) -> frozenset[int]:  # noqa: ANN401
    """Return the places of the values that a column of this type takes."""
    _, misfits = admit_column(values, column)
    taken = set(range(len(values))) - {misfit.row for misfit in misfits}
    if column.epoch is not None:
        ticks = _TICKS[column.epoch]
        taken = {at for at in taken if _is_plausible(values[at], ticks)}
    return frozenset(taken)


def _is_plausible(value: object, ticks: int) -> bool:
    return value is None or (isinstance(value, int) and value // ticks in _PLAUSIBLE_SECONDS)


def _of_keys(
    connection: sqlite3.Connection,
    table: TableSchema,
    column: str,
    keys: Sequence[tuple[object, ...]],
) -> list[Any]:
    one = " and ".join(f"{quote(name)} is ?" for name in table.primary_key)
    found: list[Any] = []
    for begin in range(0, len(keys), _KEYS_AT_ONCE):
        some = keys[begin : begin + _KEYS_AT_ONCE]
        where = " or ".join(f"({one})" for _ in some)
        sql = f"select {quote(column)} from {quote(table.name)} where {where}"
        params = [part for key in some for part in key]
        found += [value for rows in fetch(connection, sql, params, _MOST) for (value,) in rows]
    return found


def _first(connection: sqlite3.Connection, table: TableSchema, column: str) -> list[Any]:
    sql = f"select {quote(column)} from {quote(table.name)} limit {_MOST}"
    return [value for rows in fetch(connection, sql, (), _MOST) for (value,) in rows]
