"""Drops a table from a DuckDB mirror with its records, or keeps it under another name."""

from dataclasses import replace

import duckdb

from rhei_pipeline.mirrors.duckdb.housekeeping import forget_table, rename_history
from rhei_pipeline.mirrors.duckdb.tables import (
    SNAPSHOTS,
    copy_name,
    forget_built,
    standing_name,
    write_built,
)
from rhei_pipeline.mirrors.names import name_taken
from rhei_pipeline.model.schema import Table, TableSchema, renamed
from rhei_pipeline.sql.text import mirror_table, quote


def drop_table(
    connection: duckdb.DuckDBPyConnection, table: Table, keep_as: str | None = None
) -> int:
    """Drop a table; see `MirrorTransaction.drop_table`.

    Raises:
        SchemaError: The name to keep it as is taken.
    """
    schema = table.schema
    rows, kept = _rows(connection, schema), renamed(schema, keep_as) if keep_as else None
    _leave(connection, schema, kept)
    _leave(connection, _snapshots(schema), _snapshots(kept) if kept else None)
    connection.execute(f"drop table if exists {copy_name(schema)}")
    forget_built(connection, schema)
    if kept is not None:
        write_built(connection, kept, set_aside=True)
        rename_history(connection, schema.name, kept.name)
    forget_table(connection, schema.name)
    return rows


def _rows(connection: duckdb.DuckDBPyConnection, schema: TableSchema) -> int:
    if standing_name(connection, schema) is None:
        return 0
    counted = connection.execute(f"select count(*) from {mirror_table(schema)}").fetchall()
    return int(counted[0][0])


def _snapshots(schema: TableSchema) -> TableSchema:
    return replace(schema, name=schema.snapshot_name, namespace=SNAPSHOTS, mirror_name="")


def _leave(
    connection: duckdb.DuckDBPyConnection, schema: TableSchema, kept: TableSchema | None
) -> None:
    if kept is None:
        connection.execute(f"drop table if exists {mirror_table(schema)}")
        return
    taken = standing_name(connection, kept)
    if taken is not None:
        raise name_taken(taken, schema.name)
    if standing_name(connection, schema) is not None:
        connection.execute(f"alter table {mirror_table(schema)} rename to {quote(kept.relation)}")
