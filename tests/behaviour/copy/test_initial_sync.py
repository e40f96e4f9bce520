"""The first copy: complete, resumable, right while others write, and the same when repeated."""

import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import duckdb
import pytest

from rhei_pipeline.mirrors.duckdb import promotion
from rhei_pipeline.mirrors.duckdb.transaction import DuckDBTransaction
from rhei_pipeline.model.reports import CopyReport
from rhei_pipeline.protocols import Step
from rhei_pipeline.sync import initial_sync
from rhei_pipeline.testing.faults import Crash
from tests.support.fix_world import World
from tests.support.model import source_rows
from tests.support.parts import connection_of, engine_of

pytestmark = pytest.mark.turns

MakeWorld = Callable[..., World]
BOTH_MODES = pytest.mark.parametrize("mode", ["destructive", "temporal"])

ROWS = 1_000


def filled(make_world: MakeWorld, mode: str, batch_rows: int = 100) -> World:
    world = make_world(mode=mode, batch_rows=batch_rows)
    world.run("create table t(a text, b integer, v text, primary key(a, b))")
    world.app.executemany(
        "insert into t values (?, ?, ?)", ((f"k{n % 7}", n, f"v{n}") for n in range(ROWS))
    )
    return world


def cut_off_and_resumed(world: World, step: Step, time: int) -> CopyReport:
    """Crash in a copy as it comes to a step for this time, write, and copy on."""
    world.faults.arm(step, time)
    with pytest.raises(Crash):
        world.htap.initial_sync("t")
    world.crash()
    world.run("update t set v = 'later' where b in (1, 999)", "delete from t where b = 2")
    report = world.htap.initial_sync("t")
    assert report.resumed
    return report


@BOTH_MODES
def test_a_first_sync_copies_what_nobody_asked_to_copy(make_world: MakeWorld, mode: str) -> None:
    world = filled(make_world, mode)
    report = world.htap.sync_now()
    assert report.inserted == ROWS
    assert report.tables["t"].copied_rows == ROWS
    world.assert_equal("t")


@BOTH_MODES
def test_first_copies_read_each_table_once(make_world: MakeWorld, mode: str) -> None:
    """One after the other, each with the checks that follow in Dagster, then the rest at once."""
    world = make_world(mode=mode)
    for name in "abcd":
        world.run(f"create table {name}(id integer primary key)", f"insert into {name} values (1)")

    def copies() -> int:
        return world.faults.seen.count(Step.COPY_COMPLETE)

    for number, name in enumerate(("a", "B"), start=1):
        assert world.htap.initial_sync(name).inserted == 1
        assert world.htap.row_parity(name).equal
        assert world.htap.verify(name).equal
        assert copies() == number
    world.run("insert into a values (2)")
    assert world.htap.sync_now().inserted == 3
    assert copies() == 4
    assert world.htap.verify().equal
    world.htap.initial_sync_all()
    assert copies() == 8


@BOTH_MODES
def test_a_repeated_copy_changes_nothing(make_world: MakeWorld, mode: str) -> None:
    world = filled(make_world, mode)
    world.htap.initial_sync("t")
    report = world.htap.initial_sync("t")
    assert (report.inserted, report.updated, report.deleted) == (0, 0, 0)
    world.assert_equal("t")


@BOTH_MODES
def test_a_repeated_copy_repairs_the_mirror_and_keeps_its_history(
    make_world: MakeWorld, mode: str
) -> None:
    world = filled(make_world, mode)
    world.htap.sync_now()
    with engine_of(world.htap).mirror.transaction() as transaction:
        assert isinstance(transaction, DuckDBTransaction)
        connection_of(transaction).execute("delete from t where b < 10")
        connection_of(transaction).execute("update t set v = 'wrong' where b = 20")
    assert not world.htap.verify().equal
    report = world.htap.repair("t")
    assert (report.inserted, report.updated) == (10, 1)
    assert world.htap.verify().equal
    if mode == "temporal":
        versions = world.htap.query("select count(*) as n from t", hint="olap")["n"][0].as_py()
        assert versions == ROWS + 1


@BOTH_MODES
@pytest.mark.parametrize(
    "step", [Step.COPY_BEGUN, Step.COPY_BATCH, Step.COPY_COMPLETE, Step.PROMOTED]
)
def test_a_copy_that_was_cut_off_goes_on_where_it_ended(
    make_world: MakeWorld, mode: str, step: Step
) -> None:
    world = filled(make_world, mode)
    report = cut_off_and_resumed(world, step, 3 if step is Step.COPY_BATCH else 1)
    assert report.rows < ROWS or step is Step.COPY_BEGUN
    world.assert_equal("t")


