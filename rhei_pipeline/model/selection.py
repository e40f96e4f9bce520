"""Columns by name; rows chosen by a mask or by their numbers, without a copy where they can be."""

from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Rows = TypeVar("Rows", pa.Table, pa.Array)


def columns_of(rows: pa.Table) -> dict[str, pa.ChunkedArray]:
    """Return the columns by name: to ask a table for each name in turn takes the square of them."""
    return dict(zip(rows.column_names, rows.columns, strict=True))


def chosen(rows: Rows, mask: npt.NDArray[np.bool_]) -> Rows:
    """Return the rows where the mask is true; a part of the rows themselves if it is one range."""
    return taken(rows, np.flatnonzero(mask))


def taken(rows: Rows, positions: npt.NDArray[np.int64]) -> Rows:
    """Return the rows at these positions; a part of the rows themselves if these are one range."""
    count = len(positions)
    if not count:
        return rows.slice(0, 0)
    first = int(positions[0])
    if positions[-1] - first == count - 1 and np.array_equal(
        positions, np.arange(first, first + count)
    ):
        return rows.slice(first, count)
    return rows.take(pa.array(positions))


def taken_apart(rows: pa.Table, positions: npt.NDArray[np.int64]) -> pa.Table:
    """Return the rows at these positions, which keep no others in memory."""
    if np.array_equal(positions, np.arange(rows.num_rows)):
        return rows
    return rows.take(pa.array(positions))


def as_one(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array; it is copied only if it has several chunks."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def each_once(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return each number once, in their order.

    `np.unique` hashes many numbers first, which takes up to eighteen times as long as sorting.
    """
    ordered = np.sort(numbers)
    is_first = np.ones(len(ordered), dtype=bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    return ordered[is_first]
