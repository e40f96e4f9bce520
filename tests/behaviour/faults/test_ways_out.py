"""What an error says to do is done, and what it stopped goes on."""

import re
import sqlite3
from collections.abc import Callable
from contextlib import closing

import pytest

from rhei_pipeline.errors import RheiError
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World
from tests.support.parts import engine_of


def test_what_stands_in_the_way_is_moved_and_the_next_sync_goes_on(
    make_world: Callable[..., World],
) -> None:
    world = make_world()
    world.run("create table t(id integer primary key, v text)", "insert into t values (1, 'a')")
    registry, mirror = world.directory / "registry.json", world.directory / "mirror.duckdb"
    registry.write_text("{")
    with pytest.raises(RheiError, match="delete it"):
        world.htap.sync_now()
    registry.unlink()

    def of_sqlite() -> None:
        with closing(sqlite3.connect(mirror)) as other:
            other.execute("create table t(id integer primary key)")

    in_the_way = (lambda: mirror.write_bytes(b"no mirror" * 1000), of_sqlite, mirror.mkdir)
    for number, put in enumerate(in_the_way):
        put()
        with pytest.raises(RheiError, match=r"is not a DuckDB database.*move .* away"):
            world.htap.sync_now()
        mirror.rename(world.directory / f"away{number}")
    world.app.close()
    source = world.path.rename(world.directory / "elsewhere.db")
    with pytest.raises(RheiError, match="create it with your application first"):
        world.htap.sync_now()
    source.rename(world.path)
    world.app = sqlite3.connect(world.path, isolation_level=None)
    world.htap.sync_now()
    world.assert_equal("t")


PRIVATE = 'it\'s "a secret" (of 4711)'


@pytest.mark.parametrize("storage", [None, "memory"])
def test_a_mirror_refuses_a_value_without_quoting_it(
    make_world: Callable[..., World], storage: str | None
) -> None:
    world = make_world(storage=storage)
    world.run("create table t(id integer primary key, v text)")
    world.app.execute("insert into t values (1, ?)", [PRIVATE])
    world.htap.sync_now()
    with pytest.raises(RheiError) as refused:
        engine_of(world.htap).mirror.query("select cast(v as integer) from t")
    assert "refused the query" in str(refused.value)
    assert not {"secret", "4711"} & set(re.findall(r"\w+", str(refused.value)))


def test_postgres_refuses_a_value_without_its_being_quoted(
    make_postgres: Callable[..., PostgresWorld],
) -> None:
    world = make_postgres()
    world.run("create table t(id int primary key, v text)")
    world.app.execute("insert into t values (1, %s)", [PRIVATE])
    with pytest.raises(RheiError, match="invalid input syntax for type integer") as refused:
        world.htap.query("select v::int from t", hint="oltp")
    assert not {"secret", "4711"} & set(re.findall(r"\w+", str(refused.value)))


@pytest.mark.parametrize(
    ("steps", "declared"),
    [
        (["add primary key (id)", "replica identity default"], {}),
        (["replica identity full"], {"primary_key": ["code"]}),
    ],
    ids=["key", "declared"],
)
def test_the_log_of_a_table_that_lost_its_key_needs_no_step_that_is_not_named_at_first(
    make_postgres: Callable[..., PostgresWorld], steps: list[str], declared: dict[str, list[str]]
) -> None:
    world = make_postgres(capture={"method": "logical"}, tables=[{"name": "t"}])
    world.run(
        "create table t(id int primary key, code int not null unique, v text)",
        "insert into t values (1, 1, 'a')",
    )
    world.htap.sync_now()
    world.run("alter table t replica identity nothing", "alter table t drop constraint t_pkey")
    named = world.htap.sync_now().errors["t"]
    for step in steps:
        assert "replica" not in step or step in named
        world.run(f"alter table t {step}")
    if declared:
        assert "'primary_key'" in named
        world.crash()
        world.tables = [{"name": "t", **declared}]
    else:
        assert "add one" in named
    world.run("update t set v = 'b'")
    assert not world.htap.sync_now().errors
    world.run("update t set v = 'c'", "insert into t values (2, 2, 'd')")
    assert not world.htap.sync_now().errors
    world.assert_equal("t")
