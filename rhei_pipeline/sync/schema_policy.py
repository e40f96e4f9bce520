"""What is done about a schema change that is not simply to be followed."""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace

from rhei_pipeline.capabilities import reading_together, redeclare
from rhei_pipeline.errors import PermanentError, SchemaDriftError
from rhei_pipeline.model.polling import PollOptions
from rhei_pipeline.model.schema import (
    SchemaDifference,
    SchemaPolicy,
    Table,
    TableOptions,
    difference,
)
from rhei_pipeline.protocols import ChangeSource
from rhei_pipeline.sync.kept_history import Declared

_log = logging.getLogger(__name__)

#: What is said of a table: how its source reads it, and how it polls it.
Said = Callable[[str], tuple[TableOptions, PollOptions]]


def nothing_said(_name: str) -> tuple[TableOptions, PollOptions]:
    """Return what is said of a table of which nothing is (the default)."""
    return TableOptions(), PollOptions()


class SchemaPolicies:
    """Decides what becomes of tables whose schema changed.

    Args:
        source: Told to read fewer columns.
        said: What it was told of a table before.

    Attributes:
        frozen: The tables that go on with the columns that they had, and what was changed.
    """

    def __init__(self, source: ChangeSource, said: Said) -> None:
        self.frozen: dict[str, str] = {}
        self._source = source
        self._said = said

    def settled(self, declared: Declared, known: Table | None, found: Table) -> Table:
        """Return a table as it takes part: with its new schema, or with the columns that it had.

        Raises:
            SchemaDriftError: Somebody has to decide; says what changed.
        """
        if declared.policy is SchemaPolicy.EVOLVE or known is None:
            self.frozen.pop(found.name, None)
            return found
        # Another row filter is declared, and no change of the source.
        changed = replace(difference(known.schema, found.schema), refiltered=False)
        if not changed:  # or the source reads the columns alone that it had
            return found
        self.frozen.pop(found.name, None)
        if not _is_held(declared, changed):
            return self._narrowed(known, found, changed)
        raise SchemaDriftError(
            f"its source {changed.describe()}, and its schema changes are held back by"
            f" '{declared.policy}'; its mirror stays as it is",
            table=declared.name,
            hint="declare 'schema_changes: evolve' for it and sync, and its mirror follows; then"
            f" declare '{declared.policy}' again for the changes to come",
        )

    def held(self, tables: Collection[Table], declared: Mapping[str, Declared]) -> frozenset[str]:
        """Return the tables whose mirrors stay as they are, until somebody decides.

        Args:
            tables: As they were mirrored last.
            declared: What is declared, by the source's names.
        """
        asked = _asked(declared)
        doubtful = [table for table in tables if table.name in asked]
        with reading_together(self._source, [table.name for table in doubtful]):
            return frozenset(t.name for t in doubtful if self._is_held(declared[t.name], t))

    def _is_held(self, declared: Declared, known: Table) -> bool:
        with suppress(PermanentError):  # one that cannot be described is left out for that
            found = self._source.describe(known.name)
            changed = replace(difference(known.schema, found), refiltered=False)
            return bool(changed) and _is_held(declared, changed)
        return False

    def _narrowed(self, known: Table, found: Table, changed: SchemaDifference) -> Table:
        options, polling = self._said(found.name)
        columns = known.schema.names
        redeclare(self._source, found.name, replace(options, columns=columns), polling)
        own = found.schema.mirror_name
        schema = replace(self._source.describe(found.name), mirror_name=own)
        told = f"its source {changed.describe()}, and it goes on with the columns that it had"
        self.frozen[found.name] = told
        _log.warning("table %r: %s", found.name, told)
        return replace(found, schema=schema)


def evolving(tables: Iterable[Table], declared: Mapping[str, Declared]) -> list[Table]:
    """Return the tables that follow their schema changes without being asked."""
    asked = _asked(declared)
    return [table for table in tables if table.name not in asked]


def _asked(declared: Mapping[str, Declared]) -> set[str]:
    return {name for name, of in declared.items() if of.policy is not SchemaPolicy.EVOLVE}


def _is_held(declared: Declared, changed: SchemaDifference) -> bool:
    """Return whether a change is left to somebody; a frozen table can do without what was added."""
    only_added = changed == SchemaDifference(changed.added)
    return declared.policy is not SchemaPolicy.FREEZE or not only_added
