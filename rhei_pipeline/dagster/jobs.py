"""The jobs over assets: the sync session, and the snapshots."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import dagster as dg

from rhei_pipeline.dagster.checks import EQUALS_SOURCE
from rhei_pipeline.dagster.daily import daily_schedule
from rhei_pipeline.dagster.declaration import Declaration
from rhei_pipeline.dagster.stages import Stage
from rhei_pipeline.model.schema import Table

#: What `define_asset_job` returns; Dagster exports no name for it.
AssetJob: TypeAlias = Any


def asset_jobs(declaration: Declaration) -> list[AssetJob]:
    """Make the jobs of a pipeline, which run in one process: the mirror has one writer."""
    return [
        *_sync_jobs(declaration),
        *_verification_jobs(declaration),
        *_snapshot_jobs(declaration),
    ]


def _sync_jobs(declaration: Declaration) -> list[AssetJob]:
    """Make the job whose runs are sync sessions."""
    if not declaration.tables:
        return []
    # A session ends itself long before.
    backstop = str(int(declaration.settings.schedule.session_seconds * 3 + 600))
    return [
        dg.define_asset_job(
            declaration.names.named("sync"),
            selection=_selection(declaration, Stage.MIRROR, declaration.tables),
            description="A sync session: syncs while changes come, reports lag, hands over to the"
            " next. To pause, stop the sensor that opens sessions, then terminate the open run.",
            executor_def=dg.in_process_executor,
            run_tags={"dagster/max_runtime": backstop, "dagster/priority": "-1"},
        )
    ]


def _verification_jobs(declaration: Declaration) -> list[AssetJob]:
    """Make the job that compares every row of all tables."""
    if not declaration.tables:
        return []
    checks = [
        dg.AssetCheckKey(declaration.key(Stage.MIRROR, table), EQUALS_SOURCE)
        for table in declaration.tables
    ]
    return [
        dg.define_asset_job(
            declaration.names.named("verification"),
            selection=dg.AssetSelection.checks(*checks),
            description="Compares every row of source and mirror, each table at one source state.",
            executor_def=dg.in_process_executor,
        )
    ]


def verification_schedules(declaration: Declaration) -> list[dg.ScheduleDefinition]:
    """Make the schedule that compares every row once a day."""
    hour = declaration.settings.schedule.verify_hour
    if hour is None or not declaration.tables:
        return []
    return [
        daily_schedule(
            declaration,
            "daily_verification",
            "verification",
            hour,
            "Compares every row of source and mirror once a day.",
        )
    ]


def _snapshot_jobs(declaration: Declaration) -> list[AssetJob]:
    """Make the job that takes snapshots of days."""
    if not declaration.temporal:
        return []
    return [
        dg.define_asset_job(
            declaration.names.named("snapshots"),
            selection=_selection(declaration, Stage.SNAPSHOT, declaration.temporal),
            description="Takes a snapshot of every temporal table as of the end of a day. Can be "
            "backfilled for any days.",
            executor_def=dg.in_process_executor,
            run_tags={"dagster/max_retries": "2"},
        )
    ]


def _selection(
    declaration: Declaration, stage: Stage, tables: Sequence[Table]
) -> dg.AssetSelection:
    """Select by key: a group of the same name may hold assets of others."""
    chosen = dg.AssetSelection.assets(*(declaration.key(stage, table) for table in tables))
    return chosen.without_checks()
