"""Polling by timestamps: nothing is written to the source, nothing is lost where proved."""

import json
import logging
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from rhei_pipeline import HTAP, Settings
from rhei_pipeline.errors import QueryError, SettingsError, SourceError
from rhei_pipeline.mirrors.duckdb.transaction import DuckDBTransaction
from rhei_pipeline.protocols import Step
from rhei_pipeline.sources.sqlite.database import SqliteDatabase
from rhei_pipeline.sources.sqlite.polling.source import SqlitePollingSource
from rhei_pipeline.wiring.engine import unseen_events
from tests.support.fix_world import World
from tests.support.left_out import assert_left_out
from tests.support.model import instant_between, source_rows
from tests.support.other_process import digest
from tests.support.parts import connection_of, engine_of
from tests.support.refusals import refused

pytestmark = pytest.mark.turns

NOW = "strftime('%Y-%m-%d %H:%M:%f', 'now')"
HOUR = 3600.0

Make = Callable[..., World]


UNBUFFERED_STEPS = sorted(
    step
    for step in Step
    if step not in {Step.BUFFERING, Step.BRIDGED, Step.BRIDGE_ACKNOWLEDGED} and "range" not in step
)


@pytest.fixture
def make(make_world: Make) -> Make:
    """Make a world whose table `t(id, v, updated_at, deleted_at)` is polled."""

    def made(kind: str = "text", *, mode: str = "destructive", **polling: Any) -> World:
        table = {"name": "t", "polling": {"clock": "database", **polling}}
        world = make_world(method="polling", mode=mode, tables=[table], batch_rows=3)
        world.run(
            f"create table t(id integer primary key, v text, updated_at {kind}, deleted_at text)",
            "create index t_updated on t(updated_at, id)",
        )
        return world

    return made


def put(world: World, key: int, value: str, stamp: str = NOW) -> None:
    world.run(f"insert or replace into t values ({key}, '{value}', {stamp}, null)")


def mirrored(world: World) -> dict[int, str]:
    found = world.htap.query("select id, v from t", hint="olap").to_pylist()
    return {row["id"]: row["v"] for row in found}


def polling(world: World) -> SqlitePollingSource:
    source = engine_of(world.htap).source
    assert isinstance(source, SqlitePollingSource)
    return source


def statements_of(world: World) -> list[str]:
    """Record what the source's own connection runs from now on."""
    seen: list[str] = []
    connection_of(polling(world)).set_trace_callback(seen.append)
    return seen


class Naive:
    """A reader as it is often written: positive control for what ours must not lose."""

    def __init__(self, world: World, condition: str) -> None:
        self._connection = sqlite3.connect(world.path)
        self._condition = condition
        self._at: tuple[Any, int] = ("", 0)
        self.rows: dict[int, str] = {}

    def poll(self) -> None:
        for key, value, stamp in self._connection.execute(
            f"select id, v, updated_at from t where {self._condition} order by updated_at, id",
            {"at": self._at[0], "key": self._at[1]},
        ):
            self.rows[key] = value
            self._at = (stamp, key)

    def close(self) -> None:
        self._connection.close()


GREATER = "updated_at > :at"
KEYSET = "(updated_at, id) > (:at, :key)"


@pytest.fixture(params=[GREATER, KEYSET], ids=["greater", "keyset"])
def naive(request: pytest.FixtureRequest) -> Iterator[Callable[[World], Naive]]:
    made: list[Naive] = []

    def make_naive(world: World) -> Naive:
        made.append(Naive(world, request.param))
        return made[-1]

    yield make_naive
    for reader in made:
        reader.close()


def test_an_update_within_the_tick_after_the_poll_is_seen(
    make: Make, naive: Callable[[World], Naive]
) -> None:
    world = make()
    reader = naive(world)
    tick = "'2026-01-01 10:00:00'"
    put(world, 1, "old", tick)
    put(world, 2, "old", tick)
    world.htap.sync_now()
    reader.poll()
    put(world, 1, "new", tick)
    report = world.htap.sync_now()
    reader.poll()
    assert mirrored(world) == {1: "new", 2: "old"}
    assert report.updated == 1
    assert reader.rows == {1: "old", 2: "old"}


