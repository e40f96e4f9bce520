"""A mirror is read from any process, whoever holds it, and nobody is kept from writing it."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

import rhei_pipeline as rhei
from rhei_pipeline import Settings
from rhei_pipeline.errors import MirrorBusyError, MirrorError, QueryError
from tests.support.fix_world import World
from tests.support.holding import OtherProcess, holding, written

MakeWorld = Callable[..., World]
SQL = "select id, status from orders order by id"
LONG = (
    "select count(*) as n from range(4000000) a, range(4000000) b where (a.range + b.range) % 7 = 3"
)
OPEN = (
    "import duckdb, sys; held = duckdb.connect(sys.argv[1]);"
    "print('ready', flush=True); sys.stdin.read()"
)
READ = """
import sys
import rhei_pipeline as rhei
with rhei.reader(rhei.Settings.model_validate_json(sys.argv[1])) as reader:
    print("ready", flush=True)
    reader.query(sys.argv[2])
"""


def waits(settings: Settings, seconds: float) -> Settings:
    """Return the same declaration, with so long a wait for the mirror."""
    mirror = settings.mirror.model_copy(update={"lock_timeout_seconds": float(seconds)})
    return settings.model_copy(update={"mirror": mirror})


def is_held(mirror: Path) -> bool:
    """Return whether another process has the file open."""
    try:
        duckdb.connect(str(mirror)).close()
    except duckdb.IOException:
        return True
    return False


def told(found: pa.Table) -> tuple[str, dict[str, int]]:
    """Return what was read, and its watermarks."""
    labels = found.schema.metadata or {}
    return labels[b"rhei.read_from"].decode(), json.loads(labels[b"rhei.watermark"])


def without_source(world: World) -> None:
    world.app.close()
    world.path.rename(world.directory / "away.db")


def test_the_holder_answers_and_without_one_the_file(world: World) -> None:
    world.htap.sync_now()
    world.run("update orders set status = 'sent' where id = 1")
    watermarks = {"orders": world.htap.sync_now().watermark}
    rows = world.htap.query(SQL, hint="olap").to_pylist()
    world.crash()
    with rhei.reader(world.settings) as reader:
        with holding(world.settings):
            found = reader.query(SQL)
            assert (found.to_pylist(), told(found)) == (rows, ("holder", watermarks))
        without_source(world)
        found = reader.query(SQL)
        assert (found.to_pylist(), told(found)) == (rows, ("file", watermarks))
        with pytest.raises(QueryError, match="DELETE"):
            reader.query("delete from orders")
        with duckdb.connect(str(world.settings.mirror.path)) as mine:  # nothing holds the file
            assert mine.execute("select count(*) from orders").fetchone() == (3,)


def ask_all(settings: Settings, *, joint: bool) -> None:
    """Ask in every way that another process than the holder can."""
    with rhei.reader(settings) as reader:
        reader.query(SQL)
    with rhei.open(settings, hold=False) as htap:
        htap.query(SQL, hint="olap")
        htap.query(SQL, hint="oltp")
    if joint:
        with rhei.reader({"shop": settings}) as several:
            several.query(SQL.replace("orders", "shop.orders", 1))


@pytest.mark.long
def test_whoever_has_asked_leaves_no_thread_behind(world: World) -> None:
    """A program that opens and closes for each question would have as many in a few minutes."""
    world.htap.sync_now()
    world.crash()
    before = set(threading.enumerate())
    ask_all(world.settings, joint=True)
    with holding(world.settings):
        ask_all(world.settings, joint=False)
    for thread in set(threading.enumerate()) - before:
        thread.join(30)
        assert not thread.is_alive(), thread.name


def test_a_read_of_the_file_makes_way_for_a_process_that_writes(world: World) -> None:
    world.htap.sync_now()
    world.crash()
    with OtherProcess(READ, written(waits(world.settings, 60)), LONG) as reading:
        while not is_held(world.settings.mirror.path):
            time.sleep(0.01)
        with holding(waits(world.settings, 0)), rhei.reader(world.settings) as other:
            assert told(other.query(SQL))[0] == "holder"
        assert reading.process.poll() is None


def test_the_published_copy_is_read_where_the_holder_cannot_be_asked(world: World) -> None:
    world.published = {"path": world.directory / "published.duckdb", "interval_seconds": 0}
    watermarks = {"orders": world.htap.sync_now().watermark}
    world.crash()
    with OtherProcess(OPEN, str(world.settings.mirror.path)), rhei.reader(world.settings) as reader:
        found = reader.query(SQL)
        assert (found.num_rows, told(found)) == (3, ("published copy", watermarks))
    world.published = None
    with (
        OtherProcess(OPEN, str(world.settings.mirror.path)) as stranger,
        rhei.reader(world.settings) as reader,
        pytest.raises(MirrorBusyError, match=f"held by another process: {stranger.process.pid}"),
    ):
        reader.query(SQL)


def test_files_are_read_beside_their_writer(make_world: MakeWorld) -> None:
    world = make_world(storage="parquet")
    world.run("create table orders(id integer primary key, status text)")
    world.run("insert into orders values (1, 'new')")
    world.htap.sync_now()
    with rhei.reader(world.settings) as reader:
        assert told(reader.query(SQL))[0] == "file"
        world.run("update orders set status = 'sent'")
        watermark = world.htap.sync_now().watermark
        found = reader.query(SQL)
        assert found["status"].to_pylist() == ["sent"]
        assert told(found) == ("file", {"orders": watermark})


def test_what_no_other_process_can_read_is_refused_with_the_way_out(
    make_world: MakeWorld, tmp_path: Path
) -> None:
    world = make_world(mirror_path=":memory:")
    world.run("create table orders(id integer primary key, status text)")
    with (
        rhei.reader(world.settings) as reader,
        pytest.raises(MirrorError, match=r"in memory .*give mirror\.path a file"),
    ):
        reader.query(SQL)
    world.mirror_path = str(tmp_path / "mirror.duckdb")
    with rhei.reader(world.settings) as reader:
        with pytest.raises(MirrorError, match="sync once, then read"):
            reader.query(SQL)
        world.htap.sync_now()
        world.crash()
        assert reader.query(SQL).num_rows == 0
