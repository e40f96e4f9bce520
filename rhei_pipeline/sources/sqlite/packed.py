"""Columns of integers or reals as Arrow, without a look at the class of each value."""

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

_Struct = lru_cache(maxsize=64)(struct.Struct)
_CODES = {pa.int64(): "q", pa.float64(): "d"}
_EXACT_INTEGER = 2.0**53  # from here on an integer may have lost digits as a double


def integers(values: Sequence[int]) -> pa.Array:
    """Return integers of ours as an array."""
    return pa.Array.from_buffers(
        pa.int64(), len(values), [None, pa.py_buffer(_Struct(f"={len(values)}q").pack(*values))]
    )


def packed(values: Sequence[Any], kind: pa.DataType) -> pa.Array | None:
    """Return values as an array, if that is all that they are; None where one may be otherwise.

    Integers are packed if there is nothing else among them, not even a null. Reals may have
    integers among them that a double holds.
    """
    code = _CODES.get(kind)
    if code is None:
        return None
    try:
        raw = _Struct(f"={len(values)}{code}").pack(*values)
    except struct.error:
        return None
    if code == "d" and not (np.abs(np.frombuffer(raw)) < _EXACT_INTEGER).all():
        return None
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(raw)])
