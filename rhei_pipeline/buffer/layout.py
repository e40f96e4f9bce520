"""How a log is laid out in RocksDB: its keys, its extents, and its batches as Arrow IPC."""

import json
import struct
import time
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa

from rhei_pipeline.buffer.rocksdb import RocksDirectory
from rhei_pipeline.model.changes import SEQUENCE, Position

PART, EXTENT, FACT = b"p", b"x", b"f"
#: Behind every number that a key can have.
END = 2**64 - 1
_IPC = pa.ipc.IpcWriteOptions(compression="lz4")


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


def key_of(kind: bytes, stream: str, *numbers: int) -> bytes:
    """Return a key that sorts by stream, then number (8 bytes), then part (4 bytes)."""
    name = stream.encode()
    forms = (">Q", ">I")
    tail = b"".join(struct.pack(form, n) for form, n in zip(forms, numbers, strict=False))
    return kind + struct.pack(">H", len(name)) + name + tail


def stream_of(key: bytes) -> str:
    """Return the stream that a key belongs to."""
    (length,) = struct.unpack_from(">H", key, 1)
    return key[3 : 3 + length].decode()


def read_extent(key: bytes, value: bytes) -> Extent:
    """Return the extent that is stored under a key."""
    (end,) = struct.unpack(">Q", key[-8:])
    return Extent(end=end, **json.loads(value))


def extents_behind(
    rocks: RocksDirectory, stream: str, after: int, limit: int | None = None
) -> list[Extent]:
    """Return a stream's extents that end behind a number, in order."""
    first = key_of(EXTENT, stream, max(after + 1, 0))
    entries = rocks.scan(first, key_of(EXTENT, stream), limit)
    return [read_extent(key, value) for key, value in entries]


def extent_value(extent: Extent) -> bytes:
    """Return what is stored under an extent's key; its end is in the key."""
    form = asdict(extent)
    del form["end"]
    return json.dumps(form).encode()


def numbered(events: pa.Table, base: int) -> pa.Table:
    """Return events with their numbers, which follow `base`."""
    numbers = pa.array(np.arange(base + 1, base + 1 + events.num_rows, dtype=np.int64))
    place = events.schema.get_field_index(SEQUENCE)
    own = pa.field(SEQUENCE, pa.int64(), nullable=False)
    if place < 0:
        return events.add_column(0, own, numbers)
    return events.set_column(place, own, numbers)


def encode(events: pa.Table) -> bytes:
    """Return events as Arrow IPC, compressed."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, events.schema, options=_IPC) as writer:
        writer.write_table(events)
    encoded: bytes = sink.getvalue().to_pybytes()
    return encoded


def now_us() -> int:
    """Return the time in microseconds since 1970."""
    return time.time_ns() // 1000
