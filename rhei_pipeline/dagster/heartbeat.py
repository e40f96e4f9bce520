"""A run's sign of life: what tells one that works from one whose process is gone.

Dagster learns of a process that dies from the code server that started it; where both died, the
run would stay open for ever with what it holds, and nothing would be synced.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Self

import dagster as dg

_log = logging.getLogger(__name__)

#: The tag with the time of the last sign. By its prefix Dagster's UI does not show it: it tells a
#: person nothing, and hides what the run's other tags tell.
ALIVE = ".dagster/rhei/alive"
#: As a run calls it that was begun before an upgrade.
_FORMER = "rhei/alive"
#: What it says once the process has done what it gave signs for.
ENDED = "ended"
_BEAT_SECONDS = 20.0
#: After so long without a new sign a process is gone; its machine may have been very busy.
_DEAD_SECONDS = 150.0
#: After so long a run that was to be started never will be; its process may have had to wait long.
_UNBORN_SECONDS = 900.0
_CANCELING = dg.DagsterRunStatus.CANCELING
_UNBORN = {dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING}
_WATCHED = {dg.DagsterRunStatus.STARTED, _CANCELING, *_UNBORN}


class Heartbeat:
    """Marks a run in a thread of its own, whatever the run's other threads are at."""

    def __init__(self, instance: dg.DagsterInstance, run_id: str) -> None:
        self._instance, self._run_id = instance, run_id
        self._ended, self._given_up = threading.Event(), False
        self._thread = threading.Thread(target=self._beat, name="rhei-heartbeat", daemon=True)

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End, and wait for that."""
        self._ended.set()
        self._thread.join()
        self._say(ENDED)

    @property
    def is_given_up(self) -> bool:
        """Whether somebody ended the run while its process worked: another may be in its place."""
        return self._given_up

    def _beat(self) -> None:
        while not self._given_up:
            self._say(str(int(time.time())))
            if self._ended.wait(_BEAT_SECONDS):
                return

    def _say(self, sign: str) -> None:
        try:
            run = self._instance.get_run_by_id(self._run_id)
            self._given_up = run is None or run.is_finished
            if not self._given_up:
                self._instance.add_run_tags(self._run_id, {ALIVE: sign})
        except Exception as error:  # noqa: BLE001  (the next beat may succeed)
            _log.warning("no sign of life was left: %s", type(error).__name__)


def last_sign(run: dg.DagsterRun) -> str:
    """Return the last sign that a run gave; an empty text where it gave none."""
    return run.tags.get(ALIVE) or run.tags.get(_FORMER, "")


class SignsOfLife:
    """Watches the runs' signs by this process's own clock, and ends the runs that give none.

    A sign is only ever compared with the one before it. What it says of the time is that of another
    machine, whose clock may be hours off; and a machine that slept has missed no sign.

    Args:
        clock: Returns seconds.
        begins_late: A run is started long before its process gives the first sign.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, *, begins_late: bool = False
    ) -> None:
        self._clock, self._begins_late = clock, begins_late
        self._seen: dict[str, tuple[object, float]] = {}

    def end_the_dead(self, instance: dg.DagsterInstance, runs: Iterable[dg.DagsterRun]) -> bool:
        """End the runs whose process has ended without a word, or never begun.

        Args:
            instance: Whose runs they are.
            runs: All that have not ended.

        Returns:
            Whether there was one.
        """
        watched = [run for run in runs if run.status in _WATCHED]
        signs = {run.run_id: (run.status, last_sign(run)) for run in watched}
        silent = self.silent_seconds(signs)
        dead = [run for run in watched if silent[run.run_id] > self._patience(run)]
        for run in dead:
            _end(instance, run)
        return bool(dead)

    def _patience(self, run: dg.DagsterRun) -> float:
        is_to_begin = self._begins_late and not last_sign(run)
        return _UNBORN_SECONDS if run.status in _UNBORN or is_to_begin else _DEAD_SECONDS

    def silent_seconds(self, signs: Mapping[str, object]) -> dict[str, float]:
        """Return how long each sign has been the same, as far as this process has seen."""
        now, before = self._clock(), self._seen
        self._seen = {
            name: before[name] if name in before and before[name][0] == sign else (sign, now)
            for name, sign in signs.items()
        }
        return {name: now - since for name, (_, since) in self._seen.items()}


def _end(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """Mark a run as what its process would have, had it lived."""
    if run.status is _CANCELING:
        instance.report_run_canceled(run, "The run's process has ended without a word.")
        return
    instance.report_run_failed(
        run,
        "The run was never begun: what was to start it has ended."
        if run.status in _UNBORN
        else "The run's process has ended without a word, with the code server that started it.",
    )
