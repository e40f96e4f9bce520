"""What a sync costs of a mirror that is published as Delta tables, by the size of its table."""

import statistics
from collections.abc import Iterator

from benchmarks.orders import Orders, orders
from benchmarks.timing import prove, timed

SMALL, LARGE = 100_000, 10_000_000
CHANGES = 10_000
#: Where changes are: anywhere, or among rows that follow each other.
WHERE = {"at random": None, "near each other": 40_000}
ROUNDS = 3

Figure = tuple[str, str]


def measure() -> Iterator[Figure]:
    """Compare syncs, and the publication after each, of a small and of a large table."""
    for mode in ("destructive", "temporal"):
        for vectors in (True, False):
            found = {}
            for rows in (SMALL, LARGE):
                with orders(rows) as table:
                    found[rows] = _seconds(table, mode, vectors=vectors)
            small, large = found[SMALL], found[LARGE]
            kind = f"{mode}, {'with' if vectors else 'without'} vectors"
            for what, fast in small.items():
                yield (
                    f"{kind}: {what}, {LARGE:,} rows against {SMALL:,}",
                    f"{large[what]:.3f} s CPU against {fast:.3f}: {large[what] / fast:.1f} x",
                )


def _seconds(table: Orders, mode: str, *, vectors: bool) -> dict[str, float]:
    """Return seconds of CPU: the median of some syncs, and of the publications after them."""
    found: dict[str, float] = {}
    table.open(mode, storage="delta", vectors=vectors).close()
    for where, among in reversed(WHERE.items()):
        syncs, publications = [], []
        for turn in range(ROUNDS + 1):
            with table.open(mode, storage="delta", vectors=vectors) as htap:
                htap.sync_now()
                table.change(CHANGES, among)
                with timed() as synced:
                    htap.sync_now()
                with timed() as published:
                    htap.close()
            if turn:  # the first one publishes all rows
                syncs.append(synced.cpu_seconds)
                publications.append(published.cpu_seconds)
        found[f"a sync of {CHANGES:,} changes {where}"] = statistics.median(syncs)
        found[f"publishing after it, changes {where}"] = statistics.median(publications)
    with table.open(mode, storage="delta", vectors=vectors) as again:  # what it counts is no cost
        prove(again)
    return found
