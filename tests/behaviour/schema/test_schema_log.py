"""The schema changes that a mirror has followed are kept, with what each cost."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rhei_pipeline import HTAP
from rhei_pipeline.cli.main import app
from rhei_pipeline.model.schema import SchemaPolicy
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World

pytestmark = pytest.mark.turns


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_each_change_that_was_followed_is_kept(make_world: Callable[..., World], mode: str) -> None:
    world = make_world(mode=mode)
    world.run("create table t (id integer primary key, a integer, b text)")
    world.run(
        "insert into t values (1, 1, 'x'), (2, 2, 'y')", "create table other (k text primary key)"
    )
    world.htap.sync_now()
    assert world.htap.schema_log() == []
    world.run("alter table t add column c real")
    world.htap.sync_now()
    world.crash()  # it is kept on disk
    world.run("alter table t drop column b")
    world.htap.sync_now()
    world.htap.sync_now()
    found = world.htap.schema_log("t")
    told = [(c.version, c.what, c.old, c.new) for c in found]
    kept = " (kept in the mirror)" if mode == "temporal" else ""
    assert told == [
        (2, "added 'c'", (), ("c double",)),
        (3, f"dropped 'b'{kept}", ("b string",), ()),
    ]
    marks = [change.position or 0 for change in found]
    assert marks == sorted(marks)
    assert found[-1].position == world.htap.sync_status().tables["t"].watermark
    assert all(change.rows_read <= 2 for change in found)
    assert found[0].at < found[1].at
    assert world.htap.schema_log("other") == []

    world.crash()
    config = world.directory / "pipeline.yaml"
    config.write_text(world.settings.model_dump_json(exclude_none=True))
    shown = CliRunner().invoke(app, ["schema", "log", "--json", "--config", str(config)])
    assert [change["what"] for change in json.loads(shown.stdout)["changes"]] == [
        t[1] for t in told
    ]


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_a_change_in_quarantine_leaves_its_table_as_it_is_until_somebody_decides(
    make_world: Callable[..., World], mode: str
) -> None:
    asked = [{"name": "t", "schema_changes": "quarantine"}, {"name": "u"}]
    world = make_world(mode=mode, tables=asked)
    for name in ("t", "u"):
        world.run(f"create table {name} (id integer primary key, a integer)")
        world.run(f"insert into {name} values (1, 1), (2, 2)")
    world.htap.sync_now()
    world.run("insert into t values (3, 3)")  # waits with what follows
    world.run("alter table t add column c integer default 7", "alter table u add column c real")
    world.run("update t set c = 8, a = 20 where id = 2", "update u set c = 1.5 where id = 1")
    for _ in range(2):
        report = world.htap.sync_now()
        assert report.errors.keys() == {"t"}
        assert "its source added 'c', and its schema changes are held back" in (report.errors["t"])
        assert "declare 'schema_changes: evolve' for it and sync" in report.errors["t"]
        world.crash()  # nor does another start decide
    assert columns(world, "t") == {"id", "a"}
    assert columns(world, "u") == {"id", "a", "c"}
    # Nothing of it comes along with another table's migration, nor at a start.
    world.run("update t set a = 30 where id = 1", "alter table u drop column a")
    world.htap.sync_now()
    held = world.htap.query("select id, a from t order by id", hint="olap").to_pylist()
    assert held == [{"id": 1, "a": 1}, {"id": 2, "a": 2}]
    assert {change.table for change in world.htap.schema_log()} == {"u"}
    world.run("insert into t values (4, 4, 4)")
    world.htap.sync_now()

    world.crash()
    world.tables = [{"name": "t", "schema_changes": "evolve"}, {"name": "u"}]
    assert not world.htap.sync_now().errors
    assert world.htap.verify().equal
    assert columns(world, "t") == {"id", "a", "c"}
    if mode == "temporal":  # what waited is in the history
        kept = {(version["id"], version["a"]) for version in world.versions("t")}
        assert kept == {(1, 1), (1, 30), (2, 2), (2, 20), (3, 3), (4, 4)}
    world.crash()
    world.tables = asked
    assert not world.htap.sync_now().errors  # for the changes to come
    world.run("alter table t drop column c")
    assert world.htap.sync_now().errors.keys() == {"t"}


def test_a_history_of_postgres_in_quarantine_has_what_waited_once_somebody_decides(
    make_postgres: Callable[..., PostgresWorld],
) -> None:
    asked = [{"name": "t", "schema_changes": "quarantine"}, {"name": "u"}]
    world = make_postgres(mode="temporal", tables=asked, capture={"method": "logical"})
    for name in ("t", "u"):
        world.run(f"create table {name} (id int primary key, a int)")
        world.run(f"insert into {name} values (1, 1)")
    world.htap.sync_now()
    world.run("update t set a = 2", "alter table t add column c int", "update t set a = 3")
    assert world.htap.sync_now().errors.keys() == {"t"}
    world.run("update t set a = 4", "alter table u add column c int")
    assert world.htap.sync_now().errors.keys() == {"t"}
    history = "select a from t order by _rhei_valid_from"
    assert world.htap.query(history, hint="olap")["a"].to_pylist() == [1]
    world.crash()
    world.tables = [{"name": "t"}, {"name": "u"}]
    assert not world.htap.sync_now().errors
    assert world.htap.query(history, hint="olap")["a"].to_pylist() == [1, 2, 3, 4]


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_a_frozen_table_goes_on_with_the_columns_that_it_had(
    make_world: Callable[..., World], mode: str
) -> None:
    world = make_world(mode=mode)
    world.run("create table t (id integer primary key, a integer)", "insert into t values (1, 1)")
    world.htap.sync_now()
    before = world.settings
    config = world.directory / "pipeline.yaml"
    world.crash()
    frozen = before.model_copy(update={"schema_changes": SchemaPolicy.FREEZE})
    config.write_text(frozen.model_dump_json(exclude_none=True))
    world.run("alter table t add column c integer default 7", "update t set c = 8, a = 10")
    for number in range(2, 4):
        world.run(f"insert into t values ({number}, {number}, 0)")
        with HTAP(frozen) as htap:
            for _ in range(2):
                report = htap.sync_now()
                assert not report.errors
                assert "added 'c', and it goes on with the columns" in report.frozen["t"]
            assert htap.verify().equal
            found = htap.query("select * from t order by id", hint="olap").to_pylist()
            assert [row["a"] for row in found if not row.get("_rhei_valid_to")] == [
                10,
                *range(2, number + 1),
            ]
            assert "c" not in found[0]
            assert htap.schema_log() == []
    shown = CliRunner().invoke(app, ["sync", "--config", str(config)])
    assert (shown.exit_code, "it goes on with the columns" in shown.output) == (3, True)

    world.run("alter table t drop column a")
    with HTAP(frozen) as htap:
        assert "its source added 'c' and dropped 'a'" in htap.sync_now().errors["t"]
    assert not world.htap.sync_now().errors  # evolve
    assert columns(world, "t") >= {"id", "c"}
    assert world.htap.verify().equal


@pytest.mark.long
@pytest.mark.parametrize("buffered", [False, True])
def test_a_frozen_table_of_postgresql_goes_on_as_well(
    make_postgres: Callable[..., PostgresWorld], tmp_path: Path, *, buffered: bool
) -> None:
    buffer = {"buffer": {"path": str(tmp_path / "cdc")}} if buffered else {}
    world = make_postgres(capture={"method": "logical", **buffer}, mode="temporal")
    world.run("create table t (id integer primary key, a integer)", "insert into t values (1, 1)")
    world.htap.sync_now()
    world.crash()
    frozen = world.settings.model_copy(update={"schema_changes": SchemaPolicy.FREEZE})
    world.run("alter table t add column c integer default 7", "update t set c = 8, a = 10")
    for _ in range(2):
        with HTAP(frozen) as htap:
            report = htap.sync_now()
            assert (dict(report.errors), set(report.frozen)) == ({}, {"t"})
            world.run("update t set a = a + 1, c = c + 1")
            assert htap.verify().equal
    assert not world.htap.sync_now().errors
    assert world.htap.verify().equal
    assert columns(world, "t") == {"id", "a", "c"}


def columns(world: World | PostgresWorld, name: str) -> set[str]:
    found = world.htap.query(f"select * from {name}", hint="olap").column_names
    return {column for column in found if not column.startswith("_rhei_")}
