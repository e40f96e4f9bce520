"""Rows of a SQLite query as batches of events."""

from collections.abc import Iterator, Sequence

import pyarrow as pa

from rhei_pipeline.model.changes import EVENT_FIELDS, ChangeBatch, DeadLetter, event_schema
from rhei_pipeline.model.schema import TableSchema
from rhei_pipeline.sources.mended_rows import mended
from rhei_pipeline.sources.rejections import Rejection, without
from rhei_pipeline.sources.sqlite.admission import Admission, AdmittedRows, key_first
from rhei_pipeline.sources.sqlite.cursors import Take


def event_batches(admission: Admission, take: Take, limit: int) -> Iterator[ChangeBatch]:
    """Turn rows into batches of events; those that do not fit become dead letters.

    What is ours of each row are the event's fields. Every row counts as one event. Keys that are
    null stay among the events.
    """
    for rows in admission.portions(take, limit):
        batch = _event_batch(rows, admission.schema)
        del rows
        yield batch
        del batch  # it may be large, and the next one is read now


def _event_batch(rows: AdmittedRows, schema: TableSchema) -> ChangeBatch:
    own, arrays = rows.arrays[: len(EVENT_FIELDS)], rows.arrays[len(EVENT_FIELDS) :]
    rejected, gone = _present_and_gone(rows.rejections, rows.letters, own[-1])
    names = [*(field.name for field in EVENT_FIELDS), *(c.name for c in key_first(schema))]
    events = pa.table(without(rows.arrays, rows.rejections), names)
    wanted = event_schema(schema)
    admitted = events.select(wanted.names).cast(wanted)
    keys = pa.table(arrays[: len(schema.primary_key)], list(schema.primary_key))
    resolved = (*gone, *mended(keys, rows.rejections, rows.letters))
    return ChangeBatch(admitted, len(rows), rejected=rejected, resolved=resolved)


def _present_and_gone(
    rejections: Sequence[Rejection], letters: Sequence[DeadLetter], live: pa.Array
) -> tuple[tuple[DeadLetter, ...], tuple[tuple[str, None], ...]]:
    """Return the letters of rows that were there, and the keys that have no row in the end."""
    pairs = sorted(zip(rejections, letters, strict=True), key=lambda pair: pair[0].row)
    there = [live[rejection.row].as_py() for rejection, _ in pairs]
    last = {letter.key: alive for (_, letter), alive in zip(pairs, there, strict=True)}
    return (
        tuple(letter for (_, letter), alive in zip(pairs, there, strict=True) if alive),
        tuple((key, None) for key, alive in last.items() if not alive),
    )
