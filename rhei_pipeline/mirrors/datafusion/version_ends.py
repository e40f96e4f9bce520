"""When and how the versions of a segment ended, stored apart from their rows.

So a change to a temporal table costs as much as the versions it ends, not the rows around them.
Later merges move the rows of many ended versions into segments of their own at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.mirrors.datafusion.key_index import Numbers
from rhei_pipeline.mirrors.datafusion.manifest import VersionEndsPart
from rhei_pipeline.model.changes import Operation
from rhei_pipeline.model.schema import OPERATION, VALID_TO
from rhei_pipeline.model.type_names import INSTANT

_BYTES_PER_ROW = 13
#: So many files of version ends of about one size are made one.
_HAND = 8


@dataclass(frozen=True, slots=True)
class VersionEnds:
    """Some of a segment's versions that have ended.

    Attributes:
        positions: Their rows' positions in the segment, ascending.
        ends: When each ended, in microseconds.
        deleted: Whether nothing followed it, because its row was deleted.
    """

    positions: npt.NDArray[np.uint32]
    ends: Numbers
    deleted: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, positions: Numbers, ends: Numbers, deleted: npt.NDArray[np.bool_]) -> "VersionEnds":
        """Return version ends sorted by position."""
        order = np.argsort(positions)
        return cls(positions[order].astype(np.uint32), ends[order], deleted[order])

    @classmethod
    def merged(cls, parts: Sequence["VersionEnds"]) -> "VersionEnds":
        """Return several parts as one."""
        return cls.of(
            np.concatenate([part.positions for part in parts]).astype(np.int64),
            np.concatenate([part.ends for part in parts]),
            np.concatenate([part.deleted for part in parts]),
        )

    @classmethod
    def decode(cls, buffer: pa.Buffer, offset: int, rows: int) -> "VersionEnds":
        """Read the output of `encode` at this offset, without copying."""
        ends = np.frombuffer(buffer, np.int64, rows, offset)
        positions = np.frombuffer(buffer, np.uint32, rows, offset + 8 * rows)
        deleted = np.frombuffer(buffer, np.bool_, rows, offset + 12 * rows)
        return cls(positions, ends, deleted)

    def encode(self) -> bytes:
        """Return the columns one after the other, without a header; a multiple of eight bytes."""
        parts = (self.ends, self.positions, self.deleted)
        content = b"".join(part.tobytes() for part in parts)
        return content.ljust(-(-len(content) // 8) * 8, b"\0")

    def find(self, positions: Numbers) -> tuple[npt.NDArray[np.bool_], Numbers]:
        """Return a mask of the positions that have ended, and the entry of each."""
        if not len(self.positions):
            return np.zeros(len(positions), dtype=bool), np.zeros(0, dtype=np.int64)
        place = np.searchsorted(self.positions, positions)
        met = self.positions[np.minimum(place, len(self.positions) - 1)] == positions
        return met, place[met]

    def within(self, low: int, high: int) -> "VersionEnds":
        """Return the entries from one position to before another."""
        first, last = np.searchsorted(self.positions, [low, high])
        return VersionEnds(
            self.positions[first:last], self.ends[first:last], self.deleted[first:last]
        )

    def written_into(self, rows: pa.Table) -> pa.Table:
        """Fill in the columns that hold when and how each row's version ended."""
        for place, field in enumerate(rows.schema):
            if field.name == VALID_TO:
                rows = rows.set_column(place, field, pa.array(self.ends).cast(INSTANT))
            if field.name == OPERATION:
                last = pc.if_else(pa.array(self.deleted), Operation.DELETE.value, rows[place])
                rows = rows.set_column(place, field, last)
        return rows


def full_hand(places: Sequence[VersionEndsPart], rows: int) -> list[VersionEndsPart]:
    """Return the parts to merge with so many new version ends: few of each size remain."""
    hand: list[VersionEndsPart] = []
    for place in sorted(places, key=lambda each: each.rows):
        if place.rows > _HAND * max(rows + sum(each.rows for each in hand), 1):
            break
        hand.append(place)
    return hand if len(hand) >= _HAND else []
