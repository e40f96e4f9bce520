"""Hashes of keys and rows, column by column, by which rows are found and compared.

Keys are found by 96 bits: with ten million rows and ten thousand look-ups a second, two keys
collide about once in a hundred thousand million years. Rows of one key are compared by 64 bits.
The finaliser is splitmix64's (Steele, Lea, Flood: Fast splittable pseudorandom number generators,
2014), which gives different integers different hashes.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rhei_pipeline.changes.compaction import one_form
from rhei_pipeline.model.schema import HISTORY_NAMES, Column, Table, TableSchema

Words = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_KEY_SEED = np.uint64(0x243F6A8885A308D3)
_CHECK_SEED = np.uint64(0x13198A2E03707344)
#: Texts are spread into words so many rows, and about so many bytes, at a time: to stay in the
#: processor's cache, and because that takes some twenty times their size.
_TEXT_ROWS = 16_384
_TEXT_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class KeyHashes:
    """The hashes of some keys, one entry a row: 64 bits to sort by, and 32 more to confirm."""

    words: Words
    checks: npt.NDArray[np.uint32]

    def take(self, rows: npt.NDArray[np.generic]) -> "KeyHashes":
        """Return the rows named, or those where a mask is true."""
        return KeyHashes(self.words[rows], self.checks[rows])

    def and_those(self, more: "KeyHashes") -> "KeyHashes":
        """Return these, and more behind them."""
        words, checks = (self.words, more.words), (self.checks, more.checks)
        return KeyHashes(np.concatenate(words), np.concatenate(checks))


def key_hashes(keys: pa.Table) -> KeyHashes:
    """Hash keys, given as the key's columns in the key's order; keys hold no nulls."""
    words = np.full(keys.num_rows, _KEY_SEED)
    checks = np.full(keys.num_rows, _CHECK_SEED)
    for column in keys.columns:
        part = one_form(column)
        words = _mix(words * _GOLDEN + _column(part, _KEY_SEED))
        checks = _mix(checks * _GOLDEN + _column(part, _CHECK_SEED))
    return KeyHashes(words, (checks >> np.uint64(32)).astype(np.uint32))


def table_digests(rows: pa.Table, schema: TableSchema) -> Words:
    """Hash the columns outside the key, and the sign of a floating key that is zero.

    The key finds its row with either sign; the sign itself is a value to keep.
    """
    digests = row_digests(rows.select([column.name for column in schema.value_columns]))
    for column in schema.key_columns:
        if pa.types.is_floating(column.type):
            values = rows[column.name].to_numpy()
            digests[(values == 0) & np.signbit(values)] += _seed(column.name)
    return digests


def left_digests(rows: pa.Table, table: Table) -> Words:
    """Return what columns that the source has no more add to the digests of rows that have them."""
    told = {*table.schema.names, *HISTORY_NAMES}
    left = [name for name in rows.column_names if name not in told]
    return row_digests(rows.select(left)) if left else np.zeros(rows.num_rows, dtype=np.uint64)


def row_digests(rows: pa.Table) -> Words:
    """Hash the columns given, in any order; a null counts as an absent column.

    So a digest stays valid when a column is added, or when integers and floats are widened.
    """
    digests = np.zeros(rows.num_rows, dtype=np.uint64)
    for name, column in zip(rows.column_names, rows.columns, strict=True):
        part = _mix(_column(column, _KEY_SEED) + _seed(name))
        if column.null_count:
            part[column.is_null().to_numpy(zero_copy_only=False)] = 0
        digests += part
    return digests


def covers(written: pa.Schema, columns: Sequence[Column]) -> bool:
    """Return whether digests of rows as they were written are those of these columns."""
    known = {column.name: column.type for column in columns}
    return all(
        field.name in known and _digest_alike(field.type, known[field.name])
        for field in written
        if field.name not in HISTORY_NAMES
    )


def _digest_alike(old: pa.DataType, new: pa.DataType) -> bool:
    return bool(
        old.equals(new)
        or (pa.types.is_integer(old) and pa.types.is_integer(new))
        or (pa.types.is_floating(old) and pa.types.is_floating(new))
    )


def _seed(name: str) -> np.uint64:
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


def _mix(words: Words) -> Words:
    mixed = words ^ (words >> np.uint64(30))
    mixed *= _FIRST
    mixed ^= mixed >> np.uint64(27)
    mixed *= _SECOND
    mixed ^= mixed >> np.uint64(31)
    return mixed


def _column(column: pa.ChunkedArray, seed: np.uint64) -> Words:
    parts = [_array(chunk, seed) for chunk in column.chunks if len(chunk)]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint64)


def _array(values: pa.Array, seed: np.uint64) -> Words:
    """Return values as 64-bit words; a null's word is arbitrary."""
    kind = values.type
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return np.concatenate([_texts(part, seed) for part in _text_parts(values)])
    if pa.types.is_decimal(kind):
        low, high = _halves(values)
        return _mix(_mix(low + seed) + high)
    return _numbers(values)


