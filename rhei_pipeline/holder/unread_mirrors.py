"""What a query over several mirrors answers while some of them cannot be read."""

import re
from collections.abc import Collection, Sequence

from rhei_pipeline.errors import QueryError, RheiError
from rhei_pipeline.mirrors.joining import Part
from rhei_pipeline.query.named_tables import NamedTable, named_tables

#: How the engines say that there is no such table, or no such schema.
_UNKNOWN = re.compile(
    r"\b(table|schema|catalog)\b.*(not found|does not exist)|Circular reference to CTE",
    re.IGNORECASE,
)
#: The schema whose tables have the names of those that they were taken from.
_SNAPSHOTS = "snapshot"


class UnreadMirrors:
    """Mirrors that cannot be read, as a query over them and others takes them.

    A query that reads the tables of others is answered. One that reads theirs, or may do so, is
    told why they cannot be read.

    Args:
        why: Why each of them cannot be read.
        known: The names that a query has for the tables of the others.
        dialect: The SQL of the mirrors.
    """

    def __init__(
        self, why: Sequence[tuple[Part, RheiError]], known: Collection[str], dialect: str
    ) -> None:
        self._why = why
        self._known = frozenset(name.lower() for name in known)
        self._dialect = dialect

    def refuse_partial(self, sql: str) -> None:
        """Refuse an answer that may lack what they hold, as a list of all tables does.

        Raises:
            RheiError: Why one of them cannot be read.
        """
        if not self._why:
            return
        unknown = self._unknown(sql)
        if unknown is None or unknown:
            raise self._of(unknown or []) or self._why[0][1]

    def explained(self, error: QueryError, sql: str) -> RheiError:
        """Return the error for a query that the others refuse.

        A table that none of them knows may be one of theirs.
        """
        if not self._why or not _UNKNOWN.search(error.message):
            return error
        unknown = self._unknown(sql)
        if unknown is None:
            return self._why[0][1]
        if unknown and (meant := self._of(unknown)):
            return meant
        if unknown and any(part.schema is None for part, _ in self._why):
            error.hint = f"another mirror may have it, but cannot be read: {self._why[0][1]}"
        return error

    def _unknown(self, sql: str) -> list[NamedTable] | None:
        """Return the tables that a statement names and no other mirror has; None: not known."""
        named = named_tables(sql, self._dialect)
        return None if named is None else [each for each in named if not self._is_known(each)]

    def _is_known(self, table: NamedTable) -> bool:
        # A table of snapshots that another mirror has may be an older one, of a table of theirs.
        return not self._known.isdisjoint(_names(table))

    def _of(self, tables: Sequence[NamedTable]) -> RheiError | None:
        """Return why the mirror cannot be read that has one of these tables."""
        for part, why in self._why:
            if any(_may_have(part, table) for table in tables):
                return why
        return None


def _names(table: NamedTable) -> frozenset[str]:
    """Return the names that a table may have, or that of which it has snapshots."""
    return table.forms | ({table.name} if table.schema == _SNAPSHOTS else frozenset())


def _may_have(part: Part, table: NamedTable) -> bool:
    if part.schema is not None:
        return part.schema.lower() in {table.schema, table.catalog}
    return bool(table.name) and any(map(part.takes, _names(table)))
