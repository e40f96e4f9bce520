"""The nightly folding of a mirror's files: reads stay fast, and the disk small."""

from dataclasses import asdict

import dagster as dg

from assets.initial_sync import WRITER_POOL
from resources.olap import OlapResource
from rhei_pipeline import Settings


def needs_maintenance(settings: Settings) -> bool:
    """Tell whether the mirror rests in files that have to be folded."""
    return settings.mirror.kind == "datafusion" and not settings.mirror.in_memory


def maintenance_job() -> dg.JobDefinition:
    """Make the job that folds the mirror's files."""

    @dg.op(pool=WRITER_POOL, description="Folds small files, and files that lost many rows.")
    def fold(context: dg.OpExecutionContext, olap: OlapResource) -> None:
        with olap.open() as htap:
            report = htap.maintain()
            while not report.done:
                context.log.info("%d rows folded, and more to go", report.rows_written)
                report = htap.maintain()
        context.add_output_metadata({**asdict(report), "damaged": list(report.damaged)})
        if report.damaged:
            raise dg.Failure(" ".join(report.damaged), allow_retries=False)

    @dg.job(
        name="maintenance",
        description="Folds the mirror's files; readers notice nothing but the speed.",
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
        description="Folds the mirror's files at night, in UTC.",
    )
