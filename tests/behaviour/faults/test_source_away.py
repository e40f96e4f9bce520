"""A source that is gone for a while: the mirror answers what it can, and says of when it is."""

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import adbc_driver_flightsql.dbapi as flight_sql
import adbc_driver_manager
import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from rhei_pipeline import HTAP, Settings
from rhei_pipeline.buffer.log import ChangeLog
from rhei_pipeline.cli.main import app
from rhei_pipeline.errors import (
    BufferBusyError,
    BufferDamagedError,
    MirrorError,
    QueryError,
    RheiError,
    SchemaError,
    SourceError,
    SourceUnreachableError,
)
from rhei_pipeline.holder import access
from rhei_pipeline.holder.mirror_alone import MirrorAlone
from rhei_pipeline.model.change_feed import TableChanges
from rhei_pipeline.model.query_limits import QueryClock
from rhei_pipeline.protocols import Step
from rhei_pipeline.server.flight.server import ServerOptions
from rhei_pipeline.server.serve import Addresses, serving
from rhei_pipeline.settings.source import SqliteSettings
from rhei_pipeline.sources.postgres import database as postgres_database
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World

MakeWorld = Callable[..., World]
MakePostgres = Callable[..., PostgresWorld]
NOBODY = SecretStr("postgresql://nobody@127.0.0.1:1/nothing?connect_timeout=2")
ROWS = "select id, v, _rhei_operation from t order by id, _rhei_valid_from"
BOTH_STORAGES = pytest.mark.parametrize("storage", [None, "parquet"])


def _filled(world: World | PostgresWorld) -> tuple[datetime, dict[str, Any]]:
    """Mirror a table and a change of it; return when it began, and what is told of it."""
    world.run("create table t (id int primary key, v text)", "insert into t values (1, 'a')")
    world.htap.sync_now()
    before = world.htap.known_since("t")
    world.run("update t set v = 'b'", "insert into t values (2, 'c')")
    world.htap.sync_now()
    told = _told(world.htap, before)
    assert (len(told["query"]), told["as_of"]) == (3, [{"id": 1, "v": "a"}])
    world.crash()
    return before, told


def _told(htap: HTAP, before: datetime) -> dict[str, Any]:
    names = ("query", "as_of", "known_since", "changes", "diff", "dead_letters", "schema_log")
    return {name: _told_of(htap, before, name) for name in names}


def _told_of(htap: HTAP, before: datetime, name: str) -> Any:
    asked: dict[str, Callable[[], Any]] = {
        "query": lambda: htap.query(ROWS, hint="olap").to_pylist(),
        "as_of": lambda: htap.as_of("t", before).to_pylist(),
        "known_since": lambda: htap.known_since("t"),
        "changes": lambda: _rows(htap.changes("t")),
        "diff": lambda: htap.diff("t", before, datetime.now(UTC)).num_rows,
        "dead_letters": lambda: htap.dead_letters().num_rows,
        "schema_log": lambda: htap.schema_log("t"),
    }
    return asked[name]()


def _rows(changed: TableChanges) -> list[Any]:
    rows: list[Any] = changed.rows.to_pylist()
    return rows


def _away(world: PostgresWorld) -> Settings:
    source = world.settings.source.model_copy(
        update={"dsn": NOBODY, "connect_timeout_seconds": 0.2}
    )
    return world.settings.model_copy(update={"source": source})


