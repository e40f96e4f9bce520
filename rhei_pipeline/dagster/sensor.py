"""Pending changes open a sync session. The level decides, not the edge: nothing is ever missed."""

import time
from collections.abc import Sequence
from itertools import takewhile

import dagster as dg

from rhei_pipeline.dagster.bridging import bridge_sensors
from rhei_pipeline.dagster.declaration import Declaration
from rhei_pipeline.dagster.heartbeat import SignsOfLife
from rhei_pipeline.dagster.observing import Observer
from rhei_pipeline.dagster.own_runs import ACTIVE, LIVE, own_records
from rhei_pipeline.dagster.pool import SlotWatch
from rhei_pipeline.dagster.relay import (
    COPYING,
    DECLARED,
    LEFT_BEHIND,
    NOTHING,
    OPENED_WITH,
    RETRY_SECONDS,
    SUCCESSOR,
    digest,
    opened_with,
)
from rhei_pipeline.dagster.resources import CdcResource
from rhei_pipeline.errors import TransientError
from rhei_pipeline.model.report import named
from rhei_pipeline.settings.model import Settings

#: So many failures in a row are no accident. The next session then begins so long after the last.
_MANY, _FIRST_WAIT_SECONDS = 4, 30.0
#: So many sessions tell how long to wait: the wait has its full length by then.
_LOOKED_BACK = 8


