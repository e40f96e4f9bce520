"""Arithmetic with the source's overflow, division and rounding."""

import pyarrow as pa

from rhei_pipeline.model.semantics import NUMERIC, QUOTIENT_SCALES, Kind
from rhei_pipeline.model.type_names import decimal_type
from rhei_pipeline.query.translation.literals import as_double, cast
from rhei_pipeline.query.translation.meaning import StaysWithSourceError, Typed, derived, whole_of
from rhei_pipeline.query.translation.scope import TranslationContext

#: Digits behind the point that an operand of a division may have.
_MOST_DIVIDED_DIGITS = 16


def compute(operator: str, left: Typed, right: Typed, context: TranslationContext) -> Typed:
    """Translate `+`, `-`, `*`, `/` or `%` of two values.

    Raises:
        StaysWithSourceError: They are not numbers, or the source rounds in its own way.
    """
    kinds = {left.kind, right.kind} - {Kind.NULL}
    if not kinds or not kinds <= NUMERIC:
        raise StaysWithSourceError(f"it computes with {' and '.join(sorted(kinds)) or 'nulls'}")
    if kinds == {Kind.INT}:
        return _integers(operator, left, right, context)
    if Kind.REAL not in kinds and Kind.NUMBER not in kinds:
        return _decimals(operator, left, right, context)
    return _reals(operator, left, right, context)


def _integers(operator: str, left: Typed, right: Typed, context: TranslationContext) -> Typed:
    widths = [part.type for part in (left, right) if part.kind is Kind.INT]
    kept = max(widths, key=lambda width: width.bit_width)
    first, second = cast(left, kept, context), cast(right, kept, context)
    if operator in {"/", "%"}:
        by = f"nullif({second}, 0)"
        divided = context.words.quotient(first, by) if operator == "/" else f"({first} % {by})"
        if not context.sqlite:
            divided = context.words.guarded(f"{second} = 0", divided)
        # The smallest integer by -1 overflows in its own way on each engine.
        least = f"{second} = -1 and {first} = {_smallest(kept)}"
        text = context.words.cast(context.words.guarded(least, divided), kept)
    else:
        text = context.words.whole(operator, first, second, kept)
    return derived(text, Kind.INT, kept, left, right)


def _smallest(kept: pa.DataType) -> str:
    return f"(-{2 ** (kept.bit_width - 1) - 1} - 1)"


def _decimals(operator: str, left: Typed, right: Typed, context: TranslationContext) -> Typed:
    if operator == "/":
        return divide(left, right, context)
    if operator == "%":
        raise StaysWithSourceError("it takes a remainder of numerics")
    scales = [part.type.scale if part.kind is Kind.DECIMAL else 0 for part in (left, right)]
    scale = sum(scales) if operator == "*" else max(scales)
    if scale > 38:  # noqa: PLR2004  (what a decimal holds)
        raise StaysWithSourceError("its numerics have more than 38 digits")
    kept = decimal_type(38, scale)
    text = context.words.cast(f"({left.sql} {operator} {right.sql})", kept)
    return derived(text, Kind.DECIMAL, kept, left, right)


def divide(left: Typed, right: Typed, context: TranslationContext) -> Typed:
    """Translate a division of numerics, with as many digits as PostgreSQL gives the quotient."""
    most = QUOTIENT_SCALES[1]
    if Kind.NULL in {left.kind, right.kind}:
        kept = decimal_type(38, most)
        return derived(context.words.cast("null", kept), Kind.DECIMAL, kept, left, right)
    few = not (left.loose or right.loose) and (left.aggregate or right.aggregate)
    text = context.words.divided(exact(left), exact(right), most, few=few)
    return derived(text, Kind.DECIMAL, decimal_type(38, most), left, right)


def exact(value: Typed) -> tuple[str, int]:
    """Return an exact number and its digits behind the point.

    Raises:
        StaysWithSourceError: They are so many that a quotient would have more.
    """
    scale = value.type.scale if value.kind is Kind.DECIMAL else 0
    if scale > _MOST_DIVIDED_DIGITS:
        raise StaysWithSourceError("it divides a numeric of many digits")
    return value.sql, scale


def _reals(operator: str, left: Typed, right: Typed, context: TranslationContext) -> Typed:
    if operator == "%":
        raise StaysWithSourceError("it takes a remainder of reals")
    first, second = (
        "cast(null as double)" if part.kind is Kind.NULL else as_double(part, context)
        for part in (left, right)
    )
    real = {left.kind, right.kind} & {Kind.REAL}
    if operator == "/":
        divided = f"({first} / nullif({second}, 0))"
        if not real:
            # Where both are whole, they may be integers there, whose quotient is cut off.
            whole = f"{second} <> 0 and {first} = trunc({first}) and {second} = trunc({second})"
            divided = context.words.guarded(
                f"{whole} and {first} <> trunc({divided}) * {second}", divided
            )
        text = divided if context.sqlite else context.words.guarded(f"{second} = 0", divided)
    else:
        text = f"({first} {operator} {second})"
    # SQLite has no NaN: what is none is null.
    text = context.words.without_nan(text) if context.sqlite else context.words.finite(text)
    kind = Kind.REAL if real else Kind.NUMBER
    # A difference of sums may be all last digits.
    steady = operator in {"*", "/"} and all(p.steady or not p.inexact for p in (left, right))
    exactly = whole_of(left, right) if steady else None
    return derived(text, kind, pa.float64(), left, right, steady=steady, whole=exactly)
