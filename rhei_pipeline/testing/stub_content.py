"""What a stub mirror holds: tables as dicts by key, histories as lists of versions."""

import math
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from rhei_pipeline.changes.scd2 import refuse_lost_history, refuse_unknown_key
from rhei_pipeline.mirrors.exact_casts import InexactError, cast_exactly, past_does_not_fit
from rhei_pipeline.mirrors.key_change import refuse_unfit_key
from rhei_pipeline.model.changes import Counts, DeadLetter, LetterName, NetChanges
from rhei_pipeline.model.progress import CopyProgress, Ledger, Watermark
from rhei_pipeline.model.schema import HISTORY_FIELDS, VALID_TO, Mode, Table, TableSchema
from rhei_pipeline.model.set_aside import is_set_aside, names_aside, others_by_now
from rhei_pipeline.model.type_names import INSTANT
from rhei_pipeline.testing.oracle import exact

Key = tuple[Any, ...]
Named = dict[str, Any]
_LETTER = pa.schema(
    [
        ("table_name", pa.string()),
        ("key", pa.string()),
        ("column_name", pa.string()),
        ("reason", pa.string()),
        ("captured_at", INSTANT),
        ("resolved_at", INSTANT),
    ]
)


@dataclass
class StubTable:
    """A table of the mirror.

    Attributes:
        fields: The types of all columns it ever had, without those of its history.
        rows: In the order in which they came; of a temporal table, its versions.
        begins_at, left: What is recorded of a temporal table's past; see `Past`.
        set_aside: It follows no table of the source.
    """

    table: Table
    fields: dict[str, pa.DataType]
    rows: list[Named]
    begins_at: datetime | None = None
    left: dict[str, datetime] = field(default_factory=dict)
    set_aside: bool = False

    @property
    def is_temporal(self) -> bool:
        """Whether it keeps every version."""
        return self.table.mode is Mode.TEMPORAL

    @property
    def present(self) -> list[Named]:
        """The rows that are valid now."""
        return [row for row in self.rows if not self.is_temporal or row[VALID_TO] is None]

    @property
    def arrow(self) -> pa.Table:
        """All rows, or versions, with every column it ever had."""
        history = HISTORY_FIELDS if self.is_temporal else ()
        fields = [pa.field(name, kind) for name, kind in self.fields.items()]
        return pa.Table.from_pylist(self.rows, schema=pa.schema([*fields, *history]))


@dataclass
class StubContent:
    """All that a mirror holds."""

    tables: dict[str, StubTable] = field(default_factory=dict)
    copies: dict[str, dict[Key, Named]] = field(default_factory=dict)
    watermarks: dict[str, Watermark] = field(default_factory=dict)
    progress: dict[str, CopyProgress] = field(default_factory=dict)
    letters: dict[tuple[str, LetterName], tuple[DeadLetter, datetime | None]] = field(
        default_factory=dict
    )
    snapshots: dict[str, list[Named]] = field(default_factory=dict)
    snapshot_types: dict[str, dict[str, pa.DataType]] = field(default_factory=dict)

    def copied(self) -> "StubContent":
        """Return the same, to be changed apart from this one; rows are replaced, not changed."""
        made = StubContent(**{name: dict(value) for name, value in vars(self).items()})
        made.tables = {
            name: replace(
                each, rows=list(each.rows), fields=dict(each.fields), left=dict(each.left)
            )
            for name, each in self.tables.items()
        }
        made.copies = {name: dict(rows) for name, rows in self.copies.items()}
        made.snapshots = {name: list(rows) for name, rows in self.snapshots.items()}
        made.snapshot_types = deepcopy(self.snapshot_types)
        return made

    def ledger(self) -> Ledger:
        """Return the progress that is recorded."""
        marks, copies = dict(self.watermarks), dict(self.progress)
        return Ledger(MappingProxyType(marks), MappingProxyType(copies))


