"""How the columns of a mirrored table behave in queries, beyond what their types say."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self

import pyarrow as pa

from rhei_pipeline.model.schema import Mode, TableSchema

#: A function of a DataFusion mirror: it ends the query where any row has a true argument, and
#: returns its argument else.
ONLY_SOURCE = "_rhei_only_source"
#: Another one: it returns a double that is finite, and ends the query where one is not.
FINITE = "_rhei_finite"
#: And one that returns the difference of two doubles, and ends the query where they nearly tie.
APART = "_rhei_apart"
#: And one that divides two decimals, given as text, as PostgreSQL does; its scale follows.
DIVIDED = "_rhei_divided_"
#: Digits behind the point of a quotient or an average: most room before it, or behind it.
QUOTIENT_SCALES = (20, 24)
#: How near two sums of reals may be before the order of rows may decide between them.
NEAR = 1e-9


class Translated(str):
    """A query that translation has written for the mirror; mirrors run it without a parser of ours.

    Attributes:
        relations: The tables it reads, in lower case and without their schemas.
    """

    relations: frozenset[str]

    __slots__ = ("relations",)

    def __new__(cls, sql: str, relations: Iterable[str]) -> Self:
        """Make one."""
        made = super().__new__(cls, sql)
        made.relations = frozenset(name.lower() for name in relations)
        return made


class Kind(StrEnum):
    """How values behave in operations; finer than their Arrow type where engines differ.

    NUMBER: numbers of SQLite that are integers in some rows and reals in others.
    DECIMAL: PostgreSQL's exact numeric.
    TRUTH: true or false; in SQLite the integers 1 and 0.
    ENUM: an enum of PostgreSQL, which the mirror keeps as its label, and so orders otherwise.
    UNKNOWN: a literal of PostgreSQL that takes the type of its context.
    OPAQUE: a value that the mirror stores in another form, or compares differently, than the
        source; it can be returned and counted, nothing else.
    """

    INT = "integer"
    REAL = "real"
    NUMBER = "number"
    DECIMAL = "numeric"
    TEXT = "text"
    UUID = "uuid"
    ENUM = "enum"
    BLOB = "blob"
    TRUTH = "boolean"
    DATE = "date"
    TIMESTAMP = "timestamp"
    INSTANT = "timestamptz"
    NULL = "null"
    UNKNOWN = "unknown"
    OPAQUE = "opaque"


NUMERIC = {Kind.INT, Kind.REAL, Kind.NUMBER, Kind.DECIMAL}
TEMPORAL = {Kind.DATE, Kind.TIMESTAMP, Kind.INSTANT}


@dataclass(frozen=True, slots=True)
class EnumLabels:
    """An enum: which one it is, and its labels."""

    oid: int
    labels: frozenset[str]


class Shape(StrEnum):
    """What a column of PostgreSQL's is that has parts, and no list and no JSON."""

    MAP = "map"
    COMPOSITE = "composite"
    RANGE = "range"


@dataclass(frozen=True, slots=True)
class NestedPart:
    """A field of a composite, or a bound of a range.

    Attributes:
        name: The field's name in the source.
        kept: Its name in the mirror.
        kind: How its values behave; OPAQUE where the mirror has it as another type.
        type: The Arrow type of both sides' answers.
        collated: Whether the source orders it otherwise than by bytes.
    """

    name: str
    kept: str
    kind: Kind
    type: pa.DataType
    collated: bool = False


@dataclass(frozen=True, slots=True)
class Nested:
    """A column with parts.

    Attributes:
        shape: What it is in the source.
        parts: The fields of a composite in order, the two bounds of a range, or what the values of
            a map are, as the mirror has them; empty where the mirror has a text alone.
    """

    shape: Shape
    parts: tuple[NestedPart, ...] = ()


@dataclass(frozen=True, slots=True)
class MirroredTable:
    """A table that both sides have, and how its columns behave.

    Attributes:
        kinds: How each column behaves, by name; a column left out is OPAQUE.
        collated: Columns of text that the source orders otherwise than by bytes.
        all_columns: All columns of the source's table, in its order.
        doubt: Why the source may show other rows of it than the mirror has.
        exact_parts: Whether its server's EXTRACT is numeric, and not a double.
        enums: The enums of columns, by name.
        documents: Columns of jsonb. Their texts are collated as texts of the database are.
        arrays: How the elements of arrays behave that are lists in the mirror, by name.
        nested: Maps, composites and ranges, by name.
    """

    schema: TableSchema
    mode: Mode
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    collated: frozenset[str] = frozenset()
    all_columns: tuple[str, ...] = ()
    doubt: str | None = None
    exact_parts: bool = True
    enums: Mapping[str, EnumLabels] = field(default_factory=dict)
    documents: frozenset[str] = frozenset()
    arrays: Mapping[str, Kind] = field(default_factory=dict)
    nested: Mapping[str, Nested] = field(default_factory=dict)
