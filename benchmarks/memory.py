"""Whether a process that syncs for days grows: its memory, log files and handles, plotted as text.

`python -m benchmarks.memory [CYCLES[xUPDATES] [WAY MIRROR MODE]]`, such as `2400x1000 "SQLite,
triggers" duckdb temporal`. Growth follows cycles and changes, not the clock, so cycles follow each
other at once; 3600 of 200 updates have as many changes as an hour of 200 updates a second.
"""

import gc
import multiprocessing
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import rhei_pipeline as rhei
from benchmarks.capture import WAYS, PostgresApplication, SqliteApplication, new_application
from examples.postgres_server import Server
from rhei_pipeline.mirrors.duckdb import connecting

CYCLES, UPDATES, ROWS, SAMPLES = 3_600, 200, 10_000, 90
HOUR_OF_UPDATES = 720_000
#: Each way to capture with a mirror, and each mirror with a way to capture.
PAIRS = (
    *((name, "duckdb", "temporal") for name, *_ in WAYS),
    ("SQLite, triggers", "duckdb", "destructive"),
    ("SQLite, triggers", "parquet", "temporal"),
    ("SQLite, triggers", "ipc", "destructive"),
    ("SQLite, triggers", "delta", "temporal"),
    ("SQLite, triggers", "memory", "destructive"),
    ("PostgreSQL, its log", "parquet", "temporal"),
    ("PostgreSQL, its log", "ipc", "destructive"),
    ("PostgreSQL, its log", "delta", "temporal"),
)
_CREATE = (
    "create table orders(id integer primary key, status text, amount {real}, updated_at {stamp})"
)
_CHANGE = (
    "update orders set amount = amount + 1, status = 'state ' || (id % 7), updated_at = {now}"
    " where id in (select (cast(value as bigint) * 7919 + ?) % ? from {series})"
)
_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Sample:
    """What a process takes after so many changes."""

    changes: int
    resident: int
    logged: int
    handles: int
    objects: int


#: How long the log of a DuckDB mirror gets here: a sixteenth of else, for many teeth in short time.
CHECKPOINT = "4MB"
#: Fewer teeth do not tell a trend from what is by chance.
LEAST_TEETH = 12


class Teeth:
    """The most memory between two checkpoints, each of which gives memory and log back.

    Attributes:
        peaks: The most bytes of each tooth that is whole.
    """

    def __init__(self) -> None:
        self.peaks: list[int] = []
        self._logged = self._peak = 0
        self._is_whole = False

    def add(self, resident: int, logged: int) -> None:
        """Note what a process takes, and how long its mirror's log is."""
        if logged < self._logged:
            if self._is_whole:
                self.peaks.append(self._peak)
            self._is_whole, self._peak = True, 0
        self._logged, self._peak = logged, max(self._peak, resident)

    def __str__(self) -> str:
        if len(self.peaks) < LEAST_TEETH:
            return f"{len(self.peaks)} checkpoints are too few to say whether it is flat"
        third = len(self.peaks) // 3
        middle, last = self.peaks[third : 2 * third], self.peaks[-third:]
        before, now = statistics.median(middle), statistics.median(last)
        # Not of all of them: what grows spreads by that alone.
        low, _, high = statistics.quantiles(middle, n=4)
        spread = high - low
        told = "flat" if now - before <= spread else "GROWN"
        return (
            f"{told}: peaks between checkpoints {before / 2**20:.0f} MB, then {now / 2**20:.0f}"
            f" (medians of {third} each, half of which lie within"
            f" {spread / 2**20:.1f})"
        )


def measure(
    way: str, mirror: str, mode: str, cycles: int, updates: int
) -> tuple[list[Sample], Teeth]:
    """Sync so many cycles, one pair in a process of its own; return samples in between."""
    _, kind, capture = next(known for known in WAYS if known[0] == way)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="rhei-memory-")))
        application: SqliteApplication | PostgresApplication
        if kind == "sqlite":
            application = SqliteApplication(directory / "app.db")
        else:
            server = Server(directory / "server")
            stack.callback(server.stop)
            application = new_application(kind, directory, server, "shop")
        stack.callback(application.close)
        _fill(application)
        connecting.CONFIG["checkpoint_threshold"] = CHECKPOINT
        settings = _settings(application, capture, directory, mirror, mode)
        htap = stack.enter_context(rhei.open(settings))
        teeth = Teeth()
        return list(_samples(application, htap, directory, cycles, updates, teeth)), teeth


