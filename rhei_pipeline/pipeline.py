"""The declared tables of one source and one mirror: kept captured, copied, in sync, compared."""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from types import MappingProxyType

from rhei_pipeline.errors import (
    HiddenRowsError,
    MirrorDamagedError,
    MirrorError,
    PermanentError,
    RheiError,
    SchemaDriftError,
    SchemaError,
    SourceBusyError,
)
from rhei_pipeline.initial_sync import (
    Copied,
    OnProgress,
    copy_table,
    needs_copy,
    take_on_shape,
)
from rhei_pipeline.ledger import Ledger, TableState
from rhei_pipeline.logs import one_cycle
from rhei_pipeline.metrics import (
    CopyReport,
    CopyStatus,
    DamagedFile,
    DropReport,
    RepairReport,
    RowParity,
    Standing,
    SyncReport,
    TableReport,
    TableVerification,
    VerifyReport,
)
from rhei_pipeline.past import (
    Declared,
    Dropping,
    drop_table,
    find_droppable,
    find_mirrored,
    in_kept_mode,
    not_followed,
    record_keys,
)
from rhei_pipeline.protocols import (
    ChangeSource,
    Mirror,
    MirrorTransaction,
    OnStep,
    SourceSnapshot,
    Step,
)
from rhei_pipeline.reconciliation import broken_histories, count_rows, verify_table
from rhei_pipeline.registry import Registry
from rhei_pipeline.schema import Mode, Table, TableSchema, difference, nearest
from rhei_pipeline.standing import StatusCache, take_stock
from rhei_pipeline.sync import Pace, apply_pending, sync_cycle

_log = logging.getLogger(__name__)

#: A source whose schema changes between look and read this often in a row is given up for now.
_LOOKS = 5


def no_step(_step: Step) -> None:
    """Pass a step by."""


def no_progress(_table: str, _rows: int, _of: int) -> None:
    """Pass progress by."""


