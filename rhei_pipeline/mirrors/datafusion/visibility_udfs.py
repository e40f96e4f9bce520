"""DataFusion functions of a row's number: whether it is visible, and how its version ended."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.mirrors.datafusion.deletion_vectors import Bits
from rhei_pipeline.mirrors.datafusion.version_ends import VersionEnds
from rhei_pipeline.model.changes import Operation
from rhei_pipeline.model.type_names import INSTANT

#: What DataFusion calls with the numbers of a batch's rows.
OfNumbers = Callable[[pa.Array], pa.Array]


def hidden(bits: Bits, version_ends: Sequence[VersionEnds]) -> Bits:
    """Return a mask of removed rows that no reader sees; rows of ended versions are visible."""
    if not version_ends:
        return bits
    gone = np.unpackbits(bits, bitorder="little")
    for some in version_ends:
        gone[some.positions] = 0
    return np.packbits(gone, bitorder="little")


def ends(version_ends: Sequence[VersionEnds]) -> OfNumbers:
    """Return a function of row numbers: when each version ended, or null."""

    def look_up(numbers: pa.Array) -> pa.Array:
        ended, standing = np.zeros(len(numbers), np.int64), np.ones(len(numbers), dtype=bool)
        for some, met, where in _met(version_ends, numbers):
            ended[met], standing[met] = some.ends[where], False
        return pa.array(ended, mask=standing).cast(INSTANT)

    return look_up


def operations(version_ends: Sequence[VersionEnds]) -> OfNumbers:
    """Return a function of row numbers: the delete operation that ended a version, or null."""

    def look_up(numbers: pa.Array) -> pa.Array:
        deleted = np.zeros(len(numbers), dtype=bool)
        for some, met, where in _met(version_ends, numbers):
            deleted[met] = some.deleted[where]
        none = pa.scalar(None, pa.string())
        return pc.if_else(pa.array(deleted), Operation.DELETE.value, none)

    return look_up


def _met(
    version_ends: Sequence[VersionEnds], numbers: pa.Array
) -> Iterator[tuple[VersionEnds, np.ndarray, np.ndarray | slice]]:
    """Yield version ends, a mask of the rows that ended there, and the entry of each."""
    rows = numbers.to_numpy()
    together = _stand_together(rows)
    for some in version_ends:
        if together:
            first, last = np.searchsorted(some.positions, [rows[0], rows[0] + len(rows)])
            if first < last:
                yield some, some.positions[first:last] - rows[0], slice(first, last)
        else:
            found, where = some.find(rows)
            yield some, np.flatnonzero(found), where


def _stand_together(rows: np.ndarray) -> bool:
    return len(rows) > 0 and bool((np.diff(rows) == 1).all())


def presence(present: pa.BooleanArray) -> OfNumbers:
    """Return a function of row numbers: whether each row is visible."""

    def test(numbers: pa.Array) -> pa.Array:
        rows = numbers.to_numpy()
        # Most batches are rows that stand together, and of those a slice is free.
        if _stand_together(rows):
            return present.slice(int(rows[0]), len(rows))
        return present.take(numbers)

    return test
