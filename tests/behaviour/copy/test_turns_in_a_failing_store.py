"""Copies in turns into a bucket whose store fails, or whose writer ends, at some request.

`make test-cluster` runs the longer form: a store for tests answers slowly.
"""

import random
from collections.abc import Callable
from contextlib import closing

import pytest

from rhei_pipeline import HTAP, Settings
from rhei_pipeline.errors import RheiError
from rhei_pipeline.protocols import Step
from rhei_pipeline.sync import pipeline
from rhei_pipeline.testing.faults import CrashAt
from rhei_pipeline.testing.oracle import arrow_rows
from tests.support.fix_object_store import Store
from tests.support.fix_world import World
from tests.support.model import source_rows
from tests.support.store_faults import FaultAt, drawn_fault

ROWS, BATCH = 24, 4


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, make_world: Callable[..., World]) -> World:
    """Return a source with a table in place, and one to be copied in turns of one batch."""
    monkeypatch.setattr(pipeline, "TURN_SECONDS", 0.0)
    monkeypatch.setattr(pipeline, "COPYING_SHARE", 0)
    made = make_world(batch_rows=BATCH)
    made.run(
        "create table small(id integer primary key, v text)", "insert into small values (0, 'a')"
    )
    return made


def declared(world: World, bucket: Store, number: int, mode: str) -> Settings:
    """Return the declaration of a mirror of its own, which has no patience with its store."""
    stored = {**bucket.settings, **bucket.keys, "retry_seconds": 0}
    place = {"path": f"{bucket.url}/{number}", "object_store": stored}
    own = {
        "mirror": {"kind": "datafusion", "storage": "parquet", **place},
        "registry": {"path": world.directory / f"{number}.json"},
        "mode": mode,
        "tables": [{"name": name} for name in (f"big{number}", "small")],
    }
    return Settings(**{**world.settings.model_dump(), **own})


def fail_at(
    world: World, bucket: Store, fault: FaultAt, number: int, mode: str
) -> list[tuple[str, str]]:
    """Copy in turns while a fault befalls it, then go on; return the requests that there were."""
    big = f"big{number}"
    settings = declared(world, bucket, number, mode)
    with HTAP(settings) as htap:  # `small` is in place
        htap.sync_now()
    world.run(f"create table {big}(id integer primary key, v text)")
    world.app.executemany(f"insert into {big} values (?, 'old')", [(n,) for n in range(ROWS)])
    faults, turns = CrashAt(), [0]

    def write() -> None:
        turns[0] += 1
        world.run(
            f"update {big} set v = v || 'n' where id % 3 = {turns[0] % 3}",
            f"delete from {big} where id = {turns[0] * 5}",
            f"update small set v = 'of turn {turns[0]}'",
        )

    faults.do_at(Step.COPY_BATCH, write, times=99)
    htap = HTAP(settings, on_step=faults)
    bucket.fault = fault
    with closing(htap):
        try:
            told = "; ".join(htap.sync_now().errors.values())
        except RheiError as error:
            told = str(error)
        bucket.fault = None
        assert not told or "the store did not answer" in told, (fault, told)
    write()
    with HTAP(settings) as htap:
        assert htap.sync_now().errors == {}
        for table in (big, "small"):
            shown = " where _rhei_valid_to is null" if mode == "temporal" else ""
            found = arrow_rows(htap.query(f"select id, v from {table}{shown}", hint="olap"))
            assert found == source_rows(world.app, table), fault
        assert htap.verify().equal, fault
    world.run(f"drop table {big}")
    return fault.seen


def fail_at_some(world: World, bucket: Store, mode: str, times: int) -> None:
    """Fail at so many requests, each in a copy of its own; at first one that puts rows."""
    drawn = random.Random(times)
    requests = fail_at(world, bucket, FaultAt(0), 0, mode)
    puts = [n for n, of in enumerate(requests, 1) if of[0] == "PUT" and "/data/" in of[1]]
    assert puts, requests
    first = drawn.choice(puts)
    fail_at(world, bucket, FaultAt(first, "500"), first, mode)
    others = [number for number in range(1, len(requests) + 1) if number != first]
    for number in drawn.sample(others, times - 1):
        fail_at(world, bucket, drawn_fault(drawn, number), number, mode)


@pytest.mark.long
@pytest.mark.turns
@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_a_store_that_fails_in_a_turn_loses_and_doubles_nothing(
    world: World, bucket: Store, mode: str
) -> None:
    fail_at_some(world, bucket, mode, 3)


@pytest.mark.cluster
@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_a_store_that_fails_at_more_requests_of_a_turn_loses_and_doubles_nothing(
    world: World, bucket: Store, mode: str
) -> None:
    fail_at_some(world, bucket, mode, 12)
