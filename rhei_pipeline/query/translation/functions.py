"""Functions, aggregates and windows whose answers are equal on both sides."""

from collections.abc import Callable, Sequence

import pyarrow as pa
from sqlglot import exp

from rhei_pipeline.model.semantics import Kind, Shape
from rhei_pipeline.query.translation import arrays, containment, dates, documents, nested
from rhei_pipeline.query.translation.aggregates import AGGREGATES, Express, aggregate, window
from rhei_pipeline.query.translation.comparisons import LOWER, UPPER
from rhei_pipeline.query.translation.literals import (
    EXACT,
    NULL,
    as_text,
    as_truth,
    as_value,
    coerce,
    exact_text,
    unify,
)
from rhei_pipeline.query.translation.meaning import StaysWithSourceError, Typed, derived
from rhei_pipeline.query.translation.scope import Scope, TranslationContext


def call(node: exp.Expr, scope: Scope, context: TranslationContext, express: Express) -> Typed:
    """Translate a function's call.

    Raises:
        StaysWithSourceError: Only the source has it, or the mirror would answer otherwise.
    """
    if isinstance(node, exp.Window):
        return window(node, scope, context, express)
    if isinstance(node, exp.Filter):
        kept = express(node.expression.this, scope, context)
        text = as_truth(kept, context)
        return aggregate(node.this, scope, context, express, (text, kept))
    if isinstance(node, AGGREGATES) or _is_total(node, context):
        if isinstance(node, exp.Max | exp.Min) and node.expressions:
            return _extreme_of(node, scope, context, express)
        return aggregate(node, scope, context, express, None)
    if isinstance(node, dates.DATES) or dates.is_date_call(node):
        return dates.call(node, scope, context, express)
    rule = _rule(node, context)
    if rule is None:
        raise StaysWithSourceError(
            f"{_named(node)} exists only in the source, or gives another answer on the mirror"
        )
    return rule(node, scope, context, express)


def _rule(node: exp.Expr, context: TranslationContext) -> "Rule | None":
    if context.sqlite or type(node) in _SCALARS:
        return _SCALARS.get(type(node))
    if isinstance(node, exp.Anonymous):
        return _POSTGRES_CALLS.get(str(node.this).lower())
    return _POSTGRES.get(type(node))


def _named(node: exp.Expr) -> str:
    if isinstance(node, exp.Anonymous):
        return f"function {str(node.this).lower()}()"
    if isinstance(node, exp.Func):
        return f"function {node.sql_name().lower()}()"
    return f"{type(node).__name__.lower()}"


def _is_total(node: exp.Expr, context: TranslationContext) -> bool:
    return (
        context.sqlite
        and isinstance(node, exp.Anonymous)
        and str(node.this).lower() == "total"
        and len(node.expressions) == 1
    )


def _extreme_of(
    node: exp.Expr, scope: Scope, context: TranslationContext, express: Express
) -> Typed:
    """Translate SQLite's min and max of several arguments: null if one of them is null."""
    if not context.sqlite:
        raise StaysWithSourceError("a min or max of several values")
    parts = [express(part, scope, context) for part in (node.this, *node.expressions)]
    return _greatest(parts, "least" if isinstance(node, exp.Min) else "greatest", context)


def _least(node: exp.Expr, scope: Scope, context: TranslationContext, express: Express) -> Typed:
    parts = [express(part, scope, context) for part in (node.this, *node.expressions)]
    return _greatest(parts, "least" if isinstance(node, exp.Least) else "greatest", context)


def _greatest(parts: Sequence[Typed], word: str, context: TranslationContext) -> Typed:
    kind, kept, texts = unify(parts, context)
    if any(part.collated or part.inexact for part in parts):
        raise StaysWithSourceError("it compares values that the source orders in its own way")
    text = f"{word}({', '.join(texts)})"
    if context.sqlite:
        missing = " or ".join(f"({found}) is null" for found in texts)
        text = f"(case when {missing} then null else {text} end)"
    return derived(text, kind, kept, *parts)


def _coalesce(node: exp.Expr, scope: Scope, context: TranslationContext, express: Express) -> Typed:
    parts = [express(part, scope, context) for part in (node.this, *node.expressions)]
    kind, kept, texts = unify(parts, context)
    return derived(f"coalesce({', '.join(texts)})", kind, kept, *parts)


