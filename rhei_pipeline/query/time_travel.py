"""A temporal table as of an instant, its snapshots, and what changed."""

from collections.abc import Mapping
from datetime import UTC, date, datetime

import pyarrow as pa

from rhei_pipeline.capabilities import (
    TellsChanges,
    publishes,
    takes_found_rows,
    tells_changes,
)
from rhei_pipeline.changes import consume
from rhei_pipeline.changes.consume import After, OnLost
from rhei_pipeline.changes.history import history_of, refuse_naive
from rhei_pipeline.compute.snapshots import ClusterHistory
from rhei_pipeline.errors import QueryError
from rhei_pipeline.model.change_feed import ChangeStream, TableChanges
from rhei_pipeline.model.progress import AsOf
from rhei_pipeline.model.schema import VALID_FROM, VALID_TO, Table
from rhei_pipeline.model.set_aside import as_they_were
from rhei_pipeline.model.snapshot_rows import SnapshotRows
from rhei_pipeline.model.streaming import Begun
from rhei_pipeline.protocols import Mirror
from rhei_pipeline.query.results import dated, lacking
from rhei_pipeline.sql.text import listed, mirror_table


def told(
    found: pa.Table, table: Table, mirror: Mirror, not_followed: Mapping[str, datetime]
) -> pa.Table:
    """Add to an answer from one table what its mirror lacks.

    Args:
        found: The answer.
        table: The table.
        mirror: Where its rows are, and the dead letters of those that are not.
        not_followed: The tables that are no longer synced, and since when.
    """
    letters = mirror.dead_letters(table.name).num_rows
    left = {name: since for name, since in not_followed.items() if name == table.name}
    return dated(lacking(found, {table.name: letters} if letters else {}), left)


def as_of(table: Table, instant: datetime, mirror: Mirror, begun: Begun | None = None) -> pa.Table:
    """Return a table's rows as they were at an instant, with the columns it had.

    Raises:
        QueryError: The table keeps no history, its history begins later, or the instant has no
            time zone.
    """
    refuse_naive(instant)
    known = history_of(table, mirror)
    known.refuse_unknown(instant)
    found = mirror.query(
        f"select {listed(known.columns(instant))} from {mirror_table(table.schema)}"
        f" where {VALID_FROM} <= $1 and ({VALID_TO} is null or {VALID_TO} > $1)",
        [instant],
        begun,
    )
    # Maintenance may have removed versions while this was read.
    history_of(table, mirror).refuse_unknown(instant)
    return as_they_were(found)


def known_since(table: Table, mirror: Mirror) -> datetime:
    """Return when a table's history begins.

    Raises:
        QueryError: The table keeps no history, or was never copied.
    """
    return history_of(table, mirror).begins_at


def snapshot(
    table: Table,
    instants: Mapping[date, datetime],
    mirror: Mirror,
    elsewhere: ClusterHistory | None = None,
) -> SnapshotRows:
    """Store a table's rows as of an instant for each day, all in one transaction.

    Args:
        table: A temporal table.
        instants: The instants, by day.
        mirror: Where its history is, and the snapshots are put.
        elsewhere: Finds the rows, as far as it can, of a mirror that publishes its tables.

    Returns:
        How many rows each day's snapshot has, and who has found them.

    Raises:
        QueryError: The table keeps no history, or its history begins after one of the days.
    """
    _known_days(table, instants, mirror)
    if elsewhere is not None and publishes(mirror):
        mirror.publish()
    with mirror.transaction() as transaction:
        # Once more: nobody removes versions from here on.
        days = _known_days(table, instants, mirror)
        if elsewhere is None or not publishes(mirror) or not takes_found_rows(transaction):
            return SnapshotRows(transaction.write_snapshots(table, days))
        # What was committed in between is not published: then the mirror finds the rows.
        find = elsewhere.finder(mirror.published([mirror_table(table.schema)]))
        rows = transaction.store_snapshots(table, days, find)
    engines = {day: "cluster" if day in elsewhere.found else "mirror" for day in rows}
    return SnapshotRows(rows, engines, elsewhere.reason)


def _known_days(
    table: Table, instants: Mapping[date, datetime], mirror: Mirror
) -> dict[date, AsOf]:
    known = history_of(table, mirror)
    unknown = sorted(day for day, instant in instants.items() if instant < known.begins_at)
    if unknown:
        first = known.begins_at.astimezone(UTC)
        raise QueryError(
            f"{known.beginning}, and {unknown[0]} ended before"
            f" ({len(unknown)} of the {len(instants)} days asked for)",
            table=table.name,
            hint=f"choose days from {first.date()} on, and set 'schedule.snapshots_from' to it",
        )
    return {day: AsOf(at, known.columns(at)) for day, at in instants.items()}


def changes(table: Table, after: After, mirror: Mirror, on_lost: OnLost) -> TableChanges:
    """Return what changed since a position; see `HTAP.changes`."""
    return consume.changes(table, after, _telling(mirror), on_lost)


def stream_changes(
    table: Table, after: After, mirror: Mirror, rows: int, on_lost: OnLost
) -> ChangeStream:
    """Return what changed since a position in batches; see `HTAP.stream_changes`."""
    return consume.stream_changes(table, after, _telling(mirror), rows, on_lost)


def diff(table: Table, a: datetime, b: datetime, mirror: Mirror) -> pa.Table:
    """Return what differs between two instants; see `HTAP.diff`."""
    return consume.diff(table, a, b, _telling(mirror))


def _telling(mirror: Mirror) -> TellsChanges:
    if not tells_changes(mirror):
        raise QueryError(
            "this mirror does not know in which order versions came to it",
            hint="ask a mirror of kind 'duckdb' or 'datafusion'",
        )
    return mirror
