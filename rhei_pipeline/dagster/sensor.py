"""Pending changes open a sync session. The level decides, not the edge: nothing is ever missed."""

from collections.abc import Sequence

import dagster as dg

from rhei_pipeline.dagster.declaration import Declaration
from rhei_pipeline.dagster.pool import limit_to_one_writer
from rhei_pipeline.dagster.relay import SUCCESSOR
from rhei_pipeline.dagster.resources import CdcResource
from rhei_pipeline.errors import TransientError

_LIVE = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
_COMING = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
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
        description="Opens a sync session whenever changes are pending and none is open, and the"
        " next one before one ends. To pause the sync, stop this sensor, then terminate the open"
        f" run of `{job_name}`.",
        required_resource_keys={names.cdc},
    )
    def pending_changes(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        limit_to_one_writer(context.instance, names.pool)
        cdc: CdcResource = getattr(context.resources, names.cdc)
        return _asked(cdc, _open_sessions(context, job_name))

    return [pending_changes]


def _open_sessions(context: dg.SensorEvaluationContext, job_name: str) -> Sequence[dg.DagsterRun]:
    """Return the sessions of this code location that are open, or about to be."""
    wanted = dg.RunsFilter(job_name=job_name, statuses=_LIVE + _COMING, tags=_own_runs(context))
    return context.instance.get_runs(wanted, limit=5)


def _asked(cdc: CdcResource, runs: Sequence[dg.DagsterRun]) -> dg.RunRequest | dg.SkipReason:
    """Decide whether a session is to be opened."""
    if runs:
        return _beside(runs)
    try:
        pending = cdc.pending()
    except TransientError as error:
        # Any other error fails the tick: it shows red until somebody has mended it.
        return dg.SkipReason(f"the source cannot be read now: {error}")
    if pending == 0:
        return dg.SkipReason("up to date: the mirror has every change")
    return dg.RunRequest(tags={"rhei/reason": _reason(pending, is_exact=cdc.counts_exactly)})


def _beside(runs: Sequence[dg.DagsterRun]) -> dg.RunRequest | dg.SkipReason:
    """Decide whether a session that is open is to be followed by the next."""
    live = [run for run in runs if run.status in _LIVE]
    if len(live) < len(runs):
        return dg.SkipReason("a sync session is starting")
    if len(live) > 1:
        return dg.SkipReason("a sync session hands over to the next")
    if SUCCESSOR not in live[0].tags:
        return dg.SkipReason("a sync session is open")
    return dg.RunRequest(tags={"rhei/reason": "handover"})


def _reason(pending: int | None, *, is_exact: bool) -> str:
    """Say why a session is opened."""
    if pending is None:
        return "never synced"
    changes = "change" if pending == 1 else "changes"
    return f"{'' if is_exact else 'at least '}{pending} {changes} pending"


def _own_runs(context: dg.SensorEvaluationContext) -> dict[str, str]:
    """Return the tag that runs of this code location carry, where this is one."""
    origin, repository = context.code_location_origin, context.repository_name
    if origin is None or repository is None:
        return {}
    return {".dagster/repository": f"{repository}@{origin.location_name}"}
