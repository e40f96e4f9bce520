"""Removes old versions from a DuckDB mirror, and records since when a history is kept."""

from collections.abc import Mapping
from datetime import datetime

import duckdb

from rhei_pipeline.changes.retention import expired_sql, identity
from rhei_pipeline.mirrors.duckdb.feed import (
    DuckDBFeeds,
    feed_columns,
    feed_name,
    instant_text,
)
from rhei_pipeline.mirrors.duckdb.tables import table_exists
from rhei_pipeline.model.feed_state import KIND, LATE, FeedEntry
from rhei_pipeline.model.instants import instant, microseconds
from rhei_pipeline.model.retention import Ageing, ExpiredHistory
from rhei_pipeline.model.schema import VALID_FROM, VALID_TO, Table
from rhei_pipeline.sql.text import literal, matching, mirror_table

_EXPIRED = "_rhei_expired"
#: In the record of histories no column has this name: the row says since when one is kept.
KEPT = ""


def expire(
    connection: duckdb.DuckDBPyConnection, feeds: DuckDBFeeds, ageing: Ageing
) -> ExpiredHistory | None:
    """Delete the versions that a table may lose; return what went, None if nothing did."""
    table = ageing.table
    if not table_exists(connection, table):
        return None
    until = "" if ageing.until is None else instant_text(microseconds(ageing.until))
    connection.execute(f"create or replace temp table {_EXPIRED} as {expired_sql(ageing, until)}")
    try:
        asked = f"select epoch_us(max({VALID_TO})) from {_EXPIRED}"
        cut = connection.execute(asked).fetchall()[0][0]
        if cut is None:
            return None
        feeds.begin(table)  # it reads where the feed stands, before that changes
        name, same = mirror_table(table.schema), matching("t", "e", identity(table.schema))
        deleted = connection.execute(f"delete from {name} t using {_EXPIRED} e where {same}")
        versions = int(deleted.fetchall()[0][0])
        since = _note_kept(connection, table, instant(cut))
        feeds.keep(table, microseconds(since), _take_entries(connection, table))
    finally:
        connection.execute(f"drop table if exists {_EXPIRED}")
    return ExpiredHistory(table.name, versions, since)


def _take_entries(connection: duckdb.DuckDBPyConnection, table: Table) -> int:
    """Delete the feed's entries of versions that went; return the last late commit that ended one.

    What was noted of earlier removals is part of that number, and goes as well.
    """
    if not feed_columns(connection, table.schema):
        return 0
    feed, key = feed_name(table.schema), (*table.schema.primary_key, VALID_FROM)
    gone = f"select 1 from {_EXPIRED} e where {matching('e', 'f', identity(table.schema))}"
    noted = f"{KIND} = {literal(FeedEntry.KEPT)}"
    ended = f"{KIND} = {literal(FeedEntry.ENDED)} and exists ({gone})"
    found = connection.execute(
        f"select coalesce(max({LATE}), 0) from {feed} f where {noted} or ({ended})"
    ).fetchall()
    notes = ", ".join(map(literal, (FeedEntry.KEPT, FeedEntry.COUNTED)))
    late = ", ".join(map(literal, (FeedEntry.OPENED, FeedEntry.ENDED)))
    went = f"select 1 from {_EXPIRED} e where {matching('e', 'f', key)}"
    stays = f"select 1 from {mirror_table(table.schema)} t where {matching('t', 'f', key)}"
    connection.execute(
        f"delete from {feed} f where {KIND} in ({notes})"
        f" or ({KIND} in ({late}) and exists ({went}) and not exists ({stays}))"
    )
    return int(found[0][0])


def _note_kept(connection: duckdb.DuckDBPyConnection, table: Table, since: datetime) -> datetime:
    """Record the cut as the beginning of what is known; it never goes back."""
    own = "table_name = ? and coalesce(column_name, '') = ''"
    before = connection.execute(
        f"select epoch_us(max(noted_at)) from _rhei_history where {own}", [table.name]
    ).fetchall()[0][0]
    since = since if before is None else max(since, instant(before))
    connection.execute(f"delete from _rhei_history where {own}", [table.name])
    connection.execute(
        "insert into _rhei_history values ($1, null, $2), ($1, $3, $2)", [table.name, since, KEPT]
    )
    return since


def read_kept_since(connection: duckdb.DuckDBPyConnection) -> Mapping[str, datetime]:
    """Return since when histories are kept, of the tables that have lost older versions."""
    found = connection.execute(
        "select table_name, epoch_us(noted_at) from _rhei_history where column_name = ?", [KEPT]
    ).fetchall()
    return {name: instant(at) for name, at in found}
