"""The nightly folding of a mirror's files: reads stay fast, and the disk small."""

from dataclasses import asdict

import dagster as dg

from assets.initial_sync import WRITER_POOL
from resources.olap import OlapResource
from rhei_pipeline import Settings


def needs_maintenance(settings: Settings) -> bool:
    """Return whether the mirror is in files that must be merged."""
    return settings.mirror.kind == "datafusion" and not settings.mirror.in_memory


def maintenance_job() -> dg.JobDefinition:
    """Make the job that folds the mirror's files."""

    @dg.op(pool=WRITER_POOL, description="Merges small files, and files with many deleted rows.")
    def fold(context: dg.OpExecutionContext, olap: OlapResource) -> None:
        with olap.open() as htap:
            report = htap.maintain()
            while not report.done:
                context.log.info("%d rows merged, and more remain", report.rows_written)
                report = htap.maintain()
        context.add_output_metadata({**asdict(report), "damaged": list(report.damaged)})
        if report.damaged:
            raise dg.Failure(" ".join(report.damaged), allow_retries=False)

    @dg.job(
        name="maintenance",
        description="Merges the mirror's files; queries go on meanwhile, and become faster.",
        executor_def=dg.in_process_executor,
    )
    def maintenance() -> None:
        fold()

    return maintenance


def maintenance_schedule(job: dg.JobDefinition, settings: Settings) -> dg.ScheduleDefinition:
    """Make the schedule that folds once a night."""
    return dg.ScheduleDefinition(
        name="nightly_maintenance",
        job=job,
        cron_schedule=f"0 {settings.schedule.maintenance_hour} * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Merges the mirror's files at night, in UTC.",
    )
