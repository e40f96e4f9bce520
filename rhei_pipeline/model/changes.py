"""The values that capture returns: change events in Arrow, positions, dead letters."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import partial
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from rhei_pipeline.model.plain_values import instant_of, plain_rows, plain_value
from rhei_pipeline.model.schema import TableSchema
from rhei_pipeline.model.type_names import INSTANT

#: Where the event stands in the source's order.
SEQUENCE = "_rhei_sequence"
#: When the source's clock says the change was made.
CHANGED_AT = "_rhei_changed_at"
#: True: the row is as the columns say. False: the key has no row (a tombstone; values are null).
LIVE = "_rhei_live"

EVENT_FIELDS = (
    pa.field(SEQUENCE, pa.int64(), nullable=False),
    pa.field(CHANGED_AT, INSTANT, nullable=False),
    pa.field(LIVE, pa.bool_(), nullable=False),
)


class Operation(StrEnum):
    """The operation that made a version; `D` marks a version that a delete ended."""

    INSERT = "I"
    UPDATE = "U"
    DELETE = "D"


def event_schema(table: TableSchema) -> pa.Schema:
    """Return the schema of a table's change events: our three fields, then its columns."""
    return pa.schema([*EVENT_FIELDS, *table.arrow])


@dataclass(frozen=True, slots=True)
class Position:
    """A position in the source's order, for one table.

    Attributes:
        order: Grows with the source's order; a watermark's order never goes back.
        proof: What the source must still show at this position. A source with another proof is
            not the one that was read (a restored backup), so the position is not valid there.
    """

    order: int
    proof: str


#: A dead letter among those of its table: the row's key as text, and the column.
LetterName = tuple[str, str]
#: What dead letters have in common: their column, and what was found and expected there.
LetterReason = tuple[str, str]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A row that cannot be mirrored: its key, column and reason, but never the value itself.

    Attributes:
        key: The primary key as a JSON object; bytes appear as `{"hex": ...}`.
        column: The column whose value does not fit.
        reason: What was found and what was expected, as storage classes and types.
        captured_at: The source's clock when the row was read.
    """

    table: str
    key: str
    column: str
    reason: str
    captured_at: datetime

    @property
    def name(self) -> LetterName:
        """Identifies it among those of its table."""
        return self.key, self.column

    def to_json(self) -> list[str]:
        """Return the form that is stored beside rows."""
        return [self.table, self.key, self.column, self.reason, self.captured_at.isoformat()]

    @classmethod
    def from_json(cls, form: Sequence[str]) -> "DeadLetter":
        """Read that form."""
        table, key, column, reason, at = form
        return cls(table, key, column, reason, datetime.fromisoformat(at))


def key_text(key: Mapping[str, object]) -> str:
    """Return a key as a JSON object; equal keys always have equal texts."""
    parts = {name: _one_zero(part) for name, part in key.items()}
    return json.dumps(parts, ensure_ascii=False, default=_json_part)


def _one_zero(value: object) -> object:
    """Return 0.0 for -0.0: both are one key."""
    return value + 0.0 if isinstance(value, float) else value


def _json_part(value: object) -> object:
    return {"hex": value.hex()} if isinstance(value, bytes) else str(value)


def read_keys(texts: Iterable[str], schema: TableSchema, *, in_words: bool = False) -> pa.Table:
    """Read keys that `key_text` wrote, with the key's Arrow schema.

    Keys that no row of the table can have are left out: a part is null or of another type.
    `in_words`: A person wrote them, who may write a number or a time in several ways.
    """
    read = partial(_read_key, schema=schema.arrow_key, in_words=in_words)
    keys = [read(json.loads(text)) for text in texts]
    columns = zip(*(key for key in keys if key is not None), strict=True)
    kinds = [field.type for field in schema.arrow_key]
    arrays = [pa.array(parts, kind) for parts, kind in zip(columns, kinds, strict=False)]
    return pa.table(arrays, schema=schema.arrow_key) if arrays else schema.arrow_key.empty_table()


def _read_key(
    parts: dict[str, Any], *, schema: pa.Schema, in_words: bool
) -> list[pa.Scalar] | None:
    try:
        given = {field.name: _whole(parts[field.name], field.type) for field in schema}
        key = [_typed(given[field.name], field.type) for field in schema]
    except (KeyError, OverflowError, TypeError, ValueError, pa.ArrowException):
        return None
    if not all(part.is_valid for part in key):
        return None
    # What reads as another key, such as the text of a number, is not that one in the source.
    written = key_text(dict(zip(schema.names, map(plain_value, key), strict=True)))
    return key if in_words or written == key_text(given) else None


def _whole(part: object, kind: pa.DataType) -> object:
    """Return a part as it is, but a whole number as an integer; Arrow would cut any number."""
    if not isinstance(part, float) or pa.types.is_floating(kind):
        return part
    if not part.is_integer():
        raise ValueError(f"a key of {kind} has no fractions")
    return int(part)


def _typed(part: object, kind: pa.DataType) -> pa.Scalar:
    if isinstance(part, Mapping):
        part = bytes.fromhex(part["hex"])
        if not pa.types.is_binary(kind):
            raise ValueError(f"a key of {kind} has no bytes")
    if isinstance(part, int) and pa.types.is_temporal(kind):
        raise ValueError(f"a key of {kind} is no number")
    if not isinstance(part, str) or pa.types.is_string(kind):
        return pa.scalar(part, kind)
    if pa.types.is_temporal(kind):
        with suppress(pa.ArrowInvalid):
            return pa.scalar(part).cast(kind)
        return instant_of(part, kind)
    return pa.scalar(part).cast(kind)


def without_keys(keys: pa.Table, texts: Collection[str]) -> pa.Table:
    """Return the keys without those that these texts name."""
    if not texts or not keys.num_rows:
        return keys
    return keys.filter(pa.array([key_text(key) not in texts for key in plain_rows(keys)]))


@dataclass(frozen=True, slots=True)
class ChangeBatch:
    """Consecutive changes of one table.

    Attributes:
        events: In the source's order, with the schema `event_schema` gives.
        count: How many events of the source these stand for (touches of one key count each).
        net: True when `events` holds at most one event for each key.
        rejected: Dead letters met while reading; their rows are not among `events`.
        resolved: Keys, as text, whose dead letters are resolved: of rows without a key that are
            gone, and of rows that fit again by the end of the batch. With a column where another
            column of the row still does not fit, else with None.
        unchanged: By column, a mask of the events whose value the source did not send because
            the change left it as it was.
        former_keys: With `unchanged`: the key that each event's row had before.
        truncated_at: When all of the table's rows were removed by TRUNCATE. That is one event,
            and `events` is empty until the mirror's keys are filled in.
        absent: Columns that the table did not have yet when these changes were made.
        seen_at: When the source was read, if rows carry their own timestamps: an event that is
            older than the mirror's version of its key gets this time instead.
        whole_transactions: Events that share an instant are of one transaction, and an event of
            another transaction never shares it.
    """

    events: pa.Table
    count: int
    net: bool = False
    rejected: tuple[DeadLetter, ...] = ()
    unchanged: Mapping[str, pa.Array] = field(default_factory=lambda: MappingProxyType({}))
    former_keys: pa.Table | None = None
    truncated_at: datetime | None = None
    seen_at: datetime | None = None
    whole_transactions: bool = False
    resolved: tuple[tuple[str, str | None], ...] = ()
    absent: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Rows of one table from one snapshot, in key order.

    Attributes:
        rows: With the table's own Arrow schema.
        resume: Opaque text from which a later snapshot continues after the last row.
    """

    rows: pa.Table
    resume: str
    rejected: tuple[DeadLetter, ...] = ()


