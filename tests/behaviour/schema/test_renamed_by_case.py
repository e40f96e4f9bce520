"""A table whose name changes its case only: one and the same in SQLite, another in PostgreSQL."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World
from tests.support.parts import engine_of

pytestmark = pytest.mark.turns

MakeWorld = Callable[..., World]
MakePostgres = Callable[..., PostgresWorld]

POLLED = [{"name": "t", "polling": {"updated_at": "at", "deletes": "reconcile"}}]


def rename(world: World, old: str, new: str) -> None:
    """Rename a table; SQLite itself takes two names that differ by case for one."""
    world.run(
        f"alter table {old} rename to between_two", f"alter table between_two rename to {new}"
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tables": [{"name": "t"}], "mode": "temporal"},
        {"mode": "temporal", "storage": "parquet"},
        {"mode": "temporal", "buffered": True},
        {"method": "polling", "tables": POLLED, "storage": "parquet"},
    ],
)
@pytest.mark.parametrize("reopened", [False, True], ids=["open", "reopened"])
def test_sqlite_goes_on_under_the_new_name(
    make_world: MakeWorld, options: dict[str, Any], *, reopened: bool
) -> None:
    world = make_world(**options)
    world.run(
        "create table t(id integer primary key, a integer, at integer)",
        "insert into t values (1, 1, 1), (2, 1, 1)",
    )
    world.htap.sync_now()
    pipeline_names, value = [], 1
    # And back again: nothing that was recorded of a former name may be taken for news.
    for old, new in (("t", "T"), ("T", "t")):
        world.run(f"update {old} set a = {value + 1}, at = {value + 1} where id = 1")
        rename(world, old, new)
        world.run(f"update {new} set a = {value + 2}, at = {value + 2} where id = 1")
        value += 2
        if reopened:
            world.crash()
        report = world.htap.sync_now()
        assert {name: table.error for name, table in report.tables.items()} == {new: None}
        assert not report.not_followed
        pipeline_names.append(list(engine_of(world.htap).pipeline.tables))
        world.assert_equal(new)
        assert world.htap.verify().equal
    assert pipeline_names == [["T"], ["t"]]
    if options.get("mode") == "temporal":
        versions = [row["a"] for row in world.versions("t") if row["id"] == 1]
        assert versions == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("storage", [None, "ipc"])
@pytest.mark.parametrize("mirror_name", [None, "shown"])
@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_what_is_recorded_goes_on_under_the_new_name(
    make_world: MakeWorld, mode: str, mirror_name: str | None, storage: str | None
) -> None:
    table = {"name": "t", "mirror_name": mirror_name}
    world = make_world(mode=mode, storage=storage, tables=[table])
    world.run(
        "create table t(id integer primary key, a integer)",
        "insert into t values (1, 'x'), (2, 'y')",
    )
    assert world.htap.sync_now().dead_letters == 2
    rename(world, "t", "T")
    world.run("update T set a = 1 where id = 1")
    report = world.htap.sync_now()
    assert not report.not_followed
    letters = world.htap.dead_letters().to_pylist()
    assert [(each["table_name"], each["key"]) for each in letters] == [("T", '{"id": 2}')]
    world.run("update T set a = 2 where id = 2")
    world.htap.sync_now()
    assert not world.htap.dead_letters().num_rows
    assert world.htap.verify().equal


@pytest.mark.parametrize("storage", [None, "ipc"])
def test_a_column_dropped_before_is_not_back_in_the_past(
    make_world: MakeWorld, storage: str | None
) -> None:
    table = {"name": "t", "mirror_name": "shown"}
    world = make_world(mode="temporal", storage=storage, tables=[table])
    world.run("create table t(id integer primary key, a integer)", "insert into t values (1, 1)")
    world.htap.sync_now()
    world.run("alter table t drop column a")
    world.htap.sync_now()
    at = datetime.now(UTC)
    rename(world, "t", "T")
    world.htap.sync_now()
    assert world.htap.as_of("T", at).to_pylist() == [{"id": 1}]


def test_postgres_leaves_the_former_table_out_and_goes_on_with_the_rest(
    make_postgres: MakePostgres,
) -> None:
    world = make_postgres(
        mode="temporal",
        capture={"method": "trigger"},
        tables=[{"name": "t"}, {"name": "z"}],
    )
    for name in ("t", "z"):
        world.run(
            f"create table {name}(id int primary key, a int)", f"insert into {name} values (1, 1)"
        )
    world.htap.sync_now()
    world.run("update t set a = 2", 'alter table t rename to "T"', "update z set a = 2")
    report = world.htap.sync_now()
    assert "no such table" in (report.tables["t"].error or "")
    assert report.tables["z"].error is None
    assert list(report.not_followed) == ["t"]
    assert [row["a"] for row in world.versions("t")] == [1, 2]
    world.assert_equal("z")
    world.run('alter table "T" rename to t')
    world.htap.sync_now()
    world.assert_equal("t", "z")
    assert world.htap.verify().equal


@pytest.mark.parametrize("names", ["\u00c9\u00e9", "\u00e9\u00c9", "\u00df\u1e9e"])
@pytest.mark.parametrize("mode", ["destructive", "temporal"])
@pytest.mark.parametrize("storage", [None, "parquet"])
def test_sqlite_ignores_the_case_of_plain_letters_alone(
    make_world: MakeWorld, mode: str, storage: str | None, names: str
) -> None:
    """Two tables in the source are two in the mirror, or one of them is left out by name."""
    world = make_world(mode=mode, storage=storage)
    first, second = names[0], names[1]
    for name in names:
        world.run(f'create table "{name}"(id integer primary key, v text)')
        world.run(f"insert into \"{name}\" values (1, 'of {name}')")
        report = world.htap.sync_now()
    world.run(f"update \"{first}\" set v = 'new'")
    assert world.htap.sync_now().events == 1
    world.assert_equal(first)
    assert world.htap.verify(first).tables.keys() == {first}
    if storage:
        world.assert_equal(second)
        assert world.htap.verify(second).tables.keys() == {second}
        world.htap.drop_table(second, discard_history=True)
        world.assert_equal(first)
    else:
        assert "give one of them another 'mirror_name'" in report.errors[second]
        world.crash()
        world.tables = [{"name": first}, {"name": second, "mirror_name": "other"}]
        world.htap.sync_now()
        assert (
            world.htap.query("select v from other", hint="olap")["v"][0].as_py() == f"of {second}"
        )
    world.assert_equal(first)
