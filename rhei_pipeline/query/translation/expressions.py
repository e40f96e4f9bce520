"""Translates operators, conditions, CASE and casts, with the source's meaning."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pyarrow as pa
from sqlglot import exp
from sqlglot.tokenizer_core import Token, TokenType

from rhei_pipeline.model.semantics import NUMERIC, TEMPORAL, Kind
from rhei_pipeline.query.translation import dates, functions
from rhei_pipeline.query.translation.arithmetic import compute
from rhei_pipeline.query.translation.comparisons import comparable, compare, like_text, truth
from rhei_pipeline.query.translation.literals import (
    NULL,
    as_double,
    as_text,
    as_truth,
    as_value,
    cast,
    coerce,
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
from rhei_pipeline.query.translation.parsing import list_of
from rhei_pipeline.query.translation.scope import Scope, TranslationContext, resolve
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
#: Digits that any integer of 64 bits may have.
_PLAIN_DIGITS = 18
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


_NULLS = "the mirror's engine forgets NULLs, or empty groups, in an IN or EXISTS of this form"


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


def refuse_unread(node: exp.Expr) -> None:
    """Refuse a node with options that the translation does not read: parsers gain new ones."""
    known = _READ | _READ_OF.get(type(node), set())
    unread = [name for name, value in node.args.items() if value and name not in known]
    if unread:
        raise StaysWithSourceError(
            f"its {node.key} has an option {unread[0]!r} that is not translated"
        )


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
        return truth(_balanced([as_truth(part, context) for part in parts], word), *parts)

    return connect


def _chained(node: exp.Expr) -> list[exp.Expr]:
    """Return what a chain of one AND or OR joins, in order."""
    kind, found = type(node), []
    while type(node) is kind:
        found.append(node.expression)
        refuse_unread(node)
        node = node.this
    return [node, *reversed(found)]


def _balanced(texts: list[str], word: str) -> str:
    """Join conditions such that no parser has to nest them deeply."""
    if len(texts) == 1:
        return texts[0]
    half = len(texts) // 2
    return f"({_balanced(texts[:half], word)} {word} {_balanced(texts[half:], word)})"


def _comparison(node: exp.Expr, scope: Scope, context: TranslationContext) -> Typed:
    if isinstance(node, exp.NullSafeEQ | exp.NullSafeNEQ) and isinstance(
        node.expression, exp.Boolean
    ):
        raise StaysWithSourceError("IS TRUE asks for truth, not for a value")
    left = _operand(node.this, scope, context)
    right = _operand(node.expression, scope, context)
    return compare(_COMPARISONS[type(node)], left, right, context)


def _is(node: exp.Expr, scope: Scope, context: TranslationContext) -> Typed:
    left = express(node.this, scope, context)
    if isinstance(node.this, _LOOSE):
        raise StaysWithSourceError("its operators need brackets to mean the same everywhere")
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


def _in(node: exp.Expr, scope: Scope, context: TranslationContext) -> Typed:
    value = _operand(node.this, scope, context)
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
    return _in_values(value, [_operand(part, scope, context) for part in members], context)


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
    return truth(_balanced(tests, "or"), value, *members)


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


def _exists(node: exp.Expr, scope: Scope, context: TranslationContext) -> Typed:
    text, columns = _subselect(node.this, scope, context)
    outer = _outer(text, columns, scope)
    _refuse_null_unaware(node, node.this, outer, context)
    return truth(f"(exists ({text}))", outer)


def _scalar(node: exp.Expr, scope: Scope, context: TranslationContext) -> Typed:
    text, columns = _subselect(node, scope, context)
    if len(columns) != 1:
        raise StaysWithSourceError("a subquery used as a value has several columns")
    found = columns[0][1]
    outer = _outer(text, columns, scope)
    return derived(
        f"({text})", found.kind, found.type, found, outer, loose=outer.loose, steady=found.steady
    )


def _subselect(
    node: exp.Expr, scope: Scope, context: TranslationContext
) -> tuple[str, tuple[tuple[str | None, Typed], ...]]:
    if context.subquery is None:
        raise StaysWithSourceError("it has a subquery")
    return context.subquery(node.this if isinstance(node, exp.Subquery) else node, scope)


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
        parts.append(_as_text(coerce(_operand(side, scope, context), Kind.TEXT, context), context))
    return derived(f"({parts[0].sql} || {parts[1].sql})", Kind.TEXT, pa.string(), *parts)


def _as_text(value: Typed, context: TranslationContext) -> Typed:
    value = as_text(value, context)
    if value.kind in {Kind.TEXT, Kind.INT, Kind.NULL}:
        return derived(cast(value, pa.string(), context), Kind.TEXT, pa.string(), value)
    raise StaysWithSourceError(
        f"it converts a {value.kind} to text, which each engine writes differently"
    )


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
    found = _sqlite_cast(value, target, context) if context.sqlite else None
    found = found or (None if context.sqlite else _postgres_cast(value, target, context))
    if found is None and target in {"text", "varchar"}:
        found = _as_text(value, context)
    if found is None:
        raise StaysWithSourceError(f"it casts a {value.kind} to {target}")
    return found


def _sqlite_cast(value: Typed, target: str, context: TranslationContext) -> Typed | None:
    if value.kind is Kind.NULL:
        return NULL
    if target in {"real", "double", "float"} and value.kind in {Kind.INT, Kind.REAL, Kind.NUMBER}:
        return derived(as_double(value, context), Kind.REAL, pa.float64(), value)
    if target in {"integer", "int", "bigint"} and value.kind is Kind.INT:
        return derived(value.sql, Kind.INT, pa.int64(), value)
    if target in {"integer", "int", "bigint"} and value.digits:
        return derived(cast(value, pa.int64(), context), Kind.INT, pa.int64(), value)
    return None


_POSTGRES_TYPES: dict[str, tuple[Kind, pa.DataType]] = {
    "bigint": (Kind.INT, pa.int64()),
    "int": (Kind.INT, pa.int32()),
    "integer": (Kind.INT, pa.int32()),
    "double precision": (Kind.REAL, pa.float64()),
    "text": (Kind.TEXT, pa.string()),
    "date": (Kind.DATE, pa.date32()),
    "timestamp": (Kind.TIMESTAMP, pa.timestamp("us")),
}


def _postgres_cast(value: Typed, target: str, context: TranslationContext) -> Typed | None:
    kind, kept = _POSTGRES_TYPES.get(target, (Kind.OPAQUE, pa.null()))
    if value.kind is Kind.UNKNOWN and kind in TEMPORAL | {Kind.TEXT}:
        return coerce(value, kind, context)
    if value.kind is Kind.NULL and kind is not Kind.OPAQUE:
        return Typed(context.words.cast("null", kept), kind, kept)
    if value.kind is Kind.INT and kind is Kind.INT:
        return derived(cast(value, kept, context), kind, kept, value)
    if value.kind in {Kind.INT, Kind.DECIMAL} and kind is Kind.REAL:
        return derived(as_double(value, context), kind, kept, value)
    if value.kind is Kind.TIMESTAMP and kind is Kind.DATE:
        return derived(cast(value, kept, context), kind, kept, value)
    return None


def _column(node: exp.Expr, scope: Scope, context: TranslationContext) -> Typed:
    if not isinstance(node, exp.Column) or isinstance(node.this, exp.Star):
        raise StaysWithSourceError("a star is used as a value")
    return resolve(node, scope, context)


#: What the rules read of every node, or what says nothing of its meaning.
_READ = {"this", "expression", "expressions", "_type", "type"}
_READ_OF: dict[type[exp.Expr], set[str]] = {
    exp.Literal: {"is_string"},
    exp.Column: {"table", "db", "catalog"},
    exp.Is: {"negate"},
    exp.In: {"negate", "query", "field", "unnest"},
    exp.Between: {"negate", "low", "high", "symmetric"},
    exp.Like: {"negate"},
    exp.ILike: {"negate"},
    exp.Div: {"typed", "safe"},
    exp.DPipe: {"safe"},
    exp.Case: {"ifs", "default"},
    exp.If: {"true", "false"},
    exp.Cast: {"to"},
    exp.Count: {"big_int"},
    exp.Window: {"partition_by", "order", "over", "spec", "alias", "first"},
    exp.Substring: {"start", "length"},
    exp.Trim: {"position", "collation"},
    exp.Replace: {"replacement"},
    exp.StrPosition: {"substr", "position", "occurrence"},
    exp.Least: {"ignore_nulls"},
    exp.Greatest: {"ignore_nulls"},
    exp.Ordered: {"desc", "nulls_first", "with_fill"},
    exp.Table: {"db", "catalog", "alias"},
    exp.Subquery: {"alias"},
    exp.Upper: set(),
    exp.TimeToStr: {"format"},
    exp.Interval: {"unit"},
}
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
    exp.In: _in,
    exp.Exists: _exists,
    exp.Subquery: _scalar,
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
