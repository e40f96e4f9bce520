"""Appended events in a table's declared shape; what does not fit it becomes dead letters."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.buffer.layout import Extent
from rhei_pipeline.buffer.log import ChangeLog
from rhei_pipeline.changes.compaction import last_per_key
from rhei_pipeline.changes.null_keys import without_keyless
from rhei_pipeline.errors import SchemaError
from rhei_pipeline.model.changes import (
    CHANGED_AT,
    LIVE,
    SEQUENCE,
    ChangeBatch,
    DeadLetter,
    event_schema,
    key_text,
)
from rhei_pipeline.model.instants import microseconds
from rhei_pipeline.model.logical_texts import admit_texts
from rhei_pipeline.model.plain_values import plain_rows
from rhei_pipeline.model.schema import Column, TableSchema, nearest
from rhei_pipeline.model.selection import columns_of
from rhei_pipeline.model.type_names import INSTANT

_Values: TypeAlias = pa.ChunkedArray | pa.Array
#: Returns values in the type that they are to have; raises where one does not fit it.
_Take: TypeAlias = Callable[[_Values], _Values]
#: The instants of a log are read as Python's datetimes.
_FIRST_US, _LAST_US = (
    microseconds(datetime.min.replace(tzinfo=UTC)),
    microseconds(datetime.max.replace(tzinfo=UTC)),
)


def batches(
    log: ChangeLog, extents: list[Extent], schema: TableSchema, known: frozenset[str]
) -> Iterator[ChangeBatch]:
    """Yield the events of extents, in order.

    Args:
        log: Where they are.
        extents: Which of them.
        schema: The table's shape.
        known: All columns that events of the table may have.
    """
    for extent in extents:
        for part in log.parts(schema.name, extent):
            yield _batch(part, extent, schema, known)


def net(found: list[ChangeBatch], schema: TableSchema) -> Iterator[ChangeBatch]:
    """Yield the batches without the events that are followed by a later one of the same key."""
    if not found:
        return
    keys = pa.concat_tables([batch.events.select(list(schema.primary_key)) for batch in found])
    last = np.zeros(keys.num_rows, dtype=bool)
    last[last_per_key(keys, schema)] = True
    start = 0
    for batch in found:
        kept = last[start : start + batch.events.num_rows]
        start += len(kept)
        yield replace(batch, events=batch.events.filter(pa.array(kept)), net=True)


def open_letters(found: list[ChangeBatch], schema: TableSchema) -> tuple[DeadLetter, ...]:
    """Return the dead letters of keys that have had no event since that fits."""
    waiting: dict[str, list[DeadLetter]] = {}
    for batch in found:
        if waiting:
            for key in plain_rows(batch.events.select(list(schema.primary_key))):
                waiting.pop(key_text(key), None)
        fit_again = {key for key, _ in batch.resolved}
        for letter in batch.rejected:
            if letter.key not in fit_again:
                waiting.setdefault(letter.key, []).append(letter)
    return tuple(letter for letters in waiting.values() for letter in letters)


def _batch(
    part: pa.Table, extent: Extent, schema: TableSchema, known: frozenset[str]
) -> ChangeBatch:
    strange = sorted(set(part.column_names) - known - {SEQUENCE, CHANGED_AT, LIVE})
    if strange:
        raise SchemaError(
            f"an event has a column {strange[0]!r} that is not declared",
            table=schema.name,
            hint=f"declare its type under 'types'; {nearest(strange[0], sorted(known))}",
        )
    count = part.num_rows
    made: dict[str, pa.ChunkedArray | pa.Array] = {SEQUENCE: part[SEQUENCE]}
    misfits: dict[str, np.ndarray] = {}
    own = columns_of(part)
    for name, (take, default) in _said_of_itself(extent).items():
        given, filled = own.get(name, pa.nulls(count)), pa.repeat(default, count)
        found, misfits[name] = _taken(given, filled.type, take)
        made[name] = pc.coalesce(found, filled)
    for column in schema.columns:
        given = own[column.name] if column.name in own else pa.nulls(count)
        made[column.name], misfits[column.name] = _fitting(given, column)
    events = pa.table([made[name] for name in event_schema(schema).names], event_schema(schema))
    return without_keyless(_without_misfits(events, misfits, schema), schema)


def _said_of_itself(extent: Extent) -> dict[str, tuple[_Take, pa.Scalar]]:
    """Return what an event may say of itself: how that is read, and what holds without it."""
    appended = pa.scalar(extent.written_us, pa.int64()).cast(INSTANT)
    return {
        CHANGED_AT: (_instants, appended),
        LIVE: (lambda given: given.cast(pa.bool_()), pa.scalar(value=True)),
    }


def _instants(given: _Values) -> _Values:
    """Return instants; those of finer clocks are cut to microseconds.

    Raises:
        pa.ArrowInvalid: One is no instant, or not of the years 1 to 9999.
    """
    is_finer = pa.types.is_timestamp(given.type) and given.type.unit == "ns"
    made = given.cast(INSTANT, safe=not is_finer)
    first, last = pc.min_max(made.cast(pa.int64())).values()
    if first.is_valid and not _FIRST_US <= first.as_py() <= last.as_py() <= _LAST_US:
        raise pa.ArrowInvalid("an instant is out of range")
    return made


def _fitting(given: pa.ChunkedArray, column: Column) -> tuple[pa.ChunkedArray, np.ndarray]:
    """Return values in a column's type, null where they do not fit it, and where that is."""
    return _taken(given, column.type, lambda values: _cast(values, column))


