"""A whole pipeline as Dagster definitions."""

import dagster as dg

from rhei_pipeline.dagster.bridging import bridge_assets, bridge_jobs
from rhei_pipeline.dagster.checks import mirror_checks
from rhei_pipeline.dagster.copy_ranges import copy_range_jobs
from rhei_pipeline.dagster.declaration import Declaration
from rhei_pipeline.dagster.housekeeping import housekeeping_jobs, housekeeping_schedules
from rhei_pipeline.dagster.initial_sync import initial_sync_assets
from rhei_pipeline.dagster.jobs import AssetJob, asset_jobs, verification_schedules
from rhei_pipeline.dagster.letters import dead_letter_jobs
from rhei_pipeline.dagster.maintenance import maintenance_jobs, maintenance_schedules
from rhei_pipeline.dagster.mirrors import sync_session_asset
from rhei_pipeline.dagster.new_tables import new_tables_sensors
from rhei_pipeline.dagster.resources import pipeline_resources
from rhei_pipeline.dagster.sensor import changes_sensors
from rhei_pipeline.dagster.snapshot_schedule import snapshot_schedules
from rhei_pipeline.dagster.snapshots import snapshot_assets
from rhei_pipeline.dagster.sources import source_specs
from rhei_pipeline.dagster.translator import RheiTranslator
from rhei_pipeline.settings.model import Settings


def build_definitions(
    settings: Settings, translator: RheiTranslator | None = None
) -> dg.Definitions:
    """Derive everything from the declaration: assets, checks, jobs, sensors, resources.

    It loads whatever the source looks like: what is known of its tables is then what the mirror
    was last built with. Merge it with definitions of your own by `dg.Definitions.merge`. Of a
    declaration with shards, every shard has assets, jobs, sensors, resources and a pool of its own.

    Args:
        settings: The declaration, as `rhei_pipeline.Settings.load` returns it.
        translator: Makes the assets' specs; left out, `RheiTranslator` does.
    """
    pipelines = settings.pipelines()
    return dg.Definitions.merge(*(_of_pipeline(each, translator) for each in pipelines))


def _of_pipeline(settings: Settings, translator: RheiTranslator | None) -> dg.Definitions:
    declaration = Declaration.of(settings, translator)
    return dg.Definitions(
        assets=load_assets(declaration),
        asset_checks=mirror_checks(declaration),
        jobs=load_jobs(declaration),
        sensors=load_sensors(declaration),
        schedules=load_schedules(declaration),
        resources=pipeline_resources(settings),
        metadata=declaration.metadata,
    )


def load_assets(declaration: Declaration) -> list[dg.AssetSpec | dg.AssetsDefinition]:
    """Return the assets of every table, from source to snapshot."""
    return [
        *source_specs(declaration),
        *bridge_assets(declaration),
        *initial_sync_assets(declaration),
        *sync_session_asset(declaration),
        *snapshot_assets(declaration),
    ]


def load_jobs(declaration: Declaration) -> list[AssetJob]:
    """Return the jobs: the sync session, its checks, the snapshots, what keeps files small."""
    return [
        *asset_jobs(declaration),
        *bridge_jobs(declaration),
        *copy_range_jobs(declaration),
        *maintenance_jobs(declaration),
        *dead_letter_jobs(declaration),
        *housekeeping_jobs(declaration),
    ]


def load_schedules(declaration: Declaration) -> list[dg.ScheduleDefinition]:
    """Return the schedules: yesterday's snapshot, the daily comparison, what keeps files small."""
    return [
        *snapshot_schedules(declaration),
        *verification_schedules(declaration),
        *maintenance_schedules(declaration),
        *housekeeping_schedules(declaration),
    ]


def load_sensors(declaration: Declaration) -> list[dg.SensorDefinition]:
    """Return the sensors: pending changes open a session, new tables ask for a reload."""
    return [*changes_sensors(declaration), *new_tables_sensors(declaration)]
