"""Many small tables are copied by one commit each, and are as right as others."""

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

import rhei_pipeline as rhei
from rhei_pipeline.capabilities import reading_together
from rhei_pipeline.protocols import ChangeSource, Step
from rhei_pipeline.sync import copies, initial_sync
from rhei_pipeline.testing.faults import Crash
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World
from tests.support.parts import engine_of

pytestmark = pytest.mark.turns

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


def noted(world: World | PostgresWorld, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Note of which tables the source is told while they are copied, and tell it."""
    source: Any = engine_of(world.htap).source
    told: list[list[str]] = []
    tell = source.acknowledge

    def note(needed_from: dict[str, Any], *, prune: bool) -> int:
        if not prune:
            told.append(sorted(needed_from))
        return int(tell(needed_from, prune=prune))

    monkeypatch.setattr(source, "acknowledge", note)
    return told


@pytest.mark.long
@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_small_copies_are_told_together_and_miss_nothing_that_another_mirror_lets_go(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch, mode: str, tmp_path: Path
) -> None:
    world = make_world(mode=mode, batch_rows=6)
    names = fill(world, monkeypatch)
    monkeypatch.setattr(copies, "TOLD_TOGETHER", 3)
    mirror = rhei.Settings(source={"path": world.path}, mirror={"path": tmp_path / "x"}).mirror
    other = world.settings.model_copy(update={"mirror": mirror})
    other = other.model_copy(update={"registry": other.registry.model_copy(update={"path": "x.r"})})
    with rhei.open(other.anchored(tmp_path)) as second:
        second.sync_now()

        def others_go_on() -> None:
            for number in range(TABLES):
                world.run(f"delete from t{number} where id = 0")
                world.run(f"insert into t{number} values (20, 20)")
            for _ in range(2):  # what was read before is let go
                world.run(*(f"update t{number} set v = v + 1" for number in range(TABLES)))
                assert second.sync_now().events

        # At the fifth copy, the first three were told of, and the fourth was not.
        told = noted(world, monkeypatch)
        world.faults.arm(Step.COPY_COMPLETE, 5)
        with pytest.raises(Crash):
            world.htap.sync_now()
        assert told == [names[:3]]
        others_go_on()
        world.crash()
        world.run("update t5 set v = 7 where id = 20")
        told = noted(world, monkeypatch)
        world.htap.sync_now()
        assert told[-1]
        world.assert_equal(*names)
        second.sync_now()
        assert second.verify().equal
    assert world.htap.verify().equal


@pytest.mark.long
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


def test_tables_that_cannot_be_copied_have_the_others_described_once(
    make_postgres: Callable[..., PostgresWorld], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_postgres(capture={"method": "logical"})
    names, asked = fill(world, monkeypatch), list[int]()

    def note(source: ChangeSource, wanted: Collection[str]) -> AbstractContextManager[None]:
        asked.append(len(wanted))
        return reading_together(source, wanted)

    monkeypatch.setattr(copies, "reading_together", note)
    gone = names[1:LARGE]
    world.faults.do_at(
        Step.COPY_COMPLETE, lambda: world.run(*(f"drop table {name}" for name in gone))
    )
    world.htap.sync_now()
    assert asked == [TABLES - 1]
    world.assert_equal("t0", f"t{LARGE}")
