"""Which side answers a statement, and why; and for the mirror, the statement in its words."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import pyarrow as pa
import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError
from sqlglot.tokenizer_core import Token, TokenType

from rhei_pipeline.errors import QueryError, SchemaError
from rhei_pipeline.model.schema import HISTORY_FIELDS, Column
from rhei_pipeline.query.translation.meaning import Catalog, StaysWithSourceError, Typed
from rhei_pipeline.query.translation.names import postgres_name, sqlite_name, written
from rhei_pipeline.query.translation.placeholders import parameter_types
from rhei_pipeline.query.translation.queries import Query, translate
from rhei_pipeline.query.translation.scope import TranslationContext
from rhei_pipeline.sql.read_only import statement_tokens

Side = Literal["oltp", "olap"]

_WRITES = {"insert", "update", "delete", "replace", "merge", "copy", "truncate"}
_DDL = {"create", "alter", "drop", "comment", "reindex", "analyze", "vacuum", "grant", "revoke"}
_TRANSACTIONS = {"begin", "start", "commit", "end", "rollback", "savepoint", "release", "abort"}
_SESSION = {"pragma", "attach", "detach", "set", "reset", "show", "listen", "notify", "lock"}
_CHANGES = (exp.Insert, exp.Update, exp.Delete, exp.Merge, exp.Into, exp.DDL)
_DEFAULT_SCHEMAS = {"", "main", "public"}
_HISTORY = {found.name for found in HISTORY_FIELDS}
#: The parser's trees have more shapes than the rules expect, and each new version has others: a
#: tree that a rule trips over is one that is not translated.
_UNFORESEEN = (
    StaysWithSourceError,
    SchemaError,
    RecursionError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)
_FIRST_WORDS = (
    (_WRITES, "it writes"),
    (_DDL, "it changes the schema, or tends the database"),
    (_TRANSACTIONS, "it belongs to a transaction"),
    (_SESSION, "it looks at or changes the source's session"),
    ({"explain"}, "it explains the source's plan"),
    ({"values"}, "it reads no table"),
)


@dataclass(frozen=True, slots=True)
class Route:
    """The side that answers a statement, and why."""

    engine: Side
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """How a statement is answered.

    Attributes:
        query: The statement in the mirror's words; None where only the source can answer.
        names: The answer's column names, as the source gives them.
        columns: What the answer's columns are; None where only the values can tell.
        tables: The mirrored tables it reads.
        bound: Places of the parameters that the mirror's statement takes, from 1; it calls them
            `$p1`, `$p2`, ....
        reads: Whether it is a query at all.
        history: Whether it asks for history, in the mirror's SQL.
        scans: Whether it reads one table otherwise than by key, and the mirror could answer.
    """

    route: Route
    query: Query | None = None
    names: tuple[str, ...] = ()
    columns: tuple[Column | None, ...] | None = None
    tables: frozenset[str] = frozenset()
    bound: tuple[int, ...] = ()
    reads: bool = True
    history: bool = False
    scans: bool = False


class Router:
    """Plans statements, and remembers the plans of those it has seen.

    Args:
        catalog: What both sides hold.
        remembered: How many plans are kept; the one unused for longest goes first.
    """

    def __init__(self, catalog: Catalog, remembered: int = 2048) -> None:
        self.catalog = catalog
        self._remembered = remembered
        self._plans: OrderedDict[tuple[Any, ...], Plan] = OrderedDict()

    def plan(self, sql: str, params: Sequence[Any] = ()) -> Plan:
        """Return the plan of a statement with parameters of these types."""
        key = (sql, *map(_class_of, params))
        known = self._plans.get(key)
        if known is None:
            known = self._plans[key] = plan(sql, params, self.catalog)
            while len(self._plans) > self._remembered:
                self._plans.popitem(last=False)
        return known

    def parameter_types(self, sql: str) -> list[pa.DataType]:
        """Return the likely types of a statement's parameters; see `parameter_types`."""
        source = self.catalog.source
        try:
            text = _with_places(sql, statement_tokens(sql, source), (None,), source)
            parsed = sqlglot.parse_one(text, dialect=source)
        except (QueryError, SqlglotError, RecursionError):
            return []
        return parameter_types(parsed, self.catalog)


def _class_of(value: object) -> object:
    """Return what of a parameter a plan depends on: its type, and how wide an integer is."""
    if type(value) is int:
        return (value.bit_length() + 8) // 8
    return type(value), getattr(value, "tzinfo", None) is None


