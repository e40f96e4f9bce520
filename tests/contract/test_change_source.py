"""What every source of changes promises, however it learns of them."""

import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pytest

from rhei_pipeline.buffer.log import ChangeLog
from rhei_pipeline.buffer.source import BufferedSource
from rhei_pipeline.errors import SchemaError
from rhei_pipeline.model.changes import LIVE, SEQUENCE, ChangeBatch, Position
from rhei_pipeline.model.polling import Clock, DeletePolicy, PollOptions
from rhei_pipeline.model.schema import Mode, Table
from rhei_pipeline.protocols import ChangeSource, Rescan, SourceSnapshot
from rhei_pipeline.sources.postgres.database import PostgresDatabase
from rhei_pipeline.sources.postgres.logical.source import LogicalSource
from rhei_pipeline.sources.postgres.polling.source import PostgresPollingSource
from rhei_pipeline.sources.postgres.triggers.source import PostgresTriggerSource
from rhei_pipeline.sources.sqlite.database import SqliteDatabase
from rhei_pipeline.sources.sqlite.polling.source import SqlitePollingSource
from rhei_pipeline.sources.sqlite.triggers.source import SqliteTriggerSource

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


class Bench:
    """A source, and its application's connection.

    A source that `logs` tells of every version and of deletes, and may forget what it told. One
    that is polled tells of what rows have become, asks for an audit to find deletes, and forgets
    nothing.
    """

    def __init__(
        self,
        source: ChangeSource,
        run: Callable[..., Any],
        close: Callable[[], None],
        *,
        logs: bool = True,
    ) -> None:
        self.source = source
        self.run = run
        self.close = close
        self.logs = logs

    def table(self, mode: Mode = Mode.DESTRUCTIVE) -> Table:
        made = Table(self.source.describe("t"), mode)
        self.source.install(made, 0)
        return made

    def head(self, table: Table) -> Position:
        with self.source.snapshot() as snapshot:
            return snapshot.head(table)


def trigger_bench(directory: Path) -> Bench:
    path = directory / "app.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(CREATE)
    database = SqliteDatabase(path)
    source = SqliteTriggerSource(database, "mirror")

    def close() -> None:
        source.close()
        database.close()
        connection.close()

    return Bench(source, connection.execute, close)


def logical_bench(dsn: str, *, streaming: bool = False) -> Bench:
    connection = psycopg.connect(dsn, autocommit=True)
    connection.execute(CREATE)
    database = PostgresDatabase(dsn)
    source = LogicalSource(database, uuid.uuid4().hex, streaming=streaming)

    def run(sql: str, params: tuple[object, ...] = ()) -> None:
        connection.execute(sql.replace("?", "%s").encode(), params or None)

    def close() -> None:
        source.close()
        database.close()
        connection.close()

    return Bench(source, run, close)


def postgres_trigger_bench(dsn: str) -> Bench:
    connection = psycopg.connect(dsn, autocommit=True)
    connection.execute(CREATE)
    database = PostgresDatabase(dsn, reread=True)
    source = PostgresTriggerSource(database, "mirror")

    def run(sql: str, params: tuple[object, ...] = ()) -> None:
        connection.execute(sql.replace("?", "%s").encode(), params or None)

    def close() -> None:
        source.close()
        database.close()
        connection.close()

    return Bench(source, run, close)


def polling_bench(directory: Path) -> Bench:
    path = directory / "app.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("pragma journal_mode = wal")
    for statement in (STAMPED.format(kind="text"), *SQLITE_STAMPS):
        connection.execute(statement)
    database = SqliteDatabase(path, read_only=True)
    source = SqlitePollingSource(database, POLLS)

    def run(sql: str, params: tuple[object, ...] = ()) -> None:
        time.sleep(0.002)  # the clock's tick
        connection.execute(sql, params)

    def close() -> None:
        source.close()
        database.close()
        connection.close()

    return Bench(source, run, close, logs=False)


def postgres_polling_bench(dsn: str) -> Bench:
    connection = psycopg.connect(dsn, autocommit=True)
    for statement in (STAMPED.format(kind="timestamptz"), *POSTGRES_STAMPS):
        connection.execute(statement.encode())
    database = PostgresDatabase(dsn, read_only=True)
    source = PostgresPollingSource(database, POLLS)

    def run(sql: str, params: tuple[object, ...] = ()) -> None:
        connection.execute(sql.replace("?", "%s").encode(), params or None)

    def close() -> None:
        source.close()
        database.close()
        connection.close()

    return Bench(source, run, close, logs=False)


