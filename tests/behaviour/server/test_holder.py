"""Everyone reads while one writes: two real processes, one of which holds the mirror."""

import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pytest
import yaml
from pyarrow import flight
from typer.testing import CliRunner

import rhei_pipeline as rhei
from rhei_pipeline import HTAP, Settings
from rhei_pipeline.cli.main import app
from rhei_pipeline.errors import (
    MirrorBusyError,
    MirrorError,
    QueryError,
    QueryLimitError,
    RheiError,
)
from rhei_pipeline.holder import place, wire
from rhei_pipeline.holder.client import STOOD_ASIDE, Holder, HolderGoneError
from rhei_pipeline.holder.server import _Sent
from rhei_pipeline.mirrors.locking import LockNote
from rhei_pipeline.model.query_limits import QueryLimits
from rhei_pipeline.model.streaming import Streamed
from rhei_pipeline.server.flight.server import ServerOptions
from rhei_pipeline.server.serve import Addresses, serving
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World
from tests.support.forked import output_of
from tests.support.holding import COPY, OtherProcess, holding

MakeWorld = Callable[..., World]
MakePostgres = Callable[..., PostgresWorld]

#: Minutes of work for either engine, with nothing to show before its end.
LONG = (
    "select count(*) as n from range(4000000) a, range(4000000) b where (a.range + b.range) % 7 = 3"
)
NOW = datetime.now(UTC)
MANY_TEXTS = (
    "insert into orders(id, status) with recursive n(i) as (select 10 union all"
    " select i + 1 from n where i < 300000) select i, 'much text to send ' || i from n",
)
TEXTS = "select id, status from orders where status > 'a'"


def until(holds: Callable[[], bool]) -> None:
    """Wait until a condition holds; fail after far longer than it may take."""
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def patient(settings: Settings, **sections: Any) -> Settings:
    """Return the same declaration, with a wait that no load of the machine cuts short."""
    mirror = {
        **settings.mirror.model_dump(),
        "lock_timeout_seconds": 60,
        **sections.pop("mirror", {}),
    }
    return Settings(**{**settings.model_dump(), "mirror": mirror, **sections})


@pytest.fixture
def temporal(make_world: MakeWorld) -> World:
    """A temporal table with a history, and a row that cannot be mirrored."""
    world = make_world(mode="temporal")
    world.run(
        "create table orders(id integer primary key, status text, amount real)",
        "insert into orders values (1, 'new', 1.5), (2, 'new', 2.5), (3, 'paid', 'much')",
    )
    world.htap.sync_now()
    world.run("update orders set status = 'sent' where id = 1")
    world.htap.sync_now()
    return world


def steady(found: object) -> object:
    """Return an answer without what depends on the moment it was asked for."""
    if isinstance(found, pa.Table):
        labels = dict(found.schema.metadata or {})
        labels.pop(b"rhei.staleness_seconds", None)
        return found.replace_schema_metadata(labels).combine_chunks().sort_by(found.schema.names[0])
    if isinstance(found, rhei.SyncReport):
        tables = {name: replace(table, as_of=None) for name, table in found.tables.items()}
        return replace(found, duration_seconds=0.0, tables=tables)
    if isinstance(found, rhei.VerifyReport):
        return replace(found, duration_seconds=0.0)
    return found


def streamed(htap: HTAP, sql: str) -> pa.Table:
    found = htap.stream(sql)
    return pa.Table.from_batches(list(found.batches), found.schema)


def changes(htap: HTAP, after: datetime | None) -> object:
    found = htap.changes("orders", after)
    assert htap.changes("orders", found.position).rows.num_rows == 0
    labels = found.rows.schema.metadata
    return steady(found.rows), labels, found.position, found.snapshot, found.updated


def streamed_changes(htap: HTAP) -> object:
    found = htap.stream_changes("orders", rows=1)
    rows = pa.Table.from_batches(list(found.batches), found.schema)
    return steady(rows), found.schema.metadata, found.position, found.snapshot


