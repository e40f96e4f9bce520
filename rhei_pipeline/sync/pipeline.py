"""The declared tables of one source and one mirror: kept captured, copied, in sync, compared."""

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from types import MappingProxyType

from rhei_pipeline.errors import (
    MirrorUnreachableError,
    PermanentError,
    SchemaError,
    SourceUnreachableError,
)
from rhei_pipeline.model.log_context import one_cycle
from rhei_pipeline.model.progress import Ledger, TableState
from rhei_pipeline.model.reports import (
    CopyReport,
    CopyStatus,
    Standing,
    SyncReport,
    TableReport,
    VerifyReport,
)
from rhei_pipeline.model.schema import Mode, Table
from rhei_pipeline.model.schema_log import Followed, SchemaChange
from rhei_pipeline.model.upkeep import DropReport, RepairReport
from rhei_pipeline.protocols import ChangeSource, Mirror, OnStep, Step
from rhei_pipeline.sync.alterations import NOTHING_ALTERED, Alteration
from rhei_pipeline.sync.context import PipelineContext, keeps_changing
from rhei_pipeline.sync.copies import TableCopies
from rhei_pipeline.sync.copy_ranges import shared_copies
from rhei_pipeline.sync.cycle import sync_cycle
from rhei_pipeline.sync.dead_letters import DeadLetters
from rhei_pipeline.sync.free_memory import FreeMemory
from rhei_pipeline.sync.initial_sync import Copied, OnProgress, copy_report
from rhei_pipeline.sync.kept_history import (
    Declared,
    as_held,
    record_keys,
)
from rhei_pipeline.sync.leaving import LeavingTables
from rhei_pipeline.sync.naming import in_any_case, nothing_declared
from rhei_pipeline.sync.options import SyncOptions
from rhei_pipeline.sync.participants import Participants
from rhei_pipeline.sync.pipeline_lock import PipelineLock
from rhei_pipeline.sync.removals import Removals
from rhei_pipeline.sync.repair_keys import Mending, RepairRange
from rhei_pipeline.sync.reporting import summed, table_reports
from rhei_pipeline.sync.schema_policy import Said, nothing_said
from rhei_pipeline.sync.schema_registry import Registry
from rhei_pipeline.sync.schema_watch import ATTEMPTS, SchemaWatch
from rhei_pipeline.sync.status import DeclaredTable, StatusCache, lost_tables, read_status
from rhei_pipeline.sync.table_checks import TableChecks
from rhei_pipeline.sync.verify_parts import VerifyBudget

_log = logging.getLogger(__name__)


#: So long tables are copied before those that are in place have their turn; longer, where their
#: cycles take long: so many times as long.
TURN_SECONDS, COPYING_SHARE = 5.0, 4
#: So long others may take over between two turns of a copy.
_OTHERS_SECONDS = 0.01


def no_step(_step: Step) -> None:
    """Do nothing (the default callback)."""


def no_progress(_table: str, _rows: int, _of: int) -> None:
    """Do nothing (the default callback)."""


