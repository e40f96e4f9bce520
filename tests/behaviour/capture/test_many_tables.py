"""What a cycle costs follows what changed: as many statements for few tables as for many."""

import re
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Self, TypeGuard

import duckdb
import psycopg
import pytest

import rhei_pipeline as rhei
from rhei_pipeline.buffer.rocksdb import RocksDirectory
from rhei_pipeline.mirrors.datafusion import manifest
from rhei_pipeline.mirrors.datafusion.segment_store import SegmentStore
from rhei_pipeline.model.schema import Table
from rhei_pipeline.sources.postgres import identity, table_facts
from rhei_pipeline.sources.postgres.polling.snapshot import PostgresPollingSnapshot
from rhei_pipeline.sources.postgres.triggers import snapshot as trigger_snapshot
from rhei_pipeline.sources.postgres.triggers import source as triggers
from rhei_pipeline.sources.postgres.triggers.log_numbers import LogNumbers
from rhei_pipeline.sources.postgres.triggers.registry import Registered
from rhei_pipeline.sources.sqlite.database import SqliteDatabase
from rhei_pipeline.sources.sqlite.polling.snapshot import SqlitePollingSnapshot
from rhei_pipeline.sources.sqlite.schema_objects import SchemaState
from rhei_pipeline.sources.sqlite.triggers import log_catalog, schema_watch
from rhei_pipeline.sources.sqlite.triggers.snapshot import SqliteTriggerSnapshot
from rhei_pipeline.sources.sqlite.triggers.source import SqliteTriggerSource
from rhei_pipeline.sync import copies, naming
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World
from tests.support.parts import connection_of, engine_of

pytestmark = pytest.mark.turns

_FEW, _MANY = 3, 9
#: A cycle is counted so often, and the least is taken: the server itself writes to its log, too.
_ROUNDS = 3


class Counted:
    """A connection of DuckDB that counts what is sent through it and its cursors."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, sent: list[str]) -> None:
        self._connection, self._sent = connection, sent

    def execute(self, sql: str | duckdb.Statement, *parameters: object) -> object:
        """Count a statement, parsed or not, and run it."""
        self._sent.append(sql if isinstance(sql, str) else sql.query)
        return self._connection.execute(sql, *parameters)

    def cursor(self) -> "Counted":
        """Return another one that counts in the same place."""
        return Counted(self._connection.cursor(), self._sent)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def __getattr__(self, name: str) -> object:
        return getattr(self._connection, name)


@pytest.fixture
def sent_to_postgres(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Note every statement that this thread has the driver send, and run it.

    A pool opens its sessions in a thread of its own, sooner or later.
    """
    sent: list[object] = []

    def noting(name: str) -> None:
        run = getattr(psycopg.Cursor, name)

        def note(cursor: object, query: object, *more: Any, **options: Any) -> Any:
            if threading.current_thread() is threading.main_thread():
                sent.append(query)
            return run(cursor, query, *more, **options)

        monkeypatch.setattr(psycopg.Cursor, name, note)

    noting("execute")
    noting("copy")
    return sent


def counting(htap: rhei.HTAP) -> list[str]:
    """Count what is sent to the mirror from now on."""
    sent: list[str] = []
    mirror: Any = engine_of(htap).pipeline._mirror
    mirror._connection = mirror._statements.connection = Counted(mirror._connection, sent)
    return sent


def least(htap: rhei.HTAP, sent: list[Any], change: Callable[[], object], events: int) -> int:
    """Return how few statements a cycle needs."""
    counts = []
    for _ in range(_ROUNDS):
        change()
        sent.clear()
        assert htap.sync_now().events == events
        counts.append(len(sent))
    return min(counts)


