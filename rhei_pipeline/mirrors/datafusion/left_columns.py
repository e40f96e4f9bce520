"""Columns of a table of files that its source has no more: kept with their values, or gone.

A history keeps them by itself: its rows stay where they are. What this is about is a plain table,
whose rows are written again, and the snapshots of a history that is not to keep them.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from rhei_pipeline.mirrors.datafusion.deletion_vectors import present
from rhei_pipeline.mirrors.datafusion.digests import key_hashes
from rhei_pipeline.mirrors.datafusion.key_index import Numbers
from rhei_pipeline.mirrors.datafusion.manifest import Segment
from rhei_pipeline.mirrors.datafusion.segment_store import SegmentStore
from rhei_pipeline.mirrors.datafusion.write_buffer import WriteBuffer
from rhei_pipeline.mirrors.exact_casts import in_other_types
from rhei_pipeline.model.schema import HISTORY_NAMES, FormerNames, Mode, Table
from rhei_pipeline.model.set_aside import is_set_aside, names_aside, others_by_now

#: Appends rows of a table to a buffer of it.
Append = Callable[[WriteBuffer, Table, pa.Table], None]


def kept_fields(schema: pa.Schema, table: Table) -> Sequence[pa.Field]:
    """Return the columns that a plain table keeps, of which its source tells nothing."""
    if table.mode is Mode.TEMPORAL or not table.keeps_dropped:
        return ()
    own = set(table.schema.names)
    return [field for field in schema if field.name not in own]


def left_names(schema: pa.Schema, table: Table) -> set[str]:
    """Return the columns that a history is not to keep."""
    if table.keeps_dropped:
        return set()
    own = table.schema.names
    left = {*schema.names} - {*own} - HISTORY_NAMES
    return {name for name in left if not is_set_aside(name, own)}


def find_aside(buffer: WriteBuffer, table: Table) -> FormerNames:
    """Return the columns of a history to set aside, since their values mean something else now.

    Returns:
        The names that they have, by those that they are to have.
    """
    schema = buffer.schema
    others = others_by_now(table.schema, dict(zip(schema.names, schema.types, strict=True)))
    return names_aside([name for name in others if _has_values(buffer, name)], schema.names)


def _has_values(buffer: WriteBuffer, name: str) -> bool:
    parts = (rows for past in (True, False) for rows, _ in buffer.scan([name], past=past))
    return any(rows[name].null_count < rows.num_rows for rows in parts)


def with_kept(
    rows: pa.Table, buffer: WriteBuffer, table: Table, numbers: Numbers, places: Numbers
) -> pa.Table:
    """Return new rows with what others, which they replace, have in the columns that are kept.

    `numbers`: Which of the rows replace one; `places`: where that stands.
    """
    fields = kept_fields(buffer.schema, table)
    if not fields:
        return rows
    order = np.full(rows.num_rows, -1)
    order[numbers] = np.arange(len(places))
    held = buffer.take(places, [field.name for field in fields])
    taken = held.take(pa.array(order, mask=order < 0))
    for field in fields:
        rows = rows.append_column(field, taken[field.name])
    return rows


def keep_left(
    standing: WriteBuffer, copy: WriteBuffer, table: Table, store: SegmentStore, append: Append
) -> WriteBuffer:
    """Return a copy, which is to replace a plain table, with the columns that the table keeps.

    They go by the key, and so another key ends them.
    """
    fields, built = kept_fields(standing.schema, table), standing.table.built
    has_other_key = built is not None and built.primary_key != table.schema.primary_key
    if not fields or has_other_key:
        return copy
    key = list(table.schema.primary_key)
    shape = pa.schema([*table.schema.arrow, *fields])
    fresh = WriteBuffer(replace(copy.table, schema=shape, segments=()), store)
    former = pa.schema([standing.schema.field(name) for name in key])
    for rows, _ in copy.scan(table.schema.names):
        found = standing.find(key_hashes(in_other_types(rows.select(key), former)))
        append(fresh, table, with_kept(rows, standing, table, found.key_numbers, found.places))
    return fresh


def fit_days(
    buffer: WriteBuffer,
    table: Table,
    own: Collection[str],
    former: FormerNames,
    store: SegmentStore,
) -> WriteBuffer:
    """Return a table of snapshots whose columns have their new names; files of it are others.

    `own`: The columns that the history has. Others go where it is not to keep them.
    """
    names = {name: name for name in buffer.schema.names}
    new = {old: name for name, old in former.items() if old in names and name not in names}
    named = _named_as(buffer, names | new, store)
    if table.keeps_dropped:
        return named
    return _named_as(named, {name: name for name in named.schema.names if name in own}, store)


def _named_as(buffer: WriteBuffer, names: Mapping[str, str], store: SegmentStore) -> WriteBuffer:
    """Return a table with these columns only, by the names that each is to have."""
    fields = [f.with_name(names[f.name]) for f in buffer.schema if f.name in names]
    shape = pa.schema(fields)
    if shape.names == buffer.schema.names:
        return buffer
    segments = (_segment_as(segment, names, store) for segment in buffer.table.segments)
    return WriteBuffer(replace(buffer.table, schema=shape, segments=tuple(segments)), store)


def _segment_as(segment: Segment, names: Mapping[str, str], store: SegmentStore) -> Segment:
    own = [name for name in segment.schema.names if name in names]
    called = [names[name] for name in own]
    constants = {names[name]: kept for name, kept in segment.constants.items() if name in names}
    if called == segment.schema.names:
        return replace(segment, constants=constants)
    rows, bits = store.form.read(store.content(segment), own), store.bits(segment)
    rows = rows.rename_columns(called)
    if bits is not None:
        rows = rows.filter(pa.array(present(bits, segment.rows)))
    return store.write(rows, None, past=segment.past, tag=segment.tag, constants=constants)
