"""The meaning of a piece of SQL on both sides: its text for the mirror, its kind, its type."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from rhei_pipeline.model.schema import Column
from rhei_pipeline.model.semantics import NUMERIC, EnumLabels, Kind, MirroredTable, Nested


class StaysWithSourceError(Exception):
    """The query stays with the source; the message is the reason shown to users."""


class UnsteadyError(StaysWithSourceError):
    """The order in which reals are added might decide; where all are whole numbers, it does not."""


@dataclass(frozen=True, slots=True)
class Typed:
    """An expression in the mirror's SQL.

    Attributes:
        type: The Arrow type of both sides' answers.
        column: The mirrored column that it returns unchanged.
        aggregate: Whether it aggregates rows.
        loose: Columns that it reads outside of aggregates.
        inexact: Whether its last digits depend on the order of summation.
        collated: Whether the source orders it by a collation other than by its bytes.
        text: The literal's own text, where it is one.
        steady: Whether its last digits are all that depends on that order, also after arithmetic.
        digits: Whether it is a text of digits alone.
        whole: Of an inexact number, the mirror's condition for it to be exact after all: that only
            whole numbers were added. None where nothing tells.
        enum: The enum whose label it is.
        document: Whether it is a whole document of PostgreSQL's jsonb.
        elements: How the elements behave, where it is an array that the mirror has as a list.
        nested: What parts it has, where it is a map, a composite or a range.
    """

    sql: str
    kind: Kind
    type: pa.DataType
    column: Column | None = None
    aggregate: bool = False
    loose: frozenset[str] = frozenset()
    inexact: bool = False
    collated: bool = False
    text: str | None = None
    steady: bool = False
    digits: bool = False
    whole: str | None = None
    enum: EnumLabels | None = None
    document: bool = False
    elements: Kind | None = None
    nested: Nested | None = None


def derived(sql: str, kind: Kind, kept: pa.DataType, *parts: Typed, **others: Any) -> Typed:  # noqa: ANN401
    """Return an expression made of parts, with what it inherits from them."""
    inherited: dict[str, Any] = {
        "aggregate": any(part.aggregate for part in parts),
        "loose": frozenset().union(*(part.loose for part in parts)),
        "inexact": any(part.inexact for part in parts) and kind in NUMERIC,
        "collated": any(part.collated for part in parts),
    }
    return Typed(sql, kind, kept, **{**inherited, **others})


def whole_of(*parts: Typed) -> str | None:
    """Return the mirror's condition for sums of reals among the parts to be exact, if one tells."""
    conditions = [part.whole for part in parts if part.inexact]
    known = [each for each in conditions if each is not None]
    return " and ".join(known) if known and len(known) == len(conditions) else None


@dataclass(frozen=True, slots=True)
class Catalog:
    """What a translation knows about dialects and tables.

    Attributes:
        source: The source's dialect: sqlite or postgres.
        mirror: The mirror's dialect: duckdb or datafusion.
        tables: The mirrored tables; lower-case name in SQLite, exact name in PostgreSQL.
        unqualified: Whether a PostgreSQL table's name without its schema means `public`.
        masked: The tables that only the mirror may show, in lower case, with and without schemas.
    """

    source: str
    mirror: str
    tables: Mapping[str, MirroredTable]
    unqualified: bool = True
    masked: frozenset[str] = frozenset()

    @property
    def exact_parts(self) -> bool:
        """Whether PostgreSQL's EXTRACT is numeric, and not a double."""
        return all(table.exact_parts for table in self.tables.values())

    def find(self, name: str, namespace: str) -> MirroredTable:
        """Return a table by the name a query gives it.

        Raises:
            StaysWithSourceError: The mirror has no such table.
        """
        found = self.named(name, namespace)
        if found is None:
            what = "a system table" if _is_system(name, namespace) else "not mirrored"
            raise StaysWithSourceError(f"table {name!r} is {what}")
        if found.doubt is not None:
            raise StaysWithSourceError(f"table {name!r} {found.doubt}")
        return found

    def named(self, name: str, namespace: str) -> MirroredTable | None:
        """Return the mirrored table that a name means in the source, if it means one."""
        if self.source == "sqlite":
            return self.tables.get(name.lower()) if namespace.lower() in {"", "main"} else None
        if not namespace and not self.unqualified:
            return None
        full = name if namespace in {"", "public"} else f"{namespace}.{name}"
        return self.tables.get(full)


def _is_system(name: str, namespace: str) -> bool:
    lower = name.lower()
    return lower.startswith(("sqlite_", "pragma_", "pg_")) or namespace.lower() in {
        "information_schema",
        "pg_catalog",
    }
