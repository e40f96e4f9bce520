"""What a DataFusion mirror costs: figures are ratios within one run, so the machine cancels out."""

import statistics
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa

from benchmarks.timing import Timing, timed
from rhei_pipeline.changes.scd2 import supersede
from rhei_pipeline.mirrors.datafusion.mirror import DataFusionMirror
from rhei_pipeline.model.changes import NetChanges, Position, event_schema
from rhei_pipeline.model.progress import CopyProgress
from rhei_pipeline.model.schema import Column, Mode, Table, TableSchema
from rhei_pipeline.model.type_names import INSTANT

STORAGES = ("memory", "ipc", "parquet")
SMALL, LARGE = 1_000_000, 10_000_000
CHANGES = 10_000
SYNCS = 15
ROUNDS = 5

_COLUMNS = {
    "id": pa.int64(),
    "customer_id": pa.int64(),
    "status": pa.string(),
    "amount": pa.float64(),
    "note": pa.string(),
    "updated_at": pa.int64(),
}
SCHEMA = TableSchema("orders", tuple(Column(n, kind) for n, kind in _COLUMNS.items()), ("id",))
TABLE = Table(SCHEMA)
TEMPORAL = Table(SCHEMA, Mode.TEMPORAL)
AGGREGATE = "select status, count(*), sum(amount) from orders group by status"

Figure = tuple[str, str]


def measure() -> Iterator[Figure]:
    """Measure what the issue asks for, storage by storage."""
    for storage in STORAGES:
        yield from _upserts(storage)
    for storage in ("ipc", "parquet"):
        yield from _versions(storage)
    for storage in ("memory", "parquet"):
        yield from _inserts(storage)
    for storage in ("ipc", "parquet"):
        yield from _disk(storage)


def _upserts(storage: str) -> Iterator[Figure]:
    walls = {}
    for count in (SMALL, LARGE):
        with TemporaryDirectory() as directory:
            mirror = _filled(storage, Path(directory), count)
            timings = [_upsert(mirror, count, seed) for seed in range(SYNCS)]
            walls[count] = statistics.median(timing.wall_seconds for timing in timings)
            if count == SMALL:
                for seed in range(SYNCS, 100):
                    _upsert(mirror, count, seed)
                dirty = _query(mirror)
                mirror.maintain()
                clean = _query(mirror)
                yield (
                    f"{storage}: aggregate of {count:,} rows after 100 syncs against folded",
                    f"{dirty * 1000:,.0f} ms against {clean * 1000:,.0f} ms: {dirty / clean:.1f} x",
                )
            mirror.close()
    small, large = walls[SMALL], walls[LARGE]
    yield (
        f"{storage}: {CHANGES:,} random upserts on {LARGE:,} against {SMALL:,} rows",
        f"{large * 1000:,.0f} ms against {small * 1000:,.0f} ms: {large / small:.1f} x",
    )


def _versions(storage: str) -> Iterator[Figure]:
    walls = {}
    for count in (SMALL, LARGE):
        with TemporaryDirectory() as directory:
            mirror = _filled(storage, Path(directory), count, TEMPORAL)
            timings = [_supersede(mirror, count, seed) for seed in range(SYNCS)]
            walls[count] = statistics.median(timing.wall_seconds for timing in timings)
            mirror.close()
    small, large = walls[SMALL], walls[LARGE]
    yield (
        f"{storage}, temporal: {CHANGES:,} random updates on {LARGE:,} against {SMALL:,} rows",
        f"{large * 1000:,.0f} ms against {small * 1000:,.0f} ms: {large / small:.1f} x",
    )


def _inserts(storage: str) -> Iterator[Figure]:
    with TemporaryDirectory() as directory:
        mirror = _filled(storage, Path(directory), SMALL)
        fresh = [_rows(np.arange(n, n + 100_000), n) for n in range(SMALL, 2 * SMALL, 100_000)]
        with timed() as timing:
            for rows in fresh:
                _merge(mirror, rows)
        mirror.close()
    yield f"{storage}: pure inserts", f"{SMALL / timing.wall_seconds:,.0f} rows/s"


