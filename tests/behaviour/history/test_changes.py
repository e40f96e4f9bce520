"""A consumer of changes goes on where it stood, or is told plainly that it cannot."""

import shutil
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

import rhei_pipeline as rhei
from rhei_pipeline.mirrors.datafusion.reader import MirrorReader
from rhei_pipeline.query import time_travel
from rhei_pipeline.testing import StubMirror
from rhei_pipeline.testing.mirror_work import HISTORY
from tests.support.consumer import Consumer
from tests.support.damage import damage
from tests.support.fix_world import World

STORAGES = pytest.mark.parametrize("storage", [None, "ipc"])
MakeWorld = Callable[..., World]


def made(make_world: MakeWorld, storage: str | None = None, rows: int = 3) -> World:
    world = make_world(mode=None, tables=[{"name": "t", "mode": "temporal"}], storage=storage)
    world.run("create table t(k integer primary key, v text)")
    world.app.executemany("insert into t values (?, 'a')", [(k,) for k in range(rows)])
    world.htap.sync_now()
    return world


@STORAGES
def test_a_position_of_a_history_that_was_dropped_is_refused_and_the_whole_table_taken(
    make_world: MakeWorld, storage: str | None
) -> None:
    world, consumer = made(make_world, storage), Consumer("t", ["k"])
    consumer.read(world.htap)
    world.htap.drop_table("t", discard_history=True)
    world.run("delete from t where k = 0")
    world.htap.sync_now()
    with pytest.raises(rhei.ChangesLostError, match="take the whole table afresh"):
        world.htap.changes("t", consumer.position)
    consumer.read(world.htap, may_lose=True)
    consumer.check(world.present("t"))
    world.run("update t set v = 'b' where k = 1")
    world.htap.sync_now()
    consumer.read(world.htap)
    consumer.check(world.present("t"))


@STORAGES
def test_who_has_not_read_that_a_row_is_gone_is_told_to_begin_again_once_it_is_forgotten(
    make_world: MakeWorld, storage: str | None
) -> None:
    world, consumer = made(make_world, storage), Consumer("t", ["k"])
    consumer.read(world.htap)
    world.run("delete from t where k = 0")
    world.htap.forget("t", [0])
    with pytest.raises(rhei.ChangesLostError):
        world.htap.changes("t", consumer.position)
    consumer.read(world.htap, may_lose=True)
    consumer.check(world.present("t"))


