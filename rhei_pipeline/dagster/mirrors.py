"""The mirrors, and the run that keeps them: it syncs while there is work."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import dagster as dg

from rhei_pipeline.dagster.declaration import Declaration
from rhei_pipeline.dagster.pool import writer_wanted
from rhei_pipeline.dagster.resources import OlapResource
from rhei_pipeline.dagster.session import LOOK_SECONDS, ReportWindow, Session
from rhei_pipeline.dagster.translator import Stage


class SessionConfig(dg.Config):
    """How long a session lasts; left out, as declared under `schedule`."""

    session_seconds: float | None = None
    idle_seconds: float | None = None


def sync_session_asset(declaration: Declaration) -> list[dg.AssetsDefinition]:
    """Make the one asset definition that keeps all mirrors: a cycle spans all tables.

    Returns:
        The definition; nothing where there is no table.
    """
    if not declaration.tables:
        return []
    names = declaration.names
    specs = [declaration.spec(Stage.MIRROR, table) for table in declaration.tables]
    by_key = {spec.key: table for spec, table in zip(specs, declaration.tables, strict=True)}

    # No RetryPolicy: a terminated session would be retried. The sensor opens the next one.
    @dg.multi_asset(
        name=names.named("sync_session"),
        specs=specs,
        can_subset=True,
        pool=names.pool,
        required_resource_keys={names.olap},
    )
    def sync_session(
        context: dg.AssetExecutionContext, config: SessionConfig
    ) -> Iterator[dg.MaterializeResult[None]]:
        olap: OlapResource = getattr(context.resources, names.olap)
        schedule = olap.settings().schedule
        until = time.monotonic() + (config.session_seconds or schedule.session_seconds)
        chosen = {by_key[key].name: by_key[key] for key in context.selected_asset_keys}
        with olap.open() as htap:
            idle_seconds = config.idle_seconds or schedule.idle_seconds
            session = Session(htap, chosen, schedule.report_seconds, idle_seconds)
            run = _SessionRun(context, session, declaration)
            try:
                run.watch(until)
            finally:
                htap.stop_sync()
            yield from run.results()

    return [sync_session]


@dataclass(frozen=True, slots=True)
class _SessionRun:
    """A session as one run: what it reports becomes the run's events."""

    context: dg.AssetExecutionContext
    session: Session
    declaration: Declaration

    def watch(self, until: float) -> None:
        """Report while the engine syncs, until there is a reason to end."""
        while time.monotonic() < until:
            self.session.collect()
            if self.session.idle:
                return
            if self.session.due:
                self._report()
            if writer_wanted(self.context.instance, self.declaration.names.pool):
                self.context.log.info("another run waits for the mirror, so this session ends")
                return
            time.sleep(LOOK_SECONDS)

    def results(self) -> Iterator[dg.MaterializeResult[None]]:
        """Report every table once at the end, so that each session leaves a data version behind."""
        session = self.session
        session.htap.sync_now()
        self._report_copies()
        session.windows = {
            name: session.windows.get(name, ReportWindow()) for name in session.tables
        }
        for name, error in session.errors().items():
            self.context.log.error("table %r is left out: %s", name, error)
        for table, values in session.reports():
            yield dg.MaterializeResult(
                asset_key=self.declaration.key(Stage.MIRROR, table),
                data_version=dg.DataVersion(str(values["watermark"])),
                metadata=values,
            )

    def _report(self) -> None:
        self._report_copies()
        for table, values in self.session.reports():
            key = self.declaration.key(Stage.MIRROR, table)
            self.context.log_event(dg.AssetMaterialization(key, metadata=values))

    def _report_copies(self) -> None:
        """Report tables that this session copied for the first time."""
        copied, self.session.copied_rows = self.session.copied_rows, {}
        for name, rows in copied.items():
            key = self.declaration.key(Stage.INITIAL_SYNC, self.session.tables[name])
            self.context.log_event(dg.AssetMaterialization(key, metadata={"rows_copied": rows}))
