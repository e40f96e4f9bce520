"""Forgets keys: removes them from the mirror with their past, and searches what is on the disk."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.capabilities import erase_pruned, refuse_unless_forgetting, snapshot_of_rows
from rhei_pipeline.changes.masks import has_masked_key
from rhei_pipeline.errors import QueryError, SchemaError
from rhei_pipeline.model.forgetting import BEYOND, ROWS_OF_BEFORE, ForgetReport, Search
from rhei_pipeline.model.key_span import KeySpan
from rhei_pipeline.model.report import counted
from rhei_pipeline.model.schema import OPERATION, Table
from rhei_pipeline.protocols import ChangeSource, Mirror
from rhei_pipeline.sql.text import mirror_table, quote
from rhei_pipeline.sync.repair_keys import Key, key_of, rows_in_span

#: Shorter texts occur by chance.
_SHORTEST_BYTES = 6
#: Values that are looked for in the other rows by one query.
_AT_ONCE = 500


def keys_of(given: Sequence[Key], table: Table) -> pa.Table:
    """Return keys as one table.

    Raises:
        SchemaError: One is none of the table's, or there is none.
    """
    if not given:
        raise SchemaError("no key was given", table=table.name, hint="name one with '--key'")
    found = pa.concat_tables([key_of(key, table) for key in given])
    return found.group_by(found.column_names).aggregate([])


def refuse_present(table: Table, keys: pa.Table, source: ChangeSource) -> None:
    """Refuse keys that the source still has: the next copy would bring them back.

    Raises:
        SchemaError: It has one.
    """
    with snapshot_of_rows(source) as snapshot:
        for number in range(keys.num_rows):
            key = keys.slice(number, 1)
            span = KeySpan(key, key, includes_after=True)
            if any(part.num_rows for part in rows_in_span(table, snapshot, span, 1000)):
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


def forget_keys(
    table: Table,
    keys: pa.Table,
    mirror: Mirror,
    source: ChangeSource,
    search: Search,
    *,
    dry_run: bool,
) -> ForgetReport:
    """Forget keys, and search the files before and after."""
    forgetting = refuse_unless_forgetting(mirror, table)
    found = forgetting.forget(table, keys, trial=True)
    values = list(_values([*found, keys]))
    before = search([value.on_disk for value in values])
    kept: tuple[str, ...] = ()
    if dry_run:
        own = list(range(len(values)))
        after: Mapping[str, Sequence[int]] = before
    else:
        found = forgetting.forget(table, keys)
        kept = forgetting.erase()
        if mirror.not_published is not None:
            kept += (f"what was published: {mirror.not_published.message}",)
        erase_pruned(source)
        shared = _shared(values, table, mirror)
        own = [n for n, value in enumerate(values) if value not in shared]
        after = search([value.on_disk for value in values])
    unknown = _unknown(table, keys, found)
    if unknown:
        kept += (
            f"{counted(unknown, 'key')} that no row had: the keys of this table are hashed; give"
            " them as the mirror has them",
        )
    return ForgetReport(
        table.name,
        keys.num_rows,
        sum(rows.num_rows for rows in found),
        len(own),
        _counts(before, own),
        _counts(after, own),
        kept,
        beyond=BEYOND if any(rows.num_rows for rows in found) else (ROWS_OF_BEFORE, *BEYOND),
        dry_run=dry_run,
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