def bridge_bench(inner: Bench, directory: Path) -> Bench:
    log = ChangeLog(directory / "cdc")

    def close() -> None:
        log.close()
        inner.close()

    return Bench(BufferedSource(inner.source, log), inner.run, close)


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


@pytest.fixture(params=KINDS)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    kind = request.param.removesuffix("-bridge").removeprefix("installed-")
    server = "installed_dsn" if request.param.startswith("installed") else "dsn"
    if kind in {"trigger", "polling"}:
        made = {"trigger": trigger_bench, "polling": polling_bench}[kind](tmp_path)
    else:
        makers: dict[str, Callable[[str], Bench]] = {
            "logical": logical_bench,
            "logical-stream": partial(logical_bench, streaming=True),
            "postgres-polling": postgres_polling_bench,
            "postgres-trigger": postgres_trigger_bench,
        }
        made = makers[kind](request.getfixturevalue(server))
    if request.param.endswith("bridge"):
        made = bridge_bench(made, tmp_path)
    yield made
    made.close()


def batches(
    snapshot: SourceSnapshot, table: Table, after: Position, limit: int = 100
) -> list[ChangeBatch]:
    return list(snapshot.changes(table, after, limit))


def net(found: list[ChangeBatch]) -> dict[int, str | None]:
    """Return what became of each key; net changes come once a key."""
    events = pa.concat_tables([batch.events for batch in found]) if found else None
    rows = events.to_pylist() if events is not None else []
    if all(batch.net for batch in found):
        assert len({row["k"] for row in rows}) == len(rows)
    return {row["k"]: row["v"] if row[LIVE] else "gone" for row in rows}


def test_net_changes_are_what_keys_have_become(bench: Bench) -> None:
    bench.run("insert into t(k, v) values (1, 'a'), (2, 'b'), (3, 'c')")
    table = bench.table()
    after = bench.head(table)
    bench.run("update t set v = 'x' where k = 1")
    bench.run("update t set v = null where k = 1")
    bench.run("delete from t where k = 2")
    bench.run("insert into t(k, v) values (4, 'd'), (5, 'e')")
    bench.run("delete from t where k = 5")
    bench.run("update t set k = 9 where k = 3")
    with bench.source.snapshot() as snapshot:
        found = net(batches(snapshot, table, after))
        gone = {2: "gone", 5: "gone", 3: "gone"} if bench.logs else {}
        assert found == {1: None, 4: "d", 9: "c", **gone}
        assert snapshot.rescan(table, after) is (Rescan.NONE if bench.logs else Rescan.ALL)
        assert batches(snapshot, table, snapshot.head(table)) == []


def test_batches_bound_rows_and_count_every_event_once(bench: Bench) -> None:
    table = bench.table()
    after = bench.head(table)
    for key in range(25):
        bench.run("insert into t(k, v) values (?, 'v')", (key,))
    with bench.source.snapshot() as snapshot:
        found = batches(snapshot, table, after, limit=10)
        assert max(batch.events.num_rows for batch in found) <= 10
        assert sum(batch.count for batch in found) == snapshot.pending(table, after) == 25
        assert len(net(found)) == 25


def test_a_temporal_table_gets_every_version_in_order(bench: Bench) -> None:
    table = bench.table(Mode.TEMPORAL)
    after = bench.head(table)
    bench.run("insert into t(k, v) values (1, 'a')")
    bench.run("update t set v = 'b'")
    bench.run("delete from t")
    bench.run("insert into t(k, v) values (1, 'c')")
    with bench.source.snapshot() as snapshot:
        events = pa.concat_tables([batch.events for batch in batches(snapshot, table, after, 2)])
    versions = ["a", "b", None, "c"] if bench.logs else ["c"]
    assert events["v"].to_pylist() == versions
    assert events[LIVE].to_pylist() == [version is not None for version in versions]
    assert events[SEQUENCE].to_pylist() == sorted(set(events[SEQUENCE].to_pylist()))


@pytest.mark.parametrize("mode", list(Mode))
def test_what_is_rolled_back_never_shows(bench: Bench, mode: Mode) -> None:
    table = bench.table(mode)
    after = bench.head(table)
    bench.run("begin")
    bench.run("insert into t(k, v) values (1, 'a')")
    with bench.source.snapshot() as snapshot:
        assert snapshot.pending(table, after) == 0
    bench.run("rollback")
    with bench.source.snapshot() as snapshot:
        assert batches(snapshot, table, after) == []


