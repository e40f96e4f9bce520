"""The pool whose one slot belongs to whoever writes the mirror."""

import dagster as dg


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

    A slot that a run left behind when it was killed is given back.
    """
    storage = instance.event_log_storage
    if not storage.supports_global_concurrency_limits:
        return
    if all(limit.name != pool or limit.from_default for limit in storage.get_pool_limits()):
        storage.set_concurrency_slots(pool, 1)
    for run_id in storage.get_concurrency_info(pool).active_run_ids:
        if not _is_alive(instance, run_id):
            storage.free_concurrency_slots_for_run(run_id)


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
