"""How sessions end, and when they do not: in this process, on real databases."""

import math
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import FrameType

import dagster as dg
import psycopg
import pytest
from dagster._core.execution.plan.instance_concurrency_context import _calculate_timeout_interval

import rhei_pipeline as rhei
from rhei_pipeline import HTAP, Settings
from rhei_pipeline.dagster import build_definitions
from rhei_pipeline.dagster.relay import LEFT_BEHIND, seconds_to_next_claim
from rhei_pipeline.dagster.session import ReportWindow, Session
from tests.support.dagster_shop import Shop


def settings_of(tmp_path: Path, source: dict[str, object], **schedule: object) -> Settings:
    return Settings(
        source=source,
        mirror={"path": tmp_path / "mirror.duckdb"},
        registry={"path": tmp_path / "registry.json"},
        sync={"interval_seconds": 0.02},
        tables=[{"name": "orders"}, {"name": "items"}],
        schedule={"catalog_seconds": 60, **schedule},
    )


def session(
    settings: Settings, instance: dg.DagsterInstance
) -> tuple[dg.ExecuteInProcessResult, list[str]]:
    """Run a session until it ends by itself; return what it logged, too."""
    job = build_definitions(settings).resolve_job_def("sync")
    result = job.execute_in_process(instance=instance, raise_on_error=False)
    return result, [entry.message for entry in instance.all_logs(result.run_id)]


def test_a_process_that_is_told_to_stop_reports_all_and_its_run_is_not_red(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(sqlite3.connect(tmp_path / "app.db")) as app:
        app.executescript(
            "create table orders(id integer primary key);create table items(id integer primary key)"
        )
    settings = settings_of(tmp_path, {"path": tmp_path / "app.db"}, report_seconds=3600)
    unheard = list[int]()

    def note(number: int, _frame: FrameType | None) -> None:
        unheard.append(number)  # rather than end the tests

    # It is to end at once: what is pending is left to the next one.
    monkeypatch.setattr(Session, "sync_now", lambda _: unheard.append(0))
    before = signal.signal(signal.SIGTERM, note)
    stopping = threading.Thread(target=stop_once_applied, args=(settings,))
    stopping.start()
    try:
        with dg.instance_for_test() as instance:
            result, logged = session(settings, instance)
    finally:
        stopping.join()
        signal.signal(signal.SIGTERM, before)
    assert not unheard
    assert result.success
    assert "the session was told to end" in logged
    told = {
        event.asset_key.path[-1]: event.materialization.metadata["dagster/row_count"].value
        for event in result.get_asset_materialization_events()
        if event.asset_key and event.asset_key.path[0] == "mirror"
    }
    assert told == {"orders": 1, "items": 0}
    with HTAP(settings) as htap:  # the mirror is given back
        assert htap.holds


@pytest.mark.parametrize("at_once", [False, True])
def test_a_session_that_is_terminated_stays_canceled(
    shop: Shop, tmp_path: Path, *, at_once: bool
) -> None:
    """The page's box "force termination immediately" marks the run before its process has ended."""
    shop.write("drop table orders", "create table orders(id integer primary key)")
    source: dict[str, object] = {"path": tmp_path / "app.db"}
    declared, instance = settings_of(tmp_path, source, idle_seconds=30), shop.instance

    def terminate() -> None:
        (run,) = instance.get_runs()
        instance.report_run_canceling(run)
        if at_once:
            instance.report_run_canceled(run)

    stopping = threading.Thread(target=stop_once_applied, args=(declared, terminate))
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    stopping.start()
    try:
        result, logged = session(declared, instance)
    finally:
        stopping.join()
        signal.signal(signal.SIGTERM, before)
    assert "the session was told to end" in logged
    (run,) = instance.get_runs()
    assert run.status is dg.DagsterRunStatus.CANCELED
    assert not result.success


def stop_once_applied(settings: Settings, terminate: Callable[[], None] = lambda: None) -> None:
    """Write a row, and once a session has applied it, send this process a SIGTERM."""
    file, until = settings.sqlite_path, time.monotonic() + 60
    with closing(sqlite3.connect(file, timeout=30)) as app:
        with app:
            app.execute("insert into orders values (1)")
        while time.monotonic() < until:
            try:
                if app.execute("select 1 from _rhei_consumer where tbl = 'orders'").fetchone():
                    break
            except sqlite3.OperationalError:
                pass
            time.sleep(0.02)
    terminate()
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.long
def test_a_session_stays_while_a_server_tells_only_that_something_is_pending(
    dsn: str, tmp_path: Path
) -> None:
    """Of the log nobody could tell that what is pending is that of a table that is left out."""
    settings = settings_of(
        tmp_path,
        {"kind": "postgres", "dsn": dsn},
        idle_seconds=0.1,
        session_seconds=0.5,
    )
    with psycopg.connect(dsn, autocommit=True) as app:
        app.execute("create table orders(id int primary key)")
        app.execute("create table items(id int primary key)")
        with rhei.open(settings) as htap:
            htap.sync_now()
        before = build_definitions(settings)
        app.execute("insert into items values (1)")
        app.execute("drop table items")
        with dg.instance_for_test() as instance:
            job = before.resolve_job_def("sync")
            result = job.execute_in_process(instance=instance)
            logged = [entry.message for entry in instance.all_logs(result.run_id)]
            assert "the session ends: no other session has come to take over" in logged
            instance.add_run_tags(result.run_id, {LEFT_BEHIND: "1"})
            app.execute("insert into orders values (1)")
            asked = Shop(settings, instance).tick(repository=before.get_repository_def())
            assert isinstance(asked, dg.RunRequest)  # it is another change that is pending
            app.execute("create table items(id int primary key)")
            _, logged = session(settings, instance)
            assert "the session ends: nothing has changed for a while" in logged


@pytest.mark.long
@pytest.mark.parametrize(
    ("fault", "is_held"),
    [
        (
            "alter table items drop constraint items_pkey; alter table items replica identity full",
            True,
        ),
        ("alter table items add column _rhei_x int", True),
        ("comment on table items is 'as it was'", False),
    ],
)
def test_a_run_for_each_batch_stays_where_it_would_be_opened_again_for_ever(
    dsn: str, tmp_path: Path, *, fault: str, is_held: bool
) -> None:
    """The server keeps its log for a table that is left out, so something is always pending."""
    settings = settings_of(
        tmp_path, {"kind": "postgres", "dsn": dsn}, mode="run", session_seconds=1.0
    )
    with psycopg.connect(dsn, autocommit=True) as app, dg.instance_for_test() as instance:
        app.execute("create table orders(id int primary key)")
        app.execute("create table items(id int primary key)")
        app.execute("insert into items values (1)")
        session(settings, instance)
        app.execute(fault.encode())
        for number in range(2):  # what was logged with the fault is read
            app.execute("update items set id = id + 1")
            app.execute("insert into orders values (%s)", [number])
            _, logged = session(settings, instance)
        told = "no other session has come to take over" if is_held else "pending is applied"
        assert any(text.startswith("the session ends") and told in text for text in logged)
        asked = Shop(settings, instance).tick(
            repository=build_definitions(settings).get_repository_def()
        )
        assert isinstance(asked, dg.RunRequest) is is_held  # so one that ended was opened again


def test_what_the_engine_did_since_a_sessions_last_look_is_reported(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "app.db")) as app:
        app.executescript(
            "create table orders(id integer primary key);"
            "create table items(id integer primary key);"
            "insert into orders values (1), (2)"
        )
    settings = settings_of(tmp_path, {"path": tmp_path / "app.db"})
    with HTAP(settings) as htap:
        looked = Session(htap, htap.table_schemas(), report_seconds=60, idle_seconds=60)
        looked.background = htap.start_sync()
        until = time.monotonic() + 60
        while not (htap.sync_status().tables["orders"].watermark or 0) > 0:
            assert time.monotonic() < until
            time.sleep(0.01)
        looked.active_at = -math.inf
        looked.sync_now()
    window = looked.windows["orders"]
    assert looked.copies["orders"].copied_rows == window.rows == 2
    assert (window.lags, window.longest_sync) == ([], 0.0)  # of a copy, that would be no lag
    assert not looked.idle
    assert list(looked.take_copies()) == ["orders"]
    assert not looked.take_copies()


