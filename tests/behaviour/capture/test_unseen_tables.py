"""Tables that only a sync brings up to date, though no change of theirs is pending."""

import re
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from rhei_pipeline.buffer import source as buffer_source
from rhei_pipeline.sources.postgres.logical import source as logical_source
from rhei_pipeline.wiring.engine import unseen_events
from rhei_pipeline.wiring.unfollowed import unfollowed_tables
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World

AnyWorld = World | PostgresWorld
POLLED = {"updated_at": "u", "deletes": "disabled"}
ADDED = "alter table t add column x integer not null default 5"
SLOT = "select pg_drop_replication_slot(slot_name) from pg_replication_slots"
OF_T = " where database = current_database()"


def drop_triggers(world: World) -> None:
    """Drop the table's triggers, as who makes the table anew does."""
    found = "select name from sqlite_master where type = 'trigger'"
    world.run(*(f'drop trigger "{name}"' for (name,) in world.app.execute(found).fetchall()))


def look(world: AnyWorld, ask: Callable[[AnyWorld], object]) -> None:
    """Open the engine for something that syncs nothing, and close it."""
    ask(world)
    world.crash()


def status(world: AnyWorld) -> None:
    """Ask how far the table is behind, which nobody knows."""
    assert world.htap.sync_status().tables["t"].lag_events is None


def comparison_due(world: AnyWorld) -> None:
    """Ask how far a table is behind whose newest row is gone."""
    found = world.htap.sync_status().tables["t"]
    assert (found.lag_events, found.lag_seconds) == (None, None)
    assert "a comparison of all its rows is due" in str(found.doubt)


def query(world: AnyWorld) -> None:
    """Ask for rows, and for nothing else."""
    world.htap.query("select count(*) from t", hint="olap")


def assert_asked_for_once(world: AnyWorld) -> None:
    """Something is to be done until a sync has done it."""
    assert unseen_events(world.settings) != 0
    world.htap.sync_now()
    world.assert_equal("t")
    world.crash()
    assert unseen_events(world.settings) == 0
    assert unfollowed_tables(world.settings) == set()


def made(world: World) -> World:
    """Have a table mirrored, of which nothing is pending, and close the engine."""
    world.run("create table t(id integer primary key, u integer)", "insert into t values (1, 1)")
    settle(world)
    return world


def settle(world: AnyWorld) -> None:
    """Sync, and close the engine."""
    world.htap.sync_now()
    world.crash()
    assert unseen_events(world.settings) == 0
    assert unfollowed_tables(world.settings) == set()


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
@pytest.mark.parametrize("ask", [status, query])
@pytest.mark.parametrize("method", ["trigger", "polling"])
def test_a_column_that_was_added_to_a_quiet_table_is_something_to_see_to(
    make_world: Callable[..., World], method: str, ask: Callable[[AnyWorld], None], mode: str
) -> None:
    tables = [{"name": "t", **({"polling": POLLED} if method == "polling" else {})}]
    world = made(make_world(mode=mode, tables=tables, method=method))
    world.run(ADDED)
    assert unfollowed_tables(world.settings) == {"t"}
    look(world, ask)
    assert_asked_for_once(world)


def test_triggers_that_were_dropped_are_something_to_see_to(
    make_world: Callable[..., World],
) -> None:
    world = made(make_world())
    drop_triggers(world)
    world.run("insert into t values (2, 2)")
    assert unfollowed_tables(world.settings) == {"t"}
    look(world, query)
    assert_asked_for_once(world)


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
@pytest.mark.parametrize("buffered", [False, True])
def test_triggers_that_were_gone_for_a_while_are_something_to_see_to(
    make_world: Callable[..., World], mode: str, *, buffered: bool
) -> None:
    world = made(make_world(mode=mode, buffered=buffered))
    made_again = world.app.execute("select sql from sqlite_master where type = 'trigger'")
    triggers = [sql for (sql,) in made_again.fetchall()]
    drop_triggers(world)
    world.run("insert into t values (2, 2)", *triggers)
    assert unseen_events(world.settings) == 0
    assert unfollowed_tables(world.settings) == {"t"}
    world.htap.sync_now()
    world.assert_equal("t")
    world.crash()
    assert unfollowed_tables(world.settings) == set()


@pytest.mark.parametrize("buffered", [False, True])
def test_a_long_open_engine_knows_that_triggers_were_gone_for_a_while(
    make_world: Callable[..., World], *, buffered: bool
) -> None:
    world = make_world(buffered=buffered)
    world.run("create table t(id integer primary key, u integer)", "insert into t values (1, 1)")
    world.htap.sync_now()
    assert world.htap.sync_status().tables["t"].lag_events == 0
    made_again = world.app.execute("select sql from sqlite_master where type = 'trigger'")
    triggers = [sql for (sql,) in made_again.fetchall()]
    drop_triggers(world)
    world.run("insert into t values (2, 2)", *triggers)
    status(world)
    world.htap.sync_now()
    assert world.htap.sync_status().tables["t"].lag_events == 0
    world.assert_equal("t")


