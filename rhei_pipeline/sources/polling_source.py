"""What all polled sources have in common: nothing is created in them, much is remembered."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rhei_pipeline.model.changes import Position
from rhei_pipeline.model.schema import Table
from rhei_pipeline.sources.progress_notes import Notes

_log = logging.getLogger(__name__)

#: Two clocks that are read one after the other differ by less while both go forward.
_STEP_SECONDS = 0.002


@dataclass
class PollMemory:
    """What a source remembers of earlier polls, by table; losing it costs reads, never rows.

    Attributes:
        floors: New positions are above these.
        touched: Keys to read again.
        distrusted: Positions up to here are not reliable: the clock went back behind them.
        told: Of which position it was said that it is no longer proved, and why.
    """

    floors: dict[str, int] = field(default_factory=dict)
    touched: dict[str, list[tuple[Any, ...]]] = field(default_factory=dict)
    distrusted: dict[str, int] = field(default_factory=dict)
    told: dict[str, tuple[int, str]] = field(default_factory=dict)

    def note(self, table: str, order: int) -> None:
        """Record that a position exists."""
        if order > self.floors.get(table, 0):
            self.floors[table] = order

    def distrust(self) -> None:
        """Mark all existing positions as unreliable."""
        self.distrusted = dict(self.floors)

    def is_distrusted(self, table: str, position: Position) -> bool:
        """Return whether the clock went back behind a position."""
        return position.order <= self.distrusted.get(table, -1)

    def warn_unproved(self, table: str, position: Position, sign: str) -> None:
        """Log why a position is no longer proved, once: whoever looks at the status asks, too."""
        if self.told.get(table) != (position.order, sign):
            self.told[table] = position.order, sign
            _log.warning("table %r: %s; it is copied again by difference", table, sign)


class PollingSource(ABC):
    """A `ChangeSource` over a database that it only reads; what is left is the database's own.

    Args:
        memory: Results of earlier polls.
        notes: A file with this mirror's progress for other processes; never read here.
        monotonic: A clock that never goes back, in seconds.
        slew: How much the source's clock may be slowed down to follow its time source.
    """

    #: Changes are read from the table.
    logs_rows = False

    def __init__(
        self,
        memory: PollMemory,
        notes: Path | None,
        monotonic: Callable[[], float],
        slew: float = 0.0,
    ) -> None:
        self._remembered = memory
        self._notes = Notes(notes)
        self._monotonic = monotonic
        self._slew = slew
        self._clocks: tuple[float, float] | None = None
        self._warned: set[str] = set()

    @abstractmethod
    def missing_index(self, name: str) -> str | None:
        """Return the statement that creates the index a poll needs; None if it exists."""

    @abstractmethod
    def timestamp_column(self, name: str) -> str:
        """Return the column by which a table is polled, as the table spells it."""

    def install(self, table: Table, least: int) -> None:
        """Record where positions begin; create nothing. Warns of a missing index."""
        self._remembered.note(table.name, least)
        mending = self.missing_index(table.name)
        if mending and table.name not in self._warned:
            self._warned.add(table.name)
            _log.warning(
                "table %r: no index begins with %r, so every poll that follows a commit reads the"
                " whole table; %s",
                table.name,
                self.timestamp_column(table.name),
                mending,
            )

    def is_installed(self, _table: Table) -> bool:
        """Return True: polling installs nothing."""
        return True

    def acknowledge(self, needed_from: Mapping[str, Position], **_: bool) -> int:
        """Forget the keys that were to be read again; the source keeps nothing for the mirror."""
        for name, position in needed_from.items():
            self._remembered.note(name, position.order)
            self._remembered.touched.pop(name, None)
        self._notes.write(needed_from)
        return 0

    def touch(self, table: Table, keys: Sequence[tuple[Any, ...]]) -> None:
        """Remember keys to read again."""
        self._remembered.touched.setdefault(table.name, []).extend(keys)

    def forget_mirror(self) -> None:
        """Delete the progress file."""
        self._notes.forget()

    def _follow_clock(self, began: float, clock: int) -> None:
        """Compare the source's clock with a monotonic one; a step back makes positions void.

        `began` is the monotonic one before `clock` was read, which is in microseconds.
        """
        wall = clock / 1e6
        if self._clocks is not None:
            last, then = self._clocks
            if wall - last < (began - then) * (1 - self._slew) - _STEP_SECONDS:
                self._remembered.distrust()
        self._clocks = (wall, self._monotonic())
