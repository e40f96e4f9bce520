"""Pending changes open a sync session; the clock takes snapshots and maintains files."""

from collections.abc import Sequence

import dagster as dg

from rhei_pipeline.dagster import Declaration, load_schedules, load_sensors


def sensors(declaration: Declaration) -> list[dg.SensorDefinition]:
    """Return the sensors of the declaration."""
    return load_sensors(declaration)


def automation(
    declaration: Declaration, assets: Sequence[dg.AssetsDefinition]
) -> list[dg.SensorDefinition]:
    """Return what runs assets when their conditions hold, with no switch to turn on before."""
    if not assets:
        return []
    return [
        dg.AutomationConditionSensorDefinition(
            declaration.names.named("automation"),
            target=assets,
            default_status=dg.DefaultSensorStatus.RUNNING,
            description="Runs the team's own assets when the conditions they name hold.",
        )
    ]


def schedules(declaration: Declaration) -> list[dg.ScheduleDefinition]:
    """Return the schedules of the declaration."""
    return load_schedules(declaration)
