"""Functions, aggregates and windows whose answers are the same on both sides."""

from collections.abc import Callable, Sequence

import pyarrow as pa
from sqlglot import exp

from rhei_pipeline.schema import decimal_type
from rhei_pipeline.translation.meaning import NUMERIC, Kind, StaysError, Typed, derived
from rhei_pipeline.translation.scope import Context, Scope
from rhei_pipeline.translation.values import (
    EXACT,
    NULL,
    as_double,
    as_truth,
    as_value,
    cast,
    exact_text,
    guarded,
    settle,
    unify,
)

Express = Callable[[exp.Expr, Scope, Context], Typed]
_UPPER, _LOWER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz"
_RANKS = {exp.Rank: "rank", exp.DenseRank: "dense_rank"}
#: An aggregate's place in which FILTER goes; replaced once, when it is known.
_UNORDERED = {Kind.OPAQUE, Kind.UNKNOWN}


def call(node: exp.Expr, scope: Scope, context: Context, express: Express) -> Typed:
    """Translate a function's call.

    Raises:
        StaysError: The function is the source's own, or answers otherwise on the mirror.
    """
    if isinstance(node, exp.Window):
        return _window(node, scope, context, express)
    if isinstance(node, exp.Filter):
        kept = express(node.expression.this, scope, context)
        text = as_truth(kept, sqlite=context.sqlite)
        return _aggregate(node.this, scope, context, express, (text, kept))
    if isinstance(node, _AGGREGATES) or _is_total(node, context):
        if isinstance(node, exp.Max | exp.Min) and node.expressions:
            return _extreme_of(node, scope, context, express)
        return _aggregate(node, scope, context, express, None)
    rule = _SCALARS.get(type(node))
    if rule is None:
        raise StaysError(f"{_named(node)} is the source's own, or answers otherwise on the mirror")
    return rule(node, scope, context, express)


def _named(node: exp.Expr) -> str:
    if isinstance(node, exp.Anonymous):
        return f"function {str(node.this).lower()}()"
    if isinstance(node, exp.Func):
        return f"function {node.sql_name().lower()}()"
    return f"{type(node).__name__.lower()}"


_AGGREGATES = (exp.Count, exp.Sum, exp.Avg, exp.Min, exp.Max)


def _is_total(node: exp.Expr, context: Context) -> bool:
    return (
        context.sqlite
        and isinstance(node, exp.Anonymous)
        and str(node.this).lower() == "total"
        and len(node.expressions) == 1
    )


def _aggregate(
    node: exp.Expr,
    scope: Scope,
    context: Context,
    express: Express,
    kept: tuple[str, Typed] | None,
    over: str = "",
) -> Typed:
    behind = (f" filter (where {kept[0]})" if kept else "") + over
    argument = node.expressions[0] if isinstance(node, exp.Anonymous) else node.this
    distinct = ""
    if isinstance(argument, exp.Distinct):
        if len(argument.expressions) != 1 or argument.args.get("on"):
            raise StaysError("it counts distinct rows of several columns")
        argument, distinct = argument.expressions[0], "distinct "
    if isinstance(node, exp.Count) and isinstance(argument, exp.Star):
        found = Typed(f"count(*){behind}", Kind.INT, pa.int64())
        parts: tuple[Typed, ...] = ()
    else:
        inner = Scope(scope.relations, scope.parent, None, scope.aliases)
        value = as_value(express(argument, inner, context), sqlite=context.sqlite)
        parts = (value,)
        found = _of_one(node, value, distinct, behind, context)
    if kept is not None:
        parts += (kept[1],)
    return _aggregated(found, parts, scope, windowed=bool(over))


def _aggregated(found: Typed, parts: Sequence[Typed], scope: Scope, *, windowed: bool) -> Typed:
    if any(part.aggregate for part in parts) and not windowed:
        raise StaysError("an aggregate stands inside an aggregate")
    loose = frozenset().union(*(part.loose for part in parts))
    if loose - scope.own:
        raise StaysError("an aggregate reaches out of its subquery")
    kept = loose if windowed else frozenset[str]()
    return derived(
        found.sql,
        found.kind,
        found.type,
        aggregate=not windowed,
        loose=kept,
        inexact=found.inexact or any(part.inexact for part in parts),
        collated=found.collated,
    )


