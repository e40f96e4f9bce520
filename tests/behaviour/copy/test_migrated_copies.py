"""A migration while a table is copied has the copy begun again, and loses no version."""

from collections.abc import Callable
from itertools import count, groupby
from threading import Thread
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from rhei_pipeline.errors import SchemaError, SourceBusyError
from rhei_pipeline.model.reports import SyncReport
from rhei_pipeline.protocols import Step
from rhei_pipeline.sources.waiting import wait_until
from rhei_pipeline.sync import initial_sync
from rhei_pipeline.sync.schema_watch import ATTEMPTS
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World

pytestmark = pytest.mark.turns

AnyWorld = World | PostgresWorld
MakeWorld = Callable[..., World]
MakePostgres = Callable[..., PostgresWorld]

ROWS = "(1, 1, 'x'), (2, 0, 'y'), (3, 0, null)"
POLLED = [
    {"name": name, "polling": {"updated_at": "at", "deletes": "reconcile"}} for name in ("t", "z")
]
MILLISECONDS = "cast((julianday('now') - 2440587.5) * 86400000 as integer)"
MIGRATIONS = {
    "add": ["alter table t add column c text default 'x'"],
    "drop": ["alter table t drop column b"],
    "rename": ["alter table t rename column b to c"],
}


def begin(world: AnyWorld, stamp: str = "") -> None:
    """Make the table that is to be migrated, and one beside it."""
    for name in ("t", "z"):
        at = f", at bigint not null default ({stamp})" if stamp else ""
        world.run(
            f"create table {name}(id integer primary key, a integer, b text{at})",
            f"insert into {name}(id, a, b) values {ROWS}",
        )


def update(world: AnyWorld, value: int, stamp: str = "") -> None:
    """Write the next version of a row."""
    also = f", at = {stamp}" if stamp else ""
    world.run(f"update t set a = {value}{also} where id = 1")


def told(world: AnyWorld) -> list[int]:
    """Return what the history tells of the row, in order."""
    found = [row["a"] for row in world.versions("t") if row["id"] == 1]
    return [value for value, _ in groupby(found)]


def assert_copied_once(world: AnyWorld, report: SyncReport) -> None:
    """One copy of each table came to its end, and the report tells of it alone."""
    assert world.faults.seen.count(Step.COPY_COMPLETE) == 2
    assert {name: table.copied_rows for name, table in report.tables.items()} == {"t": 3, "z": 3}


