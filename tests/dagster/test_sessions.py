"""Sessions, their sensor and their checks: each in this process, on real databases."""

import sqlite3
import time
from collections.abc import Collection
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import dagster as dg
import duckdb
import psycopg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver
from dagster._core.loader import LoadingContextForTest

import rhei_pipeline as rhei
from rhei_pipeline import HTAP, Settings
from rhei_pipeline.dagster import CdcResource, Names, OltpResource
from rhei_pipeline.dagster.check_records import last_evaluations_anew
from rhei_pipeline.dagster.declaration import Declaration
from rhei_pipeline.dagster.observing import Observer
from rhei_pipeline.dagster.session import Session
from rhei_pipeline.model.standing import SourceStanding
from rhei_pipeline.settings.sections import TableSettings
from rhei_pipeline.sync import pipeline
from rhei_pipeline.wiring.standing import source_standing
from tests.support.dagster_shop import Shop
from tests.support.parts import connection_of, engine_of

STARTED = dg.DagsterRunStatus.STARTED


def declared(shop: Shop, **schedule: Any) -> None:
    """Change the schedule that is declared."""
    changed = shop.settings.schedule.model_copy(update=schedule)
    shop.settings = shop.settings.model_copy(update={"schedule": changed})


@pytest.mark.long
def test_a_table_that_is_left_out_turns_red_and_green_again(shop: Shop) -> None:
    assert shop.sync().success
    assert shop.failing("items") == shop.failing("orders") == set()
    assert shop.check("items", "row_parity", "initial_sync").passed
    shop.write("drop table items", "insert into orders values (2, 'new')")
    assert shop.sync().success
    assert shop.failing("items") == {"followed", "lag"}
    assert "items" in str(shop.check("items", "followed").description)
    assert shop.failing("orders") == set()
    shop.write("create table items(id integer primary key, amount integer)")
    assert shop.sync().success
    assert shop.failing("items") == set()


@pytest.mark.long
def test_the_sensor_turns_red_what_no_session_looks_at_and_has_a_session_turn_it_green(
    shop: Shop,
) -> None:
    assert shop.sync().success
    shop.write("drop table items")
    assert "up to date" in str(shop.tick())
    assert shop.failing("items") == {"followed", "lag"}
    assert shop.sync().success  # which says so, too
    assert "up to date" in str(shop.tick())
    assert shop.failing("items") == {"followed", "lag"}
    assert shop.check("items", "followed").metadata["found_by"].value == "sensor"
    shop.write("create table items(id integer primary key, amount integer)")
    asked = shop.tick()
    assert isinstance(asked, dg.RunRequest)
    assert shop.sync().success
    assert shop.failing("items") == set()