def test_an_insert_of_a_lower_key_within_the_tick_is_seen(
    make: Make, naive: Callable[[World], Naive]
) -> None:
    world = make()
    reader = naive(world)
    put(world, 5, "a", "'2026-01-01 10:00:00'")
    world.htap.sync_now()
    reader.poll()
    put(world, 1, "b", "'2026-01-01 10:00:00'")
    world.htap.sync_now()
    reader.poll()
    assert mirrored(world) == {5: "a", 1: "b"}
    assert reader.rows == {5: "a"}


def test_a_long_transaction_that_commits_an_old_tick_is_seen(
    make: Make, naive: Callable[[World], Naive]
) -> None:
    """Its stamps are of a tick that had ended long before it committed."""
    world = make()
    reader = naive(world)
    tick = "'2026-01-01 10:00:00'"
    put(world, 5, "a", tick)
    world.htap.sync_now()
    world.run("begin immediate")
    put(world, 1, "late", tick)
    put(world, 5, "late", tick)
    for _ in range(3):
        world.htap.sync_now()
        reader.poll()
    world.run("commit")
    world.htap.sync_now()
    reader.poll()
    assert mirrored(world) == {1: "late", 5: "late"}
    assert reader.rows == {5: "a"}


#: Each for some ticks of its clock.
@pytest.mark.parametrize(("stamp", "seconds"), [("current_timestamp", 1.2), (NOW, 0.3)])
def test_nothing_is_lost_beside_a_busy_writer(make: Make, stamp: str, seconds: float) -> None:
    world = make()
    world.htap.sync_now()
    written: dict[int, str] = {}
    writer = threading.Thread(target=_write_for, args=(world.path, stamp, written, seconds))
    writer.start()
    while writer.is_alive():
        world.htap.sync_now()
    writer.join()
    world.htap.sync_now()
    assert mirrored(world) == written


def _write_for(path: Path, stamp: str, written: dict[int, str], seconds: float) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    until, turn = time.monotonic() + seconds, 0
    while time.monotonic() < until or turn < 200:
        turn += 1
        key = (turn * 37) % 101
        connection.execute(
            f"insert or replace into t values (?, ?, {stamp}, null)", (key, str(turn))
        )
        written[key] = str(turn)
    connection.close()


KINDS = {
    "seconds": ("integer", "unixepoch() + {n} / 1000"),
    "milliseconds": ("integer", "cast((julianday('now')-2440587.5)*86400000 as integer) + {n}"),
    "microseconds": (
        "integer",
        "cast((julianday('now')-2440587.5)*86400000 as integer) * 1000 + {n}",
    ),
    "unix real": ("real", "(julianday('now')-2440587.5)*86400.0 + {n} / 1000.0"),
    "julian real": ("real", "julianday('now') + {n} / 86400000.0"),
    "iso text": ("text", "strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '{n} seconds')"),
    "current_timestamp": ("text", "datetime('now', '{n} seconds')"),
    "timestamp": ("timestamp", "strftime('%Y-%m-%d %H:%M:%f', 'now', '{n} seconds')"),
    "timestamptz": ("timestamptz", "strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '{n} seconds')"),
    "text ns": ("text", "strftime('%Y-%m-%d %H:%M:%f', 'now', '{n} seconds') || '000000'"),
}


