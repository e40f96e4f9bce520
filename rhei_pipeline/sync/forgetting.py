"""Forgets keys: removes them from the mirror with their past, and searches what is on the disk."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.capabilities import (
    Forgets,
    erase_pruned,
    refuse_unless_forgetting,
    snapshot_of_rows,
)
from rhei_pipeline.changes.masks import has_masked_key
from rhei_pipeline.errors import QueryError, SchemaError
from rhei_pipeline.model.changes import DeadLetter, key_text
from rhei_pipeline.model.forgetting import BEYOND, ROWS_OF_BEFORE, ForgetReport, Search
from rhei_pipeline.model.key_span import KeySpan
from rhei_pipeline.model.plain_values import plain_rows
from rhei_pipeline.model.report import counted
from rhei_pipeline.model.schema import OPERATION, Table
from rhei_pipeline.protocols import ChangeSource, Mirror
from rhei_pipeline.sql.text import mirror_table, quote
from rhei_pipeline.sync.repair_keys import Key, key_of, rows_in_span

#: Shorter texts occur by chance.
_SHORTEST_BYTES = 6
#: Values that are looked for in the other rows by one query.
_AT_ONCE = 500
#: How often files hold each text.
Found = Mapping[str, Sequence[int]]


def keys_of(given: Sequence[Key], table: Table) -> pa.Table:
    """Return keys as one table.

    Raises:
        SchemaError: One is none of the table's, or there is none.
    """
    if not given:
        raise SchemaError("no key was given", table=table.name, hint="name one with '--key'")
    found = pa.concat_tables([key_of(key, table) for key in given])
    return found.group_by(found.column_names).aggregate([])


def refuse_present(
    table: Table,
    keys: pa.Table,
    source: ChangeSource,
    is_meant: Callable[[pa.Table], pa.Array] | None = None,
) -> None:
    """Refuse keys that the source still has: the next copy would bring them back.

    With `is_meant`, only rows for which it holds; others have only the key in common. Of a row that
    does not fit, nobody can say that.

    Raises:
        SchemaError: It has one.
    """
    with snapshot_of_rows(source) as snapshot:
        for number in range(keys.num_rows):
            key = keys.slice(number, 1)
            span = KeySpan(key, key, includes_after=True)
            unfit: list[DeadLetter] = []
            parts = rows_in_span(table, snapshot, span, 1000, unfit.extend)
            meant = (part if is_meant is None else part.filter(is_meant(part)) for part in parts)
            there = any(part.num_rows for part in meant)
            (text,) = map(key_text, plain_rows(key))
            if there or (is_meant is None and any(letter.key == text for letter in unfit)):
                raise SchemaError(
                    "the source still has a row of this key, which would come back",
                    table=table.name,
                    hint="delete it in the source first, or leave it out by a filter, 'where'",
                )


@dataclass(frozen=True, slots=True)
class Value:
    """A text, or bytes, that a row to be forgotten has in a column."""

    column: str
    content: str | bytes

    @property
    def on_disk(self) -> bytes:
        """The bytes to search for."""
        return self.content.encode() if isinstance(self.content, str) else self.content


@dataclass(frozen=True, slots=True)
class KeysToForget:
    """Keys of a table that are to be forgotten.

    Attributes:
        found: They are the mirror's own; otherwise somebody gave them.
    """

    table: Table
    keys: pa.Table
    found: bool = False


def forget_keys(
    asked: Sequence[KeysToForget],
    mirror: Mirror,
    source: ChangeSource,
    search: Search,
    *,
    dry_run: bool,
) -> list[ForgetReport]:
    """Forget keys, the last table first, and search the files before and after."""
    forgetting = refuse_unless_forgetting(mirror, asked[0].table)
    found = [forgetting.forget(each.table, each.keys, trial=True) for each in asked]
    values = [list(_values([*rows, each.keys])) for rows, each in zip(found, asked, strict=True)]
    before = _searched(values, search)
    own, after = [list(range(len(of_table))) for of_table in values], before
    kept: tuple[str, ...] = ()
    if not dry_run:
        for place in reversed(range(len(asked))):
            found[place] = forgetting.forget(asked[place].table, asked[place].keys)
        kept = _erase(forgetting, mirror, source)
        own = [
            _of_these_alone(of_table, each.table, mirror)
            for of_table, each in zip(values, asked, strict=True)
        ]
        after = _searched(values, search)
    told = zip(asked, found, own, before, after, strict=True)
    reports = [_report(*part) for part in told]
    return [replace(report, kept=(*kept, *report.kept), dry_run=dry_run) for report in reports]


def _searched(values: Sequence[Sequence[Value]], search: Search) -> list[Found]:
    """Search for the texts of all tables at once; return what was found of each table's."""
    found = search([value.on_disk for of_table in values for value in of_table])
    ends = list(accumulate(map(len, values), initial=0))
    return [
        {file: counts[low:high] for file, counts in found.items()} for low, high in pairwise(ends)
    ]


