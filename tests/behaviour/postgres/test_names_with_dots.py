"""A table of `public` whose name has a dot: its schema may be left out, unless another has it."""

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from rhei_pipeline import HTAP
from tests.support.fix_postgres import PostgresWorld

DOTTED = ('create table "a.b"(id int primary key, v int)', 'insert into "a.b" values (1, 10)')
#: What a table is asked by its name, and what tells which one answered.
ASKED: dict[str, Callable[[HTAP, str], object]] = {
    "verify": lambda htap, name: [*htap.verify(name).tables],
    "as_of": lambda htap, name: htap.as_of(name, datetime.now(UTC))["v"].to_pylist(),
    "changes": lambda htap, name: htap.changes(name).table,
    "repair": lambda htap, name: htap.repair(name).table,
    "initial_sync": lambda htap, name: htap.initial_sync(name).table,
    "row_count": lambda htap, name: htap.row_count(name),
    "drop_table": lambda htap, name: htap.drop_table(name, discard_history=True).table,
}


@pytest.mark.long
@pytest.mark.parametrize("method", ["trigger", "logical"])
def test_a_name_with_a_dot_needs_no_schema(
    make_postgres: Callable[..., PostgresWorld], method: str
) -> None:
    world = make_postgres(capture={"method": method}, mode="temporal", tables=[{"name": "a.b"}])
    world.run(*DOTTED)
    assert not world.htap.sync_now().errors
    for ask in ASKED.values():
        short, exact = ask(world.htap, "a.b"), None
        if ask is not ASKED["drop_table"]:
            exact = ask(world.htap, "public.a.b")
            assert short == exact
    assert world.htap.sync_now().tables["public.a.b"].inserted == 1


@pytest.mark.long
@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("method", ["trigger", "logical", "polling"])
def test_a_table_of_that_schema_has_the_name_first(
    make_postgres: Callable[..., PostgresWorld], method: str, *, declared: bool
) -> None:
    names = [{"name": "a.b"}, {"name": "public.a.b"}]
    tables = {"tables": names} if declared else {}
    world = make_postgres(capture={"method": method}, mode="temporal", **tables)
    column = "updated_at timestamptz not null default now()"
    try:
        world.run(
            f'create table "a.b"(id int primary key, v int, {column})',
            'insert into "a.b" values (1, 10)',
            "create schema a",
            f"create table a.b(id int primary key, v int, {column})",
            "insert into a.b values (1, 20)",
        )
        report = world.htap.sync_now()
        assert not report.errors
        assert report.tables.keys() == {"a.b", "public.a.b"}
        for change, expected in (("", [[20], [10]]), ("update a.b set v = 21, {}", [[21], [10]])):
            if change:
                world.run(change.format("updated_at = clock_timestamp()"))
                world.htap.sync_now()
            now = datetime.now(UTC)
            found = [world.htap.as_of(name, now)["v"] for name in ("a.b", "public.a.b")]
            assert [values.to_pylist() for values in found] == expected
        assert world.htap.verify().equal
    finally:
        world.crash()
        world.run("drop schema if exists a cascade")
