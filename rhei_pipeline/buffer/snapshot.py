"""One state of a source whose changes are read from the buffer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
import pyarrow as pa

from rhei_pipeline.buffer.codec import in_size, unseal
from rhei_pipeline.buffer.layout import Extent, numbered
from rhei_pipeline.buffer.log import ChangeLog
from rhei_pipeline.capabilities import (
    doubt_about,
    draw_rows,
    is_ordered_alike,
    keyless_count,
    keyless_rows,
    reads_ranges,
    start_at,
)
from rhei_pipeline.changes.compaction import last_per_key
from rhei_pipeline.errors import PermanentError, RheiError, SchemaError
from rhei_pipeline.model.changes import ChangeBatch, DeadLetter, Position, RowBatch
from rhei_pipeline.model.instants import instant
from rhei_pipeline.model.schema import Mode, Table, TableSchema
from rhei_pipeline.protocols import Rescan, SourceSnapshot


@dataclass(frozen=True, slots=True)
class FollowedTable:
    """A table whose changes go through the buffer.

    Attributes:
        table: Its shape when capture was installed; what the log holds behind `begins` is of this.
        inner: Up to where the source has been drained; None once the source lost changes.
        read_to: The highest order ever drained; the source's positions have to lie behind it.
        rescan: Whether the source asked for a whole comparison that the mirror has not made yet.
        begins: The last order whose event is of another shape; no mirror can go on before it.
    """

    table: Table
    inner: Position | None
    read_to: int
    rescan: bool = False
    begins: int = 0

    def fits(self, table: Table, position: Position) -> bool:
        """Return whether all events behind a position are of a table's shape."""
        return self.table.schema == table.schema and position.order >= self.begins

    def leaves(self, table: Table, position: Position) -> bool:
        """Return whether a table's shape ends at a position, and another one begins there."""
        return table.schema != self.table.schema and 0 < self.begins == position.order

    def leads_on(self, snapshot: SourceSnapshot) -> bool:
        """Return whether the source still holds all changes after those that were drained."""
        return self.inner is not None and snapshot.proves(self.table, self.inner)


