"""Converts PostgreSQL's text form of values to typed Arrow columns.

Copies and the log both arrive as text, under the same session settings, and both pass through
here: so a value is the same in the mirror whichever way it came.
"""

from binascii import unhexlify
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.model.decimals import decimal_of, decimals_of
from rhei_pipeline.model.instant_texts import dates_of, instants_of, timestamps_of
from rhei_pipeline.model.logical_texts import admit_texts, text_reader
from rhei_pipeline.model.schema import Column
from rhei_pipeline.model.type_names import INSTANT
from rhei_pipeline.sources.rejections import Rejection

#: What every session of ours sets, so that text means one thing.
SESSION_SETTINGS = {
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "iso_8601",
    "TimeZone": "UTC",
    "bytea_output": "hex",
    "extra_float_digits": "3",
    "client_encoding": "UTF8",
}
#: What statements of ours take for granted, and the grammar that judges others': a backslash in a
#: text is one.
LEXED = {"standard_conforming_strings": "on"}

#: From this length on, blobs are read one by one.
_LONG = 64 * 2**10
_PIECE = 2**20
_EPOCH_UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1}


def admit_text(texts: pa.Array, column: Column) -> tuple[pa.Array, list[Rejection]]:
    """Convert one column's text to its type, and return the rows that do not fit.

    What is bytes already, as large values are, is not converted.
    """
    if pa.types.is_large_binary(texts.type):
        return texts.cast(pa.binary()), []
    try:
        return _convert(texts, column), []
    except pa.ArrowInvalid:
        return _halve(texts, column, 0)


@dataclass(frozen=True, slots=True)
class RowShape:
    """Converts a single row to Arrow in one step, faster than column by column."""

    struct: pa.StructType
    readers: tuple[Callable[[str], object], ...]

    def read(self, texts: Sequence[bytes | None]) -> pa.RecordBatch | None:
        """Convert a row's text to a batch; None if a value must be converted by column."""
        pairs = zip(texts, self.readers, strict=True)
        try:
            row = tuple([None if text is None else read(text.decode()) for text, read in pairs])
            return pa.RecordBatch.from_struct_array(pa.array([row], self.struct))
        except (ValueError, ArithmeticError):
            return None


def row_shape(columns: Sequence[Column]) -> RowShape | None:
    """Return the converter of such rows; None if a type must be converted by column."""
    readers = [_reader(column) for column in columns]
    known = tuple(reader for reader in readers if reader is not None)
    if len(known) < len(columns) or any(column.epoch is not None for column in columns):
        return None
    return RowShape(pa.struct([(column.name, column.type) for column in columns]), known)


def _reader(column: Column) -> Callable[[str], object] | None:
    if pa.types.is_decimal(column.type):
        return partial(decimal_of, kind=column.type)
    if column.logical is not None:
        return text_reader(column.logical, trusted=not column.overridden)
    return _READERS.get(column.type)


def _halve(texts: pa.Array, column: Column, offset: int) -> tuple[pa.Array, list[Rejection]]:
    """Convert, and on failure convert each half: a few misfits cost a few conversions."""
    try:
        return _convert(texts, column), []
    except pa.ArrowInvalid:
        if len(texts) == 1:
            reason = f"the mirror cannot hold its value as {column.logical or column.type}"
            return pa.nulls(1, column.type), [Rejection(offset, column.name, reason)]
    middle = len(texts) // 2
    left, left_misfits = _halve(texts.slice(0, middle), column, offset)
    right, right_misfits = _halve(texts.slice(middle), column, offset + middle)
    return pa.concat_arrays([left, right]), left_misfits + right_misfits


def _convert(texts: pa.Array, column: Column) -> pa.Array:
    kind = column.type
    if column.epoch is not None:
        factor = pa.scalar(_EPOCH_UNITS[column.epoch], pa.int64())
        return pc.multiply_checked(texts.cast(pa.int64()), factor).cast(INSTANT)
    if kind.equals(INSTANT):
        return instants_of(texts)
    if pa.types.is_decimal(kind):
        return decimals_of(texts, kind)
    for known, convert in _CONVERSIONS:
        if known.equals(kind):
            return convert(texts)
    plain = texts.cast(kind)
    if column.logical is not None:
        return admit_texts(plain, column.logical, trusted=not column.overridden)
    return plain


