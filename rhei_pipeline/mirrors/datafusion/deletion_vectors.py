"""Deletion vectors: a segment's removed rows, one bit each, least significant first as in Arrow."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rhei_pipeline.mirrors.datafusion.key_index import Numbers

Bits = npt.NDArray[np.uint8]


def none_gone(rows: int) -> Bits:
    """Return the bitmap of a segment that has all its rows."""
    return np.zeros((rows + 7) // 8, dtype=np.uint8)


def are_gone(bits: Bits, positions: Numbers) -> npt.NDArray[np.bool_]:
    """Return, for each position, whether its row is removed."""
    of_eight: Bits = bits[positions >> 3] >> (positions & 7).astype(np.uint8)
    return (of_eight & 1).astype(bool)


def remove(bits: Bits, positions: Numbers) -> None:
    """Mark rows as removed, in place."""
    np.bitwise_or.at(bits, positions >> 3, np.uint8(1) << (positions & 7).astype(np.uint8))


def present(bits: Bits, rows: int) -> npt.NDArray[np.bool_]:
    """Return a mask of the rows that are not removed."""
    return ~np.unpackbits(bits, count=rows, bitorder="little").astype(bool)


def as_arrow(bits: Bits, rows: int) -> pa.BooleanArray:
    """Return the mask of present rows as an Arrow array, which can be sliced without copying."""
    return pa.Array.from_buffers(pa.bool_(), rows, [None, pa.py_buffer(np.invert(bits))])
