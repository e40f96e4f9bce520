"""Follows the source's schema: which tables there are, how they look, and capture of them.

What a migration leaves in the logs is applied before capture is installed again.
"""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from datetime import UTC, datetime

from rhei_pipeline.capabilities import changed_unseen, reading_together
from rhei_pipeline.errors import (
    MirrorDamagedError,
    PermanentError,
    SchemaError,
    TableBusyError,
)
from rhei_pipeline.model.blame import own_fault
from rhei_pipeline.model.reports import TableReport
from rhei_pipeline.model.schema import (
    Table,
    TableSchema,
    difference,
    refuse_reserved,
    spelled,
)
from rhei_pipeline.model.schema_log import Followed
from rhei_pipeline.protocols import ChangeSource, Mirror
from rhei_pipeline.sync.drain import find_pending, take_on_next_shapes
from rhei_pipeline.sync.kept_history import Declared, in_kept_mode
from rhei_pipeline.sync.naming import TakenNames, declared_twice, refuse_like_columns
from rhei_pipeline.sync.other_masks import drop_other_masks
from rhei_pipeline.sync.participants import Participants
from rhei_pipeline.sync.schema_policy import Said, SchemaPolicies, evolving
from rhei_pipeline.sync.schema_registry import Registry

_log = logging.getLogger(__name__)

#: How often in a row tables are refreshed while the schema changes; then that is given up for now.
ATTEMPTS = 5

#: Applies what is pending for tables at a schema version, and adds those that fail to the set;
#: None where the source has another version by now.
Apply = Callable[[Collection[Table], int, set[str] | None], dict[str, TableReport] | None]