ASKED: dict[str, Callable[[HTAP], object]] = {
    "query": lambda htap: htap.query(
        "select status, count(*) as n from orders group by 1 order by 1"
    ),
    "query one row": lambda htap: htap.query("select * from orders where id = 1"),
    "query the mirror": lambda htap: htap.query(
        "select *, ? as given, ? as moment from orders order by all", (b"\x00", NOW), hint="olap"
    ),
    "query the source": lambda htap: htap.query("select id from orders", hint="oltp"),
    "stream": lambda htap: streamed(htap, "select id, status from orders order by id"),
    "as_of": lambda htap: htap.as_of("orders", NOW.replace(year=2900)),
    "known_since": lambda htap: htap.known_since("orders"),
    "dead_letters": lambda htap: htap.dead_letters(),
    "diff": lambda htap: htap.diff("orders", htap.known_since("orders"), NOW.replace(year=2900)),
    "changes": lambda htap: changes(htap, None),
    "changes since": lambda htap: changes(htap, htap.known_since("orders")),
    "stream_changes": streamed_changes,
    "sync_status": lambda htap: htap.sync_status(),
    "sync_now": lambda htap: htap.sync_now(),
    "verify": lambda htap: htap.verify(),
    "row_parity": lambda htap: htap.row_parity("orders"),
    "row_count": lambda htap: htap.row_count("orders"),
    "explain_route": lambda htap: htap.explain_route("select count(*) from orders"),
    "reads": lambda htap: (htap.reads("select 1"), htap.reads_single_rows("select 1")),
    "describe": lambda htap: htap.describe("select count(*) as n from orders"),
    "prepare": lambda htap: htap.prepare("select status from orders where id = 1"),
    "tables": lambda htap: (htap.tables(), htap.table_schemas(), htap.left_out, htap.views()),
    "broken_histories": lambda htap: htap.broken_histories("orders"),
}
REFUSED: dict[str, Callable[[HTAP], object]] = {
    "a statement": lambda htap: htap.query("selec 1"),
    "a write": lambda htap: htap.query("delete from orders"),
    "the mirror's engine": lambda htap: htap.query("select nothing from orders", hint="olap"),
    "a hint": lambda htap: htap.query("select 1", hint="both"),  # type: ignore[arg-type]
    "a table": lambda htap: htap.verify("ordrs"),
    "an instant": lambda htap: htap.as_of("orders", NOW.replace(year=1990)),
    "a file": lambda htap: htap.query("select * from '/etc/hostname'", hint="olap"),
    "no write": lambda htap: htap.query("select count(*) from orders", after="3"),
}


def refusals(htap: HTAP) -> dict[str, tuple[type[RheiError], str]]:
    found = {}
    for name, ask in REFUSED.items():
        with pytest.raises(RheiError) as error:
            ask(htap)
        # A file is named by its name alone to other processes.
        found[name] = type(error.value), str(error.value).replace("/etc/", "")
    return found


def test_every_question_is_answered_as_by_the_process_that_holds_the_mirror(
    temporal: World,
) -> None:
    own = {name: steady(ask(temporal.htap)) for name, ask in ASKED.items()}
    refused = refusals(temporal.htap)
    temporal.crash()
    with holding(temporal.settings), rhei.open(temporal.settings) as guest:
        for name, ask in ASKED.items():
            found, wanted = steady(ask(guest)), own[name]
            if isinstance(found, pa.Table):
                assert found.equals(wanted, check_metadata=True), name
            else:
                assert found == wanted, name
        assert refusals(guest) == refused
        assert not guest.holds
        assert guest.execute("insert into orders values (9, 'mine', 1)") == 1
        assert guest.query("select count(*) as n from orders")["n"].to_pylist() == [4]


@pytest.mark.long
def test_a_mirror_of_postgres_is_answered_for(make_postgres: MakePostgres) -> None:
    world = make_postgres()
    world.run("create table t(id int primary key, v numeric)", "insert into t values (1, 1.10)")
    sql = "select count(*) as n from t"
    world.htap.sync_now()
    own = world.htap.query(sql, max_staleness=60)
    world.crash()
    with holding(world.settings) as holder, rhei.open(world.settings) as guest:
        found = guest.query(sql, max_staleness=60)
        assert found.equals(own)
        assert (found.schema.metadata or {})[b"rhei.engine"] == b"olap"
        guest.execute_batch([("insert into t values (%s, %s)", (2, 2))])
        assert guest.query(sql)["n"].to_pylist() == [2]
        assert guest.verify().equal
        assert guest.initial_sync("t").rows == 2
        assert holder.process.poll() is None


