"""The oracle of a SQLite source: its states, told by nobody but the source."""

import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from rhei_pipeline.testing.oracle import Dated, Expected, Row, exact

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def source_rows(connection: sqlite3.Connection, table: str) -> frozenset[Row]:
    """Return a source table's rows."""
    return frozenset(map(exact, connection.execute(f'select * from "{table}"')))


def instant_between() -> datetime:
    """Return an instant behind all that was written so far, and before all that will be.

    SQLite's clock has milliseconds: the one that it is in is over first, and then this one.
    """
    _await_next_millisecond()
    now = datetime.now(UTC)
    _await_next_millisecond()
    return now


def _await_next_millisecond() -> None:
    begun = time.time_ns() // 1_000_000
    while time.time_ns() // 1_000_000 <= begun + 1:  # SQLite rounds to the nearest one
        time.sleep(0.0002)


@dataclass
class History:
    """The source's states, each with an instant at which it was the present one.

    SQLite's clock has milliseconds and ties move on by microseconds, so each state is dated at the
    end of its millisecond, and the next change waits for the next one.
    """

    connection: sqlite3.Connection
    tables: Mapping[str, Expected]
    states: list[tuple[datetime, dict[str, Dated]]] = field(default_factory=list)

    def note(self) -> None:
        """Date the present state."""
        now = self._milliseconds()
        instant = _EPOCH + timedelta(milliseconds=now, microseconds=900)
        self.states.append((instant, {name: Dated.of(it) for name, it in self.tables.items()}))
        while self._milliseconds() == now:
            time.sleep(0.0002)

    def _milliseconds(self) -> int:
        return int(
            self.connection.execute(
                "select cast((julianday('now') - 2440587.5) * 86400000.0 + 0.5 as integer)"
            ).fetchone()[0]
        )