def plan(sql: str, params: Sequence[Any], catalog: Catalog) -> Plan:
    """Decide which side answers a statement.

    The mirror answers what reads many rows: aggregates, groups, joins, windows, CTEs, set
    operations, subqueries; and only where its answer is certain to be the source's.
    """
    try:
        tokens = statement_tokens(sql, catalog.source)
    except QueryError as error:
        return _to_source(error.message, reads=False)
    word = tokens[0].text.lower()
    for words, reason in _FIRST_WORDS:
        if word in words:
            return _to_source(reason, reads=word in {"values", "show", "explain", "pragma"})
    try:
        text = _with_places(sql, tokens, params, catalog.source)
        parsed = sqlglot.parse_one(text, dialect=catalog.source)
    except (SqlglotError, RecursionError):
        return _to_source("it cannot be parsed")
    if next(parsed.find_all(*_CHANGES), None) is not None:
        return _to_source("it writes, by itself, a CTE or INTO", reads=False)
    if not isinstance(parsed, exp.Query):
        return _to_source(f"a statement of kind {parsed.key.upper()} is the source's")
    return _plan_query(parsed, text, params, catalog)


def tables_read(sql: str, dialect: str) -> frozenset[str]:
    """Return the tables that a statement names, in lower case, with and without their schemas.

    None where it cannot be parsed.
    """
    try:
        parsed = sqlglot.parse_one(sql, dialect="duckdb" if dialect == "datafusion" else dialect)
    except (SqlglotError, RecursionError):
        return frozenset()
    named = [(table.db.lower(), table.name.lower()) for table in parsed.find_all(exp.Table)]
    full = {f"{schema}.{name}" if schema else f"public.{name}" for schema, name in named}
    return frozenset(full | {name for schema, name in named if schema in _DEFAULT_SCHEMAS})


def _to_source(reason: str, *, reads: bool = True) -> Plan:
    return Plan(Route("oltp", reason), reads=reads)


def _plan_query(parsed: exp.Query, sql: str, params: Sequence[Any], catalog: Catalog) -> Plan:
    if any(found.name.lower() in _HISTORY for found in parsed.find_all(exp.Column)):
        return Plan(
            Route("olap", "it asks for history, which the mirror alone keeps"), history=True
        )
    analytical = _analytical(parsed)
    try:
        made = _translated(parsed, sql, params, catalog)
    except _UNFORESEEN as error:
        reason = (
            str(error) if isinstance(error, StaysWithSourceError) else "its form is not translated"
        )
        lead = f"it {analytical}, but " if analytical else ""
        columns = _columns_alone(parsed, params, catalog)
        return Plan(Route("oltp", lead + reason), columns=columns)
    if analytical is None:
        route = Route("oltp", "it reads rows of one table, which the source has as they are now")
        scans = bool(made.tables) and not _names_keys(parsed, made.tables, catalog)
        return replace(made, route=route, scans=scans)
    if not made.tables:
        return Plan(Route("oltp", "it reads no table"), names=made.names, columns=made.columns)
    return made


def _names_keys(parsed: exp.Query, tables: frozenset[str], catalog: Catalog) -> bool:
    """Tell whether a condition equates a column of a primary key, so that few rows are read."""
    keys = {
        name.lower()
        for table in catalog.tables.values()
        if table.schema.name in tables
        for name in table.schema.primary_key
    }
    compared = [
        side
        for found in parsed.find_all(exp.EQ, exp.In)
        for side in (found.this, found.args.get("expression"))
    ]
    return any(isinstance(side, exp.Column) and side.name.lower() in keys for side in compared)


def _analytical(parsed: exp.Query) -> str | None:
    """Say what makes a query one that reads many rows; None for a plain read."""
    checks: tuple[tuple[bool, str], ...] = (
        (isinstance(parsed, exp.SetOperation), "combines queries"),
        (parsed.args.get("with_") is not None, "has a CTE"),
        (parsed.find(exp.Join) is not None, "joins tables"),
        (parsed.find(exp.Window) is not None, "has a window"),
        (parsed.find(exp.Group, exp.Having) is not None, "groups rows"),
        (any(map(_aggregates, parsed.walk())), "aggregates rows"),
        (parsed.find(exp.Subquery, exp.Exists) is not None, "has a subquery"),
        (any(found.args.get("query") for found in parsed.find_all(exp.In)), "has a subquery"),
    )
    return next((what for is_so, what in checks if is_so), None)


def _aggregates(node: exp.Expr) -> bool:
    if isinstance(node, exp.Max | exp.Min) and node.expressions:
        return False
    named = isinstance(node, exp.Anonymous) and str(node.this).lower() in {
        "total",
        "json_group_array",
        "json_group_object",
    }
    return isinstance(node, exp.AggFunc) or named


def _translated(parsed: exp.Query, sql: str, params: Sequence[Any], catalog: Catalog) -> Plan:
    context = TranslationContext(catalog, params)
    query = translate(parsed, None, context)
    names = _names(parsed, sql, query, catalog)
    columns = tuple(_column(typed) for _, typed in query.columns)
    return Plan(
        Route("olap", f"it {_analytical(parsed) or 'reads rows'}{_warning(query)}"),
        query,
        names,
        columns,
        frozenset(context.used),
        tuple(sorted(context.bound)),
    )


