"""Finds a person's rows across tables, by the columns that a declaration names."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.changes.masks import MaskingKey, masked_rows
from rhei_pipeline.errors import QueryError, SchemaError
from rhei_pipeline.model.changes import key_text, read_keys, without_keys
from rhei_pipeline.model.forgetting import Trace
from rhei_pipeline.model.plain_values import plain_rows
from rhei_pipeline.model.schema import Column, Mode, Table, TableSchema, nearest
from rhei_pipeline.protocols import Mirror
from rhei_pipeline.sql.text import disjunction, listed, mirror_table, quote
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
        found: The keys of rows that are, or were, this person's alone, by table.
        shared: The keys that others had, too, or that refer to such keys: nobody forgets them.
    """

    traces: Sequence[Trace]
    value: Key
    key: MaskingKey
    table: Callable[[str], Table]
    found: dict[str, pa.Table] = field(default_factory=dict)
    shared: dict[str, pa.Table] = field(default_factory=dict)

    def look(self, mirror: Mirror) -> None:
        """Find the keys of the person's rows, present and past."""
        for trace in self.traces:
            self._look(trace, self.table(trace.table), mirror)

    def _look(self, trace: Trace, table: Table, mirror: Mirror) -> None:
        wanted, doubtful = self._wanted(trace, table), self._doubtful(trace, table)
        there = _keys(trace, table, wanted, mirror)
        known = self.found.get(trace.table, there.slice(0, 0))
        every = _distinct(pa.concat_tables([known, there]))
        unclear = _keys(trace, table, doubtful, mirror)
        others = _others(trace, table, every, wanted, mirror) | _texts(unclear)
        self.found[trace.table] = without_keys(every, others)
        here = _distinct(pa.concat_tables([there, unclear]))
        self.shared[trace.table] = without_keys(here, _texts(self.found[trace.table]))

    def is_theirs(self, name: str, rows: pa.Table) -> pa.Array:
        """Return which of a table's rows are this person's."""
        trace = self._trace(name)
        return pc.is_in(rows[trace.column], self._wanted(trace, self.table(name)))

    def is_referred(self, name: str) -> bool:
        """Return whether a table's rows are found by those of another."""
        return self._trace(name).of is not None

    def _trace(self, name: str) -> Trace:
        return next(each for each in self.traces if each.table == name)

    def _doubtful(self, trace: Trace, table: Table) -> pa.Array:
        """Return the values that lead to rows of which nobody knows whose they are."""
        kind = _column(trace, table).type
        if trace.of is None:
            return pa.array([], kind)
        return self.shared[trace.of].column(0).cast(kind).combine_chunks()

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


def _keys(trace: Trace, table: Table, wanted: pa.Array, mirror: Mirror) -> pa.Table:
    """Return the keys of what the mirror has with one of these values."""
    shape = table.schema.arrow_key
    parts = [*_in_rows(trace, table, wanted, mirror), *_in_letters(trace, table, mirror)]
    own = [part.filter(pc.is_in(part[trace.column], wanted)) for part in parts]
    keys = [part.select(shape.names).cast(shape) for part in own]
    return _distinct(pa.concat_tables([shape.empty_table(), *keys]))


def _texts(keys: pa.Table) -> set[str]:
    return {key_text(key) for key in plain_rows(keys)}


def _distinct(keys: pa.Table) -> pa.Table:
    return keys.group_by(keys.column_names).aggregate([]).select(keys.column_names)


def _others(
    trace: Trace, table: Table, keys: pa.Table, wanted: pa.Array, mirror: Mirror
) -> set[str]:
    """Return which of these keys are, were or may be other people's as well.

    An order may have moved to another customer, and a key that was deleted may be used again.
    """
    if trace.column in table.schema.primary_key:
        return set()
    # The row of an open dead letter is not in the mirror: whose it is, nobody sees.
    found = _texts(keys) & set(mirror.dead_letters(table.name)["key"].to_pylist())
    for part in _of_keys(trace, table, keys, mirror):
        column = part[trace.column]
        is_other = pc.and_(pc.is_valid(column), pc.invert(pc.is_in(column, wanted)))
        found |= _texts(part.filter(is_other).select(keys.column_names).cast(keys.schema))
    return found


def _of_keys(trace: Trace, table: Table, keys: pa.Table, mirror: Mirror) -> Iterator[pa.Table]:
    """Yield the keys, with that column, of all rows and versions of these keys."""
    one = " and ".join(f"{quote(name)} = ?" for name in keys.column_names)
    shown = listed([*keys.column_names, trace.column])
    for name in _holding(trace, table, mirror):
        for first in range(0, keys.num_rows, _AT_ONCE):
            some = keys.slice(first, _AT_ONCE).to_pylist()
            chosen = disjunction([f"({one})"] * len(some))
            values = [value for key in some for value in key.values()]
            yield mirror.query(f"select distinct {shown} from {name} where {chosen}", values)


def _in_rows(trace: Trace, table: Table, wanted: pa.Array, mirror: Mirror) -> Iterator[pa.Table]:
    """Yield the keys, with that column, of rows and versions, and of those in snapshots."""
    shown = listed(dict.fromkeys([*table.schema.primary_key, trace.column]))
    values: list[Any] = wanted.to_pylist()
    for name in _holding(trace, table, mirror):
        for first in range(0, len(values), _AT_ONCE):
            some = values[first : first + _AT_ONCE]
            asked = (
                f"select distinct {shown} from {name}"
                f" where {quote(trace.column)} in ({', '.join('?' * len(some))})"
            )
            yield mirror.query(asked, some)


def _holding(trace: Trace, table: Table, mirror: Mirror) -> Iterator[str]:
    """Yield the mirror's tables that have the column: of rows and versions, and of snapshots."""
    schema = table.schema
    days = replace(schema, name=schema.snapshot_name, namespace=_SNAPSHOTS, mirror_name="")
    for name in (mirror_table(schema), mirror_table(days)):
        if trace.column in _columns_of(name, mirror):
            yield name


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
