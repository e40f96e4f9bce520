"""The parts of a large segment, each a file of a Delta table whose readers know no vectors.

So a change has only those files written again whose rows it removed or ended.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from rhei_pipeline.mirrors.datafusion.constants import conform
from rhei_pipeline.mirrors.datafusion.deletion_vectors import Bits, none_gone, present
from rhei_pipeline.mirrors.datafusion.manifest import Segment
from rhei_pipeline.mirrors.datafusion.segment_store import SegmentStore
from rhei_pipeline.mirrors.datafusion.version_ends import VersionEnds

#: Rows of a part, whole bytes of a bitmap and row groups of a file. With fewer, a change writes
#: less again, and readers open more files.
PART_ROWS = 131_072


@dataclass(frozen=True, slots=True, eq=False)
class SegmentPart:
    """Some rows of a segment that follow each other, as a reader sees them.

    Attributes:
        low: The position of the first one.
        high: The position after the last one.
        gone: Which of them have been removed, or their versions have ended.
        ends: The versions that have ended, of those that are gone.
    """

    segment: Segment
    low: int
    high: int
    gone: Bits
    ends: VersionEnds

    @property
    def rows(self) -> int:
        """How many rows it shows."""
        return self.high - self.low - int(np.bitwise_count(self.gone).sum()) + self._ended

    @property
    def _ended(self) -> int:
        return len(self.ends.positions)

    @property
    def shown(self) -> list[int | str]:
        """What tells which rows it shows, however the files are called that say so."""
        ends = self.ends
        told = b"".join(
            known.tobytes() for known in (self.gone, ends.positions, ends.ends, ends.deleted)
        )
        return [self.low, self.high, hashlib.sha256(told).hexdigest()]

    def read(self, schema: pa.Schema, store: SegmentStore) -> pa.Table:
        """Return the rows it shows, in a table's columns."""
        segment, own = self.segment, set(self.segment.schema.names)
        names = [name for name in schema.names if name in own]
        positions = np.arange(self.low, self.high, dtype=np.int64)
        rows = store.form.take(store.content(segment), names, positions)
        rows = conform(rows, schema, segment.constants)
        shown = [rows.filter(pa.array(present(self.gone, rows.num_rows)))]
        if self._ended:
            ended = rows.take(pa.array(self.ends.positions.astype(np.int64) - self.low))
            shown.append(self.ends.written_into(ended))
        return pa.concat_tables(shown)


def has_parts(segment: Segment) -> bool:
    """Return whether a segment has more rows than a part."""
    return segment.rows > PART_ROWS


def parts_of(segment: Segment, store: SegmentStore) -> Iterator[SegmentPart]:
    """Yield the parts of a segment that show any rows."""
    gone, ends = store.bits(segment), _ends_of(segment, store)
    if gone is None:
        gone = none_gone(segment.rows)
    for low in range(0, segment.rows, PART_ROWS):
        high = min(low + PART_ROWS, segment.rows)
        part = SegmentPart(
            segment, low, high, gone[low // 8 : -(-high // 8)], ends.within(low, high)
        )
        if part.rows:
            yield part


def _ends_of(segment: Segment, store: SegmentStore) -> VersionEnds:
    if segment.ended:
        return VersionEnds.merged(store.version_ends(segment.ended))
    return VersionEnds(np.zeros(0, np.uint32), np.zeros(0, np.int64), np.zeros(0, np.bool_))