def _answers_alone(
    settings: Settings, before: datetime, told: dict[str, Any], error: type[Exception]
) -> None:
    patient = settings.with_fields({"mirror": {"lock_timeout_seconds": 60}})
    with HTAP(patient, hold=error is SourceUnreachableError) as htap:
        assert _told(htap, before) == told
        labels = htap.query(ROWS, hint="olap").schema.metadata
        assert b"the source cannot be opened" in labels[b"rhei.reason"]
        assert len(json.loads(labels[b"rhei.watermark"])) == 1
        status = htap.sync_status(1.0)
        (state,) = status.tables.values()
        assert (state.mode, state.state, state.lag_events) == ("temporal", "ready", None)
        assert (state.watermark or 0) > 0
        assert str(status.unreadable).startswith("how far the source is ahead is not known: ")
        # Whoever asks at once is answered, one after the other.
        with ThreadPoolExecutor(4) as pool:
            at_once = [pool.submit(htap.query, ROWS, hint="olap") for _ in range(8)]
            assert all(found.result().num_rows == 3 for found in at_once)
        for asked in ({}, {"hint": "oltp"}, {"hint": "olap", "max_staleness": 1}):
            with pytest.raises(error) as refused:
                htap.query("select * from t", **asked)
            assert "the hint 'olap' asks the mirror" in str(refused.value)
        for work in (htap.sync_now, htap.verify, htap.sync_status, lambda: htap.repair("t")):
            with pytest.raises(error):
                work()
        with pytest.raises(error):
            htap.execute("insert into t values (3, 'd')")
        with pytest.raises(SchemaError, match=r"not in the mirror.*t"):
            htap.as_of("tt", before)
        with pytest.raises(QueryError, match="not a reading statement"):
            htap.query("delete from t", hint="olap")


def _goes_on(world: World | PostgresWorld) -> None:
    world.run("insert into t values (3, 'd')")
    world.htap.sync_now()
    world.assert_equal("t")
    assert world.htap.query("select count(*) as n from t")["n"].to_pylist() == [3]
    assert world.htap.verify().equal


@pytest.mark.long
@BOTH_STORAGES
def test_the_mirror_answers_without_a_sqlite_file(
    make_world: MakeWorld, storage: str | None
) -> None:
    world = make_world(mode="temporal", storage=storage)
    before, told = _filled(world)
    settings, file = world.settings, world.directory / "app.db"
    moved = file.rename(file.with_name("moved.db"))
    _answers_alone(settings, before, told, SourceError)
    with pytest.raises(SourceError, match="does not exist"):
        HTAP(settings)  # to be corrected, and not to be waited for
    moved.rename(file)
    _goes_on(world)


@pytest.mark.long
@BOTH_STORAGES
@pytest.mark.parametrize("method", ["logical", "trigger"])
def test_the_mirror_answers_without_its_server(
    make_postgres: MakePostgres, method: str, storage: str | None
) -> None:
    world = make_postgres(mode="temporal", storage=storage, capture={"method": method})
    before, told = _filled(world)
    _answers_alone(_away(world), before, told, SourceUnreachableError)
    _goes_on(world)


