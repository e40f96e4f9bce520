"""An asset of a team's own: how late each airline was on each day, computed in the mirror.

The pattern for others: depend on the mirror's key, read through the resource, keep the result where
others find it. It takes part wherever the declaration mirrors the demo's table of flights.
"""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pyarrow.parquet as pq

from rhei_pipeline.dagster import Declaration, OlapResource

DAYS = dg.DailyPartitionsDefinition(start_date="2013-01-01", end_date="2014-01-01")

_DELAYS = """
select carrier, count(*) as flights, avg(arrival_delay) as average_delay,
       count(*) filter (where arrival_delay > 30) as late
from flights
where flight_date = ? and _rhei_valid_to is null and arrival_delay is not null
group by carrier order by carrier
"""
_FLIGHTS = """
select count(*) as n from flights
where flight_date = ? and _rhei_valid_to is null and arrival_delay is not null
"""


def delays(declaration: Declaration) -> list[dg.AssetsDefinition]:
    """Return the asset, where flights are mirrored with their history."""
    spec = declaration.spec_over(
        "flights",
        *("marts", "delay_by_airline"),
        kinds={"parquet"},
        description="Flights, average arrival delay in minutes, and flights more than 30 minutes "
        "late: one row an airline, one file a day.",
    )
    if spec is None:
        return []
    names, key = declaration.names, spec.key
    directory = declaration.settings.mirror.path.parent / "marts" / "delay_by_airline"

    @dg.multi_asset(
        name=names.named("delay_by_airline"),
        specs=[spec],
        check_specs=[
            dg.AssetCheckSpec(
                "counts_every_flight",
                asset=key,
                description="The flights of all airlines add up to the flights of the day.",
            )
        ],
        partitions_def=DAYS,
        backfill_policy=dg.BackfillPolicy.single_run(),
        required_resource_keys={names.olap},
    )
    def delay_by_airline(
        context: dg.AssetExecutionContext,
    ) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
        olap: OlapResource = getattr(context.resources, names.olap)
        flown = counted = 0
        with olap.reader() as mirror:
            for day in context.partition_keys:
                found = mirror.query(_DELAYS, (day,), hint="olap")
                _write(found, directory / f"{day}.parquet")
                rows = found.num_rows
                context.add_asset_metadata({"dagster/partition_row_count": rows}, key, day)
                counted += sum(found["flights"].to_pylist())
                flown += mirror.query(_FLIGHTS, (day,), hint="olap")["n"][0].as_py()
        yield dg.MaterializeResult(asset_key=key, metadata={"flights": flown})
        yield dg.AssetCheckResult(
            asset_key=key,
            check_name="counts_every_flight",
            passed=counted == flown,
            metadata={"flights": flown, "counted": counted},
        )

    return [delay_by_airline]


def _write(table: "pq.Table", file: Path) -> None:
    """Write beside the file and rename over it: a reader sees the old one or the new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_suffix(".part")
    pq.write_table(table, beside)
    beside.replace(file)
