"""FROM clauses: tables, subqueries and joins."""

from collections.abc import Sequence
from dataclasses import replace

from sqlglot import exp

from rhei_pipeline.model.semantics import Kind
from rhei_pipeline.query.translation.expressions import express
from rhei_pipeline.query.translation.literals import as_truth
from rhei_pipeline.query.translation.meaning import StaysWithSourceError
from rhei_pipeline.query.translation.scope import (
    Columns,
    Relation,
    Scope,
    TranslationContext,
    base_relation,
    compared,
    folded,
)

_OUTER = {"LEFT", "RIGHT", "FULL"}

#: Columns of these kinds are compared differently by the engines, or perhaps not at all.
_NOT_MERGED = {Kind.OPAQUE, Kind.NUMBER, Kind.ENUM}


def from_clause(node: exp.Select, scope: Scope, context: TranslationContext) -> str:
    """Translate a FROM clause, and add its relations to the scope."""
    first = node.args.get("from_")
    if first is None:
        return ""
    relation = _relation(first.this, context)
    scope.relations.append(relation)
    text = f" from {relation.sql}"
    joins = node.args.get("joins") or []
    sides = [str(join.args.get("side") or "").upper() for join in joins]
    if {"RIGHT", "FULL"} & set(sides) and len(joins) > 1:
        raise StaysWithSourceError("it joins more than two tables, one of them RIGHT or FULL")
    for join, side in zip(joins, sides, strict=True):
        text += _join(join, side, scope, context)
    return text


def _join(join: exp.Join, side: str, scope: Scope, context: TranslationContext) -> str:
    refuse_other(join, {"this", "on", "using", "side", "kind", "method"})
    kind = str(join.args.get("kind") or "").upper()
    if kind not in {"", "INNER", "OUTER", "CROSS"} or side not in _OUTER | {""}:
        raise StaysWithSourceError(f"it is a {kind or side} join")
    relation = _relation(join.this, context)
    names = _shared_names(join, relation, scope, context)
    if names:
        if side in {"RIGHT", "FULL"}:
            raise StaysWithSourceError("a RIGHT or FULL join merges columns")
        matched, relation = _merged(names, relation, scope, context)
        scope.relations.append(relation)
        return f" {side or 'inner'} join {relation.sql} on {matched}"
    scope.relations.append(relation)
    on = join.args.get("on")
    if on is None and side:
        raise StaysWithSourceError("an outer join has no condition")
    if side == "FULL" and not context.sqlite:
        _refuse_unmergeable(on)
    matched = rowwise(on, scope, context) if on is not None else "true"
    return f" {side or 'inner'} join {relation.sql} on {matched}"


def _refuse_unmergeable(on: exp.Expr | None) -> None:
    """Refuse a FULL join on more than equal columns: PostgreSQL has no plan for it."""
    waiting = [on]
    while waiting:
        each = waiting.pop()
        if isinstance(each, exp.And | exp.Paren):
            waiting += [side for side in (each.this, each.args.get("expression")) if side]
            continue
        sides = [each.this, each.expression] if isinstance(each, exp.EQ) else []
        tables = {side.table for side in sides if isinstance(side, exp.Column) and side.table}
        if len(tables) != 2:  # noqa: PLR2004  (one side of each)
            raise StaysWithSourceError("it is a FULL join on more than equal columns of both sides")


def _shared_names(
    join: exp.Join, relation: Relation, scope: Scope, context: TranslationContext
) -> list[str]:
    if join.args.get("using"):
        return [folded(found, context) for found in join.args["using"]]
    method = str(join.args.get("method") or "").upper()
    if method not in {"", "NATURAL"}:
        raise StaysWithSourceError(f"it is a {method} join")
    if not method:
        return []
    sides = [relation, *scope.relations]
    if not all(each.whole and each.whole_names for each in sides):
        raise StaysWithSourceError("a natural join's columns are not all mirrored")
    own, *before = [{compared(str(name), context) for name, _ in each.columns} for each in sides]
    shared = sorted(own & set[str]().union(*before))
    if not shared:
        raise StaysWithSourceError("a natural join has no column to join by")
    return shared


def _merged(
    names: Sequence[str], relation: Relation, scope: Scope, context: TranslationContext
) -> tuple[str, Relation]:
    if len(scope.relations) > 1:
        raise StaysWithSourceError("it merges columns of more than two tables")
    tests = []
    for name in names:
        sides = []
        for each in (scope.relations[0], relation):
            found = each.named(name, context)
            if len(found) != 1:
                raise StaysWithSourceError(f"column {name!r} is not mirrored")
            sides.append(found[0])
        if sides[0].kind is not sides[1].kind or sides[0].kind in _NOT_MERGED:
            raise StaysWithSourceError("it joins columns that the engines compare differently")
        tests.append(f"{sides[0].sql} = {sides[1].sql}")
    return " and ".join(tests), replace(relation, merged=frozenset(names))


def _relation(node: exp.Expr, context: TranslationContext) -> Relation:
    if isinstance(node, exp.Table):
        return base_relation(node, context)
    if not isinstance(node, exp.Subquery) or node.args.get("joins"):
        raise StaysWithSourceError(f"it reads from {node.key}")
    alias = node.args.get("alias")
    if context.subquery is None:
        raise StaysWithSourceError("it has a subquery")
    text, columns = context.subquery(node.this, None)
    names = alias.args.get("columns") if alias is not None else None
    named = with_names(columns, [folded(name, context) for name in names or ()])
    shown = folded(alias.this, context) if alias is not None and alias.this is not None else ""
    unique = context.alias()
    own = tuple(
        (
            name,
            replace(typed, sql=f"{unique}.{typed.sql}", loose=frozenset({f"{unique}.{typed.sql}"})),
        )
        for name, typed in named
    )
    return Relation(shown, f"({text}) as {unique}", own)


def rowwise(node: exp.Expr, scope: Scope, context: TranslationContext) -> str:
    """Translate a condition on single rows."""
    found = express(node, scope, context)
    if found.aggregate:
        raise StaysWithSourceError("an aggregate is used where single rows are chosen")
    return as_truth(found, context)


def refuse_other(node: exp.Expr, known: set[str]) -> None:
    """Refuse a clause with other parts than the known ones."""
    other = sorted(name for name, value in node.args.items() if value and name not in known)
    if other:
        raise StaysWithSourceError(f"its {other[0].rstrip('_')} clause is not translated")


def with_names(columns: Columns, names: Sequence[str]) -> Columns:
    """Rename columns by a list of names, if there is one."""
    if not names:
        return columns
    if len(names) != len(columns):
        raise StaysWithSourceError("a list of column names has another length than its query")
    return tuple((name, typed) for name, (_, typed) in zip(names, columns, strict=True))
