"""Rows that did not fit, and fit again within the same batch."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from rhei_pipeline.changes.compaction import key_codes
from rhei_pipeline.model.changes import DeadLetter
from rhei_pipeline.sources.rejections import Rejection


def mended(
    keys: pa.Table, rejections: Sequence[Rejection], letters: Sequence[DeadLetter]
) -> tuple[tuple[str, str | None], ...]:
    """Return the keys whose last event in a batch fits, though an earlier one did not.

    With the column if only that one fits in the end, else with None.

    Args:
        keys: The keys of all events in order, those that were rejected among them.
        rejections: The rows of these that do not fit.
        letters: The dead letter of each rejection.
    """
    if not rejections:
        return ()
    _, codes = np.unique(_codes(keys, rejections, letters), return_inverse=True)
    last = np.zeros(len(codes), dtype=np.int64)
    np.maximum.at(last, codes, np.arange(len(codes)))
    unfit: dict[int, set[str]] = {}
    for rejection in rejections:
        unfit.setdefault(rejection.row, set()).add(rejection.column)
    found: dict[tuple[str, str | None], None] = {}
    for rejection, letter in zip(rejections, letters, strict=True):
        columns = unfit.get(int(last[codes[rejection.row]]))
        if columns is None:
            found[letter.key, None] = None
        elif letter.column not in columns:
            found[letter.key, letter.column] = None
    return tuple(found)


def _codes(
    keys: pa.Table, rejections: Sequence[Rejection], letters: Sequence[DeadLetter]
) -> np.ndarray:
    """Return a number for each key; one that does not fit, and is null here, has its letter's."""
    numbers: dict[str, int] = {}
    codes = key_codes(keys)
    for rejection, letter in zip(rejections, letters, strict=True):
        if rejection.column in keys.column_names:
            codes[rejection.row] = -1 - numbers.setdefault(letter.key, len(numbers))
    return codes
