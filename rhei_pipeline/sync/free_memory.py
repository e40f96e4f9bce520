"""Gives memory that is free back to the operating system, which allocators keep for later."""

import ctypes
import time
from collections.abc import Callable

import pyarrow as pa

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
        # Of the GNU C library alone.
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)

    def give_back(self) -> bool:
        """Return what is free, unless that was done just now; return whether it was done."""
        if self._clock() - self._returned_at < EVERY_SECONDS:
            return False
        pa.default_memory_pool().release_unused()
        if self._trim is not None:
            self._trim(0)
        self._returned_at = self._clock()
        return True
