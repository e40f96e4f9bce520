"""Pending changes open a sync session. The level decides, not the edge: nothing is ever missed."""

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import (
    UnresolvedAssetJobDefinition,
)

from resources.cdc import CdcResource
from rhei_pipeline import Settings, TransientError

_ACTIVE = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def sync_job(settings: Settings) -> UnresolvedAssetJobDefinition:
    """Make the job whose runs are sync sessions."""
    backstop = str(int(settings.schedule.session_seconds * 2 + 600))
    return dg.define_asset_job(
        "sync",
        selection=dg.AssetSelection.groups("mirror") - dg.AssetSelection.all_asset_checks(),
        description="A sync session: syncs while changes are pending, reports lag, ends when idle.",
        executor_def=dg.in_process_executor,
        run_tags={"dagster/max_runtime": backstop, "dagster/priority": "-1"},
    )


def changes_sensor(job: UnresolvedAssetJobDefinition, settings: Settings) -> dg.SensorDefinition:
    """Make the sensor that compares the source's head with what the mirror has acknowledged."""

    @dg.sensor(
        job=job,
        minimum_interval_seconds=1,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Opens a sync session whenever changes are pending and none is open.",
    )
    def pending_changes(
        context: dg.SensorEvaluationContext, cdc: CdcResource
    ) -> dg.RunRequest | dg.SkipReason:
        active = context.instance.get_run_records(
            dg.RunsFilter(job_name=job.name, statuses=_ACTIVE), limit=1
        )
        if active:
            return dg.SkipReason("a sync session is open")
        try:
            pending = cdc.unseen(settings)
        except TransientError as error:
            # Any other error fails the tick: it shows red until somebody has mended it.
            return dg.SkipReason(f"the source cannot be read now: {error}")
        if pending == 0:
            return dg.SkipReason("up to date: the mirror has every change")
        reason = "never synced" if pending is None else f"{pending} changes pending"
        return dg.RunRequest(tags={"rhei/reason": reason})

    return pending_changes
