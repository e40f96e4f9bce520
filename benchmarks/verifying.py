"""What comparing every row costs, and finding one that differs."""

import statistics
from collections.abc import Iterator

import rhei_pipeline as rhei
from benchmarks import postgres
from benchmarks.orders import orders
from benchmarks.timing import DIFFER, timed

ROWS, ROUNDS = 1_000_000, 3


def measure() -> Iterator[tuple[str, str]]:
    """Compare a million rows of each source with a DuckDB mirror."""
    for mode in ("destructive", "temporal"):
        with orders(ROWS) as table, table.open(mode) as htap:
            htap.sync_now()
            yield f"SQLite, {mode}: verify", _rate(htap)
    with postgres.orders() as (_, dsn, directory):
        for mode in ("destructive", "temporal"):
            with rhei.open(postgres.settings(dsn, directory, mode)) as htap:
                htap.sync_now()
                yield f"PostgreSQL, {mode}: verify", _rate(htap)


def _rate(htap: rhei.HTAP) -> str:
    taken = []
    for _ in range(ROUNDS):
        with timed() as timing:
            found = htap.verify()
        if not found.equal or found.tables["orders"].rows != ROWS:
            raise SystemExit(DIFFER)
        taken.append((timing.cpu_seconds, timing.wall_seconds))
    cpu, wall = (statistics.median(part) for part in zip(*taken, strict=True))
    return f"{ROWS / cpu:,.0f} rows/s CPU, {ROWS / wall:,.0f} by the clock"
