"""A durable, ordered log of Arrow batches in one RocksDB directory.

A log has streams. Each stream numbers its events from one, without gaps. What is written together
becomes visible together, and is on the disk before the call returns.
"""

import json
import shutil
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.buffer.rocksdb import RocksDirectory
from rhei_pipeline.errors import BufferFullError, CaptureError, PositionLostError
from rhei_pipeline.model.changes import SEQUENCE, Position
from rhei_pipeline.model.stored_format import UNNUMBERED, too_new

#: What this version writes and reads: keys, extents, batches and facts.
FORMAT = 1
#: The stream of an application that needs only one.
EVENTS = "events"
#: A write that grows beyond this goes to RocksDB in parts, none of them visible before the last.
PART_BYTES = 16 * 1024 * 1024
#: So much is left free on the disk: RocksDB needs room to merge files and to delete.
RESERVE_BYTES = 64 * 1024 * 1024
#: Files are merged, and so made smaller, once this much has been pruned.
COMPACT_BYTES = 64 * 1024 * 1024

_PART, _EXTENT, _FACT = b"p", b"x", b"f"
_END = 2**64 - 1
_IPC = pa.ipc.IpcWriteOptions(compression="lz4")


@dataclass(frozen=True, slots=True)
class BufferLimits:
    """How much a log may hold.

    Attributes:
        max_bytes: Of encoded events; None: as much as the disk allows.
        max_age_seconds: How long ago the oldest event may have been written.
    """

    max_bytes: int | None = None
    max_age_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Extent:
    """Events of one stream that were written together, under one proof.

    Attributes:
        base, end: Its events are numbered from `base + 1` to `end`; a mark has none.
        proof: A unique name: a log that was restored to an older state does not have it.
        oldest_us: When the oldest of its events was made; microseconds since 1970.
        written_us: When it was written.
        source_order: How far the source had been read by then, where there is a source.
    """

    base: int
    end: int
    proof: str
    parts: int = 0
    bytes: int = 0
    oldest_us: int = 0
    written_us: int = 0
    source_order: int = 0

    @property
    def position(self) -> Position:
        """The position after its last event."""
        return Position(self.end, self.proof)


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
            self.oldest_us or _now_us(),
            _now_us(),
            self.source_order,
        )


def _no_part() -> None:
    """Do nothing (the default callback)."""


