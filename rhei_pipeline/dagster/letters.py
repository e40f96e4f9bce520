"""The job that has dead letters tried again, or forgets them, when somebody launches it."""

import dagster as dg
from pydantic import Field

from rhei_pipeline.dagster.declaration import Declaration
from rhei_pipeline.dagster.plain_failures import said_plainly
from rhei_pipeline.dagster.resources import OlapResource


class DeadLetterConfig(dg.Config):
    """What the job is asked for.

    Attributes:
        drop: Forget the letters until their rows are met again, instead of reading these now.
        table: Of this table alone.
    """

    drop: bool = Field(default=False, description="Forget them, instead of reading their rows.")
    table: str | None = Field(None, description="Of this table alone; left out: of all.")


def dead_letter_jobs(declaration: Declaration) -> list[dg.JobDefinition]:
    """Make the job; nothing where there is no table."""
    if not declaration.tables:
        return []
    names = declaration.names

    @dg.op(
        name=names.named("settle_dead_letters"),
        pool=names.pool,
        description="Reads the rows of dead letters again, or forgets the letters; then syncs.",
        required_resource_keys={names.olap},
    )
    def settle(context: dg.OpExecutionContext, config: DeadLetterConfig) -> None:
        olap: OlapResource = getattr(context.resources, names.olap)
        with said_plainly(), olap.open() as htap:
            before = htap.dead_letters(config.table).num_rows
            if config.drop:
                htap.drop_dead_letters(config.table)
                report = htap.sync_now()
            else:
                report = htap.replay_dead_letters(config.table)
            after = htap.dead_letters(config.table).num_rows
        told = {"before": before, "after": after, "left_out": dict(report.errors)}
        context.add_output_metadata(told)
        if report.errors:
            raise dg.Failure("; ".join(report.errors.values()), allow_retries=False)

    @dg.job(
        name=names.named("dead_letters"),
        description="Has dead letters tried again, or forgets them. Launch it by hand.",
        executor_def=dg.in_process_executor,
    )
    def dead_letters() -> None:
        settle()

    return [dead_letters]