class Pipeline:
    """Keeps a mirror equal to its source.

    One piece of work at a time: a second caller waits. Copies are made in turns: in between, tables
    that are in place are synced, and a second caller gets its answer. A table that fails for good
    is left out and named in every report, and the others go on.

    Args:
        find: Returns the tables to mirror, as the declaration or the source has them now.
        source, mirror, registry: Where changes come from, where they go, what they looked like.
        options: How much at once.
        on_step: Called at each named step.
        may_be_empty: It is no error that there is nothing to mirror.
        said: What is said of a table.

    Attributes:
        checks: Verifies and repairs tables.
        dead_letters: Rows that could not be mirrored.
        removals: Takes out of the mirror what is not to be kept.
        leaving: Ends the capture of tables that are followed no more.
    """

    def __init__(  # noqa: PLR0913  (what it is made of, each with its name)
        self,
        find: Callable[[], Collection[Declared]],
        source: ChangeSource,
        mirror: Mirror,
        registry: Registry,
        options: SyncOptions,
        on_step: OnStep = no_step,
        *,
        may_be_empty: bool = False,
        said: Said = nothing_said,
    ) -> None:
        self._may_be_empty = may_be_empty
        self._source, self._mirror, self._registry = source, mirror, registry
        self._lock = PipelineLock()
        self._parts = Participants()
        self._tables, self._left_out = self._parts.tables, self._parts.left_out
        self._blame = self._parts.blame
        self._watch = SchemaWatch(find, source, mirror, registry, self._parts, self._drain, said)
        self._context = PipelineContext(
            self._lock, source, mirror, registry, self._parts, self._watch, options, on_step
        )
        self._synced_from: int | None = None
        self._cycle_seconds = 0.0  # of the last one
        self._status = StatusCache()
        self._copies = TableCopies(self._context, self._status.note_readable)
        self.leaving = LeavingTables(self._context)
        self.removals = Removals(self._context, self.sync, self.leaving)
        self.checks = TableChecks(self._context, self)
        self.dead_letters = DeadLetters(self._context)
        self._memory = FreeMemory()
        self._watchers: list[Callable[[SyncReport], None]] = []
        self._rows_pruned = 0  # since the last report
        record_keys(mirror, registry)
        self._watch.keep_up()

    @property
    def tables(self) -> Mapping[str, Table]:
        """The tables as they are captured now, by name."""
        return MappingProxyType(self._tables)

    @property
    def generation(self) -> int:
        """How often the tables were described again; they change only when it grows."""
        return self._parts.generation

    @property
    def schema_log(self) -> Sequence[SchemaChange]:
        """The schema changes of the source that the mirror has followed, the oldest first."""
        return self._registry.schema_log

    @property
    def synced_from(self) -> int | None:
        """When the last successful sync began, by `time.monotonic_ns`.

        The mirror has what was committed in the source until then. None before the first one.
        """
        return self._synced_from

    def end(self) -> None:
        """Begin no work any more, and wait for what is under way; then its parts can be closed."""
        self._lock.end()

    def watch(self, watcher: Callable[[SyncReport], None]) -> None:
        """Call `watcher` with every sync's report, in the thread that synced."""
        self._watchers.append(watcher)

    def holds(self, name: str, ledger: Ledger) -> bool:
        """Return whether the mirror has a table with the source's schema."""
        table = self._tables.get(name)
        ready = ledger.state(name) is TableState.READY and name not in self._copies.unfinished
        return table is not None and ready and self._registry.table(name) == table

    def table(self, name: str) -> Table:
        """Return a table by its name, in any case.

        Raises:
            SchemaError: It is not one of the pipeline's.
            PermanentError: It is left out; why.
        """
        return self._context.table(name)

    @property
    def not_followed(self) -> Mapping[str, datetime]:
        """The tables of the mirror that no sync brings up to date any more, and since when."""
        return self._context.not_followed

    @property
    def emptiness(self) -> SchemaError | None:
        """What to say where there is nothing to mirror at all."""
        return None if self._may_be_empty or self._watch.declared else nothing_declared()

    @property
    def left_out(self) -> Mapping[str, PermanentError]:
        """The declared tables that are left out for an error, each with it."""
        return self._left_out.errors

    def mirrored(self, name: str) -> Table:
        """Return a table of the mirror, with those of its columns that the mirror has by now.

        One that is not followed is as the mirror has it.

        Raises:
            SchemaError: It is not in the mirror either.
        """
        return as_held(self._context.mirrored(name), self._context.mirror)

    def leave(self, name: str, forget: Callable[[], None]) -> None:
        """Follow a table no more; what is pending is applied, and a copy under way is given up.

        `forget` is called before its capture ends: from then on nobody finds the table.
        """

        def sync() -> None:
            self.sync_round(goes_on=False)
            self._copies.give_up(name)

        self.leaving.leave(name, sync, forget)

    def register(self, declared: Declared) -> None:
        """Capture a table from now on; safe to repeat, and mends what is missing.

        Raises:
            PermanentError: It cannot be mirrored as it stands; says the way out.
        """
        with self._lock:
            self.table(self._watch.add(declared))

    def sync(self, on_progress: OnProgress = no_progress, only: str | None = None) -> SyncReport:
        """Bring every table up to the source as it is now; copy first what was never copied.

        Tables that are in place are synced, and others have their turn, also while that lasts.
        `only`: Of the tables that were never copied, this one alone takes part.
        """
        with self._lock, self._noting_unreadable():
            return self._synced(on_progress, only)[0]

    def sync_round(self, *, goes_on: bool = True) -> SyncReport:
        """Sync what is in place, and copy for one turn at most; the report names what goes on.

        `goes_on`: Copies that are under way have their turn as well.
        """
        with self._lock, self._noting_unreadable():
            return self._round(no_progress, goes_on=goes_on)[0]

    @contextmanager
    def _noting_unreadable(self) -> Iterator[None]:
        try:
            yield
        except (SourceUnreachableError, MirrorUnreachableError) as error:
            self._status.note_unreadable(error)
            raise

    def _synced(
        self, on_progress: OnProgress, only: str | None = None
    ) -> tuple[SyncReport, dict[str, Copied]]:
        """Sync; return the report, and what the tables that were copied first took."""
        found, copied = self._round(on_progress, only)
        while found.copying:
            self._lock.give_way(_OTHERS_SECONDS)
            later, finished = self._round(on_progress, only)
            found, copied = summed(found, later), copied | finished
        return found, copied

    def _round(
        self, on_progress: OnProgress, only: str | None = None, *, goes_on: bool = True
    ) -> tuple[SyncReport, dict[str, Copied]]:
        """Copy for one turn, and sync what is in place by then."""
        with one_cycle():
            started = time.monotonic()
            copied: dict[str, Copied] = {}
            self._watch.try_again()
            for _ in range(ATTEMPTS):
                self._watch.keep_up()
                for name in self._copies.give_up_left(self._watch.declared.keys()):
                    self.leaving.end_unless_followed(name)
                found = self._copies.copy_due(
                    self._taking_part(only, goes_on=goes_on), on_progress, self._turn_seconds
                )
                copied |= {name: copy.after(copied.get(name)) for name, copy in found.items()}
                followed, altered = self._followed(), self._copies.altered
                begun = time.monotonic_ns()
                reports = self._cycle(followed, self._watch.version, altered=altered)
                self._cycle_seconds = (time.monotonic_ns() - begun) / 1e9
                self._copies.forget_cycle()
                if reports is not None:
                    self._refuse_failure_of_all([*reports, *self._copies.unfinished])
                    self._synced_from = begun
                    self._status.note_readable()
                    report = self._report(reports, copied, altered, started)
                    report = replace(report, copying=self._copying(only))
                    _log.debug("synced %d events", report.events)
                    if report.events:
                        self._memory.give_back()
                    for watcher in self._watchers:
                        watcher(report)
                    return report, copied
            raise keeps_changing()

    @property
    def _turn_seconds(self) -> float:
        """How long to copy until the next cycle, which reads what a server's log has kept."""
        return max(TURN_SECONDS, COPYING_SHARE * self._cycle_seconds)

    def _copying(self, only: str | None) -> tuple[str, ...]:
        """Return the tables whose copies go on with the next turn."""
        found = self._tables.keys() & self._copies.unfinished
        if only is not None:
            chosen = in_any_case(only, self._tables)
            found &= {chosen.name} if chosen else set()
        return tuple(sorted(found))

    def _taking_part(self, only: str | None, *, goes_on: bool) -> list[Table]:
        """Return the tables that may be copied; of copies under way, with `only` that one alone."""
        if only is None and goes_on:
            return list(self._tables.values())
        ledger, chosen = self._mirror.ledger(), in_any_case(only, self._tables) if only else None
        copying = {name for name, copy in ledger.copies.items() if not copy.complete}
        begun = {*ledger.watermarks, *ledger.copies} if only else {*self._tables}
        wanted = (begun - copying) | ({chosen.name} if chosen else set())
        return [table for table in self._tables.values() if table.name in wanted]

    def _followed(self) -> list[Table]:
        """Return the tables that a cycle is about: what is in place, or copied in full."""
        left, ledger = self._copies.unfinished, self._mirror.ledger()
        whole = {TableState.READY, TableState.COPIED}
        return [t for n, t in self._tables.items() if n not in left and ledger.state(n) in whole]

    def _refuse_failure_of_all(self, rest: Collection[str]) -> None:
        """Raise what the tables failed with, where none is left: it may be no fault of theirs."""
        if not rest and (unknown := self._left_out.unknown):
            raise unknown[0]
        if self.emptiness is not None:
            raise self.emptiness

    def copy(self, name: str, on_progress: OnProgress = no_progress) -> CopyReport:
        """Copy one table again, or go on with a copy that was cut off, and put it in place.

        Tables that were never copied are left to their own copies, and to the next sync.
        A history first gets every version that the source tells of; the copy then adds what no
        event showed.
        """
        with self._lock:
            started = time.monotonic()
            self._watch.try_again()
            self._watch.keep_up()
            if name in self._left_out.undrained:
                self._give_up_pending(name)
            self._copies.count_anew(self.table(name).name)
            caught_up, copied = self._caught_up(self.table(name), on_progress)
            table = self.table(name)
            if caught_up is not None and table.name in copied:
                report = caught_up.tables[table.name]
                return copy_report(copied[table.name], report, started)
            earlier = caught_up.tables[table.name] if caught_up is not None else None
            for _ in range(ATTEMPTS):
                until, is_same = time.monotonic() + self._turn_seconds, caught_up is not None
                found = self._copies.copy(table, on_progress, until, same_shape=is_same)
                synced, gone_on = self._synced(on_progress, only=table.name)
                table = self.table(name)  # raises what it was left out for
                report, again = synced.tables[table.name], gone_on.get(table.name)
                if again is not None:  # it tells of the turns of one copy together
                    found = again.after(found if found and found.is_complete else None)
                if found is not None:
                    break
                # It has a shape for which it needed no copy, or the one that it had before.
                earlier = report.after(earlier) if earlier else report
            else:
                raise keeps_changing()
            # The report tells of those that were met since.
            letters = report.dead_letters + found.dead_letters
            letters -= again.dead_letters if again else 0
            if earlier is not None:
                report = report.after(earlier)
            return copy_report(found, replace(report, dead_letters=letters), started)

    def _caught_up(
        self, table: Table, on_progress: OnProgress
    ) -> tuple[SyncReport | None, dict[str, Copied]]:
        """Sync before a history is copied; None where what is pending cannot be applied."""
        if table.mode is Mode.DESTRUCTIVE:
            return None, {}
        try:
            caught_up, copied = self._synced(on_progress, only=table.name)
            error = self._left_out.errors.get(table.name)
        except PermanentError as failure:
            error = failure
        if error is None:
            return caught_up, copied
        self._give_up_pending(table.name)
        return None, {}

    def _give_up_pending(self, name: str) -> None:
        """Take a table in again though what its log holds cannot be applied."""
        _log.warning("table %r: it is copied without what is pending", name)
        self._watch.take_in(name)

    def verify(self, name: str | None = None, budget: VerifyBudget | None = None) -> VerifyReport:
        """Sync, then compare every row, or what a budget allows; see `TableChecks.verify`."""
        return self.checks.verify(name, budget)

    def repair(
        self, name: str, asked: RepairRange | None = None, *, dry_run: bool = False
    ) -> RepairReport:
        """Make one table equal to its source again; see `TableChecks.repair`."""
        return self.checks.repair(name, asked, dry_run=dry_run)

    def drop_table(
        self, name: str, keep_as: str | None = None, *, discard_history: bool = False
    ) -> DropReport:
        """Drop a table of the mirror, or set it aside; see `Removals.drop_table`."""
        return self.removals.drop_table(name, keep_as, discard_history=discard_history)

    def status(self, patience_seconds: float | None = None) -> Standing:
        """Return how every declared table stands; reads, and waits for a sync under way.

        With a patience given, returns what was last known where waiting takes longer, and where
        source or mirror cannot be read.
        """
        if patience_seconds is not None:
            return self._status.within(patience_seconds, self._read_status)
        return self._read_status()

    def _read_status(self) -> Standing:
        with self._lock:
            modes = {name: declared.mode for name, declared in self._watch.declared.items()}
            modes |= {name: table.mode for name, table in self._tables.items()}
            found = self._parts.without_failing(
                list(self._tables.values()), lambda tables: self._read_standing(modes, tables)
            )
            return self._status.keep(replace(found, not_followed=self.not_followed))

    def _read_standing(self, modes: Mapping[str, Mode], tables: Collection[Table]) -> Standing:
        by_name, errors = {table.name: table for table in tables}, self._left_out.errors
        reshaped = {table.name for table in tables if self._is_reshaped(table)}
        uncaptured = self._watch.uncaptured(tables)
        found = {
            name: DeclaredTable(
                mode, by_name.get(name), errors.get(name), name in reshaped, name in uncaptured
            )
            for name, mode in modes.items()
        }
        standing = read_status(found, self._source, self._mirror, self._blame)
        self._registry.note_due(lost_tables(standing))
        return standing

    def _is_reshaped(self, table: Table) -> bool:
        known = self._registry.table(table.name)
        return known is not None and known.schema != table.schema

    @property
    def copying(self) -> Mapping[str, CopyStatus]:
        """The copies under way; waits for nobody.

        One in ranges is under way also while nobody works on it.
        """
        return {**self._copies.under_way(), **shared_copies(self._mirror)}

    def mend(self, mending: Mending) -> bool:
        """Apply what differs in a cycle of all tables; return whether the source let it.

        Raises:
            PermanentError: The table is left out; why.
        """
        reports = self._cycle(self._tables.values(), self._watch.version, mending=mending)
        self.table(mending.table)  # raises what it was left out for
        return reports is not None

    def _drain(
        self, tables: Collection[Table], schema_version: int, failing: set[str] | None
    ) -> dict[str, TableReport] | None:
        """Sync these tables before capture is made again; the source keeps what others need."""
        declared = self._watch.declared.keys()
        return self._cycle(tables, schema_version, failing, held=declared)

    def _cycle(
        self,
        tables: Collection[Table],
        schema_version: int | None,
        failing: set[str] | None = None,
        mending: Mending | None = None,
        altered: Mapping[str, Alteration] = NOTHING_ALTERED,
        held: Collection[str] = (),
    ) -> dict[str, TableReport] | None:
        """Sync the tables but for those that fail, which are left out."""
        cycle = self._parts.without_failing(
            # What failed before fails before the others have done their work.
            sorted(tables, key=lambda table: table.name not in self._left_out.suspects),
            lambda rest: sync_cycle(
                rest,
                self._source,
                self._mirror,
                self._context.options,
                self._context.on_step,
                schema_version=schema_version,
                blame=self._blame,
                # Of tables that are copied now, too.
                held={*self._left_out.held, *self._tables, *held},
                mending=mending,
                altered=altered,
            ),
            failing,
        )
        if cycle is None:
            return None
        self._rows_pruned += cycle.rows_pruned
        return cycle.tables

    def _report(
        self,
        reports: dict[str, TableReport],
        copied: dict[str, Copied],
        altered: Mapping[str, Alteration],
        started: float,
    ) -> SyncReport:
        def followed(name: str) -> Followed:
            report, change = reports[name], altered.get(name, Alteration())
            return Followed(
                report.as_of or datetime.now(UTC),
                report.watermark,
                copied[name].rows if name in copied else sum(change.rows_read),
                time.monotonic() - started,
                change.former,
            )

        self._registry.save(*(self._tables[name] for name in reports), followed=followed)
        self._registry.note_owing(reports, owe=False)
        self._registry.note_synced()
        self._copies.note_cycle()
        self._left_out.went_well(reports.keys())
        told = table_reports(reports, self._left_out.told, self._watch.take_drained(), copied)
        self._registry.note_not_followed(self.not_followed)
        self.leaving.end_old()
        seconds = time.monotonic() - started
        unpublished = self._mirror.not_published
        pruned, self._rows_pruned = self._rows_pruned, 0
        return SyncReport(
            MappingProxyType(told),
            seconds,
            self.not_followed,
            None if unpublished is None else str(unpublished),
            pruned,
            MappingProxyType(dict(self._watch.policies.frozen)),
        )
