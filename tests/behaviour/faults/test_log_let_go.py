"""A slot moves on past what a table needed that the slot does not have any more."""

from collections.abc import Callable
from typing import Any

import pytest

from rhei_pipeline.wiring.engine import unseen_events
from tests.support.fix_postgres import PostgresWorld

#: What is made where a table was, and cannot be mirrored: with a declaration, and without one.
NAMED = "create table b(id int primary key, v text, _rhei_x int)"
KEYLESS = "create table b(id int, v text)"


def confirmed(world: PostgresWorld) -> int:
    found = world.app.execute(
        b"select (confirmed_flush_lsn - '0/0')::bigint from pg_replication_slots"
        b" where database = current_database()"
    ).fetchone()
    assert found is not None
    return int(found[0])


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
@pytest.mark.parametrize(
    ("made", "is_declared", "streaming"),
    [
        (NAMED, True, False),
        pytest.param(KEYLESS, False, False, marks=pytest.mark.long),
        pytest.param(NAMED, False, True, marks=pytest.mark.long),
    ],
)
def test_a_table_that_comes_back_and_is_refused_holds_no_log_that_is_gone(
    make_postgres: Callable[..., PostgresWorld],
    made: str,
    mode: str,
    *,
    is_declared: bool,
    streaming: bool,
) -> None:
    """The source kept nothing for it while it was not there: the slot has moved on since."""
    capture: dict[str, Any] = {"method": "logical", "streaming": streaming}
    tables = [{"name": "a"}, {"name": "b"}] if is_declared else None
    world = make_postgres(mode=mode, capture=capture, tables=tables)
    for name in "ab":
        world.run(f"create table {name}(id int primary key, v text)")
        world.run(f"insert into {name} values (1, 'v')")
    world.htap.sync_now()
    world.run("drop table b", "update a set v = 'b is gone'")
    world.htap.sync_now()
    world.run("update a set v = 'b is gone still'")
    world.htap.sync_now()
    world.run(made)
    at = confirmed(world)
    for value in range(3):
        world.run(f"update a set v = '{value}'")
        for _ in range(2):  # a stream is confirmed with the cycle after the one that applied it
            assert list(world.htap.sync_now().errors) == ["b"]
        world.assert_equal("a")
        world.crash()
        assert unseen_events(world.settings) is not None, "the sensor believes the slot"
    assert confirmed(world) > at
    world.run("drop table b", "create table b(id int primary key, v text)")
    world.run("insert into b values (2, 'back')")
    assert not world.htap.sync_now().errors
    world.assert_equal("a", "b")
