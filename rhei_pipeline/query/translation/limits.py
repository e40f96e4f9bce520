"""ORDER BY and LIMIT: the source's order, and whether it determines the rows kept."""

from collections.abc import Sequence

from sqlglot import exp

from rhei_pipeline.model.semantics import Kind
from rhei_pipeline.query.translation.aggregates import decides, orderable
from rhei_pipeline.query.translation.expressions import express
from rhei_pipeline.query.translation.meaning import StaysWithSourceError, Typed
from rhei_pipeline.query.translation.names import refuse_namesake
from rhei_pipeline.query.translation.outputs import is_star
from rhei_pipeline.query.translation.scope import (
    Columns,
    Scope,
    TranslationContext,
    compared,
    folded,
)


def order_keys(
    node: exp.Query, outputs: Columns, scope: Scope, context: TranslationContext
) -> list[tuple[exp.Expr, Typed]]:
    """Return the terms of an ORDER BY and their keys."""
    order = node.args.get("order")
    if order is None:
        return []
    return [
        (term, orderable(_order_key(term.this, node, outputs, scope, context)))
        for term in order.expressions
    ]


def _order_key(
    node: exp.Expr,
    query: exp.Query,
    outputs: Columns,
    scope: Scope,
    context: TranslationContext,
) -> Typed:
    named = _output_named(node, query, outputs, context)
    return express(node, scope, context) if named is None else named


def _output_named(
    node: exp.Expr, query: exp.Query, outputs: Columns, context: TranslationContext
) -> Typed | None:
    """Return the output column that an ORDER BY term names or numbers."""
    if isinstance(node, exp.Literal):
        if node.args.get("is_string") or not node.this.isdigit():
            raise StaysWithSourceError("it orders by a constant")
        if not 0 < int(node.this) <= len(outputs):
            raise StaysWithSourceError("it orders by a column that it does not have")
        return outputs[int(node.this) - 1][1]
    if isinstance(node, exp.Column) and not node.table and isinstance(node.this, exp.Identifier):
        return _called(folded(node.this, context), query, outputs, context)
    return None


def _called(
    wanted: str, query: exp.Query, outputs: Columns, context: TranslationContext
) -> Typed | None:
    """Return the output column of a name, which stands before the columns of tables."""
    if not context.sqlite:
        refuse_namesake(wanted, query.selects)
    elif isinstance(query, exp.Select) and not _is_given(wanted, query):
        return None
    found = {
        typed.sql: typed
        for name, typed in outputs
        if name is not None and compared(name, context) == wanted
    }
    if len(found) > 1:
        raise StaysWithSourceError(f"column {wanted!r} is ambiguous")
    return next(iter(found.values()), None)


def _is_given(wanted: str, query: exp.Select) -> bool:
    """Return whether SQLite takes it for an output's name: an alias, or a column of a star."""
    return any(each.alias.lower() == wanted or is_star(each) for each in query.expressions)


def limit_text(node: exp.Expr, context: TranslationContext) -> str:
    """Translate LIMIT and OFFSET."""
    text = ""
    for part in ("limit", "offset"):
        found = node.args.get(part)
        if found is None:
            continue
        if not isinstance(found, exp.Limit | exp.Offset) or found.args.get("expressions"):
            raise StaysWithSourceError(f"its {part.upper()} is not translated")
        value = found.expression
        fixed = isinstance(value, exp.Literal) and value.this.isdigit()
        typed = express(value, Scope(), context)
        if not fixed and (typed.kind is not Kind.INT or "($p" not in typed.sql):
            raise StaysWithSourceError(f"its {part.upper()} is not a fixed number")
        text += f" {part} {value.this if fixed else typed.sql}"
    return text


def decided(
    order: Sequence[Typed],
    outputs: Columns,
    scope: Scope,
    grouped: bool,  # noqa: FBT001
    keys: Sequence[Typed],
) -> bool:
    """Return whether ORDER BY determines which rows a LIMIT keeps."""
    by = {key.sql for key in order}
    if grouped and {key.sql for key in keys} <= by:
        return True
    if order and {typed.sql for _, typed in outputs} <= by and not any(k.inexact for k in order):
        return True
    return not grouped and decides(order, scope)


def hidden_keys(
    node: exp.Expr,
    order: Sequence[Typed],
    distinct: bool,  # noqa: FBT001
) -> tuple[Typed, ...]:
    """Return keys that show afterwards whether a LIMIT cut between equal rows."""
    if not order:
        raise StaysWithSourceError("its LIMIT has no ORDER BY, so the source chooses the rows")
    limit = node.args.get("limit")
    fixed = limit is not None and isinstance(limit.expression, exp.Literal)
    if not fixed or node.args.get("offset") is not None or distinct:
        raise StaysWithSourceError(
            "its ORDER BY does not decide between equal rows: add a key to it"
        )
    return tuple(order)
