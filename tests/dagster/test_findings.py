"""What is red in Dagster, what is only a warning, and what is news: judged without a run."""

import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import dagster as dg
import pyarrow as pa
import pytest

from rhei_pipeline.dagster.check_records import FOUND_AT, is_news, last_evaluations_anew
from rhei_pipeline.dagster.heartbeat import ENDED, Heartbeat, SignsOfLife, last_sign
from rhei_pipeline.dagster.initial_sync import parity_result
from rhei_pipeline.dagster.pool import SlotWatch, limit_to_one_writer, writer_wanted
from rhei_pipeline.dagster.relay import LEAST_LEAD_SECONDS, lead_seconds
from rhei_pipeline.dagster.session import ReportWindow, Session, numbers, reports
from rhei_pipeline.dagster.snapshot_schedule import _settled, _wanted
from rhei_pipeline.dagster.snapshots import KNOWN_FROM, SnapshotWindow
from rhei_pipeline.dagster.state_checks import StateCheck, history, state_findings
from rhei_pipeline.model.progress import TableState
from rhei_pipeline.model.reports import RowParity, SyncReport, SyncStatus, TableReport, TableStatus
from rhei_pipeline.model.schema import Column, Mode, Table, TableSchema

KEY = dg.AssetKey(["mirror", "t"])
WARN, ERROR = dg.AssetCheckSeverity.WARN, dg.AssetCheckSeverity.ERROR


def table(*columns: str) -> Table:
    schema = TableSchema("t", tuple(Column(name, pa.int64()) for name in columns), ("id",))
    return Table(schema, Mode.TEMPORAL)


def status(**known: Any) -> TableStatus:
    ordinary = {"state": TableState.READY, "watermark": 7, "lag_events": 0, "lag_seconds": 0.0}
    return TableStatus("t", "temporal", **{**ordinary, "dead_letters": 0, **known})


def red(
    found: TableStatus, now: Table | None = None, waited: float = 0.0, **whole: Any
) -> dict[str, dg.AssetCheckSeverity]:
    """Return the checks that a state fails, each with its severity."""
    told = SyncStatus(running=True, tables={"t": found}, **whole)
    findings = list(state_findings(table("id"), told, now or table("id"), 60.0, waited))
    assert len({each.check for each in findings}) == len(findings)
    assert all(bool(each.text) is not each.passed for each in findings)
    return {each.check.value: each.severity for each in findings if not each.passed}


def test_each_trouble_of_a_table_is_red_and_no_other() -> None:
    assert red(status()) == {}
    assert red(status(lag_seconds=60.0)) == {}
    assert red(status(lag_seconds=61.0)) == {"lag": WARN}
    assert red(status(lag_seconds=601.0)) == {"lag": ERROR}
    assert red(status(), waited=61.0) == {"lag": WARN}
    assert red(status(dead_letters=1)) == {"dead_letters": ERROR}
    assert red(status(doubt="a rescan is due")) == {"proof": WARN}
    assert red(status(doubt="nobody can count", lag_seconds=None)) == {"lag": WARN, "proof": WARN}
    assert red(status(lag_seconds=None, watermark=None)) == {}  # it waits for its first copy
    assert red(status(), now=table("id", "more")) == {"drift": WARN}
    assert red(status(), unreadable="the source is away") == {"lag": WARN}
    assert red(status(), not_published="no space is left") == {"published": ERROR}
    # Of one that is left out nobody knows whether changes may be missed: it says so itself.
    left_out = status(error="its column has gone", doubt="a rescan is due")
    assert red(left_out) == {"followed": ERROR, "lag": WARN}


def test_a_dropped_column_is_drift_as_an_added_one_is() -> None:
    told = SyncStatus(running=True, tables={"t": status()})
    findings = state_findings(table("id", "gone"), told, table("id"), 60.0)
    (drift,) = [each for each in findings if each.check is StateCheck.DRIFT]
    assert not drift.passed
    assert "'gone' was dropped" in drift.text


def test_a_history_that_contradicts_itself_and_a_copy_that_lacks_rows_are_red() -> None:
    assert history(0).passed
    assert not history(1).passed
    for mirrored, passed in ((3, True), (2, False), (4, False)):
        assert parity_result(RowParity("t", 3, mirrored, 7), KEY).passed is passed