def _booleans(texts: pa.Array) -> pa.Array:
    place = pc.index_in(texts, pa.array(["f", "t"], texts.type))
    if place.null_count > texts.null_count:
        raise pa.ArrowInvalid
    return place.cast(pa.bool_())


def _boolean(text: str) -> bool:
    if text not in {"t", "f"}:
        raise ValueError(text)
    return text == "t"


def _blobs(texts: pa.Array) -> pa.Array:
    r"""Read `\x0a0b`: all digits of the column at once, cut where each value ends."""
    if pc.all(pc.starts_with(texts, r"\x")).as_py() is False:
        raise pa.ArrowInvalid
    if (pc.max(pc.binary_length(texts)).as_py() or 0) > _LONG:
        return _long_blobs(texts.cast(pa.large_string()))
    digits = pc.fill_null(pc.utf8_slice_codeunits(texts.cast(pa.large_string()), 2), "")
    _, offsets, characters = digits.buffers()
    ends = np.frombuffer(offsets, np.int64)[digits.offset : digits.offset + len(digits) + 1]
    try:
        data = bytes.fromhex(bytes(characters or b"")[ends[0] : ends[-1]].decode())
    except ValueError as error:
        raise pa.ArrowInvalid from error
    cuts = pa.py_buffer((ends - ends[0]) // 2)
    found = pa.Array.from_buffers(
        pa.large_binary(), len(digits), [None, cuts, pa.py_buffer(data)]
    ).cast(pa.binary())
    return pc.if_else(pc.is_valid(texts), found, pa.scalar(None, pa.binary()))


def _long_blobs(texts: pa.Array) -> pa.Array:
    """Read the same, value by value: the digits of all would be several copies of them."""
    _, offsets, characters = texts.buffers()
    begins = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    is_there = texts.is_valid().to_numpy(zero_copy_only=False)
    digits = np.where(is_there, np.diff(begins) - 2, 0)
    if (digits % 2).any():
        raise pa.ArrowInvalid
    ends = np.concatenate([[0], np.cumsum(digits // 2)])
    values = pa.allocate_buffer(int(ends[-1]))
    try:
        for begin, first, last in zip(
            begins[:-1].tolist(), ends[:-1].tolist(), ends[1:].tolist(), strict=True
        ):
            _unhex(memoryview(characters)[begin + 2 :], memoryview(values)[first:last])
    except ValueError as error:
        raise pa.ArrowInvalid from error
    parts = [pa.array(is_there).buffers()[1], pa.py_buffer(ends), values]
    return pa.Array.from_buffers(pa.large_binary(), len(texts), parts).cast(pa.binary())


def _unhex(digits: memoryview, values: memoryview) -> None:
    """Read as many digits as there is room for, a piece at a time."""
    for low in range(0, len(values), _PIECE):
        part = values[low : low + _PIECE].cast("B")
        part[:] = unhexlify(digits[2 * low : 2 * (low + len(part))])


def _times(texts: pa.Array) -> pa.Array:
    date, space = pa.scalar("1970-01-01", texts.type), pa.scalar(" ", texts.type)
    # Arrow reads a time of day only behind a date.
    whole = pc.binary_join_element_wise(date, texts, space)
    return whole.cast(pa.timestamp("us")).cast(pa.time64("us"))


#: How a single value is read; what these refuse, such as a year before Christ, goes by columns.
_READERS: dict[pa.DataType, Callable[[str], object]] = {
    pa.int16(): int,
    pa.int32(): int,
    pa.int64(): int,
    pa.float64(): float,
    pa.string(): str,
    pa.bool_(): _boolean,
    pa.date32(): date.fromisoformat,
    pa.timestamp("us"): datetime.fromisoformat,
    INSTANT: datetime.fromisoformat,
}
_CONVERSIONS: tuple[tuple[pa.DataType, Callable[[pa.Array], pa.Array]], ...] = (
    (pa.bool_(), _booleans),
    (pa.binary(), _blobs),
    (pa.date32(), dates_of),
    (pa.time64("us"), _times),
    (pa.timestamp("us"), timestamps_of),
)
