"""Collects rows into portions that are bounded by row count and bytes."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Protocol, TypeVar

Item = TypeVar("Item")

#: Bytes that a portion has at most, however few rows that are; a larger row is a portion by itself.
#: What becomes of it on its way into the mirror takes several times as much.
PORTION_BYTES = 32 * 2**20
#: Bytes of rows beyond which one value is large: batches of others have half as many.
LARGE_BYTES = 2 * PORTION_BYTES
#: Items asked for before their size is looked at, and how many times as many as the last time.
_STEP, _GROWTH = 512, 32


class Sized(Protocol):
    """Some items together."""

    def __len__(self) -> int:
        """Return how many items they are."""


Taken = TypeVar("Taken", bound=Sized)


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
    for taken in gathered(take, size_of, most):
        portion = list(chain.from_iterable(taken))
        taken.clear()
        yield portion
        del portion  # let go of it before the next one is read


def gathered(
    take: Callable[[int], Taken], size_of: Callable[[Taken], int], most: int | None
) -> Iterator[list[Taken]]:
    """Yield portions as `portions` does, each as a list of what was taken at once."""
    portion: list[Taken] = []
    count = held = 0
    step = 1
    while items := take(step):
        found, size = len(items), size_of(items)
        portion.append(items)
        del items
        count, held = count + found, held + size
        by_size = (PORTION_BYTES - held) * found // max(size, 1)
        if (most is not None and count >= most) or by_size < 1:
            yield portion
            portion, count, held = [], 0, 0  # let go of it before the next one is read
            by_size = PORTION_BYTES * found // max(size, 1)
        left = _STEP if most is None else most - count
        step = max(1, min(_GROWTH * step, _STEP, left, by_size))
    if portion:
        yield portion
