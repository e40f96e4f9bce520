"""Schedules that run a job of a pipeline once a day, in its time zone."""

import dagster as dg

from rhei_pipeline.dagster.declaration import Declaration


def daily_schedule(
    declaration: Declaration, name: str, job: str, hour: int, description: str, *, minute: int = 0
) -> dg.ScheduleDefinition:
    """Make the schedule of a job, both named without the pipeline's prefix; it is on."""
    names = declaration.names
    return dg.ScheduleDefinition(
        name=names.named(name),
        job_name=names.named(job),
        cron_schedule=f"{minute} {hour} * * *",
        execution_timezone=declaration.settings.schedule.time_zone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=description,
    )
