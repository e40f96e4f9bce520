"""Process CPU time and wall time of a block: the machine may be shared, CPU time is ours alone."""

import time
from collections.abc import Iterator
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