def _nullif(node: exp.Expr, scope: Scope, context: TranslationContext, express: Express) -> Typed:
    parts = [express(part, scope, context) for part in (node.this, node.expression)]
    kind, _, texts = unify(parts, context)
    first = as_value(parts[0], context)
    if first.kind is not kind or first.kind is Kind.NUMBER or first.inexact:
        raise StaysWithSourceError("its NULLIF compares values of several kinds")
    # The answer is the first value, so it has the first value's type.
    text = context.words.cast(context.words.nullif(texts[0], texts[1], kind), first.type)
    return derived(text, kind, first.type, *parts)


def _if(node: exp.Expr, scope: Scope, context: TranslationContext, express: Express) -> Typed:
    tested = express(node.this, scope, context)
    default = node.args.get("false")
    values = [
        express(node.args["true"], scope, context),
        express(default, scope, context) if default is not None else NULL,
    ]
    kind, kept, texts = unify(values, context)
    test = as_truth(tested, context)
    text = f"(case when {test} then {texts[0]} else {texts[1]} end)"
    return derived(text, kind, kept, tested, *values)


def _abs(node: exp.Expr, scope: Scope, context: TranslationContext, express: Express) -> Typed:
    value = as_value(express(node.this, scope, context), context)
    if value.kind not in {Kind.INT, Kind.REAL, Kind.DECIMAL}:
        raise StaysWithSourceError(f"it takes an absolute {value.kind}")
    return derived(
        context.words.cast(f"abs({value.sql})", value.type), value.kind, value.type, value
    )


def _texts(
    nodes: Sequence[exp.Expr], scope: Scope, context: TranslationContext, express: Express
) -> list[Typed]:
    values = [
        as_text(coerce(express(node, scope, context), Kind.TEXT, context), context)
        for node in nodes
    ]
    if any(value.kind not in {Kind.TEXT, Kind.NULL} for value in values):
        raise StaysWithSourceError("a text function gets a value of another type")
    return values


def _letters(node: exp.Expr, scope: Scope, context: TranslationContext, express: Express) -> Typed:
    if not context.sqlite:
        if express(node.this, scope, context).nested is not None:
            return nested.bound(node, scope, context, express)
        raise StaysWithSourceError("the source changes case by its locale")
    (value,) = _texts([node.this], scope, context, express)
    pair = (LOWER, UPPER) if isinstance(node, exp.Upper) else (UPPER, LOWER)
    text = exact_text(value, context)
    return derived(f"translate({text}, '{pair[0]}', '{pair[1]}')", Kind.TEXT, pa.string(), value)


def _length(node: exp.Expr, scope: Scope, context: TranslationContext, express: Express) -> Typed:
    (value,) = _texts([node.this], scope, context, express)
    text = f"length({exact_text(value, context)})"
    return _counted(text, context, value)


def _substring(
    node: exp.Expr, scope: Scope, context: TranslationContext, express: Express
) -> Typed:
    (value,) = _texts([node.this], scope, context, express)
    bounds = [node.args.get("start"), node.args.get("length")]
    if not all(_is_counting(bound) for bound in bounds if bound is not None) or bounds[0] is None:
        raise StaysWithSourceError("its SUBSTR does not start at a fixed position")
    places = ", ".join(bound.this for bound in bounds if bound is not None)
    text = f"substr({exact_text(value, context)}, {places})"
    return derived(text, Kind.TEXT, pa.string(), value)


def _is_counting(node: exp.Expr) -> bool:
    return isinstance(node, exp.Literal) and node.this.isdigit() and 0 < int(node.this) < EXACT


def _trim(node: exp.Expr, scope: Scope, context: TranslationContext, express: Express) -> Typed:
    if node.args.get("expression") is not None or node.args.get("collation"):
        raise StaysWithSourceError("its TRIM removes other characters than spaces")
    (value,) = _texts([node.this], scope, context, express)
    word = {"LEADING": "ltrim", "TRAILING": "rtrim"}.get(str(node.args.get("position")), "trim")
    text = f"{word}({exact_text(value, context)}, ' ')"
    return derived(text, Kind.TEXT, pa.string(), value)


