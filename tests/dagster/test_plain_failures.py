"""The last word of a run that failed is what is wrong and what to do, whatever the run was."""

import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from pydantic import ValidationError

import rhei_pipeline as rhei
from rhei_pipeline import Settings
from rhei_pipeline.dagster import build_definitions

pytestmark = pytest.mark.filterwarnings("ignore::dagster.BetaWarning")

YESTERDAY = (datetime.now(UTC).date() - timedelta(days=1)).isoformat()


@pytest.fixture(scope="module")
def definitions(tmp_path_factory: pytest.TempPathFactory) -> dg.Definitions:
    """What is declared of a source that is not there any more."""
    root = tmp_path_factory.mktemp("shop")
    with closing(sqlite3.connect(root / "app.db")) as app:
        app.execute("create table orders(id integer primary key, status text)")
    settings = Settings(
        source={"path": root / "app.db"},
        capture={"buffer": {"kind": "rocksdb", "path": root / "cdc"}},
        mirror={"kind": "datafusion", "storage": "parquet", "path": root / "mirror"},
        registry={"path": root / "registry.json"},
        tables=[{"name": "orders", "mode": "temporal"}],
        schedule={"idle_seconds": 0.2, "catalog_seconds": 60},
    )
    with rhei.open(settings) as htap:
        htap.sync_now()
    made = build_definitions(settings)
    Path(root / "app.db").rename(root / "app.away")
    return made


@pytest.mark.parametrize(
    ("job", "partition"),
    [
        ("sync", None),
        ("bridge", None),
        ("verification", None),
        ("dead_letters", None),
        ("maintenance", None),
        ("snapshots", YESTERDAY),
        ("initial_sync", None),
        ("checks", None),
    ],
)
def test_a_run_that_fails_ends_with_the_words_of_the_error(
    job: str, partition: str | None, definitions: dg.Definitions
) -> None:
    asked = [dg.AssetKey([job, "orders"])] if job == "initial_sync" else None
    made = (
        definitions.resolve_implicit_global_asset_job_def()
        if job in ("initial_sync", "checks")
        else definitions.resolve_job_def(job)
    )
    if job == "checks":
        key = dg.AssetCheckKey(dg.AssetKey(["mirror", "orders"]), "followed")
        made = made.get_subset(asset_selection=set(), asset_check_selection={key})
    with dg.instance_for_test() as instance:
        found = made.execute_in_process(
            instance=instance, raise_on_error=False, partition_key=partition, asset_selection=asked
        )
        logged = instance.all_logs(found.run_id, of_type=dg.DagsterEventType.RUN_FAILURE)
    (last,) = logged
    assert last.dagster_event is not None
    error = last.dagster_event.job_failure_data.error
    assert error is not None
    assert error.message.startswith("dagster._core.definitions.events.Failure: ")
    assert "app.db' does not exist (correct source.path" in error.message


@pytest.mark.parametrize("field", ["session_seconds", "idle_seconds"])
@pytest.mark.parametrize("value", [-5.0, 0.0, float("nan")])
def test_a_session_that_cannot_last_as_long_as_asked_for_names_the_field(
    field: str, value: float, definitions: dg.Definitions
) -> None:
    asked = {"ops": {"sync_session": {"config": {field: value}}}}
    with pytest.raises(ValidationError, match=rf"SessionConfig\n{field}\n"):
        definitions.resolve_job_def("sync").execute_in_process(run_config=asked)
