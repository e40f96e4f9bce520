"""What is chosen of how a sync works."""

from collections.abc import Callable
from dataclasses import dataclass

from rhei_pipeline.model.retention import LetterBounds


def _unbounded(_table: str) -> LetterBounds:
    return LetterBounds()


def _in_one(_table: str) -> int:
    return 1


@dataclass(frozen=True, slots=True)
class SyncOptions:
    """How many rows a sync holds at once, whether it prunes the source, and what it may keep.

    Attributes:
        batch_rows: About how many rows are held in memory; never a limit to what is atomic.
        prune: Let the source forget what no mirror needs.
        letter_bounds: Returns how many dead letters a table may have, by its name.
        copy_ranges: Returns into how many ranges a table's copy is cut, by its name.
    """

    batch_rows: int = 50_000
    prune: bool = True
    letter_bounds: Callable[[str], LetterBounds] = _unbounded
    copy_ranges: Callable[[str], int] = _in_one
