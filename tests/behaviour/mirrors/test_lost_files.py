"""Files that go between two looks: DataFusion alone would take each for one without rows."""

import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import obstore
import pytest
from datafusion.record_batch import RecordBatchStream

import rhei_pipeline as rhei
from rhei_pipeline import HTAP, Settings
from rhei_pipeline.errors import MirrorBusyError, MirrorDamagedError, MirrorError, RheiError
from rhei_pipeline.mirrors.datafusion.mirror import DataFusionMirror
from rhei_pipeline.mirrors.datafusion.planned_query import PlannedQuery
from rhei_pipeline.mirrors.datafusion.reader import MirrorReader
from rhei_pipeline.model.cancellation import Cancel
from rhei_pipeline.model.streaming import Begun
from tests.support.fix_object_store import Store
from tests.support.fix_world import World
from tests.support.parts import engine_of, manifest_of, objects_of, store_of

pytestmark = pytest.mark.turns

MakeWorld = Callable[..., World]
COUNT = "select count(*) as n, sum(v) as s from {}"


def all_rows(found: rhei.Streamed) -> list[dict[str, Any]]:
    return [row for batch in found.batches for row in batch.to_pylist()]


def rows_of(mirror: DataFusionMirror, table: str) -> list[str]:
    """Return the names of the files that hold a table's rows."""
    store = store_of(mirror)
    [stored] = [t for t in manifest_of(mirror).tables.values() if t.relation == table]
    return [store.place(segment.name) for segment in stored.segments]


def filled(world: World) -> World:
    """Have two tables of three rows mirrored."""
    for table in ("t", "u"):
        world.run(f"create table {table}(id integer primary key, v integer)")
        world.run(f"insert into {table} values (1, 1), (2, 2), (3, 3)")
    world.htap.sync_now()
    return world


@pytest.fixture
def remote(make_world: MakeWorld, bucket: Store, request: pytest.FixtureRequest) -> Settings:
    """A history and nothing else of two tables, in a store."""
    world = make_world(mode="temporal")
    form = world.settings.model_dump()
    form["mirror"] = {
        "kind": "datafusion",
        "storage": request.param,
        "path": bucket.url,
        "object_store": bucket.settings | bucket.keys,
    }
    for table in ("t", "u"):
        world.run(f"create table {table}(id integer primary key, v integer)")
        world.run(f"insert into {table} values (1, 1), (2, 2), (3, 3)")
    return Settings(**form)


@pytest.mark.long
@pytest.mark.parametrize("remote", ["parquet", "delta"], indirect=True)
def test_an_object_that_is_deleted_behind_a_first_answer_is_missed_by_the_next(
    remote: Settings,
) -> None:
    with ExitStack() as opened:
        htap = opened.enter_context(HTAP(remote))
        htap.sync_now()
        reader, joint = rhei.reader(remote), rhei.reader({"shop": remote, "bills": remote})
        opened.enter_context(reader)
        opened.enter_context(joint)
        instant = datetime.now(UTC)
        ways: dict[str, Callable[[str], object]] = {
            "query": lambda table: htap.query(COUNT.format(table), hint="olap").to_pylist(),
            "rows": lambda table: htap.query(f"select * from {table}", hint="olap").num_rows,
            "stream": lambda table: all_rows(htap.stream(COUNT.format(table), hint="olap")),
            "reader": lambda table: reader.query(COUNT.format(table)).to_pylist(),
            "joint": lambda table: joint.query(COUNT.format(f"bills.{table}")).to_pylist(),
            "count": htap.row_count,
            "changes": lambda table: htap.changes(table).rows.num_rows,
            "as of": lambda table: htap.as_of(table, instant).num_rows,
        }
        for way, ask in ways.items():
            assert ask("t") in (3, [{"n": 3, "s": 6}]), way
        mirror = engine_of(htap).mirror
        assert isinstance(mirror, DataFusionMirror)
        for name in rows_of(mirror, "t"):
            obstore.delete(objects_of(mirror), name)
        for way, ask in ways.items():
            with pytest.raises(MirrorDamagedError, match=r"'t': .* is missing .*rhei repair t"):
                ask("t")
            assert ask("u") in (3, [{"n": 3, "s": 6}]), way
        htap.repair("t")
        assert ways["query"]("t") == [{"n": 3, "s": 6}]