def _erase(forgetting: Forgets, mirror: Mirror, source: ChangeSource) -> tuple[str, ...]:
    """Remove from the disk what was deleted; return what still stands there."""
    kept = forgetting.erase()
    if mirror.not_published is not None:
        kept += (f"what was published: {mirror.not_published.message}",)
    erase_pruned(source)
    return kept


def _of_these_alone(values: Sequence[Value], table: Table, mirror: Mirror) -> list[int]:
    shared = _shared(values, table, mirror)
    return [number for number, value in enumerate(values) if value not in shared]


def _report(
    asked: KeysToForget, found: Sequence[pa.Table], own: Sequence[int], before: Found, after: Found
) -> ForgetReport:
    rows = sum(part.num_rows for part in found)
    return ForgetReport(
        asked.table.name,
        asked.keys.num_rows,
        rows,
        len(own),
        _counts(before, own),
        _counts(after, own),
        tuple(_hashed_otherwise(asked, found)),
        beyond=BEYOND if rows else (ROWS_OF_BEFORE, *BEYOND),
    )


def _hashed_otherwise(asked: KeysToForget, found: Sequence[pa.Table]) -> Iterator[str]:
    unknown = 0 if asked.found else _unknown(asked.table, asked.keys, found)
    if unknown:
        yield (
            f"{counted(unknown, 'key')} that no row had: the keys of this table are hashed; give"
            " them as the mirror has them"
        )


def _unknown(table: Table, keys: pa.Table, found: Sequence[pa.Table]) -> int:
    """Return how many keys no row had, of a table whose keys are not those of the source."""
    if not has_masked_key(table.schema):
        return 0
    names = keys.column_names
    met = [rows.select(names).cast(keys.schema) for rows in found]
    rows = pa.concat_tables([keys.slice(0, 0), *met])
    there: int = rows.group_by(names).aggregate([]).num_rows
    asked: int = keys.num_rows
    return asked - there


def _values(rows: Iterable[pa.Table]) -> Iterator[Value]:
    """Yield each text and each run of bytes once that is long enough not to occur by chance."""
    seen: set[bytes] = set()
    for part in rows:
        for field in part.schema:
            kind = field.type
            is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
            if field.name == OPERATION or not (is_text or pa.types.is_binary(kind)):
                continue
            for content in pc.unique(part[field.name]).to_pylist():
                if content is None:
                    continue
                value = Value(field.name, content)
                if len(value.on_disk) >= _SHORTEST_BYTES and value.on_disk not in seen:
                    seen.add(value.on_disk)
                    yield value


def _shared(values: Sequence[Value], table: Table, mirror: Mirror) -> set[Value]:
    """Return the values that rows which stay have, too: they say nothing of those that are gone."""
    of_column: dict[str, list[Value]] = {}
    for value in values:
        of_column.setdefault(value.column, []).append(value)
    found: set[Value] = set()
    for column, wanted in of_column.items():
        for first in range(0, len(wanted), _AT_ONCE):
            some = wanted[first : first + _AT_ONCE]
            asked = (
                f"select distinct {quote(column)} as v from {mirror_table(table.schema)}"
                f" where {quote(column)} in ({', '.join('?' * len(some))})"
            )
            # A column that left the table has none, nor one that is not compared with texts.
            with suppress(QueryError):
                rows = mirror.query(asked, [value.content for value in some])
                found |= {Value(column, content) for content in rows["v"].to_pylist()}
    return found


def _counts(found: Mapping[str, Sequence[int]], own: Sequence[int]) -> dict[str, int]:
    sums = {file: sum(counts[n] for n in own) for file, counts in found.items()}
    return {file: count for file, count in sorted(sums.items()) if count}
