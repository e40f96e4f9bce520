"""The mirrors, and the sync session that keeps them: a run that cycles while there is work."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import dagster as dg

from assets.initial_sync import WRITER_POOL, initial_sync_key
from assets.sources import CHANGES, column_schema, key_parts
from resources.olap import OlapResource
from rhei_pipeline import HTAP, Mode, PermanentError, Settings, SyncReport, Table, TableStatus

_LOOK_SECONDS = 0.5


def mirror_key(table: Table) -> dg.AssetKey:
    """Return the key of a table's mirror."""
    return dg.AssetKey(["mirror", *key_parts(table)])


def mirror_specs(tables: Sequence[Table], settings: Settings) -> list[dg.AssetSpec]:
    """Describe the mirrors."""
    return [
        dg.AssetSpec(
            mirror_key(table),
            deps=[CHANGES, initial_sync_key(table)],
            description=_description(table),
            group_name="mirror",
            kinds={settings.mirror.kind, "table"}
            | ({"scd2"} if table.mode is Mode.TEMPORAL else set()),
            skippable=True,
            metadata={
                "dagster/column_schema": column_schema(table, history=True),
                "dagster/table_name": f"{settings.mirror.path.stem}.{_place(table)}",
                "dagster/storage_kind": settings.mirror.kind,
                "dagster/uri": settings.mirror.uri,
            },
        )
        for table in tables
    ]


def _place(table: Table) -> str:
    return f"{table.schema.namespace or 'main'}.{table.schema.relation}"


def _description(table: Table) -> str:
    if table.mode is Mode.DESTRUCTIVE:
        return f"The rows of `{table.name}` in the source, up to the watermark."
    return (
        f"Every version of `{table.name}`. Rows as they were at an instant T:"
        " `_rhei_valid_from <= T and (_rhei_valid_to is null or _rhei_valid_to > T)`."
    )


class SessionConfig(dg.Config):
    """How long a session lasts; left out, as declared under `schedule`."""

    session_seconds: float | None = None
    idle_seconds: float | None = None


@dataclass
class Window:
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
    windows: dict[str, Window] = field(default_factory=dict)
    copied_rows: dict[str, int] = field(default_factory=dict)
    reported_at: float = field(default_factory=time.monotonic)
    active_at: float = field(default_factory=time.monotonic)

    def collect(self) -> None:
        """Take over what the engine has done since the last call.

        Raises:
            Failure: The engine met an error that trying again does not cure.
        """
        background = self.htap.start_sync()
        if background.cycle_seconds > _LOOK_SECONDS:
            self.active_at = time.monotonic()  # longer than a cycle that finds nothing
        for report in background.take_reports():
            if report.events or any(found.copied_rows for found in report.tables.values()):
                self.active_at = time.monotonic()  # a table that is left out keeps none open
            for name in self.tables:
                found = report.tables.get(name)
                if found and (found.events or found.changed or found.copied_rows):
                    self.windows.setdefault(name, Window()).add(report, name)
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


def numbers(window: Window, status: TableStatus, rows: int) -> dict[str, float | int | str]:
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


def mirrors_asset(tables: Sequence[Table], settings: Settings) -> dg.AssetsDefinition:
    """Make the one asset definition that keeps all mirrors: a cycle spans all tables."""
    by_name = {table.name: table for table in tables}
    by_key = {mirror_key(table): table.name for table in tables}

    # No RetryPolicy: a terminated session would be retried. The sensor opens the next one.
    @dg.multi_asset(
        name="sync_session",
        specs=mirror_specs(tables, settings),
        can_subset=True,
        pool=WRITER_POOL,
    )
    def sync_session(
        context: dg.AssetExecutionContext, config: SessionConfig, olap: OlapResource
    ) -> Iterator[dg.MaterializeResult[None]]:
        schedule = olap.settings().schedule
        until = time.monotonic() + (config.session_seconds or schedule.session_seconds)
        chosen = {by_key[key]: by_name[by_key[key]] for key in context.selected_asset_keys}
        with olap.open() as htap:
            idle_seconds = config.idle_seconds or schedule.idle_seconds
            session = Session(htap, chosen, schedule.report_seconds, idle_seconds)
            try:
                _watch(context, session, until)
            finally:
                htap.stop_sync()
            yield from _results(context, session)

    return sync_session


def _watch(context: dg.AssetExecutionContext, session: Session, until: float) -> None:
    """Report while the engine syncs, until there is a reason to end."""
    while time.monotonic() < until:
        session.collect()
        if session.idle:
            return
        if session.due:
            _report(context, session)
        if _writer_wanted(context):
            context.log.info("another run waits for the mirror, so this session ends")
            return
        time.sleep(_LOOK_SECONDS)


def _report(context: dg.AssetExecutionContext, session: Session) -> None:
    _report_copies(context, session)
    for table, values in session.reports():
        context.log_event(dg.AssetMaterialization(mirror_key(table), metadata=values))


def _report_copies(context: dg.AssetExecutionContext, session: Session) -> None:
    """Report tables that this session copied for the first time."""
    copied, session.copied_rows = session.copied_rows, {}
    for name, rows in copied.items():
        key = initial_sync_key(session.tables[name])
        context.log_event(dg.AssetMaterialization(key, metadata={"rows_copied": rows}))


def _results(
    context: dg.AssetExecutionContext, session: Session
) -> Iterator[dg.MaterializeResult[None]]:
    """Report every table once at the end, so that each session leaves a data version behind."""
    session.htap.sync_now()
    _report_copies(context, session)
    session.windows = {name: session.windows.get(name, Window()) for name in session.tables}
    for name, error in session.errors().items():
        context.log.error("table %r is left out: %s", name, error)
    for table, values in session.reports():
        yield dg.MaterializeResult(
            asset_key=mirror_key(table),
            data_version=dg.DataVersion(str(values["watermark"])),
            metadata=values,
        )


def _writer_wanted(context: dg.AssetExecutionContext) -> bool:
    """Return whether another step waits for the mirror: a copy, a backfill, the next session."""
    storage = context.instance.event_log_storage
    if not storage.supports_global_concurrency_limits:
        return False
    waiting: int = storage.get_concurrency_info(WRITER_POOL).pending_step_count
    return waiting > 0