def _warning(query: Query) -> str:
    if any(typed.inexact for _, typed in query.columns):
        return "; sums of reals may differ in their last digits, as they do with the order of rows"
    return ""


def _column(typed: Typed) -> Column:
    if typed.column is not None:
        return typed.column
    return Column("", typed.type)


def _names(parsed: exp.Query, sql: str, query: Query, catalog: Catalog) -> tuple[str, ...]:
    if all(name is not None for name, _ in query.columns):
        return tuple(str(name) for name, _ in query.columns)
    first: exp.Expr = parsed
    while isinstance(first, exp.SetOperation | exp.Subquery):
        first = first.this
    texts = written(sql, statement_tokens(sql, catalog.source))
    nodes = first.expressions
    if len(texts) != len(query.columns) or len(nodes) != len(texts):
        raise StaysWithSourceError(
            "an output column has no alias, and a name that only the source knows"
        )
    # Parameters were renamed for the parser; the source names columns by the text it was given.
    if any(":rhei_" in text for text in texts):
        raise StaysWithSourceError("an output column has a parameter, and no alias")
    named = sqlite_name if catalog.source == "sqlite" else postgres_name
    return tuple(
        name if name is not None else named(node, text)
        for (name, _), node, text in zip(query.columns, nodes, texts, strict=True)
    )


def _columns_alone(
    parsed: exp.Query, params: Sequence[Any], catalog: Catalog
) -> tuple[Column | None, ...] | None:
    """Tell what columns a query has that the mirror cannot answer, as far as can be told."""
    if not isinstance(parsed, exp.Select) or parsed.args.get("from_") is None:
        return None
    bare = exp.Select(
        expressions=[found.copy() for found in parsed.expressions],
        from_=parsed.args["from_"].copy(),
        joins=[found.copy() for found in parsed.args.get("joins") or []],
    )
    if any(isinstance(found, exp.Star) for found in bare.expressions):
        return _columns_of(bare, params, catalog)
    found: list[Column | None] = []
    for each in bare.expressions:
        single = bare.copy()
        single.set("expressions", [each.copy()])
        columns = _columns_of(single, params, catalog)
        if columns is not None and len(columns) != 1:
            return None
        found.append(columns[0] if columns else None)
    return tuple(found) if any(found) else None


def _columns_of(
    select: exp.Select, params: Sequence[Any], catalog: Catalog
) -> tuple[Column, ...] | None:
    try:
        query = translate(select, None, TranslationContext(catalog, params))
    except _UNFORESEEN:
        return None
    return tuple(_column(typed) for _, typed in query.columns)


def _with_places(sql: str, tokens: Sequence[Token], params: Sequence[Any], source: str) -> str:
    """Give every parameter a name that tells its place."""
    if source == "postgres":
        return _numbered(sql) if params else sql
    text, place = sql, 0
    edits: list[tuple[int, int, int]] = []
    for token, after in zip(tokens, [*tokens[1:], None], strict=True):
        if token.token_type is not TokenType.PLACEHOLDER:
            continue
        end = token.end + 1
        if after is not None and after.token_type is TokenType.NUMBER and after.start == end:
            place, end = int(after.text), after.end + 1
        else:
            place += 1
        edits.append((token.start, end, place))
    for start, end, number in reversed(edits):
        text = f"{text[:start]}:rhei_{number}{text[end:]}"
    return text


def _numbered(sql: str) -> str:
    """Write `$1`, `$2` for psycopg's `%s`, which it replaces wherever it stands."""
    pieces = sql.replace("%%", "\0").split("%s")
    if any("%" in piece for piece in pieces):
        raise SqlglotError("a placeholder of another form")
    numbered = pieces[0] + "".join(f"${place}{piece}" for place, piece in enumerate(pieces[1:], 1))
    return numbered.replace("\0", "%")


def unanswered(found: pa.Table, query: Query) -> bool:
    """Tell whether a LIMIT cut between rows that its ORDER BY does not tell apart.

    Args:
        found: The mirror's answer, with one row more than the limit and the hidden keys.
        query: What was asked.
    """
    if query.limit is None or found.num_rows <= query.limit or query.limit == 0:
        return False
    last = found.slice(query.limit - 1, 2)
    for place, key in enumerate(query.ordering):
        first, second = last.column(len(query.columns) + place).to_pylist()
        if first != second and not (key.inexact and _near(first, second)):
            return False
    return True


def _near(first: float | None, second: float | None) -> bool:
    if first is None or second is None:
        return first is second
    return abs(first - second) <= 1e-9 * max(abs(first), abs(second))
