"""What `rhei check` finds of an SQLite source, and what its remedies do when they are run."""

import sqlite3
from collections.abc import Callable

import pytest

from rhei_pipeline.model.reports import Finding
from rhei_pipeline.sources.sqlite.triggers import abandoned_logs
from rhei_pipeline.wiring.source import validate
from tests.support.fix_world import World
from tests.support.parts import engine_of
from tests.support.refusals import filled_in, rhei

MakeWorld = Callable[..., World]


def findings(world: World) -> dict[str, Finding]:
    """Return the findings, by their remedies; of this Python's SQLite nothing can be mended."""
    found = {each.remedy: each for each in validate(world.settings)}
    found.pop("use a Python that is built with a newer SQLite", None)
    return found


@pytest.fixture
def t(make_world: MakeWorld) -> World:
    """Make a table that was never mirrored."""
    world = make_world(tables=[{"name": "t"}])
    world.run("create table t(id integer primary key, v text)", "insert into t values (1, 'a')")
    return world


def sync(world: World) -> None:
    """Run the command that a remedy is."""
    world.crash()
    rhei(world.settings, world.directory, "sync")


def test_a_table_is_captured_and_the_journal_switched_by_the_first_sync(t: World) -> None:
    t.run("pragma journal_mode = delete")
    assert set(findings(t)) == {"none: the first sync switches it to WAL", "rhei sync"}
    sync(t)
    assert findings(t) == {}
    t.assert_equal("t")


def test_an_older_sqlite_is_named_until_python_has_a_newer_one(
    t: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version, is_named in (((3, 51, 2), True), ((3, 51, 3), False)):
        monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
        named = {found.remedy for found in validate(t.settings)}
        assert ("use a Python that is built with a newer SQLite" in named) is is_named


@pytest.mark.parametrize("declared", [True, False])
def test_a_table_that_left_the_declaration_is_declared_again_or_dropped(
    make_world: MakeWorld,
    declared: bool,  # noqa: FBT001
) -> None:
    world = make_world(tables=[{"name": "t"}, {"name": "u"}])
    world.run("create table t(id integer primary key)", "create table u(id integer primary key)")
    world.run("insert into t values (1)", "insert into u values (1)")
    sync(world)
    world.tables = [{"name": "t"}]
    world.run("insert into u values (2)")
    (remedy,) = findings(world)
    way_out = (
        "declare it again; end its capture now: 'rhei unregister {}'; or drop it from the mirror as"
        " well: 'rhei drop-table {}'"
    )
    (name, _) = filled_in(way_out, remedy)
    if declared:
        world.tables = [{"name": "t"}, {"name": name}]
        sync(world)
        world.assert_equal("t", "u")
    else:
        rhei(world.settings, world.directory, "unregister", name)
        rhei(world.settings, world.directory, "drop-table", name)
        assert sorted(engine_of(world.htap).mirror.tables()) == ['"t"']
        sync(world)
    world.crash()
    assert findings(world) == {}


def test_a_log_that_nobody_reads_is_synced_or_its_capture_ended(
    t: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync(t)
    gone = "update _rhei_consumer set seen_at = 0, mirror = 'gone'"
    long_ago = (gone, "update _rhei_log_t set at = 0")
    t.run("update t set v = 'b'", *long_ago)
    way_out = (
        "run 'rhei sync' where the table is to be mirrored; or end its capture in the source: {}"
    )
    (remedy,) = findings(t)
    filled_in(way_out, remedy)
    sync(t)
    assert findings(t) == {}
    t.assert_equal("t")
    t.crash()
    t.run("update t set v = 'c'", *long_ago)
    (remedy,) = findings(t)
    (statements,) = filled_in(way_out, remedy)
    assert abandoned_logs.FORGET_MIRROR_AFTER
    t.app.executescript(statements)
    assert t.app.execute("select name from sqlite_master where tbl_name = 't'").fetchall() == [
        ("t",)
    ]
    assert set(findings(t)) == {"rhei sync"}  # as of one that was never captured
    sync(t)
    t.assert_equal("t")


def test_a_polled_table_gets_its_index_and_its_clock(make_world: MakeWorld) -> None:
    polling = {"updated_at": "at"}
    world = make_world(method="polling", tables=[{"name": "t", "polling": polling}])
    world.run(
        "create table t(id integer primary key, v text, at integer)",
        "insert into t values (1, 'a', unixepoch())",
    )
    clock = "set it by a default and a trigger with the database's clock; then 'clock: database'"
    named = set(findings(world))
    assert clock in named
    (index,) = named - {clock}
    filled_in("create index {} on {}({})", index)
    world.run(
        index,
        "create trigger stamp after insert on t begin"
        " update t set at = unixepoch() where id = new.id; end",
        "create trigger stamp2 after update of v on t begin"
        " update t set at = unixepoch() where id = new.id; end",
    )
    world.tables = [{"name": "t", "polling": {**polling, "clock": "database"}}]
    assert findings(world) == {}
    sync(world)
    world.run("update t set v = 'b'", "insert into t(id, v) values (2, 'c')")
    world.htap.sync_now()
    world.assert_equal("t")
