"""The daily snapshot: each night the day that has just ended."""

from collections.abc import Iterator
from datetime import timedelta

import dagster as dg

from rhei_pipeline.dagster.declaration import Declaration


def snapshot_schedules(declaration: Declaration) -> list[dg.ScheduleDefinition]:
    """Make the schedule that takes the snapshot of yesterday, once it is over."""
    if not declaration.temporal:
        return []
    names = declaration.names

    @dg.schedule(
        name=names.named("daily_snapshot"),
        job_name=names.named("snapshots"),
        cron_schedule=f"0 {declaration.settings.schedule.snapshot_hour} * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Takes the snapshot of the day that has just ended, in UTC.",
    )
    def daily_snapshot(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest]:
        day = (context.scheduled_execution_time - timedelta(days=1)).date().isoformat()
        yield dg.RunRequest(run_key=day, partition_key=day)

    return [daily_snapshot]
