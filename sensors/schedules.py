"""The daily snapshot: each night the day that has just ended."""

from collections.abc import Iterator
from datetime import timedelta

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import (
    UnresolvedAssetJobDefinition,
)

from rhei_pipeline import Settings


def snapshot_job() -> UnresolvedAssetJobDefinition:
    """Make the job that takes snapshots of days."""
    return dg.define_asset_job(
        "snapshots",
        selection=dg.AssetSelection.groups("snapshot"),
        description="Takes a snapshot of every temporal table as of the end of a day. Can be "
        "backfilled for any days.",
        executor_def=dg.in_process_executor,
    )


def snapshot_schedule(
    job: UnresolvedAssetJobDefinition, settings: Settings
) -> dg.ScheduleDefinition:
    """Make the schedule that snapshots yesterday, once it is over."""

    @dg.schedule(
        job=job,
        cron_schedule=f"0 {settings.schedule.snapshot_hour} * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Takes the snapshot of the day that has just ended, in UTC.",
    )
    def daily_snapshot(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest]:
        day = (context.scheduled_execution_time - timedelta(days=1)).date().isoformat()
        yield dg.RunRequest(run_key=day, partition_key=day)

    return daily_snapshot
