"""A buffer is one pipeline's: another one is refused, as is a log of an application's events."""

from collections.abc import Callable, Iterator
from contextlib import closing

import psycopg
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from rhei_pipeline import HTAP, Settings
from rhei_pipeline.buffer.log import ChangeLog
from rhei_pipeline.cli.main import app
from rhei_pipeline.errors import CaptureError
from rhei_pipeline.wiring.engine import bridge
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World

MakeWorld = Callable[..., World]
OTHER_SOURCE = (
    r"buffer .*cdc' belongs to another source, .*, not to .*capture.buffer.path of its own"
)
APPLICATIONS = r"is of an application's events, .*empty, or not there"
EVENTS = pa.table({"id": [1, 2], "v": [1, 2]})


def filled(world: World) -> World:
    world.run("create table t(id integer primary key, v int)", "insert into t values (1, 1)")
    return world


def declared(world: World | PostgresWorld, name: str, **changed: object) -> Settings:
    """Declare a pipeline with a mirror and a registry of its own, and the one buffer."""
    form = world.settings.model_dump()
    form["mirror"]["path"] = world.directory / f"{name}.mirror"
    form["registry"] = {"path": world.directory / f"{name}.json"}
    buffer = {"kind": "rocksdb", "path": world.directory / "cdc"}
    form["capture"] = {**form["capture"], "buffer": buffer}
    return Settings(**{**form, "name": name, **changed})


def versions(htap: HTAP) -> list[int]:
    found = htap.query("select v from t order by _rhei_valid_from", hint="olap")
    return [int(v) for v in found["v"].to_pylist()]


def sync(settings: Settings) -> list[int]:
    with HTAP(settings) as htap:
        assert not htap.sync_now().errors
        return versions(htap)


@pytest.fixture(params=[None, "parquet"])
def shop(request: pytest.FixtureRequest, make_world: MakeWorld) -> Iterator[World]:
    """A pipeline with a history, whose buffer holds a change that the mirror has not."""
    world = filled(make_world(mode="temporal", storage=request.param))
    sync(declared(world, "shop"))
    world.run("update t set v = 2")
    assert bridge(declared(world, "shop")) == 1
    world.run("update t set v = 3")
    yield world
    assert sync(declared(world, "shop")) == [1, 2, 3], "the buffer has lost a version"


def test_a_buffer_of_another_source_is_refused_and_loses_no_version(
    shop: World, make_world: MakeWorld
) -> None:
    bills = filled(make_world(mode="temporal"))
    settings = declared(shop, "bills", source=bills.settings.source)
    for work in (sync, bridge):
        with pytest.raises(CaptureError, match=OTHER_SOURCE):
            work(settings)
    own = settings.capture.model_dump()
    own["buffer"]["path"] = bills.directory / "cdc"
    assert sync(Settings(**{**settings.model_dump(), "capture": own})) == [1]


def test_a_buffer_of_a_database_is_refused_to_another_one_of_its_server(
    make_postgres: Callable[..., PostgresWorld], make_world: MakeWorld
) -> None:
    shop = make_postgres(mode="temporal")
    shop.run("create table t(id int primary key, v int)", "insert into t values (1, 1)")
    sync(declared(shop, "shop"))
    shop.run("update t set v = 2")
    name = f"{shop.app.info.dbname}_b"
    shop.run(f"create database {name}")
    try:
        dsn = psycopg.conninfo.make_conninfo(shop.dsn, dbname=name)
        with closing(psycopg.connect(dsn, autocommit=True)) as other:
            other.execute("create table t(id int primary key, v int)")
        settings = declared(shop, "bills", source={"kind": "postgres", "dsn": dsn})
        with pytest.raises(CaptureError, match=OTHER_SOURCE):
            sync(settings)
    finally:
        shop.run(f"drop database {name} with (force)")
    assert sync(declared(shop, "shop")) == [1, 2]


def test_a_buffer_of_another_pipeline_of_the_source_is_refused(shop: World) -> None:
    for work in (sync, bridge):
        with pytest.raises(CaptureError, match=r"another pipeline, 'shop', not to 'copy'"):
            work(declared(shop, "copy"))


def test_a_buffer_keeps_its_name_though_the_declaration_loses_it(shop: World) -> None:
    assert bridge(Settings(**{**declared(shop, "shop").model_dump(), "name": None})) == 1
    with pytest.raises(CaptureError, match=r"another pipeline, 'shop', not to 'copy'"):
        bridge(declared(shop, "copy"))


def test_a_buffer_keeps_its_mirror_though_the_registry_is_lost(make_world: MakeWorld) -> None:
    """Which mirror it is for is not known then; another one is none the less not the one."""
    world = filled(make_world(mode="temporal"))
    places = (declared(world, name).model_dump() for name in ("first", "second"))
    first, second = (Settings(**{**place, "name": None}) for place in places)
    assert sync(first) == [1]
    own = second.capture.model_dump()
    own["buffer"]["path"] = world.directory / "own"
    assert sync(Settings(**{**second.model_dump(), "capture": own})) == [1]
    first.registry.path.unlink()
    bridge(first)
    with pytest.raises(CaptureError, match="was filled for another mirror since"):
        bridge(second)


