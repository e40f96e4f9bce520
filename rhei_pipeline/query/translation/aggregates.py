"""Aggregates and windows whose answers are equal on both sides."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pyarrow as pa
from sqlglot import exp

from rhei_pipeline.model.semantics import NUMERIC, QUOTIENT_SCALES, Kind
from rhei_pipeline.model.type_names import decimal_type
from rhei_pipeline.query.translation.arithmetic import exact
from rhei_pipeline.query.translation.literals import EXACT, as_double, as_value, cast
from rhei_pipeline.query.translation.meaning import StaysWithSourceError, Typed, derived
from rhei_pipeline.query.translation.scope import Scope, TranslationContext

Express = Callable[[exp.Expr, Scope, TranslationContext], Typed]
_RANKS = {exp.Rank: "rank", exp.DenseRank: "dense_rank"}
_UNORDERED = {Kind.OPAQUE, Kind.UNKNOWN}
#: How many times smaller than the sum of their magnitudes a sum of reals may be. Beyond it,
#: what doubles round away on the way, on either side, may show in the first nine digits.
_CANCELLED = 1024
#: Digits behind the point of what is money, or a whole number.
_DIGITS_OF_AMOUNTS = 4
AGGREGATES = (exp.Count, exp.Sum, exp.Avg, exp.Min, exp.Max)


def aggregate(
    node: exp.Expr,
    scope: Scope,
    context: TranslationContext,
    express: Express,
    kept: tuple[str, Typed] | None,
    over: str = "",
) -> Typed:
    """Translate an aggregate; `kept` is its FILTER, `over` its window."""
    behind = (f" filter (where {kept[0]})" if kept else "") + over
    argument = node.expressions[0] if isinstance(node, exp.Anonymous) else node.this
    distinct = ""
    if isinstance(argument, exp.Distinct):
        if len(argument.expressions) != 1 or argument.args.get("on"):
            raise StaysWithSourceError("it counts distinct rows of several columns")
        argument, distinct = argument.expressions[0], "distinct "
    if isinstance(node, exp.Count) and isinstance(argument, exp.Star):
        found = Typed(f"count(*){behind}", Kind.INT, pa.int64())
        parts: tuple[Typed, ...] = ()
    else:
        inner = Scope(scope.relations, scope.parent, None, scope.aliases)
        value = as_value(express(argument, inner, context), context)
        parts = (value,)
        if distinct:
            value = replace(value, sql=context.words.order_key(value.sql, value.kind))
        found = _of_one(node, value, distinct, behind, context)
    if kept is not None:
        parts += (kept[1],)
    return _aggregated(found, parts, scope, windowed=bool(over))


def _aggregated(found: Typed, parts: Sequence[Typed], scope: Scope, *, windowed: bool) -> Typed:
    if any(part.aggregate for part in parts) and not windowed:
        raise StaysWithSourceError("an aggregate is inside an aggregate")
    loose = frozenset().union(*(part.loose for part in parts))
    inexact = any(part.inexact for part in parts)
    if loose - scope.own:
        raise StaysWithSourceError("an aggregate uses columns from outside its subquery")
    kept = loose if windowed else frozenset[str]()
    return derived(
        found.sql,
        found.kind,
        found.type,
        aggregate=not windowed,
        loose=kept,
        inexact=found.inexact or inexact,
        steady=found.steady and not inexact,
        whole=None if inexact else found.whole,
        collated=found.collated,
    )


def _of_one(
    node: exp.Expr, value: Typed, distinct: str, behind: str, context: TranslationContext
) -> Typed:
    if isinstance(node, exp.Count):
        if distinct and (value.kind is Kind.OPAQUE or value.inexact):
            raise StaysWithSourceError(
                "it counts distinct values that the mirror stores in another form"
            )
        counted = _evaluated(value, context)
        return Typed(f"count({distinct}{counted}){behind}", Kind.INT, pa.int64())
    if value.kind in _UNORDERED or value.kind is Kind.NULL:
        raise StaysWithSourceError("it aggregates a column that the mirror stores in another form")
    if value.kind is Kind.UUID:
        raise StaysWithSourceError("not every PostgreSQL knows a least or greatest uuid")
    if isinstance(node, exp.Min | exp.Max):
        return _extreme(node, value, behind, context)
    if value.kind not in NUMERIC:
        raise StaysWithSourceError(f"it adds up {value.kind}")
    return _added(node, value, distinct, behind, context)


def _evaluated(value: Typed, context: TranslationContext) -> str:
    may_fail = value.column is None and value.text is None and value.kind in NUMERIC
    return context.words.evaluated(value.sql) if may_fail else value.sql


def _extreme(node: exp.Expr, value: Typed, behind: str, context: TranslationContext) -> Typed:
    if value.collated:
        raise StaysWithSourceError("the source orders text by its own collation")
    if value.inexact or value.kind is Kind.TRUTH:
        raise StaysWithSourceError(f"it takes a min or max of a {value.kind}")
    word = "min" if isinstance(node, exp.Min) else "max"
    text = context.words.compared(value.sql, value.type)
    return derived(f"{word}({text}){behind}", value.kind, value.type)


def _added(
    node: exp.Expr, value: Typed, distinct: str, behind: str, context: TranslationContext
) -> Typed:
    whole = value.kind is Kind.INT
    if isinstance(node, exp.Sum) and (whole or value.kind is Kind.DECIMAL):
        added = _evaluated(value, context)
        total = context.words.sum_of_exact(added, value.type, distinct, behind)
        if whole and (context.sqlite or value.type.bit_width < 64):  # noqa: PLR2004
            return Typed(context.words.cast(total, pa.int64()), Kind.INT, pa.int64())
        kept = decimal_type(38, 0 if whole else value.type.scale)
        return Typed(context.words.cast(total, kept), Kind.DECIMAL, kept)
    if whole and context.sqlite:
        return _real_of_integers(node, value, distinct, behind, context)
    if value.kind in {Kind.REAL, Kind.NUMBER}:
        found = _real(node, as_double(value, context), distinct, behind, context)
        # A sum of integers is an integer.
        is_number = value.kind is Kind.NUMBER and isinstance(node, exp.Sum)
        return replace(found, kind=Kind.NUMBER) if is_number else found
    if isinstance(node, exp.Avg) and not context.sqlite:
        return _average_of_exact(value, distinct, behind, context)
    raise StaysWithSourceError("it adds up exact numbers as reals")


def _average_of_exact(
    value: Typed, distinct: str, behind: str, context: TranslationContext
) -> Typed:
    """Divide a sum by a count, as PostgreSQL does."""
    words = context.words
    scale = value.type.scale if value.kind is Kind.DECIMAL else 0
    added = _evaluated(value, context)
    total = words.cast(
        words.sum_of_exact(added, value.type, distinct, behind), decimal_type(38, scale)
    )
    counted = f"nullif(count({distinct}{added}){behind}, 0)"
    sums = replace(value, sql=total, kind=Kind.DECIMAL, type=decimal_type(38, scale))
    # Averages of amounts are large rather than small.
    kept = QUOTIENT_SCALES[scale > _DIGITS_OF_AMOUNTS]
    text = words.divided(exact(sums), (counted, 0), kept, few=" over (" not in behind)
    return Typed(text, Kind.DECIMAL, decimal_type(38, kept))


def _real_of_integers(
    node: exp.Expr, value: Typed, distinct: str, behind: str, context: TranslationContext
) -> Typed:
    """Sum integers as doubles: exact as long as no sum exceeds a double's exact integers."""
    added = context.words.sum_of_exact(value.sql, value.type, distinct, behind)
    total = context.words.cast(added, pa.float64())
    text = (
        f"{total} / nullif(count({distinct}{value.sql}){behind}, 0)"
        if isinstance(node, exp.Avg)
        else f"coalesce({total}, cast(0 as double))"
    )
    # Half of what doubles hold, since the magnitudes are added as doubles themselves.
    beyond = f"sum(abs({cast(value, pa.float64(), context)})){behind} > {EXACT // 2}"
    return Typed(f"({context.words.guarded(beyond, text)})", Kind.REAL, pa.float64())


