"""Comparisons and LIKE, for values that both sides compare equally."""

import pyarrow as pa

from rhei_pipeline.model.semantics import NUMERIC, Kind
from rhei_pipeline.query.translation.literals import (
    as_double,
    cast,
    coerce,
    exact_text,
    in_full,
    is_day,
)
from rhei_pipeline.query.translation.meaning import (
    StaysWithSourceError,
    Typed,
    UnsteadyError,
    derived,
    whole_of,
)
from rhei_pipeline.query.translation.scope import TranslationContext
from rhei_pipeline.sql.text import literal

_UNSTEADY = "it compares sums of reals, whose last digits depend on the order of rows"
_ORDERS = {"<", "<=", ">", ">="}
_EQUALITIES = {"=", "<>", "is not distinct from", "is distinct from"}
#: Upper- and lower-case letters as SQLite knows them.
UPPER, LOWER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz"


def compare(operator: str, left: Typed, right: Typed, context: TranslationContext) -> Typed:
    """Compare two values as the source does.

    Raises:
        StaysWithSourceError: They are of different kinds, or the source compares differently.
    """
    if operator not in _EQUALITIES and (left.collated or right.collated):
        raise StaysWithSourceError("the source orders text by a collation of its own")
    texts = _comparable(*_settled(left, right, context), context)
    if left.inexact or right.inexact:
        # The order of rows may not turn round how sums of reals compare.
        if not all(part.steady or not part.inexact for part in (left, right)):
            raise UnsteadyError(_UNSTEADY)
        if operator not in _ORDERS:
            raise UnsteadyError(_UNSTEADY)
        if any(part.inexact and part.loose for part in (left, right)):
            raise UnsteadyError("it compares sums of reals that are computed again for each row")
        first, second = (context.words.cast(text, pa.float64()) for text in texts)
        exact = whole_of(left, right) or "false"
        return truth(f"({context.words.apart(first, second, exact)} {operator} 0)", left, right)
    return truth(f"({texts[0]} {operator} {texts[1]})", left, right)


def _as_label(value: Typed, beside: Typed) -> Typed:
    """Return a literal as the label that it is, where it is compared with an enum.

    Raises:
        StaysWithSourceError: It is none, which the source refuses.
    """
    enum = beside.enum
    if value.kind is not Kind.UNKNOWN or enum is None:
        return value
    if value.text not in enum.labels:
        raise StaysWithSourceError("it compares an enum with what is none of its labels")
    return Typed(literal(value.text), Kind.ENUM, pa.string(), text=value.text, enum=enum)


def _settled(left: Typed, right: Typed, context: TranslationContext) -> tuple[Typed, Typed]:
    left, right = _as_label(left, right), _as_label(right, left)
    return coerce(left, right.kind, context), coerce(right, left.kind, context)


def comparable(left: Typed, right: Typed, context: TranslationContext) -> tuple[str, str]:
    """Write two values such that they compare as the source compares them.

    Raises:
        StaysWithSourceError: They are of different kinds, or the source has a way of its own.
    """
    if left.inexact or right.inexact:
        raise UnsteadyError(_UNSTEADY)
    return _comparable(*_settled(left, right, context), context)


def _comparable(left: Typed, right: Typed, context: TranslationContext) -> tuple[str, str]:
    kinds = {left.kind, right.kind} - {Kind.NULL}
    if Kind.OPAQUE in kinds:
        raise StaysWithSourceError(
            "it compares a column that the mirror stores in another form or order"
        )
    if kinds == {Kind.ENUM} and (left.enum is None or left.enum != right.enum):
        raise StaysWithSourceError("it compares enums of several types, or one that it made")
    if Kind.DECIMAL in kinds and kinds <= {Kind.INT, Kind.DECIMAL}:
        return in_full(left, right, context)
    if len(kinds) <= 1 and kinds != {Kind.NUMBER}:
        return left.sql, right.sql
    if kinds == {Kind.DATE, Kind.TEXT} and context.sqlite:
        return _as_dates(left, right, context)
    if kinds == {Kind.DATE, Kind.TIMESTAMP}:
        first, second = (cast(part, pa.timestamp("us"), context) for part in (left, right))
        return first, second
    if not kinds <= NUMERIC:
        raise StaysWithSourceError(f"it compares {' with '.join(sorted(kinds))}")
    first, second = (
        part.sql if part.kind is Kind.NULL else as_double(part, context, exactly=context.sqlite)
        for part in (left, right)
    )
    return first, second


def _as_dates(left: Typed, right: Typed, context: TranslationContext) -> tuple[str, str]:
    """Compare a date of SQLite's, which is a text there, with a text.

    Such a column makes a number of any text that looks like one, and no day does.
    """
    texts = []
    for part in (left, right):
        if part.kind is Kind.TEXT and (part.text is None or not is_day(part.text)):
            raise StaysWithSourceError("it compares a date with a text that is not a fixed day")
        texts.append(cast(part, pa.date32(), context))
    return texts[0], texts[1]


def truth(sql: str, *parts: Typed) -> Typed:
    """Return a condition made of parts."""
    return derived(sql, Kind.TRUTH, pa.bool_(), *parts, collated=False)


def like_text(parts: list[Typed], escape: str | None, context: TranslationContext) -> str:
    """Translate a LIKE, with the letters that the source treats as equal."""
    if not context.sqlite:
        # A backslash escapes in PostgreSQL also where no ESCAPE says so.
        return context.words.like(parts[0].sql, parts[1].sql, parts[1].text, escape or "\\")
    if escape is not None and escape.upper() != escape.lower():
        raise StaysWithSourceError("its ESCAPE is a letter")
    folded = [f"translate({exact_text(part, context)}, '{UPPER}', '{LOWER}')" for part in parts]
    fixed = parts[1].text
    if fixed is not None:
        fixed = fixed.translate(str.maketrans(UPPER, LOWER))
    return context.words.like(folded[0], folded[1], fixed, escape)


def balanced(texts: list[str], word: str) -> str:
    """Join conditions such that no parser has to nest them deeply."""
    if len(texts) == 1:
        return texts[0]
    half = len(texts) // 2
    return f"({balanced(texts[:half], word)} {word} {balanced(texts[half:], word)})"
