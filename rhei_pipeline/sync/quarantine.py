"""Keeps rows that cannot be mirrored as dead letters, and resolves those that fit by now."""

from collections.abc import Iterable, Mapping

import pyarrow as pa

from rhei_pipeline.capabilities import keyless_rows
from rhei_pipeline.changes.null_keys import is_keyless
from rhei_pipeline.errors import DeadLettersFullError
from rhei_pipeline.model.changes import (
    ChangeBatch,
    LetterName,
    LetterReason,
    NetChanges,
    key_text,
    read_keys,
    without_keys,
)
from rhei_pipeline.model.plain_values import plain_rows
from rhei_pipeline.model.report import counted
from rhei_pipeline.model.retention import LetterBounds
from rhei_pipeline.model.schema import Table
from rhei_pipeline.protocols import DeadLetterStore, MirrorRecords, SourcePositions

#: So many reasons of dead letters are told of a table.
_REASONS = 5


def keep_letters(
    table: Table, batch: ChangeBatch, snapshot: SourcePositions, transaction: DeadLetterStore
) -> int:
    """Keep the rows that cannot be mirrored as dead letters; resolve those that now can.

    And those of rows that are no more, which have no event where no key tells of them.
    """
    known = transaction.quarantined(table)
    if known:
        rows = plain_rows(batch.events.select(list(table.schema.primary_key)))
        keys = set(map(key_text, rows))
        transaction.release(table, {name for name in known if name[0] in keys}, snapshot.clock)
    count = transaction.quarantine(batch.rejected)
    gone = _fitting_by_now(known, batch) if batch.truncated_at is None else known
    if batch.seen_at is not None:
        # A query for rows does not show that one has got a key.
        gone |= _no_longer_keyless(known, table, snapshot)
    if gone:
        transaction.release(table, gone, snapshot.clock)
    return count


def _fitting_by_now(known: set[LetterName], batch: ChangeBatch) -> set[LetterName]:
    """Return which letters, known or of the batch, are none behind it.

    A row that does not fit names all of its columns that do not: the others fit by now.
    """
    resolved, found = set(batch.resolved), letter_names(batch)
    valid = {(key, column) for key, column in found if not {(key, None), (key, column)} & resolved}
    # Rows that no key tells apart share their letters.
    misfits = {key for key, _ in valid if not is_keyless(key)}
    whole = {key for key, column in resolved if column is None}
    # Of a value that the source did not send, nothing is known.
    in_part = {(key, c) for key, c in known | found if key in misfits and c not in batch.unchanged}
    return (in_part | {name for name in known | found if name[0] in whole}) - valid


def letter_names(batch: ChangeBatch) -> set[LetterName]:
    """Return the names of the dead letters that a batch brings."""
    return {letter.name for letter in batch.rejected}


def _no_longer_keyless(
    letters: Iterable[LetterName], table: Table, snapshot: SourcePositions
) -> set[LetterName]:
    """Return those whose keys are null in part or whole and have no row any more."""
    keyless = {name for name in letters if is_keyless(name[0])}
    if not keyless:
        return set()
    there = {letter.key for letter in keyless_rows(snapshot, table)}
    return {name for name in keyless if name[0] not in there}


def unknown_keys(table: Table, transaction: DeadLetterStore) -> pa.Table:
    """Return the keys whose rows are dead letters."""
    return read_keys({key for key, _ in transaction.quarantined(table)}, table.schema)


def without_unknown(changes: NetChanges, unknown: pa.Table) -> NetChanges:
    """Return the changes but for those of unknown keys: a copy has what was there before.

    By then a history may have later versions of such a row, which came before it did not fit.
    """
    if not unknown.num_rows:
        return changes
    texts = {key_text(key) for key in plain_rows(unknown)}
    keys = plain_rows(changes.upserts.select(unknown.column_names))
    kept = pa.array([key_text(key) not in texts for key in keys], pa.bool_())
    return NetChanges(changes.upserts.filter(kept), without_keys(changes.tombstones, texts))


def refuse_overflow(
    table: Table,
    transaction: DeadLetterStore,
    mirror: MirrorRecords,
    bounds: LetterBounds,
    met: int | None = None,
) -> None:
    """Refuse more dead letters than are to be kept; fewer than before are taken in any case.

    Args:
        table: Whose they are.
        transaction: Has those that there would be.
        mirror: Has those that there were before.
        bounds: How many there may be.
        met: How many letters came, with those that were there before; None in a copy, which reads
            each row once.

    Raises:
        DeadLettersFullError: There would be too many. Nothing is kept of this transaction.
    """
    now = transaction.quarantined(table)
    if not bounds.exceeded_by(now, ()):
        return
    before = mirror.quarantined(table)
    if bounds.exceeded_by(now, before):
        reasons = told_reasons(transaction.letter_reasons(table))
        told = "; ".join(f"{reason} ({count:,})" for reason, count in reasons.items())
        raise DeadLettersFullError(
            f"it would have {counted(len(now), 'dead letter')}, which is more than 'dead_letters'"
            f" lets it have: {told}; the source keeps its changes",
            table=table.name,
            hint=_ways_out(
                table.name,
                is_copy=met is None,
                may_drop=_is_room(now - before, met, bounds),
            ),
        )


def told_reasons(found: Mapping[LetterReason, int]) -> dict[str, int]:
    """Return the most frequent reasons of dead letters in words, each with its number."""
    largest = sorted(found.items(), key=lambda counted: (-counted[1], counted[0]))[:_REASONS]
    return {
        f"column {column!r}: {reason}" if column else reason: count
        for (column, reason), count in largest
    }


def _is_room(new: set[LetterName], met: int | None, bounds: LetterBounds) -> bool:
    """Return whether what comes again fits, once the letters of before are forgotten.

    Rows that were changed again, or are to be tried again, come with what is pending.
    """
    if met is not None and met > len(new):
        return bounds.max_bytes is None and met <= (bounds.max_rows or 0)
    return not bounds.exceeded_by(new, ())


def _ways_out(name: str, *, is_copy: bool, may_drop: bool) -> str:
    """Return what leads out; to forget letters does only where there is room for the others."""
    if is_copy and may_drop:
        way = (
            f"correct the rows in the source and run 'rhei dead-letters --table {name} --drop', or"
            " raise 'dead_letters' in the declaration; the copy then goes on"
        )
    elif is_copy:
        way = (
            "correct the rows in the source, or raise 'dead_letters' in the declaration; the copy"
            " then goes on"
        )
    elif may_drop:
        way = (
            f"correct the rows in the source, run 'rhei dead-letters --table {name} --drop', or"
            " raise 'dead_letters' in the declaration; then sync"
        )
    else:
        way = (
            "correct the rows in the source, or raise 'dead_letters' in the declaration; then sync"
        )
    return way
