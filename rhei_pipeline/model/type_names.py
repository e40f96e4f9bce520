"""The names of column types, as settings and registry write them."""

import re
from dataclasses import dataclass
from functools import lru_cache
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

#: The one form that both PostgreSQL and the mirrors write.
UUID_FORM = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
#: The words before the parts of a composite, and before the type of a range's bounds.
STRUCT, RANGE = "struct", "range"
#: Whose texts differ while DuckDB holds them equal, or for which it has no index: text in keys.
_TEXT_IN_KEYS = {INTERVAL, MAP, STRUCT, RANGE, *ARRAYS}
#: The types of PostgreSQL's own ranges.
_BOUNDS = {"int32", "int64", "date", "timestamp", "timestamptz"}
#: What is written in one way only, so that a composite's text can be written again. Of doubles,
#: PostgreSQL writes some with a digit more than DuckDB and Arrow need to tell them apart.
_PARTS = {*_BOUNDS, "int16", "boolean", "string", "uuid"}
_WRITE = (
    "write 'struct(amount decimal(10,2), \"is new\" boolean)', or 'range(timestamptz)', each part"
    " with a name of its own"
)
_FLAGS = ("lower_inclusive", "upper_inclusive", "is_empty")
_NAME = re.compile(r"[^\W\d]\w*")
_STRUCTURE = re.compile(rf"({STRUCT}|{RANGE})\((.*)\)", re.DOTALL | re.IGNORECASE)

_MAX_DECIMAL_DIGITS = 38
_DECIMAL = re.compile(r"decimal\((\d+),\s*(\d+)\)")


class NamedType(NamedTuple):
    """What a type's name says.

    Attributes:
        type: The Arrow type of the values.
        epoch: The unit of integers counted from 1970, where the name implies one.
        logical: What a text is, beyond being text: a UUID, JSON, an interval, a map, an array, a
            composite, or a range.
    """

    type: pa.DataType
    epoch: str | None = None
    logical: str | None = None


@dataclass(frozen=True, slots=True)
class Structure:
    """A composite or a range: a text of several parts, each of a type of its own.

    A range's parts are its bounds, and what is so of them.

    Attributes:
        name: As settings and registry write it.
        parts: The type of each part, by its name, in order.
    """

    name: str
    parts: tuple[tuple[str, NamedType], ...]

    @property
    def is_range(self) -> bool:
        """Whether it is a range; no composite has just its parts."""
        return is_range([name for name, _ in self.parts])

    @property
    def type(self) -> pa.StructType:
        """What it is to Arrow."""
        return pa.struct([(name, part.type) for name, part in self.parts])


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
    found = structure(name)
    if found is not None:
        return NamedType(pa.string(), logical=found.name)
    text = name.strip().lower()
    text = _ALSO.get(text, text)
    if text in _NAMED_TYPES:
        return _NAMED_TYPES[text]
    decimal = _DECIMAL.fullmatch(text)
    if decimal:
        return NamedType(decimal_type(int(decimal[1]), int(decimal[2])))
    known = ", ".join([*_NAMED_TYPES, "decimal(p,s)", "struct(name type, ...)", "range(type)"])
    raise SchemaError(f"unknown type {name.strip()!r}", hint=f"use one of: {known}")


@lru_cache(maxsize=512)
def structure(name: str) -> Structure | None:
    """Return the composite or range of which this is the name; None where it is another type's.

    Raises:
        SchemaError: A part has a type that none can have, or a name that another has.
    """
    found = _STRUCTURE.fullmatch(name.strip())
    if found is None:
        return None
    if found[1].lower() == RANGE:
        return _range(_part(found[2], _BOUNDS))
    parts = tuple((part, _part(kind, _PARTS)) for part, kind in split_parts(found[2]))
    names = [part.lower() for part, _ in parts]
    if not parts or len({*names}) < len(names) or is_range(names):
        raise SchemaError(
            f"{name!r} names no part, one twice, or those of a range",
            hint=_WRITE,
        )
    shown = ", ".join(f"{_shown(part)} {_name_of(kind)}" for part, kind in parts)
    return Structure(f"{STRUCT}({shown})", parts)


def _range(bound: NamedType) -> Structure:
    flags = tuple((name, NamedType(pa.bool_())) for name in _FLAGS)
    parts = (("lower", bound), ("upper", bound), *flags)
    return Structure(f"{RANGE}({_name_of(bound)})", parts)


def is_range(names: list[str]) -> bool:
    """Return whether parts of these names are those of a range."""
    return names == ["lower", "upper", *_FLAGS]


def _part(name: str, known: set[str]) -> NamedType:
    """Return the type of a part.

    Raises:
        SchemaError: A part cannot be of this type.
    """
    found = None if structure(name) else named_type(name)
    if found is not None and (pa.types.is_decimal(found.type) or _name_of(found) in known):
        return found
    listed = ", ".join([*sorted(known), "decimal(p,s)"])
    raise SchemaError(f"no part of a type is of {name.strip()!r}", hint=f"use one of: {listed}")


def split_parts(text: str) -> list[tuple[str, str]]:
    """Return the names and types of parts, as `a int, "b c" decimal(10,2)` lists them."""
    parts, depth, is_quoted, begin = [], 0, False, 0
    for place, letter in enumerate([*text, ","]):
        is_quoted ^= letter == '"'
        depth += 0 if is_quoted else (letter == "(") - (letter == ")")
        if letter == "," and not is_quoted and not depth:
            parts.append(text[begin:place].strip())
            begin = place + 1
    return [_split(part) for part in parts]


def _split(part: str) -> tuple[str, str]:
    found = re.match(r'"((?:[^"]|"")+)"|([^\W\d]\w*)', part)
    if found is None:
        raise SchemaError(f"{part!r} is no name and type", hint=_WRITE)
    return (found[1] or found[2]).replace('""', '"'), part[found.end() :]


def _shown(name: str) -> str:
    return name if _NAME.fullmatch(name) else '"' + name.replace('"', '""') + '"'


def _name_of(kind: NamedType) -> str:
    return type_name(*kind)


def family(logical: str) -> str:
    """Return what it is to be of a logical type, but for its parts."""
    found = _STRUCTURE.fullmatch(logical)
    return logical if found is None else found[1]


def is_text_in_keys(logical: str) -> bool:
    """Return whether a key's text stays text, as rows are found by it everywhere."""
    return family(logical) in _TEXT_IN_KEYS


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
    if logical is not None and structure(logical) is not None:
        return logical
    for name, known in _NAMED_TYPES.items():
        if known == (arrow_type, epoch, logical):
            return name
    raise SchemaError(f"type {arrow_type} has no name in a registry")
