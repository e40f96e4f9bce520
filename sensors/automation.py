"""Pending changes open a sync session; the clock takes snapshots and maintains files."""

import dagster as dg

from rhei_pipeline.dagster import Declaration, load_schedules, load_sensors


def sensors(declaration: Declaration) -> list[dg.SensorDefinition]:
    """Return the sensors of the declaration."""
    return load_sensors(declaration)


def schedules(declaration: Declaration) -> list[dg.ScheduleDefinition]:
    """Return the schedules of the declaration."""
    return load_schedules(declaration)
