"""Literals, parameters, and conversions between kinds of values."""

import math
import re
from collections.abc import Sequence
from datetime import date, datetime
from decimal import Decimal

import pyarrow as pa

from rhei_pipeline.model.logical_texts import is_uuid
from rhei_pipeline.model.semantics import NUMERIC, Kind
from rhei_pipeline.model.type_names import INSTANT, decimal_type
from rhei_pipeline.query.translation.meaning import StaysWithSourceError, Typed, derived
from rhei_pipeline.query.translation.scope import TranslationContext
from rhei_pipeline.sql.text import literal

EXACT = 2**53  # beyond it not every integer is a double
_LONG = 2**63
_SMALL, _MEDIUM = 2**15, 2**31
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\d([ T]\d\d:\d\d(:\d\d(\.\d{1,6})?)?)?")
_TEMPORAL_TYPES = {
    Kind.DATE: pa.date32(),
    Kind.TIMESTAMP: pa.timestamp("us"),
    Kind.INSTANT: INSTANT,
}
#: Digits up to which a decimal divided by its power of ten is the nearest double.
_DOUBLE_DIGITS = 15
#: Digits that an integer of so many bits may have.
_INTEGER_DIGITS = {16: 5, 32: 10, 64: 19}
NULL = Typed("null", Kind.NULL, pa.null())


def cast(typed: Typed, kept: pa.DataType, context: TranslationContext) -> str:
    """Return a cast in the mirror's SQL."""
    return context.words.cast(typed.sql, kept)


def integer(value: int, context: TranslationContext) -> Typed:
    """Translate an integer literal, with the type that the source gives it."""
    if not -_LONG < value < _LONG:
        raise StaysWithSourceError("an integer has more than 64 bits")
    kept = pa.int64() if context.sqlite or not -_MEDIUM <= value < _MEDIUM else pa.int32()
    return Typed(context.words.cast(str(value), kept), Kind.INT, kept, text=str(value))


def real(text: str, context: TranslationContext) -> Typed:
    """Translate a real literal to an equal double."""
    written = context.words.cast(literal(repr(float(text))), pa.float64())
    return Typed(written, Kind.REAL, pa.float64(), text=text)


def number(text: str, context: TranslationContext) -> Typed:
    """Translate a numeric literal."""
    if text.isdigit():
        return integer(int(text), context)
    if not re.fullmatch(r"\d*\.?\d*([eE][+-]?\d+)?", text):
        raise StaysWithSourceError(f"a number is written as {text!r}")
    if context.sqlite:
        return real(text, context)
    exact = format(Decimal(text), "f")
    scale = len(exact.partition(".")[2])
    digits = max(len(exact.replace(".", "").lstrip("0")), scale, 1)
    if digits > 38:  # noqa: PLR2004  (what a decimal holds)
        raise StaysWithSourceError("a number has more than 38 digits")
    kept = decimal_type(digits, scale)
    return Typed(context.words.cast(literal(exact), kept), Kind.DECIMAL, kept, text=text)


def parameter(place: int, context: TranslationContext) -> Typed:
    """Return the placeholder at this position, from 1, with the kind of its value."""
    value = context.parameters[place - 1]
    if not context.sqlite and type(value) is str and "\0" in value:
        raise StaysWithSourceError("a parameter has a NUL character")
    kind, kept = _parameter_kind(value, context.sqlite)
    if kind is Kind.NULL:
        return NULL
    context.bound.add(place)
    return Typed(context.words.cast(f"$p{place}", kept), kind, kept)


