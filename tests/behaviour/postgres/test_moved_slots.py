"""Slots that others moved, made or lost, and servers that make none: a sync is asked for."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest

from rhei_pipeline import SourceUnreachableError
from rhei_pipeline.errors import CaptureError, SourceBusyError
from rhei_pipeline.wiring.engine import unseen_events
from rhei_pipeline.wiring.source import validate
from tests.support.dagster_shop import Shop
from tests.support.fix_postgres import AnyServer, PostgresWorld, database, started

CAPTURES: dict[str, dict[str, Any]] = {"log": {}, "stream": {"streaming": True}, "buffer": {}}
SLOT = "select slot_name::text from pg_replication_slots where database = current_database()"
ADVANCED = "select pg_replication_slot_advance('{slot}', pg_current_wal_flush_lsn())"
DROPPED = "select pg_drop_replication_slot('{slot}')"
MADE = "select pg_create_logical_replication_slot('{slot}', 'pgoutput')"
LEFT = "alter publication {slot} drop table t"
RETURNED = "alter publication {slot} add table t"
INSERTS = "alter publication {slot} set (publish = 'insert')"
ALL = "alter publication {slot} set (publish = 'insert, update, delete, truncate')"
WRITTEN = "update t set v = 'b' where id = 1"
#: What others do, all of it between two syncs.
DEEDS = {
    "moved": [WRITTEN, ADVANCED],
    "made again": [WRITTEN, DROPPED, MADE],
    "not published": [LEFT, WRITTEN, RETURNED],
    "published in part": [INSERTS, WRITTEN, ALL],
}


def settled(world: PostgresWorld) -> str:
    """Mirror two tables, leave nothing pending; return the name of slot and publication."""
    for name in ("t", "u"):
        world.run(
            f"create table {name}(id int primary key, v text)",
            f"insert into {name} values (1, 'a'), (2, 'a')",
        )
    world.htap.sync_now()
    world.crash()
    assert unseen_events(world.settings) == 0
    found = world.app.execute(SLOT.encode()).fetchone()
    assert found is not None
    return str(found[0])


def assert_goes_on(world: PostgresWorld) -> None:
    """A sync is asked for until one has found what was missed; then none is."""
    assert unseen_events(world.settings) is None
    assert not world.htap.sync_now().errors
    world.assert_equal("t", "u")
    world.crash()
    assert unseen_events(world.settings) == 0
    world.run("update u set v = 'c' where id = 2")
    assert unseen_events(world.settings) == 1
    world.htap.sync_now()
    world.assert_equal("t", "u")
    world.crash()
    assert unseen_events(world.settings) == 0


@pytest.mark.parametrize("deed", DEEDS)
@pytest.mark.parametrize("capture", CAPTURES)
def test_what_others_did_to_the_slot_is_something_to_see_to(
    make_postgres: Callable[..., PostgresWorld], tmp_path: Path, capture: str, deed: str
) -> None:
    how = {"method": "logical", **CAPTURES[capture]}
    if capture == "buffer":
        how["buffer"] = {"path": tmp_path / "cdc"}
    world = make_postgres(capture=how, mode="temporal")
    slot = settled(world)
    world.run(*(statement.format(slot=slot) for statement in DEEDS[deed]))
    assert_goes_on(world)
    assert [row["v"] for row in world.versions("t") if row["id"] == 1] == ["a", "b"]


@pytest.mark.long
def test_a_crash_before_what_was_confirmed_is_noted_has_one_more_sync(
    make_postgres: Callable[..., PostgresWorld],
) -> None:
    world = make_postgres(capture={"method": "logical"})
    settled(world)
    (note,) = world.directory.glob("*.slot.json")
    before = note.read_text("utf-8")
    world.run(WRITTEN)
    world.htap.sync_now()
    world.crash()
    note.write_text(before, "utf-8")
    assert_goes_on(world)
    note.unlink()  # as of an older version: nothing can be told by it
    assert unseen_events(world.settings) == 0


@pytest.mark.long
def test_tables_that_are_not_mirrored_are_nothing_to_see_to_in_a_publication_of_all(
    make_postgres: Callable[..., PostgresWorld],
) -> None:
    capture = {"method": "logical", "publication": "everything"}
    world = make_postgres(capture=capture, tables=[{"name": "t"}, {"name": "u"}])
    world.run("create publication everything for all tables")
    settled(world)
    for statement in ("create table staging(id int primary key)", "drop table staging"):
        world.run(statement)
        assert unseen_events(world.settings) == 0, statement
    world.run(INSERTS.format(slot="everything"), WRITTEN, ALL.format(slot="everything"))
    assert_goes_on(world)


@pytest.mark.parametrize("capture", ["log", "buffer"])
def test_another_slot_of_the_name_is_left_alone_and_named(
    make_postgres: Callable[..., PostgresWorld], tmp_path: Path, capture: str
) -> None:
    buffer = {"buffer": {"path": tmp_path / "cdc"}} if capture == "buffer" else {}
    world = make_postgres(capture={"method": "logical", **buffer})
    slot = settled(world)
    drop = f"select pg_drop_replication_slot('{slot}')"
    world.run(WRITTEN, drop, f"select pg_create_physical_replication_slot('{slot}')")
    assert unseen_events(world.settings) is None
    errors = world.htap.sync_now().errors
    assert errors.keys() == {"t", "u"}
    world.crash()  # who has the buffer open is the one to ask
    findings = [f"{found}" for found in validate(world.settings)]
    assert findings
    for told in (*errors.values(), *findings):
        assert "that this mirror cannot read" in told
        assert drop in told
    world.run(drop)
    assert_goes_on(world)


@pytest.fixture
def own_server() -> Iterator[AnyServer]:
    """Start a server whose settings may be changed."""
    with started(None) as server:
        yield server


@pytest.fixture
def own(own_server: AnyServer, tmp_path: Path) -> Iterator[PostgresWorld]:
    """A mirror of a database on it, in an instance of Dagster's project."""
    for dsn in database(own_server):
        world = PostgresWorld(dsn, tmp_path, capture={"method": "logical"})
        yield world
        world.close()


