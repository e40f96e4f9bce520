"""Schema changes of SQLite that leave no difference behind are noticed, and rows follow."""

from collections.abc import Callable
from typing import Any

import pytest

from rhei_pipeline.model.blame import Blame
from rhei_pipeline.protocols import Step
from rhei_pipeline.testing.faults import FaultIn
from rhei_pipeline.wiring.engine import bridge
from tests.support.fix_world import World

pytestmark = pytest.mark.turns

MakeWorld = Callable[..., World]

BOTH_MODES = pytest.mark.parametrize("mode", ["destructive", "temporal"])
STAMP = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"
_TABLES = [{"name": "t"}, {"name": "other"}]
WAYS: dict[str, dict[str, Any]] = {
    "trigger": {"tables": _TABLES},
    "buffer": {"buffered": True, "tables": _TABLES},
    "files": {"storage": "parquet", "tables": _TABLES},
    "polling": {
        "method": "polling",
        "tables": [
            {"name": name, "polling": {"updated_at": "at", "clock": "database"}}
            for name in ("t", "other")
        ],
    },
}
ALL_WAYS = pytest.mark.parametrize("way", WAYS)
REOPENED = pytest.mark.parametrize("reopened", [False, True], ids=["open", "reopened"])


@pytest.fixture
def make(make_world: MakeWorld) -> MakeWorld:
    """Make a world with two synced tables."""

    def made(way: str, mode: str) -> World:
        world = make_world(mode=mode, **WAYS[way])
        world.run(
            "create table t(id integer primary key, at text, v text, c text)",
            "create table other(id integer primary key, at text, n integer)",
            f"insert into t values (1, {STAMP}, 'a', 'x'), (2, {STAMP}, 'b', 'y')",
            f"insert into other values (1, {STAMP}, 1)",
        )
        world.htap.sync_now()
        return world

    return made


def change(world: World, *statements: str, reopened: bool) -> None:
    """Change the schema while the pipeline is open, or while no process is."""
    if reopened:
        world.crash()
    world.run(*statements)


@BOTH_MODES
@ALL_WAYS
@REOPENED
@pytest.mark.parametrize("pending", [False, True], ids=["quiet", "pending"])
def test_a_column_dropped_and_added_again(
    make: MakeWorld, mode: str, way: str, *, reopened: bool, pending: bool
) -> None:
    world = make(way, mode)
    if pending:
        world.run(f"update t set v = 'pending', at = {STAMP} where id = 2")
    change(
        world,
        "alter table t drop column c",
        "alter table t add column c text",
        reopened=reopened,
    )
    world.htap.sync_now()
    world.assert_equal("t", "other")
    assert world.htap.verify().equal
    if mode == "temporal":
        first = [version for version in world.versions("t") if version["id"] == 1]
        assert [version["c"] for version in first] == ["x", None]
    world.run(f"update t set c = 'z', at = {STAMP} where id = 1")
    world.htap.sync_now()
    world.assert_equal("t", "other")


@BOTH_MODES
@ALL_WAYS
@REOPENED
def test_a_table_dropped_and_made_again_with_the_same_text(
    make: MakeWorld, mode: str, way: str, *, reopened: bool
) -> None:
    world = make(way, mode)
    change(
        world,
        "drop table t",
        "create table t(id integer primary key, at text, v text, c text)",
        f"insert into t values (2, {STAMP}, 'b', 'new'), (3, '2001-01-01T00:00:00.000Z', 'c', 'z')",
        reopened=reopened,
    )
    world.htap.sync_now()
    world.assert_equal("t", "other")
    assert world.htap.verify().equal


@BOTH_MODES
@ALL_WAYS
@REOPENED
def test_a_generated_column_with_another_expression(
    make: MakeWorld, mode: str, way: str, *, reopened: bool
) -> None:
    world = make(way, mode)
    world.run("alter table t add column g text generated always as (v || '1') virtual")
    world.htap.sync_now()
    change(
        world,
        "alter table t drop column g",
        "alter table t add column g text generated always as (v || '2') virtual",
        reopened=reopened,
    )
    world.htap.sync_now()
    where = "where id = 1" + (" and _rhei_valid_to is null" if mode == "temporal" else "")
    found = world.htap.query(f"select g from t {where}", hint="olap")["g"].to_pylist()
    assert found == ["a2"]
    assert world.htap.verify().equal


