"""Takes out of a mirror what is not to be kept: keys, people, a table, and what is too old."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial

from rhei_pipeline.model.forgetting import ForgetReport, Search
from rhei_pipeline.model.retention import ExpiredHistory
from rhei_pipeline.model.schema import Table
from rhei_pipeline.model.upkeep import DropReport
from rhei_pipeline.sync.context import PipelineContext
from rhei_pipeline.sync.forgetting import KeysToForget, forget_keys, keys_of, refuse_present
from rhei_pipeline.sync.kept_history import Dropping, drop_table, find_droppable
from rhei_pipeline.sync.leaving import LeavingTables
from rhei_pipeline.sync.people import PersonSearch
from rhei_pipeline.sync.repair_keys import Key
from rhei_pipeline.sync.retention import BoundsOf, expire


class Removals:
    """Removes rows and tables from the mirror of one pipeline.

    Args:
        context: What the pipeline works on.
        sync: Applies all that is pending.
        leaving: Ends the capture of tables.
    """

    def __init__(
        self, context: PipelineContext, sync: Callable[[], object], leaving: LeavingTables
    ) -> None:
        self._context, self._sync, self._leaving = context, sync, leaving
        self._lock, self._parts = context.lock, context.parts
        self._source, self._mirror = context.source, context.mirror

    def drop_table(
        self, name: str, keep_as: str | None = None, *, discard_history: bool = False
    ) -> DropReport:
        """Drop a table of the mirror, or set it aside; one that is declared is copied again.

        Raises:
            SchemaError: It is not in the mirror; it has history, and neither was said; or the name
                to keep it as is taken.
        """
        registry, watch = self._context.registry, self._context.watch
        with self._lock:
            table = find_droppable(name, self._mirror, registry)
            if not table.schema.columns:  # of which nothing is in place: a copy is under way
                table = self._parts.tables.get(table.name, table)
            going = Dropping(table, keep_as, discard_history)
            report = drop_table(going, self._mirror, registry, watch.declared)
            watch.forget(table.name)
            self._leaving.end_unless_followed(table.name)
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
            self._sync()
            table = self._to_forget_in(name)
            keys = keys_of(given, table)
            if table.name in self._parts.tables:
                refuse_present(table, keys, self._source)
                # What was made of the keys before they went is applied, and so comes no more.
                self._sync()
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
                self._sync()
                person.look(self._mirror)
            for name, keys in person.found.items():
                table = self._to_forget_in(name)
                # Before a sync, the row that another refers to may be somebody else's by now.
                is_known = not (dry_run and person.is_referred(name))
                if table.name in self._parts.tables and is_known:
                    refuse_present(table, keys, self._source, partial(person.is_theirs, name))
            if not dry_run:
                self._sync()
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
                    now = datetime.now(UTC)
                    self._context.registry.note_forgotten(each.table, report.keys, now)
        return reports

    def _to_forget_in(self, name: str) -> Table:
        left_out = self._parts.left_out.errors.get(name)
        if left_out is not None:
            raise left_out  # whether the source has a key cannot be asked
        return self._context.mirrored(name)

    def expire(self, bounds_of: BoundsOf) -> tuple[ExpiredHistory, ...]:
        """Remove what is not to be kept of the past of all tables that are followed.

        Raises:
            SchemaError: The mirror cannot remove versions.
        """
        with self._lock:
            here = datetime.now(UTC)
            tables = self._parts.tables.values()
            return expire(tables, bounds_of, self._source, self._mirror, here)
