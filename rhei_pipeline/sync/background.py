"""Syncs in a background thread at an interval."""

import logging
import random
import threading
import time
from collections import deque
from typing import Protocol

from rhei_pipeline.errors import RheiError, SettingsError
from rhei_pipeline.model.bounds import LONGEST_SECONDS
from rhei_pipeline.model.log_context import one_cycle
from rhei_pipeline.model.reports import SyncReport

_log = logging.getLogger(__name__)

#: The longest wait between two tries while the source or the mirror fails.
MAX_BACKOFF_SECONDS = 30.0
#: A source may be away for days, and a double holds no power of two as large as its failures.
_MOST_DOUBLINGS = 64
#: Reports that wait for somebody to take them.
KEPT_REPORTS = 1_000
#: The pause between two syncs that copy.
_TURN_SECONDS = 0.01


def checked_interval(seconds: float) -> float:
    """Return the pause between two syncs.

    Raises:
        SettingsError: It is not above 0, or no clock counts so far.
    """
    if not 0 < seconds <= LONGEST_SECONDS:
        raise SettingsError(
            "the interval between syncs is not above 0, or is longer than any wait",
            hint=f"give a number of seconds above 0, of up to {LONGEST_SECONDS:,}",
        )
    return seconds


class Syncing(Protocol):
    """What a background sync has sync."""

    def sync(self) -> SyncReport:
        """Bring every table up to the source as it is now; copy for one turn at most."""


class BackgroundSync:
    """Syncs at an interval in a thread of its own until it is stopped.

    A failed sync is tried again after a growing, jittered wait; the last failure is kept for
    whoever asks.
    """

    def __init__(self, pipeline: Syncing, interval_seconds: float) -> None:
        self._pipeline = pipeline
        self._interval = checked_interval(interval_seconds)
        #: Guards the interval and whether it is to end; notified when one of them changes.
        self._news = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="rhei-sync", daemon=True)
        self._failures = 0
        self._copies = False  # and the next sync goes on with that
        self.last_error: RheiError | None = None
        self._reports: deque[SyncReport] = deque(maxlen=KEPT_REPORTS)
        self._reports_lock = threading.Lock()
        self._cycle_since: float | None = None

    @property
    def cycle_seconds(self) -> float:
        """How long the sync under way has lasted; 0 while it waits for the next."""
        since = self._cycle_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def running(self) -> bool:
        """Whether the thread is alive."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the cycle under way, and wait for that."""
        with self._news:
            self._stopping = True
            self._news.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def change_interval(self, interval_seconds: float) -> None:
        """Sync at another interval from now on, the wait under way included."""
        checked_interval(interval_seconds)
        with self._news:
            self._interval = interval_seconds
            self._news.notify_all()

    def take_reports(self) -> list[SyncReport]:
        """Return the reports of syncs that did something since the last call, oldest first.

        Of more than `KEPT_REPORTS`, the newest: not everybody who syncs takes them.
        """
        with self._reports_lock:
            taken = list(self._reports)
            self._reports.clear()
        return taken

    def _run(self) -> None:
        while not self._stopping:
            started = self._cycle_since = time.monotonic()
            self._sync_once()
            self._cycle_since = None
            self._rest(started)

    def _rest(self, since: float) -> None:
        """Wait until the next sync is due, or until this is to end."""
        with self._news:
            if self._copies:  # it goes on at once, and lets in who waits for a turn
                self._news.wait(_TURN_SECONDS)
            while not self._stopping and not self._copies:
                left = self._wait() - (time.monotonic() - since)
                if left <= 0 or not self._news.wait(left):
                    return

    def _sync_once(self) -> None:
        with one_cycle():
            try:
                report = self._pipeline.sync()
            except RheiError as error:
                self._failed(error)
                return
            except Exception as error:  # noqa: BLE001
                # Nobody waits for this thread: what ends it must not end it unseen. The text of
                # an unknown error may quote a row, so only its type is logged.
                self._failed(RheiError(f"sync failed unexpectedly: {type(error).__name__}"))
                return
        self._failures, self.last_error = 0, None
        self._copies = bool(report.copying)
        self.take_in(report)

    def take_in(self, report: SyncReport) -> None:
        """Keep the report of a sync that did something, until somebody takes it."""
        if report.did_something:
            with self._reports_lock:
                self._reports.append(report)

    def _failed(self, error: RheiError) -> None:
        self._failures += 1
        self._copies = False
        self.last_error = error
        _log.warning("sync failed and is tried again: %s", error)

    def _wait(self) -> float:
        if not self._failures:
            return self._interval
        doublings = min(self._failures, _MOST_DOUBLINGS)
        backoff = min(self._interval * 2.0**doublings, MAX_BACKOFF_SECONDS)
        return random.uniform(backoff / 2, backoff)  # noqa: S311  (jitter, not a secret)