def _fill(application: SqliteApplication | PostgresApplication) -> None:
    application.run(_CREATE.format(**application.TYPES))
    rows = application.series(0, ROWS)
    application.run(f"insert into orders select value, 'new', value / 7.0, {{now}} from {rows}")


def _settings(
    application: SqliteApplication | PostgresApplication,
    capture: dict[str, Any],
    directory: Path,
    mirror: str,
    mode: str,
) -> rhei.Settings:
    table: dict[str, Any] = {"name": "orders", "mode": mode}
    if capture["method"] == "polling":
        table["polling"] = {"updated_at": "updated_at", "deletes": "disabled"}
    if "buffer" in capture:
        capture = {**capture, "buffer": {"path": directory / "buffer"}}
    declared: dict[str, Any] = {"path": directory / "mirror"}
    if mirror != "duckdb":
        declared |= {"kind": "datafusion", "storage": mirror}
    return rhei.Settings(
        source=application.source(),
        capture=capture,
        mirror=declared,
        registry={"path": directory / "registry.json"},
        tables=[table],
    )


def _samples(
    application: SqliteApplication | PostgresApplication,
    htap: rhei.HTAP,
    directory: Path,
    cycles: int,
    updates: int,
    teeth: Teeth,
) -> Iterator[Sample]:
    htap.sync_now()
    changes, every = 0, max(cycles // SAMPLES, 1)
    for cycle in range(cycles):
        some = application.series(cycle * updates, updates)
        changes += application.run(_CHANGE.replace("{series}", some), cycle, ROWS)
        htap.sync_now()
        log = directory / "mirror.wal"
        teeth.add(_resident(), log.stat().st_size if log.exists() else 0)
        if (cycle + 1) % every == 0:
            gc.collect()
            yield Sample(
                changes,
                _resident(),
                sum(file.stat().st_size for file in directory.glob("*wal")),
                len(list(Path("/proc/self/fd").iterdir())),
                sys.getallocatedblocks(),
            )


def _resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def growth_an_hour(samples: Sequence[Sample]) -> float:
    """Return the bytes that an hour of updates adds once the process has warmed up.

    Checkpoints and merges make teeth, so the least of two thirds are compared.
    """
    third = len(samples) // 3
    middle, last = samples[third : 2 * third], samples[2 * third :]
    low, high = (min(part, key=lambda sample: sample.resident) for part in (middle, last))
    grown = (high.resident - low.resident) / (high.changes - low.changes)
    return grown * HOUR_OF_UPDATES


def plot(name: str, values: Sequence[int], unit: int = 1) -> str:
    """Return a line of bars, between its least and its highest value."""
    low, high = min(values), max(values)
    step = max(high - low, 1) / (len(_BARS) - 1)
    bars = "".join(_BARS[round((value - low) / step)] for value in values)
    return f"  {name:<8} {low / unit:>7.0f} {bars} {high / unit:.0f}"


def _print(pair: tuple[str, str, str], cycles: int, updates: int) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as process:
        samples, teeth = process.apply(measure, (*pair, cycles, updates))
    megabyte = 2**20
    grown = growth_an_hour(samples) / megabyte
    print(
        f"{pair[0]} -> {pair[1]}, {pair[2]}: {samples[-1].changes:,} changes;"
        f" {grown:+.1f} MB an hour of 200 updates/s"
    )
    if pair[1] == "duckdb":
        print(f"  {teeth}")
    print(plot("RSS, MB", [sample.resident for sample in samples], megabyte))
    print(plot("WAL, MB", [sample.logged for sample in samples], megabyte))
    print(plot("handles", [sample.handles for sample in samples]))
    print(plot("objects", [sample.objects for sample in samples]), flush=True)


if __name__ == "__main__":
    cycles, _, updates = (sys.argv[1] if len(sys.argv) > 1 else str(CYCLES)).partition("x")
    named = tuple(sys.argv[2:])
    for pair in PAIRS:
        if named in ((), pair):
            _print(pair, int(cycles), int(updates or UPDATES))
