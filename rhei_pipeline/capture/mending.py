"""Rows that did not fit, and did again before anyone looked."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from rhei_pipeline.compaction import key_codes
from rhei_pipeline.events import DeadLetter
from rhei_pipeline.oltp.rejections import Rejection


def mended(
    keys: pa.Table, rejections: Sequence[Rejection], letters: Sequence[DeadLetter]
) -> tuple[str, ...]:
    """Return the keys whose last event in a batch fits, though an earlier one did not.

    Args:
        keys: The keys of all events in order, those that were rejected among them.
        rejections: The rows of these that do not fit.
        letters: The dead letter of each rejection.
    """
    if not rejections:
        return ()
    _, codes = np.unique(key_codes(keys), return_inverse=True)
    last = np.zeros(len(codes), dtype=np.int64)
    np.maximum.at(last, codes, np.arange(len(codes)))
    unfit = {rejection.row for rejection in rejections}
    found = (
        letter.key
        for rejection, letter in zip(rejections, letters, strict=True)
        if last[codes[rejection.row]] not in unfit
    )
    return tuple(dict.fromkeys(found))
