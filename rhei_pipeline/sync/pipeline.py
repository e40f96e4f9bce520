"""The declared tables of one source and one mirror: kept captured, copied, in sync, compared."""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from types import MappingProxyType
from typing import TypeVar

from rhei_pipeline.capabilities import heal_files
from rhei_pipeline.errors import (
    DeadLettersFullError,
    MirrorUnreachableError,
    PermanentError,
    SchemaError,
    SourceBusyError,
    SourceUnreachableError,
)
from rhei_pipeline.model.changes import Counts
from rhei_pipeline.model.forgetting import ForgetReport, Search
from rhei_pipeline.model.log_context import one_cycle
from rhei_pipeline.model.progress import Ledger, TableState
from rhei_pipeline.model.reports import (
    CopyReport,
    CopyStatus,
    RowParity,
    Standing,
    SyncReport,
    TableReport,
    TableVerification,
    VerifyReport,
)
from rhei_pipeline.model.retention import ExpiredHistory
from rhei_pipeline.model.schema import Mode, Table, TableSchema
from rhei_pipeline.model.schema_log import Followed, SchemaChange
from rhei_pipeline.model.upkeep import DamagedFile, DropReport, RepairReport
from rhei_pipeline.protocols import ChangeSource, Mirror, OnStep, Step
from rhei_pipeline.sync.alterations import NOTHING_ALTERED, Alteration
from rhei_pipeline.sync.comparisons import Comparisons
from rhei_pipeline.sync.copies import CopyOptions, TableCopies
from rhei_pipeline.sync.copy_ranges import shared_copies
from rhei_pipeline.sync.cycle import sync_cycle
from rhei_pipeline.sync.forgetting import KeysToForget, forget_keys, keys_of, refuse_present
from rhei_pipeline.sync.free_memory import FreeMemory
from rhei_pipeline.sync.initial_sync import Copied, OnProgress, copy_report
from rhei_pipeline.sync.kept_history import (
    Declared,
    Dropping,
    drop_table,
    find_droppable,
    find_mirrored,
    not_followed,
    record_keys,
)
from rhei_pipeline.sync.leaving import LeavingTables
from rhei_pipeline.sync.naming import find_table, in_any_case, nothing_declared
from rhei_pipeline.sync.options import SyncOptions
from rhei_pipeline.sync.participants import Participants
from rhei_pipeline.sync.people import PersonSearch
from rhei_pipeline.sync.repair_keys import Key, Mending, RepairRange
from rhei_pipeline.sync.reporting import summed, table_reports
from rhei_pipeline.sync.retention import BoundsOf, expire
from rhei_pipeline.sync.schema_policy import Said, nothing_said
from rhei_pipeline.sync.schema_registry import Registry
from rhei_pipeline.sync.schema_watch import ATTEMPTS, SchemaWatch
from rhei_pipeline.sync.status import StatusCache, read_status
from rhei_pipeline.sync.verify_parts import VerifyBudget, within_budget

_log = logging.getLogger(__name__)

_Found = TypeVar("_Found")


#: So long tables are copied before those that are in place have their turn; longer, where their
#: cycles take long: so many times as long.
TURN_SECONDS, COPYING_SHARE = 5.0, 4
#: So long others may take over between two turns of a copy.
_OTHERS_SECONDS = 0.01


def no_step(_step: Step) -> None:
    """Do nothing (the default callback)."""


def no_progress(_table: str, _rows: int, _of: int) -> None:
    """Do nothing (the default callback)."""


