"""The code location: the declaration in, definitions out."""

import logging

import dagster as dg

from assets.checks import equality_check, lag_checks
from assets.initial_sync import initial_sync_asset
from assets.mirrors import mirrors_asset
from assets.snapshots import snapshot_asset
from assets.sources import source_specs
from config.settings import load
from resources.cdc import CdcResource
from resources.olap import OlapResource
from resources.oltp import OltpResource
from rhei_pipeline import Mode, Settings, declared_schemas
from sensors.changes import changes_sensor, sync_job
from sensors.maintenance import maintenance_job, maintenance_schedule, needs_maintenance
from sensors.schedules import snapshot_job, snapshot_schedule

_log = logging.getLogger(__name__)


def build(settings: Settings) -> dg.Definitions:
    """Derive everything from the declaration and the source's catalogue."""
    tables, left_out = declared_schemas(settings)
    for fault in left_out.values():
        _log.error("%s; the table is left out until this is fixed", fault)
    temporal = [table for table in tables if table.mode is Mode.TEMPORAL]
    sync, snapshots = sync_job(settings), snapshot_job()
    fold = [maintenance_job()] if needs_maintenance(settings) else []
    oltp = OltpResource.of(settings)
    cdc = CdcResource.of(settings, oltp)
    resources = {"oltp": oltp, "cdc": cdc, "olap": OlapResource.of(settings, cdc)}
    told = {f"left out: {name}": fault for name, fault in left_out.items()}
    if not tables:
        return dg.Definitions(resources=resources, metadata=told)
    return dg.Definitions(
        assets=[
            *source_specs(tables, settings),
            *(initial_sync_asset(table, settings) for table in tables),
            mirrors_asset(tables, settings),
            *(snapshot_asset(table, settings) for table in temporal),
        ],
        asset_checks=[*lag_checks(tables, settings), *map(equality_check, tables)],
        jobs=[sync, *([snapshots] if temporal else []), *fold],
        sensors=[changes_sensor(sync, settings)],
        schedules=[
            *([snapshot_schedule(snapshots, settings)] if temporal else []),
            *(maintenance_schedule(job, settings) for job in fold),
        ],
        resources=resources,
        executor=dg.in_process_executor,
        metadata=told,
    )


@dg.definitions
def defs() -> dg.Definitions:
    """Load the declaration when the code location is loaded, not when this file is imported."""
    return build(load())
