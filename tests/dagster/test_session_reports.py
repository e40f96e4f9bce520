"""What a session and the nightly maintenance tell of a mirror, in which all is made up."""

from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from rhei_pipeline.dagster.checks import mirror_checks
from rhei_pipeline.dagster.declaration import Declaration
from rhei_pipeline.dagster.initial_sync import initial_sync_assets
from rhei_pipeline.dagster.maintenance import maintenance_jobs
from rhei_pipeline.dagster.mirrors import _SessionRun
from rhei_pipeline.dagster.session import Session
from rhei_pipeline.dagster.state_checks import StateCheck
from rhei_pipeline.model.progress import TableState
from rhei_pipeline.model.reports import (
    RowParity,
    SyncStatus,
    TableReport,
    TableStatus,
    TableVerification,
    VerifyReport,
)
from rhei_pipeline.model.retention import ExpiredHistory
from rhei_pipeline.model.upkeep import MaintenanceReport
from rhei_pipeline.settings.keeping import HistorySettings
from rhei_pipeline.settings.mirror import PublishedSettings
from tests.support.dagster_shop import Shop

MIRROR = dg.AssetKey(["mirror", "orders"])
NOW = datetime(2026, 11, 1, tzinfo=UTC)


def session_run(shop: Shop, **found: Any) -> tuple[_SessionRun, list[Any]]:
    """Return a session over a mirror in which that is found, and the events that it will log."""
    declaration = Declaration.of(shop.settings)
    tables = {table.name: table for table in declaration.tables if table.name == "orders"}
    ready = TableStatus("orders", "temporal", TableState.READY, 7, 0, 0.0, 0)
    mirror = {
        "sync_status": lambda _: SyncStatus(running=True, tables={"orders": ready}),
        "table_schemas": lambda: tables,
        "row_count": lambda _: 3,
        "row_parity": lambda _: RowParity("orders", 3, 3, 7),
        "broken_histories": lambda _: pa.table({"id": []}),
        **found,
    }
    htap: Any = SimpleNamespace(**mirror)
    session = Session(htap, tables, 60.0, 60.0)
    events: list[Any] = []
    log = SimpleNamespace(warning=lambda *_: None, info=lambda *_: None)
    context: Any = SimpleNamespace(
        instance=shop.instance, log_event=events.append, log=log, run=SimpleNamespace(run_id="r")
    )
    schedule, olap = shop.settings.schedule, SimpleNamespace()
    made: Any = _SessionRun(context, session, declaration, schedule, olap)  # type: ignore[arg-type]
    return made, events


def told(events: list[Any], check: str) -> list[bool]:
    return [
        event.passed
        for event in events
        if isinstance(event, dg.AssetCheckEvaluation) and event.check_name == check
    ]


def test_what_follows_a_copy_does_not_run_where_rows_are_lacking(shop: Shop) -> None:
    made = initial_sync_assets(Declaration.of(shop.settings))
    assert len(made) == 2
    assert all(check.blocking for asset in made for check in asset.check_specs)


@pytest.mark.parametrize("mirrored", [2, 3])
def test_a_copy_that_lacks_rows_is_red_where_a_session_made_it(shop: Shop, mirrored: int) -> None:
    run, events = session_run(shop, row_parity=lambda _: RowParity("orders", 3, mirrored, 7))
    run.session.copies["orders"] = TableReport("orders", copied_rows=3)
    run._report_copies()
    assert told(events, "row_parity") == [mirrored == 3]


def test_a_history_that_contradicts_itself_is_red_at_the_end_whatever_was_said_before(
    shop: Shop,
) -> None:
    check = StateCheck.HISTORY.value
    before = dg.AssetCheckEvaluation(asset_key=MIRROR, check_name=check, passed=True)
    shop.instance.report_runless_asset_event(before)
    run, events = session_run(shop, broken_histories=lambda _: pa.table({"id": [1]}))
    (result,) = run._results()
    assert told(events, check) == [False]
    assert result.data_version == dg.DataVersion("7")
    # Of a check that no session makes, what was found is shown on.
    other = dg.AssetCheckEvaluation(asset_key=MIRROR, check_name="equals_source", passed=False)
    shop.instance.report_runless_asset_event(other)
    run, events = session_run(shop)
    assert len(list(run._results())) == 1
    assert told(events, check) == [True]
    assert told(events, "equals_source") == [False]


def publishing(shop: Shop) -> Shop:
    """Return the shop with a published copy of its mirror."""
    mirror = shop.settings.mirror
    copied = {"published": PublishedSettings(path=mirror.path.with_suffix(".copy"))}
    update = {"mirror": mirror.model_copy(update=copied)}
    return Shop(shop.settings.model_copy(update=update), shop.instance)


