"""Our sources, the stub and the example keep what every source of changes promises."""

import json
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pytest

from examples.json_lines import JsonLinesSource
from rhei_pipeline.buffer.events.source import EventLogSource
from rhei_pipeline.buffer.log import ChangeLog
from rhei_pipeline.buffer.source import BufferedSource
from rhei_pipeline.model.polling import Clock, DeletePolicy, PollOptions
from rhei_pipeline.model.schema import Column, TableOptions, TableSchema
from rhei_pipeline.sources.postgres.database import PostgresDatabase
from rhei_pipeline.sources.postgres.logical.source import LogicalSource
from rhei_pipeline.sources.postgres.polling.source import PostgresPollingSource
from rhei_pipeline.sources.postgres.triggers.source import PostgresTriggerSource
from rhei_pipeline.sources.sqlite.database import SqliteDatabase
from rhei_pipeline.sources.sqlite.polling.source import SqlitePollingSource
from rhei_pipeline.sources.sqlite.triggers.source import SqliteTriggerSource
from rhei_pipeline.testing import StubSource
from rhei_pipeline.testing.source_contract import Rows, SourceBench, SourceContract

CREATE = "create table t(k integer primary key, v text)"
#: The application of a source that is polled stamps its rows itself.
STAMPED = "create table t(k integer primary key, v text, at {kind})"
_SQLITE_NOW = "strftime('%Y-%m-%d %H:%M:%f', 'now')"
SQLITE_STAMPS = tuple(
    f"create trigger {verb}_stamp after {event} on t begin"
    f" update t set at = {_SQLITE_NOW} where k = new.k; end"
    for verb, event in (("insert", "insert"), ("update", "update of k, v"))
)
POSTGRES_STAMPS = (
    "create function stamp() returns trigger language plpgsql as"
    " 'begin new.at := now(); return new; end'",
    "create trigger stamp before insert or update on t for each row execute function stamp()",
)
POLLS = {"t": PollOptions("at", DeletePolicy.RECONCILE, clock=Clock.DATABASE, reconcile_seconds=0)}


class SqlApplication:
    """An application of a database that speaks SQL."""

    def __init__(self, run: Callable[..., Any]) -> None:
        self._run = run

    def insert(self, rows: Rows) -> None:
        values = ", ".join(["(?, ?)"] * len(rows))
        params = tuple(part for row in rows.items() for part in row)
        self._run(f"insert into t(k, v) values {values}", params)

    def update(self, key: int, value: str | None) -> None:
        self._run("update t set v = ? where k = ?", (value, key))

    def delete(self, key: int) -> None:
        self._run("delete from t where k = ?", (key,))

    def move(self, key: int, to: int) -> None:
        self._run("update t set k = ? where k = ?", (to, key))

    @contextmanager
    def unfinished(self, rows: Rows) -> Iterator[None]:
        self._run("begin")
        self.insert(rows)
        yield
        self._run("rollback")

    def add_column(self) -> None:
        self._run("alter table t add column w text")


class StubApplication:
    """An application of the stub."""

    def __init__(self, source: StubSource) -> None:
        self._source = source
        source.create(TableSchema("t", (Column("k", pa.int64()), Column("v", pa.string())), ("k",)))

    def insert(self, rows: Rows) -> None:
        with self._source.transaction() as writes:
            for key, value in rows.items():
                writes.put("t", k=key, v=value)

    def update(self, key: int, value: str | None) -> None:
        self._source.put("t", k=key, v=value)

    def delete(self, key: int) -> None:
        self._source.delete("t", key)

    def move(self, key: int, to: int) -> None:
        with self._source.transaction() as writes:
            writes.delete("t", key)
            writes.put("t", k=to, v=self._source.rows("t")[key,]["v"])

    @contextmanager
    def unfinished(self, rows: Rows) -> Iterator[None]:
        with pytest.raises(RuntimeError), self._source.transaction() as writes:
            for key, value in rows.items():
                writes.put("t", k=key, v=value)
            yield
            raise RuntimeError

    def add_column(self) -> None:
        known = self._source.describe("t")
        columns = (*known.columns, Column("w", pa.string()))
        self._source.create(TableSchema("t", columns, ("k",)))