def take_on_shape(standing: StubTable, table: Table, at: datetime) -> None:
    """Give a history the columns and the key of a schema, if that changes nothing of its past."""
    schema, columns = table.schema, {column.name: column for column in table.schema.columns}
    refuse_lost_history(table)
    refuse_unknown_key(schema, standing.fields)
    if standing.table.schema.primary_key != schema.primary_key:
        refuse_unfit_key(schema, standing.table.schema.primary_key, standing.arrow)
    _set_aside(standing, schema)
    whole = standing.arrow
    for name, column in columns.items():
        old = standing.fields.get(name)
        if old is None:
            standing.rows = [{name: None} | row for row in standing.rows]
        elif not old.equals(column.type):
            try:
                cast = cast_exactly(whole[name].combine_chunks(), column.type).to_pylist()
            except InexactError as error:
                raise past_does_not_fit(table.name, name, old, column.type) from error
            standing.rows = [
                row | {name: value} for row, value in zip(standing.rows, cast, strict=True)
            ]
        standing.fields[name] = column.type
    if not table.keeps_dropped:
        held = standing.fields.items()
        standing.fields = {n: k for n, k in held if n in columns or is_set_aside(n, columns)}
    gone = standing.fields.keys() - columns.keys()
    standing.left = {name: standing.left.get(name, at) for name in gone}
    standing.table = table


def _set_aside(standing: StubTable, schema: TableSchema) -> None:
    others = others_by_now(schema, standing.fields)
    filled = [name for name in others if any(row[name] is not None for row in standing.rows)]
    names = {old: new for new, old in names_aside(filled, standing.fields).items()}
    standing.fields = {names.get(name, name): kind for name, kind in standing.fields.items()}
    standing.rows = [{names.get(n, n): value for n, value in r.items()} for r in standing.rows]


def merge_into(rows: dict[Key, Named], schema: TableSchema, changes: NetChanges) -> Counts:
    """Apply net changes to rows by key."""
    inserted = updated = deleted = 0
    for row in changes.upserts.to_pylist():
        key = key_of(row, schema)
        known = rows.get(key)
        if differs(known, row, schema):
            inserted, updated = inserted + (known is None), updated + (known is not None)
            rows[key] = row
    for row in changes.tombstones.to_pylist():
        deleted += rows.pop(key_of(row, schema), None) is not None
    return Counts(inserted, updated, deleted)


def differs(held: Named | None, row: Named, schema: TableSchema) -> bool:
    """Return whether there is no such row, or one with other values, bit for bit."""
    if held is None:
        return True
    return exact(held[name] for name in schema.names) != exact(row[name] for name in schema.names)


def by_key(rows: Iterable[Named], schema: TableSchema) -> dict[Key, Named]:
    """Return rows by their keys."""
    return {key_of(row, schema): row for row in rows}


def key_of(row: Named, schema: TableSchema) -> Key:
    """Return a row's key: 0.0 and -0.0 are one, and so are all NaNs."""
    parts = (row[name] for name in schema.primary_key)
    return tuple("nan" if isinstance(p, float) and math.isnan(p) else p for p in parts)


def keys_table(rows: Iterable[Named], schema: TableSchema) -> pa.Table:
    """Return the keys of rows as Arrow."""
    keys = [{name: row[name] for name in schema.primary_key} for row in rows]
    return pa.Table.from_pylist(keys, schema=schema.arrow_key)


def rows_table(rows: Iterable[Named], schema: TableSchema) -> pa.Table:
    """Return rows as Arrow, with the columns of the schema."""
    chosen = [{name: row[name] for name in schema.names} for row in rows]
    return pa.Table.from_pylist(chosen, schema=schema.arrow)


def chosen_rows(rows: Mapping[Key, Named], keys: pa.Table, schema: TableSchema) -> pa.Table:
    """Return the rows of those keys."""
    asked = dict.fromkeys(key_of(row, schema) for row in keys.to_pylist())
    return rows_table([rows[key] for key in asked if key in rows], schema)


def letters_table(content: StubContent, wanted: Callable[[str, datetime | None], bool]) -> pa.Table:
    """Return the dead letters that are wanted by their table and when they were resolved."""
    found = [
        {
            "table_name": letter.table,
            "key": letter.key,
            "column_name": letter.column,
            "reason": letter.reason,
            "captured_at": letter.captured_at,
            "resolved_at": at,
        }
        for letter, at in content.letters.values()
        if wanted(letter.table, at)
    ]
    found.sort(key=lambda row: (row["captured_at"], row["table_name"], row["key"]))
    return pa.Table.from_pylist(found, schema=_LETTER)
