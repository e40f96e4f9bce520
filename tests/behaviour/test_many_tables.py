"""What a cycle costs follows what changed: as many statements for few tables as for many."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pytest

import rhei_pipeline as rhei
from rhei_pipeline.sources.postgres.triggers import snapshot as trigger_snapshot
from rhei_pipeline.sources.postgres.triggers import source as triggers
from tests.fix_postgres import PostgresWorld
from tests.fix_world import World

_FEW, _MANY = 3, 15
#: A cycle is counted so often, and the least is taken: the server itself writes to its log, too.
_ROUNDS = 3


class Counted:
    """A connection of DuckDB that counts what is sent through it and its cursors."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, sent: list[str]) -> None:
        self._connection, self._sent = connection, sent

    def execute(self, sql: str, *parameters: object) -> object:
        """Count a statement and run it."""
        self._sent.append(sql)
        return self._connection.execute(sql, *parameters)

    def cursor(self) -> "Counted":
        """Return another one that counts in the same place."""
        return Counted(self._connection.cursor(), self._sent)

    def __getattr__(self, name: str) -> object:
        return getattr(self._connection, name)


@pytest.fixture
def sent_to_postgres(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Note every statement that the driver sends, and run it."""
    sent: list[object] = []

    def noting(name: str) -> None:
        run = getattr(psycopg.Cursor, name)

        def note(cursor: object, query: object, *more: Any, **options: Any) -> Any:
            sent.append(query)
            return run(cursor, query, *more, **options)

        monkeypatch.setattr(psycopg.Cursor, name, note)

    noting("execute")
    noting("copy")
    return sent


def counting(htap: rhei.HTAP) -> list[str]:
    """Count what is sent to the mirror from now on."""
    sent: list[str] = []
    mirror: Any = htap._engine.pipeline._mirror
    mirror._connection = Counted(mirror._connection, sent)
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
        # A poll reads each table once something was committed, whatever it was.
        source = 0 if method == "polling" else least(world.htap, sent_to_postgres, change, 1)
        mirror = least(world.htap, to_mirror, change, 1)
        found.append((idle, source, mirror))
    few, many = found
    assert many == few
    world.assert_equal("t0", f"t{_MANY - 1}")


def test_how_logs_of_postgres_are_read_is_found_out_anew_for_changed_tables_only(
    make_postgres: Callable[..., PostgresWorld], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_postgres(capture={"method": "trigger"}, mode="temporal", tables=[{"name": "t0"}])
    calls: list[str] = []
    for name in ("parts_of", "_quiet_sql"):
        module: Any = triggers if hasattr(triggers, name) else trigger_snapshot
        run = getattr(module, name)

        def count(*given: Any, name: str = name, run: Callable[..., Any] = run) -> Any:
            calls.append(name)
            return run(*given)

        monkeypatch.setattr(module, name, count)

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


def _settle(world: PostgresWorld, change: Callable[[], None]) -> None:
    """Leave behind what is done once: what is prepared, and what the copies wrote."""
    for _ in range(3):
        change()
        world.htap.sync_now()
    world.htap.sync_now()


@pytest.mark.parametrize(
    ("method", "mode"), [("trigger", "temporal"), ("trigger", "destructive"), ("polling", None)]
)
def test_a_cycle_sends_sqlite_the_same_for_few_tables_and_many(
    method: str, mode: str | None, make_world: Callable[..., World]
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
        source: Any = world.htap._engine.source
        sent: list[str] = []
        source._connection.set_trace_callback(sent.append)

        def change(app: Any = world.app) -> None:
            app.execute("update t0 set v = v + 1, updated_at = unixepoch('subsec') * 1000")

        for _ in range(4):
            change()
            world.htap.sync_now()
        world.htap.sync_now()
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


def _sqlite(directory: Path, count: int) -> rhei.Settings:
    directory.mkdir()
    with sqlite3.connect(directory / "app.db") as source:
        for number in range(count):
            source.execute(f"create table t{number}(id integer primary key)")
            source.execute(f"insert into t{number} values (1)")
    return rhei.Settings(
        source={"path": directory / "app.db"},
        mirror={"path": directory / "mirror.duckdb"},
        registry={"path": directory / "registry.json"},
    )
