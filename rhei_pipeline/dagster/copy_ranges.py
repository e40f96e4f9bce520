"""The jobs whose runs copy one range of a table each, wherever a launcher puts them."""

from typing import Any

import dagster as dg
from pydantic import Field

from rhei_pipeline.dagster.declaration import Declaration
from rhei_pipeline.dagster.initial_sync import Progress
from rhei_pipeline.dagster.names import plain_name
from rhei_pipeline.errors import PermanentError
from rhei_pipeline.model.copy_plan import RangeReport
from rhei_pipeline.settings.model import Settings
from rhei_pipeline.settings.sections import TableSettings
from rhei_pipeline.wiring.copy_ranges import copy_range

#: A worker that fails is followed by another one, which goes on behind what is recorded.
_RETRIES, _RETRY_SECONDS = 3, 10


class RangeConfig(dg.Config):
    """How long a run waits for the process that plans the ranges: a session, or a copy."""

    wait_seconds: float = Field(default=120.0, ge=0, description="Wait so long for the plan.")


def copy_range_jobs(declaration: Declaration) -> list[dg.JobDefinition]:
    """Make a job for each table whose copies are in ranges, with a partition for each range."""
    tables = declaration.settings.tables or ()
    return [_copy_ranges(declaration, table) for table in tables if table.copy_ranges > 1]


def _copy_ranges(declaration: Declaration, table: TableSettings) -> dg.JobDefinition:
    names, plain = declaration.names, plain_name(table.name)

    @dg.op(
        name=names.named(f"copy_range_of_{plain}"),
        retry_policy=dg.RetryPolicy(max_retries=_RETRIES, delay=_RETRY_SECONDS),
        description="Reads a range of keys from the source, and writes it beside the mirror. It"
        " opens no mirror, so it takes no slot of the pool.",
    )
    def copy_one(context: dg.OpExecutionContext, config: RangeConfig) -> None:
        report = _copied(context, declaration.settings, table.name, config.wait_seconds)
        context.add_output_metadata(_metadata(report))

    @dg.job(
        name=names.named(f"copy_ranges_of_{plain}"),
        partitions_def=dg.StaticPartitionsDefinition(
            [str(number) for number in range(1, table.copy_ranges + 1)]
        ),
        description="Copies ranges of a table at once. Launch a backfill of all partitions while a"
        " session, or the initial sync of the table, is under way: it plans the ranges, copies"
        " those that no run takes, and puts the copy in place.",
        executor_def=dg.in_process_executor,
    )
    def copy_ranges() -> None:
        copy_one()

    return copy_ranges


def _copied(
    context: dg.OpExecutionContext, settings: Settings, table: str, wait_seconds: float
) -> RangeReport:
    number, progress = int(context.partition_key), Progress(context)

    def noted(rows: int, of: int) -> None:
        progress(table, rows, of)

    try:
        return copy_range(settings, table, number, wait_seconds=wait_seconds, on_rows=noted)
    except PermanentError as error:
        raise dg.Failure(str(error), allow_retries=False) from error


def _metadata(report: RangeReport) -> dict[str, Any]:
    return {
        "ranges": report.of,
        "rows_copied": report.rows,
        "parts": report.parts,
        "dead_letters": report.dead_letters,
        "missing_ranges": list(report.missing),
        "duration_seconds": round(report.duration_seconds, 3),
    }
