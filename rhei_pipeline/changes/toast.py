"""Restores values that the source did not send because the change left them alone (TOAST).

PostgreSQL does not send an out-of-line (TOAST) value that an update did not touch. The value is
taken from the key's earlier event of the batch, or else from the mirror.
"""

from dataclasses import replace
from functools import reduce
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.changes.compaction import key_codes
from rhei_pipeline.model.changes import CHANGED_AT, LIVE, ChangeBatch, DeadLetter, key_text
from rhei_pipeline.model.plain_values import plain_rows
from rhei_pipeline.model.schema import TableSchema

_REASON = "the source did not send its value (unchanged TOAST), and the mirror has no earlier row"


def wanted_keys(batch: ChangeBatch, schema: TableSchema) -> pa.Table:
    """Return the keys whose rows in the mirror `complete` may need."""
    incomplete = reduce(pc.or_, batch.unchanged.values())
    former = _former_keys(batch, schema).filter(incomplete)
    return former.group_by(former.column_names).aggregate([])


def complete(batch: ChangeBatch, held: pa.Table, schema: TableSchema) -> ChangeBatch:
    """Fill in the values that the source did not send.

    Args:
        batch: Events in the source's order, with `unchanged`.
        held: Rows as the mirror has them, at least of `wanted_keys`.
        schema: The table's schema.

    Returns:
        The batch with all values. An event whose value is not found becomes a dead letter.
    """
    earlier = _earlier_rows(batch, held, schema)
    events = batch.events
    lost = np.zeros(events.num_rows, dtype=bool)
    letters: list[DeadLetter] = []
    for column, mask in batch.unchanged.items():
        source = _trace(mask.to_numpy(zero_copy_only=False), earlier, held.num_rows)
        nowhere = source == len(source) + held.num_rows
        letters += _letters(events, schema, column, np.flatnonzero(nowhere & ~lost))
        lost |= nowhere
        events = _fill(events, held, column, source)
    kept = events.filter(pa.array(~lost))
    return replace(
        batch,
        events=kept,
        rejected=(*batch.rejected, *letters),
        unchanged=MappingProxyType({}),
        former_keys=None,
    )


def _former_keys(batch: ChangeBatch, schema: TableSchema) -> pa.Table:
    own = batch.events.select(list(schema.primary_key))
    return own if batch.former_keys is None else batch.former_keys


def _earlier_rows(batch: ChangeBatch, held: pa.Table, schema: TableSchema) -> np.ndarray:
    """Return the row before each event, as a row number in held rows and events together.

    A number after all of them means that there is none.
    """
    key, count = list(schema.primary_key), batch.events.num_rows
    own, former = batch.events.select(key), _former_keys(batch, schema)
    codes = key_codes(pa.concat_tables([held.select(key), own, former]))
    total = held.num_rows + count
    live = np.concatenate([np.ones(held.num_rows, bool), batch.events[LIVE].to_numpy()])
    places = np.flatnonzero(live)
    # Sorted by key, then place: the row before an event is the last one below its own place.
    standing = np.sort(codes[places] * (total + 1) + places)
    asked = codes[total:] * (total + 1)
    found = np.searchsorted(standing, asked + held.num_rows + np.arange(count)) - 1
    none: np.ndarray = (
        (found < 0) | (standing[found] < asked) if len(standing) else np.ones(count, bool)
    )
    places = standing[found] % (total + 1) if len(standing) else np.full(count, total)
    rows: np.ndarray = np.where(none, total, places)
    return rows


def _trace(mask: np.ndarray, earlier: np.ndarray, held: int) -> np.ndarray:
    """Return, for each event, the number of the row that has its value.

    A chain of events that all left the value alone is followed to its start, doubling the step.
    """
    total = held + len(mask)
    leads_to = np.arange(total + 1)
    leads_to[held:total] = np.where(mask, earlier, leads_to[held:total])
    while True:
        further = leads_to[leads_to]
        if np.array_equal(further, leads_to):
            return leads_to[held:total]
        leads_to = further


def _fill(events: pa.Table, held: pa.Table, column: str, source: np.ndarray) -> pa.Table:
    values = pa.chunked_array([*held[column].chunks, *events[column].chunks], events[column].type)
    places = pa.array(source, mask=source == len(values))
    return events.set_column(
        events.schema.get_field_index(column), events.schema.field(column), values.take(places)
    )


def _letters(
    events: pa.Table, schema: TableSchema, column: str, rows: np.ndarray
) -> list[DeadLetter]:
    found = events.take(pa.array(rows))
    keys = plain_rows(found.select(list(schema.primary_key)))
    times = found[CHANGED_AT].to_pylist()
    return [
        DeadLetter(schema.name, key_text(key), column, _REASON, at)
        for key, at in zip(keys, times, strict=True)
    ]