def _real(
    node: exp.Expr, text: str, distinct: str, behind: str, context: TranslationContext
) -> Typed:
    """Sum reals so that the order of rows affects only the last digits."""
    words = context.words
    if context.whole_sums:
        return _real_of_whole(node, text, distinct, behind, context)
    total = words.sum_of_reals(text, distinct, behind)
    found = words.average_of_reals(text, distinct, behind) if isinstance(node, exp.Avg) else total
    magnitude = f"sum({distinct}abs({text})){behind}"
    found = words.finite(words.guarded(f"abs({total}) * {_CANCELLED} < {magnitude}", found))
    if not isinstance(node, exp.Avg | exp.Sum):
        found = f"coalesce({found}, cast(0 as double))"
    whole = (
        f"(coalesce(bool_and({text} = trunc({text})){behind}, true)"
        f" and coalesce({magnitude}, 0) <= {EXACT // 2})"
    )
    return Typed(f"({found})", Kind.REAL, pa.float64(), inexact=True, steady=True, whole=whole)


def _real_of_whole(
    node: exp.Expr, text: str, distinct: str, behind: str, context: TranslationContext
) -> Typed:
    """Sum reals that are whole numbers: exact in any order, as long as doubles hold each sum."""
    words = context.words
    each = words.guarded(f"{text} <> trunc({text})", text)
    added = words.average_of_reals if isinstance(node, exp.Avg) else words.sum_of_reals
    found = words.guarded(
        f"sum({distinct}abs({text})){behind} > {EXACT // 2}", added(each, distinct, behind)
    )
    if not isinstance(node, exp.Avg | exp.Sum):
        found = f"coalesce({found}, cast(0 as double))"
    return Typed(f"({found})", Kind.REAL, pa.float64())


