"""Whether a process that syncs for days grows: its memory, log files and handles, plotted as text.

`python -m benchmarks.memory [CYCLES [WAY MIRROR MODE]]`, such as `3600 "SQLite, triggers" duckdb
temporal`. Growth follows cycles and changes, not the clock, so cycles follow each other at once;
3600 of them have as many changes as an hour of 200 updates a second.
"""

import gc
import multiprocessing
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


def measure(way: str, mirror: str, mode: str, cycles: int) -> list[Sample]:
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
        settings = _settings(application, capture, directory, mirror, mode)
        htap = stack.enter_context(rhei.open(settings))
        return list(_samples(application, htap, directory, cycles))


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
) -> Iterator[Sample]:
    htap.sync_now()
    changes, every = 0, max(cycles // SAMPLES, 1)
    for cycle in range(cycles):
        some = application.series(cycle * UPDATES, UPDATES)
        changes += application.run(_CHANGE.replace("{series}", some), cycle, ROWS)
        htap.sync_now()
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


def _print(pair: tuple[str, str, str], cycles: int) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as process:
        samples = process.apply(measure, (*pair, cycles))
    megabyte = 2**20
    grown = growth_an_hour(samples) / megabyte
    print(
        f"{pair[0]} -> {pair[1]}, {pair[2]}: {samples[-1].changes:,} changes;"
        f" {grown:+.1f} MB an hour of 200 updates/s"
    )
    print(plot("RSS, MB", [sample.resident for sample in samples], megabyte))
    print(plot("WAL, MB", [sample.logged for sample in samples], megabyte))
    print(plot("handles", [sample.handles for sample in samples]))
    print(plot("objects", [sample.objects for sample in samples]), flush=True)


if __name__ == "__main__":
    asked = int(sys.argv[1]) if len(sys.argv) > 1 else CYCLES
    named = tuple(sys.argv[2:])
    for pair in PAIRS:
        if named in ((), pair):
            _print(pair, asked)
