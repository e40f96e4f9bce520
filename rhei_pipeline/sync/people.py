"""Finds a person's rows across tables, by the columns that a declaration names."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.changes.masks import MaskingKey, masked_rows
from rhei_pipeline.errors import QueryError, SchemaError
from rhei_pipeline.model.changes import read_keys
from rhei_pipeline.model.forgetting import Trace
from rhei_pipeline.model.schema import Column, Mode, Table, TableSchema, nearest
from rhei_pipeline.protocols import Mirror
from rhei_pipeline.sql.text import listed, mirror_table, quote
from rhei_pipeline.sync.repair_keys import Key, key_of

#: Values that are looked for by one query.
_AT_ONCE = 500
_SNAPSHOTS = "snapshot"


@dataclass(slots=True)
class PersonSearch:
    """Looks for a person in a mirror, as often as it is asked; what was found once is kept.

    Attributes:
        traces: How the person is found in each table.
        value: What names the person, as the source has it.
        key: The key of hashes.
        table: Returns a table of the mirror by its name.
    """

    traces: Sequence[Trace]
    value: Key
    key: MaskingKey
    table: Callable[[str], Table]
    found: dict[str, pa.Table] = field(default_factory=dict)

    def look(self, mirror: Mirror) -> None:
        """Find the keys of the person's rows, present and past."""
        for trace in self.traces:
            table = self.table(trace.table)
            wanted = self._wanted(trace, table)
            parts = [*_in_rows(trace, table, wanted, mirror), *_in_letters(trace, table, mirror)]
            own = [part.filter(pc.is_in(part[trace.column], wanted)) for part in parts]
            keys = [part.select(table.schema.primary_key) for part in own]
            shape = table.schema.arrow_key
            known = self.found.get(trace.table, shape.empty_table())
            every = pa.concat_tables([known, *(part.cast(shape) for part in keys)])
            self.found[trace.table] = every.group_by(shape.names).aggregate([]).select(shape.names)

    def _wanted(self, trace: Trace, table: Table) -> pa.Array:
        """Return the values of the column that the person's rows have."""
        column = _column(trace, table)
        if trace.of is None:
            return self._as_mirrored(column, table)
        if table.mode is Mode.TEMPORAL and self.table(trace.of).mode is not Mode.TEMPORAL:
            raise SchemaError(
                f"its history cannot be searched by {trace.of!r}, which has none: after a sync of"
                " their deletion, people are not found there any more",
                table=table.name,
                hint=f"mirror {trace.of!r} with 'mode: temporal', or find them by a column of its"
                " own",
            )
        keys = self.found[trace.of]
        if keys.num_columns != 1:
            raise SchemaError(
                f"the key of {trace.of!r} has several columns, and {trace.column!r} holds one",
                table=table.name,
                hint="name a column that holds what names the person",
            )
        try:
            return keys.column(0).cast(column.type).combine_chunks()
        except pa.ArrowInvalid:  # whose text has a value of a row
            raise SchemaError(
                f"its column {trace.column!r} does not hold keys of {trace.of!r}: they are of"
                " another type",
                table=table.name,
                hint="correct 'people' in the declaration: name a column that holds them",
            ) from None

    def _as_mirrored(self, column: Column, table: Table) -> pa.Array:
        """Return what names the person as the mirror has it: hashed where the column is."""
        masked = column.masked
        if masked is not None and masked.rule != "hash":
            raise SchemaError(
                f"nobody is found by column {column.name!r}, which the mirror has under the mask"
                f" {masked.rule!r}",
                table=table.name,
                hint="mask it by 'hash', or name another column",
            )
        own = column if masked is None else masked.source
        alone = TableSchema(table.name, (own,), (own.name,))
        given = masked_rows(key_of(self.value, Table(alone)), table.schema, self.key)
        return given.column(0).combine_chunks()


def _column(trace: Trace, table: Table) -> Column:
    for column in table.schema.columns:
        if column.name == trace.column:
            return column
    raise SchemaError(
        f"people are to be found by its column {trace.column!r}, which is not there",
        table=table.name,
        hint=f"correct 'people' in the declaration: {nearest(trace.column, table.schema.names)}",
    )


def _in_rows(trace: Trace, table: Table, wanted: pa.Array, mirror: Mirror) -> Iterator[pa.Table]:
    """Yield the keys, with that column, of rows and versions, and of those in snapshots."""
    schema = table.schema
    days = replace(schema, name=schema.snapshot_name, namespace=_SNAPSHOTS, mirror_name="")
    shown = listed(dict.fromkeys([*schema.primary_key, trace.column]))
    values: list[Any] = wanted.to_pylist()
    for name in (mirror_table(schema), mirror_table(days)):
        if trace.column not in _columns_of(name, mirror):
            continue
        for first in range(0, len(values), _AT_ONCE):
            some = values[first : first + _AT_ONCE]
            asked = (
                f"select distinct {shown} from {name}"
                f" where {quote(trace.column)} in ({', '.join('?' * len(some))})"
            )
            yield mirror.query(asked, some)


def _columns_of(relation: str, mirror: Mirror) -> Sequence[str]:
    """Return the columns of one of the mirror's tables; none where it is not there (yet)."""
    try:
        names: Sequence[str] = mirror.query(f"select * from {relation} limit 0").column_names
    except QueryError:
        return ()
    return names


def _in_letters(trace: Trace, table: Table, mirror: Mirror) -> Iterator[pa.Table]:
    """Yield the keys of dead letters, which say whose they are where the column is in the key."""
    if trace.column in table.schema.primary_key:
        yield read_keys(mirror.dead_letters(table.name)["key"].to_pylist(), table.schema)


def letters_of_nobody(trace: Trace, table: Table, mirror: Mirror) -> int:
    """Return how many dead letters of a table do not say whose they are."""
    if trace.column in table.schema.primary_key:
        return 0
    return int(mirror.dead_letters(table.name).num_rows)
