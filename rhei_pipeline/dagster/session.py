"""A sync session: the engine syncs in a thread of its own; this one reports, and ends it."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median

import dagster as dg

from rhei_pipeline.errors import PermanentError
from rhei_pipeline.htap import HTAP
from rhei_pipeline.model.reports import SyncReport, SyncStatus, TableReport
from rhei_pipeline.model.schema import Table
from rhei_pipeline.sync.background import BackgroundSync

#: How often a session looks at what the engine has done.
LOOK_SECONDS = 0.5
#: How long a report waits for a sync under way, or for a source that does not answer.
PATIENCE_SECONDS = 2.0
#: So many tables are reported at once: each report takes some 8 KB of Dagster's event log, and
#: however many tables there are, it must not grow faster.
TABLES_AT_ONCE = 2
#: The first report comes soon, so that the graph shows that the session is at work.
FIRST_REPORT_SECONDS = 5.0


@dataclass
class ReportWindow:
    """What happened to one table since its last report."""

    lags: list[float] = field(default_factory=list)
    events: int = 0
    rows: int = 0
    longest_sync: float = 0.0

    def add(self, report: SyncReport, table: str) -> None:
        """Count one sync in; a copy's changes waited for the copy, so they are no lag."""
        found = report.tables[table]
        if not found.copied_rows:
            self.lags.append(found.lag_seconds)
            self.longest_sync = max(self.longest_sync, report.duration_seconds)
        self.events += found.events
        self.rows += found.changed

    @property
    def longest_lag(self) -> float:
        """The longest that a change waited, in seconds."""
        return max(self.lags, default=0.0)


@dataclass
class Session:
    """One sync session: cycles run in a thread of the engine, this one reports and decides."""

    htap: HTAP
    tables: Mapping[str, Table]
    report_seconds: float
    idle_seconds: float
    windows: dict[str, ReportWindow] = field(default_factory=dict)
    copies: dict[str, TableReport] = field(default_factory=dict)
    background: BackgroundSync | None = None
    reported_at: dict[str, float] = field(default_factory=dict)
    active_at: float = field(default_factory=time.monotonic)
    report_at: float = field(default_factory=lambda: time.monotonic() + FIRST_REPORT_SECONDS)

    def collect(self) -> None:
        """Take over what the engine has done since the last call.

        Raises:
            Failure: The engine met an error that trying again does not cure.
        """
        self.background = self.htap.start_sync()
        if self.background.cycle_seconds > LOOK_SECONDS:
            self.active_at = time.monotonic()  # longer than a cycle that finds nothing
        self.take_reports()
        if isinstance(self.background.last_error, PermanentError):
            raise dg.Failure(str(self.background.last_error), allow_retries=False)

    def take_reports(self) -> None:
        """Count in what the engine has reported since the last call, whether it syncs on or not."""
        for report in self.background.take_reports() if self.background else ():
            if report.events or any(found.copied_rows for found in report.tables.values()):
                self.active_at = time.monotonic()  # a table that is left out keeps none open
            self._count(report)

    def _count(self, report: SyncReport) -> None:
        for name in self.tables:
            found = report.tables.get(name)
            if found and (found.events or found.changed or found.copied_rows):
                self.windows.setdefault(name, ReportWindow()).add(report, name)
            if found and found.copied_rows:
                self.copies[name] = found

    def sync_now(self) -> None:
        """Sync once more in this thread, after the engine's own has stopped."""
        self.htap.stop_sync()
        self.take_reports()
        self._count(self.htap.sync_now())

    @property
    def idle(self) -> bool:
        """Whether nothing has changed for long enough to end."""
        return time.monotonic() - self.active_at > self.idle_seconds

    @property
    def due(self) -> bool:
        """Whether it is time to report."""
        return time.monotonic() > self.report_at

    def status(self) -> SyncStatus:
        """Return how the tables stand, and when to report next.

        As last known where source or mirror cannot be read now: what the engine rides out, a
        report does as well.
        """
        self.report_at = time.monotonic() + self.report_seconds
        return self.htap.sync_status(PATIENCE_SECONDS)

    def take_windows(self, most: int | None = None) -> dict[str, ReportWindow]:
        """Return what happened to the tables that changed, and begin new windows.

        Of more than `most`, those that were not reported for longest; the others wait their turn.
        """
        chosen = sorted(self.windows, key=lambda name: self.reported_at.get(name, 0.0))[:most]
        now = time.monotonic()
        self.reported_at |= dict.fromkeys(chosen, now)
        return {name: self.windows.pop(name) for name in chosen}

    def take_copies(self) -> dict[str, TableReport]:
        """Return the tables that were copied since the last call."""
        taken, self.copies = self.copies, {}
        return taken


def numbers(window: ReportWindow, rows: int, watermark: int | None) -> dict[str, float | int | str]:
    """Return the same plotted numbers each time, and the watermark as a text.

    Dagster plots each number, in the order of the names; one that never changes would be in the
    way. A number that is missing once is a gap.
    """
    return {
        "change_lag_ms_max": _milliseconds(window.longest_lag),
        "change_lag_ms_p50": _milliseconds(median(window.lags) if window.lags else 0.0),
        "dagster/row_count": rows,
        "events_applied": window.events,
        "rows_applied": window.rows,
        "sync_ms_max": _milliseconds(window.longest_sync),
        "watermark": str(watermark or 0),
    }


def reports(
    session: Session,
    status: SyncStatus,
    windows: Mapping[str, ReportWindow],
    count: Callable[[str], int | None],
) -> Iterator[tuple[Table, dict[str, float | int | str]]]:
    """Yield the numbers of each table with a window.

    Not of those that are left out, were not copied yet, or have rows that nobody can count.
    """
    for name, window in windows.items():
        found = status.tables.get(name)
        if found is None or found.error is not None or found.watermark is None:
            continue
        if (rows := count(name)) is not None:
            yield session.tables[name], numbers(window, rows, found.watermark)


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1)
