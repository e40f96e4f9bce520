"""The names that the source gives an answer's columns."""

from collections.abc import Iterable, Sequence

from sqlglot import exp
from sqlglot.tokenizer_core import Token, TokenType

from rhei_pipeline.query.translation.meaning import StaysWithSourceError

_ENDS = {
    TokenType.FROM,
    TokenType.WHERE,
    TokenType.GROUP_BY,
    TokenType.HAVING,
    TokenType.ORDER_BY,
    TokenType.LIMIT,
    TokenType.OFFSET,
    TokenType.UNION,
    TokenType.INTERSECT,
    TokenType.EXCEPT,
    TokenType.WINDOW,
}
_NAMED_FOR_THEMSELVES: dict[type[exp.Expr], str] = {
    exp.Count: "count",
    exp.Sum: "sum",
    exp.Avg: "avg",
    exp.Min: "min",
    exp.Max: "max",
    exp.Coalesce: "coalesce",
    exp.Nullif: "nullif",
    exp.Greatest: "greatest",
    exp.Least: "least",
    exp.Length: "length",
    exp.Lower: "lower",
    exp.Upper: "upper",
    exp.Abs: "abs",
    exp.Rank: "rank",
    exp.DenseRank: "dense_rank",
    exp.RowNumber: "row_number",
    exp.Replace: "replace",
    exp.Exists: "exists",
}
#: Operators that the tree has as functions.
_OPERATORS = (
    exp.JSONBExtract,
    exp.JSONBExtractScalar,
    exp.JSONBContainsTopKey,
    exp.JSONBContainsAnyTopKeys,
    exp.JSONBContainsAllTopKeys,
    exp.ArrayContainsAll,
    exp.ArrayOverlaps,
    exp.ArrayContainedBy,
)
#: Functions that are parsed alike, and keep the name that was written.
_SYNONYMS: dict[type[exp.Expr], frozenset[str]] = {
    exp.Length: frozenset({"length", "char_length", "character_length"}),
    exp.Substring: frozenset({"substring", "substr"}),
    exp.Trim: frozenset({"btrim", "ltrim", "rtrim"}),
    exp.StrPosition: frozenset({"position", "strpos"}),
    exp.Extract: frozenset({"extract", "date_part"}),
}
#: What PostgreSQL names a cast for that is of nothing with a name of its own.
_TYPES = frozenset(
    {"bool", "date", "float8", "int4", "int8", "text", "timestamp", "uuid", "varchar"}
)
_CONNECTED = (exp.And, exp.Or, exp.Mod, exp.Is, exp.Parameter, exp.Placeholder)
_CALLED = {"jsonb_array_length", "jsonb_typeof", "cardinality", "isempty"}
_CALLED |= {f"{bound}_{what}" for bound in ("lower", "upper") for what in ("inc", "inf")}
_WITHOUT_NAME = (exp.Binary, exp.Neg, exp.Not, exp.Literal, exp.Null, exp.In, exp.Between)


def written(sql: str, tokens: Sequence[Token]) -> list[str]:
    """Return the source text of each output column of the first SELECT."""
    depth = 0
    pieces: list[str] = []
    begin: int | None = None
    for token in tokens:
        depth += (token.text == "(") - (token.text == ")")
        if begin is None:
            if depth == 0 and token.token_type is TokenType.SELECT:
                begin = token.end + 1
            continue
        if depth:
            continue
        if token.token_type in {TokenType.DISTINCT, TokenType.ALL} and not pieces:
            begin = token.end + 1 if not sql[begin : token.start].strip() else begin
        elif token.text == "," and token.token_type is TokenType.COMMA:
            pieces.append(sql[begin : token.start].strip())
            begin = token.end + 1
        elif token.token_type in _ENDS:
            return [*pieces, sql[begin : token.start].strip()]
    # The semicolon that may end the statement belongs to no column.
    return [] if begin is None else [*pieces, sql[begin:].rstrip("; \t\r\n").strip()]


def sqlite_name(node: exp.Expr, text: str) -> str:
    """Return the name SQLite gives an expression without an alias: its text."""
    _refuse_unsure(node, text)
    return text


def postgres_name(node: exp.Expr, text: str) -> str:
    """Return the name PostgreSQL gives an expression without an alias.

    Source: FigureColnameInternal in src/backend/parser/parse_target.c.
    """
    _refuse_unsure(node, text)
    node = node.unnest()
    if isinstance(node, exp.Window | exp.Filter):
        return postgres_name(node.this, text)
    if isinstance(node, exp.Case):
        default = node.args.get("default")
        inner = postgres_name(default, text) if default is not None else "?column?"
        strong = isinstance(default, exp.Column | exp.Func) and not isinstance(default, exp.Case)
        return inner if strong else "case"
    if isinstance(node, exp.Column | exp.Dot):
        named = node.expression if isinstance(node, exp.Dot) else node.this
        name: str = named.this
        return name if named.args.get("quoted") else name.lower()
    for kind, named in _NAMED_FOR_THEMSELVES.items():
        # Synonyms are parsed alike, and PostgreSQL names a column for the one that was written.
        if isinstance(node, kind) and text.lower().lstrip("( ").startswith(named):
            return named
    if isinstance(node, exp.Anonymous) and str(node.this).lower() in _CALLED:
        return str(node.this).lower()
    if _is_nameless(node):
        return "?column?"
    raise StaysWithSourceError("an output column has no alias, and only the source knows its name")


def _is_nameless(node: exp.Expr) -> bool:
    if isinstance(node, _WITHOUT_NAME) and not isinstance(node, exp.Func):
        return True
    return isinstance(node, (*_OPERATORS, *_CONNECTED))


def _refuse_unsure(node: exp.Expr, text: str) -> None:
    if "--" in text or "/*" in text:
        raise StaysWithSourceError("an output column without an alias holds a comment")
    if isinstance(node.unnest(), exp.Column) and "+" in text:
        raise StaysWithSourceError("an output column without an alias begins with a plus")


def refuse_namesake(wanted: str, outputs: Iterable[exp.Expr]) -> None:
    """Refuse a name of PostgreSQL's that an output without an alias may have, too.

    Raises:
        StaysWithSourceError: Only the source knows which of them is meant.
    """
    for each in outputs:
        named = isinstance(each, exp.Alias | exp.Column | exp.Star)
        if not named and _may_be_called(each.unnest(), wanted):
            raise StaysWithSourceError(f"an output column without an alias may be {wanted!r}, too")


def _may_be_called(node: exp.Expr, wanted: str) -> bool:
    if isinstance(node, exp.Window | exp.Filter | exp.Bracket):
        return _may_be_called(node.this.unnest(), wanted)
    if isinstance(node, exp.Column | exp.Dot):
        name: str = (node.expression if isinstance(node, exp.Dot) else node.this).name
        return name == wanted
    if isinstance(node, exp.Case | exp.Cast):
        inner = node.args.get("default") if isinstance(node, exp.Case) else node.this
        own = {"case"} if isinstance(node, exp.Case) else _TYPES
        return wanted in own or (inner is not None and _may_be_called(inner.unnest(), wanted))
    if _is_nameless(node) or isinstance(node, exp.Anonymous):
        return wanted == ("?column?" if _is_nameless(node) else node.name.lower())
    known = _SYNONYMS.get(type(node)) or {_NAMED_FOR_THEMSELVES.get(type(node), wanted)}
    return wanted in known