def _of_one(node: exp.Expr, value: Typed, distinct: str, behind: str, context: Context) -> Typed:
    if isinstance(node, exp.Count):
        if distinct and (value.kind is Kind.OPAQUE or value.inexact):
            raise StaysError("it tells apart values that the mirror keeps in another form")
        return Typed(f"count({distinct}{value.sql}){behind}", Kind.INT, pa.int64())
    if value.kind in _UNORDERED or value.kind is Kind.NULL:
        raise StaysError("it aggregates a column that the mirror keeps in another form")
    if isinstance(node, exp.Min | exp.Max):
        return _extreme(node, value, behind)
    if value.kind not in NUMERIC:
        raise StaysError(f"it adds up {value.kind}")
    return _added(node, value, distinct, behind, context)


def _extreme(node: exp.Expr, value: Typed, behind: str) -> Typed:
    if value.collated:
        raise StaysError("the source orders text by a collation of its own")
    if value.inexact or value.kind is Kind.TRUTH:
        raise StaysError(f"it takes an extreme of a {value.kind}")
    word = "min" if isinstance(node, exp.Min) else "max"
    return derived(f"{word}({value.sql}){behind}", value.kind, value.type)


def _added(node: exp.Expr, value: Typed, distinct: str, behind: str, context: Context) -> Typed:
    whole = value.kind is Kind.INT
    inner = f"{distinct}{value.sql}"
    if isinstance(node, exp.Sum) and whole:
        if context.sqlite:
            return Typed(f"cast(sum({inner}){behind} as bigint)", Kind.INT, pa.int64())
        if value.type.bit_width < 64:  # noqa: PLR2004
            return Typed(f"cast(sum({inner}){behind} as bigint)", Kind.INT, pa.int64())
        kept = decimal_type(38, 0)
        return Typed(f"cast(sum({inner}){behind} as decimal(38, 0))", Kind.DECIMAL, kept)
    if isinstance(node, exp.Sum) and value.kind is Kind.DECIMAL:
        kept = decimal_type(38, value.type.scale)
        text = f"cast(sum({inner}){behind} as decimal(38, {kept.scale}))"
        return Typed(text, Kind.DECIMAL, kept)
    if whole and context.sqlite:
        return _real_of_integers(node, inner, value, behind)
    if value.kind in {Kind.REAL, Kind.NUMBER}:
        return _real(node, f"{distinct}{as_double(value, exactly=False)}", behind)
    raise StaysError("it averages exact numbers, whose digits the source chooses")


def _real_of_integers(node: exp.Expr, inner: str, value: Typed, behind: str) -> Typed:
    """Add integers as doubles: exact, while no sum on the way can pass what doubles hold."""
    total = f"cast(sum({inner}){behind} as double)"
    text = (
        f"{total} / nullif(count({inner}){behind}, 0)"
        if isinstance(node, exp.Avg)
        else f"coalesce({total}, cast(0 as double))"
    )
    beyond = f"sum(abs(cast({value.sql} as hugeint))){behind} > {EXACT}"
    return Typed(f"({guarded(beyond, text)})", Kind.REAL, pa.float64())


def _real(node: exp.Expr, inner: str, behind: str) -> Typed:
    """Add reals; compensated, so that the order in which rows come hardly shows."""
    if isinstance(node, exp.Avg):
        text = f"favg({inner}){behind}"
    elif isinstance(node, exp.Sum):
        text = f"fsum({inner}){behind}"
    else:
        text = f"coalesce(fsum({inner}){behind}, cast(0 as double))"
    return Typed(text, Kind.REAL, pa.float64(), inexact=True)


def _window(node: exp.Expr, scope: Scope, context: Context, express: Express) -> Typed:
    if node.args.get("spec") or node.args.get("alias") or node.args.get("first") is not None:
        raise StaysError("its window has a frame or a name")
    parts = [express(part, scope, context) for part in node.args.get("partition_by") or ()]
    if any(part.kind is Kind.OPAQUE or part.inexact for part in parts):
        raise StaysError("its window is cut by a column that the mirror keeps in another form")
    order = node.args.get("order")
    ordered = [
        ordering(part, scope, context, express) for part in (order.expressions if order else ())
    ]
    if any(part.inexact for _, part in ordered):
        raise StaysError("its window is ordered by sums of reals")
    pieces = []
    if parts:
        pieces.append("partition by " + ", ".join(part.sql for part in parts))
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
    context: Context,
    express: Express,
) -> Typed:
    word = next((word for kind, word in _RANKS.items() if isinstance(node, kind)), None)
    if word is None and isinstance(node, exp.RowNumber) and decides(around, scope):
        word = "row_number"
    if word is not None:
        return derived(f"{word}(){over}", Kind.INT, pa.int64(), *around, collated=False)
    if not isinstance(node, _AGGREGATES) or node.expressions:
        raise StaysError("its window function depends on the order of equal rows")
    if isinstance(node.this, exp.Distinct):
        raise StaysError("its window counts distinct values")
    found = _aggregate(node, scope, context, express, None, over)
    return derived(found.sql, found.kind, found.type, found, *around, inexact=found.inexact)


