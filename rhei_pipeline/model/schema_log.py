"""The schema changes of the source that a mirror has followed, and what each cost."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any, Self

from rhei_pipeline.model.schema import (
    NOTHING_RENAMED,
    Column,
    FormerNames,
    Mode,
    SchemaDifference,
    Table,
    TableSchema,
    difference,
)
from rhei_pipeline.model.set_aside import others_by_now


@dataclass(frozen=True, slots=True)
class Followed:
    """How a schema change was followed.

    Attributes:
        at: The source's clock when the mirror had it.
        position: Where the table stood then.
        rows_read: Rows that were read again for it.
        seconds: What the whole sync took.
        former: The names that columns had which were renamed.
    """

    at: datetime
    position: int | None = None
    rows_read: int = 0
    seconds: float = 0.0
    former: FormerNames = field(default_factory=lambda: NOTHING_RENAMED)


@dataclass(frozen=True, slots=True)
class SchemaChange:
    """One schema change that a mirror has followed.

    Attributes:
        version: How often the table's schema has changed since it was first mirrored, plus one.
        what: What changed, in words.
        old, new: The columns that it concerns, before and after, each with its type.
        at, position, rows_read, seconds: See `Followed`.
    """

    table: str
    version: int
    what: str
    old: tuple[str, ...]
    new: tuple[str, ...]
    at: datetime
    position: int | None
    rows_read: int
    seconds: float
    shown = ("at", "table", "version", "what", "old", "new", "position", "rows_read", "seconds")

    @classmethod
    def between(
        cls, before: TableSchema, table: Table, version: int, followed: Followed
    ) -> Self | None:
        """Return the change of a table's schema; None where no column and no key differs."""
        after = table.schema
        found = difference(before, after, followed.former)
        if not found:
            return None
        touched = {c.name for c in (*found.retyped, *found.rewritten, *found.renamed)}
        touched |= {*found.former.values()}
        if found.key_changed:
            touched |= {*before.primary_key, *after.primary_key}
        return cls(
            after.name,
            version,
            found.describe(keeps_dropped=_keeps_dropped(table, found))
            + (" (former values are kept beside it)" if _keeps_former(before, table) else ""),
            _told(c for c in before.columns if c in found.dropped or c.name in touched),
            _told(c for c in after.columns if c in found.added or c.name in touched),
            followed.at,
            followed.position,
            followed.rows_read,
            round(followed.seconds, 3),
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {**asdict(self), "at": self.at.isoformat()}

    @classmethod
    def from_json(cls, form: Mapping[str, Any]) -> Self:
        """Read the output of `to_json`."""
        known = cls(**{**form, "at": datetime.fromisoformat(form["at"])})
        return replace(known, old=tuple(form["old"]), new=tuple(form["new"]))


def _keeps_dropped(table: Table, found: SchemaDifference) -> bool:
    """Return whether the mirror keeps them; another key ends those of a plain one."""
    return table.keeps_dropped and not (found.key_changed and table.mode is Mode.DESTRUCTIVE)


def _keeps_former(before: TableSchema, table: Table) -> bool:
    types = {column.name: column.type for column in before.columns}
    return table.mode is Mode.TEMPORAL and any(others_by_now(table.schema, types))


def _told(columns: Iterable[Column]) -> tuple[str, ...]:
    return tuple(f"{column.name} {column.type}" for column in columns)