@pytest.mark.parametrize("remote", ["parquet"], indirect=True)
def test_an_object_that_goes_while_it_is_read_is_named_and_no_statement_blamed(
    remote: Settings, bucket: Store
) -> None:
    with HTAP(remote) as htap:
        htap.sync_now()
        going: list[str] = []

        def fault(method: str, path: str) -> str:
            if method == "GET" and "parquet" in path:
                going.append(path)
            return "404" if going and "parquet" in path else ""

        htap.query("select * from u", hint="olap")
        bucket.fault = fault
        with pytest.raises(MirrorDamagedError, match=r"'t': .* is missing"):
            htap.query("select * from t", hint="olap")
        bucket.fault = None
        assert htap.query("select * from u", hint="olap").num_rows == 3


@pytest.fixture(params=["parquet", "delta"])
def local(request: pytest.FixtureRequest, make_world: MakeWorld) -> DataFusionMirror:
    mirror = engine_of(filled(make_world(storage=request.param)).htap).mirror
    assert isinstance(mirror, DataFusionMirror)
    return mirror


@pytest.mark.parametrize("begun", [None, lambda _cancel: None], ids=["waited for", "cancellable"])
def test_a_file_that_goes_between_the_check_and_the_reading_is_missed(
    local: DataFusionMirror, begun: Begun | None
) -> None:
    asked = {table: local.stream(f"select v from {table}", (), 10, begun) for table in ("t", "u")}
    for name in rows_of(local, "t"):
        (Path(local.path) / name).unlink()
    with pytest.raises(MirrorDamagedError, match=r"'t': .* is missing"):
        all_rows(asked["t"])
    assert all_rows(asked["u"]) == [{"v": 1}, {"v": 2}, {"v": 3}]


def test_a_file_that_goes_before_several_mirrors_are_read_together_is_missed(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = filled(make_world(storage="parquet"))
    mirror, begin = engine_of(world.htap).mirror, PlannedQuery._begun
    assert isinstance(mirror, DataFusionMirror)
    gone = [Path(mirror.path) / name for name in rows_of(mirror, "t")]

    def begun(planned: PlannedQuery, cancel: Cancel) -> RecordBatchStream:
        for path in gone:
            path.unlink(missing_ok=True)
        return begin(planned, cancel)

    with rhei.reader({"shop": world.settings, "bills": world.settings}) as joint:
        monkeypatch.setattr(PlannedQuery, "_begun", begun)
        with pytest.raises(MirrorDamagedError, match=r"'t': .* is missing"):
            joint.query("select v from bills.t")
        assert joint.query("select v from bills.u").num_rows == 3


def test_a_file_that_is_put_back_between_the_check_and_the_reading_has_one_ask_again(
    local: DataFusionMirror,
) -> None:
    asked = local.stream("select v from t", (), 10)
    for name in rows_of(local, "t"):
        os.utime(Path(local.path) / name, (0, 0))  # as one from a backup
    with pytest.raises(MirrorBusyError, match=r"replaced while they were read .*ask again"):
        all_rows(asked)
    assert all_rows(local.stream("select v from t", (), 10)) == [{"v": 1}, {"v": 2}, {"v": 3}]


def test_a_mirror_that_is_gone_is_named_to_a_reader_that_moves_on(local: DataFusionMirror) -> None:
    with closing(MirrorReader(local.path)) as reader:
        shutil.rmtree(local.path)
        with pytest.raises(MirrorError, match="no mirror at"):
            reader.refresh()
        with pytest.raises(RheiError):
            reader.query("select v from t")
