"""Deletes old runs of the sync with all they left: Dagster's event log never shrinks by itself.

What a run reported goes with it. Runs of snapshots are kept: a day is materialized as long as the
run is there that made it.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg

from rhei_pipeline.dagster.daily import daily_schedule
from rhei_pipeline.dagster.declaration import Declaration
from rhei_pipeline.dagster.own_runs import REPOSITORY

_FINISHED = [
    dg.DagsterRunStatus.SUCCESS,
    dg.DagsterRunStatus.FAILURE,
    dg.DagsterRunStatus.CANCELED,
]
#: The jobs whose runs repeat for ever.
_REPEATED = ("sync", "bridge", "verification", "maintenance", "housekeeping")
_AT_ONCE = 100


def housekeeping_jobs(declaration: Declaration) -> list[dg.JobDefinition]:
    """Make the job that deletes old runs of the sync."""
    if not declaration.tables:
        return []
    names, days = declaration.names, declaration.settings.schedule.keep_runs_days

    @dg.op(
        name=names.named("delete_old_runs"),
        description=f"Deletes finished sync runs that ended more than {days} days ago, with their"
        " events, their logs and their files.",
    )
    def delete_old_runs(context: dg.OpExecutionContext) -> None:
        before = datetime.now(UTC) - timedelta(days=days)
        stored = context.run.tags_for_storage()
        own = {REPOSITORY: stored[REPOSITORY]} if REPOSITORY in stored else {}
        deleted = 0
        for name in _REPEATED:
            for run_id in _ended(context.instance, names.named(name), before, own):
                delete_run(context.instance, run_id)
                deleted += 1
        context.log.info("%d runs deleted", deleted)
        context.add_output_metadata({"runs_deleted": deleted})

    @dg.job(
        name=names.named("housekeeping"),
        description="Deletes old sync runs, which nothing else does.",
        executor_def=dg.in_process_executor,
    )
    def housekeeping() -> None:
        delete_old_runs()

    return [housekeeping]


def housekeeping_schedules(declaration: Declaration) -> list[dg.ScheduleDefinition]:
    """Make the schedule that deletes old runs once a day."""
    if not declaration.tables:
        return []
    schedule = declaration.settings.schedule
    return [
        daily_schedule(
            declaration,
            "daily_housekeeping",
            "housekeeping",
            schedule.maintenance_hour,
            f"Deletes sync runs older than {schedule.keep_runs_days} days.",
            minute=30,
        )
    ]


def _ended(
    instance: dg.DagsterInstance, job: str, before: datetime, own: dict[str, str]
) -> Iterator[str]:
    """Yield the runs of a job of this code location that ended before an instant."""
    wanted = dg.RunsFilter(job_name=job, statuses=_FINISHED, updated_before=before, tags=own)
    while run_ids := instance.get_run_ids(wanted, limit=_AT_ONCE):
        yield from run_ids


def delete_run(instance: dg.DagsterInstance, run_id: str) -> None:
    """Delete a run, its events, what it printed, and the file that was its own."""
    instance.delete_run(run_id)
    instance.compute_log_manager.delete_logs(prefix=[run_id])
    place = getattr(instance.event_log_storage, "path_for_shard", None)
    if place is not None:  # with SQLite behind it, Dagster leaves the emptied file
        for ending in ("", "-wal", "-shm"):
            Path(place(run_id) + ending).unlink(missing_ok=True)
