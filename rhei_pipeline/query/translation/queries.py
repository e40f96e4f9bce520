"""Translates SELECT, CTEs and set operations."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
from sqlglot import exp

from rhei_pipeline.model.semantics import Kind
from rhei_pipeline.query.translation.aggregates import order_text
from rhei_pipeline.query.translation.expressions import condition, express
from rhei_pipeline.query.translation.joins import from_clause, refuse_other, rowwise, with_names
from rhei_pipeline.query.translation.limits import decided, hidden_keys, limit_text, order_keys
from rhei_pipeline.query.translation.literals import unify
from rhei_pipeline.query.translation.meaning import StaysWithSourceError, Typed
from rhei_pipeline.query.translation.outputs import (
    group_keys,
    is_star,
    output,
    output_columns,
    star_columns,
)
from rhei_pipeline.query.translation.scope import (
    Columns,
    Relation,
    Scope,
    TranslationContext,
    folded,
)
from rhei_pipeline.sql.logical_casts import cast_logical

_SELECT_PARTS = {
    "with_",
    "expressions",
    "from_",
    "joins",
    "where",
    "group",
    "having",
    "order",
    "limit",
    "offset",
    "distinct",
}
_MEMBER = (exp.In, exp.Exists)
_SET_PARTS = {"with_", "this", "expression", "distinct", "order", "limit", "offset"}


@dataclass(frozen=True, slots=True)
class Query:
    """A query in the mirror's SQL; inside of another one, its columns are named `_0`, `_1`, ....

    Attributes:
        ordering: The mirror's text of the hidden columns that follow. By them, the last row of a
            LIMIT must differ from the first row left out; the text's LIMIT is then one larger.
    """

    sql: str
    columns: Columns
    limit: int | None = None
    ordering: tuple[Typed, ...] = ()


def translate(node: exp.Expr, scope: Scope | None, context: TranslationContext) -> Query:
    """Translate a query.

    Raises:
        StaysWithSourceError: Equal answers are not certain.
    """
    outer = context.ctes
    context.queries += 1
    context.subquery = lambda inner, around: _plain(translate(inner, around, context))
    try:
        with_ = _ctes(node.args.get("with_"), context)
        if isinstance(node, exp.Select):
            query = _select(node, scope, context)
        elif isinstance(node, exp.SetOperation):
            query = _set_operation(node, scope, context)
        else:
            raise StaysWithSourceError(f"it is {node.key}")
        return replace(query, sql=with_ + query.sql)
    finally:
        context.ctes = outer
        context.queries -= 1


def outputs_alone(node: exp.Expr, context: TranslationContext) -> tuple[Typed | None, ...] | None:
    """Return what the columns of a query are that is not translated whole, as far as is known.

    Raises:
        StaysWithSourceError: Nothing is known of its tables.
    """
    if not isinstance(node, exp.Select) or node.args.get("from_") is None:
        return None
    context.subquery = lambda inner, around: _plain(translate(inner, around, context))
    _ctes(node.args.get("with_"), context)
    scope = Scope()
    from_clause(node, scope, context)
    found: list[Typed | None] = []
    for each in node.expressions:
        if is_star(each):
            found += [typed for _, typed in star_columns(each, scope, context)]
            continue
        try:
            found.append(output(each, scope, context))
        except StaysWithSourceError:
            found.append(_column_alone(each.unalias(), scope, context))
    return tuple(found) if any(found) else None


def _column_alone(node: exp.Expr, scope: Scope, context: TranslationContext) -> Typed | None:
    """Return the column of which an output is the least or greatest value, whatever its order."""
    of_one = isinstance(node, exp.Min | exp.Max) and not node.expressions
    if not of_one or not isinstance(node.this, exp.Column):
        return None
    try:
        return output(node.this, scope, context)
    except StaysWithSourceError:
        return None


def _plain(query: Query) -> tuple[str, Columns]:
    if query.ordering:
        raise StaysWithSourceError(
            "a subquery's LIMIT has no order that decides between equal rows"
        )
    return query.sql, query.columns


def _ctes(node: exp.Expr | None, context: TranslationContext) -> str:
    if node is None:
        return ""
    if node.args.get("recursive"):
        raise StaysWithSourceError("it is recursive")
    texts = []
    names = [folded(cte.args["alias"].this, context) for cte in node.expressions]
    for place, cte in enumerate(node.expressions):
        named = {table.name.lower() for table in cte.this.find_all(exp.Table)}
        if named & {name.lower() for name in names[place:]}:
            raise StaysWithSourceError("a CTE reads from itself, or from a later one")
        text, columns = _plain(translate(cte.this, None, context))
        given = [folded(name, context) for name in cte.args["alias"].args.get("columns") or ()]
        alias = context.alias()
        shown = with_names(columns, given)
        name = names[place]
        context.ctes = {**context.ctes, name: Relation(name, alias, shown)}
        texts.append(f"{alias} as ({text})")
    return f"with {', '.join(texts)} "


def _select(node: exp.Select, parent: Scope | None, context: TranslationContext) -> Query:
    refuse_other(node, _SELECT_PARTS)
    scope = Scope(parent=parent)
    if context.sqlite:
        scope.promised = frozenset(each.alias.lower() for each in node.expressions)
    from_ = from_clause(node, scope, context)
    where = node.args.get("where")
    filtered = f" where {_demanded(where.this, scope, context)}" if where is not None else ""
    keys = group_keys(node, scope, context)
    if keys:
        scope.groups = frozenset(key.sql for key in keys)
    outputs = output_columns(node, scope, context)
    scope.aliases |= {
        name.lower(): typed for name, typed in outputs if name is not None and context.sqlite
    }
    having = node.args.get("having")
    tested = express(having.this, scope, context) if having is not None else None
    order = order_keys(node, outputs, scope, context)
    grouped = (
        bool(keys)
        or tested is not None
        or any(
            part.aggregate
            for part in [*(typed for _, typed in outputs), *(key for _, key in order)]
        )
    )
    if grouped:
        _refuse_loose([*(typed for _, typed in outputs), *(key for _, key in order)], scope)
    behind = f" group by {', '.join(key.sql for key in keys)}" if keys else ""
    if having is not None:
        behind += f" having {condition(having.this, scope, context)}"
        _refuse_loose([tested] if tested else [], scope)
    return _assembled(
        node, outputs, order, from_ + filtered + behind, scope, context, grouped, keys
    )


def _demanded(node: exp.Expr, scope: Scope, context: TranslationContext) -> str:
    waiting = [node]
    while waiting:
        each = waiting.pop()
        context.conjuncts.add(id(each))
        if isinstance(each, exp.And):
            waiting += [each.this, each.expression]
        elif isinstance(each, exp.Paren):
            waiting.append(each.this)
        elif isinstance(each, exp.Not) and isinstance(each.unnest().this.unnest(), _MEMBER):
            waiting.append(each.this.unnest())
    return rowwise(node, scope, context)


def _assembled(  # noqa: PLR0913, PLR0917
    node: exp.Select,
    outputs: Columns,
    order: list[tuple[exp.Expr, Typed]],
    body: str,
    scope: Scope,
    context: TranslationContext,
    grouped: bool,  # noqa: FBT001
    keys: Sequence[Typed],
) -> Query:
    distinct = node.args.get("distinct")
    if distinct is not None:
        _refuse_vague(distinct, outputs, order)
    hidden: tuple[Typed, ...] = ()
    limit = limit_text(node, context)
    sorted_by = [key for _, key in order]
    if limit and not decided(sorted_by, outputs, scope, grouped, keys):
        hidden = hidden_keys(node, sorted_by, distinct is not None)
    # To order rows, DataFusion holds the answer's columns beside those of a query in FROM.
    named = "_" if context.queries > 1 else "_out"
    texts = [
        f'{_cast_to(typed.sql, typed, context)} as "{named}{place}"'
        for place, (_, typed) in enumerate(outputs)
    ]
    texts += [f'{key.sql} as "_key{place}"' for place, key in enumerate(hidden)]
    sql = f"select {'distinct ' if distinct is not None else ''}{', '.join(texts)}{body}"
    if order:
        # By name: DataFusion loses what an expression stands for that is computed twice.
        is_named = distinct is not None or named != "_"
        shown = enumerate(outputs) if is_named else ()
        by_sql = {typed.sql: f'"{named}{place}"' for place, (_, typed) in shown}
        terms = [
            order_text(term, replace(key, sql=by_sql.get(key.sql, key.sql)), context)
            for term, key in order
        ]
        sql += f" order by {', '.join(terms)}"
    wanted = int(node.args["limit"].expression.this) if hidden else None
    sql += f" limit {wanted + 1}" if wanted is not None else limit
    columns = tuple((name, _as_column(typed, place)) for place, (name, typed) in enumerate(outputs))
    return Query(sql, columns, wanted, hidden)


def _as_column(typed: Typed, place: int) -> Typed:
    """Return an output column as outer queries see it."""
    return replace(
        typed, sql=f'"_{place}"', aggregate=False, loose=frozenset(), text=None, whole=None
    )


def _refuse_loose(parts: Sequence[Typed], scope: Scope) -> None:
    if any(part.loose & scope.own for part in parts):
        raise StaysWithSourceError(
            "it returns columns that are not grouped, of a row that the source chooses"
        )


def _refuse_vague(
    distinct: exp.Expr, outputs: Columns, order: list[tuple[exp.Expr, Typed]]
) -> None:
    if distinct.args.get("on"):
        raise StaysWithSourceError("it is DISTINCT ON")
    if any(typed.kind is Kind.OPAQUE or typed.inexact for _, typed in outputs):
        raise StaysWithSourceError(
            "it is DISTINCT over values that the mirror stores in another form"
        )
    shown = {typed.sql for _, typed in outputs}
    if any(key.sql not in shown for _, key in order):
        raise StaysWithSourceError("it is DISTINCT, and ordered by what it does not return")


def _set_operation(
    node: exp.SetOperation, parent: Scope | None, context: TranslationContext
) -> Query:
    refuse_other(node, _SET_PARTS)
    distinct = node.args.get("distinct") is not False
    multisets = context.words.multisets and not context.sqlite
    if not (distinct or isinstance(node, exp.Union) or multisets):
        raise StaysWithSourceError("it counts equal rows of two sides")
    left = _plain(translate(_inside(node.this), parent, context))
    right = _plain(translate(_inside(node.expression), parent, context))
    outputs = _combined(left[1], right[1], context, distinct=distinct)
    word = {exp.Union: "union", exp.Intersect: "intersect", exp.Except: "except"}[type(node)]
    unique = context.alias()
    texts = [_casted(side, outputs, context, distinct=distinct) for side in (left, right)]
    both = f"{texts[0]} {word}{'' if distinct else ' all'} {texts[1]}"
    shown = ", ".join(f'{unique}."_{place}"' for place in range(len(outputs)))
    sql = f"select {shown} from ({both}) as {unique}"
    return _ordered_set(node, sql, outputs, unique, context)


def _ordered_set(
    node: exp.SetOperation, sql: str, outputs: Columns, unique: str, context: TranslationContext
) -> Query:
    own = tuple((name, replace(typed, sql=f"{unique}.{typed.sql}")) for name, typed in outputs)
    order = order_keys(node, own, Scope(), context)
    limit = limit_text(node, context)
    by = {key.sql for _, key in order}
    if limit and not {typed.sql for _, typed in own} <= by:
        raise StaysWithSourceError(
            "its ORDER BY does not decide between equal rows: add a key to it"
        )
    if order:
        terms = [order_text(term, key, context) for term, key in order]
        sql += f" order by {', '.join(terms)}"
    return Query(sql + limit, outputs)


def _inside(node: exp.Expr) -> exp.Expr:
    """Return a side of a set operation; the tree holds them in the order of its dialect."""
    while isinstance(node, exp.Subquery):
        refuse_other(node, {"this"})
        node = node.this
    return node


def _combined(
    left: Columns, right: Columns, context: TranslationContext, *, distinct: bool
) -> Columns:
    if len(left) != len(right):
        raise StaysWithSourceError("its sides have different numbers of columns")
    outputs: list[tuple[str | None, Typed]] = []
    for place, ((name, first), (_, second)) in enumerate(zip(left, right, strict=True)):
        kind, kept, _ = unify([first, second], context)
        kinds = {first.kind, second.kind} - {Kind.NULL}
        if kind is Kind.NULL and not context.sqlite:
            raise StaysWithSourceError("its sides are nulls, to which the source gives a type")
        if len(kinds) > 1 or (distinct and (first.inexact or second.inexact)):
            raise StaysWithSourceError("its sides have columns of several kinds")
        collated = first.collated or second.collated
        inexact = first.inexact or second.inexact
        typed = Typed(f'"_{place}"', kind, kept, collated=collated, inexact=inexact)
        outputs.append((name, typed))
    return tuple(outputs)


def _casted(
    side: tuple[str, Columns], outputs: Columns, context: TranslationContext, *, distinct: bool
) -> str:
    unique = context.alias()
    pairs = zip(side[1], outputs, strict=True)
    texts = []
    for (_, typed), (_, kept) in pairs:
        text = _cast_to(f"{unique}.{typed.sql}", kept, context)
        if distinct:
            text = context.words.order_key(text, kept.kind)  # zeros of both signs are one
        texts.append(f"{text} as {kept.sql}")
    return f"(select {', '.join(texts)} from ({side[0]}) as {unique})"


def _cast_to(text: str, kept: Typed, context: TranslationContext) -> str:
    column = kept.column if context.catalog.mirror == "duckdb" else None
    if column is not None and column.logical is not None:
        return cast_logical(text, column.logical, None)
    return "null" if pa.types.is_null(kept.type) else context.words.cast(text, kept.type)
