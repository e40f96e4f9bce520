"""Dates: what is fixed is computed here, once; parts of a date are taken as the source does."""

import re
from collections.abc import Callable, Sequence
from datetime import date, timedelta

import pyarrow as pa
from sqlglot import exp

from rhei_pipeline.model.semantics import Kind
from rhei_pipeline.query.translation.literals import is_day
from rhei_pipeline.query.translation.meaning import StaysWithSourceError, Typed, derived
from rhei_pipeline.query.translation.scope import Scope, TranslationContext
from rhei_pipeline.sql.text import literal

Express = Callable[[exp.Expr, Scope, TranslationContext], Typed]
DATES = (exp.Date, exp.TimeToStr, exp.Extract)
_MODIFIER = re.compile(r"([+-]?)(\d{1,5}) (day|month|year)s?", re.IGNORECASE)
#: Where the parts of YYYY-MM-DD begin, and how long they are.
_PARTS = {"%Y": (1, 4), "%m": (6, 2), "%d": (9, 2)}
_FORMAT = re.compile(r"%.|[^%]+", re.DOTALL)
_UNITS = {"DAY": (1, 0), "WEEK": (7, 0), "MONTH": (0, 1), "YEAR": (0, 12)}
#: PostgreSQL's answer is numeric.
_PART_TYPE = pa.decimal128(38, 0)


def is_date_call(node: exp.Expr) -> bool:
    """Return whether a node is SQLite's date() with modifiers."""
    return isinstance(node, exp.Anonymous) and str(node.this).lower() == "date"


def call(node: exp.Expr, scope: Scope, context: TranslationContext, express: Express) -> Typed:
    """Translate a function of a date.

    Raises:
        StaysWithSourceError: It is of something else, or of a form that only the source knows.
    """
    if isinstance(node, exp.Extract):
        return _extract(node, scope, context, express)
    if not context.sqlite:
        raise StaysWithSourceError("a function of a date is the source's own")
    if isinstance(node, exp.TimeToStr):
        return _formatted(node, scope, context, express)
    given = node.expressions if isinstance(node, exp.Anonymous) else [node.this]
    if isinstance(node, exp.Date) and (node.expressions or node.args.get("zone")):
        raise StaysWithSourceError("its date() has modifiers that only the source knows")
    if all(isinstance(each, exp.Literal) and each.args.get("is_string") for each in given):
        return _fixed([each.this for each in given])
    if len(given) != 1:
        raise StaysWithSourceError("its date() counts from a date that is not fixed")
    return _day(express(given[0], scope, context), context)


def _fixed(given: Sequence[str]) -> Typed:
    """Compute a date from a fixed one, as SQLite does: a day beyond its month runs over."""
    text, *modifiers = given
    if not is_day(text):
        raise StaysWithSourceError("its date() reads something other than YYYY-MM-DD")
    found = date.fromisoformat(text)
    for modifier in modifiers:
        counted = _MODIFIER.fullmatch(modifier)
        if counted is None:
            raise StaysWithSourceError(f"its date() counts by {modifier!r}")
        number = int(f"{counted[1]}{counted[2]}")
        days, months = _UNITS[counted[3].upper()]
        first, day = _months_on(found.replace(day=1), number * months), found.day
        found = first + timedelta(day - 1 + number * days)
    shown = found.isoformat()
    return Typed(literal(shown), Kind.TEXT, pa.string(), text=shown)


def _months_on(first: date, months: int) -> date:
    """Return the first of a month so many months later."""
    year, month = divmod(first.year * 12 + first.month - 1 + months, 12)
    return date(year, month + 1, 1)


def _day(value: Typed, context: TranslationContext) -> Typed:
    """Return the date of a date, or of a text that can be nothing else."""
    if value.kind is Kind.DATE:
        return value
    if value.kind is not Kind.TEXT:
        raise StaysWithSourceError(f"it takes the date of a {value.kind}")
    read = context.words.read_day(value.sql)
    back = context.words.cast(read, pa.string())
    text = context.words.guarded(f"{back} is distinct from {value.sql}", read)
    return derived(f"({text})", Kind.DATE, pa.date32(), value)


def _formatted(
    node: exp.Expr, scope: Scope, context: TranslationContext, express: Express
) -> Typed:
    inner, form = node.this, node.args["format"]
    if isinstance(inner, exp.TsOrDsToTimestamp):
        inner = inner.this
    if not isinstance(form, exp.Literal):
        raise StaysWithSourceError("its strftime() has a form that is not fixed")
    value = express(inner, scope, context)
    day = _day(value, context)
    text = context.words.cast(day.sql, pa.string())
    pieces, digits = [], True
    for piece in _FORMAT.findall(form.this):
        if piece.startswith("%") and piece not in _PARTS:
            raise StaysWithSourceError(f"its strftime() asks for {piece}")
        place = _PARTS.get(piece)
        digits = digits and place is not None
        pieces.append(f"substr({text}, {place[0]}, {place[1]})" if place else literal(piece))
    if not pieces or "\0" in form.this:
        raise StaysWithSourceError("its strftime() has no form")
    return derived(f"({' || '.join(pieces)})", Kind.TEXT, pa.string(), day, digits=digits)


def _extract(node: exp.Expr, scope: Scope, context: TranslationContext, express: Express) -> Typed:
    part = node.this.name.lower()
    if context.sqlite or part not in {"year", "month", "day"} or not context.catalog.exact_parts:
        raise StaysWithSourceError(f"it extracts {part}")
    value = express(node.expression, scope, context)
    if value.kind not in {Kind.DATE, Kind.TIMESTAMP}:
        raise StaysWithSourceError(f"it extracts {part} of a {value.kind}")
    found = f"extract({part} from {value.sql})"
    # Before Christ years are counted in two ways, and infinity has a year in the source alone.
    year = f"coalesce(extract(year from {value.sql}), 0)"
    text = context.words.guarded(f"{year} <= 0 and {value.sql} is not null", found)
    whole = context.words.cast(f"({text})", pa.int64())
    return derived(context.words.cast(whole, _PART_TYPE), Kind.DECIMAL, _PART_TYPE, value)


def counted(node: exp.Expr, operator: str, context: TranslationContext) -> Typed | None:
    """Compute PostgreSQL's fixed date plus or minus a fixed interval; None for all else."""
    interval, start = node.expression, node.this
    if context.sqlite or not isinstance(interval, exp.Interval) or not isinstance(start, exp.Cast):
        return None
    number, unit = interval.this, str(interval.args.get("unit") or "").upper().removesuffix("S")
    fixed = isinstance(start.this, exp.Literal) and start.args["to"].is_type("date")
    if not fixed or not is_day(start.this.this) or unit not in _UNITS:
        return None
    if not isinstance(number, exp.Literal) or not re.fullmatch(r"-?\d{1,5}", number.this):
        return None
    by = int(number.this) * (-1 if operator == "-" else 1)
    found = date.fromisoformat(start.this.this)
    days, months = (each * by for each in _UNITS[unit])
    if months:
        # The last day of a shorter month stands for a day that it does not have.
        first = _months_on(found.replace(day=1), months)
        last = (_months_on(first, 1) - timedelta(1)).day
        found = first.replace(day=min(found.day, last))
    shown = f"{(found + timedelta(days)).isoformat()} 00:00:00"
    return Typed(
        context.words.cast(literal(shown), pa.timestamp("us")), Kind.TIMESTAMP, pa.timestamp("us")
    )