def _parameter_kind(value: object, sqlite: bool) -> tuple[Kind, pa.DataType]:  # noqa: FBT001
    if type(value) is int and -_LONG <= value < _LONG:
        if sqlite or not -_MEDIUM <= value < _MEDIUM:
            return Kind.INT, pa.int64()
        return Kind.INT, pa.int16() if -_SMALL <= value < _SMALL else pa.int32()
    if type(value) is bool:
        return (Kind.INT, pa.int64()) if sqlite else (Kind.TRUTH, pa.bool_())
    if sqlite and type(value) is float and math.isnan(value):
        return Kind.NULL, pa.null()
    known: dict[type, tuple[Kind, pa.DataType]] = {
        type(None): (Kind.NULL, pa.null()),
        float: (Kind.REAL, pa.float64()),
        str: (Kind.TEXT, pa.string()),
        bytes: (Kind.BLOB, pa.binary()),
    }
    if not sqlite:
        known |= {date: (Kind.DATE, pa.date32())}
        if type(value) is datetime:
            zoned = value.tzinfo is not None
            return (Kind.INSTANT, INSTANT) if zoned else (Kind.TIMESTAMP, pa.timestamp("us"))
    if type(value) not in known:
        raise StaysWithSourceError(f"a parameter is a {type(value).__name__}")
    return known[type(value)]


def as_value(typed: Typed, context: TranslationContext) -> Typed:
    """Return a truth as a value: in SQLite, 1 or 0."""
    if context.sqlite and typed.kind is Kind.TRUTH:
        return derived(cast(typed, pa.int64(), context), Kind.INT, pa.int64(), typed)
    return typed


def as_text(typed: Typed, context: TranslationContext) -> Typed:
    """Return what SQLite has for a date: text."""
    if context.sqlite and typed.kind is Kind.DATE:
        return derived(cast(typed, pa.string(), context), Kind.TEXT, pa.string(), typed)
    return typed


def is_day(text: str) -> bool:
    """Return whether a text is a day of the calendar, in the form YYYY-MM-DD."""
    try:
        return bool(_DATE.fullmatch(text)) and date.fromisoformat(text) is not None
    except ValueError:
        return False


def as_truth(typed: Typed, context: TranslationContext) -> str:
    """Return a value as a condition."""
    if typed.kind in {Kind.TRUTH, Kind.NULL}:
        return typed.sql if typed.kind is Kind.TRUTH else "cast(null as boolean)"
    if context.sqlite and typed.kind in {Kind.INT, Kind.REAL, Kind.NUMBER} and not typed.inexact:
        return f"({typed.sql} <> 0)"
    raise StaysWithSourceError(f"a condition is a {typed.kind}")


def as_double(typed: Typed, context: TranslationContext, *, exactly: bool = False) -> str:
    """Return a number as a double; with `exactly`, refuse integers that no double equals."""
    if typed.kind is Kind.DECIMAL and typed.type.precision > _DOUBLE_DIGITS:
        return context.words.cast(cast(typed, pa.string(), context), pa.float64())
    text = cast(typed, pa.float64(), context)
    if typed.kind is not Kind.INT or not exactly:
        return text
    if typed.text is not None and abs(int(typed.text)) <= EXACT:
        return text
    beyond = f"{typed.sql} > {EXACT} or {typed.sql} < -{EXACT}"
    return context.words.guarded(beyond, text)


def exact_text(typed: Typed, context: TranslationContext) -> str:
    """Return text for a function; SQLite's functions stop at a NUL, the mirror's do not."""
    if not context.sqlite or typed.text is not None:
        return typed.sql
    return context.words.guarded(f"contains({typed.sql}, chr(0))", typed.sql)


def coerce(typed: Typed, kind: Kind, context: TranslationContext) -> Typed:
    """Give a literal of unknown type the type of its context."""
    if typed.kind is not Kind.UNKNOWN:
        return typed
    text = typed.text or ""
    if kind in {Kind.TEXT, Kind.UNKNOWN, Kind.NULL}:
        return Typed(literal(text), Kind.TEXT, pa.string(), text=text)
    if kind is Kind.DATE and _DATE.fullmatch(text):
        return Typed(context.words.cast(literal(text), pa.date32()), kind, pa.date32(), text=text)
    if kind in {Kind.TIMESTAMP, Kind.INSTANT} and _TIMESTAMP.fullmatch(text):
        whole = f"{text[:10]} {text[11:]}{'00:00:00'[len(text[11:]) :]}"
        zoned = f"{whole}Z" if kind is Kind.INSTANT else whole  # the session's zone is UTC
        kept = _TEMPORAL_TYPES[kind]
        return Typed(context.words.cast(literal(zoned), kept), kind, kept, text=text)
    if kind is Kind.UUID and is_uuid(text.lower()):
        # As the mirrors write it: some keep it as text.
        return Typed(literal(text.lower()), kind, pa.string(), text=text)
    if kind is Kind.INT and re.fullmatch(r"-?\d{1,18}", text):
        return Typed(context.words.cast(text, pa.int64()), kind, pa.int64(), text=text)
    raise StaysWithSourceError(f"a literal is compared with a {kind}")


