"""The names of column types, as settings and registry write them."""

import re
from typing import NamedTuple

import pyarrow as pa

from rhei_pipeline.errors import SchemaError

#: Instants are UTC with microseconds everywhere, as Python and DuckDB keep them.
INSTANT = pa.timestamp("us", tz="UTC")

UUID, JSON, INTERVAL, MAP = "uuid", "json", "interval", "map"
_ARRAYS: dict[str, pa.DataType] = {
    "boolean[]": pa.bool_(),
    "int16[]": pa.int16(),
    "int32[]": pa.int32(),
    "int64[]": pa.int64(),
    "string[]": pa.string(),
    "uuid[]": pa.string(),
}
#: What the elements of an array are, by the name of its type; the array itself is text. Those of
#: one of two dimensions are arrays.
ARRAYS = {**_ARRAYS, **{f"{name}[]": pa.list_(kind) for name, kind in _ARRAYS.items()}}

#: Whose texts differ while DuckDB holds them equal, or for which it has no index: text in keys.
TEXT_IN_KEYS = {INTERVAL, MAP, *ARRAYS}

_MAX_DECIMAL_DIGITS = 38
_DECIMAL = re.compile(r"decimal\((\d+),\s*(\d+)\)")


class NamedType(NamedTuple):
    """What a type's name says.

    Attributes:
        type: The Arrow type of the values.
        epoch: The unit of integers counted from 1970, where the name implies one.
        logical: What a text is, beyond being text: a UUID, JSON, an interval, a map, or an array.
    """

    type: pa.DataType
    epoch: str | None = None
    logical: str | None = None


_NAMED_TYPES = {
    "int16": NamedType(pa.int16()),
    "int32": NamedType(pa.int32()),
    "int64": NamedType(pa.int64()),
    "float32": NamedType(pa.float32()),
    "float64": NamedType(pa.float64()),
    "string": NamedType(pa.string()),
    "binary": NamedType(pa.binary()),
    "boolean": NamedType(pa.bool_()),
    "date": NamedType(pa.date32()),
    "time": NamedType(pa.time64("us")),
    "timestamp": NamedType(pa.timestamp("us")),
    "timestamptz": NamedType(INSTANT),
    "timestamp_s": NamedType(INSTANT, "s"),
    "timestamp_ms": NamedType(INSTANT, "ms"),
    "timestamp_us": NamedType(INSTANT, "us"),
    UUID: NamedType(pa.string(), logical=UUID),
    JSON: NamedType(pa.string(), logical=JSON),
    INTERVAL: NamedType(pa.string(), logical=INTERVAL),
    MAP: NamedType(pa.string(), logical=MAP),
    **{name: NamedType(pa.string(), logical=name) for name in ARRAYS},
}
#: Other names for the same.
_ALSO = {"text": "string", "text[]": "string[]", "text[][]": "string[][]"}


def parse_type(name: str) -> tuple[pa.DataType, str | None]:
    """Parse a type's name as settings and registry write it.

    Returns:
        The Arrow type, and the unit of integers counted from 1970 where the name implies one.

    Raises:
        SchemaError: The name is unknown; the hint lists the known ones.
    """
    found = named_type(name)
    return found.type, found.epoch


def named_type(name: str) -> NamedType:
    """Return all that a type's name says.

    Raises:
        SchemaError: The name is unknown; the hint lists the known ones.
    """
    text = name.strip().lower()
    text = _ALSO.get(text, text)
    if text in _NAMED_TYPES:
        return _NAMED_TYPES[text]
    decimal = _DECIMAL.fullmatch(text)
    if decimal:
        return NamedType(decimal_type(int(decimal[1]), int(decimal[2])))
    known = ", ".join([*_NAMED_TYPES, "decimal(p,s)"])
    raise SchemaError(f"unknown type {name!r}", hint=f"use one of: {known}")


def decimal_type(precision: int, scale: int) -> pa.DataType:
    """Return the decimal of that precision and scale.

    Raises:
        SchemaError: Arrow and DuckDB keep at most 38 digits.
    """
    if not 1 <= precision <= _MAX_DECIMAL_DIGITS or scale > precision:
        raise SchemaError(
            f"decimal({precision},{scale}) cannot be kept",
            hint=f"use at most {_MAX_DECIMAL_DIGITS} digits, and a scale within them",
        )
    return pa.decimal128(precision, scale)


def type_name(arrow_type: pa.DataType, epoch: str | None = None, logical: str | None = None) -> str:
    """Return the name that `parse_type` reads back to the same type."""
    if pa.types.is_decimal(arrow_type):
        return f"decimal({arrow_type.precision},{arrow_type.scale})"
    for name, known in _NAMED_TYPES.items():
        if known == (arrow_type, epoch, logical):
            return name
    raise SchemaError(f"type {arrow_type} has no name in a registry")