@pytest.fixture
def one_batch_a_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each batch of a copy read in a snapshot of its own."""
    ticks = SimpleNamespace(monotonic=count().__next__)
    monkeypatch.setattr(initial_sync, "time", ticks)
    monkeypatch.setattr(initial_sync, "SNAPSHOT_SECONDS", 1.5)


@pytest.mark.parametrize("step", [Step.COPY_BEGUN, Step.COPY_BATCH])
@pytest.mark.parametrize(
    ("migration", "options"),
    [
        ("add", {}),
        ("drop", {"mode": "temporal"}),
        ("rename", {"mode": "temporal", "storage": "parquet"}),
        ("add", {"storage": "parquet"}),
        ("drop", {"method": "polling", "tables": POLLED}),
        ("add", {"method": "polling", "tables": POLLED, "mode": "temporal"}),
        ("rename", {"buffered": True, "mode": "temporal"}),
    ],
)
@pytest.mark.usefixtures("one_batch_a_snapshot")
def test_a_first_copy_of_sqlite_is_begun_anew(
    make_world: MakeWorld, migration: str, options: dict[str, Any], step: Step
) -> None:
    world = make_world(batch_rows=1, **options)
    begin(world, MILLISECONDS if "method" in options else "")
    world.faults.do_at(step, lambda: world.run(*MIGRATIONS[migration]))
    assert_copied_once(world, world.htap.sync_now())
    world.assert_equal("t", "z")
    assert world.htap.verify().equal


@pytest.mark.parametrize("step", [Step.COPY_BEGUN, Step.COPY_BATCH])
@pytest.mark.parametrize(
    ("migration", "options"),
    [
        ("add", {}),
        ("drop", {"storage": "parquet"}),
        ("rename", {}),
        ("drop", {"method": "polling", "tables": POLLED}),
        ("rename", {"method": "polling", "tables": POLLED, "storage": "parquet"}),
        ("add", {"buffered": True}),
    ],
)
@pytest.mark.usefixtures("one_batch_a_snapshot")
def test_a_repair_of_a_sqlite_history_keeps_every_version(
    make_world: MakeWorld, migration: str, options: dict[str, Any], step: Step
) -> None:
    world = make_world(batch_rows=1, mode="temporal", **options)
    is_polled = "method" in options
    stamp = MILLISECONDS if is_polled else ""
    begin(world, stamp)
    world.htap.sync_now()
    update(world, 2, stamp)

    def migrate() -> None:
        update(world, 3, stamp)
        world.run(*MIGRATIONS[migration])
        update(world, 4, stamp)

    world.faults.do_at(step, migrate)
    world.htap.repair("t")
    # A poll does not see what was overwritten before it looked.
    assert told(world) == ([1, 2, 4] if is_polled else [1, 2, 3, 4])
    world.assert_equal("t", "z")
    assert world.htap.verify().equal


@pytest.mark.parametrize(
    ("method", "migration", "storage"),
    [
        ("logical", "add", None),
        ("logical", "drop", "parquet"),
        ("logical", "rename", None),
        ("trigger", "add", "parquet"),
        ("trigger", "drop", None),
        ("trigger", "rename", None),
    ],
)
@pytest.mark.parametrize("repaired", [False, True], ids=["first", "repair"])
def test_a_copy_of_postgres_is_begun_anew(
    make_postgres: MakePostgres,
    method: str,
    migration: str,
    storage: str | None,
    *,
    repaired: bool,
) -> None:
    world = make_postgres(mode="temporal", capture={"method": method}, storage=storage)
    begin(world)
    if repaired:
        world.htap.sync_now()
        update(world, 2)

    def migrate() -> None:
        update(world, 3)
        world.run(*MIGRATIONS[migration])
        update(world, 4)

    world.faults.do_at(Step.COPY_BEGUN, migrate)
    if repaired:
        world.htap.repair("t")
        assert told(world) == [1, 2, 3, 4]
    else:
        assert_copied_once(world, world.htap.sync_now())
    world.assert_equal("t", "z")
    assert world.htap.verify().equal


@pytest.mark.long
@pytest.mark.parametrize(("method", "migration"), [("logical", "drop"), ("trigger", "rename")])
@pytest.mark.usefixtures("one_batch_a_snapshot")
def test_a_migration_that_waits_for_a_batch_of_postgres(
    make_postgres: MakePostgres, method: str, migration: str
) -> None:
    world = make_postgres(mode="temporal", capture={"method": method}, batch_rows=1)
    begin(world)
    world.htap.sync_now()
    others: list[Thread] = []

    def migrate() -> None:
        with psycopg.connect(world.dsn, autocommit=True) as other:
            for statement in (*MIGRATIONS[migration], "update t set a = 3 where id = 1"):
                other.execute(statement.encode())

    def is_waiting() -> bool:
        found = world.app.execute("select 1 from pg_locks where not granted").fetchone()
        return found is not None

    def let_wait() -> None:
        others.append(Thread(target=migrate))
        others[0].start()
        assert wait_until(is_waiting, 30)

    update(world, 2)
    world.faults.do_at(Step.COPY_BATCH, let_wait)
    world.htap.repair("t")
    others[0].join()
    world.htap.sync_now()
    assert told(world) == [1, 2, 3]
    world.assert_equal("t", "z")
    assert world.htap.verify().equal


def test_a_table_that_is_migrated_at_every_copy_is_given_up_for_now(make_world: MakeWorld) -> None:
    world = make_world(mode="temporal")
    begin(world)
    numbers = count()
    world.faults.do_at(
        Step.COPY_BEGUN,
        lambda: world.run(f"alter table t add column c{next(numbers)} text"),
        times=10,
    )
    with pytest.raises(SourceBusyError, match="keeps changing"):
        world.htap.sync_now()
    world.htap.sync_now()
    world.assert_equal("t", "z")


def compare_beside_a_migration(world: AnyWorld, migration: str, stamp: str = "") -> None:
    """Have the source migrated between the sync and the comparison, each time one is asked for."""
    begin(world, stamp)
    world.htap.sync_now()
    world.faults.do_at(Step.ACKNOWLEDGED, lambda: world.run(*MIGRATIONS[migration]))
    found = world.htap.verify()
    assert found.equal, found
    assert {name: table.rows for name, table in found.tables.items()} == {"t": 3, "z": 3}
    world.assert_equal("t", "z")
    world.faults.do_at(Step.ACKNOWLEDGED, lambda: world.run("drop table t"))
    with pytest.raises(SchemaError, match="no such table"):
        world.htap.row_parity("t")
    assert world.htap.row_parity("z").equal


@pytest.mark.parametrize(
    ("migration", "options"),
    [
        ("add", {}),
        ("rename", {"mode": "temporal", "storage": "parquet"}),
        ("drop", {"method": "polling", "tables": POLLED}),
        ("add", {"buffered": True}),
    ],
)
def test_what_is_migrated_behind_its_sync_is_compared_as_it_is_now(
    make_world: MakeWorld, migration: str, options: dict[str, Any]
) -> None:
    world = make_world(**options)
    compare_beside_a_migration(world, migration, MILLISECONDS if "method" in options else "")


@pytest.mark.long
@pytest.mark.parametrize(("method", "migration"), [("logical", "rename"), ("trigger", "add")])
def test_what_is_migrated_behind_its_sync_of_postgres_is_compared_as_it_is_now(
    make_postgres: MakePostgres, method: str, migration: str
) -> None:
    compare_beside_a_migration(make_postgres(capture={"method": method}), migration)


def test_what_is_migrated_behind_every_sync_is_not_compared_for_now(make_world: MakeWorld) -> None:
    world = make_world()
    begin(world)
    numbers = count()
    world.faults.do_at(
        Step.ACKNOWLEDGED,
        lambda: world.run(f"alter table z add column c{next(numbers)} text"),
        times=ATTEMPTS,
    )
    with pytest.raises(SourceBusyError, match="keeps changing"):
        world.htap.verify()
    world.htap.sync_now()
    world.assert_equal("t", "z")
