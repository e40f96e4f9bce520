"""A row that did not fit, and does again or is gone, is a dead letter no more."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World

pytestmark = pytest.mark.turns

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


def letters(world: World | PostgresWorld) -> list[str]:
    """Return the columns that are named by open letters."""
    return sorted(world.htap.dead_letters()["column_name"].to_pylist())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mode": "temporal"},
        {"storage": "parquet"},
        {"storage": "parquet", "mode": "temporal"},
        {"buffered": True, "mode": "temporal"},
    ],
)
def test_each_column_of_a_row_of_sqlite_is_mended_by_itself(
    make_world: MakeWorld, options: dict[str, Any]
) -> None:
    world = make_world(**options)
    world.run("create table t(id integer primary key, a integer, b integer, c integer)")
    world.run("insert into t values (1, 1, 1, 1), (2, 1, 1, 1)")
    world.htap.sync_now()
    world.run("update t set a = 'x', b = 'x'")
    world.htap.sync_now()
    assert letters(world) == ["a", "a", "b", "b"]
    world.run("update t set a = 2 where id = 1")
    world.htap.sync_now()
    assert letters(world) == ["a", "b", "b"]
    # Of several changes the last one counts, in either order.
    world.run("update t set a = 'y', b = 2, c = 'y' where id = 1")
    world.run("update t set a = 3 where id = 1")
    world.htap.sync_now()
    assert letters(world) == ["a", "b", "c"]
    world.htap.repair("t")
    assert letters(world) == ["a", "b", "c"]
    world.run("update t set c = 2 where id = 1", "update t set a = 2, b = 2 where id = 2")
    world.htap.sync_now()
    assert letters(world) == []
    world.assert_equal("t")
    assert world.htap.verify().equal


@pytest.mark.parametrize(
    ("method", "storage"), [("logical", None), ("trigger", "parquet"), ("polling", None)]
)
def test_each_column_of_a_row_of_postgres_is_mended_by_itself(
    make_postgres: MakePostgres, method: str, storage: str | None
) -> None:
    polling = {"updated_at": "at", "deletes": "reconcile"}
    world = make_postgres(
        mode="temporal",
        capture={"method": method},
        storage=storage,
        tables=[{"name": "t", **({"polling": polling} if method == "polling" else {})}],
    )
    world.run(
        "create table t(id int primary key, a numeric(6, 2), b numeric(6, 2),"
        " at timestamptz not null default clock_timestamp())",
        "insert into t values (1, 1, 1), (2, 2, 2)",
    )
    world.htap.sync_now()
    now = "at = clock_timestamp() where id = 1"
    steps = {
        "a = 'NaN', b = 'NaN'": ["a", "b"],
        "a = 1": ["b"],
        "a = 'NaN', b = 1": ["a"],
        "a = 2": [],
    }
    for change, expected in steps.items():
        world.run(f"update t set {change}, {now}")
        world.htap.sync_now()
        assert letters(world) == expected
    world.assert_equal("t")


@pytest.mark.each
@BOTH_MODES
def test_a_key_that_does_not_fit_stays_named_beside_a_row_without_a_key(
    make_world: MakeWorld, mode: str
) -> None:
    world = make_world(mode=mode)
    world.run("create table t(k text primary key, n integer)", "insert into t values ('a', 1)")
    world.htap.sync_now()
    world.run("insert into t values (x'00', 1), (null, 'x'), (x'01', 'x'), (null, 1)")
    world.htap.sync_now()
    assert set(world.htap.dead_letters()["key"].to_pylist()) == {
        '{"k": {"hex": "00"}}',
        '{"k": {"hex": "01"}}',
        '{"k": null}',
    }