class SchemaWatch:
    """Keeps the tables that take part as the source has them.

    Args:
        find: Returns the tables to mirror, as the declaration or the source has them now.
        source, mirror, registry: Where changes come from, where they go, what they looked like.
        parts: The tables that take part, and those that are left out; kept up to date.
        apply: One sync cycle for some tables.
        said: What is said of a table.

    Attributes:
        declared: The tables to mirror, by the source's name for them.
        version: The source's schema version that the tables are described at; None where they
            have to be described again.
    """

    def __init__(  # noqa: PLR0913, PLR0917  (what it works with, each with its name)
        self,
        find: Callable[[], Collection[Declared]],
        source: ChangeSource,
        mirror: Mirror,
        registry: Registry,
        parts: Participants,
        apply: Apply,
        said: Said,
    ) -> None:
        self.declared: dict[str, Declared] = {}
        self.version: int | None = None
        self._find = find
        self._found: dict[str, str] = {}
        self._unclear: dict[str, SchemaError] = {}
        self._undescribed: set[str] = set()
        self._due: set[str] = set()
        self._busy: dict[str, TableBusyError] = {}  # in this round, and waited for in vain
        self._drained: list[TableReport] = []
        self._uncaptured: tuple[object, set[str]] = (None, set())
        self._source = source
        self._mirror = mirror
        self._registry = registry
        self._parts = parts
        self._tables, self._left_out, self._blame = parts.tables, parts.left_out, parts.blame
        self._apply = apply
        #: What becomes of schema changes that are not simply followed.
        self.policies = SchemaPolicies(source, said)

    def keep_up(self) -> None:
        """Look at the source's schema again if it may have changed, and mend what it broke.

        Until it stays as it is: installing capture changes it, and so may others meanwhile.
        """
        for _ in range(ATTEMPTS):
            version = self._parts.without_failing((), lambda _: self._source.schema_version())
            if self._discover():
                version = self._source.schema_version()  # with those that were taken in
            if version == self.version and not self._is_mended():
                return
            if self._drain(version):
                self._refresh(version)

    def try_again(self) -> None:
        """Take in again what failed when it was captured, read or applied last.

        What others keep busy is waited for once from here to the next time.
        """
        if self._left_out.asks_for_refresh:
            self.refresh_next_time()  # a file may have been restored since, or a log be readable
            return
        self._busy.clear()
        failed = self._left_out.failed & self.declared.keys()
        with reading_together(self._source, failed) if failed else nullcontext():
            for name in failed:
                self.take_in(name)

    def install(self, table: Table) -> None:
        """Install capture of a table, or mend what is missing of it."""
        self._source.install(table, self._mirror.ledger().furthest(table.name))

    def add(self, declared: Declared) -> str:
        """Capture one more table from now on; return the source's name for it.

        Raises:
            PermanentError: It cannot be mirrored as it stands; says the way out.
        """
        schema = self._source.describe(declared.name)
        in_kept_mode(schema, declared, self._mirror.tables())
        self._found |= {declared.name: schema.name, schema.name: schema.name}
        known = self.declared.get(schema.name)
        own = declared.mirror_name or (known.mirror_name if known else "")
        self._declare(replace(declared, name=schema.name, mirror_name=own))
        self.keep_up()
        return schema.name

    def leave(self, name: str) -> None:
        """Follow a table no more that nobody finds again."""
        del self.declared[name]
        self._found = {found: own for found, own in self._found.items() if own != name}
        self._undescribed.discard(name)
        self._unclear.pop(name, None)
        self._left_out.take_in(name)
        self.forget(name)

    def forget(self, name: str) -> None:
        """Forget a table that the mirror has no more; one that is declared is found again."""
        self._tables.pop(name, None)
        self._parts.generation += 1
        self.refresh_next_time()

    def refresh_next_time(self) -> None:
        """Describe every table again the next time, though the source's version is the same."""
        self.version = None

    def take_in(self, name: str) -> None:
        """Let a table take part again that was left out, unless it still cannot be captured."""
        self._left_out.take_in(name)
        standing = self._mirror.tables()
        self._refresh_table(self.declared[name], standing, self._names(standing))

    def take_drained(self) -> list[TableReport]:
        """Return, once, what was applied before capture was installed again."""
        drained, self._drained = self._drained, []
        return drained

    def _discover(self) -> bool:
        """Take in the tables that are to be mirrored and are not yet; return whether there are."""
        found = self._find()
        if all(declared.name in self._found for declared in found):
            return False
        spellings = Counter(declared.name for declared in found)
        news = [name for name in spellings if name not in self._found]
        with reading_together(self._source, news):
            for declared in found:
                if declared.name in self._found:
                    continue
                name = self._found[declared.name] = self._name_of(declared)
                if name in self.declared or spellings[declared.name] > 1:
                    self._unclear[name] = declared_twice(name)
                self._declare(replace(declared, name=name))
        return True

    def _declare(self, declared: Declared) -> None:
        self.declared[declared.name] = declared
        self.refresh_next_time()

    def _name_of(self, declared: Declared) -> str:
        """Return a table's name as the source has it; as declared where it cannot be described."""
        try:
            with self._blame.of(declared.name):
                return self._source.describe(declared.name).name
        except Exception as error:
            if own_fault(error, self._blame.table) is None:
                raise
            return declared.name

    def _refresh(self, version: int) -> None:
        self._left_out.clear()
        self._parts.generation += 1
        standing = self._mirror.tables()
        names = self._names(standing)
        wanted = [d for d in self.declared.values() if d.name not in self._left_out.undrained]
        with reading_together(self._source, [declared.name for declared in wanted]):
            for declared in wanted:
                self._refresh_table(declared, standing, names)
        # Before a position is recorded at which the source has other columns that are not mirrored.
        tables = self._tables.values()
        self._registry.save(*(t for t in tables if self._registry.table(t.name) == t))
        self._registry.note_due(self._due)
        self._due.clear()
        self.version = version

    def _is_mended(self) -> bool:
        """Return whether a table can be described again: a source's version tells of the others."""
        for name in self._undescribed:
            with suppress(Exception):
                self._source.describe(name)
                return True
        return False

    def _drain(self, version: int) -> bool:
        """Apply what logs of images still hold, before they have to be made again.

        False where the source was migrated meanwhile: nothing was applied then. A table whose log
        could not be read waits, so that nothing of it is lost, until it can or is copied again.
        """
        recorded = ((of, self._registry.table(name)) for name, of in self.declared.items())
        found = [replace(table, dropped=of.dropped) for of, table in recorded if table is not None]
        known = list({table.name: table for table in found}.values())
        # What a table in quarantine has in its log waits there, on both sides of the change.
        held = self.policies.held(known, self.declared)
        known = [table for table in known if table.name not in held]
        failing: set[str] = set()
        try:
            pending = self._parts.without_failing(known, self._find_pending, failing)
            reports = self._apply(pending, version, failing) if pending else {}
        except MirrorDamagedError:
            return True  # every table is about to be left out with this error
        self._left_out.undrained = failing
        self._drained += (reports or {}).values()
        if reports is not None and self._take_on_next_shapes(
            [t for t in pending if t.name in reports]
        ):
            return self._drain(self._source.schema_version())
        return reports is not None

    def _take_on_next_shapes(self, tables: Sequence[Table]) -> bool:
        """Give histories the shape in which their logs go on; return whether more is to be read."""
        tables = evolving(tables, self.declared)
        if not tables:
            return False

        taken = self._parts.without_failing(
            tables,
            lambda rest: take_on_next_shapes(
                rest, self._source, self._mirror, self._blame, self._owe
            ),
            self._left_out.undrained,
        )
        marks, now = self._mirror.ledger().watermarks, datetime.now(UTC)

        def followed(name: str) -> Followed:
            mark = marks.get(name)
            return Followed(now, None if mark is None else mark.position.order)

        self._registry.save(*taken, followed=followed)
        return bool(taken)

    def _find_pending(self, tables: Collection[Table]) -> list[Table]:
        with reading_together(self._source, [table.name for table in tables]):
            broken = set[str]()
            found = find_pending(tables, self._source, self._mirror, self._blame, broken, self._owe)
            self._due |= broken
            return found

    def _owe(self, table: Table) -> None:
        """Note that a table has to be copied: what is read in another shape is not the whole."""
        self._registry.note_owing([table.name], owe=True)

    def _refresh_table(
        self, declared: Declared, standing: Mapping[str, Table], names: TakenNames
    ) -> None:
        """Install capture for the table as it is now; one that cannot be captured is left out."""
        is_described = False
        try:
            table = self._wanted(declared, standing, names)
            is_described = True
            known = self._registry.table(table.name)
            with self._blame.of(declared.name):
                table = self.policies.settled(declared, known, table)
            with self._blame.of(declared.name):
                self._install_unless_busy(table)
                table = self._as_installed(table)
        except Exception as error:
            fault = error if isinstance(error, PermanentError) else own_fault(error, declared.name)
            if fault is None:
                raise
            self._parts.drop(declared.name, fault, failed=is_described)
            return
        if table.name != declared.name:
            # It was not there, or had another spelling, when its name was looked up.
            del self.declared[declared.name]
            self._tables.pop(declared.name, None)
            self.declared.setdefault(table.name, replace(declared, name=table.name))
        is_news = self._tables.get(table.name) != table
        if is_news and known is not None and known.schema != table.schema:
            found = difference(known.schema, table.schema)
            changes = found.describe()
            if found.added and found.dropped:
                changes += ", or renamed columns"  # the log tells, which is read later
            if known.name != table.name:
                changes = f"called it {known.name!r} before"
            _log.warning("table %r: its source %s, and its mirror follows", table.name, changes)
            self._due.add(known.name)
        self._tables[table.name] = table
        names.add(table)

    def _install_unless_busy(self, table: Table) -> None:
        busy = self._busy.get(table.name)
        if busy is not None:
            raise TableBusyError(busy.message, hint=busy.hint)
        try:
            self.install(table)
        except TableBusyError as error:
            self._busy[table.name] = error
            raise

    def as_in_source(self, name: str) -> Table | None:
        """Return a declared table as its source has it; None where it cannot be read."""
        declared = self.declared.get(spelled(name, self.declared))
        with suppress(PermanentError):
            if declared is None:
                return None
            schema = self._source.describe(declared.name)
            return Table(replace(schema, mirror_name=declared.mirror_name), declared.mode)
        return None

    def uncaptured(self, tables: Collection[Table]) -> set[str]:
        """Return which tables have the columns that they had, and not the capture all the time.

        Each is read for that, once for each version of the schema that no sync has met yet.
        """
        version = self._source.schema_version()
        if version == self.version:
            return set()
        asked = version, tuple(tables)
        if self._uncaptured[0] != asked:
            self._uncaptured = asked, self._find_uncaptured(tables)
        return self._uncaptured[1]

    def _find_uncaptured(self, tables: Collection[Table]) -> set[str]:
        with reading_together(self._source, [table.name for table in tables]):
            found, unseen = set[str](), changed_unseen(self._source)
            for table in tables:
                with self._blame.of(table.name), suppress(SchemaError):
                    own = replace(
                        self._source.describe(table.name), mirror_name=table.schema.mirror_name
                    )
                    is_whole = table.name not in unseen and self._source.is_installed(table)
                    if own == table.schema and not is_whole:
                        found.add(table.name)
            return found

    def _as_installed(self, table: Table) -> Table:
        """Return a table with what its source knows of its columns once capture is installed."""
        now = self._source.describe(table.name)
        own = replace(now, mirror_name=table.schema.mirror_name)
        return replace(table, schema=own) if own == table.schema else table

    def _names(self, standing: Mapping[str, Table]) -> TakenNames:
        return TakenNames(self._tables, standing, self.declared, mirror=self._mirror)

    def _wanted(
        self, declared: Declared, standing: Mapping[str, Table], names: TakenNames
    ) -> Table:
        """Return a table as it is to be mirrored now."""
        if declared.name in self._unclear:
            raise self._unclear[declared.name]
        schema = replace(self._describe(declared.name), mirror_name=declared.mirror_name)
        refuse_reserved(schema.mirror_relation, ())
        if self._mirror.folds_names:
            refuse_like_columns(schema)
        names.refuse_taken(schema)
        table = in_kept_mode(schema, declared, standing)
        drop_other_masks(table, standing, self._mirror, self._registry)
        return table

    def _describe(self, name: str) -> TableSchema:
        self._undescribed.add(name)
        with self._blame.of(name):
            schema = self._source.describe(name)
        self._undescribed.discard(name)
        return schema