@pytest.mark.long
def test_two_mirrors_without_a_name_do_not_share_a_buffer_unseen(make_world: MakeWorld) -> None:
    """The second is new, as one is that was begun again: the first one says who came."""
    world = filled(make_world(mode="temporal"))
    places = (declared(world, name).model_dump() for name in ("first", "second"))
    first, second = (Settings(**{**place, "name": None}) for place in places)
    assert sync(first) == [1]
    assert sync(second) == [1]
    shared = r"was filled for another mirror since: two declarations share it"
    for work in (sync, bridge):
        with pytest.raises(CaptureError, match=shared):
            work(first)
    own = first.capture.model_dump()
    own["buffer"]["path"] = world.directory / "own"
    world.run("update t set v = 2")
    assert sync(Settings(**{**first.model_dump(), "capture": own})) == [1, 2]
    assert sync(second) == [1, 2]


def test_a_mirror_that_is_begun_again_goes_on_with_its_buffer(make_world: MakeWorld) -> None:
    world = filled(make_world(mode="temporal"))
    settings = declared(world, "shop")
    sync(settings)
    for left in world.directory.glob("shop.mirror*"):
        left.unlink()
    world.run("update t set v = 2")
    assert sync(settings) == [2]
    world.run("update t set v = 3")
    assert bridge(settings) == 1
    assert sync(settings) == [2, 3]


def test_a_pipeline_that_was_renamed_adopts_its_buffer_with_its_mirror(shop: World) -> None:
    before = declared(shop, "shop")
    renamed = Settings(**{**before.model_dump(), "name": "store"})
    file = shop.directory / "renamed.json"
    file.write_text(renamed.model_dump_json())
    assert CliRunner().invoke(app, ["adopt", "--config", str(file)]).exit_code == 0
    assert bridge(renamed) == 1
    assert sync(renamed) == [1, 2, 3]
    with pytest.raises(CaptureError, match="another pipeline, 'store', not to 'shop'"):
        bridge(before)
    file.write_text(before.model_dump_json())
    assert CliRunner().invoke(app, ["adopt", "--config", str(file)]).exit_code == 0


def test_a_buffer_is_adopted_that_lacks_the_file_beside_it(shop: World) -> None:
    """It is written again by a sync, which does not begin before the buffer is adopted."""
    before = declared(shop, "shop")
    file = shop.directory / "adopted.json"
    for name in ("store", "shop"):
        (shop.directory / "cdc.confirmed.json").unlink()
        renamed = Settings(**{**before.model_dump(), "name": name})
        file.write_text(renamed.model_dump_json())
        assert CliRunner().invoke(app, ["adopt", "--config", str(file)]).exit_code == 0
        assert sync(renamed) == [1, 2, 3]


def test_a_buffer_of_before_owners_were_recorded_is_its_first_pipelines(shop: World) -> None:
    with ChangeLog(shop.directory / "cdc") as log, log.writing() as writer:
        writer.set_fact("owner", None)
        writer.set_fact("mirror", None)
    assert bridge(declared(shop, "shop")) == 1
    with pytest.raises(CaptureError, match="another pipeline"):
        bridge(declared(shop, "copy"))


def test_a_buffer_of_before_owners_were_recorded_may_follow_no_table(make_world: MakeWorld) -> None:
    world = filled(make_world(mode="temporal"))
    settings = declared(world, "shop")
    sync(settings)
    with ChangeLog(world.directory / "cdc") as log, log.writing() as writer:
        for fact in ("owner", "mirror", *(f"bridge/{name}" for name in log.facts("bridge/"))):
            writer.set_fact(fact, None)
    world.run("update t set v = 2")
    assert sync(settings) == [1, 2]


def test_a_log_of_an_applications_events_is_no_buffer(make_world: MakeWorld) -> None:
    world = filled(make_world())
    settings = declared(world, "shop")
    with ChangeLog(world.directory / "cdc") as log:
        log.append(EVENTS, stream="t")
    with pytest.raises(CaptureError, match=APPLICATIONS):
        HTAP(settings)
    with ChangeLog(world.directory / "cdc") as log:
        assert [batch.num_rows for batch in log.read(stream="t")] == [2]
    own = settings.capture.model_dump()
    own["buffer"]["path"] = world.directory / "own"
    with HTAP(Settings(**{**settings.model_dump(), "capture": own})) as htap:
        assert htap.sync_now().inserted == 1


def test_a_log_whose_events_were_all_pruned_is_no_buffer(make_world: MakeWorld) -> None:
    world = filled(make_world())
    with ChangeLog(world.directory / "cdc") as log:
        log.prune(log.append(EVENTS, stream="t"), stream="t")
    with pytest.raises(CaptureError, match=APPLICATIONS):
        HTAP(declared(world, "shop"))
    with ChangeLog(world.directory / "cdc") as log:
        assert log.append(EVENTS, stream="t") == 4


def test_a_buffer_takes_no_events_of_an_application(shop: World) -> None:
    refused = r"is the buffer of a pipeline, .*give the application's events a directory"
    with (
        ChangeLog(shop.directory / "cdc") as log,
        pytest.raises(CaptureError, match=refused),
    ):
        log.append(EVENTS, stream="t")
    types = {"name": "t", "types": {"id": "int64", "v": "int64"}, "primary_key": ["id"]}
    source = {"kind": "log", "path": shop.directory / "cdc"}
    with pytest.raises(CaptureError, match=refused):
        HTAP(declared(shop, "events", source=source, tables=[types], capture={}))
    with ChangeLog(shop.directory / "events") as log:
        assert log.append(EVENTS, stream="t") == 2
