"""Many small tables are copied by one commit each, and are as right as others."""

from collections.abc import Callable
from typing import Any

import pytest

from rhei_pipeline.protocols import Step
from rhei_pipeline.sync import copies, initial_sync
from rhei_pipeline.testing.faults import Crash
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World
from tests.support.parts import engine_of

TABLES = 8
LARGE = TABLES - 1  # the last one has more rows


def fill(world: World | PostgresWorld, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(copies, "MANY_TABLES", TABLES)
    monkeypatch.setattr(initial_sync, "SMALL_ROWS", 5)
    for number in range(TABLES):
        rows = 12 if number == LARGE else number % 6  # some are empty
        world.run(f"create table t{number}(id integer primary key, v integer)")
        for row in range(rows):
            world.run(f"insert into t{number} values ({row}, {row})")
    return [f"t{number}" for number in range(TABLES)]


def commits(world: World | PostgresWorld) -> int:
    mirror: Any = engine_of(world.htap).mirror
    return int(mirror._commits)


@pytest.mark.parametrize(
    ("mode", "step"), [("destructive", Step.COPY_BEGUN), ("temporal", Step.COPY_COMPLETE)]
)
def test_small_tables_are_copied_by_one_commit_each_and_after_a_crash_not_again(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch, mode: str, step: Step
) -> None:
    world = make_world(mode=mode, batch_rows=6)
    names = fill(world, monkeypatch)
    world.run("update t5 set v = 'no number' where id = 3")
    world.faults.arm(step, 4)
    before = commits(world)
    with pytest.raises(Crash):
        world.htap.sync_now()
    assert commits(world) - before == 4
    world.crash()
    world.run("delete from t1", "insert into t0 values (9, 9)", "delete from t5 where id = 4")
    before = commits(world)
    world.htap.sync_now()
    # What was left; the large one is begun, read in two batches and completed; the cycle.
    assert commits(world) - before == TABLES - 4 + 3 + 1
    assert world.htap.dead_letters()["key"].to_pylist() == ['{"id": 3}']
    world.run("update t5 set v = 3 where id = 3")
    world.htap.sync_now()
    world.assert_equal(*names)
    assert world.htap.verify().equal


@pytest.mark.parametrize("method", ["logical", "trigger"])
def test_small_tables_of_postgres_are_caught_up_after_they_were_copied(
    make_postgres: Callable[..., PostgresWorld], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    world = make_postgres(mode="temporal", capture={"method": method})
    names = fill(world, monkeypatch)
    world.faults.do_at(
        Step.COPY_BEGUN,
        lambda: world.run("update t3 set v = v + 1", "insert into t4 values (9, 9)"),
    )
    before = commits(world)
    world.htap.sync_now()
    assert commits(world) - before == TABLES + 2 + 1  # the large one has a batch, and its end
    world.assert_equal(*names)
    assert world.htap.verify().equal
