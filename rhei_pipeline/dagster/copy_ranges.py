"""The jobs whose runs copy one range of a table each, wherever a launcher puts them."""

from typing import Any

import dagster as dg
from pydantic import Field

from rhei_pipeline.dagster.declaration import Declaration
from rhei_pipeline.dagster.initial_sync import Progress
from rhei_pipeline.dagster.plain_failures import said_plainly
from rhei_pipeline.errors import PermanentError
from rhei_pipeline.model.copy_plan import RangeReport
from rhei_pipeline.settings.model import Settings
from rhei_pipeline.settings.sections import TableSettings
from rhei_pipeline.wiring.copy_ranges import copy_range

#: A worker that fails is followed by another one, which goes on behind what is recorded.
_RETRIES, _RETRY_SECONDS = 3, 10
_AGAIN = "launch this partition again, or re-execute the run: what is recorded is not read again"


class RangeConfig(dg.Config):
    """How long a run waits for the process that plans the ranges: a session, or a copy."""

    wait_seconds: float = Field(default=120.0, ge=0, description="Wait so long for the plan.")


def copy_range_jobs(declaration: Declaration) -> list[dg.JobDefinition]:
    """Make a job for each table whose copies are in ranges, with a partition for each range."""
    tables = declaration.settings.tables or ()
    return [_copy_ranges(declaration, table) for table in tables if table.copy_ranges > 1]


def _copy_ranges(declaration: Declaration, table: TableSettings) -> dg.JobDefinition:
    names, plain = declaration.names, declaration.plain_name(table.name)

    @dg.op(
        name=names.named(f"copy_range_of_{plain}"),
        retry_policy=dg.RetryPolicy(max_retries=_RETRIES, delay=_RETRY_SECONDS),
        description="Reads a range of keys from the source, and writes it beside the mirror. It"
        " opens no mirror, so it takes no slot of the pool.",
    )
    def copy_one(context: dg.OpExecutionContext, config: RangeConfig) -> None:
        with said_plainly():
            report = _copied(context, declaration.settings, table.name, config.wait_seconds)
        context.add_output_metadata(_metadata(report, int(context.partition_key)))

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
    number, progress = int(context.partition_key), Progress(context, "of all ranges")
    context.log.info(
        "%s: copies range %s; a session or the initial sync of the table plans it, which is waited"
        " for up to %g s",
        table,
        number,
        wait_seconds,
    )

    def noted(rows: int, of: int) -> None:
        progress(table, rows, of)

    try:
        return copy_range(settings, table, number, wait_seconds=wait_seconds, on_rows=noted)
    except PermanentError as error:
        way = {"what_to_do": error.hint or "", "then": _AGAIN}
        raise dg.Failure(str(error), metadata=way, allow_retries=False) from error


def _metadata(report: RangeReport, number: int) -> dict[str, Any]:
    return {
        "range": f"{number} of {report.of}" if report.of else str(number),
        "outcome": _outcome(report, number),
        "rows_copied": report.rows,
        "parts": report.parts,
        "dead_letters": report.dead_letters,
        "missing_ranges": ", ".join(map(str, report.missing)) or "none",
        "duration_seconds": round(report.duration_seconds, 3),
    }


def _outcome(report: RangeReport, number: int) -> str:
    """Return what became of a range, also where this run has copied nothing of it."""
    if not report.of:
        return "the copy was in place already"
    if number > report.of:
        return "there are no keys for it: the table has fewer than ranges were declared"
    if not report.parts:
        return "another run has copied it, or the process with the mirror"
    return "copied"
