"""Prometheus metrics of a pipeline, and whether it is ready for queries."""

from collections.abc import Callable, Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rhei_pipeline.errors import RheiError
from rhei_pipeline.model.progress import TableState
from rhei_pipeline.model.reports import SyncReport, SyncStatus

#: From a routed point read to a copy's hours.
_SECONDS = (0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60, 600, 3600)
#: A scrape waits so long for a sync under way, then tells what was known before it.
PATIENCE_SECONDS = 1.0


class Watched(Protocol):
    """What can be monitored."""

    def sync_status(self, patience_seconds: float | None = None) -> SyncStatus:
        """Return every table's state, after so long at most."""

    def watch(
        self,
        on_sync: Callable[[SyncReport], None],
        on_query: Callable[[str, float], None],
    ) -> None:
        """Call these with each sync's report, and with each query's side and seconds."""


class Monitoring:
    """Counters of events, and gauges of the tables' state that are read at each scrape.

    Names are Rhei's: `rhei_sync_events_processed_total{table}`, `rhei_sync_rows_inserted_total`,
    `rhei_query_routed_total{engine}`, `rhei_sync_cdc_lag_events{table}`, ....
    """

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self.registry = CollectorRegistry()
        self._routed = self._counter("rhei_query_routed", "Queries answered.", "engine")
        self._query = self._histogram("rhei_query_seconds", "Time to answer a query.", "engine")
        self._cycle = self._histogram("rhei_sync_cycle_seconds", "Length of a sync.")
        self._apply = self._histogram(
            "rhei_sync_apply_lag_seconds",
            "Age of a sync's oldest change when it became visible.",
            "table",
        )
        self._counts = {
            name: self._counter(f"rhei_sync_{counted}", help_, "table")
            for name, counted, help_ in (
                ("events", "events_processed", "Events of the source applied."),
                ("inserted", "rows_inserted", "Rows inserted in the mirror."),
                ("updated", "rows_updated", "Rows changed in the mirror."),
                ("deleted", "rows_deleted", "Rows deleted from the mirror."),
                ("dead_letters", "dead_letters", "Rows that could not be mirrored."),
                ("copied_rows", "rows_copied", "Rows read by initial syncs."),
            )
        }
        self._pruned = Counter(
            "rhei_sync_rows_pruned",
            "Rows deleted from the source's log, or from the buffer.",
            registry=self.registry,
        )
        self.registry.register(_Standing(watched))
        watched.watch(self._synced, self._answered)

    def _counter(self, name: str, help_: str, label: str) -> Counter:
        return Counter(name, help_, [label], registry=self.registry)

    def _histogram(self, name: str, help_: str, *labels: str) -> Histogram:
        return Histogram(name, help_, labels, buckets=_SECONDS, registry=self.registry)

    def _answered(self, engine: str, seconds: float) -> None:
        self._routed.labels(engine).inc()
        self._query.labels(engine).observe(seconds)

    def _synced(self, report: SyncReport) -> None:
        self._cycle.observe(report.duration_seconds)
        self._pruned.inc(report.rows_pruned)
        for name, table in report.tables.items():
            for field, counter in self._counts.items():
                counter.labels(name).inc(getattr(table, field))
            if table.events:
                self._apply.labels(name).observe(table.lag_seconds)

    def readiness(self) -> str | None:
        """Return why queries should not be sent here yet; None when they can be."""
        found = status_of(self._watched)
        if found.unreadable is not None:
            return found.unreadable
        if not found.tables:  # the first sync is under way, and nothing was known before it
            return f"not copied yet: {', '.join(sorted(found.copying)) or 'any table'}"
        waiting = [
            name
            for name, table in found.tables.items()
            # One that is left out keeps nobody waiting: queries of it go to the source.
            if not _is_ready(table.state) and table.error is None
        ]
        if waiting:
            return f"not copied yet: {', '.join(sorted(waiting))}"
        return f"the background sync fails: {found.last_error}" if found.last_error else None


def status_of(watched: Watched) -> SyncStatus:
    """Return the state of a pipeline; of one that is closed, that it cannot be read."""
    try:
        return watched.sync_status(PATIENCE_SECONDS)
    except RheiError as error:
        return SyncStatus(running=False, tables={}, unreadable=str(error))


def _is_ready(state: TableState | None) -> bool:
    return state is TableState.READY


class _Standing(Collector):
    """Gauges of the tables' state, read at each scrape."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges, with the last known values while source or mirror cannot be read."""
        status = status_of(self._watched)
        up = GaugeMetricFamily("rhei_up", "Whether source and mirror can be read.")
        up.add_metric([], status.unreadable is None)
        yield up
        yield from _gauges(status)


def _gauges(status: SyncStatus) -> Iterator[Metric]:
    running = GaugeMetricFamily("rhei_sync_running", "Whether the background sync runs.")
    running.add_metric([], status.running)
    yield running
    failing = GaugeMetricFamily("rhei_sync_failing", "Whether its last sync failed.")
    failing.add_metric([], status.last_error is not None)
    yield failing
    age = GaugeMetricFamily("rhei_status_age_seconds", "Age of the per-table metrics.")
    behind = GaugeMetricFamily(
        "rhei_publishing_failing", "Whether the published copy or a Delta table is out of date."
    )
    if status.tables or status.unreadable is None:  # otherwise neither is known
        age.add_metric([], status.age_seconds)
        behind.add_metric([], status.not_published is not None)
    yield age
    yield behind
    held = GaugeMetricFamily(
        "rhei_capture_held_bytes", "Bytes kept until the mirror has them.", labels=["keeper"]
    )
    for keeper, size in status.held_bytes.items():
        held.add_metric([keeper], size)
    yield held
    yield from _copies(status)
    yield from _tables(status)


def _copies(status: SyncStatus) -> Iterator[Metric]:
    rows = GaugeMetricFamily("rhei_copy_rows", "Rows copied so far.", labels=["table"])
    whole = GaugeMetricFamily(
        "rhei_copy_expected_rows", "Estimated number of rows of the copy.", labels=["table"]
    )
    for name, copy in status.copying.items():
        rows.add_metric([name], copy.rows)
        whole.add_metric([name], copy.of)
    yield rows
    yield whole


def _tables(status: SyncStatus) -> Iterator[Metric]:
    gauges = {
        name: GaugeMetricFamily(name, help_, labels=["table"])
        for name, help_ in (
            ("rhei_sync_cdc_lag_events", "Events of the source not applied yet."),
            ("rhei_sync_cdc_lag_seconds", "How long the oldest of them has waited."),
            ("rhei_sync_watermark", "The position up to which the table is applied."),
            ("rhei_dead_letters_open", "Open dead letters: rows that cannot be mirrored."),
            ("rhei_table_ready", "Whether the table has been copied."),
            ("rhei_table_left_out", "Whether the table is left out because of an error."),
        )
    }
    for name, table in status.tables.items():
        for gauge, value in zip(
            gauges.values(),
            (
                table.lag_events,
                table.lag_seconds,
                table.watermark or 0,
                table.dead_letters,
                _is_ready(table.state),
                table.error is not None,
            ),
            strict=True,
        ):
            if value is not None:  # a lag that nobody knows has no sample: 0 would say none
                gauge.add_metric([name], value)
    yield from gauges.values()
