"""The feeds of a DuckDB mirror's temporal tables: see `changes.feed`."""

from collections.abc import Mapping

import duckdb
import pyarrow as pa

from rhei_pipeline.changes.feed import FeedEnd, Feeds, feed_schema
from rhei_pipeline.mirrors.duckdb.tables import MAIN, arrow_type, create, standing_name
from rhei_pipeline.model.feed_state import (
    FEED_PREFIX,
    KIND,
    LATE,
    LINEAGE,
    TOLD,
    FeedEntry,
    FeedState,
)
from rhei_pipeline.model.schema import VALID_FROM, VALID_TO, Table, TableSchema
from rhei_pipeline.sql.text import literal, mirror_table

_ADDED = "_rhei_entries"


class DuckDBFeeds(Feeds):
    """What one transaction of DuckDB adds to the feeds of its tables.

    Args:
        connection: In that transaction.
        ends: What the feeds came to before it, of the tables for which that is known.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, ends: Mapping[str, FeedEnd]) -> None:
        super().__init__(ends)
        self._connection = connection

    def _read_end(self, table: Table) -> FeedEnd:
        return _read_end(self._connection, table)

    def _is_fitting(self, table: Table) -> bool:
        found = feed_columns(self._connection, table.schema)
        wanted = [(f.name.lower(), f.type) for f in feed_schema(table.schema)]
        return not found or [(name.lower(), arrow_type(kind)) for name, kind in found] == wanted

    def _discard(self, table: Table) -> None:
        self._connection.execute(f"drop table if exists {feed_name(table.schema)}")

    def _add(self, table: Table, entries: pa.Table) -> None:
        if not entries.num_rows:
            return
        target, schema = feed_name(table.schema), feed_schema(table.schema)
        if not feed_columns(self._connection, table.schema):
            create(self._connection, target, schema)
        self._connection.register(_ADDED, entries)
        self._connection.execute(f"insert into {target} select * from {_ADDED}")
        self._connection.unregister(_ADDED)


def feed_name(schema: TableSchema) -> str:
    """Return the quoted name of a table's feed."""
    return mirror_table(schema, FEED_PREFIX)


def read_feed(connection: duckdb.DuckDBPyConnection, table: Table) -> FeedState | None:
    """Return where a table's feed stands; None if the mirror lacks the table."""
    if standing_name(connection, table.schema) is None:
        return None
    end = _read_end(connection, table)
    lineages = FeedState.no_lineages()
    if feed_columns(connection, table.schema):
        kinds = ", ".join(map(literal, TOLD))
        found = connection.sql(
            f"select {KIND}, {LATE}, {LINEAGE}, epoch_us({VALID_FROM}) as since"
            f" from {feed_name(table.schema)} where {KIND} in ({kinds})"
        )
        lineages = found.to_arrow_table().cast(lineages.schema)
    return FeedState(lineages, end.late, end.newest)


def instant_text(microseconds: int) -> str:
    """Write an instant in DuckDB's SQL."""
    return f"make_timestamptz({microseconds}::bigint)"


def _read_end(connection: duckdb.DuckDBPyConnection, table: Table) -> FeedEnd:
    newest = connection.execute(
        f"select greatest(epoch_us(max({VALID_FROM})), epoch_us(max({VALID_TO})))"
        f" from {mirror_table(table.schema)}"
    ).fetchall()[0][0]
    late = 0
    if feed_columns(connection, table.schema):
        counted = connection.execute(
            f"select coalesce(max({LATE}), 0), epoch_us(max({VALID_FROM}) filter"
            f" (where {KIND} = {literal(FeedEntry.KEPT)})) from {feed_name(table.schema)}"
        )
        late, kept = counted.fetchall()[0]
        # Removed versions may have been the newest ones.
        newest = max((at for at in (newest, kept) if at is not None), default=None)
    return FeedEnd(late, newest)


def feed_columns(
    connection: duckdb.DuckDBPyConnection, schema: TableSchema
) -> list[tuple[str, str]]:
    """Return a feed's columns with their types; none if there is no feed."""
    found: list[tuple[str, str]] = connection.execute(
        "select column_name, data_type from duckdb_columns() where lower(schema_name) = lower(?)"
        " and lower(table_name) = lower(?) and database_name = current_database()"
        " order by column_index",
        [schema.namespace or MAIN, FEED_PREFIX + schema.mirror_relation],
    ).fetchall()
    return found
