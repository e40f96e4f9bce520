"""One state of a source, with masked columns and chosen rows."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Protocol

import pyarrow as pa

from rhei_pipeline.capabilities import (
    beginning_of,
    count_where,
    doubt_about,
    draw_rows,
    is_ordered_alike,
    is_retained_for,
    keyless_count,
    keyless_rows,
    reads_ranges,
    rescan_due,
    shape_after,
    start_at,
)
from rhei_pipeline.changes.filters import RowFilter, chosen_changes, chosen_rows
from rhei_pipeline.changes.masks import (
    MaskingKey,
    has_masked_key,
    masked_key_text,
    masked_rows,
    source_table,
)
from rhei_pipeline.model.changes import ChangeBatch, DeadLetter, Position, RowBatch
from rhei_pipeline.model.schema import Table, TableSchema
from rhei_pipeline.protocols import Rescan, SourceSnapshot


class ReadsFilters(Protocol):
    """What reads row filters."""

    def of(self, table: Table) -> RowFilter | None:
        """Return the filter that a table is mirrored with."""


class Masks(Protocol):
    """The masks that are declared.

    Attributes:
        key: The key of hashes.
    """

    key: MaskingKey

    @property
    def filters(self) -> ReadsFilters:
        """What reads row filters."""

    def masked(self, schema: TableSchema, *, whole: bool = True) -> TableSchema:
        """Return a table's schema as the mirror has it."""

    def fits(self, table: Table) -> bool:
        """Return whether a table is masked as is declared now."""