@pytest.mark.long
@pytest.mark.parametrize("method", ["logical", "trigger", "polling"])
def test_a_cycle_sends_postgres_and_its_mirror_the_same_for_few_tables_and_many(
    method: str, make_postgres: Callable[..., PostgresWorld], sent_to_postgres: list[object]
) -> None:
    world = make_postgres(capture={"method": method}, tables=[{"name": "t0"}])
    found = []
    for count in (_FEW, _MANY):
        for number in range(count):
            world.run(
                f"create table if not exists t{number}(id int primary key, v int,"
                " updated_at timestamptz not null default clock_timestamp())",
                f"insert into t{number} values (1, 0) on conflict do nothing",
            )
            world.htap.register_table(f"t{number}")
        world.htap.sync_now()
        to_mirror = counting(world.htap)

        def change() -> None:
            world.app.execute("update t0 set v = v + 1, updated_at = clock_timestamp()")
            sent_to_postgres.clear()

        _settle(world, change)
        idle = least(world.htap, sent_to_postgres, lambda: None, 0)
        source = least(world.htap, sent_to_postgres, change, 1)
        mirror = least(world.htap, to_mirror, change, 1)
        found.append((idle, source, mirror))
    few, many = found
    assert many == few
    world.assert_equal("t0", f"t{_MANY - 1}")


