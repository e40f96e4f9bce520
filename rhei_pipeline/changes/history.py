"""What is known of a temporal table's past: when it begins, and its columns then."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

import pyarrow as pa

from rhei_pipeline.errors import QueryError
from rhei_pipeline.model.progress import Past
from rhei_pipeline.model.schema import VALID_FROM, VALID_TO, Mode, Table
from rhei_pipeline.model.set_aside import former_name, is_set_aside
from rhei_pipeline.sql.text import mirror_table, quote

_BEFORE_ALL = datetime.min.replace(tzinfo=UTC)
_AFTER_ALL = datetime.max.replace(tzinfo=UTC)


class ReadsPast(Protocol):
    """One who can answer from a mirror, and knows what it records of its histories."""

    def past(self, table: Table) -> Past | None:
        """Return what is recorded of a temporal table's history; None if it is not mirrored yet."""

    def query(self, sql: str, params: Sequence[Any] | Mapping[str, Any] = ()) -> pa.Table:
        """Run one read-only statement."""


class History:
    """What is known of a table's history."""

    def __init__(
        self,
        table: Table,
        begins_at: datetime,
        left: Mapping[str, datetime],
        *,
        is_shortened: bool = False,
    ) -> None:
        self._table, self._left = table, left
        self.begins_at, self._is_shortened = begins_at, is_shortened

    def columns(self, instant: datetime) -> tuple[str, ...]:
        """Return the present columns, then those that were dropped after the instant."""
        gone = (name for name, left_at in self._left.items() if instant < left_at)
        return (*self._table.schema.names, *gone)

    def meant_otherwise(self, instant: datetime) -> list[str]:
        """Return the columns whose values at an instant are kept in others, of another meaning."""
        own = self._table.schema.names
        kept = (name for name, left_at in self._left.items() if instant < left_at)
        return sorted({former_name(name) for name in kept if is_set_aside(name, own)})

    def refuse_unknown(self, instant: datetime) -> None:
        """Refuse an instant before the history.

        Raises:
            QueryError: What the table held then was never recorded, or was removed.
        """
        if instant < self.begins_at:
            raise QueryError(
                self.beginning,
                table=self._table.name,
                hint="give a later timestamp; what was before was removed, as 'history' declares"
                if self._is_shortened
                else "give a later timestamp; earlier states were never recorded",
            )

    @property
    def beginning(self) -> str:
        """Since when the history is known, in words."""
        verb = "is kept since" if self._is_shortened else "begins at"
        return f"its history {verb} {self.begins_at.astimezone(UTC).isoformat()}"


def refuse_naive(*instants: datetime) -> None:
    """Refuse instants without a time zone.

    Raises:
        QueryError: One has none.
    """
    if any(instant.tzinfo is None for instant in instants):
        raise QueryError("the instant has no time zone", hint="give one, such as UTC")


def history_of(table: Table, mirror: ReadsPast) -> History:
    """Return what is known of a table's history.

    Raises:
        QueryError: The table keeps no history, or was never copied.
    """
    if table.mode is not Mode.TEMPORAL:
        raise QueryError("it keeps no history", table=table.name, hint="declare 'mode: temporal'")
    past = mirror.past(table)
    if past is None:
        raise QueryError(
            "it is not copied yet", table=table.name, hint="run 'rhei sync', which copies it"
        )
    left = {name: at or _last_seen(table, name, mirror) for name, at in past.left.items()}
    begins_at = past.begins_at or _first_seen(table, past, mirror)
    return History(table, begins_at, left, is_shortened=past.is_shortened)


def _first_seen(table: Table, past: Past, mirror: ReadsPast) -> datetime:
    """Return when history begins in a mirror that is older than that record."""
    found = mirror.query(f"select min({VALID_FROM}) as first from {mirror_table(table.schema)}")
    first: datetime | None = found["first"][0].as_py()
    return first or past.recorded_at or _AFTER_ALL


def _last_seen(table: Table, column: str, mirror: ReadsPast) -> datetime:
    """Return until when rows had a value in a column whose removal was not recorded."""
    found = mirror.query(
        f"select count(*) as rows_, count({VALID_TO}) as ended, max({VALID_TO}) as last"
        f" from {mirror_table(table.schema)} where {quote(column)} is not null"
    ).to_pylist()[0]
    if found["rows_"] > found["ended"]:
        return _AFTER_ALL
    last: datetime | None = found["last"]
    return last or _BEFORE_ALL
