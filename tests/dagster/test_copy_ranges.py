"""A copy in ranges, of which each run copies one."""

from collections.abc import Callable
from typing import Any

import dagster as dg
import pytest

from rhei_pipeline.dagster import build_definitions
from rhei_pipeline.protocols import Step
from tests.support.fix_world import World

pytestmark = pytest.mark.filterwarnings("ignore::dagster.BetaWarning")
ROWS = 100


@pytest.fixture
def shared(make_world: Callable[..., World]) -> World:
    """A copy in four ranges that was planned, and whose process is gone."""
    tables = [{"name": "t", "copy_ranges": 4}, {"name": "u"}]
    world = make_world(storage="parquet", batch_rows=5, tables=tables)
    world.run("create table t(id integer primary key, v text)")
    world.run("create table u(id integer primary key)")
    world.app.executemany("insert into t values (?, 'v')", [(n,) for n in range(ROWS)])
    world.faults.arm(Step.RANGES_PLANNED)
    assert world.surviving(world.htap.sync_now)
    return world


def run_range(definitions: dg.Definitions, number: int, instance: dg.DagsterInstance) -> Any:
    job = definitions.resolve_job_def("copy_ranges_of_t")
    config = {"ops": {"copy_range_of_t": {"config": {"wait_seconds": 0}}}}
    return job.execute_in_process(config, partition_key=str(number), instance=instance)


def told(result: Any) -> dict[str, Any]:
    (handled,) = [e for e in result.all_events if e.event_type_value == "STEP_OUTPUT"]
    found = handled.event_specific_data.metadata
    return {name: value.value for name, value in found.items()}


def test_each_run_copies_its_range_and_the_initial_sync_puts_all_in_place(shared: World) -> None:
    definitions = build_definitions(shared.settings)
    with dg.DagsterInstance.ephemeral() as instance:
        for number in (3, 1, 4):
            seen = told(run_range(definitions, number, instance))
            assert (seen["range"], seen["rows_copied"]) == (f"{number} of 4", 25)
            assert seen["outcome"] == "copied"
        assert seen["missing_ranges"] == "2"
        again = told(run_range(definitions, 3, instance))
        assert again["rows_copied"] == 0
        assert "another run has copied it" in again["outcome"]
        shared.run("update t set v = 'new' where id % 2 = 0", "delete from t where id = 60")
        copied = definitions.resolve_implicit_global_asset_job_def().execute_in_process(
            asset_selection=[dg.AssetKey(["initial_sync", "t"])], instance=instance
        )
        assert copied.success
        late = told(run_range(definitions, 2, instance))
        assert (late["range"], late["outcome"]) == ("2", "the copy was in place already")
    shared.assert_equal("t")
    assert shared.htap.verify().equal


def test_a_range_without_keys_says_so(shared: World) -> None:
    shared.tables = [{"name": "t", "copy_ranges": 6}]
    with dg.DagsterInstance.ephemeral() as instance:
        seen = told(run_range(build_definitions(shared.settings), 6, instance))
    assert (seen["range"], seen["rows_copied"]) == ("6 of 4", 0)
    assert "there are no keys for it" in seen["outcome"]


def test_the_job_has_a_partition_for_each_range_and_takes_no_slot_of_the_pool(
    shared: World,
) -> None:
    repository = build_definitions(shared.settings).get_repository_def()
    jobs = {job.name: job for job in repository.get_all_jobs()}
    assert not [name for name in jobs if name.startswith("copy_ranges") and name[-1] != "t"]
    job = jobs["copy_ranges_of_t"]
    assert job.partitions_def is not None
    assert job.partitions_def.get_partition_keys() == ["1", "2", "3", "4"]
    (op,) = [node.definition for node in job.nodes]
    assert isinstance(op, dg.OpDefinition)
    assert op.pool is None
    assert op.retry_policy is not None


def test_a_run_without_a_plan_fails_with_the_way_out(make_world: Callable[..., World]) -> None:
    tables = [{"name": "t", "copy_ranges": 2}]
    world = make_world(storage="parquet", tables=tables)
    world.run("create table t(id integer primary key)", "insert into t values (1), (2)")
    definitions = build_definitions(world.settings)
    with dg.DagsterInstance.ephemeral() as instance:
        with pytest.raises(dg.Failure, match="'rhei sync' or 'rhei copy' beside") as caught:
            run_range(definitions, 1, instance)
        way = {name: str(value.value) for name, value in caught.value.metadata.items()}
        assert "it plans them" in way["what_to_do"]
        assert "re-execute the run" in way["then"]
        world.faults.arm(Step.RANGES_PLANNED)
        assert world.surviving(world.htap.sync_now)
        assert told(run_range(definitions, 1, instance))["rows_copied"] == 1
