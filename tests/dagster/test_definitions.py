"""The Dagster layer: it loads from anywhere, its graph is as meant, its runs move rows."""

import json
import os
import re
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import psycopg
import pyarrow.parquet as pq
import pytest

import rhei_pipeline as rhei
from config.settings import load
from definitions import build
from rhei_pipeline import HTAP, Settings, SettingsError
from rhei_pipeline.dagster import CdcResource, OltpResource, build_definitions
from rhei_pipeline.dagster.session import Session
from rhei_pipeline.protocols import Step
from rhei_pipeline.settings.sections import TableSettings, VerifySettings

PROJECT = Path(__file__).parents[2]

STATE_CHECKS = ("followed", "dead_letters", "drift", "lag", "proof")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A declaration over a source of two tables, one of them temporal."""
    connection = sqlite3.connect(tmp_path / "app.db")
    connection.executescript(
        "create table orders(id integer primary key, status text not null);"
        'create table "odd name"(k text primary key, v real);'
        "insert into orders values (1, 'new'), (2, 'new');"
        "insert into \"odd name\" values ('a', 1.5);"
    )
    connection.close()
    file = tmp_path / "pipeline.yaml"
    today = (datetime.now(UTC) - timedelta(days=3)).date().isoformat()
    file.write_text(
        "source: {path: app.db}\nmirror: {path: mirror.duckdb, lock_timeout_seconds: 2}\n"
        "registry: {path: registry.json}\nsync: {interval_seconds: 0.05}\n"
        "tables: [{name: orders, mode: temporal}, {name: odd name}]\n"
        f"schedule: {{idle_seconds: 1, report_seconds: 0.3, snapshots_from: {today}}}\n"
    )
    monkeypatch.setenv("RHEI_CONFIG", str(file))
    return Settings.load(file)


@pytest.mark.parametrize("names", [("一七", "丂丣"), ("a.b", "a_b_2e73")])
def test_tables_whose_names_are_written_alike_have_keys_and_files_of_their_own(
    settings: Settings, instance: dg.DagsterInstance, tmp_path: Path, names: tuple[str, str]
) -> None:
    for number, name in enumerate(names):
        write(settings, f'create table "{name}"(id integer primary key)')
        write(settings, f'insert into "{name}" values ({number})')
    settings = settings.model_copy(
        update={
            "tables": [TableSettings(name=name, mode="temporal") for name in names],
            "schedule": settings.schedule.model_copy(update={"snapshot_files": tmp_path / "out"}),
        }
    )
    definitions = build_definitions(settings)
    dg.Definitions.validate_loadable(definitions)
    job = definitions.resolve_implicit_global_asset_job_def()
    snapshots = [
        key
        for key in definitions.resolve_asset_graph().get_all_asset_keys()
        if "snapshot" in key.path
    ]
    assert len(snapshots) == 2
    today = datetime.now(UTC).date().isoformat()
    assert job.execute_in_process(
        instance=instance, asset_selection=snapshots, partition_key=today
    ).success
    found = [
        pq.read_table(file)["id"].to_pylist() for file in (tmp_path / "out").rglob("*.parquet")
    ]
    assert sorted(found) == [[0], [1]]


def test_a_code_server_may_have_one_shard(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    declared = Path(os.environ["RHEI_CONFIG"])
    declared.write_text(f"{declared.read_text()}name: shop\nshards: [[orders], []]\n")
    for shard, tables in (("", ["odd_name", "orders"]), ("1", ["orders"]), ("2", ["odd_name"])):
        monkeypatch.setenv("RHEI_SHARD", shard)
        found = build(load())
        keys = found.resolve_asset_graph().get_all_asset_keys()
        mirrored = sorted(key.path[-1] for key in keys if key.path[-2] == "mirror")
        assert len(mirrored) == len(tables)
        assert all(map(str.startswith, mirrored, tables))
    for wrong in ("3", "two"):
        monkeypatch.setenv("RHEI_SHARD", wrong)
        with pytest.raises(SettingsError, match=wrong):
            load()


def test_a_mirror_in_files_is_kept_in_sync_and_folded_at_night(
    settings: Settings, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    file = Path(os.environ["RHEI_CONFIG"])
    declared = file.read_text().replace(
        "mirror: {path: mirror.duckdb,", "mirror: {kind: datafusion, storage: ipc, path: mirror,"
    )
    file.write_text(declared)
    settings = Settings.load(file)
    found = build(settings)
    assert run(settings, instance, "initial_sync/orders").success
    write(settings, "update orders set status = 'sent'")
    result = found.resolve_job_def("maintenance").execute_in_process(instance=instance)
    assert result.success
    names = {schedule.name for schedule in found.schedules or ()}
    assert {"daily_snapshot", "nightly_maintenance"} <= names
    with rhei.open(settings) as htap:
        htap.sync_now()
        assert htap.verify().equal


@pytest.mark.long
def test_bounded_histories_are_shortened_at_night_and_say_since_when_they_are_kept(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    assert "maintenance" not in {job.name for job in build(settings).jobs or ()}
    file = Path(os.environ["RHEI_CONFIG"])
    bounded = file.read_text().replace(
        "mode: temporal}", "mode: temporal, history: {keep_versions: 1}}"
    )
    file.write_text(bounded)
    settings = Settings.load(file)
    with rhei.open(settings) as htap:
        htap.sync_now()
        write(settings, "update orders set status = 'sent'")
        htap.sync_now()
    job = build(settings).resolve_job_def("maintenance")
    result = job.execute_in_process(instance=instance)
    assert result.success
    with rhei.open(settings) as htap:
        since = htap.known_since("orders")
    key = dg.AssetKey(["mirror", "orders"])
    observed = instance.fetch_observations(key, limit=1).records[0].asset_observation
    assert observed is not None
    assert observed.metadata["history_kept_since"].value == since.timestamp()


def test_dead_letters_are_counted_by_reason_and_settled_by_a_job(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    with rhei.open(settings) as htap:
        htap.sync_now()
        write(settings, "update orders set id = id, status = x'ff'")
        htap.sync_now()
        found = htap.sync_status().tables["orders"]
    [(reason, count)] = found.dead_letter_reasons.items()
    assert (count, "status" in reason) == (found.dead_letters, True)
    job = build(settings).resolve_job_def("dead_letters")
    write(settings, "update orders set status = 'corrected'")
    replayed = job.execute_in_process(instance=instance)
    assert replayed.success
    with rhei.open(settings) as htap:
        assert htap.dead_letters().num_rows == 0
        write(settings, "update orders set status = x'ff'")
        htap.sync_now()
    asked = {"ops": {"settle_dead_letters": {"config": {"drop": True, "table": "orders"}}}}
    file = Path(os.environ["RHEI_CONFIG"])
    file.write_text(file.read_text() + "dead_letters: {max_rows: 2}\n")
    job = build(Settings.load(file)).resolve_job_def("dead_letters")
    write(settings, "insert into orders values (3, x'ff')")  # one too many: it is left out
    assert not job.execute_in_process(instance=instance, raise_on_error=False).success
    assert job.execute_in_process(instance=instance, run_config=asked).success
    with rhei.open(settings) as htap:
        assert htap.dead_letters()["key"].to_pylist() == ['{"id": 3}']
    write(settings, "drop table orders")
    left_out = job.execute_in_process(instance=instance, raise_on_error=False)
    assert not left_out.success
    (failed,) = left_out.get_step_failure_events()
    assert "'orders'" in str(failed.step_failure_data.user_failure_data)


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "home").mkdir()
    with dg.instance_for_test(temp_dir=str(tmp_path / "home")) as made:
        yield made


def write(settings: Settings, *statements: str) -> None:
    connection = sqlite3.connect(settings.sqlite_path)
    with connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def run(
    settings: Settings, instance: dg.DagsterInstance, *keys: str, **options: object
) -> dg.ExecuteInProcessResult:
    job = build(settings).resolve_implicit_global_asset_job_def()
    chosen = [dg.AssetKey(key.split("/")) for key in keys]
    return job.execute_in_process(asset_selection=chosen, instance=instance, **options)  # type: ignore[arg-type]


def mirror(settings: Settings, sql: str) -> list[dict[str, object]]:
    with rhei.open(settings) as htap:
        found: list[dict[str, object]] = htap.query(sql, hint="olap").to_pylist()
        return found


def test_the_graph_is_the_architecture(settings: Settings) -> None:
    graph = build(settings).resolve_asset_graph()
    edges = {
        key.to_user_string(): sorted(
            parent.to_user_string() for parent in graph.get(key).parent_keys
        )
        for key in graph.get_all_asset_keys()
    }
    assert edges == {
        "oltp/orders": [],
        "oltp/odd_name_ef5b": [],
        "cdc/changes": ["oltp/odd_name_ef5b", "oltp/orders"],
        "initial_sync/orders": ["oltp/orders"],
        "initial_sync/odd_name_ef5b": ["oltp/odd_name_ef5b"],
        "mirror/orders": ["cdc/changes", "initial_sync/orders"],
        "mirror/odd_name_ef5b": ["cdc/changes", "initial_sync/odd_name_ef5b"],
        "snapshot/orders": ["mirror/orders"],
    }


def test_what_is_done_daily_ticks_in_the_time_zone_and_its_runs_are_not_kept_for_ever(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    mirror = {"kind": "datafusion", "path": settings.mirror.path.parent / "files"}
    form = settings.model_dump() | {"mirror": mirror}
    kept = Settings(**form).schedule.model_copy(
        update={"time_zone": "Asia/Tokyo", "keep_runs_days": -1}
    )
    chosen = Settings(**form).model_copy(update={"schedule": kept})
    repository = build_definitions(chosen).get_repository_def()
    zones = {found.name: found.execution_timezone for found in repository.schedule_defs}
    daily = {"verification", "maintenance", "housekeeping"}
    names = {"daily_verification", "daily_housekeeping", "nightly_maintenance", "daily_snapshot"}
    assert zones == dict.fromkeys(names, "Asia/Tokyo")
    runs = {
        name: instance.create_run_for_job(
            repository.get_job(name), status=dg.DagsterRunStatus.SUCCESS
        ).run_id
        for name in (*daily, "snapshots")
    }
    assert repository.get_job("housekeeping").execute_in_process(instance=instance).success
    assert {name for name, run in runs.items() if instance.get_run_by_id(run)} == {"snapshots"}


def test_jobs_schedules_sensors_checks_and_groups(settings: Settings) -> None:
    definitions = build(settings)
    repository = definitions.get_repository_def()
    assert {job.name for job in repository.get_all_jobs()} >= {"sync", "snapshots"}
    schedules = {schedule.name for schedule in repository.schedule_defs}
    assert schedules >= {"daily_housekeeping", "daily_snapshot", "daily_verification"}
    sensors = {sensor.name for sensor in repository.sensor_defs}
    assert sensors >= {"pending_changes", "new_tables"}
    graph = definitions.resolve_asset_graph()
    groups = {graph.get(key).group_name for key in graph.get_all_asset_keys()}
    assert groups == {"oltp", "mirror", "snapshot"}
    checks = {f"{key.asset_key.to_user_string()}:{key.name}" for key in graph.asset_check_keys}
    assert checks == {
        "initial_sync/orders:row_parity",
        "initial_sync/odd_name_ef5b:row_parity",
        *(f"mirror/orders:{check}" for check in (*STATE_CHECKS, "history")),
        *(f"mirror/odd_name_ef5b:{check}" for check in STATE_CHECKS),
        "mirror/orders:equals_source",
        "mirror/odd_name_ef5b:equals_source",
    }
    assert repository.get_top_level_resources().keys() == {"oltp", "cdc", "olap"}


@pytest.mark.long
def test_the_workspace_loads_from_any_directory(settings: Settings, tmp_path: Path) -> None:
    found = subprocess.run(
        [
            sys.executable,
            "-m",
            "dagster",
            "definitions",
            "validate",
            "-w",
            str(PROJECT / "workspace.yaml"),
        ],
        cwd=tmp_path,
        env={**os.environ, "RHEI_CONFIG": str(tmp_path / "pipeline.yaml"), "DAGSTER_HOME": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr


def test_an_initial_sync_copies_and_proves_parity(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    result = run(settings, instance, "initial_sync/orders", "initial_sync/odd_name_ef5b")
    assert result.success
    checks = result.get_asset_check_evaluations()
    assert len(checks) == 2
    assert all(check.passed for check in checks)
    assert mirror(settings, "select id, status from orders order by id") == [
        {"id": 1, "status": "new"},
        {"id": 2, "status": "new"},
    ]


def test_a_session_moves_rows_and_reports_the_same_numbers_each_time(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    run(settings, instance, "initial_sync/orders", "initial_sync/odd_name_ef5b")
    write(settings, "update orders set status = 'paid' where id = 1")
    result = run(settings, instance, "mirror/orders", "mirror/odd_name_ef5b")
    assert result.success
    event = instance.get_latest_materialization_event(dg.AssetKey(["mirror", "orders"]))
    assert event is not None
    assert event.asset_materialization is not None
    metadata = event.asset_materialization.metadata
    assert {
        "change_lag_ms_p50",
        "change_lag_ms_max",
        "rows_applied",
        "events_applied",
        "sync_ms_max",
        "dagster/row_count",
        "watermark",
    } <= set(metadata)
    assert metadata["dagster/row_count"].value == 2
    found = mirror(settings, "select status from orders where id = 1 and _rhei_valid_to is null")
    assert found == [{"status": "paid"}]


def test_a_sensor_tick_opens_a_session_while_something_is_pending(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    definitions = build(settings)
    repository = definitions.get_repository_def()
    sensor = repository.get_sensor_def("pending_changes")

    def tick() -> dg.RunRequest | dg.SkipReason:
        cdc = CdcResource.of(settings, OltpResource.of(settings))
        with dg.build_sensor_context(
            instance=instance, repository_def=repository, resources={"cdc": cdc}
        ) as context:
            found = sensor.evaluate_tick(context)
        if found.run_requests:
            return found.run_requests[0]
        return dg.SkipReason(found.skip_message)

    first = tick()
    assert isinstance(first, dg.RunRequest)
    assert first.tags["rhei/reason"].startswith("never synced")
    job = definitions.resolve_job_def("sync")
    assert job.execute_in_process(instance=instance).success
    assert "up to date" in str(tick())
    write(settings, "insert into orders values (3, 'new')")
    again = tick()
    assert isinstance(again, dg.RunRequest)
    assert again.tags["rhei/reason"] == "1 change pending"
    assert job.execute_in_process(instance=instance).success
    assert "up to date" in str(tick())
    assert len(mirror(settings, "select * from orders")) == 3


def test_a_sensor_whose_source_is_gone_fails_by_name(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    repository = build(settings).get_repository_def()
    run(settings, instance, "initial_sync/orders")
    settings.sqlite_path.rename(settings.sqlite_path.with_suffix(".away"))
    cdc = CdcResource.of(settings, OltpResource.of(settings))
    with (
        dg.build_sensor_context(
            instance=instance, repository_def=repository, resources={"cdc": cdc}
        ) as context,
        pytest.raises(rhei.RheiError, match="does not exist"),
    ):
        repository.get_sensor_def("pending_changes").evaluate_tick(context)


def test_a_table_that_is_not_there_is_named_and_the_others_load(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    declared = [TableSettings(name="ordrs"), TableSettings(name="orders")]
    defs = build(settings.model_copy(update={"tables": declared}))
    assert re.search(r"'ordrs'.*did you mean 'orders'", caplog.text)
    keys = {key.to_user_string() for key in defs.resolve_asset_graph().get_all_asset_keys()}
    assert "mirror/orders" in keys


@pytest.mark.long
def test_a_check_shows_what_differs(settings: Settings, instance: dg.DagsterInstance) -> None:
    run(settings, instance, "initial_sync/orders", "initial_sync/odd_name_ef5b")
    write(settings, "insert into \"odd name\" values ('b', 'no number')")
    result = run(settings, instance, "mirror/odd_name_ef5b")
    checks = {check.check_name: check for check in result.get_asset_check_evaluations()}
    equals = checks["equals_source"]
    assert not equals.passed
    assert equals.metadata["dead_letters"].value == 1
    assert json.loads(json.dumps(equals.metadata["examples"].value)) == {}


@pytest.mark.long
def test_a_check_goes_on_where_the_last_one_ended(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    settings = settings.model_copy(update={"verify": VerifySettings(max_rows=1)})
    found = []
    for _ in range(2):
        result = run(settings, instance, "mirror/orders")
        checks = {check.check_name: check for check in result.get_asset_check_evaluations()}
        assert checks["equals_source"].passed
        found.append({name: v.value for name, v in checks["equals_source"].metadata.items()})
    assert [each["rows_of_this_round"] for each in found] == [1, 2]
    assert [each["verified_through"] for each in found] == ['{"id": 1}', "the end"]
    assert ["oldest_part_checked_at" in each for each in found] == [False, True]


@pytest.mark.long
def test_a_session_that_copies_says_so_of_the_initial_sync(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    assert run(settings, instance, "mirror/orders", "mirror/odd_name_ef5b").success
    event = instance.get_latest_materialization_event(dg.AssetKey(["initial_sync", "orders"]))
    assert event is not None
    assert event.asset_materialization is not None
    assert event.asset_materialization.metadata["rows_copied"].value == 2


def test_a_session_does_not_end_while_a_cycle_is_under_way(settings: Settings) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def wait(step: Step) -> None:
        if step is Step.COPY_COMPLETE and not go_on.is_set():
            reached.set()
            go_on.wait(60)

    with HTAP(settings, on_step=wait) as htap:
        session = Session(htap, {}, report_seconds=60, idle_seconds=0.2)
        session.collect()
        assert reached.wait(60)
        time.sleep(0.8)
        session.collect()
        assert not session.idle
        go_on.set()
        while not session.idle:  # as it does once there is nothing more to do
            session.collect()
            time.sleep(0.05)


@pytest.mark.long
def test_a_postgres_source_syncs_and_wakes_the_sensor(
    dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instance: dg.DagsterInstance
) -> None:
    monkeypatch.setenv("RHEI__SOURCE__DSN", dsn)
    file = tmp_path / "pipeline.yaml"
    file.write_text(
        "source: {kind: postgres}\nmirror: {path: mirror.duckdb}\nsync: {interval_seconds: 0.05}\n"
        "registry: {path: registry.json}\nschedule: {idle_seconds: 0.5, report_seconds: 0.3}\n"
        "tables: [{name: sales.orders, mode: temporal}]\n"
    )
    monkeypatch.setenv("RHEI_CONFIG", str(file))
    settings = Settings.load(file)
    with psycopg.connect(dsn, autocommit=True) as app:
        app.execute("create schema sales")
        app.execute("create table sales.orders(id int primary key, status text)")
        app.execute("insert into sales.orders values (1, 'new')")
        cdc = CdcResource.of(settings, OltpResource.of(settings))
        assert cdc.pending() is None
        assert run(settings, instance, "mirror/sales/orders").success
        assert cdc.pending() == 0
        app.execute("update sales.orders set status = 'paid'")
        assert cdc.pending() == 1
        assert run(settings, instance, "mirror/sales/orders").success
        assert cdc.pending() == 0
    found = mirror(settings, "select status from sales.orders order by _rhei_valid_from")
    assert [row["status"] for row in found] == ["new", "paid"]
    spec = build(settings).resolve_asset_graph().get(dg.AssetKey(["oltp", "sales", "orders"]))
    assert dsn not in str(spec.metadata)


def test_the_definitions_load_whatever_the_source_looks_like(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    """A declared table has its assets, whether it is there or not; what is wrong is named."""
    with rhei.open(settings) as htap:
        htap.sync_now()
    write(settings, 'drop table "odd name"')
    declared = [*(settings.tables or ()), TableSettings(name="none"), TableSettings(name="orders")]
    found = build(settings.model_copy(update={"tables": declared}))
    keys = {key.to_user_string() for key in found.resolve_asset_graph().get_all_asset_keys()}
    assert len([key for key in keys if key.startswith(("mirror/orders", "mirror/odd_name"))]) == 2
    assert "mirror/none" in keys
    assert sorted(found.metadata or {}) == ["left out: none", "left out: odd name"]
    empty = build(settings.model_copy(update={"tables": [TableSettings(name="none")]}))
    assert len(empty.resolve_asset_graph().get_all_asset_keys()) == 4
    # The session ends when the others are idle, though a table is left out for good.
    assert build(settings).resolve_job_def("sync").execute_in_process(instance=instance).success
    assert len(mirror(settings, "select * from orders")) == 2