def said(
    text: str, severity: dg.AssetCheckSeverity = WARN, *, passed: bool = False
) -> dg.AssetCheckEvaluation:
    return dg.AssetCheckEvaluation(
        asset_key=KEY,
        check_name="lag",
        passed=passed,
        severity=severity,
        description=text,
        metadata={"lag_seconds": uuid4().int % 97},
    )


def test_what_a_check_says_is_news_where_anything_but_numbers_differs() -> None:
    last = said("late")
    assert is_news(last, None)
    assert not is_news(said("late"), last)
    for other in (said("late", ERROR), said("otherwise"), said("late", passed=True)):
        assert is_news(other, last)


def test_who_repeats_a_check_repeats_what_it_said_and_when() -> None:
    asked = dg.AssetCheckKey(KEY, "lag")
    with dg.instance_for_test() as instance:
        assert last_evaluations_anew(instance, [asked]) == []
        for told in (said("late", ERROR), said("a little late"), said("", passed=True)):
            instance.report_runless_asset_event(told)
            before = time.time()
            (anew,) = last_evaluations_anew(instance, [asked])
            assert (anew.passed, anew.severity) == (told.passed, told.severity)
            assert anew.description == told.description
            assert anew.asset_check_key == asked
            assert anew.metadata["lag_seconds"] == told.metadata["lag_seconds"]
            found_at = anew.metadata[FOUND_AT]
            assert isinstance(found_at, dg.TimestampMetadataValue)
            instance.report_runless_asset_event(anew)  # which is repeated in its turn
            (again,) = last_evaluations_anew(instance, [asked])
            assert again.metadata[FOUND_AT] == found_at
            assert found_at.value is not None
            assert found_at.value <= before


def test_a_run_says_that_its_process_has_ended_and_hears_that_it_was_given_up() -> None:
    with dg.instance_for_test() as instance:
        for status_, given_up, sign in (
            (dg.DagsterRunStatus.STARTED, False, ENDED),
            (dg.DagsterRunStatus.FAILURE, True, ""),
        ):
            run = dg.DagsterRun(job_name="sync", run_id=str(uuid4()), status=status_)
            instance.add_run(run)
            with Heartbeat(instance, run.run_id) as beating:
                pass
            left = instance.get_run_by_id(run.run_id)
            assert left is not None
            assert (beating.is_given_up, last_sign(left)) == (given_up, sign)
        with Heartbeat(instance, str(uuid4())) as beating:  # its run was deleted
            pass
        assert beating.is_given_up


def test_a_report_has_the_numbers_of_what_was_synced_since_the_last_one() -> None:
    window = ReportWindow()
    for lag, seconds, copied in ((0.5, 0.2, 0), (3.0, 0.1, 0), (0.75, 0.4, 0), (9.0, 9.0, 4)):
        synced = TableReport("t", 5, inserted=2, lag_seconds=lag, copied_rows=copied)
        window.add(SyncReport({"t": synced}, seconds), "t")
    # What waited for a copy was no change that waited for its turn.
    assert numbers(window, 7, 41) == {
        "change_lag_ms_max": 3000.0,
        "change_lag_ms_p50": 750.0,
        "dagster/row_count": 7,
        "events_applied": 20,
        "rows_applied": 8,
        "sync_ms_max": 400.0,
        "watermark": "41",
    }


def test_no_number_is_told_of_a_table_that_is_left_out_or_was_never_copied() -> None:
    session = cast("Session", SimpleNamespace(tables={"t": table("id")}))
    for found, told in (
        (status(), 1),
        (status(error="its column has gone"), 0),
        (status(watermark=None), 0),
    ):
        whole = SyncStatus(running=True, tables={"t": found})
        assert len(list(reports(session, whole, {"t": ReportWindow()}, lambda _: 3))) == told
    whole = SyncStatus(running=True, tables={"t": status()})
    assert list(reports(session, whole, {"t": ReportWindow()}, lambda _: None)) == []


