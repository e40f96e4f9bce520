"""Snapshots: what is over is green and nothing else is; what was missed is made up for."""

import sqlite3
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pyarrow.parquet as pq
import pytest

import rhei_pipeline as rhei
from rhei_pipeline import Settings
from rhei_pipeline.dagster import build_definitions

pytestmark = pytest.mark.filterwarnings("ignore::dagster.BetaWarning")

KEY = dg.AssetKey(["snapshot", "orders"])
TODAY = datetime.now(UTC).date()


def day(back: int) -> date:
    return TODAY - timedelta(days=back)


def declared(directory: Path, **schedule: Any) -> Settings:
    return Settings(
        source={"path": directory / "app.db"},
        mirror={"path": directory / "mirror.duckdb"},
        registry={"path": directory / "registry.json"},
        tables=[{"name": "orders", "mode": "temporal", "types": {"lead": "interval"}}],
        schedule={"snapshots_from": day(9), "idle_seconds": 0.2, **schedule},
    )


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A mirror whose first row was there five days ago, and whose second is of today."""
    with sqlite3.connect(tmp_path / "app.db") as app:
        app.execute("create table orders(id integer primary key, status text, lead text)")
        app.execute("insert into orders values (1, 'new', 'P1D')")
    found = declared(tmp_path)
    with rhei.open(found) as htap:
        htap.sync_now()
    with duckdb.connect(str(tmp_path / "mirror.duckdb")) as mirror:  # nobody has it open now
        mirror.execute("update orders set _rhei_valid_from = _rhei_valid_from - interval 5 day")
        mirror.execute("update _rhei_history set noted_at = noted_at - interval 5 day")
    with sqlite3.connect(tmp_path / "app.db") as app:
        app.execute("insert into orders(id, status) values (2, 'new')")
    app.close()
    return found


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as made:
        yield made


def take(
    settings: Settings,
    instance: dg.DagsterInstance,
    first: date,
    last: date,
    tags: Mapping[str, str] | None = None,
) -> dg.ExecuteInProcessResult:
    job = build_definitions(settings).resolve_implicit_global_asset_job_def()
    days = {"start": first.isoformat(), "end": last.isoformat()}
    asked = {f"dagster/asset_partition_range_{end}": value for end, value in days.items()}
    return job.execute_in_process(
        asset_selection=[KEY], instance=instance, tags={**asked, **(tags or {})}
    )


def stored(settings: Settings) -> dict[date, int]:
    with rhei.open(settings) as htap:
        found = htap.query(
            "select snapshot_date, count(*) as n from snapshot.orders group by 1", hint="olap"
        )
    return {row["snapshot_date"]: row["n"] for row in found.to_pylist()}


def tick(settings: Settings, instance: dg.DagsterInstance, at: datetime) -> dg.RunRequest | str:
    repository = build_definitions(settings).get_repository_def()
    schedule = repository.get_schedule_def("daily_snapshot")
    with dg.build_schedule_context(
        instance=instance, scheduled_execution_time=at, repository_def=repository
    ) as context:
        found = schedule.evaluate_tick(context)
    return found.run_requests[0] if found.run_requests else str(found.skip_message)


def night(back: int = 0) -> datetime:
    return datetime.combine(day(back), datetime.min.time(), UTC) + timedelta(hours=1)


def asked(request: dg.RunRequest | str) -> tuple[str, str]:
    assert isinstance(request, dg.RunRequest), request
    ends = [request.tags.get(f"dagster/asset_partition_range_{end}") for end in ("start", "end")]
    one = request.partition_key
    return (one, one) if one else (str(ends[0]), str(ends[1]))


def test_a_backfill_takes_the_days_that_are_over_and_no_other_turns_green(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    for _ in range(2):
        assert take(settings, instance, day(7), day(0)).success
    assert stored(settings) == {day(back): 1 for back in range(1, 6)} | {day(0): 2}
    green = {day(back).isoformat() for back in range(1, 6)}
    assert instance.get_materialized_partitions(KEY) == green
    found = instance.fetch_materializations(KEY, limit=10).records
    first = {
        record.partition_key: record.asset_materialization.metadata
        for record in found
        if record.asset_materialization
    }[day(5).isoformat()]
    assert first["dagster/partition_row_count"].value == 1
    assert first["versions_begun"].value == 1
    (present, *_) = instance.fetch_observations(KEY, limit=5).records
    assert present.partition_key == day(0).isoformat()


def test_days_before_history_fail_where_no_other_is_asked_for(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    with pytest.raises(dg.Failure, match=f"choose days from {day(5)} on"):
        take(settings, instance, day(8), day(7))
    assert not instance.get_materialized_partitions(KEY)


@pytest.mark.parametrize("tag", ["schedule_name", "sensor_name", "auto_materialize", "backfill"])
def test_days_before_history_that_no_person_chose_are_told_and_not_failed(
    tag: str, settings: Settings, instance: dg.DagsterInstance
) -> None:
    """The first night, an asset condition, or all that is missing: nobody meant these days."""
    found = take(settings, instance, day(8), day(7), {f"dagster/{tag}": "any"})
    assert found.success
    (event,) = [each for each in found.all_events if each.is_asset_observation]
    told = event.asset_observation_data.asset_observation.metadata
    assert told["windows_before_history"].value == 2
    assert str(told["history_known_from"].value).startswith(day(5).isoformat())
    assert not instance.get_materialized_partitions(KEY)
    with rhei.open(settings) as htap, pytest.raises(rhei.QueryError, match="snapshot"):
        htap.query("select * from snapshot.orders", hint="olap")


@pytest.mark.parametrize("tags", [{}, {"dagster/backfill": "any"}])
def test_days_that_have_not_begun_have_no_snapshot(
    settings: Settings, instance: dg.DagsterInstance, tags: Mapping[str, str]
) -> None:
    assert take(settings, instance, day(1), day(-2), tags).success
    assert stored(settings) == {day(1): 1, day(0): 2}
    assert instance.get_materialized_partitions(KEY) == {day(1).isoformat()}
    with pytest.raises(dg.Failure, match=rf"2 of the windows have not begun .*\({day(-1)}, "):
        take(settings, instance, day(-1), day(-2), tags)
    assert stored(settings) == {day(1): 1, day(0): 2}


def test_a_table_that_is_left_out_takes_no_snapshot(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    with sqlite3.connect(settings.sqlite_path) as app:
        app.execute("drop table orders")
    app.close()
    with pytest.raises(dg.Failure, match=r"'orders' is left out: .*no such table"):
        take(settings, instance, day(2), day(1))
    assert not instance.get_materialized_partitions(KEY)


@pytest.mark.long
def test_the_nightly_schedule_makes_up_for_missed_days(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    yesterday = day(1).isoformat()
    assert asked(tick(settings, instance, night())) == (yesterday, yesterday)
    assert take(settings, instance, day(5), day(4)).success
    assert asked(tick(settings, instance, night())) == (day(3).isoformat(), yesterday)
    assert take(settings, instance, day(3), day(1)).success
    assert "every window" in str(tick(settings, instance, night()))
    again = declared(settings.sqlite_path.parent, snapshot_rebuild=2)
    assert asked(tick(again, instance, night())) == (day(2).isoformat(), yesterday)


@pytest.mark.long
def test_a_missed_day_whose_history_was_removed_is_not_asked_for_every_night(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    assert take(settings, instance, day(5), day(5)).success
    with rhei.open(settings) as htap:  # the versions of day 4 and before are removed now
        htap.sync_now()
    with duckdb.connect(str(settings.mirror.path)) as mirror:
        mirror.execute("update orders set _rhei_valid_from = _rhei_valid_from + interval 2 day")
        mirror.execute("update _rhei_history set noted_at = noted_at + interval 2 day")
    assert asked(tick(settings, instance, night(1))) == (day(4).isoformat(), day(2).isoformat())
    assert take(settings, instance, day(4), day(2)).success
    for back in (0, -1):  # also after a run that met nothing of what is removed
        missing = day(back + 1)
        assert asked(tick(settings, instance, night(back))) == (missing.isoformat(),) * 2
        if back == 0:
            assert take(settings, instance, missing, missing).success


def test_a_tick_before_the_first_window_has_ended_skips(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    assert "no window has ended" in str(tick(settings, instance, night(9)))


def test_a_day_ends_in_the_declared_time_zone(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    tokyo = declared(settings.sqlite_path.parent, time_zone="Asia/Tokyo")
    at = datetime(TODAY.year, TODAY.month, TODAY.day, 16, tzinfo=UTC)  # 01:00 tomorrow there
    assert asked(tick(tokyo, instance, at)) == (TODAY.isoformat(), TODAY.isoformat())


def test_a_window_may_be_a_week_and_goes_to_a_file_too(
    settings: Settings, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    weekday = (day(1).weekday() + 1) % 7  # as cron counts; so the last window ended yesterday
    weekly = declared(
        tmp_path,
        snapshot_window=f"0 0 * * {weekday}",
        snapshot_files=tmp_path / "out",
        snapshots_from=day(8),
    )
    week = day(8)
    assert take(weekly, instance, week, week).success
    assert instance.get_materialized_partitions(KEY) == {week.isoformat()}
    found = pq.read_table(tmp_path / "out" / "orders" / f"{week}.parquet").to_pylist()
    # No type of Parquet is an interval of months, days and microseconds.
    assert [(row["snapshot_date"], row["id"], row["lead"]) for row in found] == [(week, 1, "P1D")]


@pytest.mark.parametrize(
    ("field", "value"),
    [("snapshot_window", "0 * * * *"), ("time_zone", "Mars/Olympus"), ("snapshot_window", "daily")],
)
def test_windows_and_zones_that_cannot_be_kept_are_refused(
    tmp_path: Path, field: str, value: str
) -> None:
    with pytest.raises(rhei.SettingsError, match=f"schedule.{field}"):
        declared(tmp_path, **{field: value})


def test_a_snapshot_follows_its_mirror_once_the_day_is_over(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    definitions = build_definitions(settings)
    mirror = dg.AssetKey(["mirror", "orders"])
    instance.report_runless_asset_event(dg.AssetMaterialization(mirror))

    def evaluated(at: datetime, cursor: Any = None) -> dg.EvaluateAutomationConditionsResult:
        return dg.evaluate_automation_conditions(
            definitions,
            instance,
            asset_selection=dg.AssetSelection.assets(KEY),
            evaluation_time=at,
            cursor=cursor,
        )

    first = evaluated(night())
    assert first.get_requested_partitions(KEY) == {day(1).isoformat()}
    second = evaluated(night() + timedelta(minutes=1), first.cursor)
    assert second.total_requested == 0
