"""Whatever goes wrong while one table is read or applied: the others go on, and it catches up."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pyarrow as pa
import pytest

from rhei_pipeline.errors import CaptureError, MirrorError, SourceBusyError, TableFailedError
from rhei_pipeline.mirrors.datafusion.manifest import StoredTable
from rhei_pipeline.mirrors.datafusion.write_buffer import WriteBuffer
from rhei_pipeline.model.blame import Blame
from rhei_pipeline.model.reports import SyncReport
from rhei_pipeline.protocols import Step
from rhei_pipeline.testing.faults import FaultIn
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World
from tests.support.parts import engine_of

AnyWorld = World | PostgresWorld
MakeWorld = Callable[..., World]
MakePostgres = Callable[..., PostgresWorld]
NAMES = ("a", "b", "c")
#: A table is asked whether it is due to be copied, proved, asked for changes, and read.
LEAST_PIECES = 4
ERRORS: tuple[Callable[[], Exception], ...] = (
    lambda: RuntimeError("a row's value: 4711"),
    lambda: pa.ArrowInvalid("a row's value: 4711"),
    lambda: duckdb.ConversionException("a row's value: 4711"),
    lambda: psycopg.DataError("a row's value: 4711"),
    lambda: MirrorError("it does not fit", table="b"),
    lambda: CaptureError("its log cannot be read"),
)
_NOW: dict[type, str] = {
    World: "strftime('%Y-%m-%d %H:%M:%f', 'now')",
    PostgresWorld: "clock_timestamp()",
}
_POLLED = {"polling": {"clock": "database", "reconcile_seconds": 0}}


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> FaultIn:
    """A fault in table `b`."""
    made = FaultIn("b")
    monkeypatch.setattr(Blame, "of", made.patched(Blame.of))
    return made


@pytest.fixture(
    params=[
        ("trigger", "destructive", None, False),
        ("trigger", "temporal", "parquet", False),
        ("trigger", "temporal", None, True),
        ("polling", "destructive", "ipc", False),
    ],
    ids=lambda made: "-".join(map(str, made)),
)
def sqlite(request: pytest.FixtureRequest, make_world: MakeWorld, fault: FaultIn) -> World:
    """A SQLite source of three tables, mirrored."""
    method, mode, storage, buffered = request.param
    tables = [{"name": name, **(_POLLED if method == "polling" else {})} for name in NAMES]
    world = make_world(
        method=method, mode=mode, storage=storage, buffered=buffered, tables=tables, faults=fault
    )
    _fill(world)
    return world


@pytest.fixture(
    params=[
        ("logical", "temporal", None, False),
        ("logical", "destructive", "ipc", False),
        ("logical", "temporal", None, True),
        ("trigger", "temporal", "parquet", False),
        ("polling", "destructive", None, False),
    ],
    ids=lambda made: "-".join(map(str, made)),
)
def postgres(
    request: pytest.FixtureRequest, make_postgres: MakePostgres, fault: FaultIn, tmp_path: Path
) -> PostgresWorld:
    """A PostgreSQL source of three tables, mirrored."""
    method, mode, storage, buffered = request.param
    tables = [{"name": name, **(_POLLED if method == "polling" else {})} for name in NAMES]
    capture = {"method": method, **({"buffer": {"path": tmp_path / "cdc"}} if buffered else {})}
    world = make_postgres(capture=capture, mode=mode, storage=storage, tables=tables, faults=fault)
    _fill(world)
    return world


def _fill(world: AnyWorld) -> SyncReport:
    stamped = f"updated_at timestamp not null default ({_NOW[type(world)]})"
    for name in NAMES:
        world.run(
            f"create table {name}(id integer primary key, v integer, {stamped})",
            f"insert into {name}(id, v) values (1, 0), (2, 0)",
        )
    return world.htap.sync_now()


def _write(world: AnyWorld, round_: int) -> None:
    now = _NOW[type(world)]
    for name in NAMES:
        world.run(
            # Changed twice: a copy by its difference would show the last of it alone.
            f"update {name} set v = -{round_}, updated_at = {now} where id = 1",
            f"update {name} set v = {round_}, updated_at = {now} where id = 1",
            f"insert into {name}(id, v) values ({10 + round_}, {round_})",
        )


def _values(world: AnyWorld, name: str) -> list[tuple[Any, ...]]:
    """Return what a mirror holds of the table, its history included, but for instants."""
    found = world.htap.query(f"select * from {name}", hint="olap").to_pylist()
    kept = [
        {n: v for n, v in row.items() if "updated" not in n and "valid" not in n} for row in found
    ]
    return sorted((tuple(row.values()) for row in kept), key=repr)


def _fails_alone(world: AnyWorld, fault: FaultIn, report: SyncReport) -> None:
    """Table `b` failed, is named with a way out and stays where it is; so in the next process."""
    place = engine_of(world.htap).mirror.ledger().watermarks["b"]
    _assert_named(report)
    fault.begin()
    world.crash()
    assert world.htap.left_out.keys() <= {"b"}
    _assert_named(world.htap.sync_now())
    assert engine_of(world.htap).mirror.ledger().watermarks["b"] == place


def _assert_named(report: SyncReport) -> None:
    assert list(report.errors) == ["b"], report.errors
    assert "every sync tries again; if the error stays, 'rhei repair b'" in report.errors["b"]
    assert "4711" not in report.errors["b"]


def _recovers(world: AnyWorld, fault: FaultIn) -> None:
    fault.disarm()
    report = world.htap.sync_now()
    assert not report.errors
    assert _values(world, "b") == _values(world, "a")
    assert world.htap.verify().equal


def _every_fault(world: AnyWorld, fault: FaultIn) -> None:
    # Plain mirrors fail at every other piece, and histories at those between.
    pieces = (Step.CAPTURED, Step.APPLIED, *range(1, 99))[world.mode == "temporal" :: 2]
    for round_, point in enumerate(pieces, 1):
        _write(world, round_)
        before = _values(world, "a")
        fault.arm(point, ERRORS[round_ % len(ERRORS)])
        report = world.htap.sync_now()
        assert _values(world, "a") == _values(world, "c") != before
        if not fault.fired:  # a sync has no more pieces for the table
            break
        _fails_alone(world, fault, report)
        _recovers(world, fault)
    assert 2 * round_ > LEAST_PIECES


def test_any_fault_of_one_sqlite_table_is_its_own(sqlite: World, fault: FaultIn) -> None:
    _every_fault(sqlite, fault)


@pytest.mark.long
def test_any_fault_of_one_postgres_table_is_its_own(
    postgres: PostgresWorld, fault: FaultIn
) -> None:
    _every_fault(postgres, fault)


@pytest.mark.parametrize("step", [Step.SNAPSHOT, Step.RECORDED, Step.COMMITTED])
def test_a_fault_of_what_all_share_fails_the_cycle(make_world: MakeWorld, step: Step) -> None:
    world = make_world()
    _fill(world)
    _write(world, 1)

    def fail() -> None:
        raise MirrorError("the disk is full")

    world.faults.do_at(step, fail)
    with pytest.raises(MirrorError, match="the disk is full"):
        world.htap.sync_now()
    assert not world.htap.left_out
    world.htap.sync_now()
    assert world.htap.verify().equal


def test_a_fault_that_trying_again_may_cure_fails_the_cycle(
    make_world: MakeWorld, fault: FaultIn
) -> None:
    world = make_world(faults=fault)
    _fill(world)
    _write(world, 1)
    fault.arm(Step.APPLIED, lambda: SourceBusyError("the source is locked"))
    with pytest.raises(SourceBusyError):
        world.htap.sync_now()
    fault.disarm()
    assert not world.htap.left_out
    world.htap.sync_now()
    assert world.htap.verify().equal


@pytest.mark.parametrize("storage", [None, "parquet"])
@pytest.mark.parametrize("step", [Step.COPY_BEGUN, Step.COPY_BATCH, Step.PROMOTED])
def test_a_copy_that_fails_is_its_tables_own(
    make_world: MakeWorld, fault: FaultIn, step: Step, storage: str | None
) -> None:
    world = make_world(faults=fault, mode="temporal", storage=storage)
    fault.arm(step, ERRORS[1])
    _assert_named(_fill(world))
    assert _values(world, "a") == _values(world, "c") != []
    _recovers(world, fault)


def test_the_slot_waits_for_a_table_that_fails(make_postgres: MakePostgres, fault: FaultIn) -> None:
    world = make_postgres(faults=fault, mode="temporal")
    _fill(world)
    place = engine_of(world.htap).mirror.ledger().watermarks["b"].position.order
    fault.arm(Step.APPLIED, ERRORS[0])
    for round_ in (1, 2):
        _write(world, round_)
        world.htap.sync_now()
    found = world.app.execute(
        "select confirmed_flush_lsn - '0/0'::pg_lsn from pg_replication_slots where database ="
        " current_database()"
    ).fetchone()
    assert found is not None
    assert int(found[0]) <= place
    _recovers(world, fault)


def test_the_way_out_of_what_can_never_be_applied(make_world: MakeWorld, fault: FaultIn) -> None:
    """A repair copies the table without what is pending; what was known of its past stays."""
    world = make_world(faults=fault, mode="temporal")
    _fill(world)
    _write(world, 1)
    known = _values(world, "b")
    fault.arm(Step.APPLIED, ERRORS[0])
    _assert_named(world.htap.sync_now())
    world.htap.repair("b")
    assert not world.htap.sync_now().errors
    assert world.htap.verify().equal
    assert len(_values(world, "b")) > len(known)


def test_rows_that_cannot_be_written_at_the_commit_are_their_tables_own(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(storage="parquet", mode="temporal")
    _fill(world)
    _write(world, 1)
    prepare_commit = WriteBuffer.prepare_commit

    def failing(buffer: WriteBuffer) -> StoredTable:
        if buffer.table.relation == "b":
            raise pa.ArrowInvalid("a row's value: 4711")
        return prepare_commit(buffer)

    monkeypatch.setattr(WriteBuffer, "prepare_commit", failing)
    _assert_named(world.htap.sync_now())
    assert (1, 1, "U") in {row[:3] for row in _values(world, "a")}
    monkeypatch.undo()
    assert not world.htap.sync_now().errors
    assert _values(world, "b") == _values(world, "a")
    assert world.htap.verify().equal


def _migrates(world: AnyWorld, fault: FaultIn) -> None:
    """What was logged before a migration waits for the table that fails, in any process."""
    for name in NAMES:
        world.run(f"update {name} set v = 1 where id = 1", f"alter table {name} add column w int")
        world.run(f"update {name} set v = 2, w = 5 where id = 1")
    fault.arm(Step.APPLIED, ERRORS[1])
    for _ in range(2):
        _assert_named(world.htap.sync_now())
        assert _knows_update(world, "a")
        world.crash()
        for name in NAMES:
            world.run(f"insert into {name}(id, v) select max(id) + 1, 7 from {name}")
    fault.disarm()
    assert not world.htap.sync_now().errors
    assert _knows_update(world, "b")
    assert world.htap.verify().equal


def _knows_update(world: AnyWorld, name: str) -> bool:
    versions = world.versions(name)
    return any((row["id"], row["v"], row["_rhei_operation"]) == (1, 1, "U") for row in versions)


@pytest.mark.long
@pytest.mark.parametrize("buffered", [False, True])
def test_what_waits_behind_a_migration_waits_for_a_table_that_fails(
    make_world: MakeWorld, fault: FaultIn, *, buffered: bool
) -> None:
    world = make_world(faults=fault, mode="temporal", buffered=buffered)
    _fill(world)
    _migrates(world, fault)


@pytest.mark.long
@pytest.mark.parametrize("method", ["logical", "trigger"])
def test_what_waits_behind_a_migration_of_postgres_waits_for_a_table_that_fails(
    make_postgres: MakePostgres, fault: FaultIn, method: str
) -> None:
    world = make_postgres(faults=fault, mode="temporal", capture={"method": method})
    _fill(world)
    _migrates(world, fault)


def test_copying_all_goes_on_behind_a_table_that_fails(
    make_world: MakeWorld, fault: FaultIn
) -> None:
    world = make_world(faults=fault)
    _fill(world)
    fault.arm(Step.COPY_BEGUN, ERRORS[0])
    assert [report.table for report in world.htap.initial_sync_all()] == ["a", "c"]
    with pytest.raises(TableFailedError, match="RuntimeError"):
        world.htap.initial_sync("b")
    assert list(world.htap.left_out) == ["b"]
    _recovers(world, fault)
