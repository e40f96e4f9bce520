"""A session that fails follows no table: its mirrors say so, whatever it was that failed."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import dagster as dg

from rhei_pipeline.dagster.check_records import last_evaluations
from rhei_pipeline.dagster.own_runs import own_records
from rhei_pipeline.dagster.state_checks import StateCheck, followed
from rhei_pipeline.errors import RheiError

#: The run that failed, in the check's metadata: what was found so is no fault of the table's own.
FAILED_RUN = "failed_run"
#: One run that died is no news: the next one is opened at once.
_MANY = 2


@contextmanager
def told(context: dg.AssetExecutionContext, mirrors: Sequence[dg.AssetKey]) -> Iterator[None]:
    """Turn red what a session was to follow that fails in this block, with what it failed of.

    Raises:
        RheiError, Failure: What the block raises.
    """
    try:
        yield
    except (RheiError, dg.Failure) as error:
        run, why = context.run.run_id, error.description if isinstance(error, dg.Failure) else error
        for found in _not_followed(context.instance, mirrors, f"the session failed: {why}", run):
            context.log_event(found)
        raise


def tell_dead_sessions(
    context: dg.SensorEvaluationContext, job_name: str, mirrors: Sequence[dg.AssetKey]
) -> None:
    """Turn red what nobody follows because the last sessions failed without a word of their own.

    A process that is killed, for want of memory for one, can say nothing.
    """
    last = own_records(context, job_name, limit=_MANY)
    runs = [record.dagster_run for record in last]
    if len([run for run in runs if run.status is dg.DagsterRunStatus.FAILURE]) < _MANY:
        return
    why = f"the last {_MANY} sessions failed: the run says of what"
    instance = context.instance
    for found in _not_followed(instance, mirrors, why, runs[0].run_id, only_green=True):
        instance.report_runless_asset_event(found)


def _not_followed(
    instance: dg.DagsterInstance,
    mirrors: Sequence[dg.AssetKey],
    why: str,
    run_id: str,
    *,
    only_green: bool = False,
) -> Iterator[dg.AssetCheckEvaluation]:
    """Yield that the mirrors are not followed; not of one whose own fault says so already."""
    checks = [dg.AssetCheckKey(key, StateCheck.FOLLOWED.value) for key in mirrors]
    last = last_evaluations(instance, checks)
    for check in checks:
        if not _is_red(last, check) or (not only_green and FAILED_RUN in last[check].metadata):
            run = dg.MetadataValue.dagster_run(run_id)
            yield followed(why, {FAILED_RUN: run}).evaluation(check.asset_key)


def _is_red(
    last: Mapping[dg.AssetCheckKey, dg.AssetCheckEvaluation], check: dg.AssetCheckKey
) -> bool:
    return check in last and not last[check].passed
