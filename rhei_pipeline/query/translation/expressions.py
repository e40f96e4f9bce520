"""Translates operators, conditions, CASE and casts, with the source's meaning."""

from collections.abc import Callable
from dataclasses import replace

import pyarrow as pa
from sqlglot import exp

from rhei_pipeline.model.semantics import NUMERIC, Kind
from rhei_pipeline.query.translation import arrays, dates, functions, nested
from rhei_pipeline.query.translation.arithmetic import compute
from rhei_pipeline.query.translation.casts import as_plain_text, converted
from rhei_pipeline.query.translation.comparisons import balanced, compare, like_text, truth
from rhei_pipeline.query.translation.literals import (
    NULL,
    as_double,
    as_text,
    as_truth,
    as_value,
    coerce,
    integer,
    number,
    parameter,
    unify,
)
from rhei_pipeline.query.translation.meaning import (
    StaysWithSourceError,
    Typed,
    UnsteadyError,
    derived,
)
from rhei_pipeline.query.translation.node_options import refuse_unread
from rhei_pipeline.query.translation.scope import Scope, TranslationContext, resolve
from rhei_pipeline.query.translation.subqueries import existence, membership, scalar
from rhei_pipeline.sql.text import literal

_COMPARISONS: dict[type[exp.Expr], str] = {
    exp.EQ: "=",
    exp.NEQ: "<>",
    exp.LT: "<",
    exp.LTE: "<=",
    exp.GT: ">",
    exp.GTE: ">=",
    exp.NullSafeEQ: "is not distinct from",
    exp.NullSafeNEQ: "is distinct from",
}
#: Dialects bind these differently against each other, so an operand of that sort needs brackets.
_LOOSE = (
    *_COMPARISONS,
    exp.Not,
    exp.And,
    exp.Or,
    exp.Is,
    exp.In,
    exp.Between,
    exp.Like,
    exp.ILike,
    exp.Escape,
)
#: What no engine's parser or planner has trouble with.
_DEEPEST = 100
#: Conditions that one AND or OR joins; what plans them needs room for each.
_MOST_CONDITIONS = 500
_ARITHMETIC: dict[type[exp.Expr], str] = {
    exp.Add: "+",
    exp.Sub: "-",
    exp.Mul: "*",
    exp.Div: "/",
    exp.Mod: "%",
}


def express(node: exp.Expr, scope: Scope, context: TranslationContext) -> Typed:
    """Translate one expression.

    Raises:
        StaysWithSourceError: The mirror has no expression with a certainly equal answer.
    """
    rule = _RULES.get(type(node))
    context.depth += 1
    if context.depth > _DEEPEST:
        raise StaysWithSourceError("it nests too deeply for the mirror")
    try:
        found = (
            rule(node, scope, context) if rule else functions.call(node, scope, context, express)
        )
    finally:
        context.depth -= 1
    refuse_unread(node)
    if _is_negated(node):
        found = truth(f"(not {as_truth(found, context)})", found)
    if scope.groups is not None and found.sql in scope.groups:
        return replace(found, aggregate=False, loose=frozenset())
    return found


def _is_negated(node: exp.Expr) -> bool:
    inner = node.this if isinstance(node, exp.Escape) else node
    return isinstance(inner, exp.Expr) and bool(inner.args.get("negate"))


def condition(node: exp.Expr, scope: Scope, context: TranslationContext) -> str:
    """Translate the condition of WHERE, ON, HAVING or FILTER."""
    return as_truth(express(node, scope, context), context)


def _operand(node: exp.Expr, scope: Scope, context: TranslationContext) -> Typed:
    if isinstance(node, _LOOSE):
        raise StaysWithSourceError("its operators need brackets to mean the same everywhere")
    return as_value(express(node, scope, context), context)


def _literal(node: exp.Expr, _scope: Scope, context: TranslationContext) -> Typed:
    text: str = node.this
    if not node.args.get("is_string"):
        return number(text, context)
    if "\0" in text:
        raise StaysWithSourceError("a text has a NUL character")
    if context.sqlite:
        return Typed(literal(text), Kind.TEXT, pa.string(), text=text)
    return Typed(literal(text), Kind.UNKNOWN, pa.string(), text=text)


def _boolean(node: exp.Expr, _scope: Scope, _context: TranslationContext) -> Typed:
    return Typed("true" if node.this else "false", Kind.TRUTH, pa.bool_())


def _blob(node: exp.Expr, _scope: Scope, context: TranslationContext) -> Typed:
    if not context.sqlite:
        raise StaysWithSourceError("a bit string is compared")
    return Typed(context.words.blob(node.this), Kind.BLOB, pa.binary())