@pytest.mark.parametrize("size", [4, 2_000, 2**21])
def test_a_row_that_changes_within_the_newest_timestamp_is_seen(
    make_world: Make, size: int
) -> None:
    """Above a megabyte, rows are compared one by one, and a larger one value by value."""
    table = {"name": "t", "polling": {"updated_at": "updated_at", "clock": "database"}}
    world = make_world(method="polling", tables=[table])
    world.run("create table t(id integer primary key, v text, w text, updated_at text)")
    rows = 3 if size > 2_000 else 1_500
    world.app.executemany(
        "insert into t values (?, ?, 'w', '2026-01-01 00:00:00.000')",
        ((n, str(n % 10) * size) for n in range(rows)),
    )
    world.htap.sync_now()
    for column in "wv":
        world.run(f"update t set {column} = 'x' || substr({column}, 2) where id = {rows - 1}")
        assert world.htap.sync_now().updated == 1
        world.assert_equal("t")


@pytest.mark.parametrize("kind", list(KINDS))
def test_timestamps_of_every_kind_are_kept_exactly(make: Make, kind: str) -> None:
    declared, stamp = KINDS[kind]
    world = make(declared)
    for key in range(10):
        put(world, key, "a", stamp.format(n=-9000 + key // 4))
    world.htap.sync_now()
    assert world.htap.sync_status().tables["t"].proof == "proved"
    for key in range(5, 15):
        put(world, key, "b", stamp.format(n=-key))
    assert world.htap.sync_now().updated == 5
    assert world.htap.sync_now().events == 0
    assert mirrored(world) == {**dict.fromkeys(range(5), "a"), **dict.fromkeys(range(5, 15), "b")}
    assert world.htap.verify().equal
    (at,) = world.app.execute("select max(updated_at) from t").fetchone()
    assert _keyset(world)["at"] == json.dumps(
        [["real", at.hex()] if isinstance(at, float) else ["plain", at]]
    )


def _keyset(world: World) -> dict[str, Any]:
    mark = engine_of(world.htap).mirror.ledger().watermarks["t"]
    found: dict[str, Any] = json.loads(mark.position.proof)
    return found


def test_a_closed_tick_is_not_read_again(make: Make) -> None:
    world = make()
    for key in range(20):
        put(world, key, "a", "'2026-01-01 10:00:00'")
    world.htap.sync_now()
    for turn in range(4):
        world.run("create table if not exists other(id)", f"insert into other values ({turn})")
        world.htap.sync_now()
    statements = statements_of(world)
    world.run("insert into other values (9)")
    world.htap.sync_now()
    assert not [text for text in statements if 'updated_at" = ' in text]
    put(world, 3, "b")
    assert world.htap.sync_now().updated == 1


def test_a_change_of_one_row_is_one_event_though_its_tick_holds_many(make: Make) -> None:
    world = make()
    for key in range(20):
        put(world, key, "a", "'2026-01-01 10:00:00'")
    world.htap.sync_now()
    put(world, 30, "b")
    report = world.htap.sync_now()
    assert (report.events, report.inserted, report.updated) == (1, 1, 0)
    assert world.htap.sync_now().events == 0


def test_an_update_that_changes_nothing_is_not_counted(make: Make) -> None:
    world = make(mode="temporal")
    put(world, 1, "a", "'2026-01-01 10:00:00'")
    put(world, 2, "a", "'2026-01-01 10:00:00'")
    world.htap.sync_now()
    put(world, 2, "b", "'2026-01-01 10:00:00'")
    report = world.htap.sync_now()
    assert (report.inserted, report.updated) == (0, 1)
    assert len(world.versions("t")) == 3


def test_a_created_at_column_decides_nothing(make_world: Make) -> None:
    world = make_world(method="polling", tables=[{"name": "t"}])
    world.run(
        "create table t(id integer primary key, v text, created_at text, updated_at text)",
        f"insert into t values (1, 'a', {NOW}, {NOW})",
    )
    world.htap.sync_now()
    world.run(f"insert or replace into t values (1, 'b', {NOW}, {NOW})")
    report = world.htap.sync_now()
    assert (report.inserted, report.updated) == (0, 1)


def test_a_partial_mirror_need_not_hold_the_timestamp(make_world: Make) -> None:
    tables = [{"name": "t", "columns": ["id", "v"], "polling": {"updated_at": "CHANGED"}}]
    world = make_world(method="polling", tables=tables)
    world.run(
        "create table t(id integer primary key, v text, w text, changed text)",
        f"insert into t values (1, 'a', 'w', {NOW})",
    )
    world.htap.sync_now()
    world.run(f"update t set v = 'b', changed = {NOW}")
    assert world.htap.sync_now().updated == 1
    assert world.htap.query("select * from t").to_pylist() == [{"id": 1, "v": "b"}]


def test_a_row_that_is_soft_deleted_already_is_not_copied(make: Make) -> None:
    world = make(deletes="soft_delete:deleted_at")
    put(world, 1, "a")
    world.run(f"insert into t values (2, 'b', {NOW}, {NOW})")
    world.htap.sync_now()
    assert mirrored(world) == {1: "a"}
    assert world.htap.verify().equal


def test_reconciliation_keeps_to_its_interval(make: Make) -> None:
    world = make(deletes="reconcile", reconcile_seconds=HOUR)
    for key in range(3):
        put(world, key, "a", f"'2026-01-01 10:00:0{key}'")
    world.htap.sync_now()
    world.run("delete from t where id = 0")
    assert world.htap.sync_now().deleted == 0
    assert sorted(mirrored(world)) == [0, 1, 2]
    _rewrite_proof(world, audited=lambda at: at - int(HOUR * 1e6))
    assert world.htap.sync_now().deleted == 1
    assert world.faults.seen.count(Step.AUDITED) == 2
    world.run("delete from t where id = 1")
    assert world.htap.sync_now().deleted == 0


def test_the_deletion_of_the_newest_row_is_reconciled_at_once(make: Make) -> None:
    world = make(deletes="reconcile", reconcile_seconds=HOUR)
    for key in range(3):
        put(world, key, "a", f"'2026-01-01 10:00:0{key}'")
    world.htap.sync_now()
    world.run("delete from t where id = 2")
    assert world.htap.sync_now().deleted == 1


def _rewrite_proof(world: World, **changes: Callable[[Any], Any]) -> None:
    """Change what the mirror's watermark says, as if the clock had said so."""
    proof = _keyset(world)
    proof |= {name: change(proof[name]) for name, change in changes.items()}
    with engine_of(world.htap).mirror.transaction() as transaction:
        assert isinstance(transaction, DuckDBTransaction)
        connection_of(transaction).execute(
            "update _rhei_watermark set proof = ?", [json.dumps(proof, separators=(",", ":"))]
        )
    world.crash()


def test_reconciliation_reads_again_only_the_ranges_that_differ(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rhei_pipeline.sync.rescan.RANGE_ROWS", 10)
    world = make(deletes="reconcile", reconcile_seconds=0)
    for key in range(100):
        put(world, key, "a")
    world.htap.sync_now()
    put(world, 55, "x", "'2020-01-01 00:00:00.000'")
    statements = statements_of(world)
    assert world.htap.sync_now().updated == 1
    ranges = [text for text in statements if re.search(r"limit 10$", text)]
    assert len(ranges) == 11 + 1


def test_a_clock_of_the_application_is_unproved_and_reconciled(make: Make) -> None:
    world = make(clock="application", reconcile_seconds=0)
    put(world, 1, "a")
    put(world, 2, "b")
    world.htap.sync_now()
    status = world.htap.sync_status().tables["t"]
    assert status.proof == "unproved"
    assert status.doubt == "'updated_at' is stamped by the application's clock"
    put(world, 3, "late", "'2020-01-01 00:00:00.000'")
    world.run("delete from t where id = 1")
    report = world.htap.sync_now()
    assert (report.inserted, report.deleted) == (1, 0)
    assert sorted(mirrored(world)) == [1, 2, 3]


@pytest.mark.parametrize(
    ("stamp", "doubt", "letters"),
    [
        ("strftime('%Y-%m-%d %H:%M:%f', 'now', '1 hour')", "ahead of the database's clock", 0),
        ("'last Tuesday'", "unknown or several forms", 0),
        ("12345", "unknown or several forms", 1),  # no text, as the column is mirrored
    ],
)
def test_a_stamp_that_cannot_be_the_databases_own_is_named(
    make: Make, stamp: str, doubt: str, letters: int
) -> None:
    world = make("")
    put(world, 1, "a")
    world.htap.sync_now()
    assert world.htap.sync_status().tables["t"].doubt is None
    put(world, 2, "odd", stamp)
    world.htap.sync_now()
    assert doubt in str(world.htap.sync_status().tables["t"].doubt)
    assert world.htap.dead_letters().num_rows == letters
    assert mirrored(world) == ({1: "a"} if letters else {1: "a", 2: "odd"})


def test_a_stamp_ahead_of_the_clock_hides_no_later_row(
    make: Make, naive: Callable[[World], Naive]
) -> None:
    world = make()
    reader = naive(world)
    put(world, 1, "ahead", "strftime('%Y-%m-%d %H:%M:%f', 'now', '1 hour')")
    world.htap.sync_now()
    reader.poll()
    put(world, 2, "now")
    report = world.htap.sync_now()
    reader.poll()
    assert mirrored(world) == {1: "ahead", 2: "now"}
    assert report.updated == 0
    assert world.htap.sync_now().events == 0
    assert reader.rows == {1: "ahead"}


@pytest.mark.parametrize("deletes", ["disabled", "reconcile", "soft_delete:deleted_at"])
@pytest.mark.parametrize("replaced", [True, False], ids=["file replaced", "contents restored"])
def test_a_restored_backup_is_found(
    make: Make, deletes: str, caplog: pytest.LogCaptureFixture, *, replaced: bool
) -> None:
    world = make(deletes=deletes)
    put(world, 1, "a")
    put(world, 2, "a")
    world.htap.sync_now()
    backup = world.directory / "backup.db"
    copy = sqlite3.connect(backup)
    world.app.backup(copy)
    put(world, 2, "later")
    put(world, 3, "later")
    world.htap.sync_now()
    if replaced:
        copy.close()
        world.run("pragma wal_checkpoint(truncate)")
        world.app.close()
        backup.replace(world.path)
        for name in ("app.db-wal", "app.db-shm"):
            (world.directory / name).unlink(missing_ok=True)
        world.app = sqlite3.connect(world.path, isolation_level=None)
    else:
        copy.backup(world.app)
        copy.close()
    put(world, 4, "after")
    world.htap.sync_now()
    world.assert_equal("t")
    assert deletes == "reconcile" or "restored backup" in caplog.text


def test_a_clock_put_back_between_runs_is_found(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    world = make()
    put(world, 1, "a")
    world.htap.sync_now()
    _rewrite_proof(
        world,
        clock=lambda at: at + 10_000_000,
        at=lambda _: '[["plain", "2099-01-01 00:00:00.000"]]',
    )
    put(world, 2, "b")
    assert [world.htap.sync_status().tables["t"].lag_events for _ in range(3)] == [None] * 3
    world.htap.sync_now()
    assert mirrored(world) == {1: "a", 2: "b"}
    assert caplog.text.count("clock went back") == 1


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_nothing_is_created_in_the_source(make: Make, journal: str) -> None:
    world = make(deletes="reconcile", reconcile_seconds=0)
    world.run(f"pragma journal_mode = {journal}")
    put(world, 1, "a")
    world.run("pragma wal_checkpoint(truncate)")
    before = digest(world.path), list(world.app.execute("select * from sqlite_master"))
    world.htap.sync_now()
    world.htap.initial_sync("t")
    world.htap.verify()
    assert before == (digest(world.path), list(world.app.execute("select * from sqlite_master")))
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        connection_of(polling(world)).execute("delete from t")


def test_a_sidecar_refuses_writes_and_reads_the_mirror(make: Make) -> None:
    world = make()
    put(world, 1, "a")
    world.htap.sync_now()
    for write in (
        lambda: world.htap.execute("delete from t"),
        lambda: world.htap.execute_batch([("delete from t", ())]),
        lambda: world.htap.query("select 1", hint="oltp"),
        lambda: world.htap.drop_column("t", "v"),
    ):
        with pytest.raises(QueryError, match="source is read-only"):
            write()
    put(world, 2, "b")
    read = "select count(*) as n from t"
    assert world.htap.query(read).to_pylist() == [{"n": 1}]
    assert "as of a sync" in str(world.htap.explain_route(read).freshness)
    world.run("alter table t rename to other")
    assert world.htap.sync_now().errors.keys() == {"t"}
    assert "'t' is not followed since" in str(world.htap.explain_route(read).freshness)
    assert world.htap.query(read).to_pylist() == [{"n": 1}]


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_a_sidecar_answers_of_no_table_that_is_followed_no_more_unless_asked_to(
    make: Make, mode: str
) -> None:
    """Nobody reads its source any more, so what the mirror has of it grows old unseen."""
    world = make(mode=mode)
    world.run("create table u(id integer primary key, updated_at text)")
    polled: list[dict[str, Any]] = [{"name": "t", "polling": {"clock": "database"}}]
    world.tables = [*polled, {"name": "u", "polling": {"updated_at": "updated_at"}}]
    world.run("insert into u values (1, '2026-01-01')")
    put(world, 1, "a")
    world.htap.sync_now()
    world.crash()
    world.tables = polled
    assert world.htap.sync_now().not_followed.keys() == {"u"}
    read = "select count(*) as n from u"
    for ask in (world.htap.query, world.htap.stream):
        with pytest.raises(QueryError, match="table 'u' is no longer followed since"):
            ask(read)
        assert ask(read.replace("from u", "from t")).schema.names == ["n"]
    assert world.htap.query(read, hint="olap")["n"].to_pylist() == [1]


def test_a_local_database_stands_beside_the_source(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "app.db", isolation_level=None)
    connection.execute("create table t(id integer primary key, updated_at text)")
    connection.close()
    settings = Settings(
        source={"path": tmp_path / "app.db"},
        capture={"method": "polling"},
        local={"path": tmp_path / "own" / "local.db"},
        mirror={"path": tmp_path / "mirror.duckdb"},
        registry={"path": tmp_path / "registry.json"},
    )
    with HTAP(settings) as htap:
        htap.execute("create table notes(id integer primary key)")
        assert htap.execute("insert into notes values (7)") == 1
        for hint in ("oltp", "auto"):
            assert htap.query("select id from notes", hint=hint)["id"].to_pylist() == [7]
        assert [batch.num_rows for batch in htap.stream("select id from Notes").batches] == [1]
        assert htap.explain_route("select id from notes").engine == "oltp"
        assert htap.tables() == ["t"]
        for ask in (
            lambda: htap.query("select count(*) as n from t"),
            lambda: htap.query("select count(*) as n from t", hint="olap"),
            lambda: htap.stream("select count(*) as n from t"),
        ):
            with refused("run 'rhei sync', or call sync_now(), and query again", QueryError) as met:
                ask()
            assert met.error.message == "table 't' is not copied yet"
        htap.sync_now()
        assert htap.query("select count(*) as n from t")["n"].to_pylist() == [0]
        way_out = "query each side alone, with the hint 'oltp' or 'olap', and join the answers"
        with refused(way_out, QueryError):
            htap.query("select * from t join notes using (id)")


def test_an_idle_poll_does_not_look_at_tables(make: Make) -> None:
    world = make(deletes="reconcile", reconcile_seconds=0, clock="application")
    put(world, 1, "a")
    world.htap.sync_now()
    world.htap.sync_now()
    statements = statements_of(world)
    world.htap.sync_now()
    assert statements
    assert not [text for text in statements if '"t"' in text]


def test_a_missing_index_is_named_once(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    world = make()
    put(world, 1, "a")
    with caplog.at_level(logging.WARNING):
        world.htap.sync_now()
        assert "no index begins with" not in caplog.text
        world.run("drop index t_updated")
        put(world, 2, "b")
        world.htap.sync_now()
        world.htap.sync_now()
    assert caplog.text.count('create index "t_updated_at" on "t"("updated_at", "id")') == 1


def test_a_timestamp_that_is_not_there_is_named(make: Make) -> None:
    world = make(updated_at="updatedat")
    world.tables = [*(world.tables or ()), {"name": "good"}]
    assert_left_out(world, "t", r"'polling.updated_at' names column 'updatedat'.*did")


def test_an_unknown_delete_policy_is_named(make: Make) -> None:
    world = make(deletes="soft_delete")
    with pytest.raises(SettingsError, match="'soft_delete' is unknown"):
        _ = world.settings


def test_a_database_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        SqliteDatabase(tmp_path / "none.db", read_only=True)


@pytest.mark.parametrize("copied", [False, True])
def test_what_a_sync_showed_stays_though_an_older_transaction_commits_later(
    make: Make, *, copied: bool
) -> None:
    world = make(mode="temporal")
    put(world, 1, "a")
    world.htap.sync_now()
    with closing(sqlite3.connect(world.path, isolation_level=None)) as other:
        other.execute("begin immediate")
        other.execute(f"update t set v = 'late', updated_at = {NOW}")
        instant_between()
        if copied:
            world.htap.initial_sync("t")
        world.htap.sync_now()
        shown = instant_between() - timedelta(milliseconds=1)
        other.execute("commit")
    instant_between()
    world.htap.sync_now()
    assert world.htap.as_of("t", shown)["v"].to_pylist() == ["a"]
    assert mirrored(world) != {}


def test_versions_are_dated_by_their_stamp_where_it_is_later(make: Make) -> None:
    world = make(mode="temporal")
    put(world, 1, "a", "'2026-01-01 10:00:00.000'")
    world.htap.sync_now()
    begun = instant_between()
    put(world, 1, "b")
    (stamp,) = world.app.execute("select updated_at from t").fetchone()
    instant_between()
    put(world, 2, "c", "'2026-01-02 10:00:00.000'")  # of the past, yet behind the newest seen
    world.htap.sync_now()
    found = {version["v"]: version["_rhei_valid_from"] for version in world.versions("t")}
    assert found["b"] == datetime.fromisoformat(stamp).replace(tzinfo=UTC)
    assert found["b"] > begun


def test_a_stamp_before_the_version_it_follows_is_dated_when_seen(make: Make) -> None:
    world = make(mode="temporal")
    put(world, 1, "a", "'2026-01-01 10:00:00.000'")
    world.htap.sync_now()
    put(world, 1, "b", "'2026-01-01 10:00:00.000'")
    begun = datetime.now(UTC)
    world.htap.sync_now()
    first, second = world.versions("t")
    assert first["_rhei_valid_to"] == second["_rhei_valid_from"]
    rounding = timedelta(milliseconds=1)
    assert begun - rounding <= second["_rhei_valid_from"] <= datetime.now(UTC) + rounding


def test_a_misfit_is_a_dead_letter_until_it_is_mended(make: Make) -> None:
    world = make(deletes="reconcile", reconcile_seconds=0)
    world.run("create table u(id integer primary key, n integer, updated_at text)")
    world.tables = [*(world.tables or []), {"name": "u"}]
    world.run(f"insert into u values (1, 5, {NOW})")
    world.htap.sync_now()
    world.run(f"update u set n = 'five', updated_at = {NOW}")
    assert world.htap.sync_now().dead_letters == 1
    assert world.htap.query("select n from u").to_pylist() == [{"n": 5}]
    world.run("update u set n = 6")
    world.htap.replay_dead_letters()
    assert world.htap.query("select n from u").to_pylist() == [{"n": 6}]
    assert world.htap.dead_letters().num_rows == 0


def test_what_is_pending_is_known_without_the_mirror(make: Make) -> None:
    world = make()
    assert unseen_events(world.settings) is None
    put(world, 1, "a")
    world.htap.sync_now()
    assert unseen_events(world.settings) == 0
    put(world, 2, "b")
    put(world, 3, "c")
    assert unseen_events(world.settings) == 2
    assert world.htap.sync_status().lag_events == 2


def test_a_mirror_built_by_triggers_goes_on_by_polling(make: Make) -> None:
    world = make()
    put(world, 1, "a")
    world.method = "trigger"
    world.htap.sync_now()
    world.crash()
    world.method = "polling"
    put(world, 2, "b")
    world.htap.sync_now()
    world.assert_equal("t")
    put(world, 3, "c")
    assert world.htap.sync_now().inserted == 1


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
@pytest.mark.parametrize("deletes", ["disabled", "reconcile", "soft_delete:deleted_at"])
@pytest.mark.parametrize(
    ("key", "widened"), [("id", "v, id"), ("v, id", "id")], ids=["widened", "narrowed"]
)
def test_a_table_whose_key_gets_other_columns_is_followed(
    make: Make, mode: str, deletes: str, key: str, widened: str
) -> None:
    world = make(mode=mode, deletes=deletes)

    def rebuild(primary_key: str) -> None:
        columns = "id integer not null, v text not null, updated_at text, deleted_at text"
        world.run(
            f"create table built({columns}, primary key ({primary_key}))",
            "insert into built select * from t",
            "drop table t",
            "alter table built rename to t",
        )

    rebuild(key)
    put(world, 1, "a")
    put(world, 2, "b")
    world.htap.sync_now()
    rebuild(widened)
    put(world, 3, "c")
    assert not world.htap.sync_now().errors
    put(world, 4, "d")
    world.close()
    assert not world.htap.sync_now().errors
    assert mirrored(world) == {1: "a", 2: "b", 3: "c", 4: "d"}
    assert world.htap.verify().equal


def test_a_table_that_loses_its_timestamp_is_left_out_by_name(make: Make) -> None:
    world = make()
    put(world, 1, "a")
    world.htap.sync_now()
    world.run("drop index t_updated", "alter table t drop column updated_at")
    assert "updated_at" in world.htap.sync_now().errors["t"]
    assert mirrored(world) == {1: "a"}


def test_the_source_equals_the_mirror_row_by_row(make: Make) -> None:
    world = make()
    put(world, 1, "a")
    world.htap.sync_now()
    assert world.mirror_rows("t") == source_rows(world.app, "t")


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
def test_a_newest_key_and_a_stamp_that_are_not_utf_8_are_polled(
    make_world: Make, mode: str
) -> None:
    polled = {"updated_at": "at", "clock": "database", "deletes": "reconcile"}
    table = {"name": "t", "polling": {**polled, "reconcile_seconds": 0}}
    world = make_world(method="polling", mode=mode, tables=[table])
    world.run(
        "create table t(k text primary key, n integer, at text)",
        f"insert into t values ('a', 1, {NOW}), (cast(x'ff' as text), 1, {NOW})",
    )
    for odd, left in (("x'fe'", 2), ("x'fd'", 3)):
        assert not world.htap.sync_now().errors
        assert world.htap.dead_letters().num_rows == left - 1
        world.run(f"insert into t values (cast({odd} as text), 1, {NOW})")
    world.run("insert into t values ('b', 1, cast(x'ff' as text))")
    assert world.htap.sync_status().lag_events == 2
    assert not world.htap.sync_now().errors
    assert set(world.htap.dead_letters()["column_name"].to_pylist()) == {"k", "at"}
    world.run("delete from t where k > 'b' or at > 'z'")
    world.htap.sync_now()
    world.assert_equal("t")
    assert world.htap.dead_letters().num_rows == 0