def decides(keys: Sequence[Typed], scope: Scope) -> bool:
    """Tell whether no two rows of the FROM clause share these keys."""
    given = {part.sql for part in keys}
    for relation in scope.relations:
        key = {found.sql for name, found in relation.columns if name in (relation.key or ())}
        if not relation.key or not key <= given:
            return False
    return bool(scope.relations)


def ordering(node: exp.Expr, scope: Scope, context: Context, express: Express) -> tuple[str, Typed]:
    """Translate one ORDER BY term: its text with NULLs where the source puts them, and its key."""
    key = as_value(express(node.this, scope, context), sqlite=context.sqlite)
    return order_text(node, key.sql, context), orderable(key)


def orderable(key: Typed) -> Typed:
    """Return a key that both sides order alike.

    Raises:
        StaysError: They do not.
    """
    if key.kind in _UNORDERED:
        raise StaysError("it orders by a column that the mirror keeps in another form")
    if key.collated:
        raise StaysError("the source orders text by a collation of its own")
    return key


def order_text(node: exp.Expr, sql: str, context: Context) -> str:
    """Write an ORDER BY term, NULLs where the source puts them."""
    if node.args.get("with_fill"):
        raise StaysError("it orders in a way of its own")
    descending = bool(node.args.get("desc"))
    given = node.args.get("nulls_first")
    first = bool(given) if given is not None else (descending != context.sqlite)
    return f"{sql} {'desc' if descending else 'asc'} nulls {'first' if first else 'last'}"


def _extreme_of(node: exp.Expr, scope: Scope, context: Context, express: Express) -> Typed:
    """Translate SQLite's min and max of several arguments: null where one of them is."""
    if not context.sqlite:
        raise StaysError("a min or max of several values")
    parts = [express(part, scope, context) for part in (node.this, *node.expressions)]
    return _greatest(parts, "least" if isinstance(node, exp.Min) else "greatest", context)


def _least(node: exp.Expr, scope: Scope, context: Context, express: Express) -> Typed:
    parts = [express(part, scope, context) for part in (node.this, *node.expressions)]
    return _greatest(parts, "least" if isinstance(node, exp.Least) else "greatest", context)


def _greatest(parts: Sequence[Typed], word: str, context: Context) -> Typed:
    kind, kept, texts = unify(parts, sqlite=context.sqlite)
    if any(part.collated or part.inexact for part in parts):
        raise StaysError("it compares what the source orders in its own way")
    text = f"{word}({', '.join(texts)})"
    if context.sqlite:
        missing = " or ".join(f"({found}) is null" for found in texts)
        text = f"(case when {missing} then null else {text} end)"
    return derived(text, kind, kept, *parts)


def _coalesce(node: exp.Expr, scope: Scope, context: Context, express: Express) -> Typed:
    parts = [express(part, scope, context) for part in (node.this, *node.expressions)]
    kind, kept, texts = unify(parts, sqlite=context.sqlite)
    return derived(f"coalesce({', '.join(texts)})", kind, kept, *parts)


def _nullif(node: exp.Expr, scope: Scope, context: Context, express: Express) -> Typed:
    parts = [express(part, scope, context) for part in (node.this, node.expression)]
    kind, _, texts = unify(parts, sqlite=context.sqlite)
    first = as_value(parts[0], sqlite=context.sqlite)
    if first.kind is not kind or first.kind is Kind.NUMBER or first.inexact:
        raise StaysError("its NULLIF compares values of several kinds")
    # The answer is the first value, so it has the first value's type.
    text = f"cast(nullif({', '.join(texts)}) as {_kept(first)})"
    return derived(text, kind, first.type, *parts)


def _if(node: exp.Expr, scope: Scope, context: Context, express: Express) -> Typed:
    tested = express(node.this, scope, context)
    default = node.args.get("false")
    values = [
        express(node.args["true"], scope, context),
        express(default, scope, context) if default is not None else NULL,
    ]
    kind, kept, texts = unify(values, sqlite=context.sqlite)
    test = as_truth(tested, sqlite=context.sqlite)
    text = f"(case when {test} then {texts[0]} else {texts[1]} end)"
    return derived(text, kind, kept, tested, *values)


