"""`make bench-quick`: our CPU against the floor's, compared with the committed baseline.

Both take turns on the same changes in one run, so that the machine cancels out.
"""

import json
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import rhei_pipeline as rhei
from benchmarks.floor import Floor
from benchmarks.orders import Orders, orders
from benchmarks.timing import prove, timed

BASELINE = Path(__file__).with_name("baseline.json")
#: How much more than its baseline a ratio may be. On a busy machine, two runs of the same code have
#: differed by up to a quarter.
ALLOWED = 1.33
SMALL_CHANGES = 10

#: What is measured: a name, the mode, and the storage of a mirror in files.
WORLDS = (
    ("DuckDB", "destructive", None),
    ("DuckDB, temporal", "temporal", None),
    ("Parquet", "destructive", "parquet"),
)

Ratios = dict[str, float]


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    rows: int = 100_000
    copies: int = 3
    rounds: int = 7
    changes: int = 10_000
    small_cycles: int = 20


def measure(size: Size) -> Ratios:
    """Return by its name each ratio of our CPU to the floor's."""
    found: Ratios = {}
    for name, mode, storage in WORLDS:
        pairs: dict[str, list[float]] = {}
        for _ in range(size.copies):
            with _world(size.rows, mode, storage) as (_table, htap, floor):
                copied = pairs.setdefault("first copy", [])
                copied.append(_cpu(htap.sync_now) / _cpu(floor.copy))
                prove(htap)
                floor.prove()
        with _world(size.rows, mode, storage) as (table, htap, floor):
            htap.sync_now()
            floor.copy()
            for _ in range(size.rounds):
                for case, ratio in _turn(table, htap, floor, size):
                    pairs.setdefault(case, []).append(ratio)
            prove(htap)
            floor.prove()
        found |= {f"{name}: {case}": statistics.median(of) for case, of in pairs.items()}
    return found


@contextmanager
def _world(rows: int, mode: str, storage: str | None) -> Iterator[tuple[Orders, rhei.HTAP, Floor]]:
    with (
        orders(rows) as table,
        table.open(mode, storage=storage) as htap,
        closing(Floor(table.path, table.directory / "floor.duckdb")) as floor,
    ):
        yield table, htap, floor


def _turn(table: Orders, htap: rhei.HTAP, floor: Floor, size: Size) -> Iterator[tuple[str, float]]:
    table.change(size.changes)
    yield "many changes", _cpu(htap.sync_now) / _cpu(floor.sync)
    ours = floors = 0.0
    for _ in range(size.small_cycles):
        table.change(SMALL_CHANGES)
        ours += _cpu(htap.sync_now)
        floors += _cpu(floor.sync)
    yield f"{SMALL_CHANGES} changes", ours / floors
    # The floor's question whether there is anything is too short to be measured. Ours is short,
    # too, and asked more often.
    idle = sum(_cpu(htap.sync_now) for _ in range(size.small_cycles * 10)) / 10
    yield f"nothing to do, against the floor's {SMALL_CHANGES} changes", idle / floors


def _cpu(act: Callable[[], object]) -> float:
    with timed() as timing:
        act()
    return timing.cpu_seconds


def slower(found: Mapping[str, float], baseline: Mapping[str, float]) -> list[str]:
    """Return a sentence for each case that got slower, or that was not measured."""
    lines = [
        f"{case}: {found[case]:.3g} x the floor, {found[case] / was:.2f} x the baseline ({was:.3g})"
        for case, was in baseline.items()
        if case in found and found[case] > was * ALLOWED
    ]
    return lines + [f"{case}: not measured" for case in baseline if case not in found]


def judge(found: Mapping[str, float], file: Path) -> int:
    """Print each ratio beside the baseline's and what got slower; return 1 if anything did."""
    baseline: Ratios = json.loads(file.read_text())
    for case, ratio in found.items():
        was = f"{baseline[case]:.3g}" if case in baseline else "none"
        print(f"{case}: {ratio:.3g} x the floor (baseline: {was})")
    lines = slower(found, baseline)
    print("\n".join(["", "Slower:", *lines]) if lines else "\nNothing got slower.")
    return 1 if lines else 0


def main() -> int:
    """Measure, and judge; or with `--write` make what is measured the baseline."""
    found = measure(Size())
    if "--write" in sys.argv:
        rounded = {case: round(ratio, 4) for case, ratio in found.items()}
        BASELINE.write_text(json.dumps(rounded, indent=2) + "\n")
        return 0
    return judge(found, BASELINE)


if __name__ == "__main__":
    sys.exit(main())
