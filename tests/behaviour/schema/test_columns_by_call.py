"""Columns added and dropped by call: what would leave the table out is refused, and not done."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from rhei_pipeline.errors import SchemaError
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


def has_column(world: World, name: str) -> bool:
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
