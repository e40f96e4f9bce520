"""Encode a batch of changes, with all that belongs to it, as one Arrow table."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import pyarrow as pa

from rhei_pipeline.model.changes import ChangeBatch, DeadLetter
from rhei_pipeline.model.portions import PORTION_BYTES

_UNCHANGED = "_rhei_unchanged_"
_FORMER = "_rhei_former_"
_METADATA = b"rhei"


def seal(batch: ChangeBatch) -> pa.Table:
    """Return a batch of changes as one Arrow table."""
    table = batch.events
    for name, mask in batch.unchanged.items():
        table = table.append_column(_UNCHANGED + name, mask)
    if batch.former_keys is not None:
        for name in batch.former_keys.column_names:
            table = table.append_column(_FORMER + name, batch.former_keys[name])
    form = {
        "count": batch.count,
        "net": batch.net,
        "rejected": [letter.to_json() for letter in batch.rejected],
        "truncated_at": batch.truncated_at.isoformat() if batch.truncated_at else None,
        "resolved": batch.resolved,
        "whole_transactions": batch.whole_transactions,
    }
    return table.replace_schema_metadata({_METADATA: json.dumps(form).encode()})


def unseal(table: pa.Table) -> ChangeBatch:
    """Return the batch of changes that `seal` encoded."""
    form = json.loads(table.schema.metadata[_METADATA])
    own = [name for name in table.column_names if not name.startswith((_UNCHANGED, _FORMER))]
    masks, former = _with_prefix(table, _UNCHANGED), _with_prefix(table, _FORMER)
    return ChangeBatch(
        table.select(own).replace_schema_metadata(None),
        form["count"],
        form["net"],
        tuple(map(DeadLetter.from_json, form["rejected"])),
        {name: masks[name].combine_chunks() for name in masks.column_names},
        former if former.num_columns else None,
        datetime.fromisoformat(form["truncated_at"]) if form["truncated_at"] else None,
        resolved=tuple(map(_resolved, form.get("resolved", ()))),
        whole_transactions=form.get("whole_transactions", False),
    )


def in_size(batches: Iterator[ChangeBatch], limit: int) -> Iterator[ChangeBatch]:
    """Merge small batches and split large ones, so that each has about `limit` rows.

    A batch with dead letters is the last one merged into a batch: the order of a key's dead
    letter and its row must be preserved.
    """
    gathered: list[ChangeBatch] = []
    for batch in batches:
        if batch.unchanged or batch.truncated_at:
            yield from _joined(gathered, limit)
            yield batch
            gathered = []
            continue
        gathered.append(batch)
        if (
            batch.rejected
            or batch.resolved
            or sum(part.events.num_rows for part in gathered) >= limit
            or sum(part.events.nbytes for part in gathered) >= PORTION_BYTES
        ):
            yield from _joined(gathered, limit)
            gathered = []
    yield from _joined(gathered, limit)


def _joined(batches: Sequence[ChangeBatch], limit: int) -> Iterator[ChangeBatch]:
    if not batches:
        return
    whole = ChangeBatch(
        pa.concat_tables([batch.events for batch in batches]),
        sum(batch.count for batch in batches),
        all(batch.net for batch in batches),
        tuple(letter for batch in batches for letter in batch.rejected),
        resolved=tuple(found for batch in batches for found in batch.resolved),
        whole_transactions=all(batch.whole_transactions for batch in batches),
    )
    for start in range(0, whole.events.num_rows, limit) or [0]:
        last = start + limit >= whole.events.num_rows
        yield replace(
            whole,
            events=whole.events.slice(start, limit),
            count=whole.count if start == 0 else 0,
            rejected=whole.rejected if last else (),
            resolved=whole.resolved if last else (),
        )


def _with_prefix(table: pa.Table, prefix: str) -> pa.Table:
    names = [name for name in table.column_names if name.startswith(prefix)]
    return (
        table.replace_schema_metadata(None)
        .select(names)
        .rename_columns([name.removeprefix(prefix) for name in names])
    )


def _resolved(form: str | Sequence[Any]) -> tuple[str, str | None]:
    # Buffers of before hold keys alone.
    return (form, None) if isinstance(form, str) else (form[0], form[1])
