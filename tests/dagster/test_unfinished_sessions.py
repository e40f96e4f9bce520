"""What a session leaves undone is done by the next one, however it ended: the sensor opens it."""

import json
import os
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import dagster as dg
import pytest

import rhei_pipeline as rhei
from rhei_pipeline import HTAP, Settings
from rhei_pipeline.errors import SourceError
from rhei_pipeline.settings.sections import TableSettings
from rhei_pipeline.sync.pipeline import Pipeline
from tests.support import forked
from tests.support.dagster_shop import Shop

#: Runs a session, and is killed at the n-th time that it comes to a step.
_KILLED = """
import json, os, signal, sys
from functools import partial
import dagster as dg
from rhei_pipeline import HTAP, Settings
from rhei_pipeline.dagster import build_definitions, mirrors, resources

declared, home, step, left = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])

def on_step(at):
    global left
    left -= at == step
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

resources.HTAP = partial(HTAP, on_step=on_step)
mirrors.LOOK_SECONDS = 0.05
with dg.DagsterInstance.from_config(home) as instance:
    job = build_definitions(Settings(**declared)).resolve_job_def("sync")
    job.execute_in_process(instance=instance)
"""
_COPY_STEPS = ("copy_begun", "copy_batch", "copy_complete", "promoted")
_CYCLE_STEPS = ("snapshot", "captured", "applied", "recorded", "committed", "acknowledged")
#: In a copy of which a part is stored, and in a cycle of which the source does not know the end.
_OFTEN = [("copy_batch", 2), ("committed", 1)]
_EVERY = [
    *((step, nth) for step in _COPY_STEPS for nth in (1, 2)),
    *((step, 1) for step in _CYCLE_STEPS),
]


def killed(shop: Shop, step: str, nth: int = 1) -> bool:
    """Run a session that is killed at a step; return whether it was, once Dagster has noticed."""
    declared = json.dumps(shop.settings.model_dump(mode="json", exclude_unset=True))
    done = forked.run(_KILLED, declared, shop.instance.root_directory, step, str(nth))
    for run in shop.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])):
        shop.instance.report_run_failed(run)
        shop.instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
    assert done.returncode in (0, -9), done.stderr
    return done.returncode != 0


def fail(shop: Shop, error: Exception | None = None) -> None:
    """Run a session that fails before it has done anything."""

    def failing(*_: object) -> HTAP:
        raise error or SourceError("no such server")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rhei_pipeline.dagster.resources.HTAP", failing)
        assert not shop.sync().success


def reason(shop: Shop) -> str:
    """Return why the sensor opens a session."""
    asked = shop.tick()
    assert isinstance(asked, dg.RunRequest), asked
    return asked.tags["rhei/reason"]


def assert_whole(shop: Shop) -> None:
    """The mirror has all, and the sensor says so."""
    assert "up to date" in str(shop.tick())
    with rhei.open(shop.settings) as htap:
        assert htap.verify().equal
        assert htap.broken_histories("orders").num_rows == 0


def declare_big(shop: Shop) -> None:
    """Have a table more in the source and in the declaration; nothing of it is a change."""
    shop.write("create table big(id integer primary key)", "insert into big values (1), (2)")
    tables = [*(shop.settings.tables or ()), TableSettings(name="big")]
    shop.settings = shop.settings.model_copy(update={"tables": tables})


@pytest.mark.long
@pytest.mark.parametrize(
    ("step", "nth"),
    [pytest.param(*at, marks=() if at in _OFTEN else pytest.mark.soak) for at in _EVERY],
)
def test_the_next_session_goes_on_where_one_was_killed(shop: Shop, step: str, nth: int) -> None:
    sync = shop.settings.sync.model_copy(update={"batch_rows": 1})
    shop.settings = shop.settings.model_copy(update={"sync": sync})
    in_copy = step in _COPY_STEPS
    if not in_copy:
        assert shop.sync().success
    shop.write(
        "insert into orders values (7, 'new'), (8, 'new')", "update items set amount = amount + 1"
    )
    assert killed(shop, step, nth)
    assert reason(shop)
    shop.write("update orders set status = 'sent' where id = 7", "delete from items where id = 1")
    assert shop.sync().success
    assert_whole(shop)


