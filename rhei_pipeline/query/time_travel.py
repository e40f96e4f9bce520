"""A temporal table as it was: from when on that is known, and with which columns."""

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
            f"its history is known from {known.begins_at.isoformat()} on",
            table=table.name,
            hint="give a later instant; earlier states were never recorded",
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
    """Keep a table's rows as of an instant for each day, all in one transaction.

    Returns:
        How many rows each day's snapshot has.

    Raises:
        QueryError: The table keeps no history, or of one of the days nothing is known.
    """
    known = _known(table, mirror)
    unknown = sorted(day for day, instant in instants.items() if instant < known.begins_at)
    if unknown:
        first = known.begins_at.astimezone(UTC)
        raise QueryError(
            f"its history is known from {first.isoformat()} on, and {unknown[0]} ended before"
            f" ({len(unknown)} of the {len(instants)} days asked for)",
            table=table.name,
            hint=f"choose days from {first.date()} on, and set 'schedule.snapshots_from' to it",
        )
    days = {day: AsOf(at, known.columns(at)) for day, at in instants.items()}
    with mirror.transaction() as transaction:
        return transaction.write_snapshots(table, days)


class _Known:
    """What is known of a table's past."""

    def __init__(self, table: Table, begins_at: datetime, left: Mapping[str, datetime]) -> None:
        self._table, self._left = table, left
        self.begins_at = begins_at

    def columns(self, instant: datetime) -> tuple[str, ...]:
        """Return the columns there are, then those that left after the instant."""
        gone = (name for name, left_at in self._left.items() if instant < left_at)
        return (*self._table.schema.names, *gone)


def _known(table: Table, mirror: Mirror) -> _Known:
    if table.mode is not Mode.TEMPORAL:
        raise QueryError("it keeps no history", table=table.name, hint="declare 'mode: temporal'")
    past = mirror.past(table)
    if past is None:
        raise QueryError(
            "nothing is known of it yet", table=table.name, hint="sync: it is copied first then"
        )
    left = {name: at or _last_seen(table, name, mirror) for name, at in past.left.items()}
    return _Known(table, past.begins_at or _first_seen(table, past, mirror), left)


def _first_seen(table: Table, past: Past, mirror: Mirror) -> datetime:
    """Return where history begins in a mirror of before this was recorded."""
    found = mirror.query(f"select min({VALID_FROM}) as first from {mirror_table(table.schema)}")
    first: datetime | None = found["first"][0].as_py()
    return first or past.recorded_at or _AFTER_ALL


def _last_seen(table: Table, column: str, mirror: Mirror) -> datetime:
    """Return until when rows had a value in a column of which it is not recorded when it left."""
    found = mirror.query(
        f"select count(*) as rows_, count({VALID_TO}) as ended, max({VALID_TO}) as last"
        f" from {mirror_table(table.schema)} where {quote(column)} is not null"
    ).to_pylist()[0]
    if found["rows_"] > found["ended"]:
        return _AFTER_ALL
    last: datetime | None = found["last"]
    return last or _BEFORE_ALL
