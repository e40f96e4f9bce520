"""Compares a table part by part: each in a source state of its own, at a pace that is asked for."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from types import MappingProxyType

import pyarrow as pa

from rhei_pipeline.capabilities import is_ordered_alike, keyless_count, keyless_rows
from rhei_pipeline.errors import SettingsError
from rhei_pipeline.model.changes import DeadLetter, key_text, read_keys
from rhei_pipeline.model.coverage import CheckedPart, Coverage
from rhei_pipeline.model.key_span import KeySpan
from rhei_pipeline.model.plain_values import plain_rows
from rhei_pipeline.model.portions import PORTION_BYTES
from rhei_pipeline.model.reports import SAMPLE_KEYS, TableVerification
from rhei_pipeline.model.schema import Table
from rhei_pipeline.protocols import SourceRows
from rhei_pipeline.sync.quarantine import unknown_keys
from rhei_pipeline.sync.verify import (
    Compared,
    VerifyTransaction,
    compare_rows,
    compare_whole,
)

#: Rows of a part: they are held together.
PART_ROWS = 250_000
#: A part takes no longer than this, where a pace is asked for: then the source has a pause.
_PART_SECONDS = 5.0
_LEAST_ROWS = 1_000


@dataclass(frozen=True, slots=True)
class VerifyBudget:
    """How much a comparison may ask of the source.

    Attributes:
        rows_per_second: Its pace; None: as fast as it goes.
        max_rows: How many rows of each table, about; the next comparison goes on behind them.
            None: up to the table's end.
        sample: The chance of each row to be drawn; the others are not compared. None: all are.
    """

    rows_per_second: float | None = None
    max_rows: int | None = None
    sample: float | None = None

    def part_rows(self, compared: int) -> int:
        """Return how many rows the next part has, once so many are compared."""
        most = PART_ROWS
        if self.rows_per_second is not None:
            most = min(most, max(_LEAST_ROWS, int(self.rows_per_second * _PART_SECONDS)))
        return most if self.max_rows is None else min(most, self.max_rows - compared)

    def pause_seconds(self, rows: int, seconds: float) -> float:
        """Return how long to leave the source alone after so many rows in so many seconds."""
        return max(0.0, rows / self.rows_per_second - seconds) if self.rows_per_second else 0.0


def verify_budget(
    rows_per_second: float | None, max_rows: int | None, sample: float | None
) -> VerifyBudget:
    """Return a budget.

    Raises:
        SettingsError: A number is not positive or not finite, or a sample is asked for and
            something else, too.
    """
    for name, given in (
        *(("rows_per_second", rows_per_second), ("max_rows", max_rows)),
        ("sample", sample),
    ):
        if given is not None and not 0 < given < math.inf:
            raise SettingsError(
                f"{name} is {given}: no row would be compared", hint="give a number above 0"
            )
    if sample is not None and (sample > 1 or rows_per_second is not None or max_rows is not None):
        raise SettingsError(
            "a sample is a share of all rows, and is compared at one source state",
            hint="give a sample of up to 1 (100%) alone, without rows_per_second and max_rows",
        )
    return VerifyBudget(rows_per_second, max_rows, sample)


def within_budget(
    budget: VerifyBudget,
    compare_next: Callable[[int], TableVerification],
    pause: Callable[[float], None],
) -> TableVerification:
    """Compare part after part until the budget, or the table, is at its end."""
    total: TableVerification | None = None
    while True:
        began = time.monotonic()
        found = compare_next(budget.part_rows(total.rows if total else 0))
        total = found if total is None else _joined(total, found)
        is_whole = found.damage is not None or found.coverage is None or found.coverage.complete
        if is_whole or (budget.max_rows is not None and total.rows >= budget.max_rows):
            return total
        pause(budget.pause_seconds(found.rows, time.monotonic() - began))


def _joined(total: TableVerification, later: TableVerification) -> TableVerification:
    """Return what was found and a later part of the same table as one."""
    kinds = ("rows", "missing", "extra", "different", "dead_letters", "duplicate", "broken_history")
    counts = {kind: getattr(total, kind) + getattr(later, kind) for kind in kinds}
    samples = {
        kind: (*keys, *later.samples.get(kind, ()))[:SAMPLE_KEYS]
        for kind, keys in total.samples.items()
    }
    ranges = (*total.ranges, *later.ranges)[:SAMPLE_KEYS]
    return replace(
        later, **counts, ranges=ranges, samples=MappingProxyType({**later.samples, **samples})
    )


def verify_part(
    table: Table,
    snapshot: SourceRows,
    transaction: VerifyTransaction,
    sought: tuple[int, int],
    known: Coverage,
    find_broken: Callable[[Table], pa.Table],
) -> TableVerification:
    """Compare the part of a table that comes next, at the snapshot that the mirror is brought to.

    A table whose keys the source orders in its own way is one part. Histories are looked through
    with the last part of each round.

    Args:
        table: What is compared.
        snapshot: The source.
        transaction: The mirror.
        sought: How many rows, and how many of them are read at once.
        known: What was compared before.
        find_broken: Finds histories that contradict themselves.
    """
    if not is_ordered_alike(snapshot, table):
        found = compare_whole(table, snapshot, transaction, sought[1], find_broken(table))
        checked = CheckedPart(None, snapshot.clock, found.rows)
        return replace(found, coverage=Coverage(known.key, (checked,)))
    known = known.next_round()
    part = _read(table, snapshot, known, *sought)
    span = KeySpan(_key(known.through, table), _key(part.until, table))
    keyless = () if known.parts else keyless_rows(snapshot, table)
    # Several of these rows may share what there is of a key.
    unkeyed = 0 if known.parts else keyless_count(snapshot, table)
    broken = find_broken(table) if part.until is None else table.schema.arrow_key.empty_table()
    # What was rejected behind the last part's end is known by its open dead letters.
    also = unknown_keys(table, transaction)
    rejected = {letter.key for letter in part.letters}
    keys = rejected | {letter.key for letter in keyless} | set(map(key_text, plain_rows(also)))
    compared = Compared(part.count + unkeyed, len(rejected) + unkeyed, keys)
    found = compare_rows(table, transaction, part.rows, span, compared, broken)
    checked = CheckedPart(part.until, snapshot.clock, compared.rows)
    coverage = known.joined(checked, _behind(known.former, part.until, table), part.resume)
    return replace(found, coverage=coverage)


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows that follow each other.

    Attributes:
        until: The last key, as JSON; None: no row follows.
        resume: Where the source goes on.
        count: The rows, those that cannot be mirrored among them.
    """

    rows: list[pa.Table]
    letters: list[DeadLetter]
    until: str | None
    resume: str
    count: int