def test_a_mirror_in_files_is_answered_for_and_given_away(make_world: MakeWorld) -> None:
    world = make_world(storage="parquet", mode="temporal")
    world.run("create table t(id integer primary key, v integer)", "insert into t values (1, 1)")
    settings = patient(world.settings)
    with holding(settings, syncing=True), rhei.open(settings) as guest:
        assert guest.query("select v from t", hint="olap")["v"].to_pylist() == [1]
        assert guest.maintain().done
        world.run("update t set v = 2")
        until(lambda: guest.sync_status().tables["t"].lag_events == 0)
        assert len(guest.query("select v from t", hint="olap")) == 2
        assert not guest.holds


@pytest.mark.parametrize("storage", [None, "ipc"])
def test_a_mirror_is_maintained_beside_a_long_query_of_the_holder(
    make_world: MakeWorld, storage: str | None
) -> None:
    world = make_world(storage=storage, mode="temporal")
    world.run("create table t(id integer primary key, v integer)")
    world.run(
        "insert into t with recursive n(i) as (select 1 union all select i + 1 from n"
        " where i < 5000) select i, i from n"
    )
    world.htap.sync_now()
    world.run("update t set v = 2 where id = 1")
    world.htap.sync_now()
    world.crash()
    slow = "select count(*) from t a cross join t b cross join t c where a.v + b.v + c.v = 7"
    ask = (
        "import sys, rhei_pipeline as rhei; from rhei_pipeline import Settings;"
        "htap = rhei.open(Settings.model_validate_json(sys.argv[1])); print('ready', flush=True);"
        f"htap.query({slow!r}, hint='olap')"
    )
    settings = patient(world.settings)
    with OtherProcess(ask, settings.model_dump_json()) as holder, rhei.open(settings) as guest:
        report = guest.maintain()
        assert report.done
        assert guest.sync_now().tables["t"].watermark
        assert holder.process.poll() is None
        assert not guest.holds


@pytest.mark.long
def test_the_holder_steps_aside_for_what_needs_the_mirror_and_goes_on(temporal: World) -> None:
    settings = patient(temporal.settings)
    temporal.run("update orders set amount = 3 where id = 3")
    temporal.crash()
    needing: list[Callable[[HTAP], object]] = [
        lambda htap: htap.replay_dead_letters(),
        lambda htap: htap.initial_sync("orders"),
        lambda htap: htap.initial_sync_all(),
        lambda htap: htap.repair("orders"),
        lambda htap: htap.snapshot("orders", {datetime.now(UTC).date(): datetime.now(UTC)}),
        lambda htap: htap.register_table("orders"),
        lambda htap: htap.add_column("orders", "note", pa.string()),
        lambda htap: htap.drop_column("orders", "note"),
        lambda htap: htap.drop_table("orders", keep_as="former"),
    ]
    with holding(settings, syncing=True) as holder, rhei.open(settings) as guest:
        for number, work in enumerate(needing):
            work(guest)
            assert not guest.holds
            temporal.run(f"insert into orders(id, status) values ({100 + number}, 'after')")
            sql = f"select 1 from orders where id = {100 + number}"
            until(lambda: _has_row(guest, sql))  # noqa: B023
        assert guest.sync_status().running
        assert guest.verify().equal
        assert holder.end() == 0


def _has_row(htap: HTAP, sql: str) -> bool:
    try:
        return len(htap.query(sql, hint="olap").to_pylist()) == 1
    except QueryError:  # the table is copied again
        return False


def test_a_holder_killed_under_a_question_is_succeeded(temporal: World) -> None:
    temporal.crash()
    settings = patient(temporal.settings)
    with holding(settings) as holder, rhei.open(settings) as guest:
        assert guest.row_count("orders") == 2
        holder.stop()
        found: list[object] = []
        asking = threading.Thread(target=lambda: found.append(guest.row_count("orders")))
        asking.start()
        time.sleep(0.1)  # stopped, it cannot answer, however long this is
        holder.kill()
        asking.join(60)
        assert found == [2]
        assert guest.holds


@pytest.mark.long
def test_a_stream_of_a_holder_that_is_killed_ends_in_an_error(temporal: World) -> None:
    temporal.crash()
    temporal.run(*MANY_TEXTS)
    settings = patient(temporal.settings)
    with holding(settings) as holder, rhei.open(settings) as guest:
        answer = guest.stream(TEXTS, rows=1000)
        next(answer.batches)
        holder.kill()
        with pytest.raises(MirrorBusyError, match="ended before its answer was whole"):
            list(answer.batches)
        assert guest.query("select count(*) as n from orders")["n"][0].as_py() == 299_994


