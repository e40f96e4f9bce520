"""What a process takes does not grow with the cycles that it runs, nor with its mirror's file."""

import gc
import logging
import tracemalloc
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from rhei_pipeline.errors import MirrorError
from rhei_pipeline.mirrors.datafusion import segment_store
from rhei_pipeline.mirrors.duckdb.large_rows import LargeRows
from rhei_pipeline.mirrors.duckdb.mirror import DuckDBMirror
from rhei_pipeline.mirrors.duckdb.upsert import Upsert
from rhei_pipeline.model import large_rows
from rhei_pipeline.model.changes import Counts
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World
from tests.support.parts import connection_of, engine_of

pytestmark = pytest.mark.turns

MB = 2**20
#: Cycles until caches have filled, and those after which one object kept in each would show.
WARM_UP, CYCLES, SAMPLES = 20, 60, 6


def told(mirror: DuckDBMirror, sql: str) -> Any:
    """Ask DuckDB for one value about itself."""
    return connection_of(mirror).execute(sql).fetchall()[0][0]


def cached(mirror: DuckDBMirror) -> int:
    """Return the bytes of the mirror's file that DuckDB holds in memory."""
    return int(
        told(
            mirror,
            "select coalesce(sum(memory_usage_bytes), 0)::bigint from duckdb_memory()"
            " where tag = 'BASE_TABLE'",
        )
    )


@pytest.mark.long
def test_what_a_checkpoint_wrote_does_not_stay_in_memory(make_world: Callable[..., World]) -> None:
    world = make_world(mode="destructive", tables=[{"name": "t"}])
    world.run(
        "create table t(id integer primary key, v text)",
        "with recursive s(n) as (select 1 union all select n + 1 from s where n < 60000)"
        " insert into t select n, hex(randomblob(75)) from s",
    )
    world.htap.sync_now()
    mirror = engine_of(world.htap).mirror
    assert isinstance(mirror, DuckDBMirror)
    limit = "select current_setting('memory_limit')"
    before = told(mirror, limit)

    mirror.maintain()
    world.htap.query("select count(distinct v) from t", hint="olap")
    assert cached(mirror) > 5 * MB
    # A query that is under way may need its memory: nothing is taken from it.
    under_way = mirror.stream("select v from t", (), 1_000)
    rows = next(under_way.batches).num_rows
    world.run("insert into t(v) values ('x')")
    world.htap.sync_now()
    assert cached(mirror) > 5 * MB
    rows += sum(batch.num_rows for batch in under_way.batches)
    assert rows == 60_000
    world.run("insert into t(v) values ('y')")
    world.htap.sync_now()
    assert cached(mirror) < 3 * MB
    assert told(mirror, limit) == before
    world.assert_equal("t")


