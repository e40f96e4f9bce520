"""Casts values to another type exactly, or refuses.

A cast is exact when casting back gives the same value, bit for bit, and both types mean the same
kind of value: a timestamp is not a local time, bytes are not text. All mirrors use this module,
so that they accept and refuse the same casts.
"""

from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.errors import SchemaDriftError
from rhei_pipeline.model.type_names import type_name

Cast = Callable[[pa.Array, pa.DataType], pa.Array]


class InexactError(Exception):
    """A value does not fit the wanted type exactly."""


def cast_exactly(values: pa.Array, wanted: pa.DataType) -> pa.Array:
    """Return values in another type.

    Raises:
        InexactError: One of them would change.
    """
    if values.null_count == len(values):
        return pa.nulls(len(values), wanted)
    if values.type.equals(wanted):
        return values
    if not is_castable(values.type, wanted):
        raise InexactError
    there, back = _CASTS[_kind(values.type), _kind(wanted)]
    try:
        cast = there(values, wanted)
        returned = back(cast, values.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InexactError from error
    if not same_bits(returned, values):
        raise InexactError
    return cast


def in_other_types(rows: pa.Table, wanted: pa.Schema) -> pa.Table:
    """Return rows cast to other types; null where a value does not fit exactly."""
    return pa.table(
        {name: _each(rows[name], wanted.field(name).type) for name in rows.column_names}
    )


def keys_in_types(keys: pa.Table, wanted: pa.Schema) -> pa.Table:
    """Return keys cast to other types, but for those that do not fit exactly; none has a null."""
    same = all(keys[field.name].type.equals(field.type) for field in wanted)
    return keys if same else in_other_types(keys, wanted).drop_null()


def _each(values: pa.ChunkedArray, wanted: pa.DataType) -> pa.ChunkedArray:
    # No value goes by Python's own, which do not reach as far.
    cells = [values.slice(row, 1).combine_chunks() for row in range(len(values))]
    return pa.chunked_array([_cast_or_null(cell, wanted) for cell in cells], wanted)


def _cast_or_null(values: pa.Array, wanted: pa.DataType) -> pa.Array:
    try:
        return cast_exactly(values, wanted)
    except InexactError:
        return pa.nulls(len(values), wanted)


def is_castable(old: pa.DataType, new: pa.DataType) -> bool:
    """Return whether any value of one type can be a value of the other."""
    return (_kind(old), _kind(new)) in _CASTS


def goes_by_text(old: pa.DataType, new: pa.DataType) -> bool:
    """Return whether the cast uses a number's shortest text, so that 0.1 becomes 0.1."""
    return _CASTS[_kind(old), _kind(new)][0] is _by_text


def same_bits(left: pa.Array, right: pa.Array) -> bool:
    """Return whether two arrays of one type are equal, including the sign of zeros."""
    return bool(_bits(left).equals(_bits(right)))


def past_does_not_fit(
    table: str, column: str, old: pa.DataType, new: pa.DataType
) -> SchemaDriftError:
    """Return the error for a temporal table whose history would have to change."""
    return SchemaDriftError(
        f"column {column!r} became {type_name(new)}, but its history does not fit: some values of"
        f" {type_name(old)} would change",
        table=table,
        hint=f"keep the old type with 'types: {{{column}: {type_name(old)}}}' in the declaration,"
        f" or start again: 'rhei drop-table {table} --keep-as NAME' keeps the history under "
        f"another name",
    )


def _kind(kind: pa.DataType) -> str:
    if pa.types.is_timestamp(kind):
        return "instant" if kind.tz else "timestamp"
    return next((name for name, test in _KINDS if test(kind)), str(kind))


_KINDS: tuple[tuple[str, Callable[[pa.DataType], bool]], ...] = (
    ("integer", pa.types.is_integer),
    ("float", pa.types.is_floating),
    ("decimal", pa.types.is_decimal),
    ("boolean", pa.types.is_boolean),
    ("text", pa.types.is_string),
    ("date", pa.types.is_date32),
    ("time", pa.types.is_time64),
)


def _bits(values: pa.Array) -> pa.Array:
    """Return floats as their bits: NaN equals itself then, and 0.0 is not -0.0."""
    if not pa.types.is_floating(values.type):
        return values
    return values.view(pa.int64() if pa.types.is_float64(values.type) else pa.int32())


def _safely(values: pa.Array, wanted: pa.DataType) -> pa.Array:
    return values.cast(wanted)


def _freely(values: pa.Array, wanted: pa.DataType) -> pa.Array:
    # Arrow refuses integers beyond 2^53 whether a float holds them or not; the way back tells.
    return values.cast(wanted, safe=False)


def _by_text(values: pa.Array, wanted: pa.DataType) -> pa.Array:
    return values.cast(pa.string()).cast(wanted)


def _plain_decimals(values: pa.Array, _wanted: pa.DataType) -> pa.Array:
    # Arrow writes small ones with an exponent.
    texts = [None if value is None else f"{value:f}" for value in values.to_pylist()]
    return pa.array(texts, pa.string())


def _clock_text(values: pa.Array, _wanted: pa.DataType) -> pa.Array:
    """Return times as text, without trailing zeros in their fractions."""
    return pc.utf8_rtrim(pc.utf8_rtrim(values.cast(pa.string()), "0"), ".")


def _time_of_text(values: pa.Array, wanted: pa.DataType) -> pa.Array:
    # Arrow reads a time of day only behind a date.
    whole = pc.binary_join_element_wise(pa.scalar("1970-01-01"), values, " ")
    return whole.cast(pa.timestamp("us")).cast(wanted)


#: How values of one kind become those of another, and back.
_CASTS: dict[tuple[str, str], tuple[Cast, Cast]] = {
    ("integer", "integer"): (_safely, _safely),
    ("integer", "float"): (_freely, _safely),
    ("integer", "decimal"): (_by_text, _safely),
    ("integer", "boolean"): (_safely, _safely),
    ("integer", "text"): (_safely, _safely),
    ("float", "float"): (_freely, _freely),
    ("float", "integer"): (_safely, _freely),
    ("float", "decimal"): (_by_text, _by_text),
    ("decimal", "decimal"): (_safely, _safely),
    ("decimal", "integer"): (_safely, _by_text),
    ("decimal", "float"): (_by_text, _by_text),
    ("decimal", "text"): (_plain_decimals, _safely),
    ("boolean", "integer"): (_safely, _safely),
    ("boolean", "text"): (_safely, _safely),
    ("text", "integer"): (_safely, _safely),
    ("text", "float"): (_safely, _safely),
    ("text", "decimal"): (_safely, _plain_decimals),
    ("text", "boolean"): (_safely, _safely),
    ("text", "date"): (_safely, _safely),
    ("text", "time"): (_time_of_text, _clock_text),
    ("text", "timestamp"): (_safely, _clock_text),
    ("date", "text"): (_safely, _safely),
    ("date", "timestamp"): (_safely, _safely),
    ("time", "text"): (_clock_text, _time_of_text),
    ("timestamp", "text"): (_clock_text, _safely),
    ("timestamp", "date"): (_freely, _safely),
}
