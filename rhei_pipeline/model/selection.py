"""Rows chosen by a mask or by their numbers, without a copy where all of them are."""

from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Rows = TypeVar("Rows", pa.Table, pa.Array)


def chosen(rows: Rows, mask: npt.NDArray[np.bool_]) -> Rows:
    """Return the rows where the mask is true; the rows themselves where it is true for all."""
    return rows if mask.all() else rows.filter(pa.array(mask))


def taken(rows: Rows, positions: npt.NDArray[np.int64]) -> Rows:
    """Return the rows at these positions; the rows themselves where all are asked for in order."""
    if len(positions) == len(rows) and np.array_equal(positions, np.arange(len(rows))):
        return rows
    return rows.take(pa.array(positions))