@BOTH_MODES
@ALL_WAYS
def test_a_definition_edited_in_the_schema_table(make: MakeWorld, mode: str, way: str) -> None:
    world = make(way, mode)
    world.run("alter table t add column g text generated always as (v || '1') virtual")
    world.htap.sync_now()
    version = world.app.execute("pragma schema_version").fetchone()[0]
    world.run(
        "pragma writable_schema = on",
        "update sqlite_schema set sql = replace(sql, '''1''', '''3''') where name = 't'",
        f"pragma schema_version = {version + 1}",
        "pragma writable_schema = reset",
    )
    assert world.app.execute("select g from t where id = 1").fetchone() == ("a3",)
    world.htap.sync_now()
    assert world.htap.verify().equal


@BOTH_MODES
@pytest.mark.parametrize("way", ["trigger", "buffer"])
@REOPENED
def test_triggers_dropped_for_a_while_and_made_again(
    make: MakeWorld, mode: str, way: str, *, reopened: bool
) -> None:
    world = make(way, mode)
    text = world.app.execute("select sql from sqlite_schema where name = '_rhei_update_t'")
    change(
        world,
        "drop trigger _rhei_update_t",
        "update t set c = 'unseen' where id = 1",
        text.fetchone()[0],
        reopened=reopened,
    )
    world.htap.sync_now()
    world.assert_equal("t", "other")


@BOTH_MODES
@ALL_WAYS
@REOPENED
def test_changes_of_the_schema_that_the_difference_explains_compare_no_rows(
    make: MakeWorld, mode: str, way: str, *, reopened: bool
) -> None:
    if way == "polling" and reopened:
        return  # it knows the schema's count only, and nothing may stand in the source
    world = make(way, mode)
    for statements in (
        ["vacuum"],
        ["create index i on t(v)", "create view w as select * from t"],
        ["create table child(id integer primary key, o integer references other(id))"],
        ["alter table child rename column o to other_id", "drop index i"],
        ["alter table child rename to children", "drop view w"],
        ["drop table children", "analyze"],
    ):
        change(world, *statements, reopened=reopened)
        world.faults.seen.clear()
        report = world.htap.sync_now()
        assert "audited" not in world.faults.seen
        assert report.inserted + report.updated + report.deleted == 0
    world.assert_equal("t", "other")


@BOTH_MODES
@ALL_WAYS
def test_changes_of_the_schema_that_leave_no_difference_compare_once(
    make: MakeWorld, mode: str, way: str
) -> None:
    world = make(way, mode)
    world.run("create table passing(id integer primary key)", "drop table passing")
    assert world.htap.sync_now().updated == 0
    assert "audited" in world.faults.seen
    world.faults.seen.clear()
    world.htap.sync_now()
    world.crash()
    world.htap.sync_now()
    assert "audited" not in world.faults.seen
    world.assert_equal("t", "other")


@BOTH_MODES
def test_a_comparison_that_came_while_the_mirror_was_away_is_made_until_it_succeeds(
    make: MakeWorld, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, fault = make("buffer", mode), FaultIn("t")
    monkeypatch.setattr(Blame, "of", fault.patched(Blame.of))
    world.crash()
    text = world.app.execute("select sql from sqlite_schema where name = '_rhei_update_t'")
    again = text.fetchone()[0]
    world.run("drop trigger _rhei_update_t", "update t set c = 'unseen' where id = 1", again)
    world.htap.sync_status()  # opening notes what happened to the schema
    world.crash()
    bridge(world.settings)
    world.run("update t set v = 'pending' where id = 2")
    bridge(world.settings)
    monkeypatch.setattr(world, "faults", fault)
    fault.arm(Step.AUDITED, RuntimeError)
    world.htap.sync_now()
    assert list(world.htap.left_out) == ["t"]
    fault.disarm()
    world.htap.sync_now()
    world.assert_equal("t", "other")
    fault.arm(Step.AUDITED, RuntimeError)
    world.htap.sync_now()
    assert not world.htap.left_out
