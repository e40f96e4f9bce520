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
    "boolean": (Kind.TRUTH, pa.bool_()),
}
#: Kinds of values that both sides cast alike.
_CAST_ALIKE = {(Kind.INT, Kind.INT), (Kind.TIMESTAMP, Kind.DATE)}
_DAY = r"[1-9]\d{3}-\d\d-\d\d"
#: Texts that both sides read as equal values; in any other form, the source reads or refuses it.
_READ_ALIKE: dict[pa.DataType, str] = {
    pa.int32(): r"-?\d{1,9}",
    pa.int64(): r"-?\d{1,18}",
    pa.float64(): r"-?\d{1,30}(\.\d{1,30})?",
    pa.bool_(): "true|false",
    pa.date32(): _DAY,
    pa.timestamp("us"): rf"{_DAY}[ T]([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{{1,6}})?",
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
        raise StaysWithSourceError(f"it casts {value.kind} to {target}")
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
    if (value.kind, kind) in _CAST_ALIKE:
        return derived(cast(value, kept, context), kind, kept, value)
    if value.kind in {Kind.INT, Kind.DECIMAL} and kind is Kind.REAL:
        return derived(as_double(value, context), kind, kept, value)
    if value.kind is Kind.TEXT and kept in _READ_ALIKE:
        return _read(value, kind, kept, context)
    return None


def _read(value: Typed, kind: Kind, kept: pa.DataType, context: TranslationContext) -> Typed:
    """Read a text, where it is of the form that both sides read alike."""
    text = context.words.read_text(value.sql, _READ_ALIKE[kept], kept)
    return derived(f"({text})", kind, kept, value, collated=False)
