"""The pool whose one slot belongs to whoever writes the mirror."""

import dagster as dg


def writer_wanted(instance: dg.DagsterInstance, pool: str) -> bool:
    """Return whether another step waits for the mirror: a copy, a backfill, the next session."""
    storage = instance.event_log_storage
    if not storage.supports_global_concurrency_limits:
        return False
    waiting: int = storage.get_concurrency_info(pool).pending_step_count
    return waiting > 0


def limit_to_one_writer(instance: dg.DagsterInstance, pool: str) -> None:
    """Give the pool its one slot, unless it has a limit; the pools of others keep theirs."""
    storage = instance.event_log_storage
    if not storage.supports_global_concurrency_limits:
        return
    if all(limit.name != pool or limit.from_default for limit in storage.get_pool_limits()):
        storage.set_concurrency_slots(pool, 1)
