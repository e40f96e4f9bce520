"""Rows with a null in their key: they cannot be identified, so they become dead letters."""

import json
from dataclasses import replace
from functools import reduce

import pyarrow.compute as pc

from rhei_pipeline.model.changes import CHANGED_AT, LIVE, ChangeBatch, DeadLetter, key_text
from rhei_pipeline.model.plain_values import plain_rows
from rhei_pipeline.model.schema import TableSchema

NULL_KEY = "its primary key is null, so the row cannot be identified"


def is_keyless(text: str) -> bool:
    """Return whether a key, as `key_text` writes it, contains a null."""
    return None in json.loads(text).values()


def without_keyless(batch: ChangeBatch, schema: TableSchema) -> ChangeBatch:
    """Remove the events of rows without a key from a batch.

    They become dead letters; a key whose last event is a delete is resolved.
    """
    names, events = list(schema.primary_key), batch.events
    if not any(events[name].null_count for name in names):
        return batch
    keyless = reduce(pc.or_, [pc.is_null(events[name]) for name in names])
    found = events.filter(keyless)
    keys, live = plain_rows(found.select(names)), found[LIVE].to_pylist()
    rows = list(zip(keys, live, found[CHANGED_AT].to_pylist(), strict=True))
    letters = [
        DeadLetter(schema.name, key_text(key), _missing(key), NULL_KEY, at)
        for key, is_there, at in rows
        if is_there
    ]
    last = {key_text(key): is_there for key, is_there, _ in rows}
    gone = [(key, None) for key, is_there in last.items() if not is_there]
    kept, former = pc.invert(keyless), batch.former_keys
    return replace(
        batch,
        events=events.filter(kept),
        rejected=(*batch.rejected, *letters),
        resolved=(*batch.resolved, *gone),
        unchanged={
            name: mask.filter(kept.combine_chunks()) for name, mask in batch.unchanged.items()
        },
        former_keys=None if former is None else former.filter(kept),
    )


def _missing(key: dict[str, object]) -> str:
    """Return the first column of a key that is null."""
    return next(name for name, part in key.items() if part is None)
