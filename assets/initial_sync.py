"""The first copy of each table, as an asset of its own: it can be repeated alone."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from assets.sources import key_parts, source_key
from resources.olap import OlapResource
from rhei_pipeline import CopyReport, RowParity, Settings, Table

#: Whoever writes the mirror's file holds this pool's one slot.
WRITER_POOL = "olap_writer"

_PROGRESS_ROWS = 250_000


def initial_sync_key(table: Table) -> dg.AssetKey:
    """Return the key of a table's first copy."""
    return dg.AssetKey(["initial_sync", *key_parts(table)])


def initial_sync_asset(table: Table, settings: Settings) -> dg.AssetsDefinition:
    """Make the asset that copies one table."""

    @dg.asset(
        key=initial_sync_key(table),
        deps=[source_key(table)],
        description=(
            f"Copies `{table.name}` in short snapshots beside the mirror, applies the changes "
            "made since, and puts the copy in place. A repeated run applies only the difference, "
            "so history is kept."
        ),
        group_name="initial_sync",
        kinds={settings.mirror.kind},
        pool=WRITER_POOL,
        check_specs=[
            dg.AssetCheckSpec(
                "row_parity",
                asset=initial_sync_key(table),
                blocking=True,
                description="Source and mirror have the same number of rows at the same watermark.",
            )
        ],
    )
    def initial_sync(
        context: dg.AssetExecutionContext, olap: OlapResource
    ) -> Iterator[dg.MaterializeResult[None]]:
        with olap.open() as htap:
            report = htap.initial_sync(table.name, _progress(context))
            parity = htap.row_parity(table.name)
        yield dg.MaterializeResult(
            metadata=_metadata(report, parity), check_results=[parity_result(parity)]
        )

    return initial_sync


def _progress(context: dg.AssetExecutionContext) -> "Progress":
    return Progress(context)


class Progress:
    """Logs a copy's progress now and then."""

    def __init__(self, context: dg.AssetExecutionContext) -> None:
        self._context = context
        self._next = _PROGRESS_ROWS

    def __call__(self, table: str, rows: int, total: int) -> None:
        """Log when enough rows more have been copied."""
        if rows >= self._next:
            self._next = rows + _PROGRESS_ROWS
            self._context.log.info("%s: %s of %s rows copied", table, f"{rows:,}", f"{total:,}")


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


def parity_result(parity: RowParity) -> dg.AssetCheckResult:
    """Turn a parity into the result of a check."""
    return dg.AssetCheckResult(
        check_name="row_parity",
        passed=parity.equal,
        metadata={
            "source_rows": parity.source_rows,
            "mirror_rows": parity.mirror_rows,
            "watermark": parity.watermark,
        },
    )
