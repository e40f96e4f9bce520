"""A durable, ordered log of Arrow batches in one RocksDB directory.

A log has streams. Each stream numbers its events from one, without gaps. What is written together
becomes visible together, and is on the disk before the call returns.
"""

import json
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.buffer.layout import (
    END,
    EXTENT,
    FACT,
    PART,
    Extent,
    extent_value,
    extents_behind,
    key_of,
    now_us,
    read_extent,
    stream_of,
)
from rhei_pipeline.buffer.rocksdb import RocksDirectory
from rhei_pipeline.buffer.writer import LogState, LogWriter
from rhei_pipeline.errors import BufferFullError, CaptureError, PositionLostError, SchemaError
from rhei_pipeline.model.changes import SEQUENCE, Position
from rhei_pipeline.model.closing import Closing
from rhei_pipeline.model.forking import keep_from_forks, note_opened
from rhei_pipeline.model.stored_format import UNNUMBERED, too_new

#: What this version writes and reads: keys, extents, batches and facts.
FORMAT = 1
#: The stream of an application that needs only one.
EVENTS = "events"
#: The fact that says whose buffer a log is.
OWNER = "owner"
#: The fact that is a log's unique name.
LOG = "log"
#: Files are merged, and so made smaller, once this much has been pruned.
COMPACT_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class BufferLimits:
    """How much a log may hold.

    Attributes:
        max_bytes: Of encoded events; None: as much as the disk allows.
        max_age_seconds: How long ago the oldest event may have been written.
    """

    max_bytes: int | None = None
    max_age_seconds: float | None = None


def _refuse_doubles(names: list[str], stream: str) -> None:
    double = next((name for name, count in Counter(names).items() if count > 1), None)
    if double is not None:
        raise SchemaError(
            f"events have {double!r} more than once, so which is meant is not known",
            table=stream,
            hint="name each column of the events once, and append them again",
        )


def refuse_newer(rocks: RocksDirectory) -> None:
    """Refuse a log that this version cannot read.

    Raises:
        CaptureError: A newer version of this package wrote it.
    """
    written = int(rocks.get(FACT + b"format") or UNNUMBERED)
    if written > FORMAT:
        raise CaptureError(
            too_new(f"buffer {str(rocks.path)!r}", written, FORMAT),
            hint="use the newer version of rhei-pipeline that wrote it, or move it away: its"
            " tables are then copied again",
        )


def _no_part() -> None:
    """Do nothing (the default callback)."""


