"""How long things take: CPU time is ours alone, also where the machine is shared."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Timing:
    """Seconds a block took; zero while it runs."""

    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0


@contextmanager
def timed() -> Iterator[Timing]:
    """Time a block."""
    timing = Timing()
    cpu, wall = time.process_time(), time.perf_counter()
    yield timing
    timing.cpu_seconds = time.process_time() - cpu
    timing.wall_seconds = time.perf_counter() - wall


def median(act: Callable[[], object], times: int) -> float:
    """Return the median seconds of so many calls, after one that does not count."""
    act()
    found = []
    for _ in range(times):
        started = time.perf_counter()
        act()
        found.append(time.perf_counter() - started)
    return statistics.median(found)
