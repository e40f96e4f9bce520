"""Compares the mirror with its source, row by row; a repeated copy repairs differences."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from types import MappingProxyType
from typing import Protocol

import pyarrow as pa

from rhei_pipeline.capabilities import draw_rows, gaps_in, keyless_count, keyless_rows
from rhei_pipeline.errors import MirrorDamagedError
from rhei_pipeline.model.blame import Blame
from rhei_pipeline.model.changes import (
    Comparison,
    DeadLetter,
    Operation,
    RowBatch,
    key_text,
    without_keys,
)
from rhei_pipeline.model.coverage import KeyRange, RowSample
from rhei_pipeline.model.key_span import KeySpan, orders_alike
from rhei_pipeline.model.plain_values import plain_rows
from rhei_pipeline.model.reports import SAMPLE_KEYS, RowParity, TableVerification
from rhei_pipeline.model.schema import (
    OPERATION,
    VALID_FROM,
    VALID_TO,
    Column,
    Mode,
    Table,
    TableSchema,
)
from rhei_pipeline.protocols import DeadLetterStore, Mirror, RowComparison, SourceRows
from rhei_pipeline.sql.text import listed, literal, mirror_table, quote

#: Versions of a history that an engine sorts at once.
SORTED_VERSIONS = 1_000_000


class VerifyTransaction(RowComparison, DeadLetterStore, Protocol):
    """What of a mirror's transaction a comparison in parts takes."""


def verify_tables(
    tables: Iterable[Table],
    snapshot: SourceRows,
    transaction: RowComparison,
    mirror: Mirror,
    batch_rows: int,
    blame: Blame,
) -> dict[str, TableVerification]:
    """Compare tables with the snapshot to which the mirror has been brought.

    `blame` is left with the table at which an error came up.
    """
    found = {}
    for table in tables:
        with blame.of(table.name):
            try:
                broken = broken_histories(table, mirror)
                verified = compare_whole(table, snapshot, transaction, batch_rows, broken)
            except MirrorDamagedError as error:
                if error.table != table.name:
                    raise
                verified = TableVerification.of_damaged(table.name, error)
            found[table.name] = verified
    return found


def compare_whole(
    table: Table,
    snapshot: SourceRows,
    transaction: RowComparison,
    batch_rows: int,
    broken: pa.Table,
) -> TableVerification:
    """Compare all rows, both ways, at the snapshot to which the mirror has been brought.

    A row that cannot be mirrored is counted among `dead_letters`; the mirror is not equal then.
    What the mirror keeps of such a row, its last good version, is not counted as a difference.
    `broken` is what `broken_histories` found.
    """
    rows, letters = snapshot.count(table), list(keyless_rows(snapshot, table))
    counted: Counter[str] = Counter()
    parts = _counted(_all_rows(table, snapshot, batch_rows, letters), table.name, counted)
    found = transaction.compare(table, parts)
    # By rows: several may share a key that is null in part.
    compared = Compared(rows, rows - counted[table.name], {letter.key for letter in letters})
    return _verification(table, found, compared, broken)


@dataclass(frozen=True, slots=True)
class Compared:
    """What was read of the source.

    Attributes:
        rows: All rows.
        dead_letters: Those that cannot be mirrored.
        unknown: The keys, as text, of which the mirror may keep the last good version.
    """

    rows: int
    dead_letters: int
    unknown: Collection[str]


def compare_rows(
    table: Table,
    transaction: RowComparison,
    rows: Iterable[pa.Table],
    span: KeySpan | None,
    compared: Compared,
    broken: pa.Table,
) -> TableVerification:
    """Compare the rows of a span of keys; see `RowComparison.compare`."""
    return _verification(table, transaction.compare(table, rows, span), compared, broken)


def _verification(
    table: Table, found: Comparison, compared: Compared, broken: pa.Table
) -> TableVerification:
    kinds = {
        "missing": found.missing,
        "extra": without_keys(found.extra, compared.unknown),
        "different": found.different,
        "duplicate": found.duplicate,
        "broken_history": broken,
    }
    return TableVerification(
        table.name,
        rows=compared.rows,
        **{kind: keys.num_rows for kind, keys in kinds.items()},
        dead_letters=compared.dead_letters,
        samples=MappingProxyType({kind: _samples(keys) for kind, keys in kinds.items()}),
        ranges=differing_ranges(pa.concat_tables(kinds.values()), table.schema),
    )