def _parameter(node: exp.Expr, _scope: Scope, context: TranslationContext) -> Typed:
    name = node.this.name if isinstance(node.this, exp.Expr) else str(node.this or "")
    place = name.removeprefix("rhei_")
    if context.sqlite and place == name:
        raise StaysWithSourceError("a parameter has a name")
    if not place.isdigit() or not 0 < int(place) <= len(context.parameters):
        raise StaysWithSourceError("a parameter is named, or has no value")
    return parameter(int(place), context)


def _paren(node: exp.Expr, scope: Scope, context: TranslationContext) -> Typed:
    return express(node.this, scope, context)


def _not(node: exp.Expr, scope: Scope, context: TranslationContext) -> Typed:
    inner = express(node.this, scope, context)
    return truth(f"(not {as_truth(inner, context)})", inner)


def _connective(word: str) -> Callable[[exp.Expr, Scope, TranslationContext], Typed]:
    def connect(node: exp.Expr, scope: Scope, context: TranslationContext) -> Typed:
        parts = [express(part, scope, context) for part in _chained(node)]
        if len(parts) > _MOST_CONDITIONS:
            raise StaysWithSourceError(f"it joins more than {_MOST_CONDITIONS} conditions")
        return truth(balanced([as_truth(part, context) for part in parts], word), *parts)

    return connect


def _chained(node: exp.Expr) -> list[exp.Expr]:
    """Return what a chain of one AND or OR joins, in order."""
    kind, found = type(node), []
    while type(node) is kind:
        found.append(node.expression)
        refuse_unread(node)
        node = node.this
    return [node, *reversed(found)]


def _comparison(node: exp.Expr, scope: Scope, context: TranslationContext) -> Typed:
    if isinstance(node, exp.NullSafeEQ | exp.NullSafeNEQ) and isinstance(
        node.expression, exp.Boolean
    ):
        raise StaysWithSourceError("IS TRUE asks for truth, not for a value")
    if arrays.compares_elements(node.expression):
        return arrays.member(node, scope, context, express)
    left = _operand(node.this, scope, context)
    right = _operand(node.expression, scope, context)
    return compare(_COMPARISONS[type(node)], left, right, context)


def _is(node: exp.Expr, scope: Scope, context: TranslationContext) -> Typed:
    left = express(node.this, scope, context)
    if isinstance(node.this, _LOOSE):
        raise StaysWithSourceError("its operators need brackets to mean the same everywhere")
    nested.refuse_parts(left)
    if isinstance(node.expression, exp.Null):
        return truth(f"({left.sql} is null)", left)
    if isinstance(node.expression, exp.Boolean) and left.kind is Kind.TRUTH:
        word = "true" if node.expression.this else "false"
        return truth(f"({left.sql} is {word})", left)
    if isinstance(node.expression, exp.Boolean):
        raise StaysWithSourceError("IS TRUE asks for truth, not for a value")
    right = _operand(node.expression, scope, context)
    left = as_value(left, context)
    return compare("is not distinct from", left, right, context)


def _steadied(
    rule: Callable[[exp.Expr, Scope, TranslationContext], Typed],
) -> Callable[[exp.Expr, Scope, TranslationContext], Typed]:
    """Return a rule that compares sums of whole numbers where it cannot compare those of reals."""

    def tried(node: exp.Expr, scope: Scope, context: TranslationContext) -> Typed:
        try:
            return rule(node, scope, context)
        except UnsteadyError:
            if context.whole_sums:
                raise
        context.whole_sums = True
        try:
            return rule(node, scope, context)
        finally:
            context.whole_sums = False

    return tried


def _between(node: exp.Expr, scope: Scope, context: TranslationContext) -> Typed:
    value = _operand(node.this, scope, context)
    low = _operand(node.args["low"], scope, context)
    high = _operand(node.args["high"], scope, context)
    if node.args.get("symmetric"):
        raise StaysWithSourceError("it is BETWEEN SYMMETRIC")
    parts = compare(">=", value, low, context), compare("<=", value, high, context)
    return truth(f"({parts[0].sql} and {parts[1].sql})", *parts)


def _like(node: exp.Expr, scope: Scope, context: TranslationContext) -> Typed:
    escape = None
    if isinstance(node, exp.Escape):
        escape, node = node.expression.name, node.this
        if len(escape) != 1 or not isinstance(node, exp.Like | exp.ILike):
            raise StaysWithSourceError("its ESCAPE is no single character")
    parts = [
        as_text(coerce(_operand(each, scope, context), Kind.TEXT, context), context)
        for each in _sides(node)
    ]
    if any(part.kind not in {Kind.TEXT, Kind.NULL} for part in parts):
        raise StaysWithSourceError("it is LIKE on something other than text")
    if isinstance(node, exp.ILike):
        raise StaysWithSourceError("ILIKE ignores case by the source's locale")
    return truth(like_text(parts, escape, context), *parts)


def _sides(node: exp.Expr) -> tuple[exp.Expr, exp.Expr]:
    return node.this, node.expression


