"""IN, EXISTS and subqueries used as values, with the source's answer where there are NULLs."""

from collections.abc import Sequence

import pyarrow as pa
from sqlglot import exp
from sqlglot.tokenizer_core import Token, TokenType

from rhei_pipeline.model.semantics import Kind
from rhei_pipeline.query.translation.aggregates import Express
from rhei_pipeline.query.translation.comparisons import balanced, comparable, compare, truth
from rhei_pipeline.query.translation.literals import NULL, coerce
from rhei_pipeline.query.translation.meaning import StaysWithSourceError, Typed, derived
from rhei_pipeline.query.translation.parsing import list_of
from rhei_pipeline.query.translation.scope import Scope, TranslationContext
from rhei_pipeline.sql.text import literal

#: Digits that any integer of 64 bits may have.
_PLAIN_DIGITS = 18
_NULLS = "the mirror's engine forgets NULLs, or empty groups, in an IN or EXISTS of this form"
_NO_ROW = "the mirror's engine finds a value where a subquery of this form has no row"
#: What may leave a query without a row that has an aggregate.
_MAY_LEAVE_NONE = ("group", "having", "limit", "offset", "distinct")


def membership(
    node: exp.Expr, scope: Scope, context: TranslationContext, operand: Express
) -> Typed:
    """Translate an IN; `operand` translates its sides.

    Raises:
        StaysWithSourceError: The mirror might answer otherwise.
    """
    value = operand(node.this, scope, context)
    query = node.args.get("query")
    if query is not None:
        return _in_query(value, node, scope, context)
    members = node.expressions
    if not members or node.args.get("field") or node.args.get("unnest"):
        raise StaysWithSourceError("its IN names a table, or nothing")
    which = list_of(members[0])
    if which is not None:
        texts = _many(value, context.lists[which], context)
        if texts is not None:
            return truth(f"({value.sql} in ({texts}))", value)
        members = [_literal_of(token) for token in context.lists[which]]
    return _in_values(value, [operand(part, scope, context) for part in members], context)


def _many(value: Typed, tokens: Sequence[Token], context: TranslationContext) -> str | None:
    """Write the values of a long list, where each is of the kind it is compared with."""
    is_text = tokens[0].token_type is TokenType.STRING
    texts = [token.text for token in tokens]
    if value.inexact:
        return None
    if is_text and value.kind is Kind.TEXT and not any("\0" in text for text in texts):
        return ", ".join(map(literal, texts))
    if not is_text and value.kind is Kind.INT and all(map(_is_plain, texts)):
        # One type for all, so that no engine takes the narrowest that the first one fits.
        return ", ".join([context.words.cast(texts[0], pa.int64()), *texts[1:]])
    return None


def _is_plain(text: str) -> bool:
    return text.isdecimal() and text.isascii() and len(text) <= _PLAIN_DIGITS


def _literal_of(token: Token) -> exp.Expr:
    return exp.Literal(this=token.text, is_string=token.token_type is TokenType.STRING)


def _in_values(value: Typed, members: Sequence[Typed], context: TranslationContext) -> Typed:
    """Write an IN list; its values apart by the form in which the left side is compared."""
    by_left: dict[str, list[str]] = {}
    for member in members:
        left, right = comparable(value, member, context)
        by_left.setdefault(left, []).append(right)
    tests = [f"({left} in ({', '.join(rights)}))" for left, rights in by_left.items()]
    return truth(balanced(tests, "or"), value, *members)


def _in_query(value: Typed, node: exp.Expr, scope: Scope, context: TranslationContext) -> Typed:
    query = node.args["query"]
    text, columns = _subselect(query, scope, context)
    if len(columns) != 1:
        raise StaysWithSourceError("its IN compares rows")
    other = columns[0][1]
    kinds = {value.kind, other.kind} - {Kind.NULL, Kind.UNKNOWN}
    if kinds == {Kind.INT, Kind.REAL} or Kind.NUMBER in kinds:
        raise StaysWithSourceError("its IN compares integers with reals")
    if Kind.DATE in kinds and len(kinds) > 1:
        raise StaysWithSourceError("its IN compares dates with something else")
    settled = coerce(value, other.kind, context)
    if compare("=", settled, other, context).sql != f"({settled.sql} = {other.sql})":
        raise StaysWithSourceError("its IN compares values of different types")
    outer = _outer(text, columns, scope)
    negated = bool(node.args.get("negate")) or isinstance(node.parent, exp.Not | exp.Paren)
    _refuse_null_unaware(node, query, outer, context)
    # One that takes something from around it is a join for both engines: without NULLs.
    if outer.loose and (negated or id(node) not in context.conjuncts):
        raise StaysWithSourceError(_NULLS)
    if not context.words.null_aware and not value.loose:
        raise StaysWithSourceError(_NULLS)
    return truth(f"({settled.sql} in ({text}))", settled, outer)


def _refuse_null_unaware(
    node: exp.Expr, query: exp.Expr, outer: Typed, context: TranslationContext
) -> None:
    """Refuse an IN or EXISTS that the mirror's engine turns into a join which forgets NULLs."""
    if context.words.null_aware:
        return
    one_row = query.find(exp.AggFunc, exp.Anonymous) and (outer.loose or type(node) is exp.Exists)
    if id(node) not in context.conjuncts or one_row:
        raise StaysWithSourceError(_NULLS)


def _outer(text: str, columns: tuple[tuple[str | None, Typed], ...], scope: Scope) -> Typed:
    """Return the columns of the outer query that a subquery uses."""
    around: Scope | None = scope
    known: set[str] = set()
    while around is not None:
        known |= around.own
        around = around.parent
    loose = frozenset(sql for sql in known if sql in text)
    return Typed(text, Kind.NULL, pa.null(), loose=loose) if columns else NULL


def existence(node: exp.Expr, scope: Scope, context: TranslationContext) -> Typed:
    """Translate an EXISTS.

    Raises:
        StaysWithSourceError: The mirror might answer otherwise.
    """
    text, columns = _subselect(node.this, scope, context)
    outer = _outer(text, columns, scope)
    _refuse_null_unaware(node, node.this, outer, context)
    return truth(f"(exists ({text}))", outer)


def scalar(node: exp.Expr, scope: Scope, context: TranslationContext) -> Typed:
    """Translate a subquery used as a value.

    Raises:
        StaysWithSourceError: It has several columns, or the mirror might answer otherwise.
    """
    text, columns = _subselect(node, scope, context)
    if len(columns) != 1:
        raise StaysWithSourceError("a subquery used as a value has several columns")
    found = columns[0][1]
    outer = _outer(text, columns, scope)
    if outer.loose and not context.words.null_aware:
        _refuse_rowless(node.this if isinstance(node, exp.Subquery) else node)
    value = context.words.value_of(f"({text})")
    return derived(
        value, found.kind, found.type, found, outer, loose=outer.loose, steady=found.steady
    )


def _refuse_rowless(query: exp.Expr) -> None:
    """Refuse a subquery that may have no row, and that the engine makes a join with its groups.

    To a row without a group it gives what the aggregates are of no rows, such as a count of 0.
    """
    if any(query.args.get(part) is not None for part in _MAY_LEAVE_NONE):
        raise StaysWithSourceError(_NO_ROW)


def _subselect(
    node: exp.Expr, scope: Scope, context: TranslationContext
) -> tuple[str, tuple[tuple[str | None, Typed], ...]]:
    if context.subquery is None:
        raise StaysWithSourceError("it has a subquery")
    return context.subquery(node.this if isinstance(node, exp.Subquery) else node, scope)
