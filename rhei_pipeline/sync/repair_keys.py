"""Repairs a range of keys: what differs there is found at one source state and applied at another.

Rows of some sources can only be read apart from their changes. What is found in them is put right
in the next cycle, beside what that cycle applies; a key that was changed in between is right by
then.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from typing import Any

import pyarrow as pa

from rhei_pipeline.capabilities import is_ordered_alike, start_at
from rhei_pipeline.errors import SchemaError
from rhei_pipeline.model.changes import (
    Counts,
    DeadLetter,
    NetChanges,
    Position,
    key_text,
    read_keys,
    without_keys,
)
from rhei_pipeline.model.coverage import KeyRange
from rhei_pipeline.model.key_span import KeySpan
from rhei_pipeline.model.plain_values import plain_rows
from rhei_pipeline.model.schema import Table
from rhei_pipeline.protocols import SourceChanges, SourceRows
from rhei_pipeline.sync.quarantine import unknown_keys
from rhei_pipeline.sync.verify import VerifyTransaction, differing_ranges

_ROW = "_rhei_row"

#: A key as a caller gives it: its one value, its values in order, or by column.
Key = Mapping[str, Any] | Sequence[Any] | str | int | bytes | date


@dataclass(frozen=True, slots=True)
class RepairRange:
    """The keys to repair, both ends included; None: from the first one, to the last."""

    first: Key | None = None
    last: Key | None = None

    @classmethod
    def of(cls, key: Key | None, first: Key | None, last: Key | None) -> "RepairRange | None":
        """Return what is asked for; None: the whole table."""
        if key is not None:
            if first is not None or last is not None:
                raise SchemaError(
                    "one key and a range of keys were asked for", hint="give one of them"
                )
            return cls(key, key)
        return None if first is None and last is None else cls(first, last)

    @property
    def is_one_key(self) -> bool:
        """Whether it is one key alone."""
        return self.first is not None and self.first == self.last


@dataclass(frozen=True, slots=True)
class Mending:
    """What differs in a range of a table, to be put right by the next cycle.

    Attributes:
        changes: What leads from the mirror's rows to the source's.
        since: A position after which the range may have changed.
        found: The rows that are missing, different and too many.
        ranges: Their keys.
        done: What was changed, once it was.
    """

    table: str
    changes: NetChanges
    since: Position
    found: Counts
    ranges: tuple[KeyRange, ...]
    done: list[Counts] = field(default_factory=list)


def key_of(given: Key, table: Table) -> pa.Table:
    """Return a key as a table of one row.

    Raises:
        SchemaError: It is none of the table's.
    """
    names = table.schema.primary_key
    if isinstance(given, Mapping):
        parts = dict(given)
    else:
        values = (
            [given] if isinstance(given, str | bytes) or not isinstance(given, Sequence) else given
        )
        parts = dict(zip(names, values, strict=False)) if len(values) == len(names) else {}
    texts = [key_text(parts)] if parts.keys() == set(names) else []
    found = read_keys(texts, table.schema, in_words=True)
    if not found.num_rows:
        raise SchemaError(
            "this is no key of it",
            table=table.name,
            hint=f"give {', '.join(names)}, in the form that 'rhei verify' shows",
        )
    return found


def find_differences(
    table: Table,
    snapshot: SourceRows,
    transaction: VerifyTransaction,
    asked: RepairRange,
    at_once: int,
) -> Mending:
    """Compare a range, at the snapshot that the mirror is brought to; only what differs is held.

    Raises:
        SchemaError: The source orders the table's keys in its own way, so that it has no range;
            or the range ends before it begins.
    """
    is_range = asked != RepairRange() and not asked.is_one_key
    if is_range and not is_ordered_alike(snapshot, table):
        raise SchemaError(
            "its keys are ordered in another way in the source than in the mirror, so that they"
            " have no ranges",
            table=table.name,
            hint="repair the whole table, or one key after the other",
        )
    first, last = (
        None if given is None else key_of(given, table) for given in (asked.first, asked.last)
    )
    span = KeySpan(first, last, includes_after=True)
    if is_range and first is not None and not KeySpan(until=last).holds(first)[0].as_py():
        raise SchemaError(
            "the range ends before it begins, so that it holds no key",
            table=table.name,
            hint="give the smaller key first",
        )
    rows = partial(rows_in_span, table, snapshot, span, at_once)
    found = transaction.compare(table, rows(), span)
    unknown = {key_text(key) for key in plain_rows(unknown_keys(table, transaction))}
    extra = without_keys(found.extra, unknown)
    wrong = pa.concat_tables([found.missing, found.different])
    upserts = [table.schema.arrow.empty_table()]
    if wrong.num_rows:
        upserts += (_of_keys(part, wrong) for part in rows())
    return Mending(
        table.name,
        NetChanges(pa.concat_tables(upserts), extra),
        snapshot.origin(table),
        Counts(found.missing.num_rows, found.different.num_rows, extra.num_rows),
        differing_ranges(pa.concat_tables([wrong, extra]), table.schema),
    )


def rows_in_span(
    table: Table,
    snapshot: SourceRows,
    span: KeySpan,
    at_once: int,
    on_rejected: Callable[[Sequence[DeadLetter]], None] = lambda _: None,
) -> Iterator[pa.Table]:
    """Yield the source's rows in a span; only these are read where the source finds keys.

    `on_rejected` is told of rows that were read, some of them outside, and do not fit.
    """
    resume = None if span.after is None else start_at(snapshot, table, span.after)
    is_found = resume is not None and span.after == span.until
    if is_found:
        at_once = 1  # its row, or one behind it
    ends_early = is_found or is_ordered_alike(snapshot, table)
    while batch := snapshot.rows(table, resume, at_once):
        on_rejected(batch.rejected)
        keys = batch.rows.select(list(table.schema.primary_key))
        yield batch.rows.filter(span.holds(keys))
        reached = is_found or (
            keys.num_rows and not KeySpan(until=span.until).holds(keys)[-1].as_py()
        )
        if ends_early and reached:
            return
        resume = batch.resume


def _of_keys(rows: pa.Table, keys: pa.Table) -> pa.Table:
    """Return the rows of these keys."""
    names = keys.column_names
    numbered = rows.select(names).append_column(_ROW, pa.array(range(rows.num_rows), pa.int64()))
    return rows.take(numbered.join(keys, names, join_type="left semi")[_ROW])


def untouched(mending: Mending, table: Table, snapshot: SourceChanges, at_once: int) -> NetChanges:
    """Return what is still to be put right: not what was changed since it was read."""
    names = list(table.schema.primary_key)
    upserts, tombstones = mending.changes.upserts, mending.changes.tombstones
    for batch in snapshot.net_changes(table, mending.since, at_once):
        if batch.truncated_at is not None:
            return NetChanges(upserts.slice(0, 0), tombstones.slice(0, 0))
        changed = batch.events.select(names)
        upserts, tombstones = _without(upserts, changed), _without(tombstones, changed)
    return NetChanges(upserts, tombstones)


def _without(rows: pa.Table, keys: pa.Table) -> pa.Table:
    if not rows.num_rows or not keys.num_rows:
        return rows
    names = keys.column_names
    numbered = rows.select(names).append_column(_ROW, pa.array(range(rows.num_rows), pa.int64()))
    return rows.take(numbered.join(keys, names, join_type="left anti")[_ROW])
