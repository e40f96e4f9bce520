"""Measure and report: `make bench`, or `python -m benchmarks.run` and some chapters' names."""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import (
    capture,
    contenders,
    delta,
    door,
    holder,
    many_tables,
    mirrors,
    object_store,
    postgres,
    sysbench,
    verifying,
    visible,
    wide,
)
from benchmarks.orders import Orders, orders
from benchmarks.report import Chapter, write
from benchmarks.timing import peak_megabytes, prove, timed

MODES = ("destructive", "temporal")
ROUNDS = 3

Figure = tuple[str, str]


def cycles() -> Iterator[Figure]:
    """Measure whole cycles, poll to acknowledge."""
    small: dict[tuple[str, int], float] = {}
    for mode in MODES:
        for rows in (100_000, 1_000_000):
            with orders(rows) as table:
                htap = table.open(mode)
                htap.sync_now()
                small[mode, rows] = _cycle(table, htap.sync_now, 10_000)[1]
                if rows == 1_000_000:
                    rate, seconds = _cycle(table, htap.sync_now, 100_000)
                    yield (
                        f"{mode}: 100,000 mixed changes on 1,000,000 rows",
                        f"{rate:,.0f} changes/s CPU, {seconds * 1000:,.0f} ms",
                    )
                    prove(htap)
                htap.close()
        fast, slow = small[mode, 100_000], small[mode, 1_000_000]
        yield (
            f"{mode}: 10,000 changes on 1,000,000 against 100,000 rows",
            f"{slow * 1000:,.0f} ms against {fast * 1000:,.0f} ms: {slow / fast:.1f} x",
        )


def _cycle(
    table: Orders, sync: Callable[[], object], count: int, rounds: int = ROUNDS
) -> tuple[float, float]:
    """Return changes per second of CPU and wall seconds, the medians of some rounds."""
    rates, walls = [], []
    for _ in range(rounds):
        table.change(count)
        with timed() as timing:
            sync()
        rates.append(count / timing.cpu_seconds)
        walls.append(timing.wall_seconds)
    return statistics.median(rates), statistics.median(walls)


def buffer() -> Iterator[Figure]:
    """Measure cycles through a buffer against direct ones, turn by turn."""
    count = 100_000
    for mode in MODES:
        with orders(1_000_000) as direct, orders(1_000_000) as buffered:
            tables = {"direct": direct, "buffered": buffered}
            pipelines = {
                name: table.open(mode, buffered=table is buffered) for name, table in tables.items()
            }
            for htap in pipelines.values():
                htap.sync_now()
            turns = [
                {name: _cycle(tables[name], htap.sync_now, count, rounds=1) for name, htap in pair}
                for pair in [pipelines.items()] * ROUNDS
            ]
            for htap in pipelines.values():
                prove(htap)
                htap.close()
        cpu = {name: statistics.median(turn[name][0] for turn in turns) for name in tables}
        wall = {name: statistics.median(turn[name][1] for turn in turns) for name in tables}
        yield (
            f"{mode}: 100,000 changes on 1,000,000 rows, buffered against direct",
            f"{cpu['buffered'] / cpu['direct']:.2f} x CPU throughput,"
            f" {wall['direct'] / wall['buffered']:.2f} x by the clock"
            f" ({cpu['buffered']:,.0f} changes/s CPU, {wall['buffered'] * 1000:,.0f} ms)",
        )


def copy() -> Iterator[Figure]:
    """Measure the initial sync, in a process of its own so that its memory can be told."""
    peaks = {}
    for rows in (250_000, 1_000_000):
        rate, before, peak = _in_a_process(f"copy_once({rows})")
        peaks[rows] = peak - before
        yield (
            f"initial sync of {rows:,} rows",
            f"{rate:,.0f} rows/s CPU, peak memory {peak - before:,.0f} MB above the start",
        )
    yield ("memory for 4 x the rows", f"{peaks[1_000_000] / peaks[250_000]:.1f} x")


