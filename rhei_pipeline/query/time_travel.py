"""A temporal table as of an instant: when its history begins, and its columns then."""

from collections.abc import Mapping
from datetime import UTC, date, datetime

import pyarrow as pa

from rhei_pipeline.errors import QueryError
from rhei_pipeline.model.progress import AsOf, Past
from rhei_pipeline.model.schema import VALID_FROM, VALID_TO, Mode, Table
from rhei_pipeline.protocols import Mirror
from rhei_pipeline.sql.text import listed, mirror_table, quote

_BEFORE_ALL = datetime.min.replace(tzinfo=UTC)
_AFTER_ALL = datetime.max.replace(tzinfo=UTC)


def as_of(table: Table, instant: datetime, mirror: Mirror) -> pa.Table:
    """Return a table's rows as they were at an instant, with the columns it had.

    Raises:
        QueryError: The table keeps no history, or its history begins later.
    """
    known = _known(table, mirror)
    if instant < known.begins_at:
        raise QueryError(
            f"its history begins at {known.begins_at.isoformat()}",
            table=table.name,
            hint="give a later timestamp; earlier states were never recorded",
        )
    return mirror.query(
        f"select {listed(known.columns(instant))} from {mirror_table(table.schema)}"
        f" where {VALID_FROM} <= $1 and ({VALID_TO} is null or {VALID_TO} > $1)",
        [instant],
    )


def known_since(table: Table, mirror: Mirror) -> datetime:
    """Return when a table's history begins.

    Raises:
        QueryError: The table keeps no history, or was never copied.
    """
    return _known(table, mirror).begins_at


def snapshot(table: Table, instants: Mapping[date, datetime], mirror: Mirror) -> dict[date, int]:
    """Store a table's rows as of an instant for each day, all in one transaction.

    Returns:
        How many rows each day's snapshot has.

    Raises:
        QueryError: The table keeps no history, or its history begins after one of the days.
    """
    known = _known(table, mirror)
    unknown = sorted(day for day, instant in instants.items() if instant < known.begins_at)
    if unknown:
        first = known.begins_at.astimezone(UTC)
        raise QueryError(
            f"its history begins at {first.isoformat()}, and {unknown[0]} ended before"
            f" ({len(unknown)} of the {len(instants)} days asked for)",
            table=table.name,
            hint=f"choose days from {first.date()} on, and set 'schedule.snapshots_from' to it",
        )
    days = {day: AsOf(at, known.columns(at)) for day, at in instants.items()}
    with mirror.transaction() as transaction:
        return transaction.write_snapshots(table, days)


class _Known:
    """What is known of a table's history."""

    def __init__(self, table: Table, begins_at: datetime, left: Mapping[str, datetime]) -> None:
        self._table, self._left = table, left
        self.begins_at = begins_at

    def columns(self, instant: datetime) -> tuple[str, ...]:
        """Return the present columns, then those that were dropped after the instant."""
        gone = (name for name, left_at in self._left.items() if instant < left_at)
        return (*self._table.schema.names, *gone)


def _known(table: Table, mirror: Mirror) -> _Known:
    if table.mode is not Mode.TEMPORAL:
        raise QueryError("it keeps no history", table=table.name, hint="declare 'mode: temporal'")
    past = mirror.past(table)
    if past is None:
        raise QueryError(
            "it is not copied yet", table=table.name, hint="run 'rhei sync', which copies it"
        )
    left = {name: at or _last_seen(table, name, mirror) for name, at in past.left.items()}
    return _Known(table, past.begins_at or _first_seen(table, past, mirror), left)


def _first_seen(table: Table, past: Past, mirror: Mirror) -> datetime:
    """Return when history begins in a mirror that is older than that record."""
    found = mirror.query(f"select min({VALID_FROM}) as first from {mirror_table(table.schema)}")
    first: datetime | None = found["first"][0].as_py()
    return first or past.recorded_at or _AFTER_ALL


def _last_seen(table: Table, column: str, mirror: Mirror) -> datetime:
    """Return until when rows had a value in a column whose removal was not recorded."""
    found = mirror.query(
        f"select count(*) as rows_, count({VALID_TO}) as ended, max({VALID_TO}) as last"
        f" from {mirror_table(table.schema)} where {quote(column)} is not null"
    ).to_pylist()[0]
    if found["rows_"] > found["ended"]:
        return _AFTER_ALL
    last: datetime | None = found["last"]
    return last or _BEFORE_ALL