class ChangeLog:
    """The log in one directory. Only one process can open it; its threads may share it.

    Args:
        path: The directory, created when it is missing.
        limits: Beyond them nothing more is taken.

    Raises:
        MissingExtraError: RocksDB's package is not installed.
        BufferBusyError: Another process holds the directory.
        BufferDamagedError: Its files are damaged, or are not RocksDB's.
        CaptureError: A newer version of this package wrote it; nothing is changed then.
    """

    def __init__(self, path: Path | str, limits: BufferLimits | None = None) -> None:
        self.path = Path(path)
        self.limits = limits or BufferLimits()
        self._lock = threading.RLock()
        self._heads: dict[str, Extent] = {}
        self._held_bytes = 0
        self._pruned_bytes = 0
        self._rocks = RocksDirectory(self.path)
        try:
            self._recover()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the directory, so that another process can open it; safe to repeat."""
        with self._lock:
            self._rocks.close()

    @property
    def log_id(self) -> str:
        """The log's unique name."""
        return (self.fact("log") or b"").decode()

    @property
    def held_bytes(self) -> int:
        """How many bytes of encoded events the log holds."""
        return self._held_bytes

    @property
    def streams(self) -> tuple[str, ...]:
        """The names of the streams."""
        return tuple(self._heads)

    def append(self, events: pa.Table, *, stream: str = EVENTS) -> int:
        """Append events behind all others; on disk, in full and for good, before this returns.

        The log numbers them itself, in the column `_rhei_sequence`.

        Returns:
            The number of the last event.

        Raises:
            BufferFullError: A limit is reached; nothing was appended.
        """
        with self._lock:
            self.check_age({stream: 0})
            if events.num_rows:
                with self.writing() as writer:
                    writer.put(stream, events, events.num_rows)
            return self.head(stream).order

    def read(
        self, after: int = 0, until: int | None = None, *, stream: str = EVENTS
    ) -> Iterator[pa.Table]:
        """Read the events numbered `after + 1` to `until` in order, in the batches written.

        Where the numbers count net changes, those of one extent are returned together.

        Raises:
            PositionLostError: Some of them have been pruned.
        """
        last = self.head(stream).order if until is None else until
        self._refuse_pruned(stream, after)
        for extent in self.extents(stream, after):
            if extent.base >= last:
                return
            for part in self.parts(stream, extent):
                yield part if _within(extent, after, last) else _between(part, after, last)

    def head(self, stream: str = EVENTS) -> Position:
        """Return the position after the newest event; order 0 where nothing was ever written."""
        found = self._heads.get(stream)
        return Position(0, "") if found is None else found.position

    def low(self, stream: str = EVENTS) -> int:
        """Return the number of the last event that was pruned: all later ones are held."""
        found = next(iter(self.extents(stream, -1, limit=1)), None)
        if found is None:
            return 0
        return found.base if found.parts else found.end

    def holds(self, stream: str, position: Position) -> bool:
        """Return whether the position belongs to this log and all events after it are held."""
        extent = self._extent(stream, position.order)
        return extent is not None and extent.proof == position.proof

    def extents(self, stream: str, after: int, *, limit: int | None = None) -> list[Extent]:
        """Return the extents that end behind a number, in order."""
        first = _key(_EXTENT, stream, max(after + 1, 0))
        entries = self._rocks.scan(first, _key(_EXTENT, stream), limit)
        return [_extent(key, value) for key, value in entries]

    def parts(self, stream: str, extent: Extent) -> Iterator[pa.Table]:
        """Read an extent's batches in order.

        Raises:
            BufferDamagedError: One of them is missing or damaged.
            PositionLostError: They have been pruned since.
        """
        for part in range(extent.parts):
            value = self._rocks.get(_key(_PART, stream, extent.base, part))
            if value is None:
                self._refuse_pruned(stream, extent.base)
                raise self._rocks.damaged("a batch is missing")
            try:
                with pa.ipc.open_stream(pa.py_buffer(value)) as reader:
                    yield reader.read_all()
            except pa.ArrowInvalid as error:
                raise self._rocks.damaged("a batch cannot be read") from error

    def prune(self, order: int, *, stream: str = EVENTS) -> int:
        """Delete the events up to and including a number, by whole extents.

        The position of the last deleted event stays known. Returns how many were deleted.
        """
        with self._lock:
            gone = [e for e in self.extents(stream, -1) if e.end <= order]
            if not gone or not (len(gone) > 1 or gone[0].parts):
                return 0
            self._delete_up_to(stream, gone[-1])
            self._held_bytes -= sum(extent.bytes for extent in gone)
            self._compact(sum(extent.bytes for extent in gone))
            return sum(extent.end - extent.base for extent in gone)

    def watermark(self, name: str) -> Position | None:
        """Return the position stored under a name."""
        value = self.fact(f"watermark/{name}")
        return None if value is None else Position(*json.loads(value))

    def set_watermark(self, name: str, position: Position) -> None:
        """Store a position under a name; it is on disk when this returns."""
        with self.writing() as writer:
            writer.set_watermark(name, position)

    def fact(self, name: str) -> bytes | None:
        """Return the value stored under a name."""
        return self._rocks.get(_FACT + name.encode())

    def facts(self, prefix: str) -> dict[str, bytes]:
        """Return all values whose names have this prefix, by the rest of the name."""
        first = _FACT + prefix.encode()
        entries = self._rocks.scan(first, first)
        return {key[len(first) :].decode(): value for key, value in entries}

    def check_age(self, after: Mapping[str, int]) -> None:
        """Raise an error if an event after these numbers is older than the limit.

        Raises:
            BufferFullError: An event is too old.
        """
        limit = self.limits.max_age_seconds
        if limit is None:
            return
        for stream, order in after.items():
            oldest = next((e for e in self.extents(stream, order, limit=2) if e.parts), None)
            if oldest and _now_us() - oldest.written_us > limit * 1_000_000:
                raise BufferFullError(
                    f"buffer {str(self.path)!r} holds changes of {stream!r} that have waited for"
                    f" longer than max_age_seconds ({limit:g})",
                    hint="let the mirror catch up: run 'rhei sync'",
                )

    @contextmanager
    def writing(
        self,
        on_part: Callable[[], None] = _no_part,
        *,
        durably: bool = True,
        limited: bool = True,
    ) -> Iterator["LogWriter"]:
        """Collect a write; leaving the block makes it visible and durable, an error undoes it.

        `on_part` is called when a part has been written ahead. Not `durably`: a power failure may
        undo it, a killed process does not. Not `limited`: it may exceed `max_bytes`, but never
        fill the disk.
        """
        with self._lock:
            writer = LogWriter(self, on_part, self.limits.max_bytes if limited else None)
            try:
                yield writer
                writer.commit(sync=durably)
            except BaseException:
                if self._rocks.is_open:
                    self._sweep()
                raise

    def _recover(self) -> None:
        """Read the streams' heads, and remove what a write that was cut off left behind."""
        self._refuse_newer()
        for key, value in self._rocks.scan(_EXTENT, _EXTENT):
            extent = _extent(key, value)
            self._heads[_stream_of(key)] = extent
            self._held_bytes += extent.bytes
        self._sweep()
        if self.fact("format") is None:
            with self.writing() as writer:
                writer.set_fact("format", str(FORMAT).encode())
                if self.fact("log") is None:
                    writer.set_fact("log", uuid.uuid4().hex.encode())

    def _refuse_newer(self) -> None:
        written = int(self.fact("format") or UNNUMBERED)
        if written > FORMAT:
            raise CaptureError(
                too_new(f"buffer {str(self.path)!r}", written, FORMAT),
                hint="use the newer version of rhei-pipeline that wrote it, or move it away: its"
                " tables are then copied again",
            )

    def _sweep(self) -> None:
        """Delete parts that lie after the heads."""
        first = _PART
        while entry := next(iter(self._rocks.scan(first, _PART, limit=1)), None):
            stream = _stream_of(entry[0])
            first = _key(_PART, stream, _END)
            staged = _key(_PART, stream, self.head(stream).order, 0)
            self._rocks.delete_range(staged, first)

    def _refuse_pruned(self, stream: str, after: int) -> None:
        low = self.low(stream)
        if after < low:
            raise PositionLostError(
                f"buffer {str(self.path)!r}: the events {after + 1} to {low} have been pruned",
                table=stream or None,
                hint=f"replay from {low} on, or keep events longer with 'sync.prune: false'",
            )

    def _extent(self, stream: str, end: int) -> Extent | None:
        if end < 0:
            return None
        key = _key(_EXTENT, stream, end)
        value = self._rocks.get(key)
        return None if value is None else _extent(key, value)

    def _delete_up_to(self, stream: str, last: Extent) -> None:
        batch = self._rocks.batch()
        batch.delete_range(_key(_PART, stream, 0, 0), _key(_PART, stream, last.end, 0))
        batch.delete_range(_key(_EXTENT, stream, 0), _key(_EXTENT, stream, last.end))
        mark = replace(last, base=last.end, parts=0, bytes=0)
        batch.put(_key(_EXTENT, stream, mark.end), _extent_value(mark))
        self._rocks.write(batch, sync=False)
        if self._heads[stream].end == mark.end:
            self._heads[stream] = mark

    def _compact(self, pruned_bytes: int) -> None:
        self._pruned_bytes += pruned_bytes
        if self._pruned_bytes > COMPACT_BYTES:
            self._rocks.compact()
            self._pruned_bytes = 0


