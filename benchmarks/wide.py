"""What a value of a wide table costs, against one of a narrow table."""

import sqlite3
import statistics
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import rhei_pipeline as rhei
from benchmarks.timing import prove, timed

NARROW, WIDE = 10, 200
ROWS, CHANGES, ROUNDS = 100_000, 10_000, 3


def measure() -> Iterator[tuple[str, str]]:
    """Measure a first copy, and cycles in which a column of some rows changes."""
    found = {width: _microseconds(width) for width in (NARROW, WIDE)}
    for case in ("first copy", f"{CHANGES:,} updates in a cycle"):
        narrow, wide = (found[width][case] for width in (NARROW, WIDE))
        yield (
            f"{case}, {WIDE} columns against {NARROW}",
            f"{wide:.3f} us a value against {narrow:.3f} us: {wide / narrow:.2f} x",
        )


def _microseconds(width: int) -> dict[str, float]:
    """Return the microseconds of CPU for each value of the rows touched."""
    with (
        TemporaryDirectory() as name,
        closing(_filled(Path(name), width)) as source,
        rhei.open(_settings(Path(name))) as htap,
    ):
        with timed() as copying:
            htap.sync_now()
        cycles = []
        for turn in range(ROUNDS):
            source.execute("update t set c1 = c1 + 1 where id % ? = ?", (ROWS // CHANGES, turn))
            with timed() as timing:
                htap.sync_now()
            cycles.append(timing.cpu_seconds)
        prove(htap)
    return {
        "first copy": copying.cpu_seconds / ROWS / width * 1e6,
        f"{CHANGES:,} updates in a cycle": statistics.median(cycles) / CHANGES / width * 1e6,
    }


def _filled(directory: Path, width: int) -> sqlite3.Connection:
    kinds = ("integer", "text", "real")
    columns = [f"c{n} {kinds[n % 3]}" for n in range(1, width)]
    values = {"integer": "i", "text": "'value ' || (i % 1000)", "real": "i / 8.0"}
    chosen = ", ".join(values[column.split()[1]] for column in columns)
    source = sqlite3.connect(directory / "app.db", isolation_level=None)
    source.execute("pragma journal_mode = wal")
    source.execute(f"create table t(id integer primary key, {', '.join(columns)})")
    source.execute(
        "insert into t with recursive s(i) as (select 1 union all select i + 1 from s"
        f" where i < {ROWS}) select i, {chosen} from s"
    )
    return source


def _settings(directory: Path) -> rhei.Settings:
    return rhei.Settings(
        source={"path": directory / "app.db"},
        mirror={"path": directory / "mirror.duckdb"},
        registry={"path": directory / "registry.json"},
        tables=[{"name": "t"}],
    )
