"""SQLite's values as Arrow columns; a value that does not fit its column's type is named.

A SQLite column may hold any storage class whatever its declared type. Columns are converted whole;
only when one does not convert is it searched for the rows to blame.
"""

import json
import math
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.model.decimals import decimals_of
from rhei_pipeline.model.logical_texts import EXPECTED, admit_texts
from rhei_pipeline.model.schema import Column
from rhei_pipeline.model.type_names import INSTANT, JSON, UUID, family
from rhei_pipeline.sources.rejections import Rejection
from rhei_pipeline.sources.sqlite.packed import packed

_NONE = type(None)
_EXACT_INTEGER = 2**53  # beyond it not every integer is a double
_MICROSECONDS = {"s": 1_000_000, "ms": 1_000, "us": 1}
_LONG = 2**63
_UUID_BYTES = 16


@dataclass(frozen=True, slots=True)
class InvalidText:
    """Text in the source that is not UTF-8."""

    raw: bytes


def admit(
    values: Sequence[Sequence[Any]], columns: Sequence[Column]
) -> tuple[list[pa.Array], list[Rejection]]:
    """Turn the values of columns, as SQLite returns them, into Arrow.

    Returns:
        One array a column, null where a row is rejected, and the rejections.
    """
    arrays, rejections = [], []
    for column, given in zip(columns, values, strict=True):
        array, misfits = admit_column(given, column)
        arrays.append(array)
        rejections.extend(misfits)
    return arrays, rejections


def admit_column(values: Sequence[Any], column: Column) -> tuple[pa.Array, list[Rejection]]:
    """Turn one column's values into an Arrow array, and name the rows that do not fit."""
    plain = packed(values, column.type) if column.logical is None else None
    if plain is not None:
        return plain, []
    kinds = set(map(type, values))
    try:
        if kinds <= _accepted(column):
            return _convert(values, column, kinds), []
    except (pa.ArrowInvalid, OverflowError):
        pass  # some value of the right class is no such date, decimal, ...: find out which
    return _sift(values, column)


def _accepted(column: Column) -> set[type]:
    family = _family(column)
    also = _EXACT_TOO.get(family, set()) if column.overridden else set()
    return _STORAGE_CLASSES[family] | also | {_NONE}


def _family(column: Column) -> str:
    if column.logical is not None:
        return family(column.logical)
    if column.epoch is not None:
        return "epoch"
    if pa.types.is_decimal(column.type):
        return "decimal"
    if pa.types.is_timestamp(column.type):
        return "instant" if column.type.tz else "timestamp"
    return str(column.type)


_STORAGE_CLASSES: dict[str, set[type]] = {
    "int64": {int},
    "double": {int, float},
    "string": {str},
    "binary": {bytes},
    "bool": {int},
    "date32[day]": {str},
    "time64[us]": {str},
    "timestamp": {str},
    "instant": {str},
    "epoch": {int},
    "decimal": {int, float},
    **{name: {str} for name in EXPECTED},
}
#: What a column whose type is declared above the source's takes as well, where it is exact.
_EXACT_TOO: dict[str, set[type]] = {
    "int64": {float},
    "string": {int, float},
    "binary": {str},
    **{name: set() for name in EXPECTED},
    UUID: {bytes},
    JSON: {int, float},
}
#: Of values as they are stored; dates and times are text.
_RAW_TYPES = {
    "int64": pa.int64(),
    "bool": pa.int64(),
    "epoch": pa.int64(),
    "double": pa.float64(),
    "decimal": pa.float64(),
    "binary": pa.binary(),
}
_EXPECTED = {
    "int64": "an integer",
    "double": "a real, or an integer that a double can hold",
    "string": "text",
    "binary": "a blob",
    "bool": "0 or 1",
    "date32[day]": "a date as YYYY-MM-DD",
    "time64[us]": "a time as HH:MM:SS",
    "timestamp": "a timestamp as YYYY-MM-DD HH:MM:SS without a zone",
    "instant": "a timestamp with its zone, as YYYY-MM-DDTHH:MM:SSZ",
    "epoch": "an integer within the range of timestamps",
    "decimal": "a number within the declared digits",
    **EXPECTED,
    UUID: f"{EXPECTED[UUID]}, or a blob of 16 bytes",
}


def _convert(values: Sequence[Any], column: Column, kinds: set[type]) -> pa.Array:
    family = _family(column)
    if family in _EXACT_TOO:
        return _exactly(values, column, family, kinds)
    if family == "double":
        return _doubles(values, kinds)
    if family == "decimal":
        return _decimals(values, column)
    return from_raw(pa.array(values, raw_type(column)), column)


def raw_type(column: Column) -> pa.DataType:
    """Return the Arrow type of SQLite's own values in a column, where they are of one class."""
    return _RAW_TYPES.get(_family(column), pa.string())


def from_raw(raw: pa.Array, column: Column) -> pa.Array:
    """Turn values of the column's `raw_type` into its type.

    Raises:
        pa.ArrowInvalid: One of them is no such date, decimal, ...
    """
    family = _family(column)
    if column.logical is not None:
        return admit_texts(raw, column.logical, trusted=False)
    if family == "bool":
        return _booleans(raw)
    if family == "epoch":
        return _from_epoch(raw, column)
    if family == "decimal":
        return decimals_of(raw.cast(pa.string()), column.type)
    if family == "time64[us]":
        return _times(raw)
    return raw if raw.type == column.type else raw.cast(column.type)