@pytest.mark.long
def test_a_server_that_is_away_is_not_waited_for_by_each_who_asks_the_mirror(
    make_postgres: MakePostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, tries = make_postgres(mode="temporal"), list[float]()
    _filled(world)
    monkeypatch.setattr(postgres_database, "time", _Counted(tries))
    with HTAP(_away(world)) as htap:
        begun = len(tries)
        assert begun > 0
        for _ in range(3):
            htap.query(ROWS, hint="olap")
            htap.as_of("t", datetime.now(UTC))
        assert len(tries) == begun
        with pytest.raises(SourceUnreachableError):
            htap.query("select * from t")
        assert len(tries) > begun


@pytest.mark.long
def test_a_server_begins_and_answers_of_the_mirror(make_postgres: MakePostgres) -> None:
    world = make_postgres(mode="temporal")
    _, told = _filled(world)
    with (
        HTAP(_away(world)) as htap,
        serving(htap, Addresses("127.0.0.1", 0, None), ServerOptions()) as (port, _),
    ):
        place = f"grpc://127.0.0.1:{port}"
        header = {"adbc.flight.sql.rpc.call_header.rhei-hint": "olap"}
        with (
            flight_sql.connect(place, db_kwargs=header, autocommit=True) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(ROWS)
            assert cursor.fetch_arrow_table().to_pylist() == told["query"]
        with (
            flight_sql.connect(place, autocommit=True) as connection,
            connection.cursor() as cursor,
            pytest.raises(adbc_driver_manager.Error, match="the hint 'olap' asks the mirror"),
        ):
            cursor.execute(ROWS)


class _Counted:
    """The clock, which notes how long somebody waits."""

    monotonic = staticmethod(time.monotonic)

    def __init__(self, waits: list[float]) -> None:
        self._waits = waits

    def sleep(self, seconds: float) -> None:
        """Note it, and wait."""
        self._waits.append(seconds)
        time.sleep(seconds)


def test_one_object_answers_before_and_after_the_source_is_back(make_world: MakeWorld) -> None:
    world = make_world(mode="temporal")
    _filled(world)
    file = world.directory / "app.db"
    moved = file.rename(file.with_name("moved.db"))
    with HTAP(world.settings, hold=False) as htap:
        assert htap.query(ROWS, hint="olap").num_rows == 3
        moved.rename(file)
        world.run("insert into t values (3, 'd')")
        htap.sync_now()
        found = htap.query(ROWS, hint="olap")
        assert found.num_rows == 4
        assert found.schema.metadata[b"rhei.reason"] == b"asked for"


@pytest.mark.parametrize("is_synced", [False, True])
def test_without_a_mirror_that_holds_something_nothing_is_answered_and_none_is_made(
    make_postgres: MakePostgres, *, is_synced: bool
) -> None:
    world = make_postgres()
    world.run("create table t (id int primary key)")
    if is_synced:
        _ = world.htap
        world.crash()
    settings = _away(world)
    there = {*world.directory.rglob("*")}
    with pytest.raises(SourceUnreachableError), HTAP(settings) as htap:
        htap.query("select 1", hint="olap")
    with HTAP(settings, hold=False) as htap, pytest.raises(SourceUnreachableError):
        htap.query("select 1", hint="olap")
    assert {*world.directory.rglob("*")} - there <= {
        Path(f"{settings.mirror.path}.lock"),
        Path(f"{settings.mirror.path}.lock.turn"),
    }


def test_the_mirror_of_another_pipeline_is_not_answered_of(make_world: MakeWorld) -> None:
    """As long as the source can be opened, its mirror is refused by name."""
    world = make_world(mode="temporal")
    _filled(world)
    settings, source = world.settings, world.settings.source
    elsewhere = source.model_copy(update={"path": world.directory / "others.db"})
    with HTAP(settings.model_copy(update={"source": elsewhere}), hold=False) as htap:
        with pytest.raises(SourceError, match=r"others\.db"):
            htap.query(ROWS, hint="olap")
        with pytest.raises(SourceError, match=r"others\.db"):
            htap.as_of("t", datetime.now(UTC))


def test_the_mirror_of_a_pipeline_of_another_name_is_not_answered_of(make_world: MakeWorld) -> None:
    """It may have other masks and filters, though it was made from the same file."""
    world = make_world()
    world.run("create table t (id int primary key, v text)", "insert into t values (1, 'a')")
    shop, other = (world.settings.model_copy(update={"name": name}) for name in ("shop", "other"))
    with HTAP(shop) as htap:
        htap.sync_now()
    shop.sqlite_path.rename(world.directory / "away.db")
    with HTAP(shop, hold=False) as htap:
        assert htap.query("select id from t", hint="olap").num_rows == 1
    with HTAP(other, hold=False) as htap, pytest.raises(SourceError, match="does not exist"):
        htap.query("select id from t", hint="olap")


@pytest.mark.long
def test_the_mirror_of_another_server_is_not_answered_of(make_postgres: MakePostgres) -> None:
    """Only the registry tells, as the server cannot be asked."""
    world = make_postgres(mode="temporal")
    _filled(world)
    settings = _away(world)
    registry = settings.registry.model_copy(update={"path": world.directory / "others.json"})
    for others in ({"registry": registry}, {"source": SqliteSettings(path=Path("/nowhere/t.db"))}):
        with (
            HTAP(settings.model_copy(update=others), hold=False) as htap,
            pytest.raises((SourceError, SourceUnreachableError)),
        ):
            htap.query(ROWS, hint="olap")


@pytest.mark.long
def test_who_finds_that_another_process_asks_the_mirror_alone_waits(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, other = make_world(mode="temporal"), ExitStack()
    _filled(world)

    def away(*_: object) -> None:
        fault = SourceError("it is away")
        other.enter_context(MirrorAlone(world.settings, fault, QueryClock(60)))
        threading.Timer(0.5, other.close).start()
        raise fault

    monkeypatch.setattr(access, "Held", away)
    patient = world.settings.with_fields({"mirror": {"lock_timeout_seconds": 60}})
    with HTAP(patient, hold=False) as htap:
        assert htap.query(ROWS, hint="olap").num_rows == 3


LONG = "select count(*) from range(30000) a, range(100000) b where (a.range * b.range) % 7 = 3"


@pytest.mark.long
def test_what_the_mirror_lacks_is_named_without_the_source_too(make_world: MakeWorld) -> None:
    world = make_world()
    world.run(
        "create table t (id integer primary key, n integer)",
        "create table u (id integer primary key)",
        "insert into t values (1, 1), (2, 'no number')",
        "insert into u values (1)",
    )
    world.htap.sync_now()
    world.crash()
    (world.directory / "app.db").rename(world.directory / "moved.db")
    with HTAP(world.settings, hold=False) as htap:
        found = htap.query("select * from t", hint="olap")
        assert json.loads(found.schema.metadata[b"rhei.dead_letters"]) == {"t": 1}
        assert (
            b"rhei.dead_letters" not in htap.query("select * from u", hint="olap").schema.metadata
        )
        assert htap.dead_letters("t").num_rows == 1


@pytest.mark.long
def test_what_is_no_longer_followed_is_named_without_the_source_too(make_world: MakeWorld) -> None:
    world = make_world(mode="temporal")
    world.run(
        *(f"create table {name} (id integer primary key)" for name in ("t", "gone", "bad")),
        *(f"insert into {name} values (1)" for name in ("t", "gone", "bad")),
    )
    world.htap.sync_now()
    world.crash()
    world.run("drop table bad", "create table bad (id integer)", "alter table t add column w int")
    world.tables = [{"name": name} for name in ("t", "bad")]
    known = world.htap.sync_now().not_followed
    read = "select * from gone, bad, t"
    told = world.htap.query(read, hint="olap").schema.metadata[b"rhei.not_followed"]
    log = world.htap.schema_log()
    assert [change.what for change in log] == ["added 'w'"]
    world.crash()
    (world.directory / "app.db").rename(world.directory / "moved.db")
    with HTAP(world.settings, hold=False) as htap:
        found = htap.query(read, hint="olap").schema.metadata
        assert json.loads(found[b"rhei.not_followed"]) == json.loads(told)
        whole = htap.query("select * from t", hint="olap").schema.metadata
        assert b"rhei.not_followed" not in whole
        assert (htap.schema_log(), htap.schema_log("gone")) == (log, [])
        label = htap.as_of("gone", datetime.now(UTC)).schema.metadata[b"rhei.not_followed"]
        assert json.loads(label) == {"gone": known["gone"].isoformat()}
        status = htap.sync_status(1.0)
    assert status.not_followed == {"gone": known["gone"]}
    assert status.tables.keys() == {"t", "bad"}
    assert status.tables["t"].error is None
    assert "'rhei sync' says why, once the source can be opened" in str(status.tables["bad"].error)
    (world.directory / "moved.db").rename(world.directory / "app.db")
    assert "no primary key" in world.htap.sync_now().errors["bad"]


def test_without_source_and_registry_the_mirror_answers_what_needs_neither(
    make_world: MakeWorld, caplog: pytest.LogCaptureFixture
) -> None:
    world = make_world(mode="temporal")
    before, told = _filled(world)
    path = world.directory / "registry.json"
    path.write_text("{")
    (world.directory / "app.db").rename(world.directory / "moved.db")
    with HTAP(world.settings, hold=False) as htap:
        assert htap.query(ROWS, hint="olap").to_pylist() == told["query"]
        assert htap.as_of("t", before).to_pylist() == told["as_of"]
        assert f"registry {str(path)!r} cannot be read" in caplog.text
        assert htap.sync_status(1.0).tables["t"].mode == "temporal"
        with pytest.raises(SchemaError, match="cannot be read"):
            htap.schema_log()


def _shut(world: World, what: str) -> tuple[Callable[[], None], type[RheiError]]:
    """Have buffer or registry not be opened; return what undoes that, and the error it gives."""
    buffer, registry = world.directory / "cdc", world.directory / "registry.json"
    if what == "buffer that another process has":
        return ChangeLog(buffer).close, BufferBusyError
    shut, error = (registry, SchemaError) if "registry" in what else (buffer, BufferDamagedError)
    kept = shut.rename(shut.with_name("kept"))
    if "directory" in what:
        shut.mkdir()
    else:
        shut.write_text("{")

    def undo() -> None:
        shut.rmdir() if shut.is_dir() else shut.unlink()
        kept.rename(shut)

    return undo, error


@pytest.mark.parametrize("storage", [None, pytest.param("parquet", marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "what",
    [
        "buffer that another process has",
        "buffer that is damaged",
        "registry that is damaged",
        "registry that is a directory",
    ],
)
def test_the_mirror_answers_without_what_takes_changes_to_it(
    make_world: MakeWorld, caplog: pytest.LogCaptureFixture, what: str, storage: str | None
) -> None:
    world = make_world(mode="temporal", buffered=True, storage=storage)
    before, told = _filled(world)
    undo, error = _shut(world, what)
    with HTAP(world.settings, hold=False) as htap:
        if "registry" in what:
            del told["schema_log"]
        assert {name: _told_of(htap, before, name) for name in told} == told
        found = htap.query(ROWS, hint="olap")
        assert b"the pipeline cannot be opened" in found.schema.metadata[b"rhei.reason"]
        assert "the pipeline cannot be opened; the mirror answers, its last" in caplog.text
        status = htap.sync_status(1.0)
        assert (status.tables["t"].lag_events, status.tables["t"].mode) == (None, "temporal")
        with pytest.raises(error, match="the hint 'olap' asks the mirror"):
            htap.query("select * from t")
        with pytest.raises(error):
            htap.sync_now()
        undo()
        world.run("insert into t values (3, 'd')")
        assert htap.sync_now().inserted == 1
        assert htap.query(ROWS, hint="olap").schema.metadata[b"rhei.reason"] == b"asked for"


def test_a_process_starts_beside_a_buffer_that_another_has_and_syncs_once_that_is_free(
    make_world: MakeWorld,
) -> None:
    world = make_world(mode="temporal", buffered=True)
    _, told = _filled(world)
    world.run("insert into t values (3, 'd')")
    other = ChangeLog(world.directory / "cdc")
    with HTAP(world.settings) as htap:
        assert htap.query(ROWS, hint="olap").to_pylist() == told["query"]
        with pytest.raises(BufferBusyError):
            htap.sync_now()
        htap.start_sync(0.05)
        assert htap.query(ROWS, hint="olap").to_pylist() == told["query"]
        other.close()
        patience = time.monotonic() + 60
        while htap.query(ROWS, hint="olap").num_rows < 4:
            assert time.monotonic() < patience
            time.sleep(0.05)


def test_no_process_starts_beside_a_buffer_that_is_damaged(make_world: MakeWorld) -> None:
    """It has to be corrected, and not to be waited for."""
    world = make_world(mode="temporal", buffered=True)
    _filled(world)
    _shut(world, "buffer that is damaged")
    with pytest.raises(BufferDamagedError):
        HTAP(world.settings)


def test_a_first_copy_has_the_mode_that_is_declared_without_the_source_too(
    make_world: MakeWorld,
) -> None:
    tables = [{"name": "T", "mode": "temporal"}, {"name": "other"}]
    world = make_world(tables=tables, batch_rows=1)
    world.run("create table other (id integer primary key)", "insert into other values (1)")
    world.run("create table t (id integer primary key)", "insert into t values (1), (2), (3)")
    world.htap.initial_sync("other")
    world.faults.arm(Step.COPY_BATCH, 2)
    assert world.surviving(world.htap.sync_now)
    (world.directory / "app.db").rename(world.directory / "moved.db")
    with HTAP(world.settings, hold=False) as htap:
        tables_told = htap.sync_status(1.0).tables
    assert {name: of.mode for name, of in tables_told.items()} == {
        "other": "destructive",
        "t": "temporal",
    }


def test_the_status_names_why_the_source_is_away_once(
    make_world: MakeWorld, caplog: pytest.LogCaptureFixture
) -> None:
    world = make_world(mode="temporal")
    _filled(world)
    (world.directory / "app.db").rename(world.directory / "moved.db")
    config = world.directory / "p.yaml"
    config.write_text("source: {path: app.db}\nmirror: {path: mirror.duckdb}\nmode: temporal\n")
    done = CliRunner().invoke(app, ["status", "--config", str(config)])
    assert done.exit_code == 1
    assert (done.output + caplog.text).count("does not exist") == 1
    assert "the last change in the mirror is of 2" in done.output


def test_a_long_query_of_the_mirror_alone_holds_nobody_up(make_world: MakeWorld) -> None:
    world = make_world(mode="temporal")
    _filled(world)
    file, begun = world.directory / "app.db", threading.Event()
    file.rename(file.with_name("moved.db"))
    htap, others = HTAP(world.settings, hold=False), {*threading.enumerate()}
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(htap.query, LONG, hint="olap", begun=lambda _: begun.set())
        assert begun.wait(60)
        for _ in range(3):
            assert htap.query(ROWS, hint="olap").num_rows == 3
        assert not long.done()
        own = {*threading.enumerate()} - others
        assert sum(thread.name == "rhei-clock" for thread in own) == 1
        htap.close()
        with pytest.raises(MirrorError, match="closed"):
            long.result(60)
    with pytest.raises(MirrorError, match="closed"):
        htap.query(ROWS, hint="olap")


@pytest.mark.long
@pytest.mark.parametrize("file", ["app.db", "cdc", "registry.json"])
def test_commands_that_read_the_mirror_answer_and_say_of_when(
    make_world: MakeWorld, caplog: pytest.LogCaptureFixture, file: str
) -> None:
    world = make_world(mode="temporal", buffered=True)
    before, _ = _filled(world)
    (world.directory / file).rename(world.directory / "moved")
    if file != "app.db":
        (world.directory / file).write_text("{")
    config = world.directory / "p.yaml"
    config.write_text(
        "source: {path: app.db}\nmirror: {path: mirror.duckdb}\nmode: temporal\n"
        "registry: {path: registry.json}\ncapture: {buffer: {kind: rocksdb, path: cdc}}\n"
    )

    def rhei(*words: str) -> Any:
        return CliRunner().invoke(app, [*words, "--config", str(config)])

    for words in (
        ("query", ROWS, "--hint", "olap"),
        ("as-of", "t", before.isoformat()),
        ("changes", "--table", "t"),
        ("diff", "--table", "t", "--from", before.isoformat()),
        ("dead-letters",),
        *([] if file == "registry.json" else [("schema", "log")]),
    ):
        caplog.clear()
        done = rhei(*words)
        assert done.exit_code == 0, (words, done.output)
        assert "the mirror answers, its last change is of 2" in caplog.text
        assert len(caplog.records) == 1
    status = rhei("status", "--json")
    assert status.exit_code == 1
    told = json.loads(status.stdout)
    assert told["tables"]["t"]["watermark"] > 0
    assert "is not known" in told["unreadable"]
    refused = rhei("query", "select * from t")
    assert refused.exit_code == 1
    assert "the hint 'olap' asks the mirror" in str(refused.exception)