class LogWriter:
    """The open write of a log; created by `ChangeLog.writing`."""

    def __init__(self, log: ChangeLog, on_part: Callable[[], None], max_bytes: int | None) -> None:
        self._log = log
        self._on_part = on_part
        self._max_bytes = max_bytes
        self._rocks = log._rocks  # noqa: SLF001  (one noun in two parts)
        self._batch = self._rocks.batch()
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
        staged = self._staged.setdefault(stream, _Staged(self._log.head(stream).order))
        value = _encode(_numbered(events, staged.base + staged.rows))
        staged.bytes += len(value)
        self._refuse_too_much(len(value))
        self._batch.put(_key(_PART, stream, staged.base, staged.parts), value)
        staged.parts += 1
        staged.rows += events.num_rows
        staged.count += count
        staged.oldest_us = staged.oldest_us or oldest_us
        staged.source_order = source_order or staged.source_order
        if self._batch.size_in_bytes() > PART_BYTES:
            self._write_ahead()

    def restart(self, stream: str, order: int, *, source_order: int = 0) -> None:
        """Delete a stream's events and start again after a number: no older position is proved."""
        held = self._log.extents(stream, -1)
        self._freed += sum(extent.bytes for extent in held)
        for kind in (_PART, _EXTENT):
            self._batch.delete_range(_key(kind, stream, 0), _key(kind, stream, _END))
        mark = Extent(order, order, uuid.uuid4().hex, source_order=source_order)
        self._marks[stream] = replace(mark, written_us=_now_us())

    def set_watermark(self, name: str, position: Position) -> None:
        """Store a position under a name."""
        form = json.dumps([position.order, position.proof])
        self.set_fact(f"watermark/{name}", form.encode())

    def set_fact(self, name: str, value: bytes | None) -> None:
        """Store a value under a name; None deletes it."""
        key = _FACT + name.encode()
        if value is None:
            self._batch.delete(key)
        else:
            self._batch.put(key, value)

    def commit(self, *, sync: bool) -> None:
        """Write what is left, and with it the new heads."""
        log = self._log
        heads = self._marks | {name: staged.extent() for name, staged in self._staged.items()}
        for stream, extent in heads.items():
            self._batch.put(_key(_EXTENT, stream, extent.end), _extent_value(extent))
        # Syncing a write makes the parts written ahead durable as well.
        self._rocks.write(self._batch, sync=sync)
        log._heads |= heads  # noqa: SLF001
        log._held_bytes += self._new_bytes - self._freed  # noqa: SLF001

    @property
    def _new_bytes(self) -> int:
        return sum(staged.bytes for staged in self._staged.values())

    def _write_ahead(self) -> None:
        self._rocks.write(self._batch, sync=False)
        self._batch = self._rocks.batch()
        self._on_part()

    def _refuse_too_much(self, more: int) -> None:
        log, limit = self._log, self._max_bytes
        total = log.held_bytes + self._new_bytes - self._freed
        if limit is not None and total > limit:
            raise BufferFullError(
                f"buffer {str(log.path)!r} would hold {total:,} bytes, and max_bytes is {limit:,}",
                hint="let the mirror catch up, or raise capture.buffer.max_bytes",
            )
        free = shutil.disk_usage(log.path).free
        if free < RESERVE_BYTES + more:
            raise BufferFullError(
                f"the disk that holds {str(log.path)!r} has {free:,} bytes left",
                hint="free space, or let the mirror catch up",
            )


