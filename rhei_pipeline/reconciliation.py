"""Is the mirror equal to its source? Name the drift; a repeated copy is the repair."""

from collections.abc import Iterator
from types import MappingProxyType

import pyarrow as pa

from rhei_pipeline.events import DeadLetter, key_text, without_keys
from rhei_pipeline.metrics import RowParity, TableVerification
from rhei_pipeline.protocols import MirrorTransaction, SourceSnapshot
from rhei_pipeline.schema import Table

#: How many keys of each kind of difference are named; the counts are always whole.
SAMPLE_KEYS = 20


def verify_table(
    table: Table, snapshot: SourceSnapshot, transaction: MirrorTransaction, batch_rows: int
) -> TableVerification:
    """Compare all rows, both ways, at the snapshot to which the mirror has been brought.

    A row that cannot be mirrored is counted among `dead_letters`; the mirror is not equal then.
    What the mirror keeps of such a row, its last good version, is not counted as a difference.
    """
    letters = list(snapshot.keyless(table))
    found = transaction.compare(table, _all_rows(table, snapshot, batch_rows, letters))
    unknown = {letter.key for letter in letters}
    extra = without_keys(found.extra, unknown)
    kinds = {"missing": found.missing, "extra": extra, "different": found.different}
    return TableVerification(
        table.name,
        rows=snapshot.count(table),
        missing=found.missing.num_rows,
        extra=extra.num_rows,
        different=found.different.num_rows,
        dead_letters=len(unknown),
        samples=MappingProxyType({kind: _samples(keys) for kind, keys in kinds.items()}),
    )


def count_rows(table: Table, snapshot: SourceSnapshot, transaction: MirrorTransaction) -> RowParity:
    """Count the rows of both sides at the snapshot to which the mirror has been brought."""
    return RowParity(
        table.name,
        source_rows=snapshot.count(table),
        mirror_rows=transaction.count(table),
        watermark=snapshot.head(table).order,
    )


def _all_rows(
    table: Table, snapshot: SourceSnapshot, batch_rows: int, letters: list[DeadLetter]
) -> Iterator[pa.Table]:
    resume = None
    while batch := snapshot.rows(table, resume, batch_rows):
        letters.extend(batch.rejected)
        yield batch.rows
        resume = batch.resume


def _samples(keys: pa.Table) -> tuple[str, ...]:
    return tuple(map(key_text, keys.slice(0, SAMPLE_KEYS).to_pylist()))
