"""Several mirrors, several processes, and processes that are killed."""

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rhei_pipeline import HTAP
from rhei_pipeline.errors import MirrorBusyError
from rhei_pipeline.sources.sqlite.database import SqliteDatabase
from rhei_pipeline.testing.oracle import arrow_rows
from tests.support.fix_world import World
from tests.support.forked import Forked, run
from tests.support.model import source_rows
from tests.support.parts import engine_of

pytestmark = pytest.mark.turns

MakeWorld = Callable[..., World]

KILLS = 3
SOAK_KILLS = 1_000


def test_two_mirrors_follow_one_source_and_neither_misses_anything(make_world: MakeWorld) -> None:
    world = make_world()
    world.run("create table t(id integer primary key, v int)", "insert into t values (1, 1)")
    base = world.settings
    other = base.model_copy(
        update={
            "mirror": base.mirror.model_copy(update={"path": world.directory / "second.duckdb"}),
            "registry": base.registry.model_copy(update={"path": world.directory / "second.json"}),
        }
    )
    with HTAP(other) as second:
        for turn in range(4):
            world.run(f"insert into t values ({turn + 10}, {turn})", "update t set v = v + 1")
            world.htap.sync_now()
            if turn % 2:
                second.sync_now()
                found = arrow_rows(second.query("select * from t", hint="olap"))
                assert found == source_rows(world.app, "t")
            world.assert_equal("t")
        assert second.sync_now().tables["t"].copied_rows == 0


def test_a_mirror_in_memory_is_copied_at_each_start(make_world: MakeWorld) -> None:
    world = make_world(mirror_path=":memory:")
    world.run("create table t(id integer primary key, v int)", "insert into t values (1, 1)")
    world.htap.sync_now()
    world.run("update t set v = 2")
    world.htap.sync_now()
    world.assert_equal("t")
    world.crash()
    world.run("update t set v = 3")
    world.htap.sync_now()
    world.assert_equal("t")
    world.crash()
    assert world.app.execute("select count(*) from _rhei_consumer").fetchone() == (0,)


def test_a_second_process_is_told_that_the_mirror_is_held(world: World) -> None:
    world.htap.sync_now()
    code = "import duckdb, sys; held = duckdb.connect(sys.argv[1]); print('opened')"
    mirror = str(world.directory / "mirror.duckdb")
    assert "lock" in run(code, mirror).stderr
    world.crash()
    with Forked(code + "; sys.stdout.flush(); sys.stdin.read()", mirror) as holder:
        assert holder.stdout.readline() == "opened\n"
        with pytest.raises(MirrorBusyError, match="held by another process"):
            world.htap  # noqa: B018
    world.htap.sync_now()
    world.assert_equal("orders")


def test_syncs_at_once_in_one_process_double_nothing(make_world: MakeWorld) -> None:
    world = make_world(mode="temporal")
    world.run("create table t(id integer primary key, v int)")
    world.htap.sync_now()
    world.app.executemany("insert into t values (?, ?)", ((n, n) for n in range(500)))
    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(lambda _: world.htap.sync_now(), range(4)))
    assert sum(report.events for report in reports) == 500
    assert len(world.versions("t")) == 500


@pytest.mark.long
def test_a_reader_sees_only_states_that_the_source_committed(make_world: MakeWorld) -> None:
    world = make_world(batch_rows=3)
    world.run("create table a(id integer primary key, n integer)", "insert into a values (1, 50)")
    world.run("create table b(id integer primary key, n integer)", "insert into b values (1, 50)")
    world.htap.sync_now()
    wrong: list[int] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            sql = "select (select sum(n) from a) + (select sum(n) from b) as total"
            total = world.htap.query(sql, hint="olap")["total"][0].as_py()
            if total != 100:
                wrong.append(total)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(40):
        amount = random.randint(-20, 20)
        world.htap.execute_batch(
            [
                ("update a set n = n - ? where id = 1", (amount,)),
                ("update b set n = n + ? where id = 1", (amount,)),
                *(("insert into a values (null, ?)", (0,)) for _ in range(10)),
            ]
        )
        world.htap.sync_now()
    done.set()
    reader.join()
    assert not wrong


def sqlite(htap: HTAP) -> SqliteDatabase:
    database = engine_of(htap).database
    assert isinstance(database, SqliteDatabase)
    return database