def _disk(storage: str) -> Iterator[Figure]:
    """Sync a thousand times a thousand changes, with maintenance as often as a day has nights."""
    rows = 200_000
    with TemporaryDirectory() as directory:
        mirror, peak = _filled(storage, Path(directory), rows), 0
        for seed in range(1_000):
            _upsert(mirror, rows, seed, changes=1_000)
            if seed % 100 == 50:
                mirror.maintain()
                peak = _bytes(Path(directory))
        taken = _bytes(Path(directory))
        mirror.close()
        once = Path(directory) / "once"
        folded = _filled(storage, once, rows)
        folded.maintain()
        folded.close()
        least = _bytes(once)
    yield (
        f"{storage}: disk after 1,000 syncs with maintenance against the table written once",
        f"{taken / 2**20:,.0f} MB against {least / 2**20:,.0f} MB: {taken / least:.1f} x"
        f" ({peak / least:.1f} x right after folding)",
    )


def _bytes(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


def _filled(storage: str, directory: Path, count: int, table: Table = TABLE) -> DataFusionMirror:
    mirror = DataFusionMirror(storage, directory / "mirror")
    progress = CopyProgress("orders", Position(1, ""), "")
    with mirror.transaction() as transaction:
        transaction.begin_copy(table, progress)
    for low in range(0, count, 250_000):
        rows = _rows(np.arange(low, min(low + 250_000, count)), low)
        with mirror.transaction() as transaction:
            transaction.append_copy(table, rows, progress)
    with mirror.transaction() as transaction:
        transaction.adopt_copy(table, datetime.now(UTC))
    return mirror


def _rows(ids: "np.ndarray[tuple[int], np.dtype[np.int64]]", seed: int) -> pa.Table:
    draw, states = np.random.default_rng(seed), np.array(["new", "paid", "sent"])
    columns = [
        ids,
        ids % 1000,
        states[ids % 3],
        draw.random(len(ids)),
        np.char.add("a note of some length ", ids.astype(str)),
        draw.integers(0, 10**9, len(ids)),
    ]
    return pa.table([pa.array(column) for column in columns], schema=SCHEMA.arrow)


def _upsert(mirror: DataFusionMirror, count: int, seed: int, changes: int = CHANGES) -> Timing:
    chosen = np.random.default_rng(seed).choice(count, changes, replace=False)
    rows = _rows(chosen.astype(np.int64), count + seed)
    with timed() as timing:
        _merge(mirror, rows)
    return timing


def _merge(mirror: DataFusionMirror, rows: pa.Table) -> None:
    with mirror.transaction() as transaction:
        found = transaction.merge(TABLE, NetChanges(rows, SCHEMA.arrow_key.empty_table()))
    if found.total != rows.num_rows:
        raise SystemExit("the mirror missed changes: these figures are worth nothing")


def _supersede(mirror: DataFusionMirror, count: int, seed: int) -> Timing:
    chosen = np.random.default_rng(seed).choice(count, CHANGES, replace=False)
    rows = _rows(chosen.astype(np.int64), count + seed)
    now = pa.scalar(datetime.now(UTC), INSTANT)
    told = [pa.array(range(CHANGES)), pa.repeat(now, CHANGES), pa.repeat(True, CHANGES)]  # noqa: FBT003
    events = pa.table([*told, *rows.columns], schema=event_schema(SCHEMA))
    with timed() as timing, mirror.transaction() as transaction:
        opened, floors = transaction.open_versions(TEMPORAL, events)
        versions = supersede(events, opened, floors, SCHEMA)
        transaction.supersede(TEMPORAL, versions)
    if versions.updated != CHANGES:
        raise SystemExit("the mirror missed changes: these figures are worth nothing")
    return timing


def _query(mirror: DataFusionMirror) -> float:
    mirror.query(AGGREGATE)
    walls = []
    for _ in range(ROUNDS):
        with timed() as timing:
            mirror.query(AGGREGATE)
        walls.append(timing.wall_seconds)
    return statistics.median(walls)
