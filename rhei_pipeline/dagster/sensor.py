"""Pending changes open a sync session. The level decides, not the edge: nothing is ever missed."""

import dagster as dg

from rhei_pipeline.dagster.declaration import Declaration
from rhei_pipeline.dagster.pool import limit_to_one_writer
from rhei_pipeline.dagster.resources import CdcResource
from rhei_pipeline.errors import TransientError

_ACTIVE = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def changes_sensors(declaration: Declaration) -> list[dg.SensorDefinition]:
    """Make the sensor that compares the source's head with what the mirror has acknowledged.

    Returns:
        The sensor; nothing where there is no table.
    """
    if not declaration.tables:
        return []
    names = declaration.names
    job_name = names.named("sync")

    @dg.sensor(
        name=names.named("pending_changes"),
        job_name=job_name,
        minimum_interval_seconds=1,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Opens a sync session whenever changes are pending and none is open.",
        required_resource_keys={names.cdc},
    )
    def pending_changes(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        limit_to_one_writer(context.instance, names.pool)
        active = context.instance.get_run_records(
            dg.RunsFilter(job_name=job_name, statuses=_ACTIVE, tags=_own_runs(context)), limit=1
        )
        if active:
            return dg.SkipReason("a sync session is open")
        cdc: CdcResource = getattr(context.resources, names.cdc)
        try:
            pending = cdc.pending()
        except TransientError as error:
            # Any other error fails the tick: it shows red until somebody has mended it.
            return dg.SkipReason(f"the source cannot be read now: {error}")
        if pending == 0:
            return dg.SkipReason("up to date: the mirror has every change")
        reason = "never synced" if pending is None else f"{pending} changes pending"
        return dg.RunRequest(tags={"rhei/reason": reason})

    return [pending_changes]


def _own_runs(context: dg.SensorEvaluationContext) -> dict[str, str]:
    """Return the tag that runs of this code location carry, where this is one."""
    origin, repository = context.code_location_origin, context.repository_name
    if origin is None or repository is None:
        return {}
    return {".dagster/repository": f"{repository}@{origin.location_name}"}