def _keeps_changing() -> SourceBusyError:
    return SourceBusyError(
        "the source's schema keeps changing", hint="sync again once migrations are done"
    )


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
        self._source = source
        self._mirror = mirror
        self._registry = registry
        self._options, self._on_step = options, on_step
        self._lock = threading.RLock()
        self._turns = threading.Condition(self._lock)
        self._parts = Participants()
        self._tables, self._left_out = self._parts.tables, self._parts.left_out
        self._blame = self._parts.blame
        self._watch = SchemaWatch(find, source, mirror, registry, self._parts, self._drain, said)
        self._synced_from: int | None = None
        self._cycle_seconds = 0.0  # of the last one
        self._status = StatusCache()
        self._copies = TableCopies(
            source,
            mirror,
            registry,
            self._parts,
            self._watch,
            CopyOptions(options, on_step, self._status.note_readable),
        )
        self._comparisons = Comparisons(source, mirror, self._parts, self._watch, options, on_step)
        self._memory = FreeMemory()
        self._watchers: list[Callable[[SyncReport], None]] = []
        self._rows_pruned = 0  # since the last report
        #: Ends the capture of tables that are followed no more.
        self.leaving = LeavingTables(self._lock, source, registry, self._watch, mirror)
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
        return find_table(name, self._tables, self._left_out.errors)

    @property
    def not_followed(self) -> Mapping[str, datetime]:
        """The tables of the mirror that no sync brings up to date any more, and since when."""
        return not_followed(self._mirror.ledger(), self._tables.keys())

    @property
    def emptiness(self) -> SchemaError | None:
        """What to say where there is nothing to mirror at all."""
        return None if self._may_be_empty or self._watch.declared else nothing_declared()

    @property
    def left_out(self) -> Mapping[str, PermanentError]:
        """The declared tables that are left out for an error, each with it."""
        return self._left_out.errors

    def mirrored(self, name: str) -> Table:
        """Return a table of the mirror; one that is not followed is as the mirror has it.

        Raises:
            SchemaError: It is not in the mirror either.
        """
        try:
            return self.table(name)
        except PermanentError:
            found = find_mirrored(name, self._mirror)
            if found is None:
                raise
            return found

    def drop_table(
        self, name: str, keep_as: str | None = None, *, discard_history: bool = False
    ) -> DropReport:
        """Drop a table of the mirror, or set it aside; one that is declared is copied again.

        Raises:
            SchemaError: It is not in the mirror; it has history, and neither was said; or the name
                to keep it as is taken.
        """
        with self._lock:
            table = find_droppable(name, self._mirror, self._registry)
            going = Dropping(table, keep_as, discard_history)
            report = drop_table(going, self._mirror, self._registry, self._watch.declared)
            self._watch.forget(table.name)
            self.leaving.end_unless_followed(table.name)
            return report

    def forget(
        self, name: str, given: Sequence[Key], search: Search, *, dry_run: bool = False
    ) -> ForgetReport:
        """Remove keys from the mirror with all their past; see `sync.forgetting`.

        A table that is not followed any more is taken as the mirror has it.

        Raises:
            SchemaError: The source still has one, or one is no key of the table.
        """
        with self._lock:
            self._sync(no_progress)
            table = self._to_forget_in(name)
            keys = keys_of(given, table)
            if table.name in self._tables:
                refuse_present(table, keys, self._source)
                # What was made of the keys before they went is applied, and so comes no more.
                self._sync(no_progress)
            return self._forget([KeysToForget(table, keys)], search, dry_run=dry_run)[0]

    def forget_person(
        self, person: PersonSearch, search: Search, *, dry_run: bool = False
    ) -> list[ForgetReport]:
        """Remove a person's keys from all tables that the search names, in one go.

        Raises:
            SchemaError: The source still has one, or a table has no such column.
        """
        with self._lock:
            # A table without history has the rows no more once their deletion is synced; a dry run
            # leaves them to be found.
            person.look(self._mirror)
            if not dry_run:
                self._sync(no_progress)
                person.look(self._mirror)
            for name, keys in person.found.items():
                table = self._to_forget_in(name)
                # Before a sync, the row that another refers to may be somebody else's by now.
                is_known = not (dry_run and person.is_referred(name))
                if table.name in self._tables and is_known:
                    refuse_present(table, keys, self._source, partial(person.is_theirs, name))
            if not dry_run:
                self._sync(no_progress)
                person.look(self._mirror)  # what is somebody else's by now stays
            asked = [
                KeysToForget(self._to_forget_in(name), keys, found=True)
                for name, keys in person.found.items()
            ]
            return self._forget(asked, search, dry_run=dry_run)

    def _forget(
        self, asked: Sequence[KeysToForget], search: Search, *, dry_run: bool
    ) -> list[ForgetReport]:
        reports = forget_keys(asked, self._mirror, self._source, search, dry_run=dry_run)
        if not dry_run:
            for each, report in zip(asked, reports, strict=True):
                if report.keys:
                    self._registry.note_forgotten(each.table, report.keys, datetime.now(UTC))
        return reports

    def _to_forget_in(self, name: str) -> Table:
        left_out = self._left_out.errors.get(name)
        if left_out is not None:
            raise left_out  # whether the source has a key cannot be asked
        return self.mirrored(name)

    def leave(self, name: str, forget: Callable[[], None]) -> None:
        """Follow a table no more; what is pending is applied, and a copy under way is given up.

        `forget` is called before its capture ends: from then on nobody finds the table.
        """

        def sync() -> None:
            self.sync_round(goes_on=False)
            self._copies.give_up(name)

        self.leaving.leave(name, sync, forget)

    def expire(self, bounds_of: BoundsOf) -> tuple[ExpiredHistory, ...]:
        """Remove what is not to be kept of the past of all tables that are followed.

        Raises:
            SchemaError: The mirror cannot remove versions.
        """
        with self._lock:
            here = datetime.now(UTC)
            return expire(self._tables.values(), bounds_of, self._source, self._mirror, here)

    def register(self, declared: Declared) -> None:
        """Capture a table from now on; safe to repeat, and mends what is missing.

        Raises:
            PermanentError: It cannot be mirrored as it stands; says the way out.
        """
        with self._lock:
            self.table(self._watch.add(declared))

    def sync(self, on_progress: OnProgress = no_progress) -> SyncReport:
        """Bring every table up to the source as it is now; copy first what was never copied.

        Tables that are in place are synced, and others have their turn, also while that lasts.
        """
        return self._sync(on_progress)

    def sync_round(self, *, goes_on: bool = True) -> SyncReport:
        """Sync what is in place, and copy for one turn at most; the report names what goes on.

        `goes_on`: Copies that are under way have their turn as well.
        """
        with self._lock, self._noting_unreadable():
            return self._round(no_progress, goes_on=goes_on)[0]

    def _sync(self, on_progress: OnProgress, only: str | None = None) -> SyncReport:
        with self._lock, self._noting_unreadable():
            return self._synced(on_progress, only)[0]

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
        """Sync; return the report, and what the tables that were copied first took.

        `only`: Of the tables that were never copied, this one alone takes part.
        """
        found, copied = self._round(on_progress, only)
        while found.copying:
            self._turns.wait(_OTHERS_SECONDS)
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
            raise _keeps_changing()

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
                raise _keeps_changing()
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
        """Bring the mirror up to one source state and compare every row at that state.

        With a budget, each part of a table is compared at a state of its own, and others sync
        in between; or only rows are that are drawn by lot, at one state.
        """
        started = time.monotonic()
        if budget is not None and budget.sample is None:
            found = self._verified_in_parts(name, budget)
        else:
            share = None if budget is None else budget.sample
            with self._lock:
                found = self._once_unmigrated(lambda: self._comparisons.verify(name, share), name)
        errors = {} if name else self._told_errors()
        return VerifyReport(
            MappingProxyType(found),
            time.monotonic() - started,
            MappingProxyType(errors),
            self.not_followed,
        )

    def _verified_in_parts(
        self, name: str | None, budget: VerifyBudget
    ) -> dict[str, TableVerification]:
        if name is not None:
            table = self.table(name)
            return {table.name: self._verified_table(table.name, budget)}
        found = {}
        for each in list(self._tables):
            try:
                found[each] = self._verified_table(each, budget)
            except PermanentError:
                if each not in self._left_out.errors:
                    raise
        return found

    def _verified_table(self, name: str, budget: VerifyBudget) -> TableVerification:
        return within_budget(budget, lambda rows: self._verified_part(name, rows), time.sleep)

    def _verified_part(self, name: str, rows: int) -> TableVerification:
        with self._lock:
            found = self._once_unmigrated(
                lambda: self._comparisons.verify_part(name, rows, self._registry.coverage), name
            )
            if found.coverage is not None:
                self._registry.note_coverage(found.table, found.coverage)
            return found

    def _once_unmigrated(self, look: Callable[[], _Found | None], only: str | None) -> _Found:
        """Sync and look, again where a migration came between the two: `look` returns None then."""
        for _ in range(ATTEMPTS):
            self._sync(no_progress, only)
            found = look()
            if found is not None:
                return found
        raise _keeps_changing()

    def parity(self, name: str) -> RowParity:
        """Bring the mirror up to one source state and count the rows of both at that state."""
        with self._lock:
            return self._once_unmigrated(lambda: self._comparisons.parity(name), name)

    def repair(
        self, name: str, asked: RepairRange | None = None, *, dry_run: bool = False
    ) -> RepairReport:
        """Make one table equal to its source again; history gets the difference as versions.

        `asked`: Only these keys; they are compared, and the rest is not read. A dry run changes
        nothing but what a sync does.
        """
        started = time.monotonic()
        if asked is not None or dry_run:
            with self._lock:
                return self._repaired_keys(name, asked or RepairRange(), started, dry_run=dry_run)
        with self._lock:
            damaged = self._heal(name)
            report = self.copy(name)
        return RepairReport(
            report.table,
            report.inserted,
            report.updated,
            report.deleted,
            report.duration_seconds,
            damaged,
        )

    def _repaired_keys(
        self, name: str, asked: RepairRange, started: float, *, dry_run: bool
    ) -> RepairReport:
        for _ in range(ATTEMPTS):
            found = self._once_unmigrated(lambda: self._comparisons.differences(name, asked), name)
            if dry_run or not found.found.total or self._mended(found):
                counts = sum(found.done, Counts()) if not dry_run else found.found
                return RepairReport(
                    found.table,
                    counts.inserted,
                    counts.updated,
                    counts.deleted,
                    time.monotonic() - started,
                    ranges=found.ranges,
                    dry_run=dry_run,
                )
        raise _keeps_changing()

    def _mended(self, mending: Mending) -> bool:
        """Apply what differs in a cycle of all tables; return whether the source let it."""
        reports = self._cycle(self._tables.values(), self._watch.version, mending=mending)
        self.table(mending.table)  # raises what it was left out for
        return reports is not None

    def _heal(self, name: str) -> tuple[DamagedFile, ...]:
        """Remove a table's damaged files from the mirror, and stop leaving the table out."""
        known = {table.name.lower(): table for table in self._known_tables()}
        # A first copy that is left out is of a table that nobody knows yet.
        table = known.get(name.removeprefix("main.").lower()) or self._watch.as_in_source(name)
        damaged = heal_files(self._mirror, table) if table else ()
        if damaged:
            self._watch.refresh_next_time()
        return damaged

    def _known_tables(self) -> Iterator[Table]:
        """Yield all tables that are mirrored, or were before they were left out."""
        yield from (table for name in self._watch.declared if (table := self._registry.table(name)))
        yield from self._tables.values()

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
        return read_status(modes, by_name, errors, self._source, self._mirror, self._blame)

    @property
    def copying(self) -> Mapping[str, CopyStatus]:
        """The copies under way; waits for nobody.

        One in ranges is under way also while nobody works on it.
        """
        return {**self._copies.under_way(), **shared_copies(self._mirror)}

    def touch(self, name: str, keys: Collection[tuple[object, ...]]) -> None:
        """Mark the rows of these keys to be read again by the next sync."""
        with self._lock:
            self._source.touch(self.table(name), list(keys))

    def drop_letters(self, names: Collection[str]) -> int:
        """Forget the open dead letters of tables; a row that is met again becomes one again.

        Returns:
            How many there were.
        """
        with self._lock, self._mirror.transaction() as transaction:
            count = 0
            for name in names:
                table = self.with_letters(name)
                letters = transaction.quarantined(table)
                # As of a table without history: those that are resolved would say that rows fit.
                transaction.release(Table(table.schema), letters, datetime.now(UTC))
                count += len(letters)
            return count

    def with_letters(self, name: str) -> Table:
        """Return a table, also one that is left out because it would have too many dead letters.

        One that was never in place is known by its name alone.
        """
        full = (n for n, error in self.left_out.items() if isinstance(error, DeadLettersFullError))
        found = next((each for each in full if each.lower() == name.lower()), None)
        if found is None:
            return self.mirrored(name)
        return self._registry.table(found) or Table(TableSchema(found, (), ()))

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
                self._options,
                self._on_step,
                schema_version=schema_version,
                blame=self._blame,
                # Of tables that are copied now, too.
                held={*self._left_out.failed, *self._tables, *held},
                mending=mending,
                altered=altered,
            ),
            failing,
        )
        if cycle is None:
            return None
        self._rows_pruned += cycle.rows_pruned
        return cycle.tables

    def _told_errors(self) -> dict[str, str]:
        return {name: str(error) for name, error in self._left_out.errors.items()}

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
        self._copies.note_cycle()
        self._left_out.went_well(reports.keys())
        told = table_reports(reports, self._told_errors(), self._watch.take_drained(), copied)
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
