"""A row that did not fit, and does again or is gone, is a dead letter no more."""

from collections.abc import Callable

import pytest

from tests.fix_postgres import PostgresWorld
from tests.fix_world import World

MakeWorld = Callable[..., World]
MakePostgres = Callable[..., PostgresWorld]

BOTH_MODES = pytest.mark.parametrize("mode", ["destructive", "temporal"])
#: Whether the misfit was seen by a sync before it was mended, or came and went between two.
SEEN = pytest.mark.parametrize("seen", [True, False], ids=["seen", "unseen"])
MENDED = pytest.mark.parametrize(
    "statement", ["update t set n = 7 where id = 1", "delete from t where id = 1", "delete from t"]
)


@BOTH_MODES
@SEEN
@MENDED
@pytest.mark.parametrize("buffered", [True, False], ids=["buffered", "direct"])
def test_a_mended_row_of_sqlite_leaves_no_letter(
    make_world: MakeWorld, mode: str, statement: str, *, seen: bool, buffered: bool
) -> None:
    world = make_world(mode=mode, buffered=buffered)
    world.run("create table t(id integer primary key, n integer)", "insert into t values (2, 2)")
    world.htap.sync_now()
    world.run("insert into t values (1, 1)", "update t set n = 'x' where id = 1")
    if seen:
        world.htap.sync_now()
    world.run(statement)
    world.htap.sync_now()
    assert world.htap.dead_letters().num_rows == 0
    world.assert_equal("t")


@BOTH_MODES
@SEEN
@pytest.mark.parametrize("method", ["logical", "trigger"])
@pytest.mark.parametrize("statement", ["update t set n = 7 where id = 1", "truncate t"])
def test_a_mended_row_of_postgres_leaves_no_letter(
    make_postgres: MakePostgres, mode: str, method: str, statement: str, *, seen: bool
) -> None:
    world = make_postgres(mode=mode, capture={"method": method})
    world.run("create table t(id int primary key, n numeric(6, 2))", "insert into t values (2, 2)")
    world.htap.sync_now()
    world.run("insert into t values (1, 'NaN')")
    if seen:
        world.htap.sync_now()
    world.run(statement)
    world.htap.sync_now()
    assert world.htap.dead_letters().num_rows == 0
    world.assert_equal("t")


@BOTH_MODES
def test_a_row_that_stopped_fitting_again_stays_a_letter(make_world: MakeWorld, mode: str) -> None:
    world = make_world(mode=mode)
    world.run("create table t(id integer primary key, n integer)", "insert into t values (1, 1)")
    world.htap.sync_now()
    for value in ("'x'", "7", "'y'"):
        world.run(f"update t set n = {value}")
    world.htap.sync_now()
    assert world.htap.dead_letters().num_rows == 1
