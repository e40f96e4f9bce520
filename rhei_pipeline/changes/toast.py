"""Restores values that the source did not send because the change left them alone (TOAST).

PostgreSQL does not send an out-of-line (TOAST) value that an update did not touch. The value is
taken from the key's earlier event of the batch, or else from the mirror. Where an earlier state of
the row did not fit, neither has it: the value may have come with that state.
"""

from collections.abc import Collection, Iterator
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

_REASON = (
    "the source did not send its value (unchanged TOAST), and the row before is not in the mirror"
)


def wanted_keys(batch: ChangeBatch, schema: TableSchema) -> pa.Table:
    """Return the keys whose rows in the mirror `complete` may need."""
    incomplete = reduce(pc.or_, batch.unchanged.values())
    former = _former_keys(batch, schema).filter(incomplete)
    return former.group_by(former.column_names).aggregate([])


def complete(
    batch: ChangeBatch, held: pa.Table, schema: TableSchema, unknown: Collection[str] = ()
) -> ChangeBatch:
    """Fill in the values that the source did not send.

    Args:
        batch: Events in the source's order, with `unchanged`.
        held: Rows as the mirror has them, at least of `wanted_keys`.
        schema: The table's schema.
        unknown: Keys, as text, of which the mirror does not have the row as it was before.

    Returns:
        The batch with all values. An event whose value is not found becomes a dead letter.
    """
    key, unfit = list(schema.primary_key), {letter.key for letter in batch.rejected}
    if unfit or unknown:
        held = held.filter(pa.array(~_named(held.select(key), {*unknown, *unfit})))
    earlier = _earlier_rows(batch, held, schema)
    # Which of a key's events were before the one that did not fit is not known here.
    in_doubt = _named(_former_keys(batch, schema), unfit)
    earlier = np.where(in_doubt, len(earlier) + held.num_rows, earlier)
    events = batch.events
    lost = np.zeros(events.num_rows, dtype=bool)
    letters: list[DeadLetter] = []
    for column, mask in batch.unchanged.items():
        source = _trace(mask.to_numpy(zero_copy_only=False), earlier, held.num_rows)
        nowhere = source == len(source) + held.num_rows
        letters += _letters(events, schema, column, np.flatnonzero(nowhere & ~lost))
        lost |= nowhere
        events = _fill(events, held, column, source)
    kept = pa.array(~lost)
    return replace(
        batch,
        events=events.filter(kept),
        rejected=(*letters, *batch.rejected),
        resolved=tuple(_resolved(batch, lost, key)) if lost.any() else batch.resolved,
        unchanged=MappingProxyType({n: mask.filter(kept) for n, mask in batch.unchanged.items()}),
        former_keys=None,
    )


def _named(keys: pa.Table, texts: Collection[str]) -> np.ndarray:
    """Mask the keys that these texts name."""
    if not texts:
        return np.zeros(keys.num_rows, dtype=bool)
    return np.array([key_text(each) in texts for each in plain_rows(keys)], dtype=bool)


def _resolved(
    batch: ChangeBatch, lost: np.ndarray, key: list[str]
) -> Iterator[tuple[str, str | None]]:
    """Yield which letters are resolved, where events are lost: the last event of a key counts."""
    keys, mended = batch.events.select(key), set(batch.resolved)
    codes = key_codes(keys)
    last = np.zeros(int(codes.max(initial=-1)) + 1, dtype=np.int64)
    np.maximum.at(last, codes, np.arange(len(codes)))
    rows = np.flatnonzero(lost)
    texts = map(key_text, plain_rows(keys.take(pa.array(rows))))
    is_lost = dict(zip(texts, lost[last[codes[rows]]].tolist(), strict=True))
    unfit = {letter.key for letter in batch.rejected}
    yield from (name for name in batch.resolved if name[1] is not None or not is_lost.get(name[0]))
    yield from ((text, None) for text in is_lost.keys() - unfit if not is_lost[text])
    # Of what did not fit before, the value that is there now was sent in the end.
    for name in (letter.name for letter in batch.rejected if letter.column not in batch.unchanged):
        if is_lost.get(name[0]) and (name[0], None) in mended:
            yield name


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