@BOTH_MODES
@pytest.mark.parametrize("step", [Step.COPY_BATCH, Step.COPY_COMPLETE])
def test_a_copy_of_a_large_table_commits_some_batches_together_and_goes_on_behind_them(
    make_world: MakeWorld, mode: str, step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(initial_sync, "LARGE_TABLE_ROWS", ROWS)
    world = filled(make_world, mode, batch_rows=90)
    report = cut_off_and_resumed(world, step, 2 if step is Step.COPY_BATCH else 1)
    # Two commits of five batches are not read again.
    assert report.rows == (ROWS - 2 * 5 * 90 if step is Step.COPY_BATCH else 0)
    world.assert_equal("t")


@BOTH_MODES
def test_what_a_commit_of_a_large_copy_rejects_is_kept_of_each_of_its_batches(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setattr(initial_sync, "LARGE_TABLE_ROWS", ROWS)
    world = make_world(mode=mode, batch_rows=100)
    world.run("create table t(id integer primary key, v integer)")
    world.app.executemany("insert into t values (?, ?)", ((n, n) for n in range(ROWS)))
    rejected = [50, 150, 350, 950]
    world.run(f"update t set v = 'no number' where id in ({', '.join(map(str, rejected))})")
    report = world.htap.initial_sync("t")
    assert (report.rows, report.dead_letters) == (ROWS - len(rejected), len(rejected))
    keys = world.htap.dead_letters()["key"].to_pylist()
    assert sorted(keys) == sorted(f'{{"id": {key}}}' for key in rejected)


@pytest.mark.parametrize("bound", ["PORTION_BYTES", "PART_SECONDS"])
def test_a_commit_of_a_large_copy_holds_no_more_bytes_and_seconds_than_a_portion(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    monkeypatch.setattr(initial_sync, "LARGE_TABLE_ROWS", ROWS)
    monkeypatch.setattr(initial_sync, bound, 0)
    world = filled(make_world, "destructive", batch_rows=90)
    world.htap.initial_sync("t")
    assert world.faults.seen.count(Step.COPY_BATCH) == -(-ROWS // 90)
    world.assert_equal("t")


@BOTH_MODES
def test_what_is_pending_when_a_copy_begins_is_not_applied_twice(
    make_world: MakeWorld, mode: str
) -> None:
    world = filled(make_world, mode)
    world.htap  # noqa: B018  (capture is installed from here on)
    world.run("update t set v = 'pending' where b < 5", "insert into t values ('new', 1, 'x')")
    world.htap.initial_sync("t")
    world.assert_equal("t")
    if mode == "temporal":
        assert len(world.versions("t")) == ROWS + 1


@pytest.mark.parametrize("added_rows", [0, 10 * ROWS], ids=["written again", "columns added"])
def test_a_first_history_is_the_same_however_its_columns_come(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, added_rows: int
) -> None:
    monkeypatch.setattr(promotion, "_ADDED_ROWS", added_rows)
    world = filled(make_world, "temporal")

    def write(_table: str, rows: int, _of: int) -> None:
        world.run(
            f"update t set v = v || '!' where b % 100 = {rows % 7}",
            f"insert or replace into t values ('new', {ROWS + rows}, null)",
            f"delete from t where b = {rows // 2}",
        )

    world.htap.sync_now(on_progress=write)
    world.assert_equal("t")
    versions = world.versions("t", "a, b, _rhei_valid_from")
    assert {row["_rhei_operation"] for row in versions} == {"I"}
    assert {row["_rhei_valid_to"] for row in versions} == {None}
    assert len({row["_rhei_valid_from"] for row in versions}) == 1
    with engine_of(world.htap).mirror.transaction() as transaction:
        assert isinstance(transaction, DuckDBTransaction)
        columns = connection_of(transaction).execute(
            "select column_name, data_type, column_default, is_nullable from duckdb_columns()"
            " where table_name = 't' order by column_index"
        )
        assert columns.fetchall() == [
            ("a", "VARCHAR", None, True),
            ("b", "BIGINT", None, True),
            ("v", "VARCHAR", None, True),
            ("_rhei_valid_from", "TIMESTAMP WITH TIME ZONE", None, True),
            ("_rhei_valid_to", "TIMESTAMP WITH TIME ZONE", None, True),
            ("_rhei_operation", "VARCHAR", None, True),
        ]
    # What a process leaves that is killed now: the file, and the log behind it.
    mirror = Path(engine_of(world.htap).mirror.path)
    for file in (mirror, mirror.with_name(f"{mirror.name}.wal")):
        left = tmp_path / file.name.replace(mirror.name, "left.duckdb")
        # By another process: to close the file in this one would release its locks.
        copying = "import shutil, sys; shutil.copy(*sys.argv[1:])"
        subprocess.run([sys.executable, "-c", copying, file, left], check=True)
    with closing(duckdb.connect(tmp_path / "left.duckdb")) as opened:
        found = opened.sql('select * from t order by a, b, "_rhei_valid_from"').to_arrow_table()
        assert len(found) == len(versions)
        assert found.select(["a", "b", "v"]).to_pylist() == [
            {name: row[name] for name in "abv"} for row in versions
        ]
        assert set(found["_rhei_operation"].to_pylist()) == {"I"}
    world.run("update t set v = 'later' where b = 900", "delete from t where b = 901")
    world.htap.sync_now()
    world.assert_equal("t")
    assert len(world.versions("t")) == len(versions) + 1


def test_a_copy_of_another_shape_is_not_resumed(make_world: MakeWorld) -> None:
    world = filled(make_world, "destructive")
    world.faults.arm(Step.COPY_BATCH, 3)
    with pytest.raises(Crash):
        world.htap.initial_sync("t")
    world.crash()
    world.run("alter table t add column w integer default 5")
    assert not world.htap.initial_sync("t").resumed
    world.assert_equal("t")


@BOTH_MODES
def test_a_repeated_copy_leaves_each_key_once(make_world: MakeWorld, mode: str) -> None:
    """What somebody has put into the mirror twice, or without its key, differs in no key."""
    world = make_world(mode=mode)
    world.run(
        "create table t(id integer primary key, v text)", "insert into t values (1, 'a'), (2, 'b')"
    )
    world.htap.sync_now()
    world.crash()
    with duckdb.connect(world.directory / "mirror.duckdb") as mirror:
        mirror.execute("insert into t from t where id = 1")
        mirror.execute("insert into t select * replace (null as id) from t where id = 2")
    world.htap.initial_sync("t")
    world.assert_equal("t")
    assert sorted(row["id"] for row in world.present("t")) == [1, 2]


def test_readers_of_the_mirror_never_see_half_a_copy(make_world: MakeWorld) -> None:
    world = filled(make_world, "destructive")
    world.htap.sync_now()
    seen = set()
    world.run("delete from t where b % 2 = 0")

    def look(_table: str, _rows: int, _total: int) -> None:
        seen.add(world.htap.row_count("t"))

    world.htap.initial_sync("t", look)
    assert seen == {ROWS}
    assert world.htap.row_count("t") == ROWS // 2


@BOTH_MODES
def test_copies_while_another_process_writes(make_world: MakeWorld, mode: str) -> None:
    world = filled(make_world, mode)
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(world.path)], stdout=subprocess.PIPE
    )
    assert writer.stdout is not None
    writer.stdout.readline()
    try:
        for _ in range(2):
            world.htap.initial_sync("t")
            world.htap.sync_now()
    finally:
        writer.kill()
        writer.wait()
        writer.stdout.close()
    world.htap.sync_now()
    world.assert_equal("t")
    assert world.htap.verify().equal
    assert source_rows(world.app, "t") != frozenset()


_WRITER = """
import random, sqlite3, sys, time
c = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
random.seed(1)
print("going", flush=True)
while True:
    c.execute("begin immediate")
    for _ in range(random.randint(1, 20)):
        n = random.randint(0, 1500)
        c.execute("replace into t values (?, ?, ?)", (f"k{n % 7}", n, str(random.random())))
        if random.random() < 0.3:
            c.execute("delete from t where b = ?", (random.randint(0, 1500),))
    c.execute("commit" if random.random() < 0.9 else "rollback")
    time.sleep(0.02)
"""


@pytest.mark.long
def test_the_log_of_a_source_does_not_grow_without_bound(make_world: MakeWorld) -> None:
    world = filled(make_world, "temporal")
    world.htap.sync_now()
    for turn in range(5):
        world.run(f"update t set v = 'turn {turn}'")
        (logged,) = world.app.execute("select count(*) from _rhei_log_t").fetchone()
        report = world.htap.sync_now()
        (left,) = world.app.execute("select count(*) from _rhei_log_t").fetchone()
        assert left == 1
        assert report.rows_pruned == logged - left > 0
        assert world.htap.sync_now().rows_pruned == 0


def test_nothing_is_pruned_where_pruning_is_off(make_world: MakeWorld) -> None:
    world = filled(make_world, "destructive")
    world.htap.sync_now()
    world.crash()
    settings = world.settings.model_copy(
        update={"sync": world.settings.sync.model_copy(update={"prune": False})}
    )
    from rhei_pipeline import HTAP  # noqa: PLC0415

    with HTAP(settings) as htap:
        world.run("update t set v = 'x'")
        htap.sync_now()
        assert htap.sync_now().events == 0
    (left,) = world.app.execute("select count(*) from _rhei_log_t").fetchone()
    assert left >= ROWS


def test_a_long_idle_time_costs_nothing(make_world: MakeWorld) -> None:
    world = filled(make_world, "destructive")
    world.htap.sync_now()
    (before,) = world.app.execute("pragma data_version").fetchone()
    for _ in range(20):
        world.htap.sync_now()
    (after,) = world.app.execute("pragma data_version").fetchone()
    assert before == after, "an idle sync wrote to the source"
