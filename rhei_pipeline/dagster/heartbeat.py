"""A run's sign of life: what tells a session that works from one whose process is gone.

Dagster learns of a process that dies from the code server that started it; where both died, the
run would stay open for ever, and nothing would be synced.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable

import dagster as dg

_log = logging.getLogger(__name__)

#: The tag with the time of the last sign. By its prefix Dagster's UI does not show it: it tells a
#: person nothing, and hides what the run's other tags tell.
ALIVE = ".dagster/rhei/alive"
#: As a run calls it that was begun before an upgrade.
_FORMER = "rhei/alive"
_BEAT_SECONDS = 20.0
#: After so long without a new sign a process is gone; its machine may have been very busy.
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


class SignsOfLife:
    """Watches the runs' signs by this process's own clock, and ends the runs that give none.

    A sign is only ever compared with the one before it. What it says of the time is that of another
    machine, whose clock may be hours off; and a machine that slept has missed no sign.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[str, tuple[str, float]] = {}

    def end_the_dead(self, instance: dg.DagsterInstance, runs: Iterable[dg.DagsterRun]) -> bool:
        """Mark the started runs whose process has ended without a word as failed.

        Args:
            instance: Whose runs they are.
            runs: All that have not ended.

        Returns:
            Whether there was one.
        """
        started = [run for run in runs if run.status is dg.DagsterRunStatus.STARTED]
        now, before, self._seen = self._clock(), self._seen, {}
        dead = []
        for run in started:
            sign = run.tags.get(ALIVE) or run.tags.get(_FORMER, "")
            last, since = before.get(run.run_id, (sign, now))
            self._seen[run.run_id] = sign, since if sign == last else now
            if now - self._seen[run.run_id][1] > _DEAD_SECONDS:
                dead.append(run)
        for run in dead:
            instance.report_run_failed(
                run,
                "The run's process has ended without a word, with the code server that started it.",
            )
        return bool(dead)