def copy_once(rows: int) -> None:
    """Copy a table and print rows per second, memory before and its peak in megabytes."""
    with orders(rows) as table, table.open() as htap:
        before = peak_megabytes()
        with timed() as timing:
            htap.sync_now()
        print(rows / timing.cpu_seconds, before, peak_megabytes())
        prove(htap)


def _in_a_process(call: str) -> list[float]:
    code = f"from benchmarks.run import *; {call}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [float(part) for part in done.stdout.split()]


def columns() -> Iterator[Figure]:
    """Measure syncs that follow an added column: with a default, then without one."""
    for storage in (None, "parquet"):
        seconds = {}
        for rows in (10_000, 1_000_000):
            with orders(rows) as table, table.open(storage=storage) as htap:
                htap.sync_now()
                for default in (" default 7", ""):
                    name = f"c{len(default)}"
                    table.connection.execute(f"alter table orders add {name} integer{default}")
                    with timed() as timing:
                        htap.sync_now()
                    seconds[rows, default] = timing.wall_seconds
                prove(htap)
        for default in (" default 7", ""):
            few, many = (seconds[rows, default] for rows in (10_000, 1_000_000))
            yield (
                f"{storage or 'duckdb'}: a column added{default}, 1,000,000 against 10,000 rows",
                f"{many * 1000:,.0f} ms against {few * 1000:,.0f} ms",
            )


def idle() -> Iterator[Figure]:
    """Measure a cycle with nothing to do."""
    with orders(100_000) as table, table.open() as htap:
        htap.sync_now()
        with timed() as timing:
            for _ in range(1000):
                htap.sync_now()
        prove(htap)
        yield ("a cycle with nothing to do", f"{timing.cpu_seconds:.2f} ms")


def triggers() -> Iterator[Figure]:
    """Measure bulk inserts with capture against without."""
    count = 300_000
    seconds: dict[str, list[float]] = {name: [] for name in ("none", *MODES)}
    for _ in range(ROUNDS):
        for name, found in seconds.items():
            with orders(1000) as table:
                if name != "none":
                    with table.open(name) as htap:
                        htap.sync_now()
                with timed() as timing:
                    table.insert(count, first=10_000)
                found.append(timing.cpu_seconds)
    none = min(seconds["none"])
    for name in MODES:
        yield (
            f"{name}: bulk inserts against no trigger",
            f"{min(seconds[name]) / none:.2f} x ({count / none:,.0f} rows/s without)",
        )


_MODULES = (
    mirrors,
    object_store,
    delta,
    postgres,
    sysbench,
    capture,
    many_tables,
    door,
    holder,
    verifying,
    visible,
    wide,
    contenders,
)
CHAPTERS: dict[str, Callable[[], Iterator[Figure]]] = {
    part.__name__: part for part in (cycles, buffer, copy, columns, idle, triggers)
} | {part.__name__.rpartition(".")[2]: part.measure for part in _MODULES}


def chapter(name: str) -> None:
    """Measure a chapter and print it, as JSON: it has this process for itself."""
    with timed() as timing:
        figures = [list(figure) for figure in CHAPTERS[name]()]
    print(json.dumps([figures, timing.cpu_seconds, timing.wall_seconds, peak_megabytes()]))


def _measured(name: str) -> Chapter:
    code = f"from benchmarks.run import chapter; chapter({name!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        return Chapter(name, failure=done.stderr.strip().rpartition("\n")[2])
    figures, cpu, wall, peak = json.loads(done.stdout.splitlines()[-1])
    return Chapter(name, [tuple(figure) for figure in figures], cpu, wall, peak)


def main() -> int:
    """Measure what is named, or all; print it, write the report, and return how it ended."""
    console, chapters = Console(), []
    for name in sys.argv[1:] or CHAPTERS:
        with console.status(f"measuring {name} ..."):
            chapters.append(_measured(name))
    shown = Table("measured", "figure")
    for found in chapters:
        for row in found.figures:
            shown.add_row(*row)
    console.print(shown)
    for file in write(chapters, Path("build/bench")):
        console.print(f"written: {file}")
    failed = [found for found in chapters if found.failure]
    for found in failed:
        console.print(f"{found.name}: {found.failure}", style="red")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
