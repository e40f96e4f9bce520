"""Values that do not fit their column, met while rows become Arrow."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Rejection:
    """A row, by its number, and the column whose value does not fit."""

    row: int
    column: str
    reason: str


def without(arrays: Sequence[pa.Array], rejections: Sequence[Rejection]) -> list[pa.Array]:
    """Leave the rejected rows out of all columns."""
    if not rejections:
        return list(arrays)
    kept = np.ones(len(arrays[0]), dtype=bool)
    kept[[rejection.row for rejection in rejections]] = False
    mask = pa.array(kept)
    return [array.filter(mask) for array in arrays]
