"""The nightly snapshot: the window that has just ended, and those that were missed."""

from collections.abc import Collection, Sequence
from datetime import datetime

import dagster as dg

from rhei_pipeline.dagster.declaration import Declaration
from rhei_pipeline.dagster.snapshots import KNOWN_FROM, SnapshotWindow, snapshot_windows
from rhei_pipeline.dagster.stages import Stage

_RANGE = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")


def snapshot_schedules(declaration: Declaration) -> list[dg.ScheduleDefinition]:
    """Make the schedule that takes the snapshots of what is over, in one run."""
    if not declaration.temporal:
        return []
    names, schedule = declaration.names, declaration.settings.schedule
    windows = snapshot_windows(declaration.settings)
    keys = [declaration.key(Stage.SNAPSHOT, table) for table in declaration.temporal]

    @dg.schedule(
        name=names.named("daily_snapshot"),
        job_name=names.named("snapshots"),
        cron_schedule=f"0 {schedule.snapshot_hour} * * *",
        execution_timezone=schedule.time_zone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"Takes the snapshots of what has ended ({schedule.time_zone}), and of what "
        "was missed since the first one.",
    )
    def daily_snapshot(
        context: dg.ScheduleEvaluationContext,
    ) -> dg.RunRequest | dg.SkipReason:
        now = context.scheduled_execution_time
        every = (
            SnapshotWindow.of(windows, key) for key in windows.get_partition_keys(current_time=now)
        )
        ended = [window for window in every if window.end <= now]
        closed = [window.key for window in ended]
        if not closed:
            return dg.SkipReason(f"no window has ended since {schedule.snapshots_from}")
        settled = [_settled(context.instance, key, ended) for key in keys]
        wanted = _wanted(closed, settled, schedule.snapshot_rebuild)
        if not wanted:
            return dg.SkipReason("every window that has ended has its snapshot")
        return _request(wanted)

    return [daily_snapshot]


def _settled(
    instance: dg.DagsterInstance, key: dg.AssetKey, ended: Sequence[SnapshotWindow]
) -> Collection[str]:
    """Return the windows that have a snapshot, and those since the first that can have none.

    The history of old ones was removed meanwhile, as the last snapshot of the table told.
    """
    done = instance.get_materialized_partitions(key)
    last = instance.get_latest_materialization_event(key)
    made = last.asset_materialization if last else None
    told = made.metadata.get(KNOWN_FROM) if made else None
    if told is None or not done:
        return done
    since = datetime.fromisoformat(str(told.value))
    lost = {window.key for window in ended if window.last_instant < since}
    return {*done, *(key for key in lost if key > min(done))}


def _wanted(closed: Sequence[str], done: Sequence[Collection[str]], rebuild: int) -> list[str]:
    """Return the windows to take, from the first to the last without a gap.

    A table's first snapshot is of the last window; what ended before it was never asked for. From
    then on, whatever is missing is made up for.
    """
    wanted = set(closed[-rebuild:]) if rebuild else set()
    for windows in done:
        since = min(windows, default=closed[-1])
        wanted |= {key for key in closed if key >= since and key not in windows}
    return [key for key in closed if wanted and min(wanted) <= key <= max(wanted)]


def _request(wanted: Sequence[str]) -> dg.RunRequest:
    first, last = wanted[0], wanted[-1]
    if first == last:
        return dg.RunRequest(partition_key=first)
    return dg.RunRequest(tags=dict(zip(_RANGE, (first, last), strict=True)))
