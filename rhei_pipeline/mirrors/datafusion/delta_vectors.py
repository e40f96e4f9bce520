"""A segment's removed rows as Delta Lake has them: a Roaring bitmap in a file beside the rows.

A file holds the vectors of one publication. It is named by what it was made of, so one that is
written again has the same content.
"""

import base64
import hashlib
import struct
import uuid
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from rhei_pipeline.mirrors.datafusion.deletion_vectors import Bits
from rhei_pipeline.mirrors.datafusion.key_index import Numbers

_FORMAT_BYTE = b"\x01"
#: What a vector of 64-bit row numbers begins with, and then each 32-bit bitmap in it.
_MAGIC_64, _MAGIC_32 = 1681511377, 12346
#: A bitmap is cut into containers of so many rows; one with few rows lists them.
_CONTAINER_ROWS = 65_536
_LISTED_ROWS = 4096
#: The vector is in a file that is named by a UUID, and stands in the table's folder.
_BESIDE = "u"
_B85 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"
_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_TO_Z85, _FROM_Z85 = str.maketrans(_B85, _Z85), str.maketrans(_Z85, _B85)


@dataclass(frozen=True, slots=True)
class DeltaVector:
    """The location of a deletion vector, as a Delta table's log has it.

    Attributes:
        file: The file, named from the table's folder.
        size_bytes: Its bytes, without those of its length and checksum.
        rows: How many rows it removes.
    """

    file: str
    offset: int
    size_bytes: int
    rows: int

    def described(self) -> dict[str, Any]:
        """Return it as the log describes it."""
        named = uuid.UUID(self.file.removeprefix(_PREFIX).removesuffix(_SUFFIX))
        return {
            "storageType": _BESIDE,
            "pathOrInlineDv": base64.b85encode(named.bytes).decode().translate(_TO_Z85),
            "offset": self.offset,
            "sizeInBytes": self.size_bytes,
            "cardinality": self.rows,
        }

    @classmethod
    def read(cls, described: dict[str, Any]) -> "DeltaVector":
        """Read what `described` has written.

        Raises:
            ValueError: It is none that this package writes.
        """
        if described["storageType"] != _BESIDE:
            raise ValueError("a vector that is not in a file beside the table's")
        named = base64.b85decode(described["pathOrInlineDv"].translate(_FROM_Z85))
        return cls(
            _name(uuid.UUID(bytes=named)),
            described["offset"],
            described["sizeInBytes"],
            described["cardinality"],
        )


_PREFIX, _SUFFIX = "deletion_vector_", ".bin"


def _name(named: uuid.UUID) -> str:
    return f"{_PREFIX}{named}{_SUFFIX}"


def vector_file(bitmaps: Sequence[Bits]) -> tuple[pa.Buffer, list[DeltaVector]]:
    """Return a file with a vector for each bitmap, and the location of each."""
    framed = [_framed(bits) for bits in bitmaps]
    content = _FORMAT_BYTE + b"".join(framed)
    name = _name(uuid.UUID(bytes=hashlib.sha256(content).digest()[:16]))
    vectors, offset = [], len(_FORMAT_BYTE)
    for bits, piece in zip(bitmaps, framed, strict=True):
        rows = int(np.bitwise_count(bits).sum())
        vectors.append(DeltaVector(name, offset, len(piece) - 8, rows))
        offset += len(piece)
    return pa.py_buffer(content), vectors


def holds(content: pa.Buffer, vector: DeltaVector, bits: Bits) -> bool:
    """Return whether a file holds this bitmap there."""
    end = vector.offset + vector.size_bytes + 8
    return bool(content.to_pybytes()[vector.offset : end] == _framed(bits))


def _framed(bits: Bits) -> bytes:
    """Return a vector between its length and its checksum."""
    bitmap = struct.pack("<IQI", _MAGIC_64, 1, 0) + _roaring(bits)
    return struct.pack(">I", len(bitmap)) + bitmap + struct.pack(">I", zlib.crc32(bitmap))


def _roaring(bits: Bits) -> bytes:
    """Return the rows as one 32-bit Roaring bitmap."""
    numbers, counts, containers = [], [], []
    for number, rows, content in _containers(bits):
        numbers.append(number)
        counts.append(rows)
        containers.append(content)
    head = np.column_stack([numbers, np.asarray(counts) - 1]).astype("<u2").tobytes()
    first = 8 + len(head) + 4 * len(containers)
    offsets = np.cumsum([first, *map(len, containers)])[:-1].astype("<u4").tobytes()
    count = struct.pack("<II", _MAGIC_32, len(containers))
    return b"".join([count, head, offsets, *containers])


def _containers(bits: Bits) -> Iterator[tuple[int, int, bytes]]:
    """Yield the number of each container that is not empty, its rows, and its content."""
    width = _CONTAINER_ROWS // 8
    padded = np.zeros(-(-len(bits) // width) * width, dtype=np.uint8)
    padded[: len(bits)] = bits
    parts = padded.reshape(-1, width)
    counts = np.bitwise_count(parts).sum(axis=1, dtype=np.int64)
    for number in np.flatnonzero(counts).tolist():
        part, rows = parts[number], int(counts[number])
        if rows <= _LISTED_ROWS:
            yield number, rows, _listed(part).astype("<u2").tobytes()
        else:
            yield number, rows, part.tobytes()


def _listed(part: Bits) -> Numbers:
    """Return the numbers of the bits that are set; of few, most bytes have none."""
    holding = np.flatnonzero(part)
    which = np.flatnonzero(np.unpackbits(part[holding], bitorder="little"))
    numbers: Numbers = holding[which >> 3] * 8 + (which & 7)
    return numbers
