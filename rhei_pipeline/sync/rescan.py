"""Compares a whole table within a sync, for sources that cannot see every change.

Both sides are read once, as digests; rows are read again only in the ranges of keys that differ.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa

from rhei_pipeline.capabilities import keyless_rows
from rhei_pipeline.model.changes import DeadLetter, NetChanges, RowBatch, without_keys
from rhei_pipeline.model.schema import Table
from rhei_pipeline.protocols import (
    DeadLetterStore,
    RowComparison,
    SourcePositions,
    SourceRows,
)

#: Rows of one range: one that differs is read again whole.
RANGE_ROWS = 10_000


@dataclass
class _Ranges:
    """A table's rows in ranges of keys, each of which can be read again."""

    table: Table
    snapshot: SourceRows
    begins: list[tuple[str | None, int]] = field(default_factory=list)
    letters: list[DeadLetter] = field(default_factory=list)

    def read(self) -> Iterator[pa.Table]:
        resume = None
        while batch := self._at(resume):
            self.begins.append((resume, batch.rows.num_rows))
            self.letters.extend(batch.rejected)
            yield batch.rows
            resume = batch.resume

    def again(self, number: int) -> Iterator[pa.Table]:
        """Yield a range's rows, and maybe some behind it.

        How many come at once depends on what a server has counted: by now they may be fewer.
        """
        resume, left = self.begins[number]
        while left > 0 and (batch := self._at(resume)):
            yield batch.rows
            resume, left = batch.resume, left - batch.rows.num_rows

    def _at(self, resume: str | None) -> RowBatch | None:
        return self.snapshot.rows(self.table, resume, RANGE_ROWS)


class DriftTransaction(RowComparison, DeadLetterStore, Protocol):
    """What of a mirror's transaction a comparison takes."""


def find_drift(
    table: Table, snapshot: SourceRows, transaction: DriftTransaction, *, deletes: bool
) -> Iterator[NetChanges]:
    """Yield what leads from the mirror's present rows to the snapshot's, a range at a time.

    Ranges that differ come whole: what equals the mirror's rows changes nothing there. Keys the
    source has no more come as tombstones where `deletes` asks for them, but never a key whose row
    is there and cannot be mirrored: that one is a dead letter.
    """
    ranges = _Ranges(table, snapshot)
    stale, extra = transaction.compare_digests(table, ranges.read())
    unknown = _keep_letters(ranges, snapshot, transaction)
    nothing = table.schema.arrow.empty_table()
    for number in stale:
        for rows in ranges.again(number):
            yield NetChanges(rows, table.schema.arrow_key.empty_table())
    if deletes and extra.num_rows:
        yield NetChanges(nothing, without_keys(extra, unknown))


def _keep_letters(
    ranges: _Ranges, snapshot: SourcePositions, transaction: DeadLetterStore
) -> set[str]:
    """Keep the dead letters met, and resolve all others: every row was read.

    Returns:
        The keys, as text, of the rows that are there and cannot be mirrored.
    """
    table, letters = ranges.table, [*keyless_rows(snapshot, ranges.table), *ranges.letters]
    met = {letter.name for letter in letters}
    transaction.release(table, transaction.quarantined(table) - met, snapshot.clock)
    transaction.quarantine(letters)
    return {key for key, _ in met}