@pytest.mark.parametrize("buffered", [False, True])
def test_triggers_that_went_with_a_table_that_no_sync_can_take_are_nothing_to_see_to(
    make_world: Callable[..., World], *, buffered: bool
) -> None:
    """A session would leave it out again, and the next one be asked for."""
    world = made(make_world(tables=[{"name": "t"}], buffered=buffered))
    world.run("drop table t", "create table t(id integer, u integer)")
    assert unfollowed_tables(world.settings) == set()
    assert list(world.htap.sync_now().errors) == ["t"]
    world.crash()
    assert unfollowed_tables(world.settings) == set()
    world.run("drop table t", "create table t(id integer primary key, u integer)")
    assert unfollowed_tables(world.settings) == {"t"}
    world.htap.sync_now()
    world.assert_equal("t")
    world.crash()
    assert unfollowed_tables(world.settings) == set()


@pytest.mark.parametrize(
    "harmless", ["create table other(id integer primary key)", "create index of_u on t(u)"]
)
def test_a_schema_change_that_leaves_the_rows_alone_is_nothing_to_see_to(
    make_world: Callable[..., World], harmless: str
) -> None:
    world = made(make_world(tables=[{"name": "t"}]))
    world.run(harmless)
    assert unfollowed_tables(world.settings) == set()


def test_a_buffered_table_with_another_column_is_something_to_see_to(
    make_world: Callable[..., World],
) -> None:
    world = made(make_world(buffered=True))
    world.run(ADDED)
    assert unfollowed_tables(world.settings) == {"t"}
    look(world, status)
    assert_asked_for_once(world)


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
@pytest.mark.parametrize("ask", [status, query])
@pytest.mark.parametrize("method", ["trigger", "logical", "polling"])
def test_a_column_that_was_added_on_a_server_is_something_to_see_to(
    make_postgres: Callable[..., PostgresWorld],
    method: str,
    ask: Callable[[AnyWorld], None],
    mode: str,
) -> None:
    tables = [{"name": "t", **({"polling": POLLED} if method == "polling" else {})}]
    world = make_postgres(mode=mode, tables=tables, capture={"method": method})
    world.run("create table t(id integer primary key, u timestamptz)")
    world.run("insert into t values (1, now())")
    settle(world)
    world.run(ADDED)
    assert unfollowed_tables(world.settings) == {"t"}
    look(world, ask)
    assert_asked_for_once(world)


@pytest.mark.long
@pytest.mark.parametrize("ask", [status, query])
@pytest.mark.parametrize(
    ("method", "broken"),
    [
        ("logical", SLOT + OF_T),
        ("logical", "drop publication {publication}"),
        ("trigger", "alter table t disable trigger all"),
    ],
)
def test_capture_that_a_command_made_anew_on_a_server_is_something_to_see_to(
    make_postgres: Callable[..., PostgresWorld],
    method: str,
    broken: str,
    ask: Callable[[AnyWorld], None],
) -> None:
    world = make_postgres(tables=[{"name": "t"}], capture={"method": method})
    world.run("create table t(id integer primary key, u integer)", "insert into t values (1, 1)")
    settle(world)
    (publication,) = world.app.execute("select max(pubname) from pg_publication").fetchone() or ()
    world.run(broken.format(publication=publication))
    assert unfollowed_tables(world.settings) == {"t"}
    world.run("update t set u = 2")
    look(world, ask)
    assert_asked_for_once(world)


@pytest.mark.long
def test_a_table_that_was_published_anew_is_something_to_see_to_once_it_was_asked_for(
    make_postgres: Callable[..., PostgresWorld],
) -> None:
    world = make_postgres(tables=[{"name": "t"}], capture={"method": "logical"})
    world.run("create table t(id integer primary key, u integer)", "insert into t values (1, 1)")
    settle(world)
    (publication,) = world.app.execute("select max(pubname) from pg_publication").fetchone() or ()
    world.run(f"alter publication {publication} drop table t")
    world.run(f"alter publication {publication} add table t")
    look(world, status)
    assert_asked_for_once(world)


def test_a_change_that_waits_for_somebody_is_nothing_to_see_to(
    make_world: Callable[..., World],
) -> None:
    world = made(make_world(tables=[{"name": "t", "schema_changes": "freeze"}]))
    world.run(ADDED)
    assert unfollowed_tables(world.settings) == set()
    world.htap.sync_now()
    world.crash()
    assert unseen_events(world.settings) == 0


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_a_comparison_that_is_due_makes_the_lag_unknown(
    make_world: Callable[..., World], mode: str
) -> None:
    tables = [{"name": "t", "polling": {"updated_at": "u", "deletes": "reconcile"}}]
    world = made(make_world(mode=mode, tables=tables, method="polling"))
    world.run("insert into t values (2, 2)")
    assert world.htap.sync_status().tables["t"].lag_events == 1
    world.htap.sync_now()
    world.run("delete from t where id = 2")
    look(world, comparison_due)
    assert_asked_for_once(world)


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_a_comparison_that_is_due_on_a_server_makes_the_lag_unknown(
    make_postgres: Callable[..., PostgresWorld], mode: str
) -> None:
    tables = [{"name": "t", "polling": {"updated_at": "u", "deletes": "reconcile"}}]
    world = make_postgres(mode=mode, tables=tables, capture={"method": "polling"})
    world.run("create table t(id integer primary key, u timestamptz)")
    world.run("insert into t values (1, now() - interval '1 hour'), (2, now())")
    settle(world)
    world.run("delete from t where id = 2")
    look(world, comparison_due)
    assert_asked_for_once(world)