def differing_ranges(keys: pa.Table, schema: TableSchema) -> tuple[KeyRange, ...]:
    """Return up to `SAMPLE_KEYS` ranges of about equally many keys; none where they do not order.

    So few keys are a range each.
    """
    if not keys.num_rows or not orders_alike(schema):
        return ()
    names = list(schema.primary_key)
    ordered = keys.group_by(names).aggregate([]).sort_by([(name, "ascending") for name in names])
    step = -(-ordered.num_rows // SAMPLE_KEYS)
    return tuple(_range(ordered.slice(first, step)) for first in range(0, ordered.num_rows, step))


def _range(keys: pa.Table) -> KeyRange:
    ends = pa.concat_tables([keys.slice(0, 1), keys.slice(keys.num_rows - 1)])
    first, last = map(key_text, plain_rows(ends))
    return KeyRange(first, last, keys.num_rows)


def verify_sample(
    table: Table,
    snapshot: SourceRows,
    transaction: VerifyTransaction,
    share: float,
    batch_rows: int,
) -> TableVerification:
    """Compare rows that are drawn by lot, and count those of both sides."""
    letters: list[DeadLetter] = []
    counted: Counter[str] = Counter()
    drawn = _drawn(draw_rows(snapshot, table, share, batch_rows), letters)
    found = transaction.compare(table, _counted(drawn, table.name, counted), None)
    rejected = {letter.key for letter in letters}
    rows, keyless = counted[table.name] + len(rejected), keyless_count(snapshot, table)
    compared = Compared(rows, len(rejected) + keyless, rejected)
    seen = _verification(table, found, compared, table.schema.arrow_key.empty_table())
    # Rows without a key are in the source alone, and are no reason for fewer in the mirror.
    in_source = snapshot.count(table) - keyless
    sample = RowSample(share, rows, in_source, transaction.count(table))
    unknown = len({key for key, _ in transaction.quarantined(table)})
    fewer, more = sample.source_rows - sample.mirror_rows, sample.mirror_rows - sample.source_rows
    return replace(
        seen,
        missing=max(seen.missing, fewer if fewer > unknown else 0),
        extra=max(0, more),
        sample=sample,
    )


def _drawn(batches: Iterable[RowBatch], letters: list[DeadLetter]) -> Iterator[pa.Table]:
    for batch in batches:
        letters.extend(batch.rejected)
        yield batch.rows


def broken_histories(table: Table, mirror: Mirror) -> pa.Table:
    """Return the keys whose versions contradict each other, in the mirror as last committed.

    Versions of one key follow each other: each ends where the next one begins, or with a delete,
    and the last one may be valid still. One that its own transaction ended is empty. Successors
    that a repair has named as lost with a damaged file are not missed again.
    """
    if table.mode is Mode.DESTRUCTIVE:
        return table.schema.arrow_key.empty_table()
    # To DataFusion, the sum of a `real` and a zero is a double.
    return pa.concat_tables(
        mirror.query(_contradictions(table, gaps_in(mirror, table), which)).cast(
            table.schema.arrow_key
        )
        for which in _shares(table, mirror)
    )


def _shares(table: Table, mirror: Mirror) -> Iterator[str]:
    """Yield conditions that divide the versions by their keys: engines sort a share in memory."""
    whole = [c.name for c in table.schema.key_columns if pa.types.is_integer(c.type)]
    versions = mirror.query(f"select count(*) as n from {mirror_table(table.schema)}")["n"][0]
    shares = versions.as_py() // SORTED_VERSIONS + 1 if whole else 1
    if shares == 1:
        yield "true"
        return
    for share in range(shares):
        # The remainder of a negative number is negative.
        yield f"{quote(whole[0])} % {shares} in ({share}, {share - shares})"


def _contradictions(table: Table, gaps: datetime | None, which: str) -> str:
    key, name = listed(table.schema.primary_key), mirror_table(table.schema)
    # In a window, 0.0 and -0.0 are apart; they are one key.
    parts = [_one_zero(column) for column in table.schema.key_columns]
    start, end, follows = VALID_FROM, VALID_TO, "_rhei_follows"
    # Of those that one transaction began and ended, instants tell no order. Where one is followed
    # by another, the last of them is one that was deleted, or is valid for longer.
    order = f"{start}, {end} nulls last, {OPERATION} = {literal(Operation.DELETE)}"
    went_on = f"{end} is not null and {OPERATION} <> {literal(Operation.DELETE)}"
    if gaps is not None:
        went_on += f" and {end} >= timestamp {literal(f'{gaps:%Y-%m-%d %H:%M:%S.%f}')}"
    return (
        f"select distinct {key} from (select {key}, {start}, {end}, {OPERATION},"
        f" lead({start}) over (partition by {key} order by {order}) as {follows}"
        f" from (select {', '.join(parts)}, {start}, {end}, {OPERATION} from {name}"
        f" where {which}) as versions)"
        f" as followed where ({end} is null and {follows} is not null) or {end} < {start}"
        f" or {follows} < {end} or ({went_on} and ({follows} is null or {follows} <> {end}))"
    )


def _one_zero(column: Column) -> str:
    name = quote(column.name)
    return f"{name} + 0.0 as {name}" if pa.types.is_floating(column.type) else name


def count_rows(table: Table, snapshot: SourceRows, transaction: RowComparison) -> RowParity:
    """Count the rows of both sides at the snapshot to which the mirror has been brought."""
    return RowParity(
        table.name,
        source_rows=snapshot.count(table),
        mirror_rows=transaction.count(table),
        watermark=snapshot.head(table).order,
    )


def _all_rows(
    table: Table, snapshot: SourceRows, batch_rows: int, letters: list[DeadLetter]
) -> Iterator[pa.Table]:
    resume = None
    while batch := snapshot.rows(table, resume, batch_rows):
        letters.extend(batch.rejected)
        yield batch.rows
        resume = batch.resume


def _counted(parts: Iterable[pa.Table], name: str, counts: Counter[str]) -> Iterator[pa.Table]:
    for part in parts:
        counts[name] += part.num_rows
        yield part


def _samples(keys: pa.Table) -> tuple[str, ...]:
    return tuple(map(key_text, plain_rows(keys.slice(0, SAMPLE_KEYS))))
