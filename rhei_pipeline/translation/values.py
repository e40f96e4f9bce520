"""Literals, parameters, and the step from one kind of value to another."""

import re
from collections.abc import Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa

from rhei_pipeline.schema import INSTANT, decimal_type
from rhei_pipeline.sql import duckdb_type, literal
from rhei_pipeline.translation.meaning import NUMERIC, Kind, StaysError, Typed, derived

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
#: A row that the mirror cannot answer for ends the query there; the source then answers it.
_INEXACT = "error('rhei: only the source answers this exactly')"
NULL = Typed("null", Kind.NULL, pa.null())


def cast(typed: Typed, kept: pa.DataType) -> str:
    """Write a conversion in the mirror."""
    return f"cast({typed.sql} as {duckdb_type(kept)})"


def integer(value: int, *, sqlite: bool) -> Typed:
    """Write an integer literal with the type its source gives it."""
    if not -_LONG < value < _LONG:
        raise StaysError("an integer has more than 64 bits")
    kept = pa.int64() if sqlite or not -_MEDIUM <= value < _MEDIUM else pa.int32()
    return Typed(f"cast({value} as {duckdb_type(kept)})", Kind.INT, kept, text=str(value))


def real(text: str) -> Typed:
    """Write a real literal as a double of the same value."""
    return Typed(f"cast('{float(text)!r}' as double)", Kind.REAL, pa.float64(), text=text)


def number(text: str, *, sqlite: bool) -> Typed:
    """Write a numeric literal."""
    if text.isdigit():
        return integer(int(text), sqlite=sqlite)
    if not re.fullmatch(r"\d*\.?\d*([eE][+-]?\d+)?", text):
        raise StaysError(f"a number is written as {text!r}")
    if sqlite:
        return real(text)
    exact = format(Decimal(text), "f")
    scale = len(exact.partition(".")[2])
    digits = max(len(exact.replace(".", "").lstrip("0")), scale, 1)
    if digits > 38:  # noqa: PLR2004  (what a decimal holds)
        raise StaysError("a number has more than 38 digits")
    kept = decimal_type(digits, scale)
    return Typed(f"cast('{exact}' as {duckdb_type(kept)})", Kind.DECIMAL, kept, text=text)


def parameters(values: Sequence[Any], *, sqlite: bool) -> list[Typed]:
    """Write placeholders with the kind of each value that will be bound to them."""
    return [_parameter(place, value, sqlite) for place, value in enumerate(values, 1)]


def _parameter(place: int, value: object, sqlite: bool) -> Typed:  # noqa: FBT001
    kind, kept = _parameter_kind(value, sqlite)
    if kind is Kind.NULL:
        return NULL
    typed = Typed(f"$p{place}", kind, kept)
    return Typed(cast(typed, kept), kind, kept)


def _parameter_kind(value: object, sqlite: bool) -> tuple[Kind, pa.DataType]:  # noqa: FBT001
    if type(value) is int and -_LONG <= value < _LONG:
        if sqlite or not -_MEDIUM <= value < _MEDIUM:
            return Kind.INT, pa.int64()
        return Kind.INT, pa.int16() if -_SMALL <= value < _SMALL else pa.int32()
    if type(value) is bool:
        return (Kind.INT, pa.int64()) if sqlite else (Kind.TRUTH, pa.bool_())
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
        raise StaysError(f"a parameter is a {type(value).__name__}")
    return known[type(value)]


def as_value(typed: Typed, *, sqlite: bool) -> Typed:
    """Return what a truth is as a value: in SQLite, 1 or 0."""
    if sqlite and typed.kind is Kind.TRUTH:
        return derived(cast(typed, pa.int64()), Kind.INT, pa.int64(), typed)
    return typed


