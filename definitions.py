"""The code location: the declaration in, definitions out."""

import dagster as dg

from assets.delays import delays
from assets.flight_changes import flight_changes
from assets.tables import checks, tables
from config.settings import load
from resources.connections import connections
from rhei_pipeline import Settings
from rhei_pipeline.dagster import Declaration, load_jobs
from sensors.automation import automation, schedules, sensors


def build(settings: Settings) -> dg.Definitions:
    """Derive everything from the declaration, for each of its pipelines."""
    return dg.Definitions.merge(*map(build_pipeline, settings.pipelines()))


def build_pipeline(settings: Settings) -> dg.Definitions:
    """Derive everything from the declaration of one pipeline."""
    declaration = Declaration.of(settings)
    changes = flight_changes(declaration)
    return dg.Definitions(
        assets=[*tables(declaration), *delays(declaration), *changes],
        asset_checks=checks(declaration),
        jobs=load_jobs(declaration),
        sensors=[*sensors(declaration), *automation(declaration, changes)],
        schedules=schedules(declaration),
        resources=connections(declaration),
        metadata=declaration.metadata,
    )


@dg.definitions
def defs() -> dg.Definitions:
    """Load the declaration when the code location is loaded, not when this file is imported."""
    return build(load())
