"""Casts between types that both sides convert to equal values."""

import pyarrow as pa

from rhei_pipeline.model.semantics import TEMPORAL, Kind
from rhei_pipeline.query.translation.literals import NULL, as_double, as_text, cast, coerce
from rhei_pipeline.query.translation.meaning import StaysWithSourceError, Typed, derived
from rhei_pipeline.query.translation.scope import TranslationContext

_POSTGRES_TYPES: dict[str, tuple[Kind, pa.DataType]] = {
    "bigint": (Kind.INT, pa.int64()),
    "int": (Kind.INT, pa.int32()),
    "integer": (Kind.INT, pa.int32()),
    "double precision": (Kind.REAL, pa.float64()),
    "text": (Kind.TEXT, pa.string()),
    "uuid": (Kind.UUID, pa.string()),
    "date": (Kind.DATE, pa.date32()),
    "timestamp": (Kind.TIMESTAMP, pa.timestamp("us")),
}


def converted(value: Typed, target: str, context: TranslationContext) -> Typed:
    """Cast a value to a type, by the source's name for it.

    Raises:
        StaysWithSourceError: The mirror has no cast with a certainly equal result.
    """
    found = (_sqlite_cast if context.sqlite else _postgres_cast)(value, target, context)
    if found is None and target in {"text", "varchar"}:
        found = as_plain_text(value, context)
    if found is None:
        raise StaysWithSourceError(f"it casts a {value.kind} to {target}")
    return found


def as_plain_text(value: Typed, context: TranslationContext) -> Typed:
    """Write a value as the text that both sides write for it.

    Raises:
        StaysWithSourceError: Each engine writes it differently.
    """
    value = as_text(value, context)
    if value.kind in {Kind.UUID, Kind.ENUM}:
        # The text has the database's own collation, whichever that is.
        text = cast(value, pa.string(), context)
        return derived(text, Kind.TEXT, pa.string(), value, collated=True)
    if value.kind in {Kind.TEXT, Kind.INT, Kind.NULL}:
        return derived(cast(value, pa.string(), context), Kind.TEXT, pa.string(), value)
    raise StaysWithSourceError(
        f"it converts a {value.kind} to text, which each engine writes differently"
    )


def _sqlite_cast(value: Typed, target: str, context: TranslationContext) -> Typed | None:
    if value.kind is Kind.NULL:
        return NULL
    if target in {"real", "double", "float"} and value.kind in {Kind.INT, Kind.REAL, Kind.NUMBER}:
        return derived(as_double(value, context), Kind.REAL, pa.float64(), value)
    if target in {"integer", "int", "bigint"} and value.kind is Kind.INT:
        return derived(value.sql, Kind.INT, pa.int64(), value)
    if target in {"integer", "int", "bigint"} and value.digits:
        return derived(cast(value, pa.int64(), context), Kind.INT, pa.int64(), value)
    return None


def _postgres_cast(value: Typed, target: str, context: TranslationContext) -> Typed | None:
    kind, kept = _POSTGRES_TYPES.get(target, (Kind.OPAQUE, pa.null()))
    if value.kind is Kind.UNKNOWN and kind in TEMPORAL | {Kind.TEXT, Kind.UUID}:
        return coerce(value, kind, context)
    if value.kind is Kind.NULL and kind is not Kind.OPAQUE:
        return Typed(context.words.cast("null", kept), kind, kept)
    if value.kind is Kind.INT and kind is Kind.INT:
        return derived(cast(value, kept, context), kind, kept, value)
    if value.kind in {Kind.INT, Kind.DECIMAL} and kind is Kind.REAL:
        return derived(as_double(value, context), kind, kept, value)
    if value.kind is Kind.TIMESTAMP and kind is Kind.DATE:
        return derived(cast(value, kept, context), kind, kept, value)
    return None
