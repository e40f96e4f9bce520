"""Gives memory that is free back to the operating system, which allocators keep for later."""

import time
from collections.abc import Callable

from rhei_pipeline.model.large_rows import give_back_freed

#: It takes a few milliseconds.
EVERY_SECONDS = 1.0


class FreeMemory:
    """Returns free memory now and then: else a process keeps what its largest cycle took.

    Args:
        clock: Returns seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._returned_at = clock()

    def give_back(self) -> bool:
        """Return what is free, unless that was done just now; return whether it was done."""
        if self._clock() - self._returned_at < EVERY_SECONDS:
            return False
        give_back_freed()
        self._returned_at = self._clock()
        return True
