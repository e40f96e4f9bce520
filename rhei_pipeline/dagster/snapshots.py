"""Temporal tables as of each day: re-derived from history, so any past day can be rebuilt."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

import dagster as dg

from rhei_pipeline.dagster.declaration import Declaration
from rhei_pipeline.dagster.names import plain_name
from rhei_pipeline.dagster.resources import OlapResource
from rhei_pipeline.dagster.translator import Stage
from rhei_pipeline.model.schema import Table
from rhei_pipeline.settings.model import Settings

_TICK = timedelta(microseconds=1)


def daily_partitions(settings: Settings) -> dg.DailyPartitionsDefinition:
    """Return the days there are snapshots of, today's unfinished one included."""
    start = settings.schedule.snapshots_from.isoformat()
    return dg.DailyPartitionsDefinition(start_date=start, end_offset=1)


def snapshot_assets(declaration: Declaration) -> list[dg.AssetsDefinition]:
    """Make an asset for the daily snapshots of each temporal table."""
    return [_snapshots(declaration, table) for table in declaration.temporal]


def _snapshots(declaration: Declaration, table: Table) -> dg.AssetsDefinition:
    names, spec = declaration.names, declaration.spec(Stage.SNAPSHOT, table)

    @dg.multi_asset(
        name=names.named(f"snapshot_{plain_name(table.name)}"),
        specs=[spec.replace_attributes(skippable=True)],
        partitions_def=daily_partitions(declaration.settings),
        backfill_policy=dg.BackfillPolicy.single_run(),
        pool=names.pool,
        required_resource_keys={names.olap},
    )
    def snapshot(
        context: dg.AssetExecutionContext,
    ) -> Iterator[dg.MaterializeResult[None] | dg.AssetMaterialization]:
        olap: OlapResource = getattr(context.resources, names.olap)
        ends = {day: end_of(day) for day in map(date.fromisoformat, context.partition_keys)}
        with olap.open() as htap:
            # A snapshot of today is as of now, so what is pending belongs into it.
            htap.sync_now()
            begins = htap.known_since(table.name)
            known = {day: end for day, end in ends.items() if end >= begins}
            # Where no day is known, the error says from when on days are.
            rows = htap.snapshot(table.name, known or ends)
        if len(rows) < len(ends):
            yield from _of_known_days(context, spec.key, rows, begins)
            return
        for day, count in rows.items():
            context.add_asset_metadata(
                {"dagster/partition_row_count": count}, spec.key, partition_key=day.isoformat()
            )
        yield dg.MaterializeResult(
            asset_key=spec.key, metadata={"days": len(rows), "rows": sum(rows.values())}
        )

    return snapshot


def _of_known_days(
    context: dg.AssetExecutionContext, key: dg.AssetKey, rows: dict[date, int], begins: datetime
) -> Iterator[dg.AssetMaterialization]:
    """Report the days there is a snapshot of; the others stay unmaterialized."""
    asked = len(context.partition_keys)
    context.log.warning(
        "history begins at %s: %d of the %d days ended before that and have no snapshot",
        begins.isoformat(),
        asked - len(rows),
        asked,
    )
    for day, count in rows.items():
        yield dg.AssetMaterialization(
            key,
            partition=day.isoformat(),
            metadata={
                "dagster/partition_row_count": count,
                "history_known_from": begins.isoformat(),
            },
        )


def end_of(day: date) -> datetime:
    """Return the last instant of a day in UTC; while the day is not over, that shows the present.

    Never this machine's present: the source's clock, which dates versions, may be ahead of it.
    """
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return start + timedelta(days=1) - _TICK
