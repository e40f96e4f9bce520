"""What a SELECT returns and groups by: its output columns, stars, aliases and GROUP BY keys."""

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa
from sqlglot import exp

from rhei_pipeline.model.semantics import Kind
from rhei_pipeline.query.translation.expressions import express
from rhei_pipeline.query.translation.joins import refuse_other
from rhei_pipeline.query.translation.literals import as_value, coerce
from rhei_pipeline.query.translation.meaning import StaysWithSourceError, Typed
from rhei_pipeline.query.translation.names import refuse_namesake
from rhei_pipeline.query.translation.scope import (
    Columns,
    Scope,
    TranslationContext,
    compared,
    folded,
)


def group_keys(node: exp.Select, scope: Scope, context: TranslationContext) -> list[Typed]:
    """Translate the keys of a GROUP BY; an empty list where there is none."""
    group = node.args.get("group")
    if group is None:
        return []
    refuse_other(group, {"expressions"})
    keys = []
    for term in group.expressions:
        expression = term
        if isinstance(term, exp.Literal):
            if term.args.get("is_string") or not 0 < int(term.this) <= len(node.expressions):
                raise StaysWithSourceError("it groups by a constant")
            expression = node.expressions[int(term.this) - 1].unalias()
        elif isinstance(term, exp.Column) and not term.table:
            expression = _column_or_alias(term, node.expressions, scope, context)
        key = express(expression, scope, context)
        if key.column is None:
            key = _settled(key, context)
        if key.kind is Kind.OPAQUE or key.inexact or key.aggregate:
            raise StaysWithSourceError(
                "it groups by a column that the mirror stores in another form"
            )
        keys.append(key)
    return keys


def _column_or_alias(
    term: exp.Column, outputs: Sequence[exp.Expr], scope: Scope, context: TranslationContext
) -> exp.Expr:
    """Return what a name in GROUP BY means: a column of the query's own, or an output column.

    Either stands before the columns of queries around.
    """
    wanted = folded(term.this, context)
    if any(each.may_have(wanted, context) for each in scope.relations):
        return term
    aliases: dict[str, exp.Expr] = {
        folded(each.args["alias"], context): each.this
        for each in outputs
        if isinstance(each, exp.Alias)
    }
    if wanted not in aliases and not context.sqlite:
        refuse_namesake(wanted, outputs)
    return aliases.get(wanted, term)


def output_columns(node: exp.Select, scope: Scope, context: TranslationContext) -> Columns:
    """Translate what a SELECT returns: each column with its name, where that is known."""
    outputs: list[tuple[str | None, Typed]] = []
    for each in node.expressions:
        if is_star(each):
            outputs += star_columns(each, scope, context)
            continue
        typed = output(each, scope, context)
        if scope.groups is not None and typed.sql in scope.groups:
            typed = replace(typed, aggregate=False, loose=frozenset())
        outputs.append((_alias(each, scope, context), typed))
    return tuple(outputs)


def is_star(node: exp.Expr) -> bool:
    """Return whether an output is `*` or `table.*`."""
    inner = node.this if isinstance(node, exp.Column) else node
    return isinstance(inner, exp.Star)


def output(node: exp.Expr, scope: Scope, context: TranslationContext) -> Typed:
    """Translate one output column, without its name."""
    typed = express(node.unalias(), scope, context)
    if typed.kind is Kind.NULL and context.queries == 1 and not context.sqlite:
        return _null(node.unalias(), context)
    return typed if typed.column is not None else _settled(typed, context)


def _null(node: exp.Expr, context: TranslationContext) -> Typed:
    """Return a null of an answer as PostgreSQL does: as text, unless it is computed."""
    if not isinstance(node, exp.Null):
        raise StaysWithSourceError("the source gives a type to a null that is computed")
    return Typed(context.words.cast("null", pa.string()), Kind.TEXT, pa.string())


def _settled(typed: Typed, context: TranslationContext) -> Typed:
    return as_value(coerce(typed, Kind.TEXT, context), context)


def _alias(node: exp.Expr, scope: Scope, context: TranslationContext) -> str | None:
    """Return an output's name if the query or a table gives it one."""
    if isinstance(node, exp.Alias):
        identifier = node.args["alias"]
        name: str = identifier.this
        return name if context.sqlite or identifier.args.get("quoted") else name.lower()
    inner = node.unnest()
    if not isinstance(inner, exp.Column):
        return None
    wanted = express(inner, Scope(scope.relations, scope.parent), context)
    around: Scope | None = scope
    while around is not None:
        for relation in around.relations:
            for known, typed in relation.columns:
                if typed.sql == wanted.sql:
                    return known
        around = around.parent
    return None


def star_columns(
    node: exp.Expr, scope: Scope, context: TranslationContext
) -> list[tuple[str | None, Typed]]:
    """Return the columns that `*` or `table.*` stands for."""
    star = node.this if isinstance(node, exp.Column) else node
    if any(star.args.get(extra) for extra in ("except_", "replace", "rename", "except")):
        raise StaysWithSourceError("its star leaves columns out")
    table = node.args.get("table") if isinstance(node, exp.Column) else None
    wanted = folded(table, context) if table is not None else None
    chosen = [each for each in scope.relations if wanted is None or each.name == wanted]
    if not chosen or (wanted is not None and len(chosen) > 1):
        raise StaysWithSourceError("its star names no table")
    if not all(each.whole for each in chosen):
        raise StaysWithSourceError("it asks for all columns, and some are not mirrored")
    found = [
        (name, typed)
        for each in chosen
        for name, typed in each.columns
        if wanted is not None or name is None or compared(name, context) not in each.merged
    ]
    if any(name is None for name, _ in found):
        raise StaysWithSourceError(
            "an output column has no alias, and only the source knows its name"
        )
    return found
