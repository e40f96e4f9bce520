"""Copies the tables that need it; what a copy fails with leaves its own table out."""

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType

from rhei_pipeline.capabilities import reading_together
from rhei_pipeline.errors import PermanentError
from rhei_pipeline.model.blame import own_fault
from rhei_pipeline.model.progress import Ledger, TableState
from rhei_pipeline.model.reports import CopyStatus
from rhei_pipeline.model.schema import Mode, Table
from rhei_pipeline.protocols import SourcePositions
from rhei_pipeline.sql.text import mirror_table
from rhei_pipeline.sync.alterations import Alteration, find_alteration
from rhei_pipeline.sync.context import PipelineContext
from rhei_pipeline.sync.copy_ranges import RangeMemory, has_shape
from rhei_pipeline.sync.cycle import acknowledge
from rhei_pipeline.sync.initial_sync import (
    Copied,
    CopyTurn,
    OnProgress,
    TableCopy,
    needs_copy,
)

#: Of so many small tables, commits are the most work: they are copied by one each.
MANY_TABLES = 20
#: So many of their copies are told to the source together: it looks at all tables after a commit.
TOLD_TOGETHER = 100

_log = logging.getLogger(__name__)


class TableCopies:
    """Copies tables, and knows which of them need it.

    Args:
        context: What the pipeline works on.
        note_read: Called whenever rows were read and written.
    """

    def __init__(self, context: PipelineContext, note_read: Callable[[], None]) -> None:
        self._context, self._note_read = context, note_read
        self._source, self._mirror = context.source, context.mirror
        self._registry, self._watch = context.registry, context.watch
        self._parts, self._blame = context.parts, context.parts.blame
        self._tables, self._left_out = context.parts.tables, context.parts.left_out
        self._settled: dict[str, Table] = {}
        self._under_way: dict[str, CopyStatus] = {}
        #: What was read of copies that go on at their next turn.
        self._read: dict[str, Copied] = {}
        self._ranges = RangeMemory()
        #: The tables that need a copy, as the last call of `copy_due` found and left it.
        self.unfinished: set[str] = set()
        #: How the next cycle alters tables, which are not copied for that.
        self.altered: dict[str, Alteration] = {}

    def under_way(self) -> Mapping[str, CopyStatus]:
        """Return the copies under way; never waits."""
        return MappingProxyType(dict(self._under_way))

    def note_cycle(self) -> None:
        """Remember the tables as a cycle that succeeded left them, where none needs a copy."""
        self._settled = {} if self.unfinished else dict(self._tables)

    def forget_cycle(self) -> None:
        """Forget what the last cycle left: the next one asks about all tables."""
        self._settled, self.altered = {}, {}

    def copy_due(
        self, tables: Sequence[Table], on_progress: OnProgress, seconds: float
    ) -> dict[str, Copied]:
        """Copy those of the tables that need it, for so long; return what was read of each.

        What was not read by then is left to the next call. First come the tables that had no turn
        yet, then those of which the fewest rows are left: no small one waits for a large one.
        """
        self._forget_ended()
        copied: dict[str, Copied] = {}
        due = self._parts.without_failing(tables, self._find_due)
        due.sort(key=self._rows_left)
        self.unfinished = {table.name for table in due}
        until = time.monotonic() + seconds
        at_once, told, described = len(due) >= MANY_TABLES, 0, -1
        for number, table in enumerate(due):
            if number and time.monotonic() >= until:
                break
            if at_once and len(copied) - told >= TOLD_TOGETHER:
                self._tell(copied)
                told = len(copied)
            if at_once and described < told < len(copied):
                # The first copy behind those that were told has committed something of ours. Once:
                # tables that cannot be copied do not have all others described again.
                self._describe_together(due[number:])
                described = told
            found = self._copy_or_leave_out(table, on_progress, until, at_once=at_once)
            if found is None or found.is_complete:
                self.unfinished.discard(table.name)
            if found is not None and found.is_complete:
                copied[table.name] = found
        if at_once:
            self._tell(copied)
        return copied

    def _describe_together(self, tables: Collection[Table]) -> None:
        """Read at once what the source looks at again for each table that is copied.

        A table is read by itself after another commit, and where it cannot be described.
        """
        with reading_together(self._source, [table.name for table in tables]):
            for table in tables:
                with suppress(PermanentError):
                    self._source.describe(table.name)

    def _rows_left(self, table: Table) -> int:
        known = self._under_way.get(table.name)
        return 0 if known is None else max(known.of - known.rows, 1)

    def _copy_or_leave_out(
        self, table: Table, on_progress: OnProgress, until: float, *, at_once: bool
    ) -> Copied | None:
        try:
            # What was pending in another shape has been drained: the history goes on.
            return self.copy(table, on_progress, until, same_shape=True, at_once=at_once)
        except PermanentError:
            if table.name not in self._left_out.errors:
                raise
            return None

    def give_up(self, name: str) -> None:
        """Drop what was copied so far of a table that is not in place."""
        table, state = self._tables.get(name), self._mirror.ledger().state(name)
        if table is not None and state is TableState.COPYING:
            with self._mirror.transaction() as transaction:
                transaction.drop_copy(table)
            self._forget_ended()

    def give_up_left(self, declared: Collection[str]) -> list[str]:
        """Drop what was copied so far of tables that were left out of the declaration meanwhile.

        While a copy under way is of a table that cannot be described, which copies are whose is
        not known, and they wait.

        Returns:
            Those that are not in the mirror otherwise.
        """
        ledger = self._mirror.ledger()
        left = ledger.copies.keys() - declared
        kept = [self._tables[name] for name in ledger.copies if name in self._tables]
        if not left or len(kept) + len(left) < len(ledger.copies):
            return []
        with self._mirror.transaction() as transaction:
            transaction.keep_copies(kept)
        _log.warning("%s: their copies are given up, as they are no longer declared", sorted(left))
        return sorted(left - ledger.watermarks.keys())

    def count_anew(self, name: str) -> None:
        """Let what is told of a copy begin here."""
        self._read.pop(name, None)

    def _forget_ended(self) -> None:
        """Forget copies that are to go on no more: a migration overtook them, or a drop."""
        if self._read:
            standing = self._mirror.ledger().copies.keys() & self._tables.keys()
            for name in self._read.keys() - standing:
                del self._read[name]
                self._under_way.pop(name, None)

    def _tell(self, copied: Collection[str]) -> None:
        """Keep other mirrors' syncs from letting the source forget what these copies need."""
        acknowledge(self._source, self._mirror.ledger(), copied, prune=False)

    def copy(
        self,
        table: Table,
        on_progress: OnProgress,
        until: float,
        *,
        same_shape: bool,
        at_once: bool = False,
    ) -> Copied | None:
        """Copy one table until then; an error is its own, and leaves it out until the next sync.

        Returns:
            What was read of it, at this turn and the ones before; None where a migration came
            between: the source is to be looked at again.
        """
        name, copied = table.name, None
        try:
            with self._blame.of(name):
                copied = self._copy(
                    table, on_progress, until, same_shape=same_shape, at_once=at_once
                )
        except Exception as error:
            # What reading or capture failed with may only say that the table is another by now.
            if not self._is_migrated(table, error):
                self._parts.leave_out(error, [name])
                fault = self._left_out.errors[name]
                if fault is error:
                    raise
                raise fault from error
        finally:
            earlier = self._read.pop(name, None)
            if copied is None or copied.is_complete:
                self._under_way.pop(name, None)
        if copied is None:
            _log.warning("table %r: it was migrated while it was copied", name)
            self._watch.refresh_next_time()
            return None
        copied = copied.after(earlier)
        if not copied.is_complete:
            self._read[name] = copied
        return copied

    def _is_migrated(self, table: Table, error: Exception) -> bool:
        is_own = own_fault(error, table.name) is not None
        return is_own and not has_shape(table, self._source)

    def _find_due(self, tables: Sequence[Table]) -> list[Table]:
        ledger, self.altered = self._mirror.ledger(), {}
        if self._is_settled(ledger):
            return []
        with self._source.snapshot() as snapshot:
            if snapshot.schema_version != self._watch.version:
                return []
            due, standing = [], self._mirror.tables()
            for table in tables:
                with self._blame.of(table.name):
                    found = standing.get(mirror_table(table.schema))
                    if self._is_due(table, found, snapshot, ledger):
                        due.append(table)
            return due

    def _is_settled(self, ledger: Ledger) -> bool:
        """Return whether nothing was copied or described again since the last cycle.

        The cycle itself then shows whether the source still proves what each table has: where it
        does not, nothing is done, and all tables are asked about.
        """
        is_whole = (
            not (ledger.copies or self._registry.owing)
            and self._tables.keys() <= ledger.watermarks.keys()
        )
        return is_whole and bool(self._settled) and self._settled == self._tables

    def _is_due(
        self, table: Table, standing: Table | None, snapshot: SourcePositions, ledger: Ledger
    ) -> bool:
        if needs_copy(table, snapshot, ledger) or table.name in self._registry.owing:
            return True
        known = self._registry.table(table.name)
        if known == table:
            if standing is not None and _is_to_lose_columns(standing, table):
                self.altered[table.name] = Alteration()
            return standing is not None and _has_other_columns(standing, table)
        found = find_alteration(table, known, self._source, snapshot, self._mirror, ledger)
        if found is None:
            return True
        self.altered[table.name] = found
        return False

    def _copy(
        self,
        table: Table,
        on_progress: OnProgress,
        until: float,
        *,
        same_shape: bool,
        at_once: bool,
    ) -> Copied | None:
        def note(name: str, rows: int, of: int) -> None:
            self._under_way[name] = CopyStatus(rows, of)
            self._note_read()
            on_progress(name, rows, of)

        self._watch.install(table)
        earlier = self._read.get(table.name)
        copy = TableCopy(
            table,
            self._source,
            self._mirror,
            self._context.options,
            self._context.on_step,
            note,
            CopyTurn(until, earlier.rows if earlier else 0, self._ranges),
        )
        return copy.run(same_shape=same_shape, at_once=at_once)


def _has_other_columns(standing: Table, table: Table) -> bool:
    """Return whether the mirror is older than the registry: it was put back from a backup.

    One that keeps what its source has dropped may have more. So may a history, of which they are
    dropped without a copy.
    """
    is_more = table.mode is Mode.DESTRUCTIVE and not table.keeps_dropped
    wanted, there = _names(table), _names(standing)
    return not wanted <= there or (is_more and wanted != there)


def _is_to_lose_columns(standing: Table, table: Table) -> bool:
    """Return whether a history has columns from when it was to keep them."""
    is_to_keep = table.keeps_dropped or table.mode is Mode.DESTRUCTIVE
    return not is_to_keep and _names(table) < _names(standing)


def _names(table: Table) -> set[str]:
    return {name.lower() for name in table.schema.names}