class MaskedSnapshot:
    """A `SourceSnapshot` over another one; tables come and go with masked columns.

    Nothing is read for a table with other masks than those declared now: no position is proved
    for it, so it is copied again.

    Args:
        inner: The source's own.
        masks: What is declared.
        owned: Tables as the mirror and as the source has them; filled as they are asked for.
    """

    def __init__(
        self, inner: SourceSnapshot, masks: Masks, owned: dict[str, tuple[Table, Table]]
    ) -> None:
        self._inner = inner
        self._masks = masks
        self.clock = inner.clock
        self.schema_version = inner.schema_version
        self.shares_log = inner.shares_log
        self._owned = owned

    def _own(self, table: Table) -> Table:
        """Return a table as the source has it; a cycle asks again and again for each."""
        name = table.name
        known = self._owned.get(name)
        if known is None or known[0] is not table:
            known = self._owned[name] = table, source_table(table)
        return known[1]

    def head(self, table: Table) -> Position:
        """Return the source's answer."""
        return self._inner.head(self._own(table))

    def origin(self, table: Table) -> Position:
        """Return the source's answer."""
        return self._inner.origin(self._own(table))

    def proves(self, table: Table, position: Position) -> bool:
        """Return whether the source holds every change after it, and masks are as they were."""
        return self._masks.fits(table) and self._inner.proves(self._own(table), position)

    def pending(self, table: Table, after: Position) -> int:
        """Return the source's answer."""
        return self._inner.pending(self._own(table), after)

    def oldest_pending(self, table: Table, after: Position) -> datetime | None:
        """Return the source's answer."""
        return self._inner.oldest_pending(self._own(table), after)

    def retains(self, position: Position) -> bool:
        """Return the source's answer."""
        return is_retained_for(self._inner, position)

    def changes(self, table: Table, after: Position, limit: int) -> Iterator[ChangeBatch]:
        """Yield the source's changes, masked."""
        for batch in self._inner.changes(self._own(table), after, limit):
            yield self._masked(batch, table)

    def net_changes(self, table: Table, after: Position, limit: int) -> Iterator[ChangeBatch]:
        """Yield the source's net changes, masked."""
        for batch in self._inner.net_changes(self._own(table), after, limit):
            yield self._masked(batch, table)

    def rows(self, table: Table, resume: str | None, limit: int) -> RowBatch | None:
        """Return the next rows, masked; where to go on names a key, and is sealed where it must."""
        key, is_sealed = self._masks.key, has_masked_key(table.schema)
        if resume is not None and is_sealed:
            resume = key.unseal(resume)
        found = self._inner.rows(self._own(table), resume, limit)
        return None if found is None else self._masked_rows(found, table)

    @property
    def cuts_ranges(self) -> bool:
        """Whether the source can read ranges of keys."""
        return reads_ranges(self._inner)

    def range_ends(self, table: Table, count: int) -> Sequence[str]:
        """Return where ranges of the source's keys end; sealed where they would be seen."""
        if not reads_ranges(self._inner):
            return ()
        found = self._inner.range_ends(self._own(table), count)
        return [self._masks.key.seal(e) for e in found] if has_masked_key(table.schema) else found

    def rows_within(
        self, table: Table, resume: str | None, until: str | None, limit: int
    ) -> RowBatch | None:
        """Return the next rows of a range of keys, masked."""
        assert reads_ranges(self._inner)  # noqa: S101  (nobody asks otherwise)
        if has_masked_key(table.schema):
            unseal = self._masks.key.unseal
            resume = None if resume is None else unseal(resume)
            until = None if until is None else unseal(until)
        found = self._inner.rows_within(self._own(table), resume, until, limit)
        return None if found is None else self._masked_rows(found, table)

    def orders_bytewise(self, table: Table) -> bool:
        """Return the source's answer; masked keys come in the order of what they were."""
        return not has_masked_key(table.schema) and is_ordered_alike(self._inner, self._own(table))

    def start_at(self, table: Table, key: pa.Table) -> str | None:
        """Return the source's answer; what a masked key was, nobody knows."""
        is_known = not has_masked_key(table.schema)
        return start_at(self._inner, self._own(table), key) if is_known else None

    def draw(self, table: Table, share: float, limit: int) -> Iterator[RowBatch]:
        """Yield the source's rows, masked and in the filter."""
        for batch in draw_rows(self._inner, self._own(table), share, limit):
            yield self._masked_rows(batch, table)

    def _masked_rows(self, batch: RowBatch, table: Table) -> RowBatch:
        key, is_sealed = self._masks.key, has_masked_key(table.schema)
        if not _is_changed(table):
            return batch
        chosen = self._masks.filters.of(table)
        rows = chosen_rows(batch.rows, chosen) if chosen else batch.rows
        return RowBatch(
            masked_rows(rows, table.schema, key),
            key.seal(batch.resume) if is_sealed else batch.resume,
            self._letters(batch.rejected, table),
        )

    def count(self, table: Table) -> int:
        """Return the source's row count, of the rows in the filter."""
        own, chosen = self._own(table), self._masks.filters.of(table)
        return count_where(self._inner, own, chosen.sql) if chosen else self._inner.count(own)

    def rescan(self, table: Table, after: Position) -> Rescan:
        """Return the source's answer."""
        return rescan_due(self._inner, self._own(table), after)

    def doubt(self, table: Table) -> str | None:
        """Return the source's answer."""
        return doubt_about(self._inner, self._own(table))

    def keyless(self, table: Table) -> tuple[DeadLetter, ...]:
        """Return the source's rows without a key; parts that are there are masked."""
        return self._letters(keyless_rows(self._inner, self._own(table)), table)

    def keyless_count(self, table: Table, where: str) -> int:
        """Count the source's rows without a key, of those in the filter."""
        own, chosen = self._own(table), self._masks.filters.of(table)
        return keyless_count(self._inner, own, f"({where}) and ({chosen.sql})" if chosen else where)

    def next_shape(self, table: Table, after: Position) -> TableSchema | None:
        """Return the shape in which the table's changes go on, with the masks that it has then."""
        shape = shape_after(self._inner, self._own(table), after)
        return None if shape is None else self._masks.masked(shape, whole=False)

    def beginning(self, table: Table) -> tuple[Position, datetime] | None:
        """Return the source's answer."""
        return beginning_of(self._inner, self._own(table))

    def _masked(self, batch: ChangeBatch, table: Table) -> ChangeBatch:
        if not _is_changed(table):
            return batch
        schema, key = table.schema, self._masks.key
        chosen = self._masks.filters.of(table)
        batch = chosen_changes(batch, self._own(table).schema, chosen) if chosen else batch
        former = batch.former_keys
        return replace(
            batch,
            events=masked_rows(batch.events, schema, key),
            former_keys=None if former is None else masked_rows(former, schema, key),
            rejected=self._letters(batch.rejected, table),
            resolved=tuple((masked_key_text(text, schema, key), c) for text, c in batch.resolved),
        )

    def _letters(self, letters: tuple[DeadLetter, ...], table: Table) -> tuple[DeadLetter, ...]:
        if not has_masked_key(table.schema):
            return letters
        schema, key = table.schema, self._masks.key
        return tuple(replace(each, key=masked_key_text(each.key, schema, key)) for each in letters)


def _is_changed(table: Table) -> bool:
    """Return whether the mirror has a table otherwise than the source."""
    return bool(table.schema.where) or any(column.masked for column in table.schema.columns)