@pytest.mark.long
def test_a_stream_of_a_holder_that_ends_is_not_called_cancelled(temporal: World) -> None:
    temporal.crash()
    temporal.run(*MANY_TEXTS)
    settings = patient(temporal.settings)
    with holding(settings) as holder, rhei.open(settings) as guest:
        answer = guest.stream(TEXTS, rows=1000)
        next(answer.batches)
        assert holder.end() == 0
        with pytest.raises(MirrorBusyError, match="ended before its answer was whole"):
            list(answer.batches)
        cancelled = guest.stream(TEXTS, rows=1000)
        next(cancelled.batches)
        cancelled.cancel()
        with pytest.raises(QueryError, match="the query was cancelled"):
            list(cancelled.batches)


@pytest.mark.parametrize("is_closing", [True, False])
def test_what_a_closed_mirror_says_within_a_stream_is_not_sent_on(*, is_closing: bool) -> None:
    """Its asker is to ask elsewhere: only what fails while the process stays is told as it is."""

    def batches() -> Iterator[pa.RecordBatch]:
        raise MirrorError("the mirror is closed")
        yield  # so that it is raised as the first batch is taken

    closing = threading.Event()
    if is_closing:
        closing.set()
    streamed = Streamed(pa.schema([]), batches(), lambda: None)
    with pytest.raises(flight.FlightServerError) as raised:
        next(_Sent(streamed, lambda: False, closing, 60))
    assert (raised.value.extra_info == STOOD_ASIDE) is is_closing


def test_a_stream_whose_asker_goes_while_its_rows_are_made_is_ended() -> None:
    heard, gone = threading.Event(), threading.Event()

    def batches() -> Iterator[pa.RecordBatch]:
        gone.set()
        assert heard.wait(30)
        raise QueryError("the engine was interrupted")
        yield  # so that it works as the first batch is taken

    sent = _Sent(Streamed(pa.schema([]), batches(), heard.set), gone.is_set, threading.Event(), 60)
    with ThreadPoolExecutor(1) as pool:
        taking = pool.submit(next, sent)
        assert gone.wait(30)
        sent.look()
        with pytest.raises(flight.FlightError):
            taking.result(30)
        assert heard.is_set()
    sent.look()  # there is no call to ask any more


@pytest.mark.long
def test_a_stream_that_is_taken_too_slowly_says_so(temporal: World) -> None:
    temporal.crash()
    temporal.run(*MANY_TEXTS)
    quick = patient(temporal.settings, queries={"query_seconds": 2.0})
    with holding(quick), rhei.open(patient(temporal.settings)) as guest:
        guest.sync_now()
        answer = guest.stream(TEXTS, rows=1000)
        next(answer.batches)
        time.sleep(4)  # far longer than the answer may take
        with pytest.raises(QueryLimitError, match=r"longer than 2 s"):
            list(answer.batches)


class _Ended(flight.FlightServerBase):  # type: ignore[misc]
    """Cancels all that it is asked, as a server does at its end."""

    def do_get(self, _context: flight.ServerCallContext, _ticket: flight.Ticket) -> None:
        raise flight.FlightCancelledError("the server ends")

    def do_action(self, _context: flight.ServerCallContext, _action: flight.Action) -> None:
        raise flight.FlightCancelledError("the server ends")


@pytest.mark.parametrize("ask", ["sync_now", "as_of", "step_aside"])
def test_what_nobody_cancelled_is_asked_again_elsewhere(ask: str) -> None:
    # Of this user alone, and short enough for a socket.
    with TemporaryDirectory() as directory, _Ended(f"grpc+unix://{directory}/x") as server:
        asker = Holder(LockNote(1, socket=f"{directory}/x"), QueryLimits(), lambda *_: None)
        with closing(asker), pytest.raises(HolderGoneError):
            getattr(asker, ask)(*(["t", NOW] if ask == "as_of" else []))
        server.shutdown()