def test_windows_that_were_missed_since_the_first_are_taken_in_one_run_without_a_gap() -> None:
    closed = ["1", "2", "3", "4", "5"]
    assert _wanted(closed, [set()], 0) == ["5"]  # what ended before was never asked for
    assert _wanted(closed, [{"2", "4"}], 0) == ["3", "4", "5"]
    assert _wanted(closed, [{"2", "3", "4", "5"}], 0) == []
    assert _wanted(closed, [{"1", "2", "3", "4", "5"}], 2) == ["4", "5"]
    assert _wanted(closed, [{"4", "5"}, {"2", "3", "5"}], 0) == ["4"]


@pytest.mark.parametrize(
    ("taken", "since", "settled"),
    [
        ([5, 10], None, {5, 10}),
        ([5, 10], 5, {5, 10}),
        ([5, 10], 8, {5, 6, 7, 10}),  # the window that ended as history begins is of before it
        ([10], 8, {10}),  # what ended before the first snapshot was never asked for
    ],
)
def test_what_was_missed_and_can_be_had_no_more_is_not_asked_for(
    taken: list[int], since: int | None, settled: set[int]
) -> None:
    def day(number: int) -> datetime:
        return datetime(2026, 11, number, tzinfo=UTC)

    windows = [SnapshotWindow(f"{day(n):%F}", day(n), day(n + 1)) for n in range(3, 13)]
    known = {} if since is None else {KNOWN_FROM: day(since).isoformat()}
    with dg.instance_for_test() as instance:
        for number in taken:
            made = dg.AssetMaterialization(KEY, partition=f"{day(number):%F}", metadata=known)
            instance.report_runless_asset_event(made)
        assert {*_settled(instance, KEY, windows)} == {f"{day(n):%F}" for n in settled}


def test_a_snapshot_shows_the_last_instant_of_its_window_and_none_of_the_next() -> None:
    start = datetime(2026, 11, 1, tzinfo=UTC)
    window = SnapshotWindow("2026-11-01", start, start + timedelta(days=1))
    assert window.last_instant == window.end - timedelta(microseconds=1)


def test_a_session_asks_for_the_next_as_early_as_its_own_start_was_slow() -> None:
    def started(after: float) -> dg.RunRecord:
        begin = datetime(2026, 11, 1, tzinfo=UTC)
        times = {"create_timestamp": begin, "start_time": begin.timestamp() + after}
        return cast("dg.RunRecord", SimpleNamespace(**times))

    assert lead_seconds(None, 3600) == LEAST_LEAD_SECONDS
    assert lead_seconds(started(1), 3600) == LEAST_LEAD_SECONDS
    assert lead_seconds(started(100), 3600) == pytest.approx(300)
    assert lead_seconds(started(100), 60) == 30


def test_a_run_that_was_begun_before_an_upgrade_still_gives_signs() -> None:
    run = dg.DagsterRun(job_name="sync", run_id=str(uuid4()), tags={"rhei/alive": "5"})
    assert last_sign(run) == "5"
    signs = SignsOfLife(lambda: 0.0)
    assert signs.silent_seconds({"a": 1}) == {"a": 0.0}


def test_the_pool_keeps_its_limit_and_a_slot_of_who_lives() -> None:
    started = dg.DagsterRunStatus.STARTED
    with dg.instance_for_test() as instance:
        storage = instance.event_log_storage
        limit_to_one_writer(instance, "own")
        alive, dead = (
            instance.add_run(dg.DagsterRun(job_name="sync", run_id=str(uuid4()), status=each))
            for each in (started, dg.DagsterRunStatus.FAILURE)
        )
        assert storage.claim_concurrency_slot("own", dead.run_id, "step").is_claimed
        assert not storage.claim_concurrency_slot("own", alive.run_id, "step").is_claimed
        assert writer_wanted(instance, "own")
        limit_to_one_writer(instance, "own")  # gives back what the dead one had
        assert storage.claim_concurrency_slot("own", alive.run_id, "step").is_claimed
        assert not storage.claim_concurrency_slot("own", dead.run_id, "step").is_claimed
        assert not writer_wanted(instance, "own")  # who waits is dead
        limit_to_one_writer(instance, "own")
        info = storage.get_concurrency_info("own")
        assert info.active_run_ids == {alive.run_id}
        storage.set_concurrency_slots("own", 3)
        limit_to_one_writer(instance, "own")
        assert storage.get_concurrency_info("own").slot_count == 3


