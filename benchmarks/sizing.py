"""What a pipeline costs, measured; and what a larger one needs, worked out of that.

`python -m benchmarks.sizing measure` writes `benchmarks/costs.json`; words that follow, such as
`SQLite DuckDB`, choose what is measured. `check` compares three other runs with what they should
take by it. `plan` prints what some loads need.
"""

import itertools
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import rhei_pipeline as rhei
from benchmarks.capture import PostgresApplication, SqliteApplication
from benchmarks.sizing_model import (
    Costs,
    Load,
    Needs,
    copy_seconds,
    cycle,
    needs,
)
from benchmarks.slow_store import SlowStore
from benchmarks.timing import prove, server_seconds, timed
from examples.postgres_server import Server

Kind = tuple[str, str, str]

KEPT = Path(__file__).with_name("costs.json")
SOURCES = {"SQLite": {"method": "trigger"}, "PostgreSQL": {"method": "logical"}}
MIRRORS = ("DuckDB", "Parquet", "store")
MODES = ("destructive", "temporal")
ROWS, LARGE_ROWS, TABLES = 20_000, 1_500_000, 24
#: The length of a row's note, and about how many bytes a row has with it.
NARROW, WIDE = (30, 70), (1000, 1040)
#: Changed tables, and changes in all of them, of what is measured; the last two on a large table,
#: and on one of long rows.
POINTS = ((1, 10), (1, 3_000), (8, 80), (8, 8_000), (24, 240), (1, 30_000))
CYCLES = 7
#: Cycles after which what is written again later is counted.
FOLDS = 60

_TABLE = (
    "create table {name}(id {integer} primary key, customer_id {integer} not null,"
    " status text not null, amount {real} not null, note text, updated_at {stamp} not null)"
)
_FILL = (
    "insert into {name} select value, value % 1000, 'paid', value / 100.0,"
    " {note}, {now} from {series}"
)
_CHANGES = (
    "update {name} set amount = amount + 1, status = 'sent' where id in"
    " (select {draw} from {updated})",
    "delete from {name} where id in (select {draw} from {deleted})",
    "insert into {name} select value, value % 1000, 'new', 1.5, {note}, {now} from {inserted}",
)
_NOTES = {
    "SQLite": "substr(hex(randomblob({half})), 1, {length})",
    # Of some digits that differ, and as long as is wanted.
    "PostgreSQL": "left(repeat(md5(random()::text), {repeats}), {length})",
}
_DRAWS = {"SQLite": "abs(random()) % {rows} + 1", "PostgreSQL": "(random() * {rows})::int + 1"}


@dataclass
class Places:
    """The servers that are measured against."""

    stack: ExitStack
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.data = Path(self.stack.enter_context(TemporaryDirectory(prefix="rhei-postgres-")))
        self.server = Server(self.data)
        self.stack.callback(self.server.stop)
        self.store = SlowStore()
        self.stack.callback(self.store.stop)


