"""Which state of a temporal table's history a mirror holds; how it came, `changes.feed` says."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.model.change_feed import ChangePosition
from rhei_pipeline.model.schema import RESERVED_PREFIX, VALID_FROM

#: A table's feed stands beside it; its name begins so.
FEED_PREFIX = f"{RESERVED_PREFIX}feed_"
KIND = "_rhei_kind"
#: The number of the late commit, or how many there were.
LATE = "_rhei_late"
LINEAGE = "_rhei_lineage"


class FeedEntry(StrEnum):
    """What an entry of a feed says.

    BORN: the table was created; before that there is no history.
    BEGUN: another process goes on from this state.
    LOST: the history was changed in a way that is no change of rows; earlier positions are void.
    OPENED, ENDED: a version that began, or ended, in a late commit.
    KEPT: older versions were removed, up to this instant; states of before are void, and those
        that do not know the late commits up to this one.
    COUNTED: how many late commits there were when entries of removed versions went with them.
    """

    BORN = "born"
    BEGUN = "begun"
    LOST = "lost"
    OPENED = "opened"
    ENDED = "ended"
    KEPT = "kept"
    COUNTED = "counted"


#: The entries that say who wrote from where on.
LINEAGES = (FeedEntry.BORN, FeedEntry.BEGUN, FeedEntry.LOST)
#: The entries that a state is made of.
TOLD = (*LINEAGES, FeedEntry.KEPT)


_SINCE = "since"
_BEFORE_ALL = -(1 << 63)


@dataclass(frozen=True, slots=True)
class FeedState:
    """Which state of a table's history a mirror holds.

    Attributes:
        lineages: The entries that say who wrote, and what was removed: kind, number of late
            commits, lineage, and the newest instant as microseconds.
        late: How many late commits there were.
        newest: The latest instant of all versions, in microseconds; None: there is none.
    """

    lineages: pa.Table
    late: int
    newest: int | None

    @staticmethod
    def no_lineages() -> pa.Table:
        """Return the lineages of a table that nobody has written since they are noted."""
        names = (KIND, pa.string()), (LATE, pa.int64()), (LINEAGE, pa.string())
        return pa.schema([*names, (_SINCE, pa.int64())]).empty_table()

    @classmethod
    def of(cls, entries: pa.Table, late: int, newest: int | None) -> Self:
        """Return the state of a feed whose entries have instants."""
        since = entries[VALID_FROM].cast(pa.int64())
        told = entries.select([KIND, LATE, LINEAGE]).append_column(_SINCE, since)
        return cls(told, late, newest)

    @property
    def position(self) -> ChangePosition:
        """The position at which a consumer stands who has all of it."""
        written = self._in_order()[LINEAGE]
        return ChangePosition(self.late, self.newest, written[-1].as_py() if len(written) else "")

    def knows(self, position: ChangePosition) -> bool:
        """Return whether this history had the state of a position."""
        return self.why_lost(position) is None

    def why_lost(self, position: ChangePosition) -> str | None:
        """Return why it is not known what changed since a position; None: it is."""
        lineages = self._in_order()
        written = [None, *lineages[LINEAGE].to_pylist()]
        own = position.lineage or None
        if own not in written:
            return "the position is of another history than the mirror has now"
        later = lineages.slice(written.index(own))
        if not pc.all(pc.equal(later[KIND], FeedEntry.BEGUN.value), min_count=0).as_py():
            return (
                "its history was created again or repaired, or a column was renamed in it or means"
                " something else, since the position was given"
            )
        bound: tuple[int, int | None] = (self.late, self.newest)
        if later.num_rows:
            bound = (later[LATE][0].as_py(), later[_SINCE][0].as_py())
        if position.late > bound[0] or at_least(position.newest) > at_least(bound[1]):
            return "the mirror is older than the position, or was so since"
        if self._lacks(position):
            return "its history is kept since a later state than that of the position"
        return None

    def is_kept_at(self, newest: int | None) -> bool:
        """Return whether no version was removed that was valid at an instant, in microseconds."""
        kept = self._kept()
        return not kept.num_rows or newest is None or newest >= pc.max(kept[_SINCE]).as_py()

    def _lacks(self, position: ChangePosition) -> bool:
        """Return whether versions were removed that were valid at a position."""
        kept = self._kept()
        if not kept.num_rows or position.newest is None:
            return False
        return not self.is_kept_at(position.newest) or position.late < pc.max(kept[LATE]).as_py()

    def _kept(self) -> pa.Table:
        return self.lineages.filter(pc.equal(self.lineages[KIND], FeedEntry.KEPT.value))

    def _in_order(self) -> pa.Table:
        lineages = self.lineages.filter(pc.not_equal(self.lineages[KIND], FeedEntry.KEPT.value))
        rows = lineages.append_column(
            "begun", pc.equal(lineages[KIND], FeedEntry.BEGUN.value)
        ).append_column("place", pc.fill_null(lineages[_SINCE], _BEFORE_ALL))
        order = [(name, "ascending") for name in (LATE, "place", "begun")]
        return rows.sort_by(order)


def at_least(microseconds: int | None) -> int:
    """Return an instant, or one before all others for None."""
    return _BEFORE_ALL if microseconds is None else microseconds
