"""A small source and its pipeline in an instance of Dagster, worked in this process."""

import asyncio
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass

import dagster as dg
from dagster._core.loader import LoadingContextForTest

from rhei_pipeline import Settings
from rhei_pipeline.dagster import CdcResource, OltpResource, build_definitions
from rhei_pipeline.dagster.check_records import last_evaluations


@dataclass
class Shop:
    """A small source, its declaration, and an instance of Dagster."""

    settings: Settings
    instance: dg.DagsterInstance

    @property
    def definitions(self) -> dg.Definitions:
        return build_definitions(self.settings)

    def write(self, *statements: str) -> None:
        with closing(sqlite3.connect(self.settings.sqlite_path)) as connection, connection:
            for statement in statements:
                connection.execute(statement)

    def sync(self, tags: Mapping[str, str] | None = None) -> dg.ExecuteInProcessResult:
        job = self.definitions.resolve_job_def("sync")
        return job.execute_in_process(instance=self.instance, raise_on_error=False, tags=tags)

    def tick(
        self, times: int = 1, repository: dg.RepositoryDefinition | None = None
    ) -> dg.RunRequest | str:
        """Return what the sensor asks for, or why for nothing; after the last of its ticks."""
        repository = repository or self.definitions.get_repository_def()
        sensor = repository.get_sensor_def("pending_changes")
        for _ in range(times):
            cdc = CdcResource.of(self.settings, OltpResource.of(self.settings))
            with dg.build_sensor_context(
                instance=self.instance, repository_def=repository, resources={"cdc": cdc}
            ) as context:
                found = sensor.evaluate_tick(context)
        return found.run_requests[0] if found.run_requests else str(found.skip_message)

    def check(self, table: str, name: str, stage: str = "mirror") -> dg.AssetCheckEvaluation:
        key = dg.AssetCheckKey(dg.AssetKey([stage, table]), name)
        return last_evaluations(self.instance, [key])[key]

    def shows(self, table: str, name: str) -> bool | None:
        """Return what Dagster's UI shows of a check: None where it says "not evaluated"."""
        key = dg.AssetCheckKey(dg.AssetKey(["mirror", table]), name)
        storage = self.instance.event_log_storage
        record = storage.get_latest_asset_check_execution_by_key([key])[key]
        is_shown = record.targets_latest_materialization(LoadingContextForTest(self.instance))
        return self.check(table, name).passed if asyncio.run(is_shown) else None

    def failing(self, table: str) -> set[str]:
        """Return the checks of a table that fail."""
        names = ["followed", "dead_letters", "drift", "lag", "proof", "history"]
        keys = [dg.AssetCheckKey(dg.AssetKey(["mirror", table]), name) for name in names]
        found = last_evaluations(self.instance, keys).values()
        return {evaluation.check_name for evaluation in found if not evaluation.passed}
