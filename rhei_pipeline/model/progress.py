"""What "recorded" means: how far each table of a mirror has come."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import TypeVar

from rhei_pipeline.model.changes import Position


class TableState(StrEnum):
    """The life of a mirrored table, derived from what the ledger holds about it.

    NEW: declared, nothing recorded yet.
    COPYING: a copy is under way beside the table; readers do not see it.
    COPIED: the copy is complete; the next sync cycle puts it in the table's place.
    READY: the table equals the source at its watermark.
    """

    NEW = "new"
    COPYING = "copying"
    COPIED = "copied"
    READY = "ready"


@dataclass(frozen=True, slots=True)
class Watermark:
    """The position up to and including which a table is durably applied.

    Attributes:
        recorded_at: When this was recorded, by the source's clock.
    """

    table: str
    position: Position
    recorded_at: datetime


@dataclass(frozen=True, slots=True)
class CopyProgress:
    """How far a table's copy has come.

    Attributes:
        position: From here the copy has to be caught up: no row was read before it.
        resume: Opaque place behind the last row copied; None before the first row.
        complete: Every row has been copied; what is left is to catch up.
        shape: Fingerprint of the schema the copy was begun with; another one cannot resume it.
    """

    table: str
    position: Position
    shape: str
    resume: str | None = None
    complete: bool = False


@dataclass(frozen=True, slots=True)
class Past:
    """What a mirror has recorded of a temporal table's past, beside its versions.

    Attributes:
        begins_at: When the table was copied first: what was before is unknown. None in a mirror
            of before this was recorded.
        left: The columns that the source has no more, and when that was noticed; None where it
            was not recorded.
        recorded_at: When the table was synced last.
    """

    begins_at: datetime | None
    left: Mapping[str, datetime | None]
    recorded_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class AsOf:
    """An instant, and the columns that a table had at it."""

    instant: datetime
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ledger:
    """Everything a mirror has recorded about progress, as one committed state."""

    watermarks: Mapping[str, Watermark] = field(default_factory=lambda: MappingProxyType({}))
    copies: Mapping[str, CopyProgress] = field(default_factory=lambda: MappingProxyType({}))

    def unproved(self) -> "Ledger":
        """Return the same places without what proves them to a source."""
        return Ledger(
            MappingProxyType({n: _unproved(mark) for n, mark in self.watermarks.items()}),
            MappingProxyType({n: _unproved(copy) for n, copy in self.copies.items()}),
        )

    def state(self, table: str) -> TableState:
        """Return where a table is in its life."""
        if table in self.copies:
            return TableState.COPIED if self.copies[table].complete else TableState.COPYING
        return TableState.READY if table in self.watermarks else TableState.NEW

    def goes_on(self, table: str) -> bool:
        """Return whether a copy is under way that goes on where the table itself has come to."""
        copy, mark = self.copies.get(table), self.watermarks.get(table)
        return copy is not None and mark is not None and copy.position == mark.position

    def needed_from(self, table: str) -> Position | None:
        """Return the position after which the table needs its changes, if any is recorded.

        Once a copy is begun only the copy can be caught up, so its position counts alone.
        """
        record = self.copies.get(table) or self.watermarks.get(table)
        return None if record is None else record.position

    def furthest(self, table: str) -> int:
        """Return the highest order recorded for the table; 0 where there is none."""
        records = (self.copies.get(table), self.watermarks.get(table))
        return max((record.position.order for record in records if record), default=0)


_Record = TypeVar("_Record", Watermark, CopyProgress)


def _unproved(record: _Record) -> _Record:
    return replace(record, position=replace(record.position, proof=""))