def _key(kind: bytes, stream: str, *numbers: int) -> bytes:
    """Return a key that sorts by stream, then number (8 bytes), then part (4 bytes)."""
    name = stream.encode()
    forms = (">Q", ">I")
    tail = b"".join(struct.pack(form, n) for form, n in zip(forms, numbers, strict=False))
    return kind + struct.pack(">H", len(name)) + name + tail


def _stream_of(key: bytes) -> str:
    (length,) = struct.unpack_from(">H", key, 1)
    return key[3 : 3 + length].decode()


def _extent(key: bytes, value: bytes) -> Extent:
    (end,) = struct.unpack(">Q", key[-8:])
    return Extent(end=end, **json.loads(value))


def _extent_value(extent: Extent) -> bytes:
    form = asdict(extent)
    del form["end"]
    return json.dumps(form).encode()


def _numbered(events: pa.Table, base: int) -> pa.Table:
    numbers = pa.array(np.arange(base + 1, base + 1 + events.num_rows, dtype=np.int64))
    place = events.schema.get_field_index(SEQUENCE)
    own = pa.field(SEQUENCE, pa.int64(), nullable=False)
    if place < 0:
        return events.add_column(0, own, numbers)
    return events.set_column(place, own, numbers)


def _encode(events: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, events.schema, options=_IPC) as writer:
        writer.write_table(events)
    encoded: bytes = sink.getvalue().to_pybytes()
    return encoded


def _within(extent: Extent, after: int, until: int) -> bool:
    return extent.base >= after and extent.end <= until


def _between(events: pa.Table, after: int, until: int) -> pa.Table:
    number = events[SEQUENCE]
    return events.filter(pc.and_(pc.greater(number, after), pc.less_equal(number, until)))


def _now_us() -> int:
    return time.time_ns() // 1000
