"""Collects rows into portions that are bounded by row count and bytes."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")

#: Bytes that a portion has at most, however few rows that are; a larger row is a portion by itself.
#: What becomes of it on its way into the mirror takes several times as much.
PORTION_BYTES = 32 * 2**20
#: Bytes of rows beyond which one value is large: batches of others have half as many.
LARGE_BYTES = 2 * PORTION_BYTES
#: Rows asked for before their size is looked at.
_STEP = 256


def portions(
    take: Callable[[int], Sequence[Item]],
    size_of: Callable[[Sequence[Item]], int],
    most: int | None,
) -> Iterator[list[Item]]:
    """Yield portions until `take` returns nothing.

    Args:
        take: Returns up to this many next items; none at the end.
        size_of: Returns their approximate size in memory, in bytes.
        most: Maximum number of items; None: only bytes are limited.
    """
    portion: list[Item] = []
    held, step = 0, 1
    while items := take(step):
        count, size = len(items), size_of(items)
        portion += items
        del items
        held += size
        by_size = (PORTION_BYTES - held) * count // max(size, 1)
        if len(portion) == most or by_size < 1:
            yield portion
            portion, held = [], 0  # let go of it before the next one is read
            by_size = PORTION_BYTES * count // max(size, 1)
        left = _STEP if most is None else most - len(portion)
        step = max(1, min(2 * step, _STEP, left, by_size))
    if portion:
        yield portion