class ChangeLog(Closing):
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
        self._state = LogState()
        self._pruned_bytes = 0
        note_opened()
        keep_from_forks(self)
        self._rocks = RocksDirectory(self.path)
        try:
            self._recover()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the directory, so that another process can open it; safe to repeat."""
        with self._lock:
            self._rocks.close()

    @property
    def log_id(self) -> str:
        """The log's unique name."""
        return (self.fact(LOG) or b"").decode()

    @property
    def held_bytes(self) -> int:
        """How many bytes of encoded events the log holds."""
        return self._state.held_bytes

    @property
    def streams(self) -> tuple[str, ...]:
        """The names of the streams."""
        return tuple(self._state.heads)

    def append(self, events: pa.Table, *, stream: str = EVENTS) -> int:
        """Append events behind all others; on disk, in full and for good, before this returns.

        The log numbers them itself, in the column `_rhei_sequence`.

        Returns:
            The number of the last event.

        Raises:
            BufferFullError: A limit is reached; nothing was appended.
            SchemaError: Two columns have one name; nothing was appended.
            CaptureError: It is the buffer of a pipeline; nothing was appended.
        """
        _refuse_doubles(events.column_names, stream)
        refuse_buffer(self)
        with self._lock:
            self.renew()
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
        return self._state.head(stream)

    def low(self, stream: str = EVENTS) -> int:
        """Return the number of the last event that was pruned: all later ones are held."""
        found = next(iter(self.extents(stream, -1, limit=1)), None)
        return 0 if found is None else found.base

    def holds(self, stream: str, position: Position) -> bool:
        """Return whether the position belongs to this log and all events after it are held."""
        newest = self._state.heads.get(stream)
        if newest is not None and newest.end == position.order:
            return newest.proof == position.proof
        extent = self._extent(stream, position.order)
        return extent is not None and extent.proof == position.proof

    def extents(self, stream: str, after: int, *, limit: int | None = None) -> list[Extent]:
        """Return the extents that end behind a number, in order."""
        return extents_behind(self._rocks, stream, after, limit)

    def parts(self, stream: str, extent: Extent) -> Iterator[pa.Table]:
        """Read an extent's batches in order.

        Raises:
            BufferDamagedError: One of them is missing or damaged.
            PositionLostError: They have been pruned since.
        """
        for part in range(extent.parts):
            value = self._rocks.get(key_of(PART, stream, extent.base, part))
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
            self._state.held_bytes -= sum(extent.bytes for extent in gone)
            self._compact(sum(extent.bytes for extent in gone))
            return sum(extent.end - extent.base for extent in gone)

    def erase(self) -> None:
        """Remove from the disk what was pruned; takes as long as writing what is held."""
        with self._lock:
            self._rocks.erase()
            self._pruned_bytes = 0

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
        return self._rocks.get(FACT + name.encode())

    def facts(self, prefix: str) -> dict[str, bytes]:
        """Return all values whose names have this prefix, by the rest of the name."""
        first = FACT + prefix.encode()
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
            if oldest and now_us() - oldest.written_us > limit * 1_000_000:
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
    ) -> Iterator[LogWriter]:
        """Collect a write; leaving the block makes it visible and durable, an error undoes it.

        `on_part` is called when a part has been written ahead. Not `durably`: a power failure may
        undo it, a killed process does not. Not `limited`: it may exceed `max_bytes`, but never
        fill the disk.
        """
        with self._lock:
            writer = LogWriter(
                self._rocks, self._state, on_part, self.limits.max_bytes if limited else None
            )
            try:
                yield writer
                writer.commit(sync=durably)
            except BaseException:
                if self._rocks.is_open and not self._rocks.is_given_up:
                    self._sweep()
                raise

    def renew(self) -> bool:
        """Open the directory again after a write that failed; return whether that was so.

        The write may be there nonetheless: what is known of the log is to be read again.
        """
        with self._lock:
            if not self._rocks.is_given_up:
                return False
            self._rocks.reopen()
            self._state = LogState()
            self._recover()
            return True

    def _recover(self) -> None:
        """Read the streams' heads, and remove what a write that was cut off left behind."""
        refuse_newer(self._rocks)
        if self.fact("format") is None and self.fact(LOG) is None and self._rocks.scan(b"", b"", 1):
            raise self._rocks.foreign()
        for key, value in self._rocks.scan(EXTENT, EXTENT):
            extent = read_extent(key, value)
            self._state.heads[stream_of(key)] = extent
            self._state.held_bytes += extent.bytes
        self._sweep()
        if self.fact("format") is None:
            with self.writing() as writer:
                writer.set_fact("format", str(FORMAT).encode())
                if self.fact(LOG) is None:
                    writer.set_fact(LOG, uuid.uuid4().hex.encode())

    def _sweep(self) -> None:
        """Delete parts that lie after the heads."""
        first = PART
        while entry := next(iter(self._rocks.scan(first, PART, limit=1)), None):
            stream = stream_of(entry[0])
            first = key_of(PART, stream, END)
            staged = key_of(PART, stream, self.head(stream).order, 0)
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
        key = key_of(EXTENT, stream, end)
        value = self._rocks.get(key)
        return None if value is None else read_extent(key, value)

    def _delete_up_to(self, stream: str, last: Extent) -> None:
        batch = self._rocks.batch()
        batch.delete_range(key_of(PART, stream, 0, 0), key_of(PART, stream, last.end, 0))
        batch.delete_range(key_of(EXTENT, stream, 0), key_of(EXTENT, stream, last.end))
        mark = replace(last, base=last.end, parts=0, bytes=0)
        batch.put(key_of(EXTENT, stream, mark.end), extent_value(mark))
        self._rocks.write(batch, sync=False)

    def _compact(self, pruned_bytes: int) -> None:
        self._pruned_bytes += pruned_bytes
        if self._pruned_bytes > COMPACT_BYTES:
            self._rocks.compact()
            self._pruned_bytes = 0


def refuse_buffer(log: ChangeLog) -> None:
    """Refuse a log that is the buffer of a pipeline where an application's events are to go.

    Raises:
        CaptureError: It is one.
    """
    if log.fact(OWNER) is not None:
        raise CaptureError(
            f"log {str(log.path)!r} is the buffer of a pipeline, which deletes what it has applied",
            hint="give the application's events a directory of their own",
        )


def _within(extent: Extent, after: int, until: int) -> bool:
    return extent.base >= after and extent.end <= until


def _between(events: pa.Table, after: int, until: int) -> pa.Table:
    number = events[SEQUENCE]
    return events.filter(pc.and_(pc.greater(number, after), pc.less_equal(number, until)))
