"""What a sync costs of a mirror that is published as Delta tables, by the size of its table."""

import statistics
from collections.abc import Iterator

from benchmarks.orders import Orders, orders
from benchmarks.timing import prove, timed

SMALL = 100_000
#: Rows of the large table; of a history fewer, as it takes longer to make.
LARGE = {"destructive": 10_000_000, "temporal": 5_000_000}
CHANGES = 10_000
ROUNDS = 7

Figure = tuple[str, str]


def measure() -> Iterator[Figure]:
    """Compare syncs, and publications after them, of a small and of a large table."""
    found: dict[tuple[str, int], dict[str, float]] = {}
    for mode, most in LARGE.items():
        for rows in (SMALL, most):
            with orders(rows) as table:
                found[mode, rows] = _seconds(table, mode)
    for mode, rows in LARGE.items():
        small, large = found[mode, SMALL], found[mode, rows]
        for what, fast in small.items():
            yield (
                f"{mode}: {what}, {rows:,} rows against {SMALL:,}",
                f"{large[what]:.3f} s CPU against {fast:.3f}: {large[what] / fast:.1f} x",
            )


def _seconds(table: Orders, mode: str) -> dict[str, float]:
    """Return seconds of CPU: the median of some syncs, and one publication of all of them."""
    syncs = []
    htap = table.open(mode, storage="delta")
    htap.sync_now()
    for _ in range(ROUNDS):
        table.change(CHANGES)
        with timed() as timing:
            htap.sync_now()
        syncs.append(timing.cpu_seconds)
    with timed() as published:  # before a proof: what a verify had counted would end in it
        htap.close()
    with table.open(mode, storage="delta") as again:
        prove(again)
    return {
        f"a sync of {CHANGES:,} changes": statistics.median(syncs),
        f"publishing after {ROUNDS} of them": published.cpu_seconds,
    }
