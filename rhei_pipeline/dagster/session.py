"""A sync session: the engine syncs in a thread of its own; this one reports, and ends it."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median

import dagster as dg

from rhei_pipeline.errors import PermanentError
from rhei_pipeline.htap import HTAP
from rhei_pipeline.model.reports import SyncReport, TableStatus
from rhei_pipeline.model.schema import Table

#: How often a session looks at what the engine has done.
LOOK_SECONDS = 0.5


@dataclass
class ReportWindow:
    """What happened to one table since its last report."""

    lags: list[float] = field(default_factory=list)
    rows: int = 0
    apply_seconds: float = 0.0

    def add(self, report: SyncReport, table: str) -> None:
        """Count one sync in."""
        found = report.tables[table]
        self.lags.append(found.lag_seconds)
        self.rows += found.changed
        self.apply_seconds += report.duration_seconds


@dataclass
class Session:
    """One sync session: cycles run in a thread of the engine, this one reports and decides."""

    htap: HTAP
    tables: Mapping[str, Table]
    report_seconds: float
    idle_seconds: float
    windows: dict[str, ReportWindow] = field(default_factory=dict)
    copied_rows: dict[str, int] = field(default_factory=dict)
    reported_at: float = field(default_factory=time.monotonic)
    active_at: float = field(default_factory=time.monotonic)

    def collect(self) -> None:
        """Take over what the engine has done since the last call.

        Raises:
            Failure: The engine met an error that trying again does not cure.
        """
        background = self.htap.start_sync()
        if background.cycle_seconds > LOOK_SECONDS:
            self.active_at = time.monotonic()  # longer than a cycle that finds nothing
        for report in background.take_reports():
            if report.events or any(found.copied_rows for found in report.tables.values()):
                self.active_at = time.monotonic()  # a table that is left out keeps none open
            for name in self.tables:
                found = report.tables.get(name)
                if found and (found.events or found.changed or found.copied_rows):
                    self.windows.setdefault(name, ReportWindow()).add(report, name)
                if found and found.copied_rows:
                    self.copied_rows[name] = found.copied_rows
        if isinstance(background.last_error, PermanentError):
            raise dg.Failure(str(background.last_error), allow_retries=False)

    @property
    def idle(self) -> bool:
        """Whether nothing has changed for long enough to end."""
        return time.monotonic() - self.active_at > self.idle_seconds

    @property
    def due(self) -> bool:
        """Whether it is time to report."""
        return bool(self.windows) and time.monotonic() - self.reported_at > self.report_seconds

    def reports(self) -> Iterator[tuple[Table, dict[str, float | int | str]]]:
        """Yield the numbers of each table that changed, and begin new windows."""
        status = self.htap.sync_status()
        windows, self.windows = self.windows, {}
        self.reported_at = time.monotonic()
        for name, window in windows.items():
            found = status.tables[name]
            if found.error is None:
                yield self.tables[name], numbers(window, found, self.htap.row_count(name))

    def errors(self) -> dict[str, str]:
        """Return the tables that are left out, each with the reason."""
        tables = self.htap.sync_status().tables
        return {name: found.error for name, found in tables.items() if found.error}


def numbers(window: ReportWindow, status: TableStatus, rows: int) -> dict[str, float | int | str]:
    """Return the same plotted numbers each time, and the watermark."""
    return {
        "lag_ms_p50": round(median(window.lags) * 1000, 1) if window.lags else 0.0,
        "lag_ms_max": round(max(window.lags, default=0.0) * 1000, 1),
        "rows_applied": window.rows,
        "pending_events": status.lag_events,
        "apply_ms": round(window.apply_seconds * 1000, 1),
        "dead_letters": status.dead_letters,
        "dagster/row_count": rows,
        "watermark": status.watermark or 0,
        "proof": status.proof if status.doubt is None else f"unproved: {status.doubt}",
    }
