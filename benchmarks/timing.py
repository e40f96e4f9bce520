"""How long things take: CPU time is ours alone, also where the machine is shared."""

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processor import cpu_seconds
from rhei_pipeline import HTAP

DIFFER = "source and mirror differ: these figures are worth nothing"


@dataclass
class Timing:
    """Seconds a block took; zero while it runs."""

    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0


@contextmanager
def timed() -> Iterator[Timing]:
    """Time a block."""
    timing = Timing()
    cpu, wall = cpu_seconds(), time.perf_counter()
    yield timing
    timing.cpu_seconds = cpu_seconds() - cpu
    timing.wall_seconds = time.perf_counter() - wall


def server_seconds(data: Path) -> float:
    """Return the CPU seconds of a PostgreSQL server's processes, also of those that have ended."""
    head = (data / "postmaster.pid").read_text().split()[0]
    ticks = 0
    for process in Path("/proc").iterdir():
        try:
            fields = (process / "stat").read_text().rpartition(")")[2].split()
        except (OSError, ValueError):
            continue
        if process.name == head:
            ticks += sum(map(int, fields[11:15]))  # with its children that have ended
        elif fields[1] == head:
            ticks += sum(map(int, fields[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def median(act: Callable[[], object], times: int) -> float:
    """Return the median seconds of so many calls, after one that does not count."""
    act()
    found = []
    for _ in range(times):
        started = time.perf_counter()
        act()
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def prove(htap: HTAP) -> None:
    """End the run unless the mirror is equal to the source: its figures were worth nothing."""
    if not htap.verify().equal:
        raise SystemExit(DIFFER)


def peak_megabytes() -> float:
    """Return the most memory that this process has had."""
    # Not getrusage: its peak is inherited from the process that started this one.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024
