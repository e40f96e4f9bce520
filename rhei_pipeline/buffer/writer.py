"""The open write of a log: collected in memory, written ahead in parts, visible at its commit."""

import json
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa

from rhei_pipeline.buffer.layout import (
    END,
    EXTENT,
    FACT,
    PART,
    Extent,
    encode,
    extent_value,
    extents_behind,
    key_of,
    now_us,
    numbered,
)
from rhei_pipeline.buffer.rocksdb import RocksDirectory
from rhei_pipeline.errors import BufferFullError
from rhei_pipeline.model.changes import Position

#: A write that grows beyond this goes to RocksDB in parts, none of them visible before the last.
PART_BYTES = 16 * 1024 * 1024
#: So much is left free on the disk: RocksDB needs room to merge files and to delete.
RESERVE_BYTES = 64 * 1024 * 1024


def refuse_full_disk(buffer: Path, more: int = 0) -> None:
    """Refuse a buffer whose disk has no room for so many bytes more, and to work with.

    Raises:
        BufferFullError: It has not.
    """
    free = shutil.disk_usage(buffer).free
    if free < RESERVE_BYTES + more:
        raise BufferFullError(
            f"the disk that holds {str(buffer)!r} has {free:,} bytes left, and"
            f" {RESERVE_BYTES + more:,} are needed, {RESERVE_BYTES:,} of them to work with",
            hint="free space, or let the mirror catch up",
        )


@dataclass(slots=True)
class LogState:
    """What is visible of a log: its streams' newest extents, and how much they all hold.

    The log reads it, and its one open write replaces it; whoever does either holds the log's lock.
    """

    heads: dict[str, Extent] = field(default_factory=dict)
    held_bytes: int = 0

    def head(self, stream: str) -> Position:
        """Return the position after the newest event; order 0 where nothing was ever written."""
        found = self.heads.get(stream)
        return Position(0, "") if found is None else found.position

    def move_on(self, heads: Mapping[str, Extent], more_bytes: int) -> None:
        """Take in what a write has made visible."""
        self.heads |= heads
        self.held_bytes += more_bytes


@dataclass(slots=True)
class _Staged:
    """The parts of one stream that a write has collected so far."""

    base: int
    count: int = 0
    rows: int = 0
    parts: int = 0
    bytes: int = 0
    oldest_us: int = 0
    source_order: int = 0

    def extent(self) -> Extent:
        return Extent(
            self.base,
            self.base + self.count,
            uuid.uuid4().hex,
            self.parts,
            self.bytes,
            self.oldest_us or now_us(),
            now_us(),
            self.source_order,
        )


class LogWriter:
    """The open write of a log; created by `ChangeLog.writing`.

    Args:
        rocks: Where the log is stored.
        state: What is visible of it; moved on by the commit.
        on_part: Called when a part has been written ahead.
        max_bytes: How much the log may hold then; None: as much as the disk allows.
    """

    def __init__(
        self,
        rocks: RocksDirectory,
        state: LogState,
        on_part: Callable[[], None],
        max_bytes: int | None,
    ) -> None:
        self._rocks = rocks
        self._state = state
        self._on_part = on_part
        self._max_bytes = max_bytes
        self._batch = rocks.batch()
        self._staged: dict[str, _Staged] = {}
        self._marks: dict[str, Extent] = {}
        self._freed = 0

    def put(
        self,
        stream: str,
        events: pa.Table,
        count: int,
        *,
        oldest_us: int = 0,
        source_order: int = 0,
    ) -> None:
        """Add a batch that stands for `count` events to the stream's next extent."""
        staged = self._staged.setdefault(stream, _Staged(self._state.head(stream).order))
        value = encode(numbered(events, staged.base + staged.rows))
        staged.bytes += len(value)
        self._refuse_too_much(len(value))
        self._batch.put(key_of(PART, stream, staged.base, staged.parts), value)
        staged.parts += 1
        staged.rows += events.num_rows
        staged.count += count
        staged.oldest_us = staged.oldest_us or oldest_us
        staged.source_order = source_order or staged.source_order
        if self._batch.size_in_bytes() > PART_BYTES:
            self._write_ahead()

    def restart(self, stream: str, order: int, *, source_order: int = 0) -> None:
        """Delete a stream's events and start again after a number: no older position is proved."""
        held = extents_behind(self._rocks, stream, -1)
        self._freed += sum(extent.bytes for extent in held)
        for kind in (PART, EXTENT):
            self._batch.delete_range(key_of(kind, stream, 0), key_of(kind, stream, END))
        mark = Extent(order, order, uuid.uuid4().hex, source_order=source_order)
        self._marks[stream] = replace(mark, written_us=now_us())

    def set_watermark(self, name: str, position: Position) -> None:
        """Store a position under a name."""
        form = json.dumps([position.order, position.proof])
        self.set_fact(f"watermark/{name}", form.encode())

    def set_fact(self, name: str, value: bytes | None) -> None:
        """Store a value under a name; None deletes it."""
        key = FACT + name.encode()
        if value is None:
            self._batch.delete(key)
        else:
            self._batch.put(key, value)

    def commit(self, *, sync: bool) -> None:
        """Write what is left, and with it the new heads."""
        heads = self._marks | {name: staged.extent() for name, staged in self._staged.items()}
        for stream, extent in heads.items():
            self._batch.put(key_of(EXTENT, stream, extent.end), extent_value(extent))
        # Syncing a write makes the parts written ahead durable as well.
        self._rocks.write(self._batch, sync=sync)
        self._state.move_on(heads, self._new_bytes - self._freed)

    @property
    def _new_bytes(self) -> int:
        return sum(staged.bytes for staged in self._staged.values())

    def _write_ahead(self) -> None:
        self._rocks.write(self._batch, sync=False)
        self._batch = self._rocks.batch()
        self._on_part()

    def _refuse_too_much(self, more: int) -> None:
        path, limit = self._rocks.path, self._max_bytes
        total = self._state.held_bytes + self._new_bytes - self._freed
        if limit is not None and total > limit:
            raise BufferFullError(
                f"buffer {str(path)!r} would hold {total:,} bytes, and max_bytes is {limit:,}",
                hint="let the mirror catch up, or raise capture.buffer.max_bytes",
            )
        refuse_full_disk(path, more)