Made = tuple[SourceBench, Callable[[], None]]


def trigger_bench(directory: Path) -> Made:
    path = directory / "app.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(CREATE)
    database = SqliteDatabase(path)
    source = SqliteTriggerSource(database, "mirror")

    def close() -> None:
        source.close()
        database.close()
        connection.close()

    return SourceBench(source, SqlApplication(connection.execute)), close


def _on_server(connection: psycopg.Connection) -> SqlApplication:
    def run(sql: str, params: tuple[object, ...] = ()) -> None:
        connection.execute(sql.replace("?", "%s").encode(), params or None)

    return SqlApplication(run)


def logical_bench(dsn: str, *, streaming: bool = False) -> Made:
    connection = psycopg.connect(dsn, autocommit=True)
    connection.execute(CREATE)
    database = PostgresDatabase(dsn)
    source = LogicalSource(database, uuid.uuid4().hex, streaming=streaming)

    def close() -> None:
        source.close()
        database.close()
        connection.close()

    return SourceBench(source, _on_server(connection)), close


def postgres_trigger_bench(dsn: str) -> Made:
    connection = psycopg.connect(dsn, autocommit=True)
    connection.execute(CREATE)
    database = PostgresDatabase(dsn, reread=True)
    source = PostgresTriggerSource(database, "mirror")

    def close() -> None:
        source.close()
        database.close()
        connection.close()

    return SourceBench(source, _on_server(connection)), close


def polling_bench(directory: Path) -> Made:
    path = directory / "app.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("pragma journal_mode = wal")
    for statement in (STAMPED.format(kind="text"), *SQLITE_STAMPS):
        connection.execute(statement)
    database = SqliteDatabase(path, read_only=True)
    source = SqlitePollingSource(database, POLLS)

    def run(sql: str, params: tuple[object, ...] = ()) -> None:
        now = connection.execute(f"select {_SQLITE_NOW}").fetchone()
        while connection.execute(f"select {_SQLITE_NOW}").fetchone() == now:
            pass  # until the clock's next tick: what was there before has another stamp
        connection.execute(sql, params)

    def close() -> None:
        source.close()
        database.close()
        connection.close()

    return SourceBench(source, SqlApplication(run), logs=False, forgets=False), close


def postgres_polling_bench(dsn: str) -> Made:
    connection = psycopg.connect(dsn, autocommit=True)
    for statement in (STAMPED.format(kind="timestamptz"), *POSTGRES_STAMPS):
        connection.execute(statement.encode())
    database = PostgresDatabase(dsn, read_only=True)
    source = PostgresPollingSource(database, POLLS)

    def close() -> None:
        source.close()
        database.close()
        connection.close()

    return SourceBench(source, _on_server(connection), logs=False, forgets=False), close


def bridge_bench(inner: Made, directory: Path) -> Made:
    bench, close_inner = inner
    log = ChangeLog(directory / "cdc")

    def close() -> None:
        log.close()
        close_inner()

    return SourceBench(BufferedSource(bench.source, log), bench.application), close


KINDS = [
    "trigger",
    "logical",
    "logical-stream",
    "polling",
    "postgres-polling",
    "postgres-trigger",
    "trigger-bridge",
    "logical-bridge",
    "postgres-trigger-bridge",
    "installed-logical",
    "installed-postgres-polling",
    "installed-postgres-trigger",
]


