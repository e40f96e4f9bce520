"""What is found where the source's schema is looked at, and no sync has followed it yet."""

from collections.abc import Callable

import pytest

from rhei_pipeline.protocols import Step
from rhei_pipeline.sync.schema_registry import due_tables
from tests.support.fix_world import World

MakeWorld = Callable[..., World]


@pytest.mark.parametrize("names", [("t", "t"), ("t", "T"), ("T", "t", "u")])
def test_a_table_that_is_declared_twice_is_left_out_alone(
    make_world: MakeWorld, names: tuple[str, ...]
) -> None:
    """Whether its entries spell it in one way or in several."""
    world = make_world(tables=[{"name": name} for name in (*names, "v")])
    for table in "tuv":
        world.run(f"create table {table}(id integer primary key)", f"insert into {table} values(1)")
    errors = world.htap.sync_now().errors
    assert list(errors) == ["t"]
    assert "declared more than once" in errors["t"]
    world.assert_equal("v")


def test_a_sync_is_due_for_a_change_until_one_has_followed_it(make_world: MakeWorld) -> None:
    """A process that looked at the schema, and ended before it synced, leaves that behind."""
    world = make_world()
    registry = world.settings.registry.path
    assert registry is not None
    world.run("create table t(id integer primary key)")
    world.htap.sync_now()
    assert due_tables(registry) == 0
    world.run("alter table t add column x integer")
    world.faults.arm(Step.SNAPSHOT)
    assert world.surviving(world.htap.sync_now)
    assert due_tables(registry) == 1
    world.htap.sync_now()
    assert due_tables(registry) == 0
    world.run("create table u(id integer primary key)")
    world.htap.register_table("u")
    assert due_tables(registry) == 0


def test_a_sync_is_due_where_nothing_captures_the_table(make_world: MakeWorld) -> None:
    polled = {"updated_at": "at", "deletes": "disabled"}
    world = make_world(method="polling", tables=[{"name": "t", "polling": polled}])
    registry = world.settings.registry.path
    assert registry is not None
    world.run("create table t(id integer primary key, at integer)")
    world.htap.sync_now()
    world.run("alter table t add column x integer")
    world.faults.arm(Step.SNAPSHOT)
    assert world.surviving(world.htap.sync_now)
    assert due_tables(registry) == 1


def test_a_copy_that_no_migration_overtook_goes_on_where_it_was(make_world: MakeWorld) -> None:
    world = make_world(mode="temporal", batch_rows=1)
    world.run("create table t(id integer primary key)", "insert into t values (1), (2), (3)")
    world.htap.sync_now()
    world.faults.arm(Step.COPY_BATCH, 2)
    assert world.surviving(lambda: world.htap.initial_sync("t"))
    assert world.htap.initial_sync("t").resumed
    world.assert_equal("t")
