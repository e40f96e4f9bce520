"""The dead letters of a mirror of files, as one Arrow table."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.model.changes import DeadLetter, LetterName, LetterReason
from rhei_pipeline.model.schema import Mode, Table
from rhei_pipeline.model.type_names import INSTANT

LETTERS = pa.schema(
    [
        ("table_name", pa.string()),
        ("key", pa.string()),
        ("column_name", pa.string()),
        ("reason", pa.string()),
        ("captured_at", INSTANT),
        ("resolved_at", INSTANT),
    ]
)


def keep(kept: pa.Table, letters: Iterable[DeadLetter]) -> tuple[pa.Table, int]:
    """Add dead letters, replacing open ones of the same table, key and column.

    Returns:
        All dead letters, and the number of distinct new ones.
    """
    latest = {(letter.table, letter.key, letter.column): letter for letter in letters}
    if not latest:
        return kept, 0
    open_ones = pc.is_null(kept["resolved_at"]).to_pylist()
    names = zip(*(kept[name].to_pylist() for name in LETTERS.names[:3]), strict=True)
    replaced = [is_open and name in latest for is_open, name in zip(open_ones, names, strict=True)]
    rows = pa.Table.from_pylist([_row(letter) for letter in latest.values()], LETTERS)
    stay = kept.filter(pc.invert(pa.array(replaced, pa.bool_())))
    return pa.concat_tables([stay, rows]), len(latest)


def _row(letter: DeadLetter) -> dict[str, object]:
    return {
        "table_name": letter.table,
        "key": letter.key,
        "column_name": letter.column,
        "reason": letter.reason,
        "captured_at": letter.captured_at,
        "resolved_at": None,
    }


def open_letters(kept: pa.Table, table: str | None = None) -> pa.Table:
    """Return the dead letters that are not resolved, of one table or of all, the oldest first."""
    found = kept.filter(is_open(kept, table)).drop_columns(["resolved_at"])
    return found.sort_by([(name, "ascending") for name in ("captured_at", "table_name", "key")])


def is_open(kept: pa.Table, table: str | None = None) -> pa.ChunkedArray:
    """Return a mask of the dead letters that are not resolved, of one table or of all."""
    unresolved = pc.is_null(kept["resolved_at"])
    if table is None:
        return unresolved
    return pc.and_(unresolved, pc.equal(kept["table_name"], table))


def open_names(kept: pa.Table, table: str) -> set[LetterName]:
    """Return the names of a table's dead letters that are not resolved."""
    found = kept.filter(is_open(kept, table))
    return set(zip(found["key"].to_pylist(), found["column_name"].to_pylist(), strict=True))


def reasons(kept: pa.Table, table: str) -> Mapping[LetterReason, int]:
    """Return how many of a table's open dead letters have each column and reason."""
    found = kept.filter(is_open(kept, table)).select(["column_name", "reason"])
    return Counter(zip(*(column.to_pylist() for column in found.columns), strict=True))


def release(
    kept: pa.Table, table: str, letters: Collection[LetterName], at: datetime | None
) -> pa.Table:
    """Resolve open dead letters: set their time, or delete them where `at` is None."""
    wanted = set(letters)
    names = zip(kept["key"].to_pylist(), kept["column_name"].to_pylist(), strict=True)
    named = pa.array([name in wanted for name in names], pa.bool_())
    chosen = pc.and_(is_open(kept, table), named)
    if at is None:
        return kept.filter(pc.invert(chosen))
    dated = pc.if_else(chosen, pa.scalar(at, INSTANT), kept["resolved_at"])
    return kept.set_column(LETTERS.get_field_index("resolved_at"), "resolved_at", dated)


def forget(kept: pa.Table, table: str) -> pa.Table:
    """Delete all dead letters of a table."""
    return kept.filter(pc.not_equal(kept["table_name"], table))


def without_keys(kept: pa.Table, table: str, keys: pa.Array) -> pa.Table:
    """Delete the dead letters of some of a table's keys, open and resolved ones."""
    chosen = pc.and_(pc.equal(kept["table_name"], table), pc.is_in(kept["key"], keys))
    return kept.filter(pc.invert(chosen))


def rename(kept: pa.Table, old: str, table: Table) -> pa.Table:
    """Assign the dead letters of a table to its new name, under which it was copied again."""
    again = open_names(kept, old)
    if table.mode is Mode.TEMPORAL:  # others may be of versions that the copy has not met
        again &= open_names(kept, table.name)
    kept = release(kept, old, again, None)
    names = pc.if_else(pc.equal(kept["table_name"], old), table.name, kept["table_name"])
    return kept.set_column(LETTERS.get_field_index("table_name"), "table_name", names)