class TestSources(SourceContract):
    @pytest.fixture(params=KINDS)
    def bench(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SourceBench]:
        kind = request.param.removesuffix("-bridge").removeprefix("installed-")
        server = "installed_dsn" if request.param.startswith("installed") else "dsn"
        if kind in {"trigger", "polling"}:
            made = {"trigger": trigger_bench, "polling": polling_bench}[kind](tmp_path)
        else:
            makers: dict[str, Callable[[str], Made]] = {
                "logical": logical_bench,
                "logical-stream": partial(logical_bench, streaming=True),
                "postgres-polling": postgres_polling_bench,
                "postgres-trigger": postgres_trigger_bench,
            }
            made = makers[kind](request.getfixturevalue(server))
        if request.param.endswith("bridge"):
            made = bridge_bench(made, tmp_path)
        bench, close = made
        yield bench
        close()


class TestStubSource(SourceContract):
    @pytest.fixture
    def bench(self) -> SourceBench:
        source = StubSource()
        return SourceBench(source, StubApplication(source))


class LogApplication:
    """An application that appends its events to a log."""

    def __init__(self, log: ChangeLog, source: EventLogSource) -> None:
        self._log, self._source = log, source
        self._rows: dict[int, str | None] = {}

    def _append(self, *events: tuple[int, str | None, bool]) -> None:
        keys, values, live = zip(*events, strict=True)
        columns = {"k": pa.array(keys), "v": pa.array(values, pa.string()), "_rhei_live": live}
        self._log.append(pa.table(columns), stream="t")
        self._rows |= dict(zip(keys, values, strict=True))

    def insert(self, rows: Rows) -> None:
        self._append(*((key, value, True) for key, value in rows.items()))

    def update(self, key: int, value: str | None) -> None:
        self._append((key, value, True))

    def delete(self, key: int) -> None:
        self._append((key, None, False))

    def move(self, key: int, to: int) -> None:
        self._append((key, None, False), (to, self._rows[key], True))

    @contextmanager
    def unfinished(self, rows: Rows) -> Iterator[None]:
        del rows  # what is not appended yet is not there
        yield

    def add_column(self) -> None:
        columns = {"k": "int64", "v": "string", "w": "string"}
        self._source.redeclare("t", TableOptions(None, ("k",), columns), PollOptions())


class TestEventLogSource(SourceContract):
    @pytest.fixture
    def bench(self, tmp_path: Path) -> Iterator[SourceBench]:
        options = TableOptions(None, ("k",), {"k": "int64", "v": "string"})
        with ChangeLog(tmp_path / "log") as log:
            source = EventLogSource(log, "mirror", {"t": options})
            yield SourceBench(source, LogApplication(log, source), forgets=False)


class JsonLinesApplication:
    """An application that writes the example's files."""

    def __init__(self, source: JsonLinesSource, directory: Path) -> None:
        self._source = source
        self._directory = directory
        self._describe({"k": "int64", "v": "string"})

    def _describe(self, columns: dict[str, str]) -> None:
        form = json.dumps({"key": ["k"], "columns": columns})
        (self._directory / "t.schema.json").write_text(form)

    def insert(self, rows: Rows) -> None:
        self._source.append("t", *({"put": {"k": k, "v": v}} for k, v in rows.items()))

    def update(self, key: int, value: str | None) -> None:
        self.insert({key: value})

    def delete(self, key: int) -> None:
        self._source.append("t", {"gone": {"k": key}})

    def move(self, key: int, to: int) -> None:
        rows = [line["put"] for line in self._source.read("t") if "put" in line]
        value = next(row["v"] for row in reversed(rows) if row["k"] == key)
        self._source.append("t", {"gone": {"k": key}}, {"put": {"k": to, "v": value}})

    @contextmanager
    def unfinished(self, rows: Rows) -> Iterator[None]:
        file = self._directory / "t.jsonl"
        before = file.read_text()
        self.insert(rows)
        file.write_text(file.read_text()[:-1])  # its line has not ended
        yield
        file.write_text(before)

    def add_column(self) -> None:
        self._describe({"k": "int64", "v": "string", "w": "string"})


class TestJsonLines(SourceContract):
    @pytest.fixture
    def bench(self, tmp_path: Path) -> SourceBench:
        source = JsonLinesSource(tmp_path)
        return SourceBench(source, JsonLinesApplication(source, tmp_path), forgets=False)