@STORAGES
def test_who_stands_before_a_renaming_is_told_to_begin_again_and_never_lacks_a_column(
    make_world: MakeWorld, storage: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    world, consumer = made(make_world, storage), Consumer("t", ["k"])
    consumer.read(world.htap)
    world.run("alter table t rename column v to w", "update t set w = 'b' where k = 1")
    assert world.htap.sync_now().tables["t"].copied_rows == 0
    assert "added 'w' and dropped 'v', or renamed columns, and" in caplog.text
    with pytest.raises(rhei.ChangesLostError, match="a column was renamed"):
        world.htap.changes("t", consumer.position)
    consumer.read(world.htap)
    consumer.check(world.present("t"))
    assert {key: row["w"] for key, row in consumer.rows.items()} == {
        (0,): "a",
        (1,): "b",
        (2,): "a",
    }
    world.run("update t set w = 'c' where k = 2", "delete from t where k = 0")
    world.htap.sync_now()
    assert world.htap.changes("t", consumer.position).rows.num_rows == 2
    consumer.read(world.htap)
    consumer.check(world.present("t"))


@STORAGES
def test_a_mirror_put_back_from_a_backup_does_not_pass_for_the_one_that_was_read(
    make_world: MakeWorld, storage: str | None, tmp_path: Path
) -> None:
    world, consumer = made(make_world, storage), Consumer("t", ["k"])
    consumer.read(world.htap)
    early = Consumer("t", ["k"], dict(consumer.rows), consumer.position)
    world.crash()
    mirror = Path(str(world.settings.mirror.path))
    copy = shutil.copytree if mirror.is_dir() else shutil.copy
    copy(mirror, tmp_path / "backup")
    world.run("update t set v = 'b' where k = 1")
    world.htap.sync_now()
    consumer.read(world.htap)
    # The source no longer has what the backup lacks: all is compared, and dated by that.
    world.run("update t set v = 'a' where k = 1")
    world.crash()
    if mirror.is_dir():
        shutil.rmtree(mirror)
    copy(tmp_path / "backup", mirror)
    with pytest.raises(rhei.ChangesLostError, match="of another history"):
        world.htap.changes("t", consumer.position)
    world.run("update t set v = 'c' where k = 2")
    world.htap.sync_now()
    with pytest.raises(rhei.ChangesLostError):
        world.htap.changes("t", consumer.position)
    for reader, may_lose in ((consumer, True), (early, False)):
        reader.read(world.htap, may_lose=may_lose)
        reader.check(world.present("t"))


@pytest.mark.long
def test_a_mirror_that_an_earlier_version_wrote_gives_positions_that_hold(
    make_world: MakeWorld,
) -> None:
    world = made(make_world)
    world.run("update t set v = 'b' where k = 1")
    world.htap.sync_now()
    world.crash()
    with closing(duckdb.connect(str(world.settings.mirror.path))) as mirror:
        mirror.execute("drop table _rhei_feed_t")
    readers = [Consumer("t", ["k"]), Consumer("t", ["k"])]
    for number, reader in enumerate(readers):
        reader.read(world.htap)
        reader.check(world.present("t"))
        world.run(f"update t set v = 'c{number}' where k < 2")
        world.crash()
        world.htap.sync_now()
    for reader in readers:
        reader.read(world.htap)
        reader.check(world.present("t"))


def test_files_that_are_lost_void_the_positions_before(make_world: MakeWorld) -> None:
    world, consumer = made(make_world, "ipc", rows=50), Consumer("t", ["k"])
    consumer.read(world.htap)
    world.run("update t set v = 'b' where k = 1")
    world.htap.sync_now()
    world.crash()
    for file in Path(str(world.settings.mirror.path)).rglob("*.arrow"):
        damage(file, "flip half")
    world.htap.repair("t")
    with pytest.raises(rhei.ChangesLostError, match="of another history"):
        world.htap.changes("t", consumer.position)
    consumer.read(world.htap, may_lose=True)
    consumer.check(world.present("t"))
    world.assert_equal("t")


@pytest.mark.long
@STORAGES
def test_a_consumer_beside_a_busy_writer_misses_nothing(
    make_world: MakeWorld, storage: str | None
) -> None:
    world, consumer = made(make_world, storage), Consumer("t", ["k"])
    background = world.htap.start_sync(0.001)
    for number in range(24):
        world.run(f"insert or replace into t values ({number % 7}, '{number}')")
        if number % 3 == 0:
            world.run(f"delete from t where k = {number % 5}")
        found = world.htap.changes("t", consumer.position)
        stream = world.htap.stream_changes("t", consumer.position, rows=2)
        assert str(stream.position) >= str(found.position)
        consumer.take(found)
        assert set(pa.Table.from_batches(stream.batches, stream.schema)["k"].to_pylist()) <= {
            *range(7)
        }
        assert world.htap.changes("t", datetime.now(UTC) + timedelta(days=1)).rows.num_rows == 0
    world.htap.stop_sync()
    assert not background.running
    world.htap.sync_now()
    consumer.read(world.htap)
    consumer.check(world.present("t"))


@pytest.mark.long
@STORAGES
def test_a_long_answer_comes_in_batches_of_one_state(
    make_world: MakeWorld, storage: str | None
) -> None:
    world = made(make_world, storage, rows=30_000)
    since = world.htap.changes("t").position
    world.run("update t set v = 'b' where k % 2 = 0")
    world.htap.sync_now()
    stream = world.htap.stream_changes("t", since, rows=1_000)
    batches = [next(stream.batches)]
    world.run("delete from t")
    world.htap.sync_now()
    batches += stream.batches
    rows = pa.Table.from_batches(batches, stream.schema)
    assert max(batch.num_rows for batch in batches) <= 8_192  # DataFusion's own
    assert sorted(rows["k"].to_pylist()) == list(range(0, 30_000, 2))
    assert set(rows["_rhei_old_v"].to_pylist()) == {"a"}
    later = world.htap.changes("t", stream.position)
    assert (later.inserted, later.updated, later.deleted) == (0, 0, 30_000)


def test_a_reader_of_files_answers_for_its_own_state(make_world: MakeWorld) -> None:
    world = made(make_world, "parquet")
    since, began = world.htap.changes("t").position, datetime.now(UTC) + timedelta(milliseconds=1)
    with MirrorReader(str(world.settings.mirror.path)) as reader:
        assert reader.changes("t", since).rows.num_rows == 0
        while datetime.now(UTC) <= began:
            pass
        world.run("update t set v = 'b' where k = 1")
        world.htap.sync_now()
        now = world.htap.changes("t", since)
        with pytest.raises(rhei.ChangesLostError, match="the mirror is older"):
            reader.changes("t", now.position)
        reader.refresh()
        assert reader.changes("t", since).rows.equals(now.rows)
        found = reader.diff("t", began, datetime.now(UTC)).to_pylist()
        assert [(row["k"], row["v"], row["_rhei_old_v"]) for row in found] == [(1, "b", "a")]
        with pytest.raises(rhei.SchemaError):
            reader.changes("u")


def test_what_cannot_be_answered_names_its_way_out(make_world: MakeWorld) -> None:
    world = made(make_world)
    position = world.htap.changes("t").position
    for wrong in ("", "1", f"{position}x", "0-" + str(position)[2:]):
        with pytest.raises(rhei.QueryError, match="give the position that an earlier answer"):
            world.htap.changes("t", wrong)
    with pytest.raises(rhei.QueryError, match="its history begins at"):
        world.htap.changes("t", datetime(2000, 1, 1, tzinfo=UTC))
    with pytest.raises(rhei.QueryError, match="has no time zone"):
        world.htap.diff("t", datetime(2030, 1, 1), datetime(2031, 1, 1))  # noqa: DTZ001
    assert rhei.ChangePosition.parse(str(position)) == position
    assert world.htap.changes("t", f" {position}\n").rows.num_rows == 0


def test_a_table_without_history_gets_one_and_then_tells_its_changes(
    make_world: MakeWorld,
) -> None:
    world = make_world(mode=None, tables=[{"name": "t"}])
    world.run("create table t(k integer primary key, v text)", "insert into t values (1, 'a')")
    world.htap.sync_now()
    with pytest.raises(rhei.QueryError, match="declare 'mode: temporal'"):
        world.htap.changes("t")
    world.crash()
    world.tables = [{"name": "t", "mode": "temporal"}]
    world.htap.sync_now()
    since = world.htap.changes("t").position
    world.run("delete from t")
    world.htap.sync_now()
    assert world.htap.changes("t", since).deleted == 1


def test_no_query_reads_the_record_of_changes(make_world: MakeWorld) -> None:
    for storage in (None, "memory"):
        world = made(make_world, storage)
        with pytest.raises(rhei.QueryError, match="housekeeping"):
            world.htap.query("select * from _rhei_feed_t", hint="olap")
        assert world.htap.changes("t").inserted == 3


def test_a_mirror_of_ones_own_that_keeps_no_order_says_so() -> None:
    with pytest.raises(rhei.QueryError, match="ask a mirror of kind 'duckdb' or 'datafusion'"):
        time_travel.changes(HISTORY, None, StubMirror(), "raise")
