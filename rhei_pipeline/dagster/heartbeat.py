"""A run's sign of life: what tells a session that works from one whose process is gone.

Dagster learns of a process that dies from the code server that started it; where both died, the
run would stay open for ever, and nothing would be synced.
"""

import logging
import threading
import time
from collections.abc import Sequence

import dagster as dg

_log = logging.getLogger(__name__)

#: The tag with the time of the last sign. By its prefix Dagster's UI does not show it: it tells a
#: person nothing, and hides what the run's other tags tell.
ALIVE = ".dagster/rhei/alive"
#: As a run calls it that was begun before an upgrade.
_FORMER = "rhei/alive"
_BEAT_SECONDS = 20.0
#: After so long without a sign a process is gone; its machine may have been very busy.
_DEAD_SECONDS = 150.0


class Heartbeat:
    """Marks a run in a thread of its own, whatever the run's other threads are at."""

    def __init__(self, instance: dg.DagsterInstance, run_id: str) -> None:
        self._instance, self._run_id = instance, run_id
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="rhei-heartbeat", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, and wait for that."""
        self._ended.set()
        self._thread.join()

    def _beat(self) -> None:
        while True:
            try:
                self._instance.add_run_tags(self._run_id, {ALIVE: str(int(time.time()))})
            except Exception as error:  # noqa: BLE001  (the next beat may succeed)
                _log.warning("no sign of life was left: %s", type(error).__name__)
            if self._ended.wait(_BEAT_SECONDS):
                return


def end_the_dead(instance: dg.DagsterInstance, records: Sequence[dg.RunRecord]) -> bool:
    """Mark the started runs whose process has ended without a word as failed.

    Returns:
        Whether there was one.
    """
    dead = [record.dagster_run for record in records if _is_dead(record)]
    for run in dead:
        instance.report_run_failed(
            run, "The run's process has ended without a word, with the code server that started it."
        )
    return bool(dead)


def _is_dead(record: dg.RunRecord) -> bool:
    run = record.dagster_run
    if run.status is not dg.DagsterRunStatus.STARTED or record.start_time is None:
        return False
    signs = (float(run.tags.get(tag, 0)) for tag in (ALIVE, _FORMER))
    last = max(record.start_time, *signs)
    return time.time() - last > _DEAD_SECONDS