def _read(table: Table, snapshot: SourceRows, known: Coverage, most: int, at_once: int) -> _Part:
    rows: list[pa.Table] = []
    letters: list[DeadLetter] = []
    resume, count, size, last = known.resume if known.parts else None, 0, 0, known.through
    while last == known.through or (count < most and size < PORTION_BYTES):
        batch = snapshot.rows(table, resume, max(1, min(at_once, most - count)))
        if batch is None:
            return _Part(rows, letters, None, resume or "", count)
        resume = batch.resume
        rows.append(batch.rows)
        letters += batch.rejected
        count += batch.rows.num_rows + len({letter.key for letter in batch.rejected})
        size += batch.rows.nbytes
        if batch.rows.num_rows:
            key = batch.rows.select(list(table.schema.primary_key)).slice(batch.rows.num_rows - 1)
            last = key_text(next(iter(plain_rows(key))))
    is_end = snapshot.rows(table, resume, 1) is None
    return _Part(rows, letters, None if is_end else last, resume or "", count)


def _key(text: str | None, table: Table) -> pa.Table | None:
    return None if text is None else read_keys([text], table.schema)


def _behind(
    parts: Iterable[CheckedPart], until: str | None, table: Table
) -> tuple[CheckedPart, ...]:
    """Return the parts that reach further than a key."""
    bound = _key(until, table)
    if bound is None:
        return ()
    span = KeySpan(after=bound)
    return tuple(
        part
        for part in parts
        if (key := _key(part.until, table)) is None or span.holds(key)[0].as_py()
    )