class World:
    """Some tables of one size and their mirror, open."""

    def __init__(
        self,
        places: Places,
        kind: Kind,
        tables: int,
        rows: int,
        note: int = NARROW[0],
    ) -> None:
        source, mirror, mode = kind
        self._source, self._rows, self._note = source, rows, note
        self._next = [rows + 1] * tables
        self.places, self._stack = places, ExitStack()
        number = next(places.numbers)
        self.directory = Path(self._stack.enter_context(TemporaryDirectory()))
        self.mirror = self.directory / "mirror"
        self._application = self._opened(number)
        self._stack.callback(self._application.close)
        for table in range(tables):
            self._run(table, _TABLE)
            self._run(table, _FILL, series=self._application.series(1, rows))
        declared: dict[str, Any] = {"path": self.mirror}
        if mirror == "Parquet":
            declared |= {"kind": "datafusion", "storage": "parquet"}
        elif mirror == "store":
            declared = places.store.settings(f"m{number}")
        self.htap = self._stack.enter_context(
            rhei.open(
                rhei.Settings(
                    source=self._application.source(),
                    capture=SOURCES[source],
                    mirror=declared,
                    mode=mode,
                    registry={"path": self.directory / "registry.json"},
                )
            )
        )

    def _opened(self, number: int) -> SqliteApplication | PostgresApplication:
        if self._source == "SQLite":
            return SqliteApplication(self.directory / "app.db")
        name = f"sized{number}"
        with closing(PostgresApplication(self.places.server.dsn())) as making:
            making.run(f"create database {name}")
        return PostgresApplication(self.places.server.dsn(name))

    def _run(self, table: int, sql: str, **more: str) -> int:
        note = _NOTES[self._source].format(
            half=self._note // 2 + 1, length=self._note, repeats=self._note // 32 + 1
        )
        draw = _DRAWS[self._source].format(rows=self._rows)
        named = {"name": f"t{table}", "note": note, "draw": draw, "now": "{now}"}
        return self._application.run(sql.format(**named, **self._application.TYPES, **more))

    def change(self, tables: int, changes: int) -> int:
        """Change rows of so many tables, half of them updates; return how many it were."""
        each, done = changes // tables, 0
        for table in range(tables):
            series = self._application.series
            counts = {"updated": each // 2, "deleted": each * 15 // 100}
            shown = {name: series(1, max(count, 1)) for name, count in counts.items()}
            inserted = each - sum(counts.values())
            shown["inserted"] = series(self._next[table], max(inserted, 1))
            self._next[table] += max(inserted, 1)
            done += sum(self._run(table, sql, **shown) for sql in _CHANGES)
        return done

    def close(self) -> None:
        """Compare the mirror with its source, and remove both."""
        self.places.store.delay(0)
        prove(self.htap)
        self._stack.close()

    def bytes(self) -> int:
        """Return what the mirror takes on the disk."""
        found = self.mirror.rglob("*") if self.mirror.is_dir() else self.directory.glob("mirror*")
        return sum(file.stat().st_size for file in found if file.is_file())


@contextmanager
def world(
    places: Places, kind: Kind, tables: int, rows: int, note: int = NARROW[0]
) -> Iterator[World]:
    """Make a world, and remove it."""
    made = World(places, kind, tables, rows, note)
    yield made
    made.close()


@dataclass(frozen=True)
class Point:
    """What a cycle took, and of what it was one."""

    tables: float
    changes: float
    row_bytes: float
    table_rows: float
    cpu: float
    server: float
    requests: float


def cycles(made: World, tables: int, changes: int, sizes: tuple[int, int], times: int) -> Point:
    """Return the mean of some cycles, after two that do not count."""
    found = []
    rows, row_bytes = sizes
    for turn in range(times + 2):
        done = made.change(tables, changes)
        made.places.store.delay(0)
        before = server_seconds(made.places.data)
        with timed() as timing:
            made.htap.sync_now()
        server = server_seconds(made.places.data) - before
        requests = sum(n for name, n in made.places.store.delay(0).items() if name != "bytes")
        if turn > 1:
            found.append((done, timing.cpu_seconds, server, requests))
    done, cpu, server, requests = (statistics.mean(each) for each in zip(*found, strict=True))
    return Point(tables, done, row_bytes, rows, cpu, server, requests)


def measured(places: Places, kind: Kind) -> Costs:
    """Measure one combination, and fit what it costs."""
    points: list[Point] = []
    with world(places, kind, TABLES, ROWS) as made:
        with timed() as small:
            made.htap.sync_now()
        for tables, changes in POINTS[:-1]:
            points.append(cycles(made, tables, changes, (ROWS, NARROW[1]), CYCLES))
    with world(places, kind, 1, LARGE_ROWS) as made:
        places.store.delay(0)
        with timed() as copied:
            made.htap.sync_now()
        put = places.store.delay(0).get("bytes", 0)
        stored = (made.bytes() or put) / (LARGE_ROWS * NARROW[1])
        points.append(cycles(made, *POINTS[-1], (LARGE_ROWS, NARROW[1]), CYCLES))
        points.append(cycles(made, 1, 100, (LARGE_ROWS, NARROW[1]), CYCLES))
    with world(places, kind, 1, ROWS * 5, WIDE[0]) as made:
        with timed() as wide:
            made.htap.sync_now()
        points.append(cycles(made, 1, 10_000, (ROWS * 5, WIDE[1]), CYCLES))
    parts = fitted(points, is_scanned=kind[1] == "DuckDB")
    each, wide_each = copied.cpu_seconds / LARGE_ROWS, wide.cpu_seconds / (ROWS * 5)
    copied_byte = max((wide_each - each) / (WIDE[1] - NARROW[1]), 0.0)
    counted = _line([(p.tables, p.requests) for p in points])
    more_tables = small.cpu_seconds - TABLES * ROWS * each
    return Costs(
        **parts,
        copied_table=max(more_tables / (TABLES - 1), 0.0),
        folded=_folded(places, kind, parts),
        copied_row=max(each - copied_byte * NARROW[1], 0.0),
        copied_byte=copied_byte,
        server_change=_line([(p.changes, p.server) for p in points])[1],
        stored=stored,
        requests=counted[0],
        requests_table=counted[1],
        rounds=_rounds(places, kind) if kind[1] == "store" else 0.0,
    )


def fitted(points: Sequence[Point], *, is_scanned: bool) -> dict[str, float]:
    """Return the costs that fit best, each at least 0, by relative errors."""
    columns = {
        "cycle": [1.0 for _ in points],
        "table": [p.tables for p in points],
        "change": [p.changes for p in points],
        "byte": [p.changes * p.row_bytes for p in points],
    }
    if is_scanned:
        columns["scanned"] = [p.tables * p.table_rows for p in points]
    taken = np.array([p.cpu for p in points])
    names = [name for name, column in columns.items() if any(column)]
    while True:
        matrix = np.array([columns[name] for name in names]).T / taken[:, None]
        scale = matrix.max(axis=0)
        found = np.linalg.lstsq(matrix / scale, np.ones(len(points)), rcond=None)[0] / scale
        if found.min() >= 0:
            return {
                **dict.fromkeys([*columns, "scanned"], 0.0),
                **dict(zip(names, map(float, found), strict=True)),
            }
        names.pop(int(found.argmin()))


def _line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return where a line begins, and how much it grows."""
    at, found = np.array(points, dtype=float).T
    slope, start = np.linalg.lstsq(np.array([at, np.ones_like(at)]).T, found, rcond=None)[0]
    return max(float(start), 0.0), max(float(slope), 0.0)


def _folded(places: Places, kind: Kind, parts: dict[str, float]) -> float:
    """Return what is written again later of each changed row, with one nightly maintenance."""
    rows, changes, times = ROWS * 5, ROWS // 10, FOLDS
    with world(places, kind, 1, rows) as made:
        made.htap.sync_now()
        done, seconds = 0, 0.0
        for _ in range(times):
            done += made.change(1, changes)
            with timed() as timing:
                made.htap.sync_now()
            seconds += timing.cpu_seconds
        with timed() as timing:
            made.htap.maintain()
        seconds += timing.cpu_seconds
    plain = Costs(**parts, **dict.fromkeys(_OTHERS, 0.0))
    load = Load(1, rows, NARROW[1], done / times, 1, 1.0, 1.0)
    return max(seconds / times - cycle(plain, load, 1.0).cpu, 0.0) / (done / times)


_OTHERS = ("folded", "copied_table", "copied_row", "copied_byte", "server_change", "stored")


def _rounds(places: Places, kind: Kind) -> float:
    """Return how many requests of a sync of one table wait for one another."""
    delay = 60
    with world(places, kind, 1, 1_000) as made:
        made.htap.sync_now()
        return _delays(made, 1, 10, delay) / delay


def _delays(made: World, tables: int, changes: int, delay: int) -> float:
    """Return by how many milliseconds a sync takes longer where each answer takes so many."""
    more = []
    for _ in range(CYCLES):
        took = []
        for milliseconds in (0, delay):
            made.change(tables, changes)
            made.places.store.delay(milliseconds)
            with timed() as timing:
                made.htap.sync_now()
            took.append(timing.wall_seconds * 1000)
        more.append(took[1] - took[0])
        made.places.store.delay(0)
    return statistics.median(more)


def measure() -> None:
    """Measure all combinations, and keep what they cost."""
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    with ExitStack() as stack:
        places = Places(stack)
        for kind in itertools.product(SOURCES, MIRRORS, MODES):
            if not set(kind).issuperset(sys.argv[2:]):
                continue
            kept[", ".join(kind)] = measured(places, kind).to_json()
            print(kind, kept[", ".join(kind)], flush=True)
    KEPT.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")


def known() -> dict[str, Costs]:
    """Return what was measured last."""
    kept = json.loads(KEPT.read_text())
    return {name: Costs(**found) for name, found in kept.items()}


@dataclass(frozen=True)
class Check:
    """A run that was not used to fit anything, and what it should take."""

    kind: Kind
    tables: int
    rows: int
    changed: int
    changes: int
    note: int = 150
    delay: int = 0

    def run(self, places: Places) -> Iterator[tuple[str, float, float]]:
        """Yield what it is that was measured, by how much, and how much it should be."""
        costs = known()[", ".join(self.kind)]
        row_bytes = self.note + WIDE[1] - WIDE[0]
        with world(places, self.kind, self.tables, self.rows, self.note) as made:
            with timed() as copied:
                made.htap.sync_now()
            load = Load(self.tables, self.rows, row_bytes, 0.0, self.changed, 1.0, 1.0)
            yield "first copy, s of CPU", copied.cpu_seconds, copy_seconds(costs, load)
            found = cycles(made, self.changed, self.changes, (self.rows, row_bytes), 9)
            load = replace(load, changes=found.changes)
            predicted = cycle(costs, load, 1.0, self.delay / 1000)
            yield "a sync, ms of CPU", found.cpu * 1000, predicted.cpu * 1000
            if self.delay:
                yield "a sync, requests", found.requests, predicted.requests
                more = _delays(made, self.changed, self.changes, self.delay)
                told = f"a sync, ms by the clock for {self.delay} ms a request"
                yield told, more, (predicted.wall - predicted.cpu) * 1000


CHECKS = (
    Check(("PostgreSQL", "DuckDB", "temporal"), 20, 30_000, 12, 3_600),
    Check(("SQLite", "store", "destructive"), 30, 5_000, 15, 1_500, delay=30),
    Check(("PostgreSQL", "Parquet", "destructive"), 4, 400_000, 2, 20_000),
)


def check() -> None:
    """Compare what some other runs took with what they should have taken."""
    shown = Table("run", "measured", "predicted", "predicted / measured")
    with ExitStack() as stack:
        places = Places(stack)
        for one in CHECKS:
            for what, was, should in one.run(places):
                name = f"{', '.join(one.kind)}: {what}"
                shown.add_row(name, f"{was:,.4g}", f"{should:,.4g}", f"{should / was:.2f}")
    Console(width=140).print(shown)


LOADS = {
    "20 tables of 1 GB in all, 10 changes/s": Load(20, 250_000, 200, 10, 5, 1.0, 5.0),
    "100 tables, 100 GB, 1,000 changes/s": Load(100, 5_000_000, 200, 1_000, 20, 1.0, 5.0),
    "1,000 tables, 1 TB, 10,000 changes/s": Load(1_000, 5_000_000, 200, 10_000, 200, 1.0, 10.0),
    "1,000 tables, 10 TB, 100,000 changes/s": Load(1_000, 50_000_000, 200, 100_000, 500, 5.0, 30.0),
}
LATENCIES = (10, 50, 100)


def plan() -> None:
    """Print what some loads need."""
    for name, load in LOADS.items():
        shown = Table(*_HEADS, title=name)
        for kind, costs in known().items():
            given = load if "destructive" in kind else Load(**{**vars(load), "history_days": 30})
            for latency in LATENCIES if "store" in kind else (0,):
                named = f"{kind}, {latency} ms" if latency else kind
                shown.add_row(named, *_row(needs(costs, given, latency / 1000)))
        Console(width=160).print(shown)


_HEADS = (
    "source, mirror, mode",
    "shards",
    "cores",
    "PostgreSQL's",
    "lag at most, s",
    "first copy, h",
    "GB",
    "requests/s",
    "$ a month",
)


def _row(found: Needs) -> Sequence[str]:
    if not found.shards:
        return ["none is enough"]
    figures = (
        found.cores,
        found.server_cores,
        found.lag,
        found.copy_hours,
        found.gigabytes,
        found.requests,
        found.dollars,
    )
    return [str(found.shards), *(f"{figure:,.3g}" for figure in figures)]


COMMANDS: dict[str, Callable[[], None]] = {"measure": measure, "check": check, "plan": plan}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]]()
