"""A table that another session keeps from being read is left out; the other tables go on."""

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from rhei_pipeline import SyncReport
from rhei_pipeline.errors import SourceBusyError, TableFailedError
from rhei_pipeline.sources.postgres import database as postgres_database
from rhei_pipeline.sources.postgres.connection import Connection
from rhei_pipeline.sources.postgres.logical import copy_start, slots
from rhei_pipeline.sources.postgres.logical import source as logical_source
from rhei_pipeline.sources.postgres.polling import source as polling_source
from rhei_pipeline.sources.postgres.triggers import source as trigger_source
from rhei_pipeline.sources.waiting import wait_until
from tests.support.fix_postgres import (
    CHOSEN,
    AnyServer,
    PostgresWorld,
    database,
    drop_slots,
    started,
)
from tests.support.parts import engine_of

pytestmark = pytest.mark.turns

MakeWorld = Callable[..., PostgresWorld]
LOCKED = "lock table locked in access exclusive mode"
MIRRORS = ((None, "destructive"), ("parquet", "temporal"))


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(postgres_database._PATIENCE, "lock_timeout", "100ms")
    monkeypatch.setattr(trigger_source, "_LOCK_TIMEOUT", "100ms")
    monkeypatch.setattr(logical_source, "WRITERS_SECONDS", 0.1)


def _made(
    make_postgres: MakeWorld, method: str, storage: str | None = None, mode: str = "destructive"
) -> PostgresWorld:
    world = make_postgres(capture={"method": method}, storage=storage, mode=mode)
    for table in ("free", "locked"):
        world.run(
            f"create table {table} (id int primary key, v text,"
            " updated_at timestamptz not null default clock_timestamp())",
            f"insert into {table} values (1, 'a')",
        )
    return world