@dataclass(frozen=True, slots=True)
class NetChanges:
    """One net change for each key.

    Attributes:
        upserts: Current rows, with the table's own Arrow schema.
        tombstones: Keys of deleted rows, with the key's Arrow schema.
    """

    upserts: pa.Table
    tombstones: pa.Table

    @property
    def keys(self) -> pa.Table:
        """All keys that changed."""
        names = self.tombstones.column_names
        return pa.concat_tables([self.upserts.select(names), self.tombstones])


@dataclass(frozen=True, slots=True)
class Versions:
    """The changes of one batch of events to a temporal table.

    Attributes:
        closings: Open versions that end: the mirror's own locator column, `_rhei_valid_from`,
            `_rhei_valid_to`, `_rhei_deleted` (true when no version follows), and the key.
        openings: Versions to append, with the mirror's columns; ended ones carry `_rhei_valid_to`.
        inserted, updated, deleted: Rows that really changed.
    """

    closings: pa.Table
    openings: pa.Table
    inserted: int
    updated: int
    deleted: int


@dataclass(frozen=True, slots=True)
class Counts:
    """Rows that really changed in the mirror."""

    inserted: int = 0
    updated: int = 0
    deleted: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.inserted + other.inserted,
            self.updated + other.updated,
            self.deleted + other.deleted,
        )

    @property
    def total(self) -> int:
        """All rows that really changed."""
        return self.inserted + self.updated + self.deleted


@dataclass(frozen=True, slots=True)
class Comparison:
    """The differences of a table's mirror from its source, as keys.

    Attributes:
        missing: In the source and not in the mirror.
        extra: In the mirror and not in the source.
        different: In both, with other values.
        duplicate: In the mirror more than once.
    """

    missing: pa.Table
    extra: pa.Table
    different: pa.Table
    duplicate: pa.Table

    @property
    def equal(self) -> bool:
        """Whether there is no difference."""
        found = (self.missing, self.extra, self.different, self.duplicate)
        return not any(keys.num_rows for keys in found)
