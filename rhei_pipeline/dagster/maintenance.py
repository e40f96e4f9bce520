"""What a mirror needs each night: old versions are removed as declared, and small files merged."""

from collections.abc import Iterator, Sequence

import dagster as dg

from rhei_pipeline.dagster.daily import daily_schedule
from rhei_pipeline.dagster.declaration import Declaration
from rhei_pipeline.dagster.plain_failures import said_plainly
from rhei_pipeline.dagster.resources import OlapResource
from rhei_pipeline.dagster.stages import Stage
from rhei_pipeline.model.retention import ExpiredHistory
from rhei_pipeline.settings.model import Settings


def maintenance_jobs(declaration: Declaration) -> list[dg.JobDefinition]:
    """Make the job for a mirror that is in files, or whose histories are bounded."""
    if not _needs_maintenance(declaration.settings):
        return []
    names = declaration.names

    @dg.op(
        name=names.named("merge_files"),
        pool=names.pool,
        description="Removes versions that are not to be kept; merges small files, and files with"
        " many deleted rows.",
        required_resource_keys={names.olap},
    )
    def merge_files(context: dg.OpExecutionContext) -> None:
        olap: OlapResource = getattr(context.resources, names.olap)
        with said_plainly(), olap.open() as htap:
            report = htap.maintain()
            expired = [*report.expired]
            while not report.done:
                context.log.info("%d rows merged, and more remain", report.rows_written)
                report = htap.maintain()
                expired += report.expired
        for observation in _shortened(declaration, expired):
            context.log_event(observation)
        told = report.to_dict()
        told["versions_removed"] = sum(found.versions for found in expired)
        told["kept_since"] = {found.table: found.kept_since.isoformat() for found in expired}
        context.add_output_metadata({name: told[name] for name in told if name != "expired"})
        if report.damaged:
            raise dg.Failure(" ".join(report.damaged), allow_retries=False)

    @dg.job(
        name=names.named("maintenance"),
        description="Removes old versions as declared, and merges the mirror's files. Queries are"
        " answered during it.",
        executor_def=dg.in_process_executor,
    )
    def maintenance() -> None:
        merge_files()

    return [maintenance]


def maintenance_schedules(declaration: Declaration) -> list[dg.ScheduleDefinition]:
    """Make the schedule that does so once a night."""
    if not _needs_maintenance(declaration.settings):
        return []
    return [
        daily_schedule(
            declaration,
            "nightly_maintenance",
            "maintenance",
            declaration.settings.schedule.maintenance_hour,
            "Removes old versions as declared, and merges files, at night.",
        )
    ]


def _shortened(
    declaration: Declaration, expired: Sequence[ExpiredHistory]
) -> Iterator[dg.AssetObservation]:
    """Yield for each history that lost versions since when it is kept."""
    tables = {table.name: table for table in declaration.tables}
    for found in expired:
        if found.table in tables:
            yield dg.AssetObservation(
                declaration.key(Stage.MIRROR, tables[found.table]),
                metadata={
                    "versions_removed": found.versions,
                    "history_kept_since": dg.MetadataValue.timestamp(found.kept_since),
                },
            )


def _needs_maintenance(settings: Settings) -> bool:
    in_files = settings.mirror.kind == "datafusion" and not settings.mirror.in_memory
    own = (table.history for table in settings.tables or ())
    return in_files or any(found.bounds for found in (settings.history, *own) if found)