def test_a_large_value_leaves_the_number_of_threads_as_it_was(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_rows, "LARGE_BYTES", 0)
    world = make_world(mode="destructive", tables=[{"name": "t"}])
    world.run("create table t(id integer primary key, v text)", "insert into t values (1, 'a')")
    world.htap.sync_now()
    mirror = engine_of(world.htap).mirror
    assert isinstance(mirror, DuckDBMirror)
    seen = []

    run = Upsert.run

    def failing(upsert: Upsert) -> Counts:
        seen.append(told(mirror, "select current_setting('threads')"))
        run(upsert)
        upsert.statements.run("select error('of a kind')").fetchall()
        return Counts()

    before = told(mirror, "select current_setting('threads')")
    monkeypatch.setattr(Upsert, "run", failing)
    world.run("update t set v = 'b'")
    with pytest.raises(MirrorError, match="InvalidInputException"):
        world.htap.sync_now()
    assert told(mirror, "select current_setting('threads')") == before
    assert set(seen) == {1}
    monkeypatch.undo()
    world.htap.sync_now()
    world.assert_equal("t")


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_a_large_value_is_not_held_while_duckdb_commits_it(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setattr(large_rows, "LARGE_BYTES", MB)
    world = make_world(mode=mode, tables=[{"name": "t"}])
    world.run("create table t(id integer primary key, v text)", "insert into t values (1, 'a')")
    world.htap.sync_now()
    held = []
    during = LargeRows.committing

    def noted(self: LargeRows) -> AbstractContextManager[None]:
        held.append(pa.total_allocated_bytes() - before)
        return during(self)

    monkeypatch.setattr(LargeRows, "committing", noted)
    before = pa.total_allocated_bytes()
    world.run(f"update t set v = hex(zeroblob({5 * MB}))")
    world.htap.sync_now()
    assert max(held) < MB
    world.assert_equal("t")


_LARGE_CHANGES = (
    "update t set v = hex(zeroblob(9)) where id = 1",
    "update t set v = null, b = null where id = 2",
    "update t set v = v || '', b = x'00' where id = 3",  # only one of the two is another
    "update t set v = v || '', d = 0.5 where id = 4",
    "update t set v = v || '', b = b where id = 5",  # nothing is
    "delete from t where id = 1",
    "insert into t values (6, 'six', x'06', 0.5)",
)


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
@pytest.mark.parametrize("readers", [0, 1])
def test_large_rows_are_compared_and_committed_as_others_are(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch, mode: str, readers: int
) -> None:
    monkeypatch.setattr(large_rows, "LARGE_BYTES", 0)
    world = make_world(mode=mode, tables=[{"name": "t"}])
    rows = (f"({number}, 'v{number}', x'ab', 0.0)" for number in range(1, 6))
    world.run(
        "create table t(id integer primary key, v text, b blob, d real)",
        f"insert into t values {', '.join(rows)}",
    )
    world.htap.sync_now()
    mirror = engine_of(world.htap).mirror
    assert isinstance(mirror, DuckDBMirror)
    setting = "select current_setting('checkpoint_threshold')"
    before = told(mirror, setting)
    with ExitStack() as reading:
        if readers:
            reader = reading.enter_context(closing(connection_of(mirror).cursor()))
            reader.execute("begin")
            seen = reader.execute("select count(*) from t").fetchall()
        for change in _LARGE_CHANGES:
            world.run(change)
            report = world.htap.sync_now().tables["t"]
            assert report.updated == (change.startswith("update") and not change.endswith("= 5"))
            world.assert_equal("t")
        assert Path(f"{mirror.path}.wal").exists() == bool(readers)
        if readers:
            assert reader.execute("select count(*) from t").fetchall() == seen
    assert told(mirror, setting) == before
    world.crash()
    world.htap.sync_now()
    world.assert_equal("t")


@pytest.fixture
def alone() -> None:
    """Leave out of each count, and of each look for garbage, what other tests have left."""
    gc.collect()
    gc.freeze()


def keep_few_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the last reports, which are kept for processes that ask, be as many soon."""
    monkeypatch.setattr("rhei_pipeline.holder.access.KEPT_REPORTS", 5)


def kept_after_cycles(
    monkeypatch: pytest.MonkeyPatch, write: Callable[[int], object], sync: Callable[[], object]
) -> tuple[int, int]:
    """Return by how much Python's objects and Arrow's bytes grow over `CYCLES` cycles."""
    monkeypatch.setattr(logging.getLogger("rhei_pipeline"), "disabled", True)
    for name in [n for n in logging.root.manager.loggerDict if n.startswith("rhei_pipeline")]:
        monkeypatch.setattr(logging.getLogger(name), "disabled", True)  # pytest keeps each record
    found: list[tuple[int, int]] = []
    for cycle in range(WARM_UP + CYCLES + 1):
        write(cycle)
        sync()
        if cycle >= WARM_UP and (cycle - WARM_UP) % (CYCLES // SAMPLES) == 0:
            gc.collect()
            # sqlite3 keeps references to closed cursors, and drops them by the hundreds.
            kept = sum(type(one) is not weakref.ReferenceType for one in gc.get_objects())
            found.append((kept, pa.total_allocated_bytes()))
    half = len(found) // 2
    objects, arrow = (
        min(later) - min(earlier)
        for earlier, later in zip(
            zip(*found[:half], strict=True), zip(*found[half:], strict=True), strict=True
        )
    )
    return objects, arrow


@pytest.mark.long
@pytest.mark.usefixtures("alone")
def test_cycles_into_duckdb_keep_no_objects(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_few_reports(monkeypatch)
    world = make_world(mode="temporal", tables=[{"name": "t"}])
    world.run("create table t(id integer primary key, v integer)", "insert into t(id) values (1)")
    objects, arrow = kept_after_cycles(
        monkeypatch,
        lambda cycle: world.app.execute("update t set v = ?", (cycle,)),
        world.htap.sync_now,
    )
    assert objects < CYCLES // 4
    assert arrow == 0


@pytest.mark.long
@pytest.mark.usefixtures("alone")
def test_cycles_from_postgres_into_files_keep_no_objects(
    make_postgres: Callable[..., PostgresWorld], monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_few_reports(monkeypatch)
    world = make_postgres(storage="parquet", capture={"method": "logical"}, tables=[{"name": "t"}])
    world.run("create table t(id int primary key, v int)", "insert into t values (1, 1)")
    objects, arrow = kept_after_cycles(
        monkeypatch, lambda cycle: world.run(f"update t set v = {cycle}"), world.htap.sync_now
    )
    assert objects < CYCLES // 4
    assert arrow == 0


@pytest.mark.long
@pytest.mark.usefixtures("alone")
def test_the_indexes_of_a_growing_history_are_not_held(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment_store, "_HELD_ROWS", 500)
    world = make_world(mode="temporal", storage="ipc", tables=[{"name": "t"}])
    world.run(
        "create table t(id integer primary key, v integer)",
        "with recursive s(n) as (select 1 union all select n + 1 from s where n < 2000)"
        " insert into t select n, 0 from s",
    )
    held = list[int]()
    tracemalloc.start()
    try:
        for _ in range(24):
            world.run("update t set v = v + 1")
            world.htap.sync_now()
            gc.collect()
            held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    versions = 12 * 2_000
    # What the first cycles import stays; an index has 24 bytes of each version.
    assert min(held[12:]) - min(held[6:12]) < 8 * versions
    world.assert_equal("t")
    assert len(world.versions("t")) == 24 * 2_000
