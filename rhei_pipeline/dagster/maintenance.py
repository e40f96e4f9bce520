"""The nightly folding of a mirror's files: reads stay fast, and the disk small."""

from dataclasses import asdict

import dagster as dg

from rhei_pipeline.dagster.declaration import Declaration
from rhei_pipeline.dagster.resources import OlapResource
from rhei_pipeline.settings.model import Settings


def maintenance_jobs(declaration: Declaration) -> list[dg.JobDefinition]:
    """Make the job that merges the mirror's files, where a mirror is in files that need it."""
    if not _needs_maintenance(declaration.settings):
        return []
    names = declaration.names

    @dg.op(
        name=names.named("merge_files"),
        pool=names.pool,
        description="Merges small files, and files with many deleted rows.",
        required_resource_keys={names.olap},
    )
    def merge_files(context: dg.OpExecutionContext) -> None:
        olap: OlapResource = getattr(context.resources, names.olap)
        with olap.open() as htap:
            report = htap.maintain()
            while not report.done:
                context.log.info("%d rows merged, and more remain", report.rows_written)
                report = htap.maintain()
        context.add_output_metadata({**asdict(report), "damaged": list(report.damaged)})
        if report.damaged:
            raise dg.Failure(" ".join(report.damaged), allow_retries=False)

    @dg.job(
        name=names.named("maintenance"),
        description="Merges the mirror's files. Queries are answered during it.",
        executor_def=dg.in_process_executor,
    )
    def maintenance() -> None:
        merge_files()

    return [maintenance]


def maintenance_schedules(declaration: Declaration) -> list[dg.ScheduleDefinition]:
    """Make the schedule that merges the mirror's files once a night."""
    if not _needs_maintenance(declaration.settings):
        return []
    names = declaration.names
    return [
        dg.ScheduleDefinition(
            name=names.named("nightly_maintenance"),
            job_name=names.named("maintenance"),
            cron_schedule=f"0 {declaration.settings.schedule.maintenance_hour} * * *",
            execution_timezone=declaration.settings.schedule.time_zone,
            default_status=dg.DefaultScheduleStatus.RUNNING,
            description="Merges the mirror's files at night.",
        )
    ]


def _needs_maintenance(settings: Settings) -> bool:
    return settings.mirror.kind == "datafusion" and not settings.mirror.in_memory
