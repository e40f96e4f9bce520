"""Columns added and dropped by call: what would leave the table out is refused, and not done."""

from collections.abc import Callable
from typing import Any

import psycopg
import pyarrow as pa
import pytest

from rhei_pipeline.errors import SchemaError
from rhei_pipeline.sources.postgres import database
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World
from tests.support.refusals import refused

MakeTable = Callable[..., World]
NAMED: dict[str, Any] = {
    "columns": ["id", "s"],
    "types": {"s": "string"},
    "mask": {"s": "redact"},
    "where": "s <> 'x'",
}


@pytest.fixture(params=["sqlite", "postgres"])
def make_table(request: pytest.FixtureRequest) -> MakeTable:
    make = request.getfixturevalue("make_world" if request.param == "sqlite" else "make_postgres")

    def made(**said: Any) -> World:
        world: World = make(tables=[{"name": "t", **said}])
        world.run("create table t(id integer primary key, s text, n integer)")
        world.run("insert into t values (1, 'a', 1)")
        world.htap.sync_now()
        return world

    return made


def has_column(world: World | PostgresWorld, name: str) -> bool:
    return name in world.htap.query("select * from t", hint="oltp").column_names


def test_a_reserved_name_is_refused_before_the_source_has_it(make_table: MakeTable) -> None:
    world = make_table()
    for name in ("_rhei_x", "_RHEI_valid_from"):
        with refused("give the column another name", SchemaError) as met:
            world.htap.add_column("t", name, pa.int64())
        assert "'_rhei_' are reserved" in met.error.message
        assert not has_column(world, name)
    world.htap.add_column("t", "x", pa.int64())
    assert not world.htap.sync_now().errors
    assert "x" in world.htap.query("select * from t", hint="olap").column_names


@pytest.mark.parametrize("place", NAMED)
def test_a_column_that_is_declared_is_not_dropped(make_table: MakeTable, place: str) -> None:
    world = make_table(**{place: NAMED[place]})
    way_out = "take it out of the declaration, open the mirror again, then drop it in the source"
    with refused(way_out, SchemaError) as met:
        world.htap.drop_column("t", "S")
    assert f"'{place}'" in met.error.message
    assert has_column(world, "s")
    assert not world.htap.sync_now().errors
    world.crash()
    rest = {"columns": ["id", "n"]} if place == "columns" else {}
    world.tables = [{"name": "t", **rest}]
    world.htap.sync_now()
    world.run("alter table t drop column s")
    assert not world.htap.sync_now().errors
    assert world.htap.query("select * from t", hint="olap").column_names == ["id", "n"]


@pytest.mark.parametrize("policy", ["freeze", "quarantine"])
def test_a_table_whose_schema_is_held_is_not_changed(make_table: MakeTable, policy: str) -> None:
    world = make_table(schema_changes=policy)
    way_out = "declare 'schema_changes: evolve' for it, and open the mirror again"
    with refused(way_out, SchemaError) as met:
        world.htap.add_column("t", "x", pa.int64())
    assert f"held back by '{policy}'" in met.error.message
    with pytest.raises(SchemaError, match="held back"):
        world.htap.drop_column("t", "n")
    assert has_column(world, "n")
    assert not has_column(world, "x")
    assert not world.htap.sync_now().errors
    world.crash()
    world.tables = [{"name": "t", "schema_changes": "evolve"}]
    world.htap.add_column("t", "x", pa.int64())
    world.htap.drop_column("t", "n")
    assert world.htap.query("select * from t", hint="olap").column_names == ["id", "s", "x"]


def test_nobody_queues_behind_a_column_that_waits_for_a_transaction(
    make_postgres: Callable[..., PostgresWorld], dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_PATIENCE", {"lock_timeout": "50ms"})
    world = make_postgres(source={"statement_timeout_seconds": 3})
    world.run("create table t(id integer primary key, s text, n integer)")
    world.htap.sync_now()
    changes: list[Callable[[], None]] = [
        lambda: world.htap.add_column("t", "x", pa.int64()),
        lambda: world.htap.drop_column("t", "s"),
    ]
    for change in changes:
        with psycopg.connect(dsn) as other:
            other.execute("select * from t")
            way_out = "call it again once that transaction has ended; 'pg_locks' shows whose it is"
            with refused(way_out) as met:
                change()
            assert met.error.table == "t"
            whose = "select pid from pg_locks where relation = 't'::regclass and granted"
            assert world.app.execute(whose).fetchall() == [(other.info.backend_pid,)]
        assert has_column(world, "s")
        assert not has_column(world, "x")
    world.htap.add_column("t", "x", pa.int64())
    assert not world.htap.sync_now().errors
    assert "x" in world.htap.query("select * from t", hint="olap").column_names
