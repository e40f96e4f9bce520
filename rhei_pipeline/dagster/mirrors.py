"""The mirrors, and the run that keeps them: it syncs while there is work, then hands over."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property

import dagster as dg
from pydantic import Field

from rhei_pipeline.dagster.check_records import is_news, last_evaluations, last_evaluations_anew
from rhei_pipeline.dagster.checks import EQUALS_SOURCE
from rhei_pipeline.dagster.declaration import Declaration
from rhei_pipeline.dagster.failed_sessions import told
from rhei_pipeline.dagster.initial_sync import parity_result
from rhei_pipeline.dagster.never_told import NeverTold, ready
from rhei_pipeline.dagster.observing import DATA_VERSION, freshness
from rhei_pipeline.dagster.plain_failures import said_plainly
from rhei_pipeline.dagster.pool import writer_wanted
from rhei_pipeline.dagster.relay import (
    COPYING,
    FREEING_SECONDS,
    LEFT_BEHIND,
    NOTHING,
    SUCCESSOR,
    WAITING,
    lead_seconds,
    seconds_to_next_claim,
)
from rhei_pipeline.dagster.resources import CdcResource, OlapResource
from rhei_pipeline.dagster.session import (
    LOOK_SECONDS,
    PATIENCE_SECONDS,
    TABLES_AT_ONCE,
    ReportWindow,
    Session,
    reports,
)
from rhei_pipeline.dagster.stages import Stage
from rhei_pipeline.dagster.state_checks import checks_of, history, state_findings
from rhei_pipeline.errors import RheiError, TransientError
from rhei_pipeline.htap import HTAP
from rhei_pipeline.model.reports import SyncStatus
from rhei_pipeline.model.schema import Mode, Table
from rhei_pipeline.settings.sections import ScheduleSettings
from rhei_pipeline.sync.background import MAX_BACKOFF_SECONDS

#: How long a session waits for a source or a mirror that is away before it fails.
OPEN_SECONDS = 300.0
#: A run that somebody terminates, also at once: its process ends a little later.
_TERMINATED = {dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED}


class SessionConfig(dg.Config):
    """How long a session lasts; left out, as declared under `schedule`."""

    session_seconds: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Hand over to the next session after so long."
    )
    idle_seconds: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="End after so long without changes."
    )


class Ending(Enum):
    """Why a session ends."""

    IDLE = "nothing has changed for a while"
    APPLIED = "what was pending is applied"
    WANTED = "another run waits for the mirror"
    OLD = "no other session has come to take over"
    GIVEN_UP = "its run was ended by another process, and the next session waits for the mirror"


def sync_session_asset(declaration: Declaration) -> list[dg.AssetsDefinition]:
    """Make the one asset definition that keeps all mirrors: a cycle spans all tables.

    Returns:
        The definition; nothing where there is no table.
    """
    if not declaration.tables:
        return []
    names = declaration.names
    specs = [_spec(declaration, table) for table in declaration.tables]
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
        chosen = {by_key[key].name: by_key[key] for key in context.selected_asset_keys}
        mirrors = list(context.selected_asset_keys)
        with said_plainly(), told(context, mirrors), ExitStack() as stack:
            schedule = _chosen(olap.settings().schedule, config)
            htap = _opened(context, olap, stack)
            session = Session(htap, chosen, schedule.report_seconds, schedule.idle_seconds)
            yield from _SessionRun(context, session, declaration, schedule, olap).events()
            leaves_out = bool(htap.left_out)
        if leaves_out:
            _note_left_behind(context, olap.cdc)

    return [sync_session]


def _spec(declaration: Declaration, table: Table) -> dg.AssetSpec:
    """Return a mirror's spec; one that says nothing of freshness gets the ordinary policy."""
    spec = declaration.spec(Stage.MIRROR, table)
    if spec.freshness_policy is not None:
        return spec
    return spec.replace_attributes(freshness_policy=freshness(declaration.settings))


def _chosen(schedule: ScheduleSettings, config: SessionConfig) -> ScheduleSettings:
    """Return the schedule with what a run's configuration says; a run per batch never lingers."""
    chosen = {name: value for name, value in config.model_dump().items() if value is not None}
    return schedule.model_copy(update=chosen)