def _exactly(values: Sequence[Any], column: Column, family: str, kinds: set[type]) -> pa.Array:
    native = _STORAGE_CLASSES[family] | {_NONE}
    taken = pa.array(values if kinds <= native else map(_AS[family], values), column.type)
    return from_raw(taken, column)


def _integer(value: object) -> object:
    """Return a real as the integer that it is; it may be no -0.0, which no integer is."""
    if not isinstance(value, float):
        return value
    if not value.is_integer() or (value == 0 and math.copysign(1, value) < 0):
        raise pa.ArrowInvalid
    return int(value)


def _text(value: object) -> object:
    """Return a number as its text, the shortest that is read back to the same number."""
    return repr(value) if isinstance(value, int | float) else value


def _bytes(value: object) -> object:
    return value.encode() if isinstance(value, str) else value


def _uuid_text(value: object) -> object:
    """Return the 16 bytes of a UUID as its text."""
    if not isinstance(value, bytes):
        return value
    if len(value) != _UUID_BYTES:
        raise pa.ArrowInvalid
    return str(uuid.UUID(bytes=value))


_AS: dict[str, Callable[[object], object]] = {
    "int64": _integer,
    "string": _text,
    "binary": _bytes,
    UUID: _uuid_text,
    JSON: _text,
}


def _times(texts: pa.Array) -> pa.Array:
    # Arrow reads a time of day only behind a date.
    whole = pc.binary_join_element_wise(pa.scalar("1970-01-01"), texts, " ")
    return whole.cast(pa.timestamp("us")).cast(pa.time64("us"))


def _doubles(values: Sequence[Any], kinds: set[type]) -> pa.Array:
    if int in kinds and any(type(value) is int and abs(value) > _EXACT_INTEGER for value in values):
        raise pa.ArrowInvalid
    return pa.array(values, pa.float64())


def _booleans(numbers: pa.Array) -> pa.Array:
    extremes = pc.min_max(numbers).as_py()
    if (extremes["min"] or 0) < 0 or (extremes["max"] or 0) > 1:
        raise pa.ArrowInvalid
    return numbers.cast(pa.bool_())


def _from_epoch(numbers: pa.Array, column: Column) -> pa.Array:
    factor = _MICROSECONDS[column.epoch or "us"]
    scaled = pc.multiply_checked(numbers, pa.scalar(factor, pa.int64()))
    return scaled.cast(INSTANT)


def _decimals(values: Sequence[Any], column: Column) -> pa.Array:
    # A double's shortest text is the number that was written: 12.3, not 12.300000000000000711.
    texts = pa.array(list(map(str, values)), pa.string())
    missing = pa.array(values, pa.float64()).is_null() if None in values else None
    if missing is not None:
        texts = pc.if_else(missing, pa.scalar(None, pa.string()), texts)
    return decimals_of(texts, column.type)


def _sift(values: Sequence[Any], column: Column) -> tuple[pa.Array, list[Rejection]]:
    accepted = _accepted(column)
    wrong = [row for row, value in enumerate(values) if type(value) not in accepted]
    rejections = [Rejection(row, column.name, _reason(values[row], column)) for row in wrong]
    cleared = list(values)
    for row in wrong:
        cleared[row] = None
    array, misfits = _halve(cleared, column, 0)
    return array, rejections + misfits


def _halve(values: Sequence[Any], column: Column, offset: int) -> tuple[pa.Array, list[Rejection]]:
    """Convert, and on failure convert each half: a few bad values cost a few conversions."""
    try:
        return _convert(values, column, set(map(type, values))), []
    except (pa.ArrowInvalid, OverflowError):
        if len(values) == 1:
            rejection = Rejection(offset, column.name, _reason(values[0], column))
            return pa.nulls(1, column.type), [rejection]
    middle = len(values) // 2
    left, left_misfits = _halve(values[:middle], column, offset)
    right, right_misfits = _halve(values[middle:], column, offset + middle)
    return pa.concat_arrays([left, right]), left_misfits + right_misfits


def expected(kind: pa.DataType, logical: str | None = None) -> str:
    """Return what a column of this type takes."""
    return _EXPECTED[_family(Column("", kind, logical=logical))]


def _reason(value: object, column: Column) -> str:
    """Return what was found and what was expected, without the value."""
    found = {
        int: "an integer",
        float: "a real",
        str: "text",
        bytes: "a blob",
        InvalidText: "text that is not UTF-8",
    }[type(value)]
    return f"found {found}, expected {_EXPECTED[_family(column)]}"


def plain(value: object) -> object:
    """Return a value as text can show it: bytes in the place of text that is not UTF-8."""
    return value.raw if isinstance(value, InvalidText) else value


def encode_key(key: Sequence[Any]) -> str:
    """Write a key so that `decode_key` reads it back exactly, storage class included."""
    return json.dumps([_encoded(value) for value in key])


def _encoded(value: object) -> list[Any]:
    if isinstance(value, float):
        return ["real", value.hex()]
    if isinstance(value, bytes):
        return ["blob", value.hex()]
    if isinstance(value, InvalidText):
        return ["invalid", value.raw.hex()]
    return ["plain", value]


def decode_key(text: str) -> tuple[list[str], list[Any]]:
    """Return the SQL of each part's placeholder, and the values to bind."""
    placeholders, values = [], []
    for kind, value in json.loads(text):
        placeholders.append("cast(? as text)" if kind == "invalid" else "?")
        values.append(_DECODERS[kind](value))
    return placeholders, values


_DECODERS: dict[str, Callable[[Any], Any]] = {
    "real": float.fromhex,
    "blob": bytes.fromhex,
    "invalid": bytes.fromhex,
    "plain": lambda value: value,
}