def _abs(node: exp.Expr, scope: Scope, context: Context, express: Express) -> Typed:
    value = as_value(express(node.this, scope, context), sqlite=context.sqlite)
    if value.kind not in {Kind.INT, Kind.REAL, Kind.DECIMAL}:
        raise StaysError(f"it takes an absolute {value.kind}")
    return derived(f"cast(abs({value.sql}) as {_kept(value)})", value.kind, value.type, value)


def _kept(value: Typed) -> str:
    return cast(value, value.type).rpartition(" as ")[2].removesuffix(")")


def _texts(
    nodes: Sequence[exp.Expr], scope: Scope, context: Context, express: Express
) -> list[Typed]:
    values = [settle(express(node, scope, context), Kind.TEXT) for node in nodes]
    if any(value.kind not in {Kind.TEXT, Kind.NULL} for value in values):
        raise StaysError("a function of text is given something else")
    return values


def _letters(node: exp.Expr, scope: Scope, context: Context, express: Express) -> Typed:
    if not context.sqlite:
        raise StaysError("the source folds letters by its locale")
    (value,) = _texts([node.this], scope, context, express)
    pair = (_LOWER, _UPPER) if isinstance(node, exp.Upper) else (_UPPER, _LOWER)
    text = exact_text(value, sqlite=True)
    return derived(f"translate({text}, '{pair[0]}', '{pair[1]}')", Kind.TEXT, pa.string(), value)


def _length(node: exp.Expr, scope: Scope, context: Context, express: Express) -> Typed:
    (value,) = _texts([node.this], scope, context, express)
    text = f"length({exact_text(value, sqlite=context.sqlite)})"
    return _counted(text, context, value)


def _substring(node: exp.Expr, scope: Scope, context: Context, express: Express) -> Typed:
    (value,) = _texts([node.this], scope, context, express)
    bounds = [node.args.get("start"), node.args.get("length")]
    if not all(_is_counting(bound) for bound in bounds if bound is not None) or bounds[0] is None:
        raise StaysError("its SUBSTR counts from elsewhere than a fixed place")
    places = ", ".join(bound.this for bound in bounds if bound is not None)
    text = f"substr({exact_text(value, sqlite=context.sqlite)}, {places})"
    return derived(text, Kind.TEXT, pa.string(), value)


def _is_counting(node: exp.Expr) -> bool:
    return isinstance(node, exp.Literal) and node.this.isdigit() and 0 < int(node.this) < EXACT


def _trim(node: exp.Expr, scope: Scope, context: Context, express: Express) -> Typed:
    if node.args.get("expression") is not None or node.args.get("collation"):
        raise StaysError("its TRIM takes other characters than spaces")
    (value,) = _texts([node.this], scope, context, express)
    word = {"LEADING": "ltrim", "TRAILING": "rtrim"}.get(str(node.args.get("position")), "trim")
    text = f"{word}({exact_text(value, sqlite=context.sqlite)}, ' ')"
    return derived(text, Kind.TEXT, pa.string(), value)


def _replace(node: exp.Expr, scope: Scope, context: Context, express: Express) -> Typed:
    given = [node.this, node.expression, node.args["replacement"]]
    values = _texts(given, scope, context, express)
    if not values[1].text or values[2].text is None:
        raise StaysError("its REPLACE looks for something that is not fixed")
    texts = ", ".join(exact_text(value, sqlite=context.sqlite) for value in values)
    return derived(f"replace({texts})", Kind.TEXT, pa.string(), *values)


def _position(node: exp.Expr, scope: Scope, context: Context, express: Express) -> Typed:
    values = _texts([node.this, node.args["substr"]], scope, context, express)
    if node.args.get("position") or node.args.get("occurrence") or not values[1].text:
        raise StaysError("it looks for something that is not fixed")
    text = f"instr({exact_text(values[0], sqlite=context.sqlite)}, {values[1].sql})"
    return _counted(text, context, *values)


def _counted(text: str, context: Context, *parts: Typed) -> Typed:
    """Write a count of characters with the width that the source gives it."""
    name, kept = ("bigint", pa.int64()) if context.sqlite else ("integer", pa.int32())
    return derived(f"cast({text} as {name})", Kind.INT, kept, *parts, collated=False)


_SCALARS: dict[type[exp.Expr], Callable[[exp.Expr, Scope, Context, Express], Typed]] = {
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