def restarted(server: AnyServer, world: PostgresWorld, *settings: str) -> None:
    """Start a server again with other settings; the engine's sessions end with it."""
    world.run(*(f"alter system set {setting}" for setting in settings))
    world.app.close()
    server.kill()
    world.app = psycopg.connect(world.dsn, autocommit=True)


def refused(world: PostgresWorld, error: type[Exception]) -> str:
    """Return what a sync is refused for, once the sessions of before have been missed."""
    for _ in range(2):
        with pytest.raises((error, SourceUnreachableError)) as told:
            world.htap.sync_now()
    return str(told.value)


@pytest.mark.long
def test_the_sensor_opens_a_session_where_the_slot_is_lost(own: PostgresWorld) -> None:
    settled(own)
    own.run(WRITTEN)
    own.run("alter system set max_slot_wal_keep_size = '1MB'", "select pg_reload_conf()")
    own.run("create table big(v text)")
    fill = "insert into big select repeat(md5(i::text), 60) from generate_series(1, 9000) i"
    for _ in range(3):
        own.run(fill, "select pg_switch_wal()", "checkpoint")
    status = own.app.execute("select wal_status from pg_replication_slots").fetchall()
    assert status == [("lost",)]
    with dg.DagsterInstance.ephemeral() as instance:
        schedule = own.settings.schedule.model_copy(update={"idle_seconds": 0.3})
        shop = Shop(own.settings.model_copy(update={"schedule": schedule}), instance)
        assert isinstance(shop.tick(), dg.RunRequest)
        assert shop.sync().success
        assert "up to date" in str(shop.tick())
    own.assert_equal("t", "u")


@pytest.mark.long
def test_a_server_that_makes_no_slot_says_what_it_lacks(
    own_server: AnyServer, own: PostgresWorld
) -> None:
    slot = settled(own)
    own.htap.sync_now()
    own.run(f"select pg_drop_replication_slot('{slot}')", WRITTEN)
    restarted(own_server, own, "wal_level = 'replica'")
    told = refused(own, CaptureError)
    assert "wal_level is 'replica'" in told
    assert "repair" not in told
    assert own.htap.query("select v from t", hint="olap").num_rows == 2
    own.run("select pg_create_physical_replication_slot('standby')")
    restarted(own_server, own, "wal_level = 'logical'", "max_replication_slots = 1")
    assert "no replication slot free" in refused(own, SourceBusyError)
    own.run("select pg_drop_replication_slot('standby')")
    own.crash()
    assert_goes_on(own)


@pytest.mark.long
def test_a_log_is_asked_for_where_the_server_has_no_room_for_a_stream(
    own_server: AnyServer, own: PostgresWorld
) -> None:
    own.capture["streaming"] = True
    settled(own)
    restarted(own_server, own, "max_wal_senders = 0")
    for value in ("b", "c"):
        own.run(f"update t set v = '{value}'")
        assert own.htap.sync_now().events == 2
        own.assert_equal("t", "u")