class BufferedSnapshot:
    """A `SourceSnapshot` that reads changes from the buffer and rows from the source.

    Args:
        inner: The source's snapshot: rows and clock.
        log, bridged: The buffer, and the tables that go through it.
        passes_on: Whether the source's own pending changes follow those of the buffer.
        unreadable: Why tables could not be drained: their schema changed, or they failed.
        describe: Returns a table's schema as it is now.

    Attributes:
        rescanned: The tables for which a whole comparison was asked for here.
    """

    shares_log = False

    def __init__(
        self,
        inner: SourceSnapshot,
        log: ChangeLog,
        bridged: Mapping[str, FollowedTable],
        *,
        passes_on: bool,
        unreadable: Mapping[str, RheiError],
        describe: Callable[[str], TableSchema],
    ) -> None:
        self._inner = inner
        self._log = log
        self._bridged = bridged
        self._passes_on = passes_on
        self._unreadable = unreadable
        self._describe = describe
        self.rescanned: set[str] = set()
        self.clock = inner.clock
        self.schema_version = inner.schema_version

    def head(self, table: Table) -> Position:
        """Return the buffer's newest position."""
        return self._log.head(table.name)

    def origin(self, table: Table) -> Position:
        """Return the newest buffered position at the time when the rows were read."""
        reached = self._inner.origin(table).order
        bridged = self._bridged.get(table.name)
        if bridged is None or bridged.inner is None or bridged.inner.order <= reached:
            return self.head(table)
        extents = self._log.extents(table.name, -1)
        early = [extent for extent in extents if extent.source_order <= reached]
        return (early or extents)[-1 if early else 0].position

    def proves(self, table: Table, position: Position) -> bool:
        """Return whether the buffer holds the position, and what follows in the table's shape.

        Or in the shape that `next_shape` tells of.
        """
        if isinstance(failure := self._unreadable.get(table.name), PermanentError):
            raise failure
        bridged = self._bridged.get(table.name)
        if bridged is not None and not bridged.fits(table, position):
            return self._leaves(table, position) and self._log.holds(table.name, position)
        return self._log.holds(table.name, position)

    def pending(self, table: Table, after: Position) -> int:
        """Count the events in the buffer, and those that were not drained from the source yet."""
        if self._leaves(table, after):
            return 0  # none of the table's shape; `next_shape` tells of the others
        return self.head(table).order - after.order + self._undrained(table)

    def next_shape(self, table: Table, after: Position) -> TableSchema | None:
        """Return the shape of what is buffered where neither the mirror nor the source has it.

        Capture went on in it after a migration, no sync was completed, and another one followed.
        """
        if not self._leaves(table, after):
            return None
        own = self._bridged[table.name].table
        return None if self._is_as_in_source(own) else own.schema

    def oldest_pending(self, table: Table, after: Position) -> datetime | None:
        """Return when the first event after the position was made."""
        held = self._held(table, after)
        if held:
            return instant(held[0].oldest_us)
        position = self._drained_to(table)
        return None if position is None else self._inner.oldest_pending(table, position)

    def changes(self, table: Table, after: Position, limit: int) -> Iterator[ChangeBatch]:
        """Yield all versions of a temporal table in order, or net changes of a destructive one."""
        held = self._readable(table, after)
        if table.mode is Mode.TEMPORAL or len(held) == 1:
            found = self._batches(table, held)
        else:
            found = self._net(table, held)
        yield from in_size(found, limit)
        yield from self._passed_on(table, limit)

    def net_changes(self, table: Table, after: Position, limit: int) -> Iterator[ChangeBatch]:
        """Yield the last change of each key."""
        held = self._readable(table, after)
        yield from in_size(self._net(table, held), limit)
        yield from self._passed_on(table, limit)

    def rows(self, table: Table, resume: str | None, limit: int) -> RowBatch | None:
        """Return rows of the source."""
        return self._inner.rows(table, resume, limit)

    @property
    def cuts_ranges(self) -> bool:
        """Whether the source can read ranges of keys."""
        return reads_ranges(self._inner)

    def range_ends(self, table: Table, count: int) -> Sequence[str]:
        """Return where ranges of the source's keys end."""
        return self._inner.range_ends(table, count) if reads_ranges(self._inner) else ()

    def rows_within(
        self, table: Table, resume: str | None, until: str | None, limit: int
    ) -> RowBatch | None:
        """Return the source's rows of a range of keys."""
        assert reads_ranges(self._inner)  # noqa: S101  (nobody asks otherwise)
        return self._inner.rows_within(table, resume, until, limit)

    def keyless(self, table: Table) -> tuple[DeadLetter, ...]:
        """Return the source's rows without a key."""
        return keyless_rows(self._inner, table)

    def keyless_count(self, table: Table, where: str) -> int:
        """Count the source's rows without a key."""
        return keyless_count(self._inner, table, where)

    def start_at(self, table: Table, key: pa.Table) -> str | None:
        """Return where the source's rows go on with a key."""
        return start_at(self._inner, table, key)

    def draw(self, table: Table, share: float, limit: int) -> Iterator[RowBatch]:
        """Yield rows drawn by lot, each with the same chance."""
        return draw_rows(self._inner, table, share, limit)

    def orders_bytewise(self, table: Table) -> bool:
        """Return whether the source orders the table's keys by their bytes."""
        return is_ordered_alike(self._inner, table)

    def count(self, table: Table) -> int:
        """Return the source's row count."""
        return self._inner.count(table)

    def rescan(self, table: Table, after: Position) -> Rescan:
        """Return the rescan that the source asked for, once the buffer holds all changes.

        It compares with rows of the source, so it waits until the table has their shape.
        """
        bridged = self._bridged.get(table.name)
        asked = bridged is not None and bridged.rescan
        if not asked or self._passes_on or self._undrained(table) or self._leaves(table, after):
            return Rescan.NONE
        if not self._is_as_in_source(table):
            return Rescan.NONE
        self.rescanned.add(table.name)
        return Rescan.ALL

    def doubt(self, table: Table) -> str | None:
        """Return the source's answer."""
        return doubt_about(self._inner, table)

    def _held(self, table: Table, after: Position) -> list[Extent]:
        return [e for e in self._log.extents(table.name, after.order) if e.parts]

    def _readable(self, table: Table, after: Position) -> list[Extent]:
        if table.name in self._unreadable:
            raise self._unreadable[table.name]
        return self._held(table, after)

    def _batches(self, table: Table, extents: list[Extent]) -> Iterator[ChangeBatch]:
        """Yield what extents hold; a source may number the events of each from the beginning."""
        before = 0
        for extent in extents:
            for part in self._log.parts(table.name, extent):
                batch = unseal(part)
                yield replace(batch, events=numbered(batch.events, before))
                before += batch.events.num_rows

    def _net(self, table: Table, extents: list[Extent]) -> Iterator[ChangeBatch]:
        """Leave out events that are followed by a later one of the same key.

        Only keys are held in memory. Where an event leaves values out, the earlier one that has
        them is needed, and nothing is left out.
        """
        keys, whole = [], True
        for batch in self._batches(table, extents):
            own = batch.events.select(list(table.schema.primary_key))
            # Copied: they are part of one piece of memory with all the values beside them.
            keys.append(own.take(pa.array(np.arange(own.num_rows))))
            whole = whole and not batch.unchanged and batch.truncated_at is None
        if not keys or not whole:
            yield from self._batches(table, extents)
            return
        joined = pa.concat_tables(keys)
        last = np.zeros(joined.num_rows, dtype=bool)
        last[last_per_key(joined, table.schema)] = True
        start = 0
        for batch in self._batches(table, extents):
            kept = last[start : start + batch.events.num_rows]
            start += len(kept)
            yield replace(batch, events=batch.events.filter(pa.array(kept)), net=True)

    def _passed_on(self, table: Table, limit: int) -> Iterator[ChangeBatch]:
        """Yield the source's own pending changes, where they are not to be recorded."""
        position = self._drained_to(table)
        if self._passes_on and position is not None and self._inner.pending(table, position):
            yield from self._inner.changes(table, position, limit)

    def _leaves(self, table: Table, after: Position) -> bool:
        bridged = self._bridged.get(table.name)
        return bridged is not None and not self._passes_on and bridged.leaves(table, after)

    def _is_as_in_source(self, table: Table) -> bool:
        try:
            return self._describe(table.name) == table.schema
        except SchemaError:
            return False

    def _undrained(self, table: Table) -> int:
        position = self._drained_to(table)
        return 0 if position is None else self._inner.pending(table, position)

    def _drained_to(self, table: Table) -> Position | None:
        bridged = self._bridged.get(table.name)
        return bridged.inner if bridged and bridged.leads_on(self._inner) else None
