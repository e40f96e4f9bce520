"""One state of a log of events: all that was appended up to a moment."""

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.buffer.codec import in_size
from rhei_pipeline.buffer.events import reading
from rhei_pipeline.buffer.layout import Extent
from rhei_pipeline.buffer.log import ChangeLog
from rhei_pipeline.errors import PositionLostError
from rhei_pipeline.model.changes import (
    CHANGED_AT,
    LIVE,
    ChangeBatch,
    DeadLetter,
    Position,
    RowBatch,
)
from rhei_pipeline.model.instants import instant
from rhei_pipeline.model.schema import Mode, Table, TableSchema

#: The present rows of a table, in key order, and the dead letters of the others.
Folded = tuple[pa.Table, tuple[DeadLetter, ...]]


class LogSnapshot:
    """A `SourceSnapshot` of a log: rows are what the events have left of each key.

    Args:
        log: The log.
        heads: Where each table's events end in this state.
        begins: Where they begin.
        known: Returns all columns that events of a table may have.
        folds: Keeps the rows of a table that were made of its events last.
        schema_version: The source's.
    """

    shares_log = False

    def __init__(
        self,
        log: ChangeLog,
        heads: Mapping[str, Position],
        begins: Callable[[str], int],
        known: Callable[[str], frozenset[str]],
        folds: dict[str, tuple[Position, TableSchema, Folded]],
        schema_version: int,
    ) -> None:
        self._log, self._heads, self._begins, self._known = log, heads, begins, known
        self._folds = folds
        self.schema_version = schema_version
        self.clock = datetime.now(UTC)

    def head(self, table: Table) -> Position:
        """Return the position of the newest event."""
        return self._heads.get(table.name, Position(0, ""))

    def origin(self, table: Table) -> Position:
        """Return the head: rows are always read with it."""
        return self.head(table)

    def beginning(self, table: Table) -> tuple[Position, datetime] | None:
        """Return the position before the first event, and when that was made."""
        name = table.name
        if self._log.low(name) > self._begins(name):
            return None
        extents = self._extents(table, Position(-1, ""))
        first = next((extent for extent in extents if extent.parts), None)
        if first is None:
            return None
        events = next(self._batches(table, [first])).events
        made = pc.min(events[CHANGED_AT]).as_py() if events.num_rows else None
        return Position(first.base, self._proof_at(table, first.base)), made or self.clock

    def proves(self, table: Table, position: Position) -> bool:
        """Return whether the log holds the position, and all events after it."""
        if position.order > self.head(table).order:
            return False
        if position.order == 0:
            return position.proof == "" and self._log.low(table.name) == 0
        return self._log.holds(table.name, position)

    def pending(self, table: Table, after: Position) -> int:
        """Count the events after a position."""
        return self.head(table).order - after.order

    def oldest_pending(self, table: Table, after: Position) -> datetime | None:
        """Return when the first event after a position was appended."""
        found = self._extents(table, after)
        return instant(found[0].written_us) if found else None

    def changes(self, table: Table, after: Position, limit: int) -> Iterator[ChangeBatch]:
        """Yield every event of a temporal table; of a destructive one what keys have become."""
        if table.mode is Mode.TEMPORAL:
            yield from in_size(self._batches(table, self._extents(table, after)), limit)
        else:
            yield from self.net_changes(table, after, limit)

    def net_changes(self, table: Table, after: Position, limit: int) -> Iterator[ChangeBatch]:
        """Yield the last event of each key."""
        found = list(self._batches(table, self._extents(table, after)))
        yield from in_size(reading.net(found, table.schema), limit)

    def rows(self, table: Table, resume: str | None, limit: int) -> RowBatch | None:
        """Return the next rows in key order.

        Raises:
            PositionLostError: The log's first events were pruned: what they left is not known.
        """
        rows, letters = self._folded(table)
        start = 0 if resume is None else _behind(rows, table.schema, resume)
        found = rows.slice(start, limit)
        if not found.num_rows and (resume is not None or not letters):
            return None
        last = found.select(list(table.schema.primary_key)).slice(max(found.num_rows - 1, 0))
        return RowBatch(found, _text(last), letters if resume is None else ())

    def orders_bytewise(self, _table: Table) -> bool:
        """Return True: rows are sorted as Arrow sorts texts."""
        return True

    def count(self, table: Table) -> int:
        """Return how many rows the events have left, those that do not fit among them."""
        rows, letters = self._folded(table)
        return int(rows.num_rows) + len({letter.key for letter in letters})

    def _folded(self, table: Table) -> Folded:
        head, known = self.head(table), self._folds.get(table.name)
        if known is None or known[:2] != (head, table.schema):
            known = self._folds[table.name] = (head, table.schema, self._fold(table))
        return known[2]

    def _fold(self, table: Table) -> Folded:
        low = self._log.low(table.name)
        if low > self._begins(table.name):
            raise PositionLostError(
                f"the log's first {low} events were pruned, and a new mirror needs them",
                table=table.name,
                hint="put the log back from a backup; or append all rows that are there now again,"
                " to a log of another path",
            )
        found = list(self._batches(table, self._extents(table, Position(-1, ""))))
        if not found:
            return table.schema.arrow.empty_table(), ()
        net = reading.net(found, table.schema)
        events = pa.concat_tables([batch.events for batch in net])
        live = events.filter(events[LIVE]).select(list(table.schema.names))
        order = [(name, "ascending") for name in table.schema.primary_key]
        return live.sort_by(order), reading.open_letters(found, table.schema)

    def _batches(self, table: Table, extents: list[Extent]) -> Iterator[ChangeBatch]:
        return reading.batches(self._log, extents, table.schema, self._known(table.name))

    def _extents(self, table: Table, after: Position) -> list[Extent]:
        last = self.head(table).order
        held = self._log.extents(table.name, after.order)
        return [extent for extent in held if extent.parts and extent.end <= last]

    def _proof_at(self, table: Table, order: int) -> str:
        found = [e for e in self._log.extents(table.name, -1) if e.end == order]
        return found[0].proof if found else ""


def _text(keys: pa.Table) -> str:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, keys.schema) as writer:
        writer.write_table(keys)
    written: bytes = sink.getvalue().to_pybytes()
    return written.hex()


def _behind(rows: pa.Table, schema: TableSchema, resume: str) -> int:
    """Return the number of the first row whose key is behind the one that was read last."""
    with pa.ipc.open_stream(bytes.fromhex(resume)) as reader:
        last = reader.read_all()
    names = list(schema.primary_key)
    marked = pa.concat_tables([rows.select(names), last.cast(rows.select(names).schema)])
    numbers = pa.array(range(marked.num_rows))
    marked = marked.append_column("_rhei_row", numbers)
    order = [(name, "ascending") for name in (*names, "_rhei_row")]
    place = pc.index(marked.sort_by(order)["_rhei_row"], rows.num_rows).as_py()
    return int(place)