@pytest.mark.long
def test_changes_of_a_table_that_is_left_out_open_no_session_again_and_again(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shop.sync().success
    shop.write("insert into items values (3, 3)", "drop table items")
    assert isinstance(shop.tick(), dg.RunRequest)
    assert shop.sync().success
    assert "left out" in str(shop.tick())
    with monkeypatch.context() as later:
        later.setattr("rhei_pipeline.dagster.sensor.RETRY_SECONDS", 0.0)
        assert isinstance(shop.tick(), dg.RunRequest)  # it may be followed again by then
    shop.write("insert into orders values (2, 'new')")
    assert isinstance(shop.tick(), dg.RunRequest)


@pytest.mark.long
def test_a_session_gives_way_in_the_middle_of_a_copy_and_the_next_one_goes_on(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shop.sync().success
    monkeypatch.setattr(pipeline, "TURN_SECONDS", 0.0)
    monkeypatch.setattr(pipeline, "COPYING_SHARE", 0)
    shop.settings = shop.settings.model_copy(
        update={
            "tables": [*(shop.settings.tables or ()), TableSettings(name="big")],
            "sync": shop.settings.sync.model_copy(update={"batch_rows": 10}),
        }
    )
    shop.write(
        "create table big(id integer primary key)",
        "with recursive n(i) as (select 1 union all select i + 1 from n where i < 20000)"
        " insert into big select i from n",
    )
    with monkeypatch.context() as waiting:
        waiting.setattr("rhei_pipeline.dagster.mirrors.writer_wanted", lambda *_: True)
        assert shop.sync().success
    with rhei.open(shop.settings) as htap:
        assert htap.sync_status().tables["big"].state == "copying"
    asked = shop.tick()
    assert isinstance(asked, dg.RunRequest)
    assert asked.tags["rhei/reason"] == "the copy of big goes on"
    monkeypatch.undo()
    shop.settings = shop.settings.model_copy(
        update={"sync": shop.settings.sync.model_copy(update={"batch_rows": 50_000})}
    )
    assert shop.sync().success
    assert "up to date" in str(shop.tick())
    with rhei.open(shop.settings) as htap:
        assert htap.verify().equal
    assert shop.check("big", "row_parity", "initial_sync").passed


def test_a_source_that_is_gone_is_red_though_no_session_runs(shop: Shop) -> None:
    assert shop.sync().success
    away = shop.settings.sqlite_path.rename(shop.settings.sqlite_path.with_suffix(".away"))
    with pytest.raises(rhei.RheiError, match="does not exist"):
        shop.tick()
    assert shop.failing("orders") == shop.failing("items") == {"followed", "lag"}
    away.rename(shop.settings.sqlite_path)
    asked = shop.tick()
    assert isinstance(asked, dg.RunRequest)
    assert asked.tags["rhei/reason"] == "a table can be followed again"
    assert shop.sync().success
    assert shop.failing("orders") == shop.failing("items") == set()
    assert "up to date" in str(shop.tick())


def test_each_check_names_what_is_wrong(shop: Shop) -> None:
    assert shop.sync().success
    before = shop.definitions
    shop.write(
        "alter table items add column note text",
        "insert into items values (3, 'many', 'no number')",
    )
    declared(shop, max_lag_seconds=1e-6)
    assert before.resolve_job_def("sync").execute_in_process(instance=shop.instance).success
    assert shop.failing("items") == {"dead_letters", "drift"}
    assert "'note' was added" in str(shop.check("items", "drift").description)
    assert "rhei dead-letters --table items" in str(shop.check("items", "dead_letters").description)
    shop.write("insert into orders values (2, 'new')")
    assert shop.sync().success
    lag = shop.check("orders", "lag")
    assert (lag.passed, lag.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert "up to date" in str(shop.tick())
    assert shop.check("orders", "lag").passed
    with closing(HTAP(shop.settings)) as htap:
        mirror = engine_of(htap).mirror
        with mirror.transaction() as transaction:
            connection_of(transaction).execute("insert into orders select * from orders")
    assert shop.sync().success
    assert "history" in shop.failing("orders")


@pytest.mark.long
def test_a_check_that_says_nothing_new_is_not_written_again(shop: Shop) -> None:
    """A session tells each check once, however often it reports."""
    declared(shop, report_seconds=0.01, idle_seconds=7)  # the first report comes after five
    assert shop.sync().success
    found = shop.instance.all_logs(
        shop.instance.get_runs(limit=1)[0].run_id,
        of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION,
    )
    told = [event.get_dagster_event().asset_check_evaluation_data for event in found]
    assert len(told) == len({evaluation.asset_check_key for evaluation in told}) == 13


def test_a_session_asks_for_the_next_and_gives_way_to_it(shop: Shop) -> None:
    assert shop.sync().success
    run = dg.DagsterRun(job_name="sync", run_id=str(uuid4()), status=STARTED)
    shop.instance.add_run(run)
    assert "is open" in str(shop.tick())
    shop.instance.add_run_tags(run.run_id, {"rhei/successor": "wanted"})
    asked = shop.tick()
    assert isinstance(asked, dg.RunRequest)
    assert asked.tags["rhei/reason"] == "handover"
    coming = dg.DagsterRun(
        job_name="sync", run_id=str(uuid4()), status=dg.DagsterRunStatus.NOT_STARTED
    )
    shop.instance.add_run(coming)
    assert "is starting" in str(shop.tick())
    shop.instance.delete_run(coming.run_id)
    shop.instance.add_run(dg.DagsterRun(job_name="sync", run_id=str(uuid4()), status=STARTED))
    assert "hands over" in str(shop.tick())


def test_a_session_gives_way_once_the_declaration_has_changed(shop: Shop) -> None:
    """A table that is declared and loaded would wait for hours, where changes never cease."""
    asked = shop.tick()
    assert isinstance(asked, dg.RunRequest)
    run = dg.DagsterRun(job_name="sync", run_id=str(uuid4()), status=STARTED, tags=asked.tags)
    shop.instance.add_run(run)
    assert "is open" in str(shop.tick())
    declared(shop, report_seconds=17.0)
    asked = shop.tick()
    assert isinstance(asked, dg.RunRequest)
    assert asked.tags["rhei/reason"] == "the declaration has changed"
    shop.instance.delete_run(run.run_id)
    after = dg.DagsterRun(job_name="sync", run_id=str(uuid4()), status=STARTED, tags=asked.tags)
    shop.instance.add_run(after)
    assert "is open" in str(shop.tick())


@pytest.mark.long
def test_a_run_by_click_limits_the_pool_of_its_pipeline_and_no_other(shop: Shop) -> None:
    shop.instance.event_log_storage.set_concurrency_slots("of_others", 3)
    assert shop.sync().success
    limits = {pool.name: pool.limit for pool in shop.instance.event_log_storage.get_pool_limits()}
    assert limits == {"of_others": 3, Names.of(shop.settings).pool: 1}


@pytest.mark.long
def test_a_run_for_each_batch_ends_when_it_is_applied(shop: Shop) -> None:
    declared(shop, mode="run", idle_seconds=3600.0)
    assert shop.sync().success
    shop.write("insert into orders values (2, 'new')")
    assert isinstance(shop.tick(), dg.RunRequest)
    assert shop.sync().success
    assert "up to date" in str(shop.tick())
    with rhei.open(shop.settings) as htap:
        assert htap.verify().equal


def test_a_quiet_mirror_is_reported_as_up_to_date_and_keeps_its_version(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shop.sync().success
    key = dg.AssetKey(["mirror", "orders"])
    before = shop.instance.get_latest_materialization_event(key)
    assert "up to date" in str(shop.tick())
    assert shop.instance.get_latest_materialization_event(key) == before
    loaded = shop.definitions.get_repository_def()
    monkeypatch.setattr("rhei_pipeline.dagster.observing.quiet_seconds", lambda _settings: -1.0)
    shop.tick(repository=loaded)
    after = shop.instance.get_latest_materialization_event(key)
    assert before is not None
    assert after is not None
    assert after.timestamp > before.timestamp
    (old, new) = (event.asset_materialization for event in (before, after))
    assert old is not None
    assert new is not None
    assert (new.tags or {})["dagster/data_version"] == (old.tags or {})["dagster/data_version"]
    assert new.metadata["dagster/row_count"] == old.metadata["dagster/row_count"]


@pytest.mark.long
def test_a_copy_that_no_run_made_is_reported_once_and_its_mirror_is_not_called_unsynced(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rhei_pipeline.dagster.session.FIRST_REPORT_SECONDS", 0.0)
    with rhei.open(shop.settings) as htap:
        htap.sync_now()
        rows = htap.row_count("orders")
    shop.write("insert into orders values (7, 'new')")
    assert shop.sync().success
    copied, mirror = dg.AssetKey(["initial_sync", "orders"]), dg.AssetKey(["mirror", "orders"])
    first = shop.instance.get_latest_materialization_event(copied)
    assert first is not None
    made = first.asset_materialization
    assert made is not None
    assert "no run that is on record made it" in str(made.description)
    assert made.metadata["dagster/row_count"].value == rows
    shop.instance.report_runless_asset_event(dg.AssetMaterialization(mirror))  # as within a session
    graph = shop.definitions.resolve_asset_graph()
    causes = CachingStaleStatusResolver(
        shop.instance, graph, LoadingContextForTest(shop.instance)
    ).get_stale_causes(mirror)
    assert causes == []
    for run in shop.instance.get_runs():
        shop.instance.delete_run(run.run_id)
    assert shop.sync().success
    assert shop.instance.get_latest_materialization_event(copied) == first


@pytest.mark.long
@pytest.mark.parametrize("by", ["run", "command"])
def test_a_mirror_whose_rows_nobody_can_count_keeps_no_session_from_the_others(
    shop: Shop, by: str
) -> None:
    if by == "run":
        assert shop.sync().success
    else:
        with rhei.open(shop.settings) as htap:
            htap.sync_now()
    with duckdb.connect(shop.settings.mirror.path) as others:
        others.execute("drop table orders")
    shop.write("insert into items values (7, 7)")
    found = shop.sync()
    assert found.success
    told = found.asset_materializations_for_node("sync_session")
    assert {each.asset_key for each in told} == {dg.AssetKey(["mirror", "items"])}
    with rhei.open(shop.settings) as htap:
        assert htap.verify("items").equal


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::dagster.BetaWarning")
def test_an_asset_that_follows_a_mirrors_version_runs_when_rows_have_changed_and_not_before(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rhei_pipeline.dagster.session.FIRST_REPORT_SECONDS", 0.0)
    declared(shop, report_seconds=0.01, idle_seconds=2)  # reports tell of the version as well
    changed = dg.AutomationCondition.any_deps_match(dg.AutomationCondition.data_version_changed())

    @dg.asset(
        deps=[["mirror", "orders"]],
        automation_condition=dg.AutomationCondition.eager()
        .without(~dg.AutomationCondition.any_deps_in_progress())
        .replace("any_deps_updated", changed),
    )
    def revenue() -> None: ...

    definitions = dg.Definitions.merge(shop.definitions, dg.Definitions(assets=[revenue]))
    cursor = None

    def asked() -> int:
        nonlocal cursor
        found = dg.evaluate_automation_conditions(definitions, shop.instance, cursor=cursor)
        cursor = found.cursor
        if found.total_requested:
            assert dg.materialize([revenue], instance=shop.instance).success
        return found.total_requested

    assert shop.sync().success
    assert dg.materialize([revenue], instance=shop.instance).success
    (session,) = shop.instance.get_runs(dg.RunsFilter(job_name="sync"))
    told = shop.instance.all_logs(session.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
    reports = [found for event in told if (found := event.asset_materialization)]
    orders = [found for found in reports if found.asset_key == dg.AssetKey(["mirror", "orders"])]
    assert len(orders) > 1  # within the session, and at its end
    assert all("dagster/data_version" in (report.tags or {}) for report in orders)
    asked()  # what it knows of the version begins here
    assert asked() == 0
    repository = definitions.get_repository_def()
    shop.write("insert into orders values (2, 'new')")
    assert shop.sync().success
    assert [asked(), asked()] == [1, 0]
    shop.write("insert into items values (3, 3)")
    assert shop.sync().success  # it reports `orders`, too, as it was
    assert asked() == 0
    monkeypatch.setattr("rhei_pipeline.dagster.observing.quiet_seconds", lambda _settings: -1.0)
    key = dg.AssetKey(["mirror", "orders"])
    before = shop.instance.get_latest_materialization_event(key)
    shop.tick(repository=repository)
    assert shop.instance.get_latest_materialization_event(key) != before
    assert asked() == 0


@pytest.mark.long
@pytest.mark.parametrize("name", ["equals_source", "history"])
def test_what_a_check_found_is_shown_on_when_the_next_session_reports_its_mirror(
    shop: Shop, name: str
) -> None:
    assert shop.sync().success
    key = dg.AssetKey(["mirror", "orders"])
    for passed in (False, True):
        told = dg.AssetCheckEvaluation(
            asset_key=key, check_name=name, passed=passed, metadata={"keys": 3}
        )
        shop.instance.report_runless_asset_event(told)
        found_at = time.time()
        shop.write("insert into orders(status) values ('new')")
        with pytest.MonkeyPatch.context() as patch:
            # As long as the session is open; what it finds when it ends is for `history` its own.
            patch.setattr("rhei_pipeline.dagster.mirrors._SessionRun._report_histories", _nothing)
            assert shop.sync().success
        assert shop.shows("orders", name) is passed
        repeated = shop.check("orders", name).metadata
        assert repeated["keys"].value == 3
        assert float(str(repeated["found_at"].value)) <= found_at


def _nothing(*_: object) -> None:
    """Do nothing."""


def test_what_is_red_stays_red_when_its_quiet_mirror_is_reported(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.write("insert into items values (3, 'no number')")
    assert shop.sync().success
    loaded = shop.definitions.get_repository_def()
    told = dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey(["mirror", "items"]), check_name="equals_source", passed=False
    )
    shop.instance.report_runless_asset_event(told)
    monkeypatch.setattr("rhei_pipeline.dagster.observing.quiet_seconds", lambda _settings: -1.0)
    assert "up to date" in str(shop.tick(repository=loaded))
    assert shop.shows("items", "dead_letters") is False
    assert shop.shows("items", "equals_source") is False
    assert shop.shows("items", "drift") is None  # which was green, and is not written for ever


@pytest.mark.long
def test_what_a_check_found_that_a_table_has_no_more_is_not_repeated(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table without history had one; nobody would end the repetition."""
    assert shop.sync().success
    key = dg.AssetKey(["mirror", "items"])
    for name in ("history", "equals_source"):
        shop.instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(asset_key=key, check_name=name, passed=False)
        )
    shop.write("insert into items values (3, 3)", "update orders set status = 'x' where id = 1")
    told = {(c.asset_key, c.check_name) for c in shop.sync().get_asset_check_evaluations()}
    assert (key, "equals_source") in told
    assert (key, "history") not in told
    loaded = shop.definitions.get_repository_def()
    monkeypatch.setattr("rhei_pipeline.dagster.observing.quiet_seconds", lambda _settings: -1.0)
    assert "up to date" in str(shop.tick(repository=loaded))
    assert "found_at" in shop.check("items", "equals_source").metadata
    assert "found_at" not in shop.check("items", "history").metadata


@pytest.mark.long
def test_a_report_of_all_tables_asks_once_what_their_checks_found(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def looked_up(instance: dg.DagsterInstance, keys: Collection[dg.AssetCheckKey]) -> list[Any]:
        asked.append({key.asset_key.path[-1] for key in keys})
        return last_evaluations_anew(instance, keys)

    monkeypatch.setattr("rhei_pipeline.dagster.mirrors.last_evaluations_anew", looked_up)
    assert shop.sync().success
    assert [tables for tables in asked if tables] == [{"orders", "items"}]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("alter table orders add column note text default 'none'", "orders"),
        ("drop trigger {trigger}", "items"),
    ],
)
def test_a_table_that_is_not_as_it_is_followed_opens_one_session(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, change: str, told: str
) -> None:
    assert shop.sync().success
    repository, now = shop.definitions.get_repository_def(), [1e6]
    clock = SimpleNamespace(monotonic=lambda: now[0], time=time.time)
    monkeypatch.setattr("rhei_pipeline.dagster.observing.time", clock)
    assert "up to date" in str(shop.tick(repository=repository))
    with closing(sqlite3.connect(shop.settings.sqlite_path)) as connection:
        (trigger,) = connection.execute(
            "select min(name) from sqlite_master where type = 'trigger' and tbl_name = 'items'"
        ).fetchone()
    shop.write(change.format(trigger=trigger))
    now[0] += 61
    asked = shop.tick(repository=repository)
    assert isinstance(asked, dg.RunRequest)
    assert asked.tags["rhei/reason"] == f"other columns, or capture that was broken: {told}"
    assert shop.sync().success
    now[0] += 61
    assert "up to date" in str(shop.tick(repository=repository))


def test_a_table_that_no_session_can_follow_is_not_asked_for_in_each_tick(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shop.sync().success
    now = [1e6]
    clock = SimpleNamespace(monotonic=lambda: now[0], time=time.time)
    monkeypatch.setattr("rhei_pipeline.dagster.observing.time", clock)
    monkeypatch.setattr(
        "rhei_pipeline.dagster.observing.unfollowed_tables", lambda _: frozenset({"orders"})
    )
    observer = Observer(Declaration.of(shop.settings))
    cdc: Any = SimpleNamespace(
        standing=lambda: SourceStanding(0, waiting={}), settings=lambda: shop.settings
    )
    context = dg.build_sensor_context(instance=shop.instance)

    def asked(later: float, *, is_open: bool) -> list[str]:
        now[0] += later
        observer.look(context, cdc, is_open=is_open)
        return list(observer.unfollowed)

    assert asked(61, is_open=False) == ["orders"]
    assert asked(1, is_open=False) == ["orders"]  # until there is a session
    assert asked(1, is_open=True) == []
    assert asked(61, is_open=False) == []
    assert asked(300, is_open=False) == ["orders"]


def test_the_sensor_observes_the_source(shop: Shop) -> None:
    assert shop.sync().success
    shop.write("insert into orders values (2, 'new'), (3, 'new')")
    time.sleep(0.2)  # ages are shown in tenths of a second
    shop.tick(times=2)
    (record,) = shop.instance.fetch_observations(dg.AssetKey(["cdc", "changes"]), limit=5).records
    found = record.asset_observation
    assert found is not None
    assert found.metadata["pending_events"].value == 2
    assert 0 < float(str(found.metadata["oldest_pending_seconds"].value)) < 600
    assert shop.instance.fetch_observations(dg.AssetKey(["oltp", "orders"]), limit=5).records


def test_who_was_told_that_changes_wait_is_told_when_a_session_has_them(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    observer, now = Observer(Declaration.of(shop.settings)), [1e6]
    clock = SimpleNamespace(monotonic=lambda: now[0], time=time.time)
    monkeypatch.setattr("rhei_pipeline.dagster.observing.time", clock)

    def told(pending: int, waited: float) -> list[int]:
        at = datetime.now(UTC) - timedelta(seconds=waited)
        standing = SourceStanding(pending, waiting={"orders": at} if pending else {})
        cdc: Any = SimpleNamespace(standing=lambda: standing)
        context: Any = SimpleNamespace(instance=shop.instance)
        observer.look(context, cdc, is_open=True)
        now[0] += 61
        key = dg.AssetKey(["cdc", "changes"])
        records = shop.instance.fetch_observations(key, limit=9, ascending=True).records
        events = [found for record in records if (found := record.asset_observation)]
        return [int(str(event.metadata["pending_events"].value)) for event in events]

    assert told(1685, 1259.0) == [1685]
    assert told(900, 600.0) == [1685]  # they wait still
    assert told(7, 0.5) == [1685, 7]
    assert told(9, 0.5) == [1685, 7]  # which a session reports


@pytest.mark.long
def test_what_is_never_deleted_grows_no_faster_with_more_tables(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shop.sync().success
    repository, now = shop.definitions.get_repository_def(), [1e6]
    clock = SimpleNamespace(monotonic=lambda: now[0], time=time.time)
    monkeypatch.setattr("rhei_pipeline.dagster.observing.time", clock)
    counts = list[list[int]]()
    for _ in range(10):
        shop.write("insert into orders(status) values ('new')", "insert into items default values")
        shop.tick(repository=repository)
        keys = [dg.AssetKey(["oltp", table]) for table in ("orders", "items")]
        found = [shop.instance.fetch_observations(key, limit=99).records for key in keys]
        counts.append([len(records) for records in found])
        now[0] += 401
    assert counts[0] == [1, 1]
    assert counts[-1] in ([2, 3], [3, 2])  # three in an hour, in turn


@pytest.mark.long
def test_old_runs_are_deleted_with_their_files(shop: Shop) -> None:
    assert shop.sync().success
    old = shop.instance.get_runs(limit=1)[0].run_id
    storage = shop.instance.event_log_storage
    file = Path(storage.path_for_shard(old))  # type: ignore[attr-defined]
    assert file.exists()
    key = dg.AssetKey(["mirror", "orders"])
    declared(shop, keep_runs_days=-1)
    job = shop.definitions.resolve_job_def("housekeeping")
    assert job.execute_in_process(instance=shop.instance).success
    assert shop.instance.get_run_by_id(old) is None
    assert not file.exists()
    assert not shop.instance.fetch_materializations(key, limit=1).records
    kept = shop.sync()
    declared(shop, keep_runs_days=14)
    job = shop.definitions.resolve_job_def("housekeeping")
    assert job.execute_in_process(instance=shop.instance).success
    assert shop.instance.get_run_by_id(kept.run_id) is not None


@pytest.mark.long
def test_a_report_rides_out_that_the_source_does_not_answer(dsn: str, tmp_path: Path) -> None:
    elsewhere = psycopg.conninfo.make_conninfo(dsn, dbname="postgres")
    with (
        psycopg.connect(dsn, autocommit=True) as app,
        psycopg.connect(elsewhere, autocommit=True) as owner,
    ):
        app.execute("create table orders(id int primary key, status text)")
        (name,) = app.execute("select current_database()").fetchone() or ("",)
        settings = Settings(
            source={"kind": "postgres", "dsn": dsn},
            mirror={"path": tmp_path / "mirror.duckdb"},
            registry={"path": tmp_path / "registry.json"},
            sync={"interval_seconds": 0.05},
            tables=[{"name": "orders"}],
        )
        with HTAP(settings) as htap:
            htap.sync_now()
            session = Session(htap, htap.table_schemas(), report_seconds=60, idle_seconds=60)
            session.collect()
            assert session.status().unreadable is None
            owner.execute(f'alter database "{name}" allow_connections false')
            owner.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", (name,)
            )
            try:
                until = time.monotonic() + 60
                while session.status().unreadable is None:
                    session.collect()
                    assert time.monotonic() < until
                assert session.status().tables["orders"].error is None
            finally:
                owner.execute(f'alter database "{name}" allow_connections true')
            with psycopg.connect(dsn, autocommit=True) as again:
                again.execute("insert into orders values (1, 'new')")
            while htap.row_count("orders") != 1:
                session.collect()
                time.sleep(0.05)
                assert time.monotonic() < until
            assert session.status().unreadable is None


@pytest.mark.parametrize("method", ["logical", "trigger"])
def test_what_a_server_tells_of_a_mirror_that_is_not_opened(
    dsn: str, tmp_path: Path, method: str
) -> None:
    settings = Settings(
        source={"kind": "postgres", "dsn": dsn},
        capture={"method": method},
        mirror={"path": tmp_path / "mirror.duckdb"},
        registry={"path": tmp_path / "registry.json"},
        tables=[{"name": "orders"}],
    )
    assert source_standing(settings).pending is None
    with psycopg.connect(dsn, autocommit=True) as app:
        app.execute("create table orders(id int primary key, status text)")
        with rhei.open(settings) as htap:
            htap.sync_now()
        before = source_standing(settings)
        assert (before.pending, before.oldest_at) == (0, None)
        app.execute("insert into orders values (1, 'new')")
        (now,) = app.execute("select now()").fetchone() or (datetime.now(UTC),)
        app.execute("insert into orders values (2, 'new')")
        found = source_standing(settings)
    assert found.pending == (2 if found.is_exact else 1)
    assert found.is_exact is (method == "trigger")
    assert sum(found.heads.values()) > sum(before.heads.values())
    assert found.oldest_at is not None
    assert now - timedelta(seconds=60) < found.oldest_at <= now
    assert list(found.held_bytes) == ["log" if method == "trigger" else "slot"]
    assert CdcResource.of(settings, OltpResource.of(settings)).head() > 0