@pytest.mark.parametrize("left", ["slot", "slot alone", "turn", "place in the line"])
def test_what_a_dead_run_left_of_the_pool_is_given_back(left: str) -> None:
    """A step may take the slot at the moment in which its place in the line is given back."""
    with dg.instance_for_test() as instance:
        storage = instance.event_log_storage
        limit_to_one_writer(instance, "own")
        runs = [
            instance.add_run(
                dg.DagsterRun(
                    job_name="sync", run_id=str(uuid4()), status=dg.DagsterRunStatus.STARTED
                )
            )
            for _ in range(3)
        ]
        first, dead, last = (run.run_id for run in runs)
        for run_id in (first, dead):
            storage.claim_concurrency_slot("own", run_id, "step")
        if left != "place in the line":
            storage.free_concurrency_slots_for_run(first)  # which is the turn of the next
        if left == "slot":
            assert storage.claim_concurrency_slot("own", dead, "step").is_claimed
        elif left == "slot alone":
            storage.free_concurrency_slots_for_run(dead)
            taken: Any = storage
            taken._claim_concurrency_slot("own", dead, "step")
        instance.report_run_failed(runs[1])
        limit_to_one_writer(instance, "own")
        storage.free_concurrency_slots_for_run(first)
        assert storage.claim_concurrency_slot("own", last, "step").is_claimed


def test_a_pool_that_has_a_limit_by_default_gets_its_own() -> None:
    """Dagster gives every pool the default of its settings when a step of it asks for a slot."""
    default = {"concurrency": {"pools": {"default_limit": 3}}}
    with dg.instance_for_test(overrides=default) as instance:
        storage = instance.event_log_storage
        storage.initialize_concurrency_limit_to_default("own")
        assert storage.get_concurrency_info("own").slot_count == 3
        limit_to_one_writer(instance, "own")
        assert storage.get_concurrency_info("own").slot_count == 1


def test_whoever_is_over_holds_no_slot_and_who_is_not_does() -> None:
    now = [0.0]
    with dg.instance_for_test() as instance:
        storage, watch = instance.event_log_storage, SlotWatch("own", lambda: now[0])
        limit_to_one_writer(instance, "own")
        assert watch.holder(instance) is None
        assert not watch.is_due
        for status_, holds in (
            (dg.DagsterRunStatus.FAILURE, False),
            (dg.DagsterRunStatus.STARTED, True),
        ):
            run = dg.DagsterRun(job_name="sync", run_id=str(uuid4()), status=status_)
            instance.add_run(run)
            assert storage.claim_concurrency_slot("own", run.run_id, "step").is_claimed
            found = watch.holder(instance)
            assert (found is not None and found.run_id == run.run_id) is holds
            assert watch.is_due is holds
            storage.free_concurrency_slots_for_run(run.run_id)
        now[0] = 61.0
        assert SlotWatch("own", lambda: 0.0).is_due is False
        assert watch.is_due


@pytest.mark.parametrize(
    ("granularity", "inside", "wanted"), [("op", 0, True), ("op", 1, False), ("run", 1, True)]
)
def test_a_run_in_the_queue_wants_the_mirror_where_none_is_let_in_to_wait(
    granularity: str, inside: int, *, wanted: bool
) -> None:
    pools = SimpleNamespace(
        pool_granularity=SimpleNamespace(value=granularity), op_granularity_run_buffer=inside
    )
    storage = SimpleNamespace(
        supports_global_concurrency_limits=True,
        get_concurrency_info=lambda _: SimpleNamespace(pending_run_ids=set()),
    )
    queued = ["r"]
    instance: Any = SimpleNamespace(
        event_log_storage=storage,
        get_concurrency_config=lambda: SimpleNamespace(pool_config=pools),
        get_run_ids=lambda *_, limit: queued[:limit],
    )
    assert writer_wanted(instance, "own") is wanted
    queued.clear()
    assert not writer_wanted(instance, "own")
