"""What a sync costs of a mirror that is published as Delta tables, by the size of its table."""

import statistics
from collections.abc import Iterator, Sequence

from benchmarks.orders import Orders, orders
from benchmarks.timing import prove, timed

SMALL, LARGE = 100_000, 10_000_000
CHANGES = 10_000
#: Where changes are: anywhere, or among rows that follow each other.
WHERE = {"at random": None, "near each other": 40_000}
ROUNDS = 5

Figure = tuple[str, str]


def measure() -> Iterator[Figure]:
    """Compare syncs, and the publication after each, of a small and of a large table in turns."""
    for mode in ("destructive", "temporal"):
        for vectors in (True, False):
            kind = f"{mode}, {'with' if vectors else 'without'} vectors"
            with orders(SMALL) as small, orders(LARGE) as large:
                found = _seconds([small, large], mode, vectors=vectors)
            for what, (fast, slow) in found.items():
                yield (
                    f"{kind}: {what}, {LARGE:,} rows against {SMALL:,}",
                    f"{slow:.3f} s CPU against {fast:.3f}: {slow / fast:.1f} x",
                )


def _seconds(tables: Sequence[Orders], mode: str, *, vectors: bool) -> dict[str, list[float]]:
    """Return seconds of CPU of each table: the median of some syncs, and of publications."""
    found: dict[str, list[float]] = {}
    for table in tables:
        table.open(mode, storage="delta", vectors=vectors).close()
    for where, among in reversed(WHERE.items()):
        rounds = [
            [_round(table, mode, among, vectors=vectors) for table in tables]
            for _ in range(ROUNDS + 1)
        ][1:]  # the first one publishes all rows
        syncs, publications = (
            [statistics.median(each[at][part] for each in rounds) for at in range(len(tables))]
            for part in range(2)
        )
        found[f"a sync of {CHANGES:,} changes {where}"] = syncs
        found[f"publishing after it, changes {where}"] = publications
    for table in tables:  # what it counts is no cost
        with table.open(mode, storage="delta", vectors=vectors) as again:
            prove(again)
    return found


def _round(table: Orders, mode: str, among: int | None, *, vectors: bool) -> tuple[float, float]:
    """Return seconds of CPU of a sync, and of the publication after it."""
    with table.open(mode, storage="delta", vectors=vectors) as htap:
        htap.sync_now()
        table.change(CHANGES, among)
        with timed() as synced:
            htap.sync_now()
        with timed() as published:
            htap.close()
    return synced.cpu_seconds, published.cpu_seconds