@pytest.mark.parametrize("killed", ["the other", "the holder", "both"])
def test_whoever_is_killed_while_the_holder_stands_aside_is_not_waited_for(
    temporal: World, killed: str
) -> None:
    temporal.crash()
    settings = patient(temporal.settings)
    with holding(settings, syncing=True) as holder:
        with OtherProcess(COPY, settings.model_dump_json(), "orders") as other:
            with rhei.open(settings) as guest:
                assert guest.query("select 1 from orders", hint="olap").num_rows == 3
            if killed != "the other":
                holder.kill()
            if killed == "the holder":
                assert other.end() == 0
            else:
                other.kill()
        temporal.run("update orders set status = 'later'")
        with rhei.open(settings) as guest:
            if killed == "the other":
                until(lambda: guest.sync_status().tables["orders"].lag_events == 0)
                assert guest.sync_status().running
            assert guest.verify().tables["orders"].rows == 3
            assert guest.holds == (killed != "the other")


@pytest.mark.long
def test_ctrl_c_and_a_killed_asker_end_the_query_in_the_holder(
    temporal: World, tmp_path: Path
) -> None:
    temporal.crash()
    settings = patient(temporal.settings)
    ask = "import signal, sys, rhei_pipeline as rhei; from rhei_pipeline import Settings;"
    # A process that was started in the background has the signal ignored.
    ask += "signal.signal(signal.SIGINT, signal.default_int_handler);"
    ask += (
        "htap = rhei.open(Settings.model_validate_json(sys.argv[1])); print('ready', flush=True);"
    )
    ask += f"htap.query({LONG!r}, hint='olap')"
    with holding(settings), rhei.open(settings) as guest:
        for number in (signal.SIGINT, signal.SIGKILL):
            with OtherProcess(ask, settings.model_dump_json()) as asker:
                time.sleep(0.5)  # the query may be under way by now, or not yet
                asker.process.send_signal(number)
                asker.process.wait(30)
            # The holder steps aside only when nothing is under way.
            guest.repair("orders")


@pytest.mark.long
@pytest.mark.parametrize("ask", ["query", "stream"])
def test_an_asker_that_stands_still_keeps_nobody(temporal: World, ask: str) -> None:
    temporal.crash()
    settings = patient(temporal.settings)
    many = "select range as n from range(3000000)"
    code = (
        "import sys, pyarrow.flight as flight; from rhei_pipeline.holder import wire;"
        "from rhei_pipeline.query.freshness import Demand;"
        "client = flight.FlightClient('grpc+unix://' + sys.argv[1]);"
        f"query = ['1', 'query', {many!r}, [], 'olap', Demand()];"
        f"stream = ['1', 'stream', {TEXTS!r}, [], 1000, None];"
        f"reader = client.do_get(flight.Ticket(wire.pack({ask})));"
        "reader.read_chunk(); print('ready', flush=True); sys.stdin.read()"
    )
    temporal.run(*MANY_TEXTS)
    with holding(settings, syncing=True) as holder:
        note = LockNote.read(temporal.directory / "mirror.duckdb.lock")
        assert note is not None
        with OtherProcess(code, str(note.socket)) as still:
            still.stop()
            if ask == "query":  # its answer needs the mirror no more
                with rhei.open(settings) as guest:
                    guest.repair("orders")
            assert holder.end() == 0


@pytest.mark.long
def test_limits_hold_across(temporal: World) -> None:
    temporal.crash()
    with holding(patient(temporal.settings)) as holder:
        quick = patient(temporal.settings, queries={"query_seconds": 0.5})
        with rhei.open(quick) as guest, pytest.raises(QueryLimitError, match=r"longer than 0\.5 s"):
            guest.query(LONG, hint="olap")
        small = patient(temporal.settings, queries={"query_bytes": 2**20})
        many = "select range as n from range(1000000)"
        with rhei.open(small) as guest, pytest.raises(QueryLimitError, match="more than 1,048,576"):
            guest.query(many, hint="olap")
        assert holder.end() == 0
    with holding(quick), rhei.open(patient(temporal.settings)) as guest:
        with pytest.raises(QueryLimitError, match=r"longer than 0\.5 s"):
            guest.query(LONG, hint="olap")
        guest.repair("orders")


@pytest.fixture
def near() -> Iterator[World]:
    """A mirror whose path is short enough for a socket beside it."""
    with TemporaryDirectory() as directory:
        world = World(Path(directory), mode="temporal")
        world.run("create table orders(id integer primary key)")
        world.htap.sync_now()
        world.crash()
        yield world
        world.close()


def test_a_socket_of_the_dead_is_removed_and_only_the_user_may_enter(near: World) -> None:
    folder, settings = near.directory / ".rhei", patient(near.settings)
    with holding(settings) as holder:
        (left,) = folder.iterdir()
        assert folder.stat().st_mode & 0o777 == 0o700
        holder.kill()
    assert left.exists()
    with rhei.open(settings) as htap:
        assert htap.holds
        (mine,) = folder.iterdir()
        assert mine != left
    assert not list(folder.iterdir())