def test_a_report_is_followed_by_the_next_in_time_and_tables_have_their_turns(
    tmp_path: Path,
) -> None:
    with closing(sqlite3.connect(tmp_path / "app.db")) as app:
        app.executescript(
            "create table orders(id integer primary key);create table items(id integer primary key)"
        )
    settings = settings_of(tmp_path, {"path": tmp_path / "app.db"})
    with HTAP(settings) as htap:
        looked = Session(htap, {}, report_seconds=60, idle_seconds=60, report_at=0.0)
        assert looked.due
        looked.status()
        assert not looked.due
        turns = list[set[str]]()
        for _ in range(3):
            looked.windows |= {name: ReportWindow() for name in "abc"}
            turns.append(set(looked.take_windows(2)))
    assert turns[0] | turns[1] == turns[1] | turns[2] == {*"abc"}


def test_a_session_fails_where_trying_again_cures_nothing(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "app.db")) as app:
        app.executescript(
            "create table orders(id integer primary key);create table items(id integer primary key)"
        )
        settings = settings_of(tmp_path, {"path": tmp_path / "app.db"})
        with HTAP(settings) as htap:
            htap.sync_now()
            looked = Session(htap, htap.table_schemas(), report_seconds=60, idle_seconds=60)
            looked.collect()
            Path(settings.mirror.path).unlink()
            app.execute("insert into orders values (1)")
            app.commit()
            until = time.monotonic() + 60
            with pytest.raises(dg.Failure, match="deleted") as failed:
                while time.monotonic() < until:
                    looked.collect()
                    time.sleep(0.01)
    assert not failed.value.allow_retries


def test_a_session_ends_when_the_one_that_waits_asks_again() -> None:
    """Dagster's own rule says when a step that waits in a pool asks again."""
    claims, at = [0.0], 0.0
    while at < 400:
        at += _calculate_timeout_interval(None, len(claims) - 1)
        claims.append(at)
    for waited in (0.0, 0.3, 1.0, 1.7, 9.0, 44.4, 170.0, 300.0):
        expected = min(claim for claim in claims if claim >= waited)
        assert waited + seconds_to_next_claim(waited) == pytest.approx(expected)