def changes_sensors(declaration: Declaration) -> list[dg.SensorDefinition]:
    """Make the sensor that compares the source's head with what the mirror has acknowledged.

    Returns:
        The sensor; nothing where there is no table.
    """
    if not declaration.tables:
        return []
    names = declaration.names
    job_name = names.named("sync")
    observer, signs, slots = Observer(declaration), SignsOfLife(), SlotWatch(names.pool)
    declared = digest(declaration.settings)

    @dg.sensor(
        name=names.named("pending_changes"),
        job_name=job_name,
        minimum_interval_seconds=1,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Opens a sync session whenever changes are pending and none is open, and the"
        " next one before one ends. To pause the sync, stop this sensor, then terminate the open"
        f" run of the job {job_name}.",
        required_resource_keys={names.cdc},
    )
    def pending_changes(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        cdc: CdcResource = getattr(context.resources, names.cdc)
        records = own_records(context, job_name, ACTIVE)
        found = tick(context, cdc, records)
        # A quiet tick asks for as little as it can.
        if records or isinstance(found, dg.RunRequest) or slots.is_due:
            slots.free(context.instance)
        return _marked(found, declaration.settings)

    def tick(
        context: dg.SensorEvaluationContext, cdc: CdcResource, records: Sequence[dg.RunRecord]
    ) -> dg.RunRequest | dg.SkipReason:
        runs = [record.dagster_run for record in records]
        if signs.end_the_dead(context.instance, runs):
            return dg.SkipReason("a sync session has died; another one is opened")
        observer.look(context, cdc, is_open=bool(runs))
        if runs:
            return _beside(runs, declared)
        found = _to_open(context, cdc, job_name, observer, opened_with(declaration.settings))
        return _unless_held(found, slots, context.instance)

    return [pending_changes, *bridge_sensors(declaration)]


def _marked(
    found: dg.RunRequest | dg.SkipReason, settings: Settings
) -> dg.RunRequest | dg.SkipReason:
    """Return what was decided; a session is marked with the declaration that it is opened for."""
    if isinstance(found, dg.SkipReason):
        return found
    marks = {DECLARED: digest(settings), OPENED_WITH: opened_with(settings)}
    return dg.RunRequest(tags={**found.tags, **marks})


def _unless_held(
    found: dg.RunRequest | dg.SkipReason, slots: SlotWatch, instance: dg.DagsterInstance
) -> dg.RunRequest | dg.SkipReason:
    """Return what was decided, unless another run has the mirror: then a session would wait.

    A step that waits in a pool asks without a pause whether it is its turn: an hour's copy would
    have one core less. And it asks for the slot so rarely at last that a start is as soon.
    """
    if isinstance(found, dg.SkipReason) or (holder := slots.holder(instance)) is None:
        return found
    return dg.SkipReason(
        f"run {holder.run_id[:8]} of {holder.job_name} has the mirror; a session is opened after it"
    )


def _to_open(
    context: dg.SensorEvaluationContext,
    cdc: CdcResource,
    job_name: str,
    observer: Observer,
    declared: str,
) -> dg.RunRequest | dg.SkipReason:
    """Decide whether to open a session, with what is declared now, where none is open."""
    if observer.can_follow_again:
        return dg.RunRequest(tags={"rhei/reason": "a table can be followed again"})
    if observer.unfollowed:
        told = "".join(named("other columns, or capture that was broken", observer.unfollowed))
        return dg.RunRequest(tags={"rhei/reason": told})
    never_told = observer.never_told(context.instance)
    return _of_source(context, cdc, job_name, declared, never_told)


def _of_source(
    context: dg.SensorEvaluationContext,
    cdc: CdcResource,
    job_name: str,
    declared: str,
    never_told: Sequence[str],
) -> dg.RunRequest | dg.SkipReason:
    """Decide by what is pending, and by what the last sessions left, whether to open a session."""
    try:
        pending = cdc.pending()
    except TransientError as error:
        # Any other error fails the tick: it shows red until somebody has mended it.
        return dg.SkipReason(f"the source cannot be read now: {error}")
    last = own_records(context, job_name, limit=2)
    alike = _alike(last, declared)
    if _has_failed(alike[1:]) and (
        failing := _failing(_alike(own_records(context, job_name, limit=_LOOKED_BACK), declared))
    ):
        return failing
    copying = last[0].dagster_run.tags.get(COPYING, NOTHING) if last else NOTHING
    if copying != NOTHING:
        return dg.RunRequest(tags={"rhei/reason": f"the copy of {copying} goes on"})
    if pending == 0:
        return _nothing_pending(last, alike, never_told)
    if cdc.counts_exactly and pending == _left_behind(alike):
        return dg.SkipReason(f"what is pending ({pending}) belongs to tables that are left out")
    return dg.RunRequest(tags={"rhei/reason": _reason(pending, is_exact=cdc.counts_exactly)})


def _alike(last: Sequence[dg.RunRecord], declared: str) -> list[dg.RunRecord]:
    """Return the last sessions as far as they had what is declared now.

    What others failed of, or left out, may be mended by what was declared since. One that was
    launched by hand has no mark: it is taken to have what the others had.
    """
    tags = OPENED_WITH, declared
    return list(takewhile(lambda each: each.dagster_run.tags.get(*tags) == declared, last))


def _nothing_pending(
    last: Sequence[dg.RunRecord], alike: Sequence[dg.RunRecord], never_told: Sequence[str]
) -> dg.RunRequest | dg.SkipReason:
    """Decide what to do where the source has nothing new: all may be there, or not be copied."""
    if _has_failed(last[:1]):
        if _has_failed(alike[1:]) and _is_recent(alike[0]):
            return dg.SkipReason(
                "nothing is pending, but the last sessions failed: the next one is opened"
                f" {RETRY_SECONDS / 60:.0f} minutes after the last; its run says what to do"
            )
        return dg.RunRequest(tags={"rhei/reason": "the last session failed"})
    if never_told:
        told = "".join(named("not known to be copied", never_told))
        return dg.RunRequest(tags={"rhei/reason": told})
    return dg.SkipReason("up to date: the mirror has every change")


def _failing(last: Sequence[dg.RunRecord]) -> dg.SkipReason | None:
    """Return why not to try again yet: what fails whatever is done would fill the event log.

    Some failures in a row are followed at once; each one more doubles the time from the begin of
    the last one to the next, up to the time after which tables left out are looked at again.
    """
    failed = len(list(takewhile(lambda record: _has_failed([record]), last)))
    if failed < _MANY:
        return None
    wait = min(_FIRST_WAIT_SECONDS * 2.0 ** (failed - _MANY), RETRY_SECONDS)
    if abs(time.time() - last[0].create_timestamp.timestamp()) > wait:
        return None
    return dg.SkipReason(
        f"the last {failed} sessions failed: the next one is opened {wait:.0f} seconds after the"
        " last, whose run says what to do; launch the job to try at once"
    )


def _has_failed(last: Sequence[dg.RunRecord]) -> bool:
    return any(record.dagster_run.status is dg.DagsterRunStatus.FAILURE for record in last)


def _is_recent(record: dg.RunRecord) -> bool:
    """Return whether a run has just ended; one that ends hours ahead tells of a clock set back."""
    return abs(time.time() - (record.end_time or 0.0)) < RETRY_SECONDS


def _left_behind(last: Sequence[dg.RunRecord]) -> int:
    """Return what the last session had to leave pending, unless it is time to try again."""
    if not last or not _is_recent(last[0]):
        return 0
    return int(last[0].dagster_run.tags.get(LEFT_BEHIND, 0))


def _beside(runs: Sequence[dg.DagsterRun], declared: str) -> dg.RunRequest | dg.SkipReason:
    """Decide whether a session that is open is to be followed by the next.

    One that was opened for another declaration gives way at once: what was declared meanwhile
    would have to wait for hours.
    """
    live = [run for run in runs if run.status in LIVE]
    if len(live) < len(runs):
        return dg.SkipReason("a sync session is starting")
    if len(live) > 1:
        return dg.SkipReason("a sync session hands over to the next")
    if live[0].tags.get(DECLARED, declared) != declared:
        return dg.RunRequest(tags={"rhei/reason": "the declaration has changed"})
    if SUCCESSOR not in live[0].tags:
        return dg.SkipReason("a sync session is open")
    return dg.RunRequest(tags={"rhei/reason": "handover"})


def _reason(pending: int | None, *, is_exact: bool) -> str:
    """Return why a session is opened."""
    if pending is None:
        return "never synced, or the source has no longer all that the mirror needs"
    changes = "change" if pending == 1 else "changes"
    return f"{'' if is_exact else 'at least '}{pending} {changes} pending"