def _halves(values: pa.Array) -> tuple[Words, Words]:
    pairs = np.frombuffer(values.buffers()[1], dtype=np.uint64)
    pairs = pairs[2 * values.offset : 2 * (values.offset + len(values))]
    return pairs[::2], pairs[1::2]


def _numbers(values: pa.Array) -> Words:
    if values.null_count:
        values = values.fill_null(_zero(values.type))
    if pa.types.is_floating(values.type):
        values = values.cast(pa.float64()).view(pa.int64())
    elif pa.types.is_boolean(values.type):
        values = values.cast(pa.int8())
    elif pa.types.is_date32(values.type):
        values = values.cast(pa.int32())
    found: Words = values.cast(pa.int64()).to_numpy(zero_copy_only=False).view(np.uint64)
    return found


def _zero(kind: pa.DataType) -> pa.Scalar:
    if pa.types.is_date32(kind):
        return pa.scalar(0, pa.int32()).cast(kind)
    if pa.types.is_temporal(kind):
        return pa.scalar(0, pa.int64()).cast(kind)
    return pa.scalar(value=False) if pa.types.is_boolean(kind) else pa.scalar(0, kind)


def _text_parts(values: pa.Array) -> Iterator[pa.Array]:
    """Cut texts into runs of bounded rows and bytes; a larger text is a run by itself."""
    offsets, low = _offsets(values), 0
    while low < len(values):
        within = int(np.searchsorted(offsets, offsets[low] + _TEXT_BYTES, side="right")) - 1
        high = max(low + 1, min(low + _TEXT_ROWS, within))
        yield values.slice(low, high - low)
        low = high


def _offsets(values: pa.Array) -> npt.NDArray[np.int64]:
    offsets = np.frombuffer(values.buffers()[1], dtype=np.int32)
    return offsets[values.offset : values.offset + len(values) + 1].astype(np.int64)


def _texts(values: pa.Array, seed: np.uint64) -> Words:
    """Cut each text into words of eight bytes, mix each with its place, and add them up."""
    offsets = _offsets(values)
    if len(values) == 1 and offsets[1] - offsets[0] > _TEXT_BYTES:
        return _large_text(values.buffers()[2], int(offsets[0]), int(offsets[1]), seed)
    lengths = np.diff(offsets)
    counts = (lengths + 7) // 8
    ends = np.cumsum(counts)
    starts = ends - counts
    padded = np.zeros(int(ends[-1]) * 8, dtype=np.uint8)
    first, last = int(offsets[0]), int(offsets[-1])
    if last > first:
        places = np.arange(first, last) + np.repeat(starts * 8 - offsets[:-1], lengths)
        padded[places] = np.frombuffer(values.buffers()[2], dtype=np.uint8)[first:last]
    within = (np.arange(int(ends[-1])) - np.repeat(starts, counts)).astype(np.uint64)
    mixed = _mix(padded.view(np.uint64) + (within + np.uint64(1)) * _GOLDEN + seed)
    sums = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(mixed, dtype=np.uint64)])
    return _mix(sums[ends] - sums[starts] + lengths.astype(np.uint64) * _SECOND + seed)


def _large_text(buffer: pa.Buffer, first: int, last: int, seed: np.uint64) -> Words:
    """Return the word of one text, which is as `_texts` has it, a block at a time."""
    total = np.zeros(1, dtype=np.uint64)
    for low in range(first, last, _TEXT_BYTES):
        block = np.frombuffer(buffer, np.uint8, min(_TEXT_BYTES, last - low), low)
        padded = np.pad(block, (0, -len(block) % 8)).view(np.uint64)
        within = np.arange(len(padded), dtype=np.uint64) + np.uint64((low - first) // 8 + 1)
        total += _mix(padded + within * _GOLDEN + seed).sum(dtype=np.uint64)
    length = np.array([last - first], dtype=np.uint64)
    return _mix(total + length * _SECOND + seed)