@pytest.mark.long
@pytest.mark.parametrize("method", ["logical", "trigger"])
def test_a_buffered_table_without_changes_keeps_none_of_another_pending(
    make_postgres: Callable[..., PostgresWorld], tmp_path: Path, method: str
) -> None:
    world = make_postgres(capture={"method": method, "buffer": {"path": tmp_path / "cdc"}})
    for name in ("t", "other"):
        world.run(f"create table {name}(id int primary key, u int)")
        world.run(f"insert into {name} values (1, 1)")
    settle(world)
    world.run("update t set u = 2")
    assert unseen_events(world.settings) == 1
    settle(world)
    world.run("update other set u = 2")  # it is read on from where it followed
    assert unseen_events(world.settings) == 1
    settle(world)
    world.assert_equal("t", "other")


def test_what_was_noted_of_another_timeline_is_something_to_see_to(
    make_postgres: Callable[..., PostgresWorld], tmp_path: Path
) -> None:
    """As it is behind a promotion, of which the triggers' own records say nothing."""
    world = make_postgres(capture={"method": "trigger"})
    world.run("create table t(id int primary key, u int)", "insert into t values (1, 1)")
    settle(world)
    (note,) = tmp_path.rglob("*.read.json")
    text = note.read_text()
    timeline = re.search(r":0*1\b", text)
    assert timeline, text
    note.write_text(text.replace(timeline[0], timeline[0][:-1] + "2"))
    assert_asked_for_once(world)


def test_buffered_tables_without_changes_follow_once_in_a_while(
    make_postgres: Callable[..., PostgresWorld], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source with many tables would write of each with every change of one."""
    world = make_postgres(capture={"method": "logical", "buffer": {"path": tmp_path / "cdc"}})
    for name in ("t", "other"):
        world.run(f"create table {name}(id int primary key, u int)")
        world.run(f"insert into {name} values (1, 1)")
    settle(world)
    monkeypatch.setattr(buffer_source, "FOLLOWS_SECONDS", 3600)
    for value in (2, 3):
        world.run(f"update t set u = {value}")
        world.htap.sync_now()
        world.assert_equal("t")
    assert unseen_events(world.settings) == 1
    monkeypatch.setattr(buffer_source, "FOLLOWS_SECONDS", 0)
    world.htap.sync_now()
    assert unseen_events(world.settings) == 0


def test_a_buffered_table_that_waits_for_its_copy_is_copied_once(
    make_postgres: Callable[..., PostgresWorld],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It follows the other one meanwhile, and its copy begins at an earlier place in the log."""
    monkeypatch.setattr(logical_source, "WRITERS_SECONDS", 0.1)
    world = make_postgres(capture={"method": "logical", "buffer": {"path": tmp_path / "cdc"}})
    for name in ("t", "other"):
        world.run(f"create table {name}(id int primary key, u int)")
        world.run(f"insert into {name} values (1, 1), (2, 1)")
    world.htap.sync_now()
    with psycopg.connect(world.dsn) as writer:
        writer.execute("update other set u = 2 where id = 2")
        world.run("alter table t alter column id type bigint")
        for value in (2, 3):
            world.run(f"update other set u = {value} where id = 1")
            assert world.htap.sync_now().errors.keys() == {"t"}
    for changed in (["other"], ["other", "t"]):
        world.run(*(f"update {name} set u = u + 1 where id = 1" for name in changed))
        assert not world.htap.sync_now().errors
    world.assert_equal("t", "other")
    assert "are lost" not in caplog.text


def test_a_table_that_joins_a_buffer_gives_away_no_change_of_another(
    make_postgres: Callable[..., PostgresWorld], tmp_path: Path
) -> None:
    """A process that has drained nothing yet knows no place that others need the log from."""
    capture = {"method": "logical", "buffer": {"path": tmp_path / "cdc"}}
    world = make_postgres(capture=capture, mode="temporal")
    world.run("create table t(id int primary key, u int)", "insert into t values (1, 1)")
    settle(world)
    world.run("update t set u = 2", "update t set u = 3", "create table other(id int primary key)")
    assert not world.htap.sync_now().errors
    assert [row["u"] for row in world.versions("t")] == [1, 2, 3]
