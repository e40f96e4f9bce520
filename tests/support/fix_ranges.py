"""A table whose copies are in ranges, what an application writes meanwhile, and who works on it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rhei_pipeline.model.copy_plan import RangeReport
from rhei_pipeline.protocols import Step
from rhei_pipeline.sync import copy_ranges as sharing
from rhei_pipeline.wiring.copy_ranges import copy_range
from tests.support.declared_worlds import CAPTURES
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World

AnyWorld = World | PostgresWorld
Make = Callable[..., AnyWorld]
ROWS, RANGES, BATCH = 120, 4, 4
POLLED = {"polling": {"updated_at": "at", "deletes": "reconcile", "reconcile_seconds": 0}}


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part is two batches, and nobody waits long for others."""
    monkeypatch.setattr(sharing, "PART_BATCHES", 2)
    monkeypatch.setattr(sharing, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(sharing, "_LOOK_SECONDS", 0.01)


@pytest.fixture
def make(request: pytest.FixtureRequest, soon: None) -> Make:
    """Make a world with a filled table `t(a, b, v, at)` whose copies are in ranges."""

    def made(
        capture: str = "sqlite-trigger",
        storage: str = "parquet",
        rows: int = ROWS,
        ranges: int = RANGES,
        said: dict[str, Any] | None = None,
        **options: Any,
    ) -> AnyWorld:
        table = {"name": "t", "copy_ranges": ranges, **(said or {})}
        if "polling" in capture:
            table |= POLLED
        given = {"storage": storage, "tables": [table], "batch_rows": BATCH, **options}
        world: AnyWorld
        if capture.startswith("sqlite"):
            world = request.getfixturevalue("make_world")(**CAPTURES[capture], **given)
            collated = "collate nocase"
        else:
            world = request.getfixturevalue("make_postgres")(capture=CAPTURES[capture], **given)
            collated = ""
        world.run(
            f"create table t(a text {collated}, b integer, v text, at integer default 0,"
            " primary key(a, b))",
            "create index t_at on t(at, a, b)",
        )
        put(world, range(rows))
        return world

    return made


def key(number: int) -> str:
    return f"'{'kKß'[number % 3]}{number // 10}', {number}"


def put(world: AnyWorld, numbers: range, v: str = "old", at: int = 0) -> None:
    """Insert rows; one statement of many, as a capture may count statements."""
    values = ", ".join(f"({key(n)}, '{v}{n}', {at})" for n in numbers)
    world.run(f"insert into t(a, b, v, at) values {values}")


class Writes:
    """What an application writes while ranges are copied, each time otherwise."""

    def __init__(self, world: AnyWorld) -> None:
        self._world, self._times = world, 0

    def __call__(self) -> None:
        self._times += 1
        n = self._times
        self._world.run(
            f"update t set v = 'new{n}', at = {n} where b % 7 = {n % 7}",
            f"delete from t where b % 11 = {n % 11}",
            # To another range, behind or before what was read.
            f"update t set a = 'z' || b, at = {n} where b = {n * 13 % ROWS}",
            f"update t set a = 'A' || b, at = {n} where b = {n * 29 % ROWS}",
        )
        put(self._world, range(1000 * n, 1000 * n + 3), f"added{n}", n)


def assert_whole(world: AnyWorld) -> None:
    world.assert_equal("t")
    assert world.htap.verify().equal
    assert not left(world, "ranges")


def root(world: AnyWorld) -> Path:
    return Path(world.settings.mirror.path)


def left(world: AnyWorld, folder: str) -> list[str]:
    return sorted(file.name for file in (root(world) / folder).glob("*"))


def begin(world: AnyWorld) -> None:
    """Plan the ranges; the process with the mirror is gone then."""
    world.faults.arm(Step.RANGES_PLANNED)
    assert world.surviving(world.htap.sync_now)


def copied(world: AnyWorld, number: int | None = None, **options: Any) -> RangeReport:
    return copy_range(world.settings, "t", number, **options)
