"""Compacts many events into one net change for each key."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.model.changes import LIVE, ChangeBatch, NetChanges
from rhei_pipeline.model.schema import TableSchema
from rhei_pipeline.model.selection import chosen, taken


def compact(batch: ChangeBatch, schema: TableSchema) -> NetChanges:
    """Keep each key's last event; separate rows from tombstones.

    Idempotent. Compacting a whole history gives the same result as compacting its parts in order.
    """
    events = batch.events
    if not batch.net:
        events = taken(events, last_per_key(events, schema))
    live = events[LIVE].to_numpy()
    return NetChanges(
        upserts=chosen(events.select(list(schema.names)), live),
        tombstones=events.select(list(schema.primary_key)).filter(pa.array(~live)),
    )


def last_per_key(events: pa.Table, schema: TableSchema) -> np.ndarray:
    """Return the row numbers of each key's last event, in the events' order."""
    codes = key_codes(events.select(list(schema.primary_key)))
    # np.unique gives first occurrences, so look from the end.
    _, from_end = np.unique(codes[::-1], return_index=True)
    return np.sort(len(codes) - 1 - from_end)


def key_codes(keys: pa.Table) -> np.ndarray:
    """Give each distinct key a number: equal keys, whatever their types, get equal numbers.

    Shape: one int64 per row of `keys`. Nulls are equal.
    """
    codes = np.zeros(keys.num_rows, dtype=np.int64)
    for column in keys.columns:
        part, width = _column_codes(one_form(column))
        codes = codes * width + part
        # Renumber after each column, or a few wide keys would run out of 64 bits.
        if keys.num_columns > 1:
            codes = np.unique(codes, return_inverse=True)[1]
    return codes


def one_form(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a key's column with equal bits for values that every database holds equal.

    Zero and minus zero are one key, and so are all NaNs.
    """
    if not pa.types.is_floating(column.type):
        return column
    unsigned = pc.add(column, 0.0)
    return pc.if_else(pc.is_nan(unsigned), math.nan, unsigned)


def _column_codes(column: pa.ChunkedArray) -> tuple[np.ndarray, int]:
    if pa.types.is_integer(column.type) and column.null_count == 0:
        values = column.to_numpy()
        if len(values) and int(values.max()) - int(values.min()) < 2**31:
            return values - values.min(), int(values.max()) - int(values.min()) + 1
    encoded = column.combine_chunks().dictionary_encode("encode")
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    return encoded.indices.to_numpy().astype(np.int64), max(len(encoded.dictionary), 1)
