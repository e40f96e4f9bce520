"""Writes those of some rows that a table lacks, or has otherwise, and leaves the others alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa

from rhei_pipeline.mirrors.duckdb.comparison import differs_sql, digested_sql
from rhei_pipeline.mirrors.duckdb.tables import apart, registered
from rhei_pipeline.mirrors.met_rows import Flags, Places
from rhei_pipeline.model.schema import Column, Table
from rhei_pipeline.model.selection import each_once
from rhei_pipeline.sql.text import listed, matching

#: What the rows are registered as, each with its number among them.
UPSERTS = "_rhei_upserts"
_NUMBER, _PLACE, _DIFFERS = "_rhei_number", "_rhei_place", "_rhei_differs"
_GONE, _EQUAL, _UNDECIDED = "_rhei_gone", "_rhei_equal", "_rhei_undecided"
_DIGESTED = "_rhei_digested"
#: So many rows are compared by their numbers first: of a large table, reading texts takes most.
_MANY = 5_000


def numbered(rows: pa.Table) -> pa.Table:
    """Return rows, each with its number."""
    return rows.append_column(_NUMBER, pa.array(np.arange(rows.num_rows, dtype=np.int64)))


def upsert(
    connection: duckdb.DuckDBPyConnection, table: Table, target: str, count: int, *, large: bool
) -> tuple[int, int]:
    """Write those of the registered rows that differ; return how many were inserted and updated.

    Nothing of them is staged: until it commits, a transaction holds in memory all that it staged.
    Large ones are only scanned, and compared by digests: a join would hold their values once more.
    """
    if large:
        met = _met_by_digests(connection, table, target)
    else:
        met = _met(connection, table, target, count)
    equal, replaced = met.numbers[~met.differ], 0
    if len(equal) < len(met.numbers):
        replaced = _delete(connection, table, target, met, by_keys=not large)
    if len(equal) < count:
        _insert(connection, table, target, equal)
    return count - len(each_once(met.numbers)), replaced


def _delete(
    connection: duckdb.DuckDBPyConnection, table: Table, target: str, met: "_Met", *, by_keys: bool
) -> int:
    """Delete the rows that differ, by their keys if these are all; return how many."""
    if by_keys and met.differ.all():
        # Without a table of their places: to register one takes most of a millisecond.
        same = matching("t", "u", table.schema.primary_key)
        return _changed(connection, f"delete from {target} t using {UPSERTS} u where {same}")
    places, count = met.places[met.differ], 0
    for some in apart(pa.table({_PLACE: places}), _PLACE):
        with registered(connection, _GONE, some):
            statement = f"delete from {target} where rowid in (select {_PLACE} from {_GONE})"
            count += _changed(connection, statement)
    return count


def _insert(
    connection: duckdb.DuckDBPyConnection, table: Table, target: str, equal: Places
) -> None:
    """Insert the rows but for those that the table has as they are."""
    names = listed(table.schema.names)
    if not len(equal):
        connection.execute(f"insert into {target}({names}) select {names} from {UPSERTS}")
        return
    with registered(connection, _EQUAL, pa.table({_NUMBER: equal})):
        connection.execute(
            f"insert into {target}({names}) select {names} from {UPSERTS}"
            f" anti join {_EQUAL} using ({_NUMBER})"
        )


@dataclass(frozen=True, slots=True)
class _Met:
    """Which rows a table has: their numbers, where they are there, and if they differ."""

    numbers: Places
    places: Places
    differ: Flags


def _met(connection: duckdb.DuckDBPyConnection, table: Table, target: str, count: int) -> _Met:
    columns = table.schema.value_columns
    quick = [column for column in columns if not _is_text(column)]
    if count < _MANY or not 0 < len(quick) < len(columns):
        return _look_up(connection, table, target, table.schema.columns)
    met = _look_up(connection, table, target, [*table.schema.key_columns, *quick])
    undecided = met.numbers[~met.differ]
    if not len(undecided):
        return met
    with registered(connection, _UNDECIDED, pa.table({_NUMBER: undecided})):
        rows = f"(from {UPSERTS} semi join {_UNDECIDED} using ({_NUMBER}))"
        rest = _look_up(connection, table, target, table.schema.columns, rows)
    decided = ~np.isin(met.numbers, undecided)
    return _Met(
        np.concatenate([met.numbers[decided], rest.numbers]),
        np.concatenate([met.places[decided], rest.places]),
        np.concatenate([met.differ[decided], rest.differ]),
    )


def _met_by_digests(connection: duckdb.DuckDBPyConnection, table: Table, target: str) -> _Met:
    digested = connection.sql(f"from {digested_sql(table, UPSERTS, f'{_NUMBER}, ')}")
    with registered(connection, _DIGESTED, digested.to_arrow_table()):
        present = digested_sql(table, target, "rowid, ")
        return _look_up(connection, table, present, table.schema.columns, _DIGESTED)


def _is_text(column: Column) -> bool:
    return bool(pa.types.is_string(column.type) or pa.types.is_binary(column.type))


def _look_up(
    connection: duckdb.DuckDBPyConnection,
    table: Table,
    target: str,
    columns: Sequence[Column],
    rows: str = UPSERTS,
) -> _Met:
    found = connection.execute(
        f"select u.{_NUMBER}, t.rowid as {_PLACE},"
        f" {differs_sql(table, 't', 'u', columns)} as {_DIFFERS} from {rows} u"
        f" join {target} t on {matching('t', 'u', table.schema.primary_key)}"
    ).fetchnumpy()
    return _Met(found[_NUMBER], found[_PLACE], found[_DIFFERS])


def _changed(connection: duckdb.DuckDBPyConnection, sql: str) -> int:
    return int(connection.execute(sql).fetchall()[0][0])