@pytest.mark.parametrize("mode", list(Mode))
def test_a_snapshot_is_one_state(bench: Bench, mode: Mode) -> None:
    table = bench.table(mode)
    after = bench.head(table)
    bench.run("insert into t(k, v) values (1, 'a')")
    with bench.source.snapshot(rows=True) as snapshot:
        head = snapshot.head(table)
        bench.run("insert into t(k, v) values (2, 'b')")
        bench.run("update t set v = 'later' where k = 1")
        assert snapshot.head(table) == head
        assert snapshot.count(table) == 1
        assert net(batches(snapshot, table, after)) == {1: "a"}
        rows = snapshot.rows(table, None, 10)
        assert rows is not None
        assert rows.rows.select(["k", "v"]).to_pylist() == [{"k": 1, "v": "a"}]


def test_rows_come_whole_and_resume_in_another_snapshot(bench: Bench) -> None:
    for key in range(7):
        bench.run("insert into t(k, v) values (?, 'v')", (key,))
    table = bench.table()
    resume, seen = None, []
    while True:
        with bench.source.snapshot(rows=True) as snapshot:
            found = snapshot.rows(table, resume, 3)
        if found is None:
            break
        seen += found.rows["k"].to_pylist()
        resume = found.resume
    assert seen == list(range(7))


@pytest.mark.parametrize("mode", list(Mode))
def test_a_position_is_proved_until_it_is_acknowledged_past(bench: Bench, mode: Mode) -> None:
    table = bench.table(mode)
    positions = [bench.head(table)]
    for key in range(3):
        bench.run("insert into t(k, v) values (?, 'v')", (key,))
        positions.append(bench.head(table))
    with bench.source.snapshot() as snapshot:
        assert all(snapshot.proves(table, place) for place in positions)
    for _ in range(2):
        bench.source.acknowledge({"t": positions[2]}, prune=True)
        with bench.source.snapshot() as snapshot:
            proved = [snapshot.proves(table, place) for place in positions]
            forgotten = bench.logs
            assert proved == [not forgotten, not forgotten, True, True]
            assert snapshot.pending(table, positions[2]) == 1


def test_installing_again_keeps_what_is_pending(bench: Bench) -> None:
    table = bench.table()
    after = bench.head(table)
    bench.run("insert into t(k, v) values (1, 'a')")
    assert bench.source.is_installed(table)
    bench.source.install(table, after.order)
    with bench.source.snapshot() as snapshot:
        assert snapshot.proves(table, after)
        assert net(batches(snapshot, table, after)) == {1: "a"}


def test_positions_begin_behind_the_least(bench: Bench) -> None:
    table = Table(bench.source.describe("t"))
    bench.source.install(table, 1000)
    assert bench.head(table).order > 1000


@pytest.mark.parametrize("mode", list(Mode))
def test_touched_keys_are_read_again(bench: Bench, mode: Mode) -> None:
    bench.run("insert into t(k, v) values (1, 'a'), (2, 'b')")
    table = bench.table(mode)
    after = bench.head(table)
    bench.source.touch(table, [(2,)])
    with bench.source.snapshot() as snapshot:
        assert net(batches(snapshot, table, after)) == {2: "b"}


def test_a_change_of_the_schema_shows_in_the_version(bench: Bench) -> None:
    table = bench.table()
    before = bench.source.schema_version()
    with bench.source.snapshot() as snapshot:
        assert snapshot.schema_version == before
    bench.run("alter table t add column w text")
    assert bench.source.schema_version() != before
    assert bench.source.describe("t").names == (*table.schema.names, "w")
    assert table.schema != bench.source.describe("t")


def test_a_table_that_is_not_there_is_named(bench: Bench) -> None:
    with pytest.raises(SchemaError, match="'nowhere'"):
        bench.source.describe("nowhere")


def test_doubts_are_named_or_there_are_none(bench: Bench) -> None:
    table = bench.table()
    bench.run("insert into t(k, v) values (1, 'a')")
    with bench.source.snapshot() as snapshot:
        assert snapshot.doubt(table) is None


def test_age_of_the_oldest_pending_change(bench: Bench) -> None:
    table = bench.table()
    after = bench.head(table)
    with bench.source.snapshot() as snapshot:
        assert snapshot.oldest_pending(table, after) is None
    bench.run("insert into t(k, v) values (1, 'a')")
    with bench.source.snapshot() as snapshot:
        oldest = snapshot.oldest_pending(table, after)
        assert oldest is not None
        assert 0 <= (snapshot.clock - oldest).total_seconds() < 60