@pytest.mark.long
def test_a_session_that_fails_again_and_again_is_not_called_up_to_date(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shop.sync().success
    fail(shop)
    assert reason(shop) == "the last session failed"
    fail(shop)
    assert "the last sessions failed" in str(shop.tick())
    shop.write("insert into items values (3, 3)")
    assert reason(shop) == "1 change pending"
    with rhei.open(shop.settings) as htap:
        htap.sync_now()
    fail(shop)
    assert "the last sessions failed" in str(shop.tick())
    monkeypatch.setattr("rhei_pipeline.dagster.sensor.RETRY_SECONDS", 0.0)
    assert reason(shop) == "the last session failed"
    assert shop.sync().success
    assert_whole(shop)


@pytest.mark.parametrize("fault", ["damaged", "replaced", "unknown"])
def test_a_mirror_that_no_session_can_follow_is_red_until_one_can(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """The source has nothing against its tables, and nothing of it waits."""
    assert shop.sync().success
    time.sleep(1.1)  # Dagster tells by seconds whether a check is of the newest materialization
    mirror, kept = Path(shop.settings.mirror.path), shop.settings.sqlite_path.with_suffix(".kept")
    mirror.rename(kept)
    if fault != "unknown":
        mirror.write_bytes(kept.read_bytes()[: 5_000 * (fault == "damaged")] + os.urandom(8_000))
    why = "is damaged" if fault == "damaged" else "is not a DuckDB database"
    for _ in range(2):
        if fault == "unknown":
            why = "the last 2 sessions failed: the run says of what"
            fail(shop, RuntimeError("a fault of our own"))
        else:
            assert not shop.sync().success
    assert "the last sessions failed" in str(shop.tick())
    for table in ("orders", "items"):
        found = shop.check(table, "followed")
        assert why in str(found.description)
        assert found.metadata["failed_run"].value == shop.instance.get_runs(limit=1)[0].run_id
        assert shop.shows(table, "followed") is False
    kept.rename(mirror)
    monkeypatch.setattr("rhei_pipeline.dagster.sensor.RETRY_SECONDS", 0.0)
    assert reason(shop) == "the last session failed"
    assert shop.sync().success
    assert_whole(shop)  # the sensor has looked at the sessions again
    assert shop.failing("orders") == shop.failing("items") == set()


def test_a_table_that_is_left_out_keeps_its_own_fault_when_a_session_fails(shop: Shop) -> None:
    assert shop.sync().success
    shop.write("drop table items")
    assert shop.sync().success
    own = shop.check("items", "followed").description
    fail(shop)
    assert "no such server" in str(shop.check("orders", "followed").description)
    assert shop.check("items", "followed").description == own


def test_one_process_that_dies_turns_nothing_red(shop: Shop) -> None:
    assert shop.sync().success
    fail(shop, RuntimeError("killed"))
    assert reason(shop) == "the last session failed"
    assert shop.failing("orders") == set()


def test_nobody_knows_the_lag_while_the_source_is_away_for_more_than_a_moment(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shop.sync().success
    monkeypatch.setattr("rhei_pipeline.dagster.observing._LOOK_SECONDS", 0.0)
    repository = shop.definitions.get_repository_def()
    with closing(sqlite3.connect(shop.settings.sqlite_path)) as other:
        other.execute("pragma locking_mode = exclusive")
        other.execute("begin exclusive")
        busy = shop.settings.source.model_copy(update={"busy_timeout_seconds": 0.01})
        shop.settings = shop.settings.model_copy(update={"source": busy})
        assert "cannot be read now" in str(shop.tick(repository=repository))
        assert shop.failing("orders") == set()
        shop.tick(repository=repository, times=3)
        assert shop.failing("orders") == shop.failing("items") == {"lag"}
        found = shop.check("orders", "lag")
        assert (found.severity, "the lag is not known now" in str(found.description)) == (
            dg.AssetCheckSeverity.WARN,
            True,
        )
    assert "up to date" in str(shop.tick(repository=repository))
    assert shop.failing("orders") == shop.failing("items") == set()


@pytest.mark.long
def test_sessions_that_fail_whatever_is_done_are_opened_less_and_less_often(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shop.sync().success
    shop.write("insert into items values (3, 3)")
    for _ in range(4):
        assert reason(shop) == "1 change pending"
        fail(shop)
    assert "the last 4 sessions failed: the next one is opened 30 seconds" in str(shop.tick())
    began = time.time()
    monkeypatch.setattr("rhei_pipeline.dagster.sensor.time.time", lambda: began + 31)
    assert reason(shop) == "1 change pending"
    for _ in range(6):
        fail(shop)
    assert "is opened 300 seconds after" in str(shop.tick())
    monkeypatch.setattr("rhei_pipeline.dagster.sensor.time.time", lambda: began + 400)
    assert shop.sync().success
    shop.write("insert into items values (4, 4)")
    fail(shop)
    assert reason(shop) == "1 change pending"
    assert shop.sync().success
    assert_whole(shop)


@pytest.mark.long
def test_a_declaration_that_is_corrected_is_tried_at_once(shop: Shop, tmp_path: Path) -> None:
    """Whether it was reloaded while it was wrong, or could not be: each run reads the file anew."""
    file = tmp_path / "pipeline.yaml"
    whole = (
        "source: {path: app.db}\nmirror: {path: mirror.duckdb}\nregistry: {path: registry.json}\n"
        "tables: [{name: orders, mode: temporal}, {name: items}]\nschedule: {idle_seconds: 0.2}\n"
    )
    wrong = whole.replace("mirror.duckdb", "damaged.duckdb")
    (tmp_path / "damaged.duckdb").write_text("no database")

    def declare(text: str, *, is_reloaded: bool) -> None:
        file.write_text(text)
        if is_reloaded:
            shop.settings = Settings.load(file)

    def run() -> bool:
        asked, loaded = shop.tick(), shop.settings
        assert isinstance(asked, dg.RunRequest), asked
        shop.settings = Settings.load(file)
        succeeded = shop.sync(asked.tags).success
        shop.settings = loaded
        return succeeded

    declare(whole, is_reloaded=True)
    assert run()
    for is_reloaded in (True, False):
        shop.write("insert into items(amount) values (3)")
        declare(wrong, is_reloaded=is_reloaded)
        assert not any(run() for _ in range(4))
        assert "the last 4 sessions failed" in str(shop.tick())
        declare(whole, is_reloaded=is_reloaded)
        assert run()
    assert_whole(shop)


@pytest.mark.long
def test_a_table_declared_later_opens_a_session_though_nothing_has_changed(shop: Shop) -> None:
    assert shop.sync().success
    assert "up to date" in str(shop.tick())
    declare_big(shop)
    assert reason(shop) == "not known to be copied: big"
    assert shop.sync().success
    assert_whole(shop)


def test_a_table_declared_later_that_is_left_out_opens_none(shop: Shop) -> None:
    assert shop.sync().success
    before = shop.settings
    declare_big(shop)
    repository = shop.definitions.get_repository_def()
    with HTAP(before) as htap:
        htap.sync_now()  # a table that came and went might be a trigger that did
    shop.write("drop table big")
    assert "up to date" in str(shop.tick(2, repository))
    assert shop.failing("big") >= {"followed"}


@pytest.mark.long
def test_a_copy_that_begins_as_a_session_ends_is_gone_on_with(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the session reported at its end knew nothing of it."""
    assert shop.sync().success
    declare_big(shop)
    monkeypatch.setattr("rhei_pipeline.sync.pipeline.TURN_SECONDS", 0.0)
    monkeypatch.setattr("rhei_pipeline.sync.pipeline.COPYING_SHARE", 0)
    shop.settings = shop.settings.model_copy(
        update={"sync": shop.settings.sync.model_copy(update={"batch_rows": 1})}
    )
    ended, sync_round, stop_sync = threading.Event(), Pipeline.sync_round, HTAP.stop_sync

    def late(pipeline: Pipeline, **options: bool) -> object:
        ended.wait(60)
        return sync_round(pipeline, **options)

    def stop(htap: HTAP) -> None:
        ended.set()
        stop_sync(htap)

    with monkeypatch.context() as patch:
        patch.setattr("rhei_pipeline.dagster.mirrors.writer_wanted", lambda *_: True)
        patch.setattr(Pipeline, "sync_round", late)
        patch.setattr(HTAP, "stop_sync", stop)
        assert shop.sync().success
    assert reason(shop) == "the copy of big goes on"
    monkeypatch.undo()
    assert shop.sync().success
    assert_whole(shop)
