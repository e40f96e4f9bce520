"""Fits a mirrored table to a changed schema: without rewriting rows, if its types only widen."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime

import pyarrow as pa

from rhei_pipeline.changes.scd2 import refuse_lost_history, refuse_unknown_key
from rhei_pipeline.errors import SchemaDriftError
from rhei_pipeline.mirrors.datafusion.buffered_rows import append_rows
from rhei_pipeline.mirrors.datafusion.constants import conform, constant_of
from rhei_pipeline.mirrors.datafusion.digests import key_hashes
from rhei_pipeline.mirrors.datafusion.left_columns import kept_fields, left_names
from rhei_pipeline.mirrors.datafusion.manifest import TableShape
from rhei_pipeline.mirrors.datafusion.past import note_columns
from rhei_pipeline.mirrors.datafusion.segment_store import SegmentStore
from rhei_pipeline.mirrors.datafusion.write_buffer import WriteBuffer
from rhei_pipeline.mirrors.exact_casts import (
    InexactError,
    cast_exactly,
    in_other_types,
    keys_in_types,
    past_does_not_fit,
)
from rhei_pipeline.mirrors.key_change import refuse_unfit_key
from rhei_pipeline.model.schema import (
    NOTHING_RENAMED,
    OPERATION,
    VALID_FROM,
    VALID_TO,
    FormerNames,
    Mode,
    Table,
)
from rhei_pipeline.model.selection import columns_of, each_once

_INTEGERS = (pa.int16(), pa.int32(), pa.int64())
#: Appends versions of a table, that have ended or have not, to a buffer of it.
Append = Callable[[WriteBuffer, Table, pa.Table, bool], None]


def outgrown(buffer: WriteBuffer, table: Table) -> bool:
    """Return whether a table must be built again: it has another schema, and no history.

    Raises:
        SchemaDriftError: It has history, which would be lost; or another table has its name.
    """
    standing, built = buffer.schema, buffer.table.built
    if built is not None and built.set_aside:
        raise SchemaDriftError(
            f"the mirror already has another table of this name, {buffer.table.relation!r}",
            table=table.name,
            hint=f"rename that one with 'rhei drop-table {built.name} --keep-as NAME'",
        )
    if VALID_TO not in standing.names:
        kept = {field.name for field in kept_fields(standing, table)}
        own = pa.schema([field for field in standing if field.name not in kept])
        return not _equal(own, table.mirror_schema) or _has_other_key(buffer, table)
    refuse_lost_history(table)
    return False


def fit(
    buffer: WriteBuffer,
    table: Table,
    store: SegmentStore,
    append: Append,
    aside: FormerNames = NOTHING_RENAMED,
) -> WriteBuffer:
    """Return a table with the new schema: unchanged where its rows can be cast while reading.

    It is rewritten if its index has another key, or if the cast changes values.
    `aside`: Columns of a history that get these names.

    Raises:
        SchemaDriftError: Its history does not fit the new types, or the new key.
    """
    if VALID_TO not in buffer.schema.names:
        buffer.build_for(_built(table))
        return buffer
    refuse_unknown_key(table.schema, buffer.schema.names)
    built = buffer.table.built
    if built is not None and _has_other_key(buffer, table):
        refuse_unfit_key(table.schema, built.primary_key, _versions(buffer, table))
    standing = _renamed(buffer.schema, aside)
    shape, gone = _reshaped(standing, table), left_names(standing, table)
    if (
        not gone
        and not aside
        and not _has_other_key(buffer, table)
        and _is_readable_as(buffer.schema, shape, table)
    ):
        buffer.reshape(shape)
        buffer.build_for(_built(table))
        return buffer
    fresh = WriteBuffer(
        replace(buffer.table, schema=shape, segments=(), built=_built(table)), store
    )
    for past in (True, False):
        for rows, _ in buffer.scan(buffer.schema.names, past=past):
            named = rows.rename_columns(standing.names)
            append(fresh, table, _in_shape(named, shape, table.name), past)
    return fresh


def widen(
    buffer: WriteBuffer, table: Table, values: Mapping[str, pa.Scalar], store: SegmentStore
) -> WriteBuffer:
    """Return a table with more columns, in which each row has one value.

    No file is written, unless a manifest cannot keep a value.
    """
    values = {name: value for name, value in values.items() if name not in buffer.schema.names}
    shape = pa.schema([*buffer.schema, *(table.schema.arrow.field(name) for name in values)])
    told = {name: value for name, value in values.items() if value.is_valid}
    constants = {name: constant_of(value) for name, value in told.items()}
    if None not in constants.values():
        buffer.reshape(shape)
        buffer.fix({name: kept for name, kept in constants.items() if kept is not None})
        return buffer
    fresh = WriteBuffer(replace(buffer.table, schema=shape, segments=()), store)
    for rows, _ in buffer.scan(buffer.schema.names):
        filled = rows
        for name, value in values.items():
            filled = filled.append_column(shape.field(name), pa.repeat(value, rows.num_rows))
        append_rows(fresh, table, filled)
    return fresh


def reshape(
    buffer: WriteBuffer,
    table: Table,
    at: datetime,
    former: FormerNames,
    store: SegmentStore,
    append: Append,
) -> WriteBuffer:
    """Return a table with fewer, renamed or wider columns, and those that it keeps.

    Without history its files are written again: the digests in their indexes are of whole rows.
    """
    buffer = _rename(buffer, table, former, store, append)
    if table.mode is Mode.TEMPORAL:
        fitted = fit(buffer, table, store, append)
        note_columns(fitted, table, at)
        return fitted
    if not outgrown(buffer, table):
        return buffer
    shape = pa.schema([*table.mirror_schema, *kept_fields(buffer.schema, table)])
    fresh = WriteBuffer(replace(buffer.table, schema=shape, segments=()), store)
    for rows, _ in buffer.scan(shape.names):
        append_rows(fresh, table, conform(rows, shape))
    return fresh


def _rename(
    buffer: WriteBuffer, table: Table, former: FormerNames, store: SegmentStore, append: Append
) -> WriteBuffer:
    """Return a table whose columns have their new names; its files, which name them, are others."""
    shape, own = _renamed(buffer.schema, former), _built(table)
    if shape.names == buffer.schema.names:
        return buffer
    fresh = WriteBuffer(replace(buffer.table, schema=shape, segments=(), built=own), store)
    news = dict(zip(buffer.schema.names, shape.names, strict=True))
    fresh.date(buffer.table.begins_at, {news[n]: at for n, at in buffer.table.left.items()})
    for past in (True, False) if VALID_TO in shape.names else (False,):
        for rows, _ in buffer.scan(buffer.schema.names, past=past):
            append(fresh, table, rows.rename_columns(shape.names), past)
    return fresh


def _renamed(schema: pa.Schema, former: FormerNames) -> pa.Schema:
    names = {old: new for new, old in former.items()}
    return pa.schema([field.with_name(names.get(field.name, field.name)) for field in schema])


def _built(table: Table) -> TableShape:
    return TableShape(table.name, table.schema.primary_key)


def _is_readable_as(standing: pa.Schema, shape: pa.Schema, table: Table) -> bool:
    key = table.schema.primary_key
    return all(_reads_as(f.type, shape.field(f.name).type, key=f.name in key) for f in standing)


def _reshaped(standing: pa.Schema, table: Table) -> pa.Schema:
    wanted = {field.name: field for field in table.mirror_schema}
    gone = left_names(standing, table)
    kept = [wanted.get(field.name, field) for field in standing if field.name not in gone]
    there = set(standing.names)
    return pa.schema([*kept, *(field for name, field in wanted.items() if name not in there)])


def _in_shape(rows: pa.Table, shape: pa.Schema, table: str) -> pa.Table:
    own, columns = columns_of(rows), []
    for field in shape:
        values = own.get(field.name)
        if values is None:
            columns.append(pa.nulls(rows.num_rows, field.type))
            continue
        try:
            chunks = [cast_exactly(chunk, field.type) for chunk in values.chunks]
        except InexactError:
            raise past_does_not_fit(table, field.name, values.type, field.type) from None
        columns.append(pa.chunked_array(chunks, field.type))
    return pa.table(columns, schema=shape)


def last_good_rows(standing: WriteBuffer, table: Table, keys: pa.Table) -> pa.Table:
    """Return the present rows of these keys with the table's new columns.

    Null where the table lacks a column, or where a value does not fit the new type.
    """
    wanted, key = table.schema.arrow, list(table.schema.primary_key)
    if not set(key) <= set(standing.schema.names):
        return wanted.empty_table()
    former = pa.schema([standing.schema.field(name) for name in key])
    # No row has a key that is none of the former type.
    found = standing.find(key_hashes(keys_in_types(keys.select(key), former)))
    there = set(standing.schema.names)
    held = [name for name in wanted.names if name in there]
    rows = standing.take(each_once(found.places), held)
    return conform(in_other_types(rows, wanted), wanted)


def _equal(standing: pa.Schema, wanted: pa.Schema) -> bool:
    return bool(standing.names == wanted.names and standing.types == wanted.types)


def _has_other_key(buffer: WriteBuffer, table: Table) -> bool:
    built = buffer.table.built
    return built is not None and built.primary_key != table.schema.primary_key


def _versions(buffer: WriteBuffer, table: Table) -> pa.Table:
    names = [*table.schema.primary_key, VALID_FROM, VALID_TO, OPERATION]
    fields = [buffer.schema.field(name) for name in names]
    parts = [rows for past in (True, False) for rows, _ in buffer.scan(names, past=past)]
    return pa.concat_tables([pa.schema(fields).empty_table(), *parts])


def _reads_as(old: pa.DataType, new: pa.DataType, *, key: bool = False) -> bool:
    """Return whether casting keeps every value of the old type unchanged in the new type.

    A key's values must also be found by the same hash.
    """
    if old.equals(new):
        return True
    if old in _INTEGERS and new in _INTEGERS:
        return _INTEGERS.index(old) <= _INTEGERS.index(new)
    if pa.types.is_decimal(old) and pa.types.is_decimal(new) and not key:
        whole = (old.precision - old.scale, new.precision - new.scale)
        return bool(whole[0] <= whole[1] and old.scale <= new.scale)
    return bool(old.equals(pa.float32()) and new.equals(pa.float64()))