def window(node: exp.Expr, scope: Scope, context: TranslationContext, express: Express) -> Typed:
    """Translate a function over a window."""
    if node.args.get("spec") or node.args.get("alias") or node.args.get("first") is not None:
        raise StaysWithSourceError("its window has a frame or a name")
    parts = [express(part, scope, context) for part in node.args.get("partition_by") or ()]
    if any(part.kind is Kind.OPAQUE or part.inexact for part in parts):
        raise StaysWithSourceError(
            "its window is partitioned by a column that the mirror stores in another form"
        )
    order = node.args.get("order")
    ordered = [
        ordering(part, scope, context, express) for part in (order.expressions if order else ())
    ]
    if any(part.inexact for _, part in ordered):
        raise StaysWithSourceError("its window is ordered by sums of reals")
    pieces = []
    if parts:
        keys = [context.words.order_key(part.sql, part.kind) for part in parts]
        pieces.append("partition by " + ", ".join(keys))
    if ordered:
        pieces.append("order by " + ", ".join(text for text, _ in ordered))
    over = f" over ({' '.join(pieces)})"
    around = (*parts, *(part for _, part in ordered))
    return _over(node.this, over, around, scope, context, express)


def _over(
    node: exp.Expr,
    over: str,
    around: Sequence[Typed],
    scope: Scope,
    context: TranslationContext,
    express: Express,
) -> Typed:
    word = next((word for kind, word in _RANKS.items() if isinstance(node, kind)), None)
    if word is None and isinstance(node, exp.RowNumber) and decides(around, scope):
        word = "row_number"
    if word is not None:
        return derived(f"{word}(){over}", Kind.INT, pa.int64(), *around, collated=False)
    if not isinstance(node, AGGREGATES) or node.expressions:
        raise StaysWithSourceError("its window function depends on the order of equal rows")
    if isinstance(node.this, exp.Distinct):
        raise StaysWithSourceError("its window counts distinct values")
    found = aggregate(node, scope, context, express, None, over)
    return derived(found.sql, found.kind, found.type, found, *around, inexact=found.inexact)


def decides(keys: Sequence[Typed], scope: Scope) -> bool:
    """Return whether no two rows of the FROM clause have equal keys."""
    given = {part.sql for part in keys}
    for relation in scope.relations:
        key = {found.sql for name, found in relation.columns if name in (relation.key or ())}
        if not relation.key or not key <= given:
            return False
    return bool(scope.relations)


def ordering(
    node: exp.Expr, scope: Scope, context: TranslationContext, express: Express
) -> tuple[str, Typed]:
    """Translate one ORDER BY term: its text with NULLs as in the source, and its key."""
    key = as_value(express(node.this, scope, context), context)
    return order_text(node, key, context), orderable(key)


def orderable(key: Typed) -> Typed:
    """Return a key if both sides order it equally.

    Raises:
        StaysWithSourceError: They do not.
    """
    if key.kind in _UNORDERED:
        raise StaysWithSourceError("it orders by a column that the mirror stores in another form")
    if key.collated:
        raise StaysWithSourceError("the source orders text by its own collation")
    return key


def order_text(node: exp.Expr, key: Typed, context: TranslationContext) -> str:
    """Return an ORDER BY term with NULLs as in the source."""
    sql = context.words.order_key(key.sql, key.kind)
    if node.args.get("with_fill"):
        raise StaysWithSourceError("its ORDER BY has an unknown option")
    descending = bool(node.args.get("desc"))
    given = node.args.get("nulls_first")
    first = bool(given) if given is not None else (descending != context.sqlite)
    return f"{sql} {'desc' if descending else 'asc'} nulls {'first' if first else 'last'}"