def as_truth(typed: Typed, *, sqlite: bool) -> str:
    """Write a condition."""
    if typed.kind in {Kind.TRUTH, Kind.NULL}:
        return typed.sql if typed.kind is Kind.TRUTH else "cast(null as boolean)"
    if sqlite and typed.kind in {Kind.INT, Kind.REAL, Kind.NUMBER} and not typed.inexact:
        return f"({typed.sql} <> 0)"
    raise StaysError(f"a condition is a {typed.kind}")


def as_double(typed: Typed, *, exactly: bool) -> str:
    """Write a number as a double; with `exactly`, refuse integers that no double equals."""
    text = cast(typed, pa.float64())
    if typed.kind is not Kind.INT or not exactly:
        return text
    if typed.text is not None and abs(int(typed.text)) <= EXACT:
        return text
    beyond = f"{typed.sql} > {EXACT} or {typed.sql} < -{EXACT}"
    return f"case when {beyond} then {_INEXACT} else {text} end"


def guarded(condition: str, otherwise: str) -> str:
    """Write an expression that ends the query where a condition holds."""
    return f"case when {condition} then {_INEXACT} else {otherwise} end"


def exact_text(typed: Typed, *, sqlite: bool) -> str:
    """Write text for a function; SQLite's functions stop at a NUL character, the mirror's not."""
    if not sqlite or typed.text is not None:
        return typed.sql
    return guarded(f"contains({typed.sql}, chr(0))", typed.sql)


def settle(typed: Typed, kind: Kind) -> Typed:
    """Give a literal of unknown type the type of its surroundings."""
    if typed.kind is not Kind.UNKNOWN:
        return typed
    text = typed.text or ""
    if kind in {Kind.TEXT, Kind.UNKNOWN, Kind.NULL}:
        return Typed(literal(text), Kind.TEXT, pa.string(), text=text)
    if kind is Kind.DATE and _DATE.fullmatch(text):
        return Typed(f"date {literal(text)}", kind, pa.date32(), text=text)
    if kind in {Kind.TIMESTAMP, Kind.INSTANT} and _TIMESTAMP.fullmatch(text):
        zoned = f"{text}+00" if kind is Kind.INSTANT else text  # the session's zone is UTC
        kept = _TEMPORAL_TYPES[kind]
        return Typed(f"cast({literal(zoned)} as {duckdb_type(kept)})", kind, kept, text=text)
    if kind is Kind.INT and re.fullmatch(r"-?\d{1,18}", text):
        return Typed(f"cast({text} as bigint)", kind, pa.int64(), text=text)
    raise StaysError(f"a literal is compared with a {kind}")


def unify(parts: Sequence[Typed], *, sqlite: bool) -> tuple[Kind, pa.DataType, list[str]]:
    """Bring alternatives, such as those of a CASE, to one kind, type, and text in the mirror.

    Raises:
        StaysError: The source would answer with values of several kinds.
    """
    known = {part.kind for part in parts} - {Kind.NULL, Kind.UNKNOWN}
    hint = next(iter(known)) if known else Kind.TEXT
    values = [as_value(settle(part, hint), sqlite=sqlite) for part in parts]
    kinds = {value.kind for value in values} - {Kind.NULL}
    if not kinds:
        return Kind.NULL, pa.null(), [value.sql for value in values]
    if Kind.OPAQUE in kinds:
        raise StaysError("it computes with a column that the mirror keeps in another form")
    if len(kinds) == 1:
        kind = kinds.pop()
        kept = _widest([value.type for value in values if value.kind is kind])
        return kind, kept, [cast(value, kept) for value in values]
    if not kinds <= NUMERIC:
        raise StaysError(f"it mixes {' and '.join(sorted(kinds))}")
    if not sqlite and Kind.REAL not in kinds:
        raise StaysError("it mixes integer and numeric")
    kind = Kind.NUMBER if sqlite else Kind.REAL
    texts = [
        value.sql if value.kind is Kind.NULL else as_double(value, exactly=sqlite)
        for value in values
    ]
    return kind, pa.float64(), [f"cast({text} as double)" for text in texts]


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
    raise StaysError("it mixes types")
