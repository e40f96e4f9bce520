"""The pool whose one slot belongs to whoever writes the mirror."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator

import dagster as dg

from rhei_pipeline.dagster.heartbeat import ENDED, SignsOfLife, last_sign

_log = logging.getLogger(__name__)

#: A step asks at least every 15 seconds; one that does not take its slot for so long asks no more.
_ASKS_NO_MORE_SECONDS = 150.0
_LOOK_SECONDS = 60.0


def writer_wanted(instance: dg.DagsterInstance, pool: str) -> bool:
    """Return whether another run waits for the mirror: a copy, a backfill, the next session."""
    storage = instance.event_log_storage
    if not storage.supports_global_concurrency_limits:
        return False
    waiting = storage.get_concurrency_info(pool).pending_run_ids
    # What a run that was killed has asked for may stand there for ever.
    return any(_is_alive(instance, run_id) for run_id in waiting) or (
        not _lets_one_wait_inside(instance) and _is_queued(instance, pool)
    )


def limit_to_one_writer(instance: dg.DagsterInstance, pool: str) -> None:
    """Give the pool its one slot, unless it has a limit; the pools of others keep theirs.

    What a run left behind when it was killed is given back: its slot, or its place in the line.
    """
    storage = instance.event_log_storage
    if not storage.supports_global_concurrency_limits:
        return
    if all(limit.name != pool or limit.from_default for limit in storage.get_pool_limits()):
        storage.set_concurrency_slots(pool, 1)
    info = storage.get_concurrency_info(pool)
    for run_id in info.active_run_ids | info.assigned_run_ids | info.pending_run_ids:
        if not _is_alive(instance, run_id):
            storage.free_concurrency_slots_for_run(run_id)


class SlotWatch:
    """Watches whoever has the slot of a pool: a dead run would keep it for ever.

    Only what was begun here gives signs of life; who gives none, and works, is let be.
    """

    def __init__(self, pool: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._pool = pool
        # A step has its slot before a process, or a machine, is made for it.
        self._holders = SignsOfLife(clock, begins_late=True)
        self._called = SignsOfLife(clock)
        self._clock, self._looked_at, self._somebody_waits = clock, clock(), False

    @property
    def is_due(self) -> bool:
        """Whether somebody waits, or may wait though nothing is to be synced."""
        return self._somebody_waits or self._clock() - self._looked_at > _LOOK_SECONDS

    def holder(self, instance: dg.DagsterInstance) -> dg.DagsterRun | None:
        """Return the run that has the slot, unless it is over; who asks waits for it."""
        storage = instance.event_log_storage
        if not storage.supports_global_concurrency_limits:
            return None
        held = storage.get_concurrency_info(self._pool).active_run_ids
        runs = (instance.get_run_by_id(run_id) for run_id in held)
        found = next((run for run in runs if run is not None and not run.is_finished), None)
        self._somebody_waits = found is not None
        return found

    def free(self, instance: dg.DagsterInstance) -> None:
        """Give the pool its one slot, and take it from who is dead, or does not come for it."""
        self._looked_at, self._somebody_waits = self._clock(), False
        storage = instance.event_log_storage
        if not storage.supports_global_concurrency_limits:
            return
        info = storage.get_concurrency_info(self._pool)
        held = {(slot.run_id, slot.step_key) for slot in info.claimed_slots}
        self._holders.end_the_dead(instance, _watched(instance, held))
        limit_to_one_writer(instance, self._pool)
        called = {
            f"{step.run_id} {step.step_key}": (step.run_id, step.step_key)
            for step in info.pending_steps
            if step.assigned_timestamp and (step.run_id, step.step_key) not in held
        }
        for name, seconds in self._called.silent_seconds(called).items():
            if seconds > _ASKS_NO_MORE_SECONDS:
                _log.warning("pool %s: step %s does not come for its slot", self._pool, name)
                storage.free_concurrency_slot_for_step(*called[name])


def _watched(
    instance: dg.DagsterInstance, held: Iterable[tuple[str, str]]
) -> Iterator[dg.DagsterRun]:
    """Yield the runs that have to give signs of life, as long as they hold the slot."""
    for run_id, step in held:
        run = instance.get_run_by_id(run_id)
        if run is None or last_sign(run) == ENDED:
            continue
        if last_sign(run) or not _has_begun(instance, run_id, step):
            yield run


def _has_begun(instance: dg.DagsterInstance, run_id: str, step: str) -> bool:
    """Return whether a step was begun: its first sign of life comes before."""
    begun = instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_START)
    return any(event.get_dagster_event().step_key == step for event in begun)


def _is_alive(instance: dg.DagsterInstance, run_id: str) -> bool:
    run = instance.get_run_by_id(run_id)
    return run is not None and not run.is_finished


def _lets_one_wait_inside(instance: dg.DagsterInstance) -> bool:
    """Return whether a run is started that then waits for a slot; else it waits in the queue."""
    pools = instance.get_concurrency_config().pool_config
    granularity = getattr(pools.pool_granularity, "value", "op")
    return bool(pools.op_granularity_run_buffer) and granularity == "op"


def _is_queued(instance: dg.DagsterInstance, pool: str) -> bool:
    """Return whether a run in the queue wants the pool first of all."""
    wanted = {f".dagster/pool/{pool}": "true"}
    queued = dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED], tags=wanted)
    return bool(instance.get_run_ids(queued, limit=1))