@pytest.fixture
def holder(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(dsn) as connection:
        yield connection


def _change(world: PostgresWorld, number: int) -> None:
    world.run(f"insert into free values ({number}, 'b')", f"update free set v = 'c{number}'")


def _let_go(world: PostgresWorld, holder: psycopg.Connection[Any]) -> None:
    holder.execute("update locked set v = 'behind the lock', updated_at = clock_timestamp()")
    holder.commit()
    assert not world.htap.sync_now().errors
    assert not world.htap.left_out
    world.assert_equal("free", "locked")
    assert world.htap.verify().equal


@pytest.mark.parametrize(("storage", "mode"), MIRRORS)
def test_a_locked_table_is_read_once_its_lock_is_gone(
    make_postgres: MakeWorld, holder: psycopg.Connection[Any], storage: str | None, mode: str
) -> None:
    world = _made(make_postgres, "polling", storage, mode)
    world.htap.sync_now()
    world.run("insert into locked values (2, 'before')")
    holder.execute(LOCKED)
    for number in (2, 3):
        _change(world, number)
        report = world.htap.sync_now()
        assert set(report.errors) == {"locked"}
        world.assert_equal("free")
    assert "another session of the source has locked" in str(world.htap.left_out["locked"])
    status = world.htap.sync_status()
    assert status.tables["locked"].lag_events is None
    assert status.tables["free"].lag_events == 0
    _let_go(world, holder)


def test_who_has_locked_a_table_is_found_and_ended(make_postgres: MakeWorld) -> None:
    world = _made(make_postgres, "polling")
    world.htap.sync_now()
    holder = psycopg.connect(world.dsn)
    holder.execute(LOCKED)
    asked = "select * from pg_locks where granted"
    assert f"'{asked}' shows who holds it" in world.htap.sync_now().errors["locked"]
    found = f"select pg_terminate_backend(pid) from ({asked}) l where relation = 'locked'::regclass"
    world.run(f"{found} and mode = 'AccessExclusiveLock'")
    holder.close()
    assert not world.htap.sync_now().errors
    world.assert_equal("free", "locked")


@pytest.mark.parametrize("method", ["trigger", "logical"])
def test_changes_that_are_logged_are_read_though_their_table_is_locked(
    make_postgres: MakeWorld, holder: psycopg.Connection[Any], method: str
) -> None:
    world = _made(make_postgres, method, None, "temporal")
    world.htap.sync_now()
    world.run("update locked set v = 'before'")
    holder.execute(LOCKED)
    _change(world, 2)
    assert not world.htap.sync_now().errors
    world.assert_equal("free")
    (row,) = world.present("locked")
    assert row["v"] == "before"
    _let_go(world, holder)


@pytest.mark.parametrize("method", ["trigger", "polling", "logical"])
def test_a_comparison_leaves_a_locked_table_out(
    make_postgres: MakeWorld, holder: psycopg.Connection[Any], method: str
) -> None:
    world = _made(make_postgres, method)
    world.htap.sync_now()
    holder.execute(LOCKED)
    _change(world, 2)
    report = world.htap.verify()
    assert (report.equal, set(report.tables), set(report.errors)) == (False, {"free"}, {"locked"})
    assert report.tables["free"].equal
    _let_go(world, holder)


@pytest.mark.parametrize("method", ["trigger", "polling"])
def test_copying_all_leaves_a_locked_table_out(
    make_postgres: MakeWorld, holder: psycopg.Connection[Any], method: str
) -> None:
    world = _made(make_postgres, method)
    world.htap.sync_now()
    holder.execute(LOCKED)
    _change(world, 2)
    assert [report.table for report in world.htap.initial_sync_all()] == ["free"]
    for work in (world.htap.initial_sync, world.htap.repair):
        with pytest.raises(TableFailedError, match="table 'locked'"):
            work("locked")
    world.assert_equal("free")
    _let_go(world, holder)


@pytest.mark.long
@pytest.mark.parametrize("method", ["trigger", "polling"])
def test_a_pipeline_begins_without_a_locked_table(
    make_postgres: MakeWorld, holder: psycopg.Connection[Any], method: str
) -> None:
    world = _made(make_postgres, method)
    holder.execute(LOCKED)
    assert set(world.htap.sync_now().errors) == {"locked"}
    world.assert_equal("free")
    _change(world, 2)
    world.htap.sync_now()
    world.assert_equal("free")
    _let_go(world, holder)


@pytest.mark.long
@pytest.mark.parametrize("again", [False, True])
def test_a_pipeline_opens_though_an_older_transaction_keeps_it_from_the_log(
    make_postgres: MakeWorld,
    holder: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
    *,
    again: bool,
) -> None:
    """The first time, and where its slot is gone."""
    tries, create = list[str](), slots.create
    world = _made(make_postgres, "logical", None, "temporal")
    if again:
        world.htap.sync_now()
        world.crash()
        with psycopg.connect(world.dsn, autocommit=True) as other:
            drop_slots(other, other.info.dbname)
        world.run("update free set v = 'unlogged'")

    def noted(connection: Connection, name: str, _seconds: float) -> None:
        tries.append(name)
        create(connection, name, 0.2)

    monkeypatch.setattr(slots, "create", noted)
    holder.execute("insert into free values (100, 'older')")
    assert world.htap.query("select count(*) as n from free", hint="oltp")["n"].to_pylist() == [1]
    assert len(tries) == 1
    report = world.htap.sync_now()
    assert set(report.errors) == {"free", "locked"}
    assert f"process {holder.info.backend_pid}" in report.errors["locked"]
    assert len(tries) == 2
    holder.commit()
    assert not world.htap.sync_now().errors
    world.assert_equal("free", "locked")
    assert world.htap.verify().equal


@pytest.mark.long
def test_of_many_tables_that_one_transaction_holds_one_is_waited_for(
    make_postgres: MakeWorld, holder: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = list[float]()
    monkeypatch.setattr(trigger_source, "time", SimpleNamespace(sleep=pauses.append))
    world = _made(make_postgres, "trigger")
    many = [f"held_{number}" for number in range(4)]
    for table in many:
        world.run(f"create table {table} (id int primary key)")
        holder.execute(f"insert into {table} values (1)".encode())
    for _ in range(2):
        assert set(world.htap.left_out) == {*many}
        assert len(pauses) == 1
        pauses.clear()
        assert set(world.htap.sync_now().errors) == {*many}
    world.assert_equal("free", "locked")
    holder.commit()
    assert not world.htap.sync_now().errors
    world.assert_equal("free", "locked", *many)


@pytest.mark.long
def test_of_many_tables_that_a_migration_has_locked_one_is_waited_for_at_length(
    make_postgres: MakeWorld, holder: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The changes of the others would wait a second for each of them, in every cycle."""
    begun, begin = list[str](), Connection.begin
    world = _made(make_postgres, "polling")
    many = [f"held_{number}" for number in range(4)]
    columns = "id int primary key, updated_at timestamptz not null default clock_timestamp()"
    world.run(*[f"create table {table} ({columns})" for table in many])
    world.htap.sync_now()

    def noted(
        connection: Connection, words: str = "", settings: Mapping[str, str] | None = None
    ) -> None:
        begun.append((settings or {}).get("lock_timeout", ""))
        begin(connection, words, settings)

    monkeypatch.setattr(polling_source, "_HASTY_SECONDS", 600.0)
    monkeypatch.setattr(Connection, "begin", noted)
    for table in many:
        holder.execute(f"alter table {table} add column n int".encode())
    _change(world, 2)
    assert set(world.htap.sync_now().errors) == {*many}
    assert begun.count("100ms") <= 2  # the first snapshot, and a look at all tables at once
    assert begun.count("50ms") >= len(many) - 1
    world.assert_equal("free")
    holder.commit()
    assert not world.htap.sync_now().errors
    world.assert_equal("free", "locked", *many)


@pytest.mark.long
@pytest.mark.parametrize(("storage", "mode"), MIRRORS)
def test_a_copy_that_waits_for_an_older_transaction_keeps_no_other_table_waiting(
    make_postgres: MakeWorld, holder: psycopg.Connection[Any], storage: str | None, mode: str
) -> None:
    world = _made(make_postgres, "logical", storage, mode)
    world.htap.sync_now()
    holder.execute("insert into free values (100, 'older')")
    world.run("create table late (id int primary key, v text)", "insert into late values (1, 'a')")
    for number in (2, 3):
        _change(world, number)
        world.run(f"insert into late values ({number}, 'b')", "update late set v = v || 'c'")
        report = world.htap.sync_now()
        assert set(report.errors) == {"late"}
        assert "an older transaction is open" in str(report.errors["late"])
        assert report.tables["free"].events > 0
    # What has begun meanwhile is nothing to wait for: it is read from the log.
    with psycopg.connect(world.dsn) as younger:
        younger.execute("insert into late values (200, 'younger')")
        holder.execute("insert into late values (100, 'older')")
        holder.commit()
        report = world.htap.sync_now()
        assert not report.errors
        assert report.tables["late"].copied_rows > 0
        world.assert_equal("free", "late")
        younger.commit()
    assert world.htap.sync_now().tables["late"].copied_rows == 0
    world.assert_equal("free", "late")
    assert world.htap.verify().equal


@pytest.mark.long
def test_a_copy_that_waited_is_copied_once_though_its_process_ended(
    make_postgres: MakeWorld, holder: psycopg.Connection[Any]
) -> None:
    world = _made(make_postgres, "logical")
    world.htap.sync_now()
    holder.execute("insert into free values (100, 'older')")
    world.run("create table late (id int primary key)", "insert into late values (1)")
    assert set(world.htap.sync_now().errors) == {"late"}
    world.crash()
    _change(world, 2)
    assert set(world.htap.sync_now().errors) == {"late"}
    holder.commit()
    assert not world.htap.sync_now().errors
    world.assert_equal("free", "late")


def test_a_first_sync_waits_longer_for_an_older_transaction_than_for_a_lock(
    make_postgres: MakeWorld, holder: psycopg.Connection[Any]
) -> None:
    world = _made(make_postgres, "logical")
    holder.execute("insert into free values (100, 'older')")

    def opened_and_synced() -> SyncReport:
        return world.htap.sync_now()

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(opened_and_synced)
        waits = "select 1 from pg_stat_activity where wait_event_type = 'Lock'"
        waits += " and clock_timestamp() - query_start > interval '500 milliseconds'"
        while not first.done() and not world.app.execute(waits.encode()).fetchall():
            pass
        holder.commit()
        assert not first.result().errors
    world.assert_equal("free", "locked")


def test_only_the_first_try_of_a_copy_waits(
    make_postgres: MakeWorld, holder: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = list[float]()

    def noted(condition: Callable[[], bool], seconds: float) -> bool:
        waited.append(seconds)
        return wait_until(condition, seconds)

    monkeypatch.setattr(copy_start, "wait_until", noted)
    world = _made(make_postgres, "logical")
    world.htap.sync_now()
    _change(world, 2)
    world.htap.sync_now()
    waited.clear()
    holder.execute("insert into free values (100, 'older')")
    world.run("create table late (id int primary key)", "insert into late values (1)")
    for _ in range(3):
        assert set(world.htap.sync_now().errors) == {"late"}
    assert waited == [0.1, 0.0, 0.0]


@pytest.fixture(scope="module")
def waiting_server() -> Iterator[AnyServer]:
    with started(CHOSEN) as server:
        yield server


@pytest.fixture
def waiting_dsn(waiting_server: AnyServer) -> Iterator[str]:
    yield from database(waiting_server)


def _waiting(world: PostgresWorld) -> bool:
    waits = "select 1 from pg_stat_activity where wait_event = 'SyncRep'"
    return bool(world.app.execute(waits).fetchall())


def _waits(world: PostgresWorld, writer: psycopg.Connection, statement: str) -> bool:
    """Commit a statement; return whether it waits for a standby, and is not through at once."""
    work = threading.Thread(target=writer.execute, args=(statement.encode(),))
    work.start()
    while work.is_alive():
        if _waiting(world):
            return True
    return False


@contextmanager
def _waiting_for_a_standby(world: PostgresWorld, statement: str) -> Iterator[None]:
    """Commit a statement that is in the log, and not seen by anybody while the block runs."""
    world.run("alter system set synchronous_standby_names = 'none_there'")
    world.run("select pg_reload_conf()", "set synchronous_commit = local")
    with psycopg.connect(world.dsn, autocommit=True) as writer:
        # One of the server's own processes takes note of it, some time after the reload.
        while not _waits(world, writer, "select pg_logical_emit_message(true, 'probe', '')"):
            pass
        world.app.execute("select pg_cancel_backend(%s)", (writer.info.backend_pid,))
        while _waiting(world):
            pass
        work = threading.Thread(target=writer.execute, args=(statement.encode(),))
        work.start()
        try:
            while not _waiting(world):
                pass
            yield
        finally:
            world.run("alter system reset synchronous_standby_names", "select pg_reload_conf()")
            work.join()


@pytest.mark.long
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_a_commit_that_waits_for_a_standby_is_neither_shown_nor_lost(
    waiting_dsn: str, make_worlds: Any, mode: str, *, streaming: bool
) -> None:
    """It is in the log, and no snapshot of rows sees it."""
    world = make_worlds(waiting_dsn)(
        capture={"method": "logical", "streaming": streaming}, mode=mode
    )
    world.run("create table t (id int primary key)", "insert into t values (0)")
    world.htap.sync_now()
    world.run("insert into t values (1)")
    world.htap.sync_now()
    with _waiting_for_a_standby(world, "insert into t values (2)"):
        assert world.htap.sync_now().events == 0
        world.assert_equal("t")
        engine = engine_of(world.htap)
        table, mark = engine.pipeline.table("t"), engine.mirror.ledger().watermarks["t"]
        with engine.source.snapshot() as asked, engine.source.snapshot() as looked:
            assert looked.pending(table, mark.position) == 0
            assert asked.head(table) == looked.head(table)
        assert world.htap.verify().equal
        if mode == "temporal":
            assert world.htap.repair("t").inserted == 0
        else:
            with pytest.raises(TableFailedError, match="an older transaction is open"):
                world.htap.repair("t")
        world.run("insert into t values (3)")
        world.htap.sync_now()
    world.htap.sync_now()
    world.assert_equal("t")
    assert world.htap.verify().equal
    if mode == "temporal":
        assert [row["_rhei_operation"] for row in world.versions("t")] == ["I"] * 4


@pytest.mark.long
def test_no_column_is_read_while_a_commit_parts_the_log_from_the_rows(
    waiting_dsn: str, make_worlds: Any
) -> None:
    """What is seen behind it would be read from the log once more, and be versions again."""
    world = make_worlds(waiting_dsn)(capture={"method": "logical"}, mode="temporal")
    world.run("create table t (id int primary key)")
    world.run("create table u (id int primary key, a int, b text)", "insert into u values (1, 1)")
    world.htap.sync_now()
    with _waiting_for_a_standby(world, "insert into t values (2)"):
        world.run("alter table u alter a type bigint using a * 10", "update u set a = 7, b = 'x'")
        world.run("update u set b = 'y'")
        with pytest.raises(SourceBusyError):
            world.htap.sync_now()
    world.htap.sync_now()
    world.assert_equal("t", "u")
    told = [(row["a"], row["b"]) for row in world.versions("u")]
    assert told == [(1, None), (7, "x"), (7, "y")]
