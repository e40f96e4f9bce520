"""Polling by timestamps, as it is alike in SQLite and PostgreSQL: nothing is lost where proved."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from rhei_pipeline.model.polling import Clock, PollOptions
from rhei_pipeline.model.schema import Table
from rhei_pipeline.protocols import Step
from rhei_pipeline.sources.postgres.database import PostgresDatabase
from rhei_pipeline.sources.postgres.polling.source import PostgresPollingSource
from rhei_pipeline.sources.sqlite.database import SqliteDatabase
from rhei_pipeline.sources.sqlite.polling.source import SqlitePollingSource
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World
from tests.support.polled_histories import POSTGRES_NOW, SQLITE_NOW

pytestmark = pytest.mark.turns

Polled = World | PostgresWorld
Make = Callable[..., Polled]

UNBUFFERED_STEPS = sorted(
    step
    for step in Step
    if step not in {Step.BUFFERING, Step.BRIDGED, Step.BRIDGE_ACKNOWLEDGED} and "range" not in step
)
PAST = "'2020-01-01 00:00:00.000'"


@pytest.fixture(params=["sqlite", "postgres"])
def make(request: pytest.FixtureRequest) -> Make:
    """Make a world whose table `t(id, v, updated_at, deleted_at)` is polled."""

    def made(*, mode: str = "destructive", **polling: Any) -> Polled:
        table = {"name": "t", "polling": {"clock": "database", **polling}}
        options = {"mode": mode, "tables": [table], "batch_rows": 3}
        world: Polled
        if request.param == "sqlite":
            world = request.getfixturevalue("make_world")(method="polling", **options)
        else:
            capture = {"method": "polling"}
            world = request.getfixturevalue("make_postgres")(capture=capture, **options)
        stamp = "text" if isinstance(world, World) else "timestamptz"
        world.run(
            f"create table t(id integer primary key, v text, updated_at {stamp}, deleted_at text)",
            "create index t_updated on t(updated_at, id)",
        )
        return world

    return made


def now(world: Polled) -> str:
    """Return an expression that stamps a row."""
    return SQLITE_NOW if isinstance(world, World) else POSTGRES_NOW


def put(world: Polled, key: int, value: str, stamp: str = "") -> None:
    world.run(
        f"insert into t values ({key}, '{value}', {stamp or now(world)}, null)"
        " on conflict (id) do update set v = excluded.v, updated_at = excluded.updated_at"
    )


def mirrored(world: Polled) -> dict[int, str]:
    found = world.htap.query("select id, v from t", hint="olap").to_pylist()
    return {row["id"]: row["v"] for row in found}


def test_rows_without_a_timestamp_are_found(make: Make) -> None:
    world = make()
    put(world, 1, "a", "null")
    world.htap.sync_now()
    put(world, 2, "b", "null")
    put(world, 1, "changed", "null")
    put(world, 3, "c")
    report = world.htap.sync_now()
    assert (report.events, report.inserted, report.updated) == (3, 2, 1)
    assert mirrored(world) == {1: "changed", 2: "b", 3: "c"}
    world.run("update t set updated_at = null, v = 'x' where id = 3")
    world.htap.sync_now()
    assert mirrored(world)[3] == "x"
    assert world.htap.sync_now().events == 0


def test_ties_longer_than_a_batch_come_whole(make: Make) -> None:
    world = make()
    world.htap.sync_now()
    world.run(
        "with recursive keys(key) as (select 0 union all select key + 1 from keys where key < 19)"
        f" insert into t select key, 'a', {now(world)}, null from keys"
    )
    report = world.htap.sync_now()
    assert (report.events, report.inserted) == (20, 20)
    world.run(f"update t set v = 'b', updated_at = {now(world)} where id >= 10")
    report = world.htap.sync_now()
    assert (report.inserted, report.updated) == (0, 10)
    if not isinstance(world, World):  # SQLite's clock may not have left the tick of the others
        assert report.events == 10
    world.assert_equal("t")


def test_soft_deletes_and_undeletes(make: Make) -> None:
    world = make(mode="temporal", deletes="soft_delete:deleted_at")
    put(world, 1, "a")
    put(world, 2, "b")
    world.htap.sync_now()
    for value, expected in (("'x'", ["b"]), ("null", ["a", "b"]), ("'y'", ["b"])):
        world.run(f"update t set deleted_at = {value}, updated_at = {now(world)} where id = 1")
        world.htap.sync_now()
        alive = world.htap.query("select v from t where _rhei_valid_to is null order by v")
        assert alive["v"].to_pylist() == expected
        assert world.htap.verify().equal
    operations = [version["_rhei_operation"] for version in world.versions("t", "id, 1")]
    assert sorted(operations) == ["D", "D", "I"]


def test_a_mark_without_a_new_stamp_is_named_and_repaired(make: Make) -> None:
    world = make(mode="temporal", deletes="soft_delete:deleted_at", reconcile_seconds=0)
    for key in (1, 2, 3):
        put(world, key, "a", PAST)
    put(world, 4, "a")
    world.htap.sync_now()
    world.run("update t set deleted_at = 'x' where id = 2")
    world.htap.sync_now()
    assert not world.htap.verify().equal
    assert world.htap.verify().tables["t"].extra == 1
    assert world.htap.repair("t").deleted == 1
    assert world.htap.verify().equal


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_reconciliation_finds_hard_deletes_and_writes_of_the_past(make: Make, mode: str) -> None:
    world = make(mode=mode, deletes="reconcile", reconcile_seconds=0)
    for key in range(10):
        put(world, key, "a")
    world.htap.sync_now()
    put(world, 3, "silent", PAST)
    put(world, 30, "late", PAST)
    world.run("delete from t where id in (4, 9)", "update t set id = 70 where id = 7")
    report = world.htap.sync_now()
    assert (report.inserted, report.updated, report.deleted) == (2, 1, 3)
    world.assert_equal("t")
    assert world.htap.verify().equal
    if mode == "temporal":
        ended = [v for v in world.versions("t") if v["_rhei_valid_to"] is not None]
        found = sorted((v["id"], v["_rhei_operation"]) for v in ended)
        assert found == [(3, "I"), (4, "D"), (7, "D"), (9, "D")]


def test_a_clock_put_back_during_a_run_is_found(make: Make) -> None:
    world = make()
    put(world, 1, "a")
    elapsed = [0.0]
    polls = {"t": PollOptions(clock=Clock.DATABASE)}
    with _source(world, polls, lambda: elapsed[0]) as source:
        table = Table(source.describe("t"))
        with source.snapshot() as snapshot:
            head = snapshot.head(table)
            assert snapshot.proves(table, head)
        elapsed[0] += 5.0
        with source.snapshot() as snapshot:
            assert not snapshot.proves(table, head)
            again = snapshot.head(table)
            assert again.order > head.order
            assert snapshot.proves(table, again)


@contextmanager
def _source(
    world: Polled, polls: dict[str, PollOptions], monotonic: Callable[[], float]
) -> Iterator[SqlitePollingSource | PostgresPollingSource]:
    if isinstance(world, World):
        file = SqliteDatabase(world.path, read_only=True)
        with closing(file), closing(SqlitePollingSource(file, polls, monotonic=monotonic)) as it:
            yield it
    else:
        server = PostgresDatabase(world.dsn, read_only=True)
        with (
            closing(server),
            closing(PostgresPollingSource(server, polls, monotonic=monotonic)) as them,
        ):
            yield them


@pytest.mark.parametrize("deletes", ["disabled", "reconcile"])
@pytest.mark.parametrize("step", UNBUFFERED_STEPS)
def test_a_crash_at_any_step_loses_nothing(make: Make, step: Step, deletes: str) -> None:
    world = make(mode="temporal", deletes=deletes, reconcile_seconds=0)
    for key in range(8):
        put(world, key, "a")
    world.faults.arm(step)
    crashed = world.surviving(world.htap.sync_now)
    world.faults.disarm()
    world.htap.sync_now()
    for key in range(4, 12):
        put(world, key, "b")
    world.faults.arm(step)
    crashed |= world.surviving(world.htap.sync_now)
    world.faults.disarm()
    world.htap.sync_now()
    world.assert_equal("t")
    assert len(world.versions("t")) == 8 + 8
    assert crashed or (step is Step.AUDITED and deletes == "disabled")
