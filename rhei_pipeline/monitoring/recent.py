"""The lag of each table over the last minutes, as far as this process saw it."""

import threading
from collections import deque
from dataclasses import dataclass

from rhei_pipeline.model.reports import SyncReport, SyncStatus

#: A point of a table's line is the longest lag of so many seconds.
POINT_SECONDS = 5
#: Ten minutes.
POINTS = 120


@dataclass(frozen=True, slots=True)
class LastSync:
    """The last sync of this process: when it ended, and what it did."""

    at: float
    seconds: float
    events: int


class Recent:
    """What was seen lately. Bounded: a point of each table for each five seconds of ten minutes."""

    def __init__(self) -> None:
        self.last_sync: LastSync | None = None
        self._lock = threading.Lock()
        self._points: dict[str, deque[tuple[int, float]]] = {}

    def note_sync(self, report: SyncReport, now: float) -> None:
        """Keep how old each table's oldest change was when a sync made it visible."""
        self.last_sync = LastSync(now, report.duration_seconds, report.events)
        for name, table in report.tables.items():
            if table.error is None:
                self._note(name, table.lag_seconds if table.events else 0.0, now)

    def note_status(self, status: SyncStatus, now: float) -> None:
        """Keep how long each table's oldest change has waited; forget tables that are gone."""
        for name, table in status.tables.items():
            if table.lag_seconds is not None:
                self._note(name, table.lag_seconds, now)
        if status.tables:
            with self._lock:
                for name in self._points.keys() - status.tables.keys():
                    del self._points[name]

    def lags(self, table: str, now: float) -> list[tuple[float, float]]:
        """Return a table's points, oldest first: how many seconds ago, and the lag in seconds."""
        with self._lock:
            points = list(self._points.get(table, ()))
        age = [(max(now - at * POINT_SECONDS, 0.0), lag) for at, lag in points]
        return [(ago, lag) for ago, lag in age if ago <= POINTS * POINT_SECONDS]

    def _note(self, table: str, lag_seconds: float, now: float) -> None:
        at = int(now // POINT_SECONDS)
        with self._lock:
            points = self._points.setdefault(table, deque(maxlen=POINTS))
            if points and points[-1][0] == at:
                lag_seconds = max(lag_seconds, points.pop()[1])
            points.append((at, lag_seconds))
