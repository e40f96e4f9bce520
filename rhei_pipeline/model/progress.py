"""The recorded progress of each table of a mirror."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import TypeVar

from rhei_pipeline.errors import MirrorError
from rhei_pipeline.model.changes import Position


class TableState(StrEnum):
    """The state of a mirrored table, derived from what the ledger records about it.

    NEW: declared, nothing recorded yet.
    COPYING: a copy is running beside the table; readers do not see it.
    COPIED: the copy is complete; the next sync cycle replaces the table with it.
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


def refuse_lower(mark: Watermark, earlier: Watermark | None) -> None:
    """Do nothing for a watermark that is not lower than the one recorded before it.

    Raises:
        MirrorError: It is.
    """
    if earlier is not None and earlier.position.order > mark.position.order:
        raise MirrorError(
            f"its watermark would go back from {earlier.position.order} to {mark.position.order}",
            table=mark.table,
            hint="another sync has committed since; run this one again",
        )


@dataclass(frozen=True, slots=True)
class CopyProgress:
    """How far a table's copy has come.

    Attributes:
        position: Changes after it must be applied to the copy: no row was read before it.
        resume: Opaque position after the last copied row; None before the first row.
        complete: Every row has been copied; only later changes are left to apply.
        shape: Fingerprint of the copy's schema; a copy with another one cannot be resumed.
    """

    table: str
    position: Position
    shape: str
    resume: str | None = None
    complete: bool = False


@dataclass(frozen=True, slots=True)
class Past:
    """What a mirror records of a temporal table's history, beside its versions.

    Attributes:
        begins_at: When the table was first copied: earlier states are unknown. None in a mirror
            that is older than this record.
        left: The columns that the source no longer has, and when that was noticed; None if that
            was not recorded.
        recorded_at: When the table was last synced.
        is_shortened: Older versions were removed, as is declared: `begins_at` is since when the
            history is kept.
    """

    begins_at: datetime | None
    left: Mapping[str, datetime | None]
    recorded_at: datetime | None = None
    is_shortened: bool = False


@dataclass(frozen=True, slots=True)
class AsOf:
    """An instant, and the columns that a table had at that time."""

    instant: datetime
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ledger:
    """Everything a mirror has recorded about progress, as one committed state."""

    watermarks: Mapping[str, Watermark] = field(default_factory=lambda: MappingProxyType({}))
    copies: Mapping[str, CopyProgress] = field(default_factory=lambda: MappingProxyType({}))

    def unproved(self) -> "Ledger":
        """Return the same positions without their proofs."""
        return Ledger(
            MappingProxyType({n: _unproved(mark) for n, mark in self.watermarks.items()}),
            MappingProxyType({n: _unproved(copy) for n, copy in self.copies.items()}),
        )

    def state(self, table: str) -> TableState:
        """Return a table's state."""
        if table in self.copies:
            return TableState.COPIED if self.copies[table].complete else TableState.COPYING
        return TableState.READY if table in self.watermarks else TableState.NEW

    def goes_on(self, table: str) -> bool:
        """Return whether a running copy continues from the table's own position."""
        copy, mark = self.copies.get(table), self.watermarks.get(table)
        return copy is not None and mark is not None and copy.position == mark.position

    def needed_from(self, table: str) -> Position | None:
        """Return the position after which the table needs its changes, if any is recorded.

        Once a copy has begun, changes are applied to the copy, so only its position counts.
        """
        record = self.copies.get(table) or self.watermarks.get(table)
        return None if record is None else record.position

    def furthest(self, table: str) -> int:
        """Return the highest order recorded for the table; 0 where there is none."""
        records = (self.copies.get(table), self.watermarks.get(table))
        return max((record.position.order for record in records if record), default=0)


def changed_positions(
    needed: Mapping[str, Position], known: Mapping[str, Position | None]
) -> dict[str, Position]:
    """Return the positions, by table, that are not known as they are needed now."""
    return {
        name: position
        for name, position in needed.items()
        if (there := known.get(name)) is not position and there != position
    }


_Record = TypeVar("_Record", Watermark, CopyProgress)


def _unproved(record: _Record) -> _Record:
    return replace(record, position=replace(record.position, proof=""))