@pytest.mark.long
def test_a_folder_that_others_can_enter_is_not_used(near: World) -> None:
    folder, lock = near.directory / ".rhei", near.directory / "mirror.duckdb.lock"
    folder.chmod(0o755)
    with rhei.open(near.settings) as htap:
        note = LockNote.read(lock)
        assert htap.holds
        assert note is not None
        assert note.socket is not None
        assert folder not in Path(note.socket).parents
        assert place.is_private(Path(note.socket).parent)
    with OtherProcess(
        "import fcntl, sys; held = open(sys.argv[1], 'r+'); fcntl.flock(held, fcntl.LOCK_EX);"
        "print('ready', flush=True); sys.stdin.read()",
        str(lock),
    ):
        told = replace(note, pid=1, socket=str(folder / "x"))
        lock.write_text(told.text().decode())
        with pytest.raises(MirrorBusyError, match="not in a folder that only this user can enter"):
            rhei.open(near.settings)
        folder.chmod(0o700)
        if os.geteuid() == 0:
            os.chown(folder, 65534, -1)
            with pytest.raises(MirrorBusyError, match=r"process 1 .*not in a folder"):
                rhei.open(near.settings)
            os.chown(folder, 0, -1)


def test_a_long_path_of_a_mirror_has_a_short_socket(make_world: MakeWorld, tmp_path: Path) -> None:
    world = make_world(mirror_path=str(tmp_path / ("long" * 20) / ("path" * 20) / "mirror.duckdb"))
    world.run("create table t(id integer primary key)", "insert into t values (1)")
    with holding(world.settings), rhei.open(world.settings) as guest:
        assert guest.row_count("t") == 1
        assert not guest.holds


@pytest.mark.parametrize("name", ["my files", "50%", "größe"])
def test_any_path_of_a_mirror_has_a_socket_that_can_be_asked(name: str) -> None:
    with TemporaryDirectory() as directory:  # short, so that a socket could be beside the mirror
        world = World(Path(directory) / name)
        world.run("create table t(id integer primary key)", "insert into t values (1)")
        with holding(world.settings), rhei.open(world.settings) as guest:
            assert guest.row_count("t") == 1
            assert not guest.holds
        world.close()


def test_who_asks_from_time_to_time_holds_nothing_in_between(temporal: World) -> None:
    temporal.crash()
    with rhei.open(temporal.settings, hold=False) as shell:
        assert shell.row_count("orders") == 2
        assert not shell.holds
        assert streamed(shell, "select id from orders").num_rows == 3
        code = "import duckdb, sys; duckdb.connect(sys.argv[1])"
        mirror = str(temporal.settings.mirror.path)
        output_of(code, mirror)


@pytest.mark.long
def test_nobody_waits_in_silence(temporal: World, caplog: pytest.LogCaptureFixture) -> None:
    temporal.crash()
    mirror = {"mirror": {"lock_timeout_seconds": 1.5}}
    code = (
        "import duckdb, sys; held = duckdb.connect(sys.argv[1]);"
        "print('in', flush=True); sys.stdin.read()"
    )
    with OtherProcess(code, str(temporal.settings.mirror.path)) as stranger:
        with pytest.raises(MirrorBusyError, match="held by another process"):
            rhei.open(patient(temporal.settings, **mirror))
        assert f"held by another process: {stranger.process.pid}" in caplog.text
    caplog.clear()
    code = (
        "import sys; from rhei_pipeline.mirrors.duckdb.mirror import DuckDBMirror;"
        "held = DuckDBMirror(sys.argv[1]); print('in', flush=True); sys.stdin.read()"
    )
    with OtherProcess(code, str(temporal.settings.mirror.path)) as silent:
        with pytest.raises(MirrorBusyError, match=rf"process {silent.process.pid} .*since 20"):
            rhei.open(patient(temporal.settings, **mirror))
        assert f"waiting: mirror {str(temporal.settings.mirror.path)!r} is held" in caplog.text
        assert f"process {silent.process.pid} " in caplog.text