def _opened(context: dg.AssetExecutionContext, olap: OlapResource, stack: ExitStack) -> HTAP:
    """Open source and mirror; ride out for a while that one of them is away or held by another.

    Raises:
        TransientError: It lasts.
    """
    wait, until = 1.0, time.monotonic() + OPEN_SECONDS
    while True:
        try:
            return stack.enter_context(olap.open())
        except TransientError as error:
            if time.monotonic() > until:
                raise
            context.log.warning("the session waits: %s", error)
            context.instance.add_run_tags(context.run.run_id, {WAITING: "yes"})
        time.sleep(wait)
        wait = min(wait * 2, MAX_BACKOFF_SECONDS)


def _note_left_behind(context: dg.AssetExecutionContext, cdc: CdcResource) -> None:
    """Mark the run with what stays pending for tables that are left out: no session applies it."""
    with suppress(RheiError):  # whoever needs the source names what is wrong with it
        context.instance.add_run_tags(context.run.run_id, {LEFT_BEHIND: str(cdc.pending())})


@dataclass
class _SessionRun:
    """A session as one run: what it reports becomes the run's events."""

    context: dg.AssetExecutionContext
    session: Session
    declaration: Declaration
    schedule: ScheduleSettings
    olap: OlapResource
    began: float = field(default_factory=time.monotonic)
    told: set[dg.AssetCheckKey] = field(default_factory=set)
    repeated: set[dg.AssetKey] = field(default_factory=set)
    never_told: NeverTold = field(default_factory=NeverTold)
    asked: bool = False
    copying: str = ""
    wanted_at: float = 0.0

    def events(self) -> Iterator[dg.MaterializeResult[None]]:
        """Keep the mirror until there is a reason to end; then report every table once more."""
        interrupted: BaseException | None = None
        ending = None
        try:
            self._report_earlier_copies()
            ending = self._last()
            self.context.log.info("the session ends: %s", ending.value)
        except dg.DagsterExecutionInterruptedError as error:
            interrupted = error
            self.context.log.info("the session was told to end")
        if ending is Ending.GIVEN_UP:
            self.session.htap.stop_sync()
        elif ending not in {Ending.WANTED, Ending.APPLIED} and interrupted is None:
            self._sync_once_more()
        # While another run waits, the engine goes on until all is told: then no change waits long.
        yield from self._results()
        if ending is Ending.WANTED:
            waited = time.monotonic() - self.wanted_at
            time.sleep(seconds_to_next_claim(waited + FREEING_SECONDS))
        self.session.htap.stop_sync()
        if self.session.background is not None:
            self._note_copies(self.session.status())  # its last turn may have begun one
        if interrupted is not None and self._is_terminated():
            raise interrupted

    def _last(self) -> Ending:
        """Report while the engine syncs; return why there is an end to it.

        A run for each batch ends once it has synced, unless it would be opened again for ever.
        """
        if self.schedule.mode == "run":
            self._sync_once_more()
            if not (self._would_be_reopened and self._leaves_pending):
                return Ending.APPLIED
        self.session.collect()
        while (ending := self._reason_to_end()) is None:
            self._ask_for_successor()
            time.sleep(LOOK_SECONDS / 5 if self.asked else LOOK_SECONDS)
            self.session.collect()
        return ending

    def _reason_to_end(self) -> Ending | None:
        """Report, where it is time for it; return why the session ends now, if it does."""
        if self.olap.is_given_up:
            return Ending.GIVEN_UP
        if self.session.due:
            self._report()
        if writer_wanted(self.context.instance, self.declaration.names.pool):
            self.wanted_at = time.monotonic()
            return Ending.WANTED
        if self._is_done and not self._would_be_reopened:
            return Ending.IDLE if self.schedule.mode == "session" else Ending.APPLIED
        return Ending.OLD if self._age > 2 * self.schedule.session_seconds else None

    @property
    def _is_done(self) -> bool:
        return self.schedule.mode == "run" or self.session.idle

    @property
    def _would_be_reopened(self) -> bool:
        """Whether the sensor cannot tell that all that is pending belongs to tables left out.

        Of a server's log it sees only that something is pending: a session that ended would be
        opened again at once, for ever.
        """
        counts = self.declaration.settings.capture_method != "logical"
        return not counts and bool(self.session.htap.left_out)

    @property
    def _leaves_pending(self) -> bool:
        with suppress(RheiError):  # whoever needs the source names what is wrong with it
            return self.olap.cdc.pending() != 0
        return False

    @property
    def _age(self) -> float:
        return time.monotonic() - self.began

    def _ask_for_successor(self) -> None:
        """Mark the run, so that the sensor opens the next session before this one ends."""
        if self.asked or self._age < self.schedule.session_seconds - self._lead:
            return
        self.context.instance.add_run_tags(self._run_id, {SUCCESSOR: "wanted"})
        self.asked = True

    @cached_property
    def _lead(self) -> float:
        record = self.context.instance.get_run_record_by_id(self._run_id)
        return lead_seconds(record, self.schedule.session_seconds)

    @property
    def _run_id(self) -> str:
        return self.context.run.run_id

    def _is_terminated(self) -> bool:
        """Return whether somebody asked for the end, and not only the process was told to stop."""
        run = self.context.instance.get_run_by_id(self._run_id)
        return run is not None and run.status in _TERMINATED

    def _sync_once_more(self) -> None:
        if self.session.background is not None:
            self._note_copies(self.session.status())
        if self.copying:
            self.context.log.info("the next session goes on with the copy of %s", self.copying)
            return
        try:
            self.session.sync_now()
        except TransientError as error:
            self.context.log.warning("what is pending is left to the next session: %s", error)

    def _note_copies(self, status: SyncStatus) -> None:
        """Mark the run with the copies under way: should it end before them, the next one goes on.

        Its process may be killed, so that is not left to its end.
        """
        tables = status.tables
        found = [name for name in status.copying if name in tables and tables[name].error is None]
        copying = ", ".join(sorted(found))
        if copying != self.copying:
            self.context.instance.add_run_tags(self._run_id, {COPYING: copying or NOTHING})
            self.copying = copying

    def _results(self) -> Iterator[dg.MaterializeResult[None]]:
        """Report every table once at the end, so that each session leaves a data version behind."""
        status = self.session.status()
        self.session.take_reports()  # what came since the last look, however the session ends
        self.never_told.bring_up(self.session, status)
        windows = self.session.take_windows()
        self._report_state(status, windows)
        self._report_copies()
        self._report_histories(status)
        every = {name: windows.get(name, ReportWindow()) for name in self.session.tables}
        found = list(reports(self.session, status, every, self._rows))
        self._repeat_checks([table for table, _ in found])
        for table, values in found:
            yield dg.MaterializeResult(
                asset_key=self._key(Stage.MIRROR, table),
                data_version=dg.DataVersion(str(values["watermark"])),
                metadata=values,
            )

    def _report(self) -> None:
        status = self.session.status()
        self.never_told.bring_up(self.session, status)
        self._report_state(status, self.session.windows)
        windows = self.session.take_windows(TABLES_AT_ONCE)
        self._report_copies()
        found = list(reports(self.session, status, windows, self._rows))
        self._repeat_checks([table for table, _ in found])
        for table, values in found:
            key, version = self._key(Stage.MIRROR, table), str(values["watermark"])
            # What follows a mirror by its version is not to take a report for another version.
            tags = {DATA_VERSION: version}
            self.context.log_event(dg.AssetMaterialization(key, metadata=values, tags=tags))

    def _report_state(self, status: SyncStatus, windows: dict[str, ReportWindow]) -> None:
        """Report what the checks say, where it is news, and what is copied."""
        self._note_copies(status)
        now = self.session.htap.table_schemas()
        found = []
        for name, table in self.session.tables.items():
            waited = windows[name].longest_lag if name in windows else 0.0
            bound, key = self.schedule.max_lag_seconds, self._key(Stage.MIRROR, table)
            own = checks_of(self.declaration.settings, table)
            findings = state_findings(table, status, now.get(name), bound, waited)
            found += [each.evaluation(key) for each in findings if each.check in own]
        self._tell(found)

    def _tell(self, evaluations: Sequence[dg.AssetCheckEvaluation]) -> None:
        """Report each check once a session, and then what differs from what is on record."""
        keys = [evaluation.asset_check_key for evaluation in evaluations]
        last = last_evaluations(self.context.instance, keys)
        for evaluation in evaluations:
            key = evaluation.asset_check_key
            if key in self.told and not is_news(evaluation, last.get(key)):
                continue
            self.told.add(key)
            if not evaluation.passed:
                self.context.log.warning("%s: %s", key.to_user_string(), evaluation.description)
            self.context.log_event(evaluation)

    def _repeat_checks(self, tables: Sequence[Table]) -> None:
        """Repeat, once a session, what was found of tables by checks that it does not make."""
        keys = set[dg.AssetCheckKey]()
        for table in tables:
            asset = self._key(Stage.MIRROR, table)
            if asset not in self.repeated:
                self.repeated.add(asset)
                names = (EQUALS_SOURCE, *checks_of(self.declaration.settings, table))
                keys |= {dg.AssetCheckKey(asset, name) for name in names}
        for evaluation in last_evaluations_anew(self.context.instance, keys - self.told):
            self.context.log_event(evaluation)

    def _report_histories(self, status: SyncStatus) -> None:
        """Look whether histories contradict themselves; the engine goes on meanwhile."""
        for name, table in self.session.tables.items():
            found = status.tables.get(name)
            if table.mode is Mode.TEMPORAL and found is not None and found.error is None:
                with suppress(RheiError):  # a mirror that cannot be read is told by `followed`
                    broken = self.session.htap.broken_histories(name)
                    key = self._key(Stage.MIRROR, table)
                    self._tell([history(broken.num_rows).evaluation(key)])

    def _report_copies(self) -> None:
        """Report tables that this session copied, as their first copy's asset would have."""
        for name, copied in self.session.take_copies().items():
            self.never_told.copies.discard(name)
            key = self._key(Stage.INITIAL_SYNC, self.session.tables[name])
            try:
                parity = self.session.htap.row_parity(name)
            except RheiError as error:
                self.context.log.warning("table %r: its rows were not counted: %s", name, error)
                continue
            metadata = {"dagster/row_count": parity.mirror_rows, "rows_copied": copied.copied_rows}
            self.context.log_event(dg.AssetMaterialization(key, metadata=metadata))
            result = parity_result(parity, key)
            self.context.log_event(
                dg.AssetCheckEvaluation(
                    asset_key=key,
                    check_name=str(result.check_name),
                    passed=result.passed,
                    metadata=result.metadata,
                )
            )

    def _report_earlier_copies(self) -> None:
        """Report copies that no run on record made: a command did, or a run that was deleted.

        Without that, Dagster calls their mirrors unsynced. No run has the event, so it stays.
        """
        keys = self._unreported(Stage.INITIAL_SYNC)
        self.never_told.copies.update(table.name for table in keys.values())
        mirrors = self._unreported(Stage.MIRROR)
        self.never_told.mirrors.update(table.name for table in mirrors.values())
        for key, table in self._copied(keys).items():
            if (rows := self._rows(table.name)) is not None:
                self.never_told.copies.discard(table.name)
                self.context.instance.report_runless_asset_event(
                    dg.AssetMaterialization(
                        key,
                        description="The copy is in place; no run that is on record made it.",
                        metadata={"dagster/row_count": rows},
                    )
                )

    def _unreported(self, stage: Stage) -> dict[dg.AssetKey, Table]:
        """Return the tables that no event on record reports at a stage."""
        keys = {self._key(stage, table): table for table in self.session.tables.values()}
        for record in self.context.instance.get_asset_records(list(keys)):
            if record.asset_entry.last_materialization_record is not None:
                del keys[record.asset_entry.asset_key]
        return keys

    def _copied(self, keys: Mapping[dg.AssetKey, Table]) -> dict[dg.AssetKey, Table]:
        """Return those of the tables that are copied, and followed; none where nobody can tell."""
        if not keys:
            return {}
        try:
            status = self.session.htap.sync_status(PATIENCE_SECONDS)
        except RheiError as error:
            self.context.log.warning("which tables are copied is not known: %s", error)
            return {}
        found = ready(status)
        return {key: table for key, table in keys.items() if table.name in found}

    def _rows(self, name: str) -> int | None:
        """Return how many rows a table's mirror has; None where they cannot be counted now."""
        try:
            return self.session.htap.row_count(name)
        except RheiError as error:
            self.context.log.warning("table %r: its rows were not counted: %s", name, error)
            return None

    def _key(self, stage: Stage, table: Table) -> dg.AssetKey:
        return self.declaration.key(stage, table)