def _taken(given: _Values, kind: pa.DataType, take: _Take) -> tuple[_Values, np.ndarray]:
    try:
        return take(given), np.zeros(len(given), dtype=bool)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        values = [_single(value, take) for value in given]
    misfits = np.array([value is None for value in values], dtype=bool)
    scalars = [pa.scalar(None, kind) if value is None else value for value in values]
    return pa.chunked_array([pa.array(scalars, kind)]), misfits


def _cast(given: pa.ChunkedArray | pa.Array, column: Column) -> pa.ChunkedArray:
    if column.epoch is not None and pa.types.is_integer(given.type):
        given = given.cast(pa.int64()).cast(pa.timestamp(column.epoch, "UTC"))
    return _logical(given.cast(column.type), column)


def _logical(taken: pa.ChunkedArray | pa.Array, column: Column) -> pa.ChunkedArray | pa.Array:
    if column.logical is not None:
        for chunk in taken.chunks if isinstance(taken, pa.ChunkedArray) else [taken]:
            admit_texts(chunk, column.logical, trusted=False)
    return taken


def _single(value: pa.Scalar, take: _Take) -> pa.Scalar | None:
    try:
        return take(pa.array([value], value.type))[0]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None


def _without_misfits(
    events: pa.Table, misfits: dict[str, np.ndarray], schema: TableSchema
) -> ChangeBatch:
    live = events[LIVE].to_numpy()
    # The end of a row has no values that could be wrong, but it has a time.
    counted = {name: found & (live | (name == CHANGED_AT)) for name, found in misfits.items()}
    wrong = {name: found for name, found in counted.items() if found.any()}
    if not wrong:
        return ChangeBatch(events, events.num_rows)
    keys = [key_text(key) for key in plain_rows(events.select(list(schema.primary_key)))]
    times = events[CHANGED_AT].to_pylist()
    kinds = {column.name: column.logical or column.type for column in schema.columns}
    kinds |= {CHANGED_AT: INSTANT, LIVE: pa.bool_()}
    letters = [
        DeadLetter(schema.name, keys[row], name, f"it does not fit {kinds[name]}", times[row])
        for name, found in wrong.items()
        for row in np.flatnonzero(found).tolist()
    ]
    refused = np.logical_or.reduce(list(wrong.values()))
    last = {key: bool(refused[row]) for row, key in enumerate(keys)}
    resolved = tuple((key, None) for key in {letter.key for letter in letters} if not last[key])
    kept = events.filter(pa.array(~refused))
    return ChangeBatch(kept, events.num_rows, rejected=tuple(letters), resolved=resolved)
