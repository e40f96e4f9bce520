"""What a DuckDB mirror records of a temporal table's history, and its snapshots."""

from collections.abc import Mapping
from datetime import date, datetime

import duckdb
import pyarrow as pa

from rhei_pipeline.mirrors.duckdb.foreign_tables import made_by_others
from rhei_pipeline.mirrors.duckdb.logical import alter_logical
from rhei_pipeline.mirrors.duckdb.progress import read_ledger
from rhei_pipeline.mirrors.duckdb.retention import KEPT
from rhei_pipeline.mirrors.duckdb.tables import logical_of
from rhei_pipeline.model.progress import AsOf, Past
from rhei_pipeline.model.schema import HISTORY_NAMES, VALID_FROM, VALID_TO, FormerNames, Mode, Table
from rhei_pipeline.model.type_names import INSTANT
from rhei_pipeline.sql.logical_casts import cast_logical
from rhei_pipeline.sql.text import listed, mirror_table, quote


def read_past(connection: duckdb.DuckDBPyConnection, table: Table) -> Past:
    """Return when a table's history begins, and which columns the source no longer has."""
    found = connection.execute(
        "select column_name, epoch_us(noted_at) from _rhei_history where table_name = ?",
        [table.name],
    ).fetchall()
    recorded = {name: pa.scalar(at, pa.int64()).cast(INSTANT).as_py() for name, at in found}
    mark = read_ledger(connection).watermarks.get(table.name)
    return Past(
        recorded.get(None),
        {name: recorded.get(name) for name in _left(connection, table)},
        mark.recorded_at if mark else None,
        is_shortened=KEPT in recorded,
    )


def note_beginning(connection: duckdb.DuckDBPyConnection, table: Table, at: datetime) -> None:
    """Record that a table was created again: its history, if it has one, begins now."""
    connection.execute("delete from _rhei_history where table_name = ?", [table.name])
    if table.mode is Mode.TEMPORAL:
        connection.execute("insert into _rhei_history values (?, null, ?)", [table.name, at])


def note_columns(connection: duckdb.DuckDBPyConnection, table: Table, at: datetime) -> None:
    """Record which columns of a temporal table the source no longer has, and since when."""
    if table.mode is not Mode.TEMPORAL:
        return
    left = _left(connection, table)
    connection.execute(
        "delete from _rhei_history where table_name = ? and not list_contains(?, column_name)"
        " and column_name <> ?",
        [table.name, left, KEPT],
    )
    connection.execute(
        "insert into _rhei_history select $1, name, $3 from (select unnest($2::varchar[]) as name)"
        " where name not in (select column_name from _rhei_history"
        " where table_name = $1 and column_name is not null)",
        [table.name, left, at],
    )


def rename_left(connection: duckdb.DuckDBPyConnection, table: Table, former: FormerNames) -> None:
    """Record the new names of columns that the source no longer has."""
    connection.executemany(
        "update _rhei_history set column_name = ? where table_name = ? and column_name = ?",
        [[new, table.name, old] for new, old in former.items()],
    )


def write_snapshots(
    connection: duckdb.DuckDBPyConnection, table: Table, days: Mapping[date, AsOf]
) -> dict[date, int]:
    """Store a table's rows as of each day's instant, under the day.

    A column there of another type than the table's by now is text, or becomes it.

    Raises:
        SchemaDriftError: Somebody else made a table where these are kept.
    """
    target, types = f"snapshot.{quote(table.schema.snapshot_name)}", _types(connection, table)
    connection.execute("create schema if not exists snapshot")
    connection.execute(f"create table if not exists {target}(snapshot_date date)")
    if next(iter(_types_of(connection, target).items())) != ("snapshot_date", "DATE"):
        raise made_by_others(f"snapshot.{table.schema.snapshot_name}")
    for name in dict.fromkeys(name for asked in days.values() for name in asked.columns):
        connection.execute(
            f"alter table {target} add column if not exists {quote(name)} {types[name.lower()]}"
        )
    held, written = _fitted(connection, target, types), {}
    for day, asked in days.items():
        names = listed(asked.columns)
        values = ", ".join(
            cast_logical(quote(name), *(logical_of(kinds[name.lower()]) for kinds in (types, held)))
            for name in asked.columns
        )
        connection.execute(f"delete from {target} where snapshot_date = ?", [day])
        counted = connection.execute(
            f"insert into {target}(snapshot_date, {names}) select $1, {values}"
            f" from {mirror_table(table.schema)} where {VALID_FROM} <= $2"
            f" and ({VALID_TO} is null or {VALID_TO} > $2)",
            [day, asked.instant],
        )
        written[day] = int(counted.fetchall()[0][0])
    return written


def _fitted(
    connection: duckdb.DuckDBPyConnection, target: str, types: Mapping[str, str]
) -> dict[str, str]:
    """Return the types of a table of snapshots, of which none is more than a text that differs."""
    for name, kind in _types_of(connection, target).items():
        if types.get(name, kind) != kind:
            alter_logical(connection, target, name, (logical_of(kind), None))
    return _types_of(connection, target)


def _left(connection: duckdb.DuckDBPyConnection, table: Table) -> list[str]:
    known = {name.lower() for name in table.schema.names} | HISTORY_NAMES
    columns = connection.sql(f"select * from {mirror_table(table.schema)} limit 0").columns
    return [name for name in columns if name.lower() not in known]


def _types(connection: duckdb.DuckDBPyConnection, table: Table) -> dict[str, str]:
    return _types_of(connection, mirror_table(table.schema))


def _types_of(connection: duckdb.DuckDBPyConnection, target: str) -> dict[str, str]:
    relation = connection.sql(f"select * from {target} limit 0")
    types = map(str, relation.types)
    return {name.lower(): kind for name, kind in zip(relation.columns, types, strict=True)}