def test_the_one_that_syncs_holds_the_mirror_and_another_follows_it(temporal: World) -> None:
    temporal.crash()
    settings = patient(temporal.settings)
    with holding(settings) as idle, rhei.open(settings) as session:
        session.start_sync(0.02)
        until(lambda: session.holds)
        session.stop_sync()
        assert idle.end() == 0
    with holding(settings, syncing=True) as holder, rhei.open(settings) as session:
        background = session.start_sync(0.02)
        session.sync_status()
        until(lambda: session._access._followed is not None)
        temporal.run("update orders set status = 'seen' where id = 2")
        reports: list[rhei.SyncReport] = []

        def reported() -> bool:
            reports.extend(background.take_reports())
            return bool(reports)

        until(reported)
        assert sum(report.updated for report in reports) == 1
        assert not session.holds
        assert session.sync_status().running
        holder.kill()
        until(lambda: session.holds)
        temporal.run("update orders set status = 'alone' where id = 2")
        until(lambda: bool(background.take_reports()))


def test_a_server_beside_a_session_passes_on_what_it_is_asked(temporal: World) -> None:
    import adbc_driver_flightsql.dbapi as flight_sql  # noqa: PLC0415

    temporal.crash()
    settings = patient(temporal.settings)
    with holding(settings, syncing=True), rhei.open(settings) as proxy:
        options = ServerOptions()
        with serving(proxy, Addresses(port=0), options) as (port, _):
            address = f"grpc://127.0.0.1:{port}"
            with (
                flight_sql.connect(address, autocommit=True) as connection,
                closing(connection.cursor()) as cursor,
            ):
                cursor.execute("select count(*) as n from orders where id > ?", (0,))
                assert cursor.fetchall() == [(3,)]
                assert not proxy.holds
                with pytest.raises(Exception, match="SELEC is not a reading statement"):
                    cursor.execute("selec 1")


def test_what_does_not_travel_is_refused_and_goes_as_a_text(temporal: World) -> None:
    temporal.crash()
    sql = "select count(*) as n from orders where status = ?"
    with holding(temporal.settings), rhei.open(temporal.settings) as guest:
        with pytest.raises(QueryError, match=r"cannot be sent .*\(pass it as a number"):
            guest.query(sql, (Path("sent"),))
        assert guest.query(sql, (str(Path("sent")),))["n"].to_pylist() == [1]


@pytest.mark.long
def test_a_holder_of_another_version_is_named_and_restarted(temporal: World) -> None:
    temporal.crash()
    settings = patient(temporal.settings)
    with holding(settings) as other:
        note = LockNote.read(temporal.directory / "mirror.duckdb.lock")
        assert note is not None
        with closing(Holder(note, QueryLimits(), lambda *_: None)) as holder:
            for name in ("nothing", "close", "engine"):
                with pytest.raises(MirrorError, match=f"does not answer {name!r} .*restart it"):
                    holder._call(name)
            with pytest.raises(MirrorError, match="speaks another language"):
                wire.unpack(b'{"$": "nothing"}')
        assert other.end() == 0
    with holding(settings), rhei.open(settings) as guest:
        assert guest.row_count("orders") == 2


@pytest.mark.long
def test_adopting_has_the_holder_step_aside(temporal: World, tmp_path: Path) -> None:
    temporal.crash()
    settings = patient(temporal.settings)
    config = tmp_path / "pipeline.yaml"
    config.write_text(yaml.safe_dump(settings.model_dump(mode="json", exclude_none=True)))
    with holding(settings, syncing=True) as holder, rhei.open(settings) as guest:
        done = CliRunner().invoke(app, ["adopt", "--config", str(config)])
        assert done.exit_code == 0, done.output
        temporal.run("update orders set status = 'later' where id = 2")
        until(lambda: guest.sync_status().tables["orders"].lag_events == 0)
        assert holder.end() == 0


def test_a_holder_answers_no_declaration_of_another_source(temporal: World) -> None:
    temporal.crash()
    other = temporal.directory / "other.db"
    with closing(sqlite3.connect(other)) as made:
        made.execute("create table orders(id integer primary key)")
    form = temporal.settings.model_dump()
    with holding(temporal.settings):
        with pytest.raises(MirrorError, match="give this pipeline a"):
            rhei.open(Settings(**{**form, "source": {"path": other}}))
        spelled = temporal.directory / ".." / temporal.directory.name / "app.db"
        with rhei.open(Settings(**{**form, "source": {"path": spelled}})) as guest:
            assert guest.row_count("orders") == 2
            assert not guest.holds