@pytest.mark.long
def test_how_logs_of_postgres_are_read_is_found_out_anew_for_changed_tables_only(
    make_postgres: Callable[..., PostgresWorld], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_postgres(capture={"method": "trigger"}, mode="temporal", tables=[{"name": "t0"}])
    calls: list[str] = []
    for name in ("captured", "_quiet_sql"):
        module: Any = triggers if hasattr(triggers, name) else trigger_snapshot
        run = getattr(module, name)

        def count(*given: Any, name: str = name, run: Callable[..., Any] = run) -> Any:
            calls.append(name)
            return run(*given)

        monkeypatch.setattr(module, name, count)
    counting_calls(monkeypatch, Registered, "of", calls)

    def change() -> None:
        world.app.execute("update t0 set v = v + 1")
        calls.clear()

    found = []
    for count_of in (_FEW, _MANY):
        for number in range(count_of):
            world.run(
                f"create table if not exists t{number}(id int primary key, v int)",
                f"insert into t{number} values (1, 0) on conflict do nothing",
            )
            world.htap.register_table(f"t{number}")
        _settle(world, change)
        found.append(least(world.htap, calls, change, 1))
    few, many = found
    assert many == few
    world.assert_equal("t0", f"t{_MANY - 1}")


@pytest.mark.long
@pytest.mark.parametrize("method", ["trigger", "polling"])
def test_what_is_asked_of_tables_of_postgres_without_changes_stays_planned(
    method: str, make_postgres: Callable[..., PostgresWorld], monkeypatch: pytest.MonkeyPatch
) -> None:
    _read_every_log(monkeypatch)
    many = trigger_snapshot._LOOKS_AT_ONCE + 1
    columns = "id int primary key, v int, updated_at timestamptz not null default clock_timestamp()"
    names = [f"t{number}" for number in range(many)]
    tables = [{"name": name, "polling": {"clock": "database"}} for name in names]
    world = make_postgres(capture={"method": method}, tables=tables)
    world.run(
        *(f"create table {name}({columns})" for name in names),
        *(f"insert into {name} values (1, 0)" for name in names),
    )

    def change() -> None:
        world.app.execute("update t0 set v = v + 1, updated_at = clock_timestamp()")

    for _ in range(4):  # from then on the driver has statements prepared
        _settle(world, change)
    source: Any = engine_of(world.htap).source
    ((oid,),) = world.app.execute(f"select '{names[-1]}'::regclass::oid::int")
    asked = f"%log_{oid} where%not exists%" if method == "trigger" else f'%"{names[-1]}"%w.unread%'

    def planned() -> set[tuple[str, int, int]]:
        return set(
            connection_of(source).execute(
                "select statement, custom_plans, generic_plans from pg_prepared_statements"
                " where statement like %s",
                (asked,),
            )
        )

    before = planned()
    change()
    assert world.htap.sync_now().events == 1
    ((text, custom, generic),) = planned() - before
    assert (text, custom, generic - 1) in before
    world.assert_equal("t0", names[-1])


@pytest.mark.long
def test_a_change_makes_postgres_plan_anew_what_asks_about_few_tables_only(
    make_postgres: Callable[..., PostgresWorld],
    sent_to_postgres: list[object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert trigger_snapshot._LOOKS_AT_ONCE < 2 * _MANY
    monkeypatch.setattr(trigger_snapshot, "_LOOKS_AT_ONCE", _FEW)
    _read_every_log(monkeypatch)
    world = make_postgres(capture={"method": "trigger"}, tables=[{"name": "t0"}])
    found = []
    for count in (_FEW, _MANY):
        for number in range(count):
            world.run(f"create table if not exists t{number}(id int primary key, v int)")
            world.htap.register_table(f"t{number}")
        world.run("insert into t0 values (1, 0) on conflict do nothing")
        _settle(world, lambda: world.run("update t0 set v = v + 1"))
        known: set[object] = {*sent_to_postgres}
        logs = []
        for _ in range(_ROUNDS):
            world.run("update t0 set v = v + 1")
            sent_to_postgres.clear()
            assert world.htap.sync_now().events == 1
            new = {text for text in sent_to_postgres if isinstance(text, bytes)} - known
            logs.append(sum(text.count(b"::regclass::oid::bigint") for text in new))
            known |= new
        found.append(min(logs))
    few, many = found
    assert many == few
    world.assert_equal("t0", f"t{_MANY - 1}")


@pytest.mark.long
def test_logs_of_tables_without_changes_are_not_read(
    make_postgres: Callable[..., PostgresWorld],
    sent_to_postgres: list[object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trigger_snapshot, "_LOOKS_AT_ONCE", 1)
    names = [f"t{number}" for number in range(_FEW)]
    world = make_postgres(capture={"method": "trigger"}, tables=[{"name": name} for name in names])
    world.run(*(f"create table {name}(id int primary key, v int)" for name in names))
    world.run("insert into t0 values (1, 0)")
    _settle(world, lambda: world.run("update t0 set v = v + 1"))
    world.run("update t0 set v = v + 1")
    sent_to_postgres.clear()
    assert world.htap.sync_now().events == 1
    logs = set(re.findall(rb"_rhei\.log_\d+", b" ".join(filter(_is_bytes, sent_to_postgres))))
    ((oid,),) = world.app.execute("select 't0'::regclass::oid::int")
    assert logs == {f"_rhei.log_{oid}".encode()}


def test_many_tables_are_described_together_before_they_are_copied(
    make_postgres: Callable[..., PostgresWorld],
    sent_to_postgres: list[object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(copies, "MANY_TABLES", 1)
    names = [f"t{number}" for number in range(_MANY)]
    world = make_postgres(capture={"method": "logical"}, tables=[{"name": name} for name in names])
    world.run(*(f"create table {name}(id int primary key)" for name in names))
    world.htap.sync_status()
    sent_to_postgres.clear()
    world.htap.sync_now()
    assert sum("i.indpred" in str(text) for text in sent_to_postgres) <= _FEW
    world.assert_equal(*names)


def _is_bytes(text: object) -> TypeGuard[bytes]:
    return isinstance(text, bytes)


def _read_every_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have logs read as where their sequences may not be asked."""
    monkeypatch.setattr(LogNumbers, "untouched", lambda *_: ())


def _settle(world: PostgresWorld, change: Callable[[], None]) -> None:
    """Leave behind what is done once: what is prepared, and what the copies wrote."""
    for _ in range(3):
        change()
        world.htap.sync_now()
    world.htap.sync_now()


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "mode"), [("trigger", "temporal"), ("trigger", "destructive"), ("polling", None)]
)
def test_a_cycle_sends_sqlite_the_same_for_few_tables_and_many(
    method: str,
    mode: str | None,
    make_world: Callable[..., World],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    for count in (_FEW, _MANY):
        tables = [{"name": f"t{n}", "polling": {"clock": "database"}} for n in range(count)]
        world = make_world(method=method, mode=mode, tables=tables)
        for number in range(count):
            world.run(
                f"create table t{number}(id integer primary key, v int, updated_at integer)",
                f"create index t{number}_updated on t{number}(updated_at)",
                f"insert into t{number} values (1, 0, 1)",
            )
        world.htap.sync_now()
        source: Any = engine_of(world.htap).source
        sent: list[str] = []
        connection_of(source).set_trace_callback(sent.append)

        def change(app: Any = world.app) -> None:
            app.execute("update t0 set v = v + 1, updated_at = unixepoch('subsec') * 1000")

        for _ in range(4):
            change()
            world.htap.sync_now()
        world.htap.sync_now()
        if method == "polling":
            looked = counting_calls(monkeypatch, SqlitePollingSnapshot, "_look_behind")
            assert least(world.htap, looked, change, 1) == 1
        costs = [least(world.htap, sent, lambda: None, 0), least(world.htap, sent, change, 1)]
        change()
        sent.clear()
        world.htap.sync_status()
        found.append([*costs, len(sent)])
        world.htap.sync_now()
        world.assert_equal("t0", f"t{count - 1}")
        # Where nobody looked a moment ago, a change of any table is met all the same.
        world.run(f"update t{count - 1} set v = 9, updated_at = updated_at + 1")
        assert world.htap.sync_now().tables[f"t{count - 1}"].updated == 1
    few, many = found
    assert many == few


@pytest.mark.long
def test_a_first_sync_writes_the_watermarks_of_all_tables_at_once(tmp_path: Path) -> None:
    found = []
    for count in (_FEW, _MANY):
        settings = _sqlite(tmp_path / str(count), count)
        with rhei.open(settings) as htap:
            sent = counting(htap)
            htap.sync_now()
            found.append(sum("insert into _rhei_watermark" in sql for sql in sent))
            assert htap.verify().equal
        with duckdb.connect(str(settings.mirror.path)) as mirror:
            assert mirror.execute("select count(*) from _rhei_watermark").fetchone() == (count,)
    assert found == [1, 1]


@pytest.mark.long
@pytest.mark.parametrize("method", ["logical", "trigger", "polling"])
def test_a_first_sync_looks_at_all_tables_of_postgres_a_few_times_however_many_are_copied(
    method: str, make_postgres: Callable[..., PostgresWorld], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "MANY_TABLES", _FEW)
    world = make_postgres(capture={"method": method}, tables=[])
    looked, found = counting_calls(monkeypatch, identity, "shapes"), []
    for first, end in ((0, _FEW), (_FEW, _FEW + _MANY)):
        names = [f"t{number}" for number in range(first, end)]
        for name in names:
            world.run(
                f"create table {name}(id int primary key, v int,"
                " updated_at timestamptz not null default clock_timestamp())",
                f"insert into {name} values (1, 0)",
            )
        world.tables = [{"name": name} for name in names]
        htap = world.htap
        looked.clear()
        htap.sync_now()
        found.append(len(looked))
        world.assert_equal(*names)
        world.crash()
    few, many = found
    assert many == few


def test_describing_a_table_of_sqlite_does_not_read_the_names_of_all(world: World) -> None:
    source: Any = engine_of(world.htap).source
    asked: list[str] = []
    connection_of(source).set_trace_callback(asked.append)
    for spelling in ("orders", "ORDERS"):
        source._catalogue.forget()
        assert source.describe(spelling).name == "orders"
    listed = [sql.lower() for sql in asked if "pragma_table_list" in sql]
    assert len(listed) == 2
    assert all("pragma_table_list('orders')" in sql for sql in listed)


def test_a_cycle_of_one_change_sends_five_statements(world: World) -> None:
    world.htap.sync_now()
    world.run("update orders set amount = 8.5 where id = 1")
    world.htap.sync_now()  # asks once for the table's highest key
    world.run("update orders set amount = 9.5 where id = 1")
    sent = counting(world.htap)
    assert world.htap.sync_now().updated == 1
    assert len(sent) == 5, sent
    world.run("update orders set amount = 'none' where id = 1")
    assert world.htap.sync_now().dead_letters == 1
    world.crash()
    with engine_of(world.htap).mirror.transaction():
        pass  # it does not ask about dead letters
    world.run("update orders set amount = 1 where id = 1")
    world.htap.sync_now()
    assert world.htap.dead_letters().num_rows == 0


def _sqlite(directory: Path, count: int, *, is_buffered: bool = False) -> rhei.Settings:
    directory.mkdir()
    with sqlite3.connect(directory / "app.db") as source:
        for number in range(count):
            source.execute(f"create table t{number}(id integer primary key)")
            source.execute(f"insert into t{number} values (1)")
    return rhei.Settings(
        source={"path": directory / "app.db"},
        capture={"buffer": {"path": directory / "cdc"} if is_buffered else None},
        mirror={"path": directory / "mirror.duckdb"},
        registry={"path": directory / "registry.json"},
    )


def counting_calls(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, noted: list[str] | None = None
) -> list[str]:
    """Note each call of a function, beside what was noted, and run it."""
    calls: list[str] = [] if noted is None else noted
    run = getattr(module, name)

    def count(*given: Any, **more: Any) -> Any:
        calls.append(name)
        return run(*given, **more)

    monkeypatch.setattr(module, name, count)
    return calls


@pytest.mark.long
@pytest.mark.parametrize("method", ["logical", "trigger"])
def test_opening_reads_what_postgres_says_of_all_tables_as_often_for_few_as_for_many(
    method: str, make_postgres: Callable[..., PostgresWorld], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_postgres(capture={"method": method}, tables=[])
    calls = counting_calls(monkeypatch, identity, "shapes")
    found = []
    for first, end in ((0, _FEW), (_FEW, _MANY)):
        for number in range(first, end):
            world.run(
                f"create table t{number}(id int primary key, v int)",
                f"insert into t{number} values (1, 0)",
            )
        world.tables = [{"name": f"t{number}"} for number in range(first, end)]
        calls.clear()
        htap = world.htap
        found.append(len(calls))
        assert htap.sync_now().events == 0
        world.run(f"update t{end - 1} set v = 1")
        assert world.htap.sync_now().events == 1
        world.assert_equal(*(f"t{number}" for number in range(first, end)))
        world.crash()
    few, many = found
    assert many == few


@pytest.mark.long
@pytest.mark.parametrize("is_buffered", [False, True])
def test_opening_sqlite_reads_its_schema_and_names_as_often_for_few_tables_as_for_many(
    *, is_buffered: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schemas = counting_calls(monkeypatch, SchemaState, "read")
    counting_calls(monkeypatch, log_catalog, "all_logs", schemas)
    names = counting_calls(monkeypatch, naming, "mirror_table")
    found = []
    for count in (_FEW, _MANY):
        schemas.clear()
        names.clear()
        settings = _sqlite(tmp_path / str(count), count, is_buffered=is_buffered)
        with rhei.open(settings) as htap:
            htap.sync_now()
            found.append((len(schemas), len(names) / count))
    few, many = found
    assert many == few


@pytest.mark.long
@pytest.mark.parametrize("method", ["logical", "trigger", "polling"])
def test_opening_again_asks_postgres_as_little_for_many_tables_as_for_few(
    method: str, make_postgres: Callable[..., PostgresWorld], sent_to_postgres: list[object]
) -> None:
    world = make_postgres(capture={"method": method}, tables=[])
    found = []
    for count in (_FEW, _MANY):
        for number in range(count):
            world.run(
                f"create table if not exists t{number}(id int primary key, v int,"
                " updated_at timestamptz not null default clock_timestamp())",
                f"create index if not exists i{number} on t{number}(updated_at)",
                f"insert into t{number} values (1, 0) on conflict do nothing",
            )
        world.tables = [{"name": f"t{number}"} for number in range(count)]
        assert world.htap.sync_now().events == 0
        world.crash()
        sent_to_postgres.clear()
        htap = world.htap
        found.append(Counter(map(str, sent_to_postgres)))
        world.run(f"update t{count - 1} set v = v + 1, updated_at = clock_timestamp()")
        assert htap.sync_now().events == 1
        world.assert_equal(*(f"t{number}" for number in range(count)))
        world.crash()
    few, many = found
    assert many.total() == few.total(), (many - few, few - many)
    # Nothing was committed while it opened, so what the catalogue says was read once.
    assert many[str(table_facts._COLUMNS)] == 1


def test_what_was_read_of_tables_serves_until_a_commit_but_for_more_tables_or_after_a_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known, asked = table_facts.FactsOfState(), list[list[str]]()
    connection: Any = None  # nothing is asked of it
    failing = ["fails once"]

    def reading(_: Any, names: list[str]) -> dict[str, list[str]]:
        asked.append(names)
        return {} if failing and failing.pop() else dict.fromkeys(names, names)

    monkeypatch.setattr(table_facts, "read_ahead", reading)
    assert known.read(connection, ["a"], "now") == {}
    assert known.read(connection, ["a"], "now").keys() == {"a"}
    first = known.read(connection, ["a", "b"], "now")
    assert known.read(connection, ["b"], "now") is first
    assert known.read(connection, ["b", "c"], "now").keys() == {"b", "c"}
    assert known.read(connection, ["b"], "later").keys() == {"b"}
    known.forget()
    known.read(connection, ["b"], "later")
    assert asked == [["a"], ["a"], ["a", "b"], ["b", "c"], ["b"], ["b"]]


@pytest.mark.long
@pytest.mark.parametrize("way", ["logical", "trigger", "polling"])
def test_what_changes_after_tables_were_read_together_is_met(
    way: str, make_postgres: Callable[..., PostgresWorld], monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = [{"name": f"t{number}", "polling": {"deletes": "reconcile"}} for number in range(_FEW)]
    world = make_postgres(capture={"method": way}, tables=tables)
    for number in range(_FEW):
        world.run(
            f"create table t{number}(id int primary key, v int,"
            " updated_at timestamptz not null default clock_timestamp())",
            f"insert into t{number} values (1, 0)",
        )
    stamp = "updated_at timestamptz not null default clock_timestamp()"
    left_out = {"logical": "replica identity"}.get(way, "primary key")
    changes = [
        "alter table t0 add column w int default 7",
        f"drop table t1; create table t1(id int primary key, v text, {stamp})",
        "alter table t2 replica identity nothing"
        if way == "logical"
        else "alter table t2 drop constraint t2_pkey",
    ]
    read = table_facts.read_ahead

    def reading(*given: Any) -> Any:
        facts = read(*given)
        if changes:
            world.run(changes.pop(0))
        return facts

    monkeypatch.setattr(table_facts, "read_ahead", reading)
    while changes:
        world.crash()
        world.htap.sync_now()
    report = world.htap.sync_now()
    assert left_out in str(report.tables["t2"].error)
    world.run(
        "update t0 set w = 8, updated_at = clock_timestamp()",
        "insert into t1 values (2, 'x')",
        "update t2 set v = 1, updated_at = clock_timestamp()",
    )
    assert world.htap.sync_now().events == 2
    world.assert_equal("t0", "t1")


@pytest.mark.parametrize("buffered", [False, True])
@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_a_cycle_looks_closely_only_at_tables_that_changed(
    mode: str, make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch, *, buffered: bool
) -> None:
    looks = counting_calls(monkeypatch, SqliteTriggerSnapshot, "_find_reading")
    snapshots = counting_calls(monkeypatch, SqliteTriggerSnapshot, "__init__")
    found = []
    for count in (_FEW, _MANY):
        tables = [{"name": f"t{number}"} for number in range(count)]
        world = make_world(mode=mode, tables=tables, buffered=buffered)
        for number in range(count):
            world.run(
                f"create table t{number}(id integer primary key, v int)",
                f"insert into t{number} values (1, 0)",
            )
        buffer = counting_calls(monkeypatch, RocksDirectory, "get") if buffered else []
        buffer = counting_calls(monkeypatch, RocksDirectory, "scan", buffer) if buffered else []
        for _ in range(2):
            world.run("update t0 set v = v + 1")
            world.htap.sync_now()
        costs = []
        for change in ((), ("update t0 set v = v + 1",)):
            world.run(*change)
            for calls in (looks, snapshots, buffer):
                calls.clear()
            assert world.htap.sync_now().events == len(change)
            costs.append((len(looks), len(snapshots), len(buffer)))
        found.append(costs)
        world.run(f"update t{count - 1} set v = v + 1")
        assert world.htap.sync_now().tables[f"t{count - 1}"].events == 1
        world.assert_equal("t0", f"t{count - 1}")
    few, many = found
    assert many == few


@pytest.mark.long
def test_a_commit_of_files_writes_anew_what_it_says_of_tables_that_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = counting_calls(monkeypatch, manifest, "_table")
    files = counting_calls(monkeypatch, SegmentStore, "segment_files")
    found = []
    for count in (_FEW, _MANY):
        declared = _sqlite(tmp_path / str(count), count).model_dump(exclude_unset=True)
        path = tmp_path / str(count) / "mirror"
        declared["mirror"] = {"kind": "datafusion", "storage": "parquet", "path": path}
        with rhei.open(rhei.Settings(**declared)) as htap:
            htap.sync_now()
            costs = []
            for row in (2, 3, 4, 5, 6):
                htap.execute(f"insert into t0 values ({row})")
                texts.clear()
                files.clear()
                assert htap.sync_now().events == 1
                costs.append((len(texts), len(files)))
            found.append(costs[-1])
            assert htap.verify().equal
        with rhei.open(rhei.Settings(**declared)) as htap:
            assert htap.verify().equal
    few, many = found
    assert many == few


@pytest.mark.long
def test_a_cycle_of_polled_tables_walks_over_them_a_fixed_number_of_times(
    make_postgres: Callable[..., PostgresWorld], monkeypatch: pytest.MonkeyPatch
) -> None:
    walks = counting_calls(monkeypatch, PostgresPollingSnapshot, "_is_idle")
    world = make_postgres(capture={"method": "polling"}, tables=[{"name": "t0"}])
    found = []
    for count in (_FEW, _MANY):
        for number in range(count):
            world.run(
                f"create table if not exists t{number}(id int primary key, v int,"
                " updated_at timestamptz not null default clock_timestamp())"
            )
            world.htap.register_table(f"t{number}")
        world.run("insert into t0 values (1, 0) on conflict do nothing")

        def change() -> None:
            world.app.execute("update t0 set v = v + 1, updated_at = clock_timestamp()")

        _settle(world, change)
        found.append((least(world.htap, walks, change, 1) - 1) / count)
    few, many = found
    assert many <= few + 1


def test_a_schema_change_between_two_installs_of_one_look_is_met(tmp_path: Path) -> None:
    _sqlite(tmp_path / "one", _FEW)
    path = tmp_path / "one" / "app.db"
    database = SqliteDatabase(path)
    source = SqliteTriggerSource(database, "m")
    tables = [Table(source.describe(f"t{number}")) for number in range(_FEW)]
    for table in tables:
        source.install(table, 0)
    source.schema_version()
    before = schema_watch.marks(connection_of(source))
    with closing(sqlite3.connect(path)) as app:
        app.execute("create table t9(id integer primary key, v int)")
        source.install(Table(source.describe("t9")), 0)
        assert schema_watch.marks(connection_of(source)).items() >= before.items()
        # Its rows are others by now, and nothing of its definition shows it.
        app.execute("alter table t0 add column v default 1")
        app.execute("alter table t0 drop column v")
        app.execute("create table t8(id integer primary key)")
    source.install(Table(source.describe("t8")), 0)
    with source.snapshot():
        marks = schema_watch.marks(connection_of(source))
    assert marks["t0"] > before["t0"]
    source.close()
    database.close()
