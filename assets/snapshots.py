"""Temporal tables as of each day: re-derived from history, so any past day can be rebuilt."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

import dagster as dg

from assets.initial_sync import WRITER_POOL
from assets.mirrors import mirror_key
from assets.sources import column_schema, key_parts
from resources.olap import OlapResource
from rhei_pipeline import Settings, Table

_TICK = timedelta(microseconds=1)


def snapshot_key(table: Table) -> dg.AssetKey:
    """Return the key of a table's daily snapshots."""
    return dg.AssetKey(["snapshot", *key_parts(table)])


def daily_partitions(settings: Settings) -> dg.DailyPartitionsDefinition:
    """Return the days there are snapshots of, today's unfinished one included."""
    start = settings.schedule.snapshots_from.isoformat()
    return dg.DailyPartitionsDefinition(start_date=start, end_offset=1)


def snapshot_asset(table: Table, settings: Settings) -> dg.AssetsDefinition:
    """Make the asset that keeps one table's daily snapshots."""

    @dg.asset(
        key=snapshot_key(table),
        deps=[mirror_key(table)],
        description=(
            f"`{table.name}` as it was at the end of each day (UTC), in `snapshot.{table.name}`"
            " under `snapshot_date`. Today's snapshot is as of now. Any day can be rebuilt from "
            "history."
        ),
        group_name="snapshot",
        kinds={settings.mirror.kind, "table"},
        partitions_def=daily_partitions(settings),
        backfill_policy=dg.BackfillPolicy.single_run(),
        pool=WRITER_POOL,
        output_required=False,
        metadata={
            "dagster/column_schema": column_schema(table, history=False),
            "dagster/table_name": f"{settings.mirror.path.stem}.snapshot.{table.name}",
        },
    )
    def snapshot(
        context: dg.AssetExecutionContext, olap: OlapResource
    ) -> Iterator[dg.MaterializeResult[None] | dg.AssetMaterialization]:
        ends = {day: end_of(day) for day in map(date.fromisoformat, context.partition_keys)}
        with olap.open() as htap:
            # A snapshot of today is as of now, so what is pending belongs into it.
            htap.sync_now()
            begins = htap.known_since(table.name)
            known = {day: end for day, end in ends.items() if end >= begins}
            # Where no day is known, the error says from when on days are.
            rows = htap.snapshot(table.name, known or ends)
        if len(rows) < len(ends):
            yield from _of_known_days(context, rows, begins)
            return
        for day, count in rows.items():
            context.add_asset_metadata(
                {"dagster/partition_row_count": count}, partition_key=day.isoformat()
            )
        yield dg.MaterializeResult(metadata={"days": len(rows), "rows": sum(rows.values())})

    return snapshot


def _of_known_days(
    context: dg.AssetExecutionContext, rows: dict[date, int], begins: datetime
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
            context.asset_key,
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
