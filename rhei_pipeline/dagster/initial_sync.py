"""The first copy of each table, as an asset of its own: it can be repeated alone."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from rhei_pipeline.dagster.declaration import Declaration
from rhei_pipeline.dagster.plain_failures import said_plainly
from rhei_pipeline.dagster.resources import OlapResource
from rhei_pipeline.dagster.stages import Stage
from rhei_pipeline.model.reports import CopyReport, RowParity
from rhei_pipeline.model.schema import Table

_PROGRESS_ROWS = 250_000


def initial_sync_assets(declaration: Declaration) -> list[dg.AssetsDefinition]:
    """Make an asset for the first copy of each table."""
    return [_initial_sync(declaration, table) for table in declaration.tables]


def _initial_sync(declaration: Declaration, table: Table) -> dg.AssetsDefinition:
    names, spec = declaration.names, declaration.spec(Stage.INITIAL_SYNC, table)

    @dg.multi_asset(
        name=names.named(f"initial_sync_{declaration.plain_name(table.name)}"),
        specs=[spec],
        pool=names.pool,
        required_resource_keys={names.olap},
        check_specs=[
            dg.AssetCheckSpec(
                "row_parity",
                asset=spec.key,
                blocking=True,
                description="Source and mirror have the same number of rows at the same watermark.",
            )
        ],
    )
    def initial_sync(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[None]]:
        olap: OlapResource = getattr(context.resources, names.olap)
        with said_plainly(), olap.open() as htap:
            report = htap.initial_sync(table.name, Progress(context))
            parity = htap.row_parity(table.name)
        yield dg.MaterializeResult(
            asset_key=spec.key,
            metadata=_metadata(report, parity),
            check_results=[parity_result(parity, spec.key)],
        )

    return initial_sync


class Progress:
    """Logs a copy's progress now and then; `where`: in what part of the table, if not in all."""

    def __init__(
        self, context: dg.AssetExecutionContext | dg.OpExecutionContext, where: str = ""
    ) -> None:
        self._context, self._where = context, f" {where}" if where else ""
        self._next = _PROGRESS_ROWS

    def __call__(self, table: str, rows: int, total: int) -> None:
        """Log when enough rows more have been copied."""
        if rows >= self._next:
            self._next = rows + _PROGRESS_ROWS
            told = (table, f"{rows:,}", f"{total:,}", self._where)
            self._context.log.info("%s: %s of %s rows%s copied", *told)


def _metadata(report: CopyReport, parity: RowParity) -> dict[str, Any]:
    return {
        "dagster/row_count": parity.mirror_rows,
        "rows_copied": report.rows,
        "rows_inserted": report.inserted,
        "rows_updated": report.updated,
        "rows_deleted": report.deleted,
        "dead_letters": report.dead_letters,
        "duration_seconds": round(report.duration_seconds, 3),
        "resumed": report.resumed,
        "watermark": report.watermark,
    }


def parity_result(parity: RowParity, key: dg.AssetKey) -> dg.AssetCheckResult:
    """Turn a parity into the result of a copy's check."""
    return dg.AssetCheckResult(
        asset_key=key,
        check_name="row_parity",
        passed=parity.equal,
        metadata={
            "source_rows": parity.source_rows,
            "mirror_rows": parity.mirror_rows,
            "watermark": parity.watermark,
        },
    )
