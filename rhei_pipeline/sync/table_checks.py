"""Compares tables with their source once both are at one state, and makes them equal again."""

import time
from collections.abc import Callable, Iterator
from types import MappingProxyType
from typing import Protocol, TypeVar

from rhei_pipeline.capabilities import heal_files
from rhei_pipeline.errors import PermanentError
from rhei_pipeline.model.changes import Counts
from rhei_pipeline.model.reports import (
    CopyReport,
    RowParity,
    SyncReport,
    TableVerification,
    VerifyReport,
)
from rhei_pipeline.model.schema import Table
from rhei_pipeline.model.upkeep import DamagedFile, RepairReport
from rhei_pipeline.sync.comparisons import Comparisons
from rhei_pipeline.sync.context import PipelineContext, keeps_changing
from rhei_pipeline.sync.repair_keys import Mending, RepairRange
from rhei_pipeline.sync.schema_watch import ATTEMPTS
from rhei_pipeline.sync.verify_parts import VerifyBudget, within_budget

_Found = TypeVar("_Found")


class SyncsTables(Protocol):
    """What brings tables up to their source before they are compared."""

    def sync(self, *, only: str | None = None) -> SyncReport:
        """Sync; of the tables that were never copied, `only` alone takes part."""
        ...

    def copy(self, name: str) -> CopyReport:
        """Copy one table again."""
        ...

    def mend(self, mending: Mending) -> bool:
        """Apply what differs in a cycle; return whether the source let it."""
        ...


class TableChecks:
    """Verifies and repairs the tables of one pipeline.

    Args:
        context: What the pipeline works on.
        pipeline: Syncs and copies its tables.
    """

    def __init__(self, context: PipelineContext, pipeline: SyncsTables) -> None:
        self._context, self._pipeline = context, pipeline
        self._lock, self._parts, self._registry = context.lock, context.parts, context.registry
        self._comparisons = Comparisons(context)

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
        errors = {} if name else self._parts.left_out.told
        return VerifyReport(
            MappingProxyType(found),
            time.monotonic() - started,
            MappingProxyType(errors),
            self._context.not_followed,
        )

    def _verified_in_parts(
        self, name: str | None, budget: VerifyBudget
    ) -> dict[str, TableVerification]:
        if name is not None:
            table = self._context.table(name)
            return {table.name: self._verified_table(table.name, budget)}
        found = {}
        for each in list(self._parts.tables):
            try:
                found[each] = self._verified_table(each, budget)
            except PermanentError:
                if each not in self._parts.left_out.errors:
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
            self._pipeline.sync(only=only)
            found = look()
            if found is not None:
                return found
        raise keeps_changing()

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
            report = self._pipeline.copy(name)
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
            if dry_run or not found.found.total or self._pipeline.mend(found):
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
        raise keeps_changing()

    def _heal(self, name: str) -> tuple[DamagedFile, ...]:
        """Remove a table's damaged files from the mirror, and stop leaving the table out."""
        watch = self._context.watch
        known = {table.name.lower(): table for table in self._known_tables()}
        # A first copy that is left out is of a table that nobody knows yet.
        table = known.get(name.removeprefix("main.").lower()) or watch.as_in_source(name)
        damaged = heal_files(self._context.mirror, table) if table else ()
        if damaged:
            watch.refresh_next_time()
        return damaged

    def _known_tables(self) -> Iterator[Table]:
        """Yield all tables that are mirrored, or were before they were left out."""
        declared = self._context.watch.declared
        yield from (table for name in declared if (table := self._registry.table(name)))
        yield from self._parts.tables.values()
