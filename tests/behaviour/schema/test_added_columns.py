"""A mirror has the values of an added column, and not what its declared default suggests.

Each case is one in which rows that no log names hold something else than the default that the
catalogue shows once the mirror looks. Another way to follow an added column has to pass them all.
"""

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World

#: What is written, by table, before the mirror looks again; rows 1 and 2 stand already.
_SQLITE = {
    "updated_at_once": ["alter table {} add column c integer default 7", "update {} set c = 8"],
    "one_updated": [
        "alter table {} add column c integer default 7",
        "update {} set c = null where id = 1",
    ],
    "added_twice": [
        "alter table {} add column c integer default 7",
        "update {} set a = 5 where id = 1",
        "alter table {} drop column c",
        "alter table {} add column c integer default 9",
    ],
    "rolled_back": [
        "begin",
        "alter table {} add column c integer default 7",
        "update {} set c = 8",
        "rollback",
        "alter table {} add column c text default 'x'",
    ],
    "computed": ["alter table {} add column c integer generated always as (a * 2) virtual"],
    "built_again": [
        "create table fresh(id integer primary key, a integer, c integer default 7)",
        "insert into fresh select id, a, a * 10 from {}",
        "drop table {}",
        "alter table fresh rename to {}",
    ],
}

#: In PostgreSQL the default of new rows is not that of those that stood: the latter is kept apart.
_POSTGRES = {
    "other_default_since": [
        "alter table {} add column c int default 7",
        "alter table {} alter column c set default 9",
        "insert into {} (id, a) values (3, 30)",
    ],
    "no_default_since": [
        "alter table {} add column c int default 7",
        "alter table {} alter column c drop default",
    ],
    "default_only_for_new_rows": [
        "alter table {} add column c int",
        "alter table {} alter column c set default 7",
        "insert into {} (id, a) values (3, 30)",
    ],
    "volatile": ["alter table {} add column c float8 default random()"],
    "stored": ["alter table {} add column c int generated always as (a * 2) stored"],
    "added_twice": [
        "alter table {} add column c int default 7",
        "update {} set c = 8 where id = 1",
        "alter table {} drop column c",
        "alter table {} add column c int default 9",
    ],
    "cast_in_place": [
        "alter table {} add column c int default 7",
        "alter table {} alter column c type text using (a || '!')",
    ],
}


def _play(world: World | PostgresWorld, cases: dict[str, list[str]]) -> None:
    for name in cases:
        world.run(
            f"create table {name} (id integer primary key, a integer)",
            f"insert into {name} values (1, 10), (2, 20)",
        )
    assert not world.htap.sync_now().errors
    for name, statements in cases.items():
        world.run(*(statement.format(name) for statement in statements))
    assert not world.htap.sync_now().errors
    for name in cases:
        assert "c" in world.present(name)[0]
    world.assert_equal(*cases)
    assert world.htap.sync_now().events == 0


@pytest.mark.parametrize(("mode", "storage"), [("destructive", None), ("temporal", "parquet")])
def test_rows_of_sqlite_that_no_log_names_have_their_own_value_of_an_added_column(
    make_world: Callable[..., World], mode: str, storage: str | None
) -> None:
    _play(make_world(mode=mode, storage=storage), _SQLITE)


@pytest.mark.parametrize(("mode", "storage"), [("destructive", "parquet"), ("temporal", None)])
def test_rows_of_postgresql_that_no_log_names_have_their_own_value_of_an_added_column(
    make_postgres: Callable[..., PostgresWorld], mode: str, storage: str | None
) -> None:
    world = make_postgres(capture={"method": "logical"}, mode=mode, storage=storage)
    _play(world, _POSTGRES)


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_a_column_that_is_declared_later_has_the_values_written_before_it_was_declared(
    make_world: Callable[..., World], mode: str
) -> None:
    narrow: list[dict[str, Any]] = [{"name": "t", "columns": ["id", "a"]}]
    world = make_world(mode=mode, tables=narrow)
    world.run(
        "create table t (id integer primary key, a integer)", "insert into t values (1, 1), (2, 2)"
    )
    world.htap.sync_now()
    # The schema that the mirror knew lacks the column, and yet the log has gone past its values.
    world.run("alter table t add column c integer default 7", "update t set c = 8 where id = 1")
    world.htap.sync_now()
    world.crash()
    world.tables = [{"name": "t"}]
    world.htap.sync_now()
    world.assert_equal("t")
    assert sorted(row["c"] for row in world.present("t")) == [7, 8]