def _replace(node: exp.Expr, scope: Scope, context: TranslationContext, express: Express) -> Typed:
    given = [node.this, node.expression, node.args["replacement"]]
    values = _texts(given, scope, context, express)
    if not values[1].text or values[2].text is None:
        raise StaysWithSourceError("its REPLACE searches for a text that is not fixed")
    texts = ", ".join(exact_text(value, context) for value in values)
    return derived(f"replace({texts})", Kind.TEXT, pa.string(), *values)


def _position(node: exp.Expr, scope: Scope, context: TranslationContext, express: Express) -> Typed:
    values = _texts([node.this, node.args["substr"]], scope, context, express)
    if node.args.get("position") or node.args.get("occurrence") or not values[1].text:
        raise StaysWithSourceError("it searches for a text that is not fixed")
    text = f"strpos({exact_text(values[0], context)}, {values[1].sql})"
    return _counted(text, context, *values)


def _counted(text: str, context: TranslationContext, *parts: Typed) -> Typed:
    """Return a count of characters with the source's integer type."""
    kept = pa.int64() if context.sqlite else pa.int32()
    return derived(context.words.cast(text, kept), Kind.INT, kept, *parts, collated=False)


def _contains(node: exp.Expr, scope: Scope, context: TranslationContext, express: Express) -> Typed:
    """Translate `@>`, which arrays have, ranges and jsonb."""
    inner, rule = node.this.unnest(), containment.contains
    if not isinstance(inner, exp.JSONBExtract):
        found = express(inner, scope, context)
        is_range = found.nested is not None and found.nested.shape is Shape.RANGE
        rule = arrays.holds if found.elements is not None else nested.holds if is_range else rule
    return rule(node, scope, context, express)


def _contained(
    node: exp.Expr, scope: Scope, context: TranslationContext, express: Express
) -> Typed:
    """Translate `value <@ range`."""
    turned = exp.ArrayContainsAll(this=node.expression, expression=node.this)
    return nested.holds(turned, scope, context, express)


def _by_key(node: exp.Expr, scope: Scope, context: TranslationContext, express: Express) -> Typed:
    """Translate `->`, which maps have and jsonb."""
    is_map = nested.is_map(node.this, scope, context, express)
    return (nested.value_of if is_map else documents.part_at)(node, scope, context, express)


def _has_keys(node: exp.Expr, scope: Scope, context: TranslationContext, express: Express) -> Typed:
    """Translate `?`, `?|` and `?&`, which maps have and jsonb."""
    is_map = nested.is_map(node.this, scope, context, express)
    return (nested.has_keys if is_map else containment.has_keys)(node, scope, context, express)


Rule = Callable[[exp.Expr, Scope, TranslationContext, Express], Typed]
_SCALARS: dict[type[exp.Expr], Rule] = {
    exp.Coalesce: _coalesce,
    exp.Nullif: _nullif,
    exp.If: _if,
    exp.Abs: _abs,
    exp.Upper: _letters,
    exp.Lower: _letters,
    exp.Length: _length,
    exp.Substring: _substring,
    exp.Trim: _trim,
    exp.Replace: _replace,
    exp.StrPosition: _position,
    exp.Least: _least,
    exp.Greatest: _least,
}
_POSTGRES_CALLS: dict[str, Rule] = {
    "jsonb_array_length": documents.length,
    "jsonb_typeof": documents.type_name,
    "cardinality": arrays.cardinality,
    **nested.FLAGS,
}
_POSTGRES: dict[type[exp.Expr], Rule] = {
    exp.JSONBExtractScalar: documents.text_at,
    exp.JSONBExtract: _by_key,
    exp.JSONBContainsTopKey: _has_keys,
    exp.JSONBContainsAnyTopKeys: _has_keys,
    exp.JSONBContainsAllTopKeys: _has_keys,
    exp.ArrayContainedBy: _contained,
    exp.Dot: nested.field,
    exp.ArrayContainsAll: _contains,
    exp.ArrayOverlaps: arrays.holds,
    exp.ArraySize: arrays.length,
    exp.Bracket: arrays.element,
}
