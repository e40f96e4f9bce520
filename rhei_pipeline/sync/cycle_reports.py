"""What a cycle reports of its tables."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime

from rhei_pipeline.model.changes import Position
from rhei_pipeline.model.progress import Ledger
from rhei_pipeline.model.reports import TableReport
from rhei_pipeline.model.schema import Table
from rhei_pipeline.protocols import SourcePositions


def age_of_oldest(table: Table, snapshot: SourcePositions, after: Position) -> float:
    """Return how long the first change behind a position has waited."""
    oldest = snapshot.oldest_pending(table, after)
    return 0.0 if oldest is None else max((snapshot.clock - oldest).total_seconds(), 0.0)


def with_waiting(report: TableReport, seconds: float) -> TableReport:
    """Count the time from the snapshot to the commit into the lag of what was applied."""
    return replace(report, lag_seconds=report.lag_seconds + seconds) if report.events else report


def with_unchanged(
    tables: Iterable[Table], ledger: Ledger, reports: Mapping[str, TableReport], clock: datetime
) -> dict[str, TableReport]:
    """Report the tables without changes beside the others, all as of the same source state."""
    marks, found = ledger.watermarks, {}
    for table in tables:
        name = table.name
        report, mark = reports.get(name), marks.get(name)
        order = None if mark is None else mark.position.order
        found[name] = (
            TableReport(name, watermark=order, as_of=clock)
            if report is None
            else replace(report, as_of=clock)
        )
    return found
