"""The oracle: what the source held after each committed change, told by nobody but the source."""

import sqlite3
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

Row = tuple[str, ...]
State = dict[str, frozenset[Row]]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def exact(row: Iterable[Any]) -> Row:
    """Write values so that equal texts mean equal bits: 1 is not 1.0, 0.0 is not -0.0."""
    return tuple(map(_exact, row))


def _exact(value: Any) -> str:
    if isinstance(value, datetime) and value.tzinfo is not None:
        value = value.astimezone(UTC)  # an instant is the same in every zone
    return repr(value)


def source_rows(connection: sqlite3.Connection, table: str) -> frozenset[Row]:
    """Return a source table's rows."""
    return frozenset(map(exact, connection.execute(f'select * from "{table}"')))


def arrow_rows(table: pa.Table) -> frozenset[Row]:
    """Return an Arrow table's rows; fails on a row that stands twice."""
    rows = [exact(row.values()) for row in table.to_pylist()]
    assert len(set(rows)) == len(rows), "a row stands twice"
    return frozenset(rows)


@dataclass
class History:
    """The source's states, each with an instant at which it was the present one.

    SQLite's clock has milliseconds and ties move on by microseconds, so each state is dated at the
    end of its millisecond, and the next change waits for the next one.
    """

    connection: sqlite3.Connection
    tables: tuple[str, ...]
    states: list[tuple[datetime, State]] = field(default_factory=list)

    def note(self) -> None:
        """Date the present state."""
        now = self._milliseconds()
        instant = _EPOCH + timedelta(milliseconds=now, microseconds=900)
        self.states.append((instant, {name: self.rows(name) for name in self.tables}))
        while self._milliseconds() == now:
            time.sleep(0.0002)

    def rows(self, table: str) -> frozenset[Row]:
        """Return a table's present rows."""
        return source_rows(self.connection, table)

    def _milliseconds(self) -> int:
        return int(
            self.connection.execute(
                "select cast((julianday('now') - 2440587.5) * 86400000.0 + 0.5 as integer)"
            ).fetchone()[0]
        )
