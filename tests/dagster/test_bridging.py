"""With a buffer, changes leave the source while the mirror is away."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import dagster as dg
import pytest

import rhei_pipeline as rhei
from rhei_pipeline import Settings
from rhei_pipeline.dagster import CdcResource, OltpResource, build_definitions
from rhei_pipeline.dagster.relay import WAITING
from tests.support.holding import OtherProcess

#: Holds a file's lock as a process of another kind would that has the mirror open.
_HOLD = """
import sys
import duckdb
opened = duckdb.connect(sys.argv[1])
print("ready", flush=True)
sys.stdin.read()
"""
CHANGES = dg.AssetKey(["cdc", "changes"])


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A table of one row, mirrored through a buffer."""
    with sqlite3.connect(tmp_path / "app.db") as app:
        app.execute("create table orders(id integer primary key, status text)")
        app.execute("insert into orders values (1, 'new')")
    app.close()
    return Settings(
        source={"path": tmp_path / "app.db"},
        capture={"buffer": {"path": tmp_path / "buffer"}},
        mirror={"path": tmp_path / "mirror.duckdb", "lock_timeout_seconds": 0.1},
        registry={"path": tmp_path / "registry.json"},
        tables=[{"name": "orders"}],
        schedule={"mode": "run", "catalog_seconds": 60},
    )


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "home").mkdir()
    with dg.instance_for_test(temp_dir=str(tmp_path / "home")) as made:
        yield made


@pytest.mark.long
def test_changes_go_into_the_buffer_while_the_mirror_is_away_and_then_into_the_mirror(
    settings: Settings, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    definitions = build_definitions(settings)

    def run(name: str) -> dg.ExecuteInProcessResult:
        job = definitions.resolve_job_def(name)
        return job.execute_in_process(instance=instance, raise_on_error=False)

    assert run("sync").success
    assert "sync sessions fill the buffer" in str(ticked(settings, definitions, instance))
    with OtherProcess(_HOLD, str(settings.mirror.path)):
        app = sqlite3.connect(settings.sqlite_path)
        with app:
            app.execute("insert into orders values (2, 'new'), (3, 'new')")
            app.execute("update orders set status = 'sent' where id = 1")
        with monkeypatch.context() as patch:
            patch.setattr("rhei_pipeline.dagster.mirrors.OPEN_SECONDS", 0.0)
            assert not run("sync").success  # it waits for no longer than that
        assert isinstance(ticked(settings, definitions, instance), dg.RunRequest)
        session = dg.DagsterRun("sync", str(uuid4()), status=dg.DagsterRunStatus.STARTED)
        instance.add_run(session)
        assert "sync sessions fill the buffer" in str(ticked(settings, definitions, instance))
        instance.add_run_tags(session.run_id, {WAITING: "yes"})
        asked = ticked(settings, definitions, instance)
        assert isinstance(asked, dg.RunRequest)
        assert run("bridge").success
        told = instance.get_latest_materialization_event(CHANGES)
        assert told is not None
        assert told.asset_materialization is not None
        assert told.asset_materialization.metadata["events_bridged"].value == 3
        assert int(str(told.asset_materialization.metadata["held_bytes"].value)) > 0
        # The source has let them go, all but the newest: it proves that none is missing.
        assert app.execute("select count(*) from _rhei_log_orders").fetchone() == (1,)
        assert "the buffer has every change" in str(ticked(settings, definitions, instance))
        expected = app.execute("select * from orders order by id").fetchall()
        app.close()
    assert run("sync").success
    with rhei.open(settings) as htap:
        found = htap.query("select * from orders order by id", hint="olap").to_pylist()
    assert [tuple(row.values()) for row in found] == expected


def test_a_bridge_leaves_the_buffer_to_the_session_that_has_it_open(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    bridge = build_definitions(settings).resolve_job_def("bridge")
    with rhei.open(settings) as htap:
        htap.sync_now()
        result = bridge.execute_in_process(instance=instance)
    assert result.success
    assert not result.get_asset_materialization_events()


def ticked(
    settings: Settings, definitions: dg.Definitions, instance: dg.DagsterInstance
) -> dg.RunRequest | str:
    """Return what the sensor asks for, or why for nothing."""
    repository = definitions.get_repository_def()
    cdc = CdcResource.of(settings, OltpResource.of(settings))
    with dg.build_sensor_context(
        instance=instance, repository_def=repository, resources={"cdc": cdc}
    ) as context:
        found = repository.get_sensor_def("mirror_away").evaluate_tick(context)
    return found.run_requests[0] if found.run_requests else str(found.skip_message)