def test_statements_of_threads_never_share_a_transaction(world: World) -> None:
    htap = world.htap
    inside, outside = threading.Event(), threading.Event()

    def other() -> None:
        inside.wait()
        outside.set()
        htap.execute("insert into orders values (100, 'other', 0)")

    thread = threading.Thread(target=other)
    thread.start()
    with pytest.raises(RuntimeError), sqlite(htap).transaction():
        htap.execute("insert into orders values (200, 'mine', 0)")
        inside.set()
        outside.wait()
        time.sleep(0.05)
        raise RuntimeError
    thread.join()
    ids = {row[0] for row in world.app.execute("select id from orders")}
    assert 100 in ids
    assert 200 not in ids


def test_a_batch_is_all_or_nothing(world: World) -> None:
    with pytest.raises(Exception, match="UNIQUE"):
        world.htap.execute_batch(
            [
                ("update orders set status = 'x'", ()),
                ("insert into orders values (1, 'again', 0)", ()),
            ]
        )
    assert world.htap.sync_now().tables["orders"].inserted == 3
    assert not world.app.execute("select 1 from orders where status = 'x'").fetchall()


def test_background_sync_keeps_up_and_stops(world: World) -> None:
    background = world.htap.start_sync(0.01)
    assert world.htap.start_sync(0.01) is background
    world.run("update orders set status = 'seen'")
    deadline = time.monotonic() + 10
    sql = "select count(*) as n from orders where status = 'seen'"
    while time.monotonic() < deadline:
        if world.htap.sync_status().tables["orders"].watermark and (
            world.htap.query(sql, hint="olap")["n"][0].as_py() == 3
        ):
            break
        time.sleep(0.01)
    world.assert_equal("orders")
    assert world.htap.sync_status().running
    world.htap.stop_sync()
    assert not world.htap.sync_status().running


def kill_again_and_again(
    directory: Path, mode: str, kills: int, storage: str | None = None
) -> None:
    world = World(directory, mode=mode, batch_rows=20, storage=storage)
    world.run("create table t(id integer primary key, v int)")
    world.run("create table u(k text primary key, t int unique)")
    settings = world.settings.model_dump_json()
    random.seed(7)
    for _ in range(kills):
        with Forked(_SYNC_FOR_EVER, settings) as process:
            process.stdout.readline()
            until = time.monotonic() + random.random() * 0.3
            while time.monotonic() < until:
                n = random.randint(0, 300)
                world.run("begin immediate")
                world.app.execute("replace into t values (?, ?)", (n, random.randint(0, 9)))
                world.app.execute("replace into u values (?, ?)", (str(n % 40), n % 31))
                world.app.execute("delete from t where id = ?", (random.randint(0, 300),))
                world.run("commit")
            process.kill()
        if random.random() < 0.5:
            world.htap.sync_now()
            world.assert_equal("t", "u")
            world.crash()
    world.htap.sync_now()
    world.assert_equal("t", "u")
    assert world.htap.verify().equal
    world.close()


_SYNC_FOR_EVER = """
import sys
from rhei_pipeline import HTAP, Settings
with HTAP(Settings(**__import__("json").loads(sys.argv[1]))) as htap:
    print("going", flush=True)
    while True:
        htap.sync_now()
"""


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_a_process_killed_at_any_instant(tmp_path: Path, mode: str) -> None:
    kill_again_and_again(tmp_path, mode, KILLS)


@pytest.mark.long
@pytest.mark.parametrize(
    ("mode", "storage"), [("destructive", "ipc"), ("temporal", "parquet"), ("temporal", "delta")]
)
def test_a_process_that_writes_files_killed_at_any_instant(
    tmp_path: Path, mode: str, storage: str
) -> None:
    kill_again_and_again(tmp_path, mode, KILLS, storage)


@pytest.mark.soak
@pytest.mark.parametrize("mode", ["destructive", "temporal"])
@pytest.mark.parametrize("storage", ["ipc", "parquet", "delta"])
def test_a_process_that_writes_files_killed_two_hundred_times(
    tmp_path: Path, mode: str, storage: str
) -> None:
    kill_again_and_again(tmp_path, mode, 200, storage)


@pytest.mark.soak
@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_a_process_killed_a_thousand_times(tmp_path: Path, mode: str) -> None:
    kill_again_and_again(tmp_path, mode, SOAK_KILLS)