def unify(
    parts: Sequence[Typed], context: TranslationContext
) -> tuple[Kind, pa.DataType, list[str]]:
    """Convert alternatives, such as those of a CASE, to one kind and type.

    Raises:
        StaysWithSourceError: The source would answer with values of several kinds.
    """
    known = {part.kind for part in parts} - {Kind.NULL, Kind.UNKNOWN}
    hint = next(iter(known)) if known else Kind.TEXT
    values = [as_value(coerce(part, hint, context), context) for part in parts]
    kinds = {value.kind for value in values} - {Kind.NULL}
    if not kinds:
        return Kind.NULL, pa.null(), [value.sql for value in values]
    if kinds & {Kind.OPAQUE, Kind.ENUM}:
        raise StaysWithSourceError(
            "it computes with a column that the mirror stores in another form"
        )
    if len(kinds) == 1:
        kind = kinds.pop()
        kept = _widest([value.type for value in values if value.kind is kind])
        return kind, kept, [cast(value, kept, context) for value in values]
    if context.sqlite and kinds == {Kind.DATE, Kind.TEXT}:
        texts = [as_text(value, context).sql for value in values]
        return Kind.TEXT, pa.string(), texts
    if not kinds <= NUMERIC:
        raise StaysWithSourceError(f"it mixes {' and '.join(sorted(kinds))}")
    if not context.sqlite and Kind.REAL not in kinds:
        return _as_decimals(values, context)
    kind = Kind.NUMBER if context.sqlite else Kind.REAL
    texts = [
        value.sql if value.kind is Kind.NULL else as_double(value, context, exactly=context.sqlite)
        for value in values
    ]
    return kind, pa.float64(), [context.words.cast(text, pa.float64()) for text in texts]


def _as_decimals(
    values: Sequence[Typed], context: TranslationContext
) -> tuple[Kind, pa.DataType, list[str]]:
    """Bring integers and numerics to one numeric that has room for each."""
    types = [_decimal_of(value) for value in values if value.kind is not Kind.NULL]
    kept = _widest(types)
    return Kind.DECIMAL, kept, [cast(value, kept, context) for value in values]


def in_full(left: Typed, right: Typed, context: TranslationContext) -> tuple[str, str]:
    """Write two exact numbers such that no engine drops digits to compare them."""
    if Kind.NULL in {left.kind, right.kind}:
        return left.sql, right.sql
    types = [_decimal_of(value) for value in (left, right)]
    scale = max(kept.scale for kept in types)
    if max(kept.precision - kept.scale for kept in types) + scale <= 38:  # noqa: PLR2004
        return left.sql, right.sql
    kept = decimal_type(38, scale)
    return cast(left, kept, context), cast(right, kept, context)


def _decimal_of(value: Typed) -> pa.DataType:
    if value.kind is Kind.DECIMAL:
        return value.type
    digits = len(value.text) if value.text is not None else _INTEGER_DIGITS[value.type.bit_width]
    return decimal_type(digits, 0)


def _widest(types: Sequence[pa.DataType]) -> pa.DataType:
    if all(kept.equals(types[0]) for kept in types):
        return types[0]
    if all(pa.types.is_integer(kept) for kept in types):
        return max(types, key=lambda kept: kept.bit_width)
    if all(pa.types.is_decimal(kept) for kept in types):
        scale = max(kept.scale for kept in types)
        whole = max(kept.precision - kept.scale for kept in types)
        return decimal_type(min(whole + scale, 38), scale)
    if any(pa.types.is_decimal(kept) for kept in types):
        return pa.float64()
    raise StaysWithSourceError("it mixes types")