def test_what_others_read_is_red_where_it_cannot_be_published(shop: Shop) -> None:
    def status(why: str | None) -> SyncStatus:
        ready = TableStatus("orders", "temporal", TableState.READY, 7, 0, 0.0, 0)
        return SyncStatus(running=True, tables={"orders": ready}, not_published=why)

    run, events = session_run(shop, sync_status=lambda _: status("no space is left"))
    assert list(run._results())
    assert told(events, "published") == []  # nothing is
    for why in ("no space is left", None):
        run, events = session_run(publishing(shop), sync_status=lambda _, why=why: status(why))
        assert list(run._results())
        assert told(events, "published") == [why is None]


def checked(shop: Shop, **found: Any) -> dict[str, dg.AssetCheckEvaluation]:
    """Run the checks of one table of a mirror in which that is found; return what they say."""
    declaration = Declaration.of(shop.settings)
    htap = SimpleNamespace(settings=shop.settings, **found)
    olap = SimpleNamespace(open=lambda: nullcontext(htap), settings=lambda: shop.settings)
    definitions = dg.Definitions(
        asset_checks=mirror_checks(declaration),
        jobs=[dg.define_asset_job("checks", dg.AssetSelection.checks_for_assets(MIRROR))],
        resources={declaration.names.olap: olap},
    )
    done = definitions.resolve_job_def("checks").execute_in_process(instance=shop.instance)
    return {each.check_name: each for each in done.get_asset_check_evaluations()}


def test_a_check_that_is_run_by_hand_says_what_it_found(shop: Shop) -> None:
    shop = publishing(shop)
    declared = {table.name: table for table in Declaration.of(shop.settings).tables}
    error, asked = "its column has gone", []

    def verify(name: str, max_rows: int | None) -> VerifyReport:
        asked.append((name, max_rows))
        samples = {"missing": ('{"id": 3}',), "extra": ()}
        found = TableVerification("orders", 9, 1, 2, 3, 4, samples, 5, 6, damage="'x' is damaged")
        return VerifyReport({"orders": found}, 0.0)

    left_out = TableStatus("orders", "temporal", TableState.READY, 7, 0, 99.0, 2, error=error)
    late = replace(left_out, error=None, doubt="a rescan is due")
    found = {"verify": verify, "table_schemas": lambda: {"orders": declared["items"]}}
    found["broken_histories"] = lambda _: pa.table({"id": [1]})
    followed, *others = (
        checked(
            shop,
            sync_status=lambda each=each: SyncStatus(
                running=True, tables={"orders": each}, not_published="no space is left"
            ),
            **found,
        )
        for each in (left_out, late)
    )
    (said,) = others
    assert not followed["followed"].passed
    assert followed["followed"].description == error
    assert {*said} == {*(each.value for each in StateCheck), "equals_source"}
    assert {name for name, each in said.items() if each.passed} == {"followed"}
    assert all(each.description for each in said.values() if not each.passed)
    assert said["lag"].metadata["max_lag_seconds"].value == shop.settings.schedule.max_lag_seconds
    equals = {name: value.value for name, value in said["equals_source"].metadata.items()}
    kinds = ("missing_keys", "extra_keys", "different_keys", "duplicate_keys", "broken_histories")
    assert [equals[kind] for kind in (*kinds, "dead_letters", "source_rows")] == [
        1,
        2,
        3,
        5,
        6,
        4,
        9,
    ]
    assert equals["examples"] == {"missing": ['{"id": 3}']}
    assert said["equals_source"].description == "'x' is damaged"
    assert asked == [("orders", shop.settings.verify.max_rows)] * 2


def maintained(shop: Shop, *reports: MaintenanceReport) -> dg.ExecuteInProcessResult:
    """Run the job over a mirror whose maintenance reports that, call by call."""
    settings = shop.settings.model_copy(update={"history": HistorySettings(keep_days=30)})
    declaration = Declaration.of(settings)
    left = list(reports)
    htap = SimpleNamespace(maintain=lambda: left.pop(0))
    olap = SimpleNamespace(open=lambda: nullcontext(htap))
    (job,) = maintenance_jobs(declaration)
    found = job.execute_in_process(
        instance=shop.instance,
        resources={declaration.names.olap: olap},
        raise_on_error=False,
    )
    assert not left
    return found


def test_maintenance_is_red_where_files_are_damaged_and_tells_all_that_it_removed(
    shop: Shop,
) -> None:
    first = ExpiredHistory("orders", 2, NOW)
    last = ExpiredHistory("orders", 3, NOW + timedelta(days=1))
    done = maintained(
        shop, MaintenanceReport(done=False, expired=(first,)), MaintenanceReport(expired=(last,))
    )
    assert done.success
    seen = [event for event in done.all_events if event.event_type_value == "ASSET_OBSERVATION"]
    versions = [
        event.asset_observation_data.asset_observation.metadata["versions_removed"].value
        for event in seen
    ]
    assert versions == [2, 3]
    assert not maintained(shop, MaintenanceReport(damaged=("file 'x' is damaged",))).success