class Pipeline:
    """Keeps a mirror equal to its source.

    One piece of work at a time: a second caller waits. A table that fails for good is left out
    and named in every report, and the others go on.

    Args:
        declared: The tables.
        source, mirror, registry: Where changes come from, where they go, what they looked like.
        pace: How much at once.
        on_step: Called at each named step.

    Raises:
        SchemaError: A declared table cannot be mirrored as it stands.
    """

    def __init__(
        self,
        declared: Collection[Declared],
        source: ChangeSource,
        mirror: Mirror,
        registry: Registry,
        pace: Pace,
        on_step: OnStep = no_step,
    ) -> None:
        self._declared: dict[str, Declared] = {}
        self._source = source
        self._mirror = mirror
        self._registry = registry
        self._pace = pace
        self._on_step = on_step
        self._lock = threading.RLock()
        self._tables: dict[str, Table] = {}
        self._errors: dict[str, PermanentError] = {}
        self._said: dict[str, str] = {}
        self._undescribed: set[str] = set()
        self._drained: list[TableReport] = []
        self._looked_at = -1
        self._looks = 0
        self._synced_from: int | None = None
        self._copying: dict[str, CopyStatus] = {}
        self._status = StatusCache()
        self._watchers: list[Callable[[SyncReport], None]] = []
        record_keys(mirror, registry)
        for table in declared:
            self.register(table, look=False)
        self._keep_up()

    @property
    def tables(self) -> Mapping[str, Table]:
        """The tables as they are captured now, by name."""
        return MappingProxyType(self._tables)

    @property
    def looks(self) -> int:
        """How often the source's schema was looked at; tables change only when it grows."""
        return self._looks

    @property
    def synced_from(self) -> int | None:
        """When the last successful sync began, by `time.monotonic_ns`.

        The mirror has what was committed in the source until then. None before the first one.
        """
        return self._synced_from

    def watch(self, watcher: Callable[[SyncReport], None]) -> None:
        """Have every report of a sync told, in the thread that synced."""
        self._watchers.append(watcher)

    def holds(self, name: str, ledger: Ledger) -> bool:
        """Tell whether the mirror has a table in the shape that the source gives it."""
        table = self._tables.get(name)
        ready = ledger.state(name) is TableState.READY
        return table is not None and ready and self._registry.table(name) == table

    def table(self, name: str) -> Table:
        """Return a table by its name, in any case.

        Raises:
            SchemaError: It is not one of the pipeline's.
            PermanentError: It is left out; why.
        """
        by_lower = {known.lower(): table for known, table in self._tables.items()}
        found = by_lower.get(name.removeprefix("main.").lower())
        if found is None and name in self._errors:
            raise self._errors[name]
        if found is None:
            raise SchemaError(
                "it is not mirrored", table=name, hint=nearest(name, sorted(self._tables))
            )
        return found

    @property
    def not_followed(self) -> Mapping[str, datetime]:
        """The tables of the mirror that no sync brings up to date any more, and since when."""
        return not_followed(self._mirror.ledger(), self._tables)

    def is_left_out(self, name: str) -> bool:
        """Return whether a table is declared, and left out for an error."""
        return name in self._errors

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
        """Drop a table of the mirror, or set it aside; one that is declared is copied anew.

        Raises:
            SchemaError: It is not in the mirror; it has history, and neither was said; or the name
                to keep it as is taken.
        """
        with self._lock:
            table = find_droppable(name, self._mirror, self._registry)
            going = Dropping(table, keep_as, discard_history)
            report = drop_table(going, self._mirror, self._registry, self._declared)
            self._tables.pop(table.name, None)
            self._looked_at, self._looks = -1, self._looks + 1
            return report

    def register(self, declared: Declared, *, look: bool = True) -> None:
        """Capture a table from now on; safe to repeat, and mends what is missing.

        Raises:
            SchemaError: It cannot be mirrored as it stands; says the way out.
        """
        with self._lock:
            name = self._name_of(declared, look=look)
            self._declared[name] = replace(declared, name=name)
            self._looked_at = -1
            if look:
                self._keep_up()

    def _name_of(self, declared: Declared, *, look: bool) -> str:
        """Return a table's name; one that was mirrored keeps it when the source has it no more.

        One that is there and cannot be captured is left out, and keeps no process from starting.
        """
        try:
            schema = self._source.describe(declared.name)
        except PermanentError as error:
            is_known = self._registry.table(declared.name) is not None
            if look or not (is_known or isinstance(error, HiddenRowsError)):
                raise
            return declared.name
        if look:
            in_kept_mode(schema, declared, self._mirror.tables())
        return schema.name

    def sync(self, on_progress: OnProgress = no_progress) -> SyncReport:
        """Bring every table up to the source as it is now; copy first what was never copied."""
        with self._lock:
            return self._synced(on_progress)[0]

    def _synced(self, on_progress: OnProgress) -> tuple[SyncReport, dict[str, Copied]]:
        """Sync; return the report, and what the tables that were copied first took."""
        with one_cycle():
            started = time.monotonic()
            copied: dict[str, Copied] = {}
            if any(isinstance(error, MirrorDamagedError) for error in self._errors.values()):
                self._looked_at = -1  # the file may have been restored since
            for _ in range(_LOOKS):
                begun = time.monotonic_ns()
                self._keep_up()
                copied |= self._copy_what_needs_it(on_progress)
                reports = self._cycle(self._tables.values(), self._looked_at)
                if reports is not None:
                    self._synced_from = begun
                    self._status.note_readable()
                    report = self._report(reports, copied, started)
                    _log.debug("synced %d events", report.events)
                    for watcher in self._watchers:
                        watcher(report)
                    return report, copied
            raise SourceBusyError(
                "the source's schema keeps changing", hint="sync again once migrations are done"
            )

    def copy(self, name: str, on_progress: OnProgress = no_progress) -> CopyReport:
        """Copy one table anew, or go on with a copy that was cut off, and put it in place.

        A history first gets every version that the source tells of; the copy then adds what no
        event told.
        """
        with self._lock:
            started = time.monotonic()
            self._keep_up()
            caught_up, copied = self._caught_up(self.table(name), on_progress)
            table = self.table(name)
            if caught_up is not None and table.name in copied:
                report = caught_up.tables[table.name]
                return _copy_report(copied[table.name], report, started)
            found = self._copy(table, on_progress, same_shape=caught_up is not None)
            report = self._synced(on_progress)[0].tables[table.name]
            letters = report.dead_letters + found.dead_letters
            if caught_up is not None:
                report = report.after(caught_up.tables[table.name])
            return _copy_report(found, replace(report, dead_letters=letters), started)

    def _caught_up(
        self, table: Table, on_progress: OnProgress
    ) -> tuple[SyncReport | None, dict[str, Copied]]:
        """Sync before a history is copied; None where the mirror is in no state to be synced."""
        if table.mode is Mode.DESTRUCTIVE:
            return None, {}
        try:
            return self._synced(on_progress)
        except MirrorError as error:
            _log.warning("table %r: copied without what is pending: %s", table.name, error)
            return None, {}

    def verify(self, name: str | None = None) -> VerifyReport:
        """Bring the mirror up to one source state and compare every row at that state."""
        started = time.monotonic()
        with self._lock, self._at_one_state() as (snapshot, transaction):
            chosen = list(self._tables.values()) if name is None else [self.table(name)]
            found: dict[str, TableVerification] = {
                table.name: self._verified(table, snapshot, transaction) for table in chosen
            }
            if name is None:
                found |= {
                    left_out: TableVerification.of_damaged(left_out, error)
                    for left_out, error in self._errors.items()
                    if isinstance(error, MirrorDamagedError)
                }
        errors = {} if name else {left: str(error) for left, error in self._errors.items()}
        return VerifyReport(
            MappingProxyType(found),
            time.monotonic() - started,
            MappingProxyType(errors),
            self.not_followed,
        )

    def _verified(
        self, table: Table, snapshot: SourceSnapshot, transaction: MirrorTransaction
    ) -> TableVerification:
        try:
            broken = broken_histories(table, self._mirror)
            return verify_table(table, snapshot, transaction, self._pace.batch_rows, broken)
        except MirrorDamagedError as error:
            if error.table != table.name:
                raise
            return TableVerification.of_damaged(table.name, error)

    def parity(self, name: str) -> RowParity:
        """Bring the mirror up to one source state and count the rows of both at that state."""
        with self._lock, self._at_one_state() as (snapshot, transaction):
            return count_rows(self.table(name), snapshot, transaction)

    @contextmanager
    def _at_one_state(self) -> Iterator[tuple[SourceSnapshot, MirrorTransaction]]:
        self.sync()
        # The mirror is only tried at the rows' state: what lies between there and the head is
        # for a cycle to apply.
        with (
            self._source.snapshot(rows=True) as snapshot,
            self._mirror.transaction(trial=True) as transaction,
        ):
            for table in self._tables.values():
                apply_pending(table, snapshot, transaction, self._pace, self._on_step)
            yield snapshot, transaction

    def repair(self, name: str) -> RepairReport:
        """Make one table equal to its source again; history gets the difference as versions."""
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

    def _heal(self, name: str) -> tuple[DamagedFile, ...]:
        """Have the mirror leave out a table's damaged files, and take the table in again."""
        known = {table.name.lower(): table for table in self._known_tables()}
        table = known.get(name.removeprefix("main.").lower())
        damaged = self._mirror.heal(table) if table else ()
        if damaged:
            self._looked_at = -1
        return damaged

    def _known_tables(self) -> Iterator[Table]:
        """Yield all tables that are mirrored, or were before they were left out."""
        yield from (table for name in self._declared if (table := self._registry.table(name)))
        yield from self._tables.values()

    def status(self, patience_seconds: float | None = None) -> Standing:
        """Return how every declared table stands; reads, and waits for a sync under way.

        With a patience given, returns what was last known where waiting takes longer, and where
        source or mirror cannot be read.
        """
        if not self._lock.acquire(timeout=-1 if patience_seconds is None else patience_seconds):
            return self._status.last()
        try:
            modes = {name: declared.mode for name, declared in self._declared.items()}
            modes |= {name: table.mode for name, table in self._tables.items()}
            found = take_stock(modes, self._tables, self._errors, self._source, self._mirror)
            return self._status.keep(replace(found, not_followed=self.not_followed))
        except RheiError as error:
            self._status.note_unreadable(error)
            if patience_seconds is None:
                raise
            return self._status.last()
        finally:
            self._lock.release()

    @property
    def copying(self) -> Mapping[str, CopyStatus]:
        """The copies under way; never waits."""
        return MappingProxyType(dict(self._copying))

    def touch(self, name: str, keys: Collection[tuple[object, ...]]) -> None:
        """Have the rows of these keys read again by the next sync."""
        with self._lock:
            self._source.touch(self.table(name), list(keys))

    def _keep_up(self) -> None:
        """Look at the source's schema again if it may have changed, and mend what it broke.

        Until it stays as it is: installing capture changes it, and so may others meanwhile.
        """
        for _ in range(_LOOKS):
            version = self._source.schema_version()
            if version == self._looked_at and not self._is_mended():
                return
            if self._drain(version):
                self._look(version)

    def _look(self, version: int) -> None:
        self._errors.clear()
        self._looks += 1
        standing = self._mirror.tables()
        for declared in self._declared.values():
            self._look_at(declared, standing)
        self._looked_at = version

    def _is_mended(self) -> bool:
        """Tell whether a table can be described again: a source's version tells of the others."""
        for name in self._undescribed:
            with suppress(PermanentError):
                self._source.describe(name)
                return True
        return False

    def _drain(self, version: int) -> bool:
        """Apply what logs of images still hold, before they have to be made anew.

        False where the source was migrated meanwhile: nothing was applied then.

        They are read in the shape they were made in, so no version is lost to a migration. The
        tables that the migration left alone come along, so that the mirror stays one state.
        """
        try:
            ledger = self._mirror.ledger()
        except MirrorDamagedError:
            return True  # every table is about to be left out with this error
        known = [table for name in self._declared if (table := self._registry.table(name))]
        ledger = self._without_overtaken_copies(known, ledger)
        ready = [table for table in known if ledger.state(table.name) is TableState.READY]
        broken = {table.name for table in ready if not self._source.stands(table)}
        if not any(self._is_read_first(table) for table in ready if table.name in broken):
            return True
        with self._source.snapshot() as snapshot:
            readable = [
                table
                for table in ready
                if (self._is_read_first(table) or not self._has_drifted(table, broken))
                and snapshot.proves(table, ledger.watermarks[table.name].position)
            ]
        reports = self._cycle(readable, version)
        self._drained += (reports or {}).values()
        if reports is not None and self._take_on_next_shapes(readable):
            return self._drain(self._source.schema_version())
        return reports is not None

    def _take_on_next_shapes(self, tables: Collection[Table]) -> bool:
        """Give histories the shape in which their logs go on, where that is not today's.

        Returns whether there is more to read now.
        """
        marks = self._mirror.ledger().watermarks
        with self._source.snapshot() as snapshot:
            found = [
                Table(schema, table.mode)
                for table in tables
                if (schema := snapshot.next_shape(table, marks[table.name].position))
            ]
        taken = [table for table in found if self._takes_on(table, snapshot.clock)]
        for table in taken:
            self._registry.save(table)
        return bool(taken)

    def _takes_on(self, table: Table, at: datetime) -> bool:
        try:
            take_on_shape(table, self._mirror, at)
        except (SchemaDriftError, MirrorDamagedError) as error:
            # What today's shape asks of the mirror is asked next, and named where it fails.
            _log.warning("%s; versions of a shape in between are read by today's columns", error)
            return False
        return True

    def _without_overtaken_copies(self, known: Collection[Table], ledger: Ledger) -> Ledger:
        """Drop copies of histories that a migration overtook; return what is recorded then.

        Such a copy has to be begun anew in any case. Without it, its table goes on where it was,
        in the shape in which the log still holds the versions of before the migration.
        """
        overtaken = [
            table
            for table in known
            if table.mode is Mode.TEMPORAL
            and ledger.goes_on(table.name)
            and not self._source.stands(table)
        ]
        if not overtaken:
            return ledger
        with self._mirror.transaction() as transaction:
            for table in overtaken:
                transaction.drop_copy(table)
        return self._mirror.ledger()

    def _is_read_first(self, table: Table) -> bool:
        """Tell whether what its log holds can be applied, and would be lost otherwise."""
        if table.mode is Mode.TEMPORAL:
            return True
        try:
            self._source.describe(table.name)
        except SchemaError:
            return self._source.logs_rows
        return False

    def _has_drifted(self, table: Table, broken: Collection[str]) -> bool:
        return table.name in broken or self._source.describe(table.name) != table.schema

    def _look_at(self, declared: Declared, standing: Mapping[str, Table]) -> None:
        """Install capture for the table as it is now; one that cannot be captured is left out."""
        try:
            table = in_kept_mode(self._describe(declared.name), declared, standing)
            self._install(table)
        except PermanentError as error:
            self._leave_out(declared.name, error)
            return
        known = self._registry.table(table.name)
        is_news = self._tables.get(table.name) != table
        if is_news and known is not None and known.schema != table.schema:
            changes = difference(known.schema, table.schema).describe()
            _log.warning("table %r: its source %s; it is copied again", table.name, changes)
        self._tables[table.name] = table

    def _describe(self, name: str) -> TableSchema:
        self._undescribed.add(name)
        schema = self._source.describe(name)
        self._undescribed.discard(name)
        return schema

    def _install(self, table: Table) -> None:
        self._source.install(table, self._mirror.ledger().furthest(table.name))

    def _cycle(
        self, tables: Collection[Table], schema_version: int
    ) -> dict[str, TableReport] | None:
        try:
            return sync_cycle(
                tables,
                self._source,
                self._mirror,
                self._pace,
                self._on_step,
                schema_version=schema_version,
            )
        except (SchemaDriftError, MirrorDamagedError) as error:
            if error.table not in {table.name for table in tables}:
                raise
            self._leave_out(error.table, error)
            return None

    def _copy_what_needs_it(self, on_progress: OnProgress) -> dict[str, Copied]:
        with self._source.snapshot() as snapshot:
            if snapshot.schema_version != self._looked_at:
                return {}
            ledger = self._mirror.ledger()
            due = [
                table for table in self._tables.values() if self._is_due(table, snapshot, ledger)
            ]
        copied = {}
        for table in due:
            try:
                # What was pending in another shape has been drained: the history goes on.
                copied[table.name] = self._copy(table, on_progress, same_shape=True)
            except MirrorDamagedError as error:
                if error.table != table.name:
                    raise
                self._leave_out(table.name, error)
        return copied

    def _is_due(self, table: Table, snapshot: SourceSnapshot, ledger: Ledger) -> bool:
        return needs_copy(table, snapshot, ledger) or self._registry.table(table.name) != table

    def _copy(self, table: Table, on_progress: OnProgress, *, same_shape: bool = False) -> Copied:
        def note(name: str, rows: int, of: int) -> None:
            self._copying[name] = CopyStatus(rows, of)
            self._status.note_readable()
            on_progress(name, rows, of)

        self._install(table)
        try:
            return copy_table(
                table,
                self._source,
                self._mirror,
                self._pace,
                self._on_step,
                note,
                same_shape=same_shape,
            )
        finally:
            self._copying.pop(table.name, None)

    def _leave_out(self, name: str, error: PermanentError) -> None:
        if self._said.get(name) != str(error):
            _log.error("%s; the table is left out until this is mended", error)
        self._said[name] = str(error)
        self._errors[name] = error
        self._tables.pop(name, None)
        self._looks += 1

    def _report(
        self, reports: dict[str, TableReport], copied: dict[str, Copied], started: float
    ) -> SyncReport:
        for name in reports:
            self._registry.save(self._tables[name])
        for name, error in self._errors.items():
            reports[name] = TableReport(name, error=str(error))
        drained, self._drained = self._drained, []
        for earlier in drained:
            reports[earlier.table] = reports[earlier.table].after(earlier)
        for name, copy in copied.items():
            letters = reports[name].dead_letters + copy.dead_letters
            reports[name] = replace(reports[name], copied_rows=copy.rows, dead_letters=letters)
        self._registry.note_not_followed(self.not_followed)
        seconds = time.monotonic() - started
        unpublished = self._mirror.not_published
        return SyncReport(
            MappingProxyType(reports),
            seconds,
            self.not_followed,
            None if unpublished is None else str(unpublished),
        )


def _copy_report(copied: Copied, report: TableReport, started: float) -> CopyReport:
    return CopyReport(
        report.table,
        rows=copied.rows,
        resumed=copied.resumed,
        inserted=report.inserted,
        updated=report.updated,
        deleted=report.deleted,
        dead_letters=report.dead_letters,
        watermark=report.watermark or 0,
        duration_seconds=time.monotonic() - started,
    )