def _arithmetic(node: exp.Expr, scope: Scope, context: TranslationContext) -> Typed:
    fixed = dates.counted(node, _ARITHMETIC[type(node)], context)
    if fixed is not None:
        return fixed
    sides = (node.this, node.expression)
    if any(isinstance(side, exp.DPipe) for side in sides):
        raise StaysWithSourceError("its operators need brackets to mean the same everywhere")
    left, right = (_operand(side, scope, context) for side in sides)
    left, right = coerce(left, right.kind, context), coerce(right, left.kind, context)
    return compute(_ARITHMETIC[type(node)], left, right, context)


def _neg(node: exp.Expr, scope: Scope, context: TranslationContext) -> Typed:
    if isinstance(node.this, exp.Literal) and not node.this.args.get("is_string"):
        text = node.this.this
        if text.isdigit():  # with its sign, the smallest integer of 32 bits is one
            return integer(-int(text), context)
        found = number(text, context)
        negated = f"(-{found.sql})"
        return derived(negated, found.kind, found.type, text=f"-{text}")
    value = _operand(node.this, scope, context)
    if isinstance(node.this, exp.DPipe) or value.kind not in NUMERIC:
        raise StaysWithSourceError(f"it negates a {value.kind}")
    if value.kind is Kind.INT:
        zero = context.words.cast("0", value.type)
        return derived(
            context.words.whole("-", zero, value.sql, value.type), Kind.INT, value.type, value
        )
    kept = value.type if value.kind is not Kind.NUMBER else pa.float64()
    source = as_double(value, context) if value.kind is Kind.NUMBER else value.sql
    text = f"(-({source}))"
    if value.kind is Kind.REAL and not context.sqlite:
        text = context.words.finite(text)  # a NaN with a sign is less than all numbers
    return derived(text, value.kind, kept, value)


def _concatenation(node: exp.Expr, scope: Scope, context: TranslationContext) -> Typed:
    parts = []
    for side in (node.this, node.expression):
        if isinstance(side, (*_ARITHMETIC, exp.Neg)):
            raise StaysWithSourceError("its operators need brackets to mean the same everywhere")
        parts.append(
            as_plain_text(coerce(_operand(side, scope, context), Kind.TEXT, context), context)
        )
    return derived(f"({parts[0].sql} || {parts[1].sql})", Kind.TEXT, pa.string(), *parts)


def _case(node: exp.Expr, scope: Scope, context: TranslationContext) -> Typed:
    subject = _operand(node.this, scope, context) if node.this is not None else None
    tests, values = [], []
    for branch in node.args["ifs"]:
        if subject is None:
            tested = express(branch.this, scope, context)
            tests.append(truth(as_truth(tested, context), tested))
        else:
            tests.append(compare("=", subject, _operand(branch.this, scope, context), context))
        values.append(express(branch.args["true"], scope, context))
    default = node.args.get("default")
    values.append(express(default, scope, context) if default is not None else NULL)
    return choose(tests, values, context)


def choose(tests: list[Typed], values: list[Typed], context: TranslationContext) -> Typed:
    """Return a CASE; there is one value more than tests."""
    kind, kept, texts = unify(values, context)
    pairs = zip(tests, texts, strict=False)
    branches = " ".join(f"when {test.sql} then {text}" for test, text in pairs)
    return derived(f"(case {branches} else {texts[-1]} end)", kind, kept, *tests, *values)


def _cast(node: exp.Expr, scope: Scope, context: TranslationContext) -> Typed:
    value = _operand(node.this, scope, context)
    target = node.args["to"].sql(dialect=context.catalog.source).lower()
    return converted(value, target, context)


def _column(node: exp.Expr, scope: Scope, context: TranslationContext) -> Typed:
    if not isinstance(node, exp.Column) or isinstance(node.this, exp.Star):
        raise StaysWithSourceError("a star is used as a value")
    return resolve(node, scope, context)


_RULES: dict[type[exp.Expr], Callable[[exp.Expr, Scope, TranslationContext], Typed]] = {
    exp.Literal: _literal,
    exp.Null: lambda _node, _scope, _context: NULL,
    exp.Boolean: _boolean,
    exp.HexString: _blob,
    exp.Placeholder: _parameter,
    exp.Parameter: _parameter,
    exp.Column: _column,
    exp.Paren: _paren,
    exp.Not: _not,
    exp.And: _connective("and"),
    exp.Or: _connective("or"),
    exp.Is: _is,
    exp.Between: _steadied(_between),
    exp.In: lambda node, scope, context: membership(node, scope, context, _operand),
    exp.Exists: existence,
    exp.Subquery: scalar,
    exp.Like: _like,
    exp.ILike: _like,
    exp.Escape: _like,
    exp.Neg: _neg,
    exp.DPipe: _concatenation,
    exp.Case: _case,
    exp.Cast: _cast,
    **dict.fromkeys(_COMPARISONS, _steadied(_comparison)),
    **dict.fromkeys(_ARITHMETIC, _arithmetic),
}
