"""The runs of this code location: a job of the same name may be in others."""

from collections.abc import Sequence

import dagster as dg

LIVE = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
COMING = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
]
ACTIVE = LIVE + COMING
REPOSITORY = ".dagster/repository"


def own_runs(
    context: dg.SensorEvaluationContext,
    job: str,
    statuses: Sequence[dg.DagsterRunStatus] = (),
    limit: int = 5,
) -> Sequence[dg.DagsterRun]:
    """Return a job's runs of the sensor's own code location, the newest first."""
    return [record.dagster_run for record in own_records(context, job, statuses, limit)]


def own_records(
    context: dg.SensorEvaluationContext,
    job: str,
    statuses: Sequence[dg.DagsterRunStatus] = (),
    limit: int = 5,
) -> Sequence[dg.RunRecord]:
    """Return the same with the times of each run."""
    wanted = dg.RunsFilter(job_name=job, statuses=list(statuses), tags=_own(context))
    return context.instance.get_run_records(wanted, limit=limit)


def _own(context: dg.SensorEvaluationContext) -> dict[str, str]:
    """Return the tag that runs of this code location carry, where this is one."""
    origin, repository = context.code_location_origin, context.repository_name
    if origin is None or repository is None:
        return {}
    return {REPOSITORY: f"{repository}@{origin.location_name}"}
