"""Decides which side answers a statement, and translates it for the mirror."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pyarrow as pa
from sqlglot import exp
from sqlglot.tokenizer_core import Token

from rhei_pipeline.errors import QueryError
from rhei_pipeline.model.schema import HISTORY_NAMES, Column
from rhei_pipeline.model.semantics import Translated
from rhei_pipeline.model.set_aside import is_kept_past
from rhei_pipeline.query.translation.meaning import Catalog, StaysWithSourceError, Typed
from rhei_pipeline.query.translation.names import postgres_name, sqlite_name, written
from rhei_pipeline.query.translation.parsing import Parsed, numbered, parse
from rhei_pipeline.query.translation.placeholders import parameter_types
from rhei_pipeline.query.translation.queries import Query, outputs_alone, translate
from rhei_pipeline.query.translation.scope import TranslationContext
from rhei_pipeline.sql.read_only import WRITING, statement_tokens, way_out

Side = Literal["oltp", "olap", "cluster"]

_WRITES = {"insert", "update", "delete", "replace", "merge", "copy", "truncate"}
_DDL = {"create", "alter", "drop", "comment", "reindex", "analyze", "vacuum", "grant", "revoke"}
_TRANSACTIONS = {"begin", "start", "commit", "end", "rollback", "savepoint", "release", "abort"}
_SESSION = {"pragma", "attach", "detach", "set", "reset", "show", "listen", "notify", "lock"}
_CHANGES = {exp.Insert, exp.Update, exp.Delete, exp.Merge, exp.Into, exp.DDL}
_TOO_DEEP = "it nests too deeply to be translated"
#: Longer statements are planned again each time.
_REMEMBERED_LENGTH = 20_000
_FIRST_WORDS = (
    (_WRITES, "it writes"),
    (_DDL, "it changes the schema, or maintains the database"),
    (_TRANSACTIONS, "it belongs to a transaction"),
    (_SESSION, "it reads or changes the source's session"),
    ({"explain"}, "it explains the source's plan"),
    ({"values"}, "it reads no table"),
)


@dataclass(frozen=True, slots=True)
class Route:
    """The side that answers a statement, and why.

    Attributes:
        freshness: How new the answer would be; None where that was not asked.
    """

    engine: Side
    reason: str
    freshness: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Plan:
    """How a statement is answered.

    Attributes:
        query: The statement in the mirror's SQL; None if only the source can answer.
        names: The answer's column names, as the source gives them.
        columns: The answer's columns; None if only the values show their types.
        tables: The mirrored tables it reads.
        bound: Positions of the parameters that the mirror's statement takes, from 1; it calls them
            `$p1`, `$p2`, ....
        reads: Whether it is a query at all.
        instead: If it is none, what to do instead; None if nothing would help.
        history: Whether it reads history, in the mirror's SQL.
        scans: Whether it reads one table, but not by key, and the mirror could answer.
        masked: Why only the mirror may answer, as it may read a masked table; None if it does not.
    """

    route: Route
    query: Query | None = None
    names: tuple[str, ...] = ()
    columns: tuple[Column | None, ...] | None = None
    tables: frozenset[str] = frozenset()
    bound: tuple[int, ...] = ()
    reads: bool = True
    instead: str | None = WRITING
    history: bool = False
    scans: bool = False
    masked: str | None = None


class Router:
    """Plans statements, and caches their plans.

    Args:
        catalog: The tables that both sides hold.
        remembered: How many plans are cached; the least recently used is dropped first.
        finish: Has the last word on each plan.
    """

    def __init__(
        self,
        catalog: Catalog,
        remembered: int = 2048,
        finish: Callable[[Plan, str, Catalog], Plan] = lambda made, _sql, _catalog: made,
    ) -> None:
        self.catalog = catalog
        self._finish = finish
        self._remembered = remembered
        self._plans: OrderedDict[tuple[Any, ...], Plan] = OrderedDict()

    def plan(self, sql: str, params: Sequence[Any] = ()) -> Plan:
        """Return the plan of a statement with parameters of these types."""
        key = _key(sql, params)
        known = self._plans.get(key)
        if known is not None:
            return known
        made = self._finish(plan(sql, params, self.catalog), sql, self.catalog)
        return self._remember(key, made)

    def refused(self, sql: str, params: Sequence[Any], why: str) -> None:
        """Take note that the mirror's engine does not run what a plan asks of it."""
        known = self.plan(sql, params)
        route = Route("oltp", f"{known.route.reason}, but {why}")
        left = Plan(route, columns=known.columns, masked=known.masked)
        self._remember(_key(sql, params), left)

    def _remember(self, key: tuple[Any, ...], made: Plan) -> Plan:
        if len(key[0]) <= _REMEMBERED_LENGTH:
            self._plans[key] = made
            while len(self._plans) > self._remembered:
                self._plans.popitem(last=False)
        return made

    def parameter_types(self, sql: str) -> list[pa.DataType]:
        """Return the likely types of a statement's parameters; see `parameter_types`."""
        source = self.catalog.source
        try:
            parsed = _parsed(sql, statement_tokens(sql, source), source, bound=True)
        except Exception:  # noqa: BLE001  (see `plan`)
            return []
        return parameter_types(parsed.tree, self.catalog)


def _key(sql: str, params: Sequence[Any]) -> tuple[Any, ...]:
    return (sql, *map(_class_of, params))


def _class_of(value: object) -> object:
    """Return what a plan depends on in a parameter: its type, and an integer's width."""
    if type(value) is int:
        return (value.bit_length() + 8) // 8
    if type(value) is float:
        return float, value == value  # noqa: PLR0124  (SQLite takes a NaN for null)
    if type(value) is str:
        return str, "\0" in value  # PostgreSQL refuses it
    return type(value), getattr(value, "tzinfo", None) is None


def plan(sql: str, params: Sequence[Any], catalog: Catalog) -> Plan:
    """Decide which side answers a statement.

    The mirror answers queries that read many rows: aggregates, groups, joins, windows, CTEs, set
    operations, subqueries; but only if its answer is certain to equal the source's.
    """
    try:
        tokens = statement_tokens(sql, catalog.source)
    except QueryError as error:
        return _no_query(error.message, error.hint)
    word = tokens[0].text.lower()
    for words, reason in _FIRST_WORDS:
        if word in words:
            if word in {"values", "show", "explain", "pragma"}:
                return _to_source(reason)
            return _no_query(reason, way_out(word))
    # The parser's trees have more shapes than the rules expect, and each new version has others:
    # whatever a step trips over, the source answers.
    try:
        parsed = _parsed(sql, tokens, catalog.source, bound=bool(params))
    except Exception as error:  # noqa: BLE001
        return _to_source(_why(error, "it cannot be parsed"))
    try:
        return _plan_tree(parsed, params, catalog)
    except Exception as error:  # noqa: BLE001
        return _to_source(_why(error))


def _parsed(sql: str, tokens: Sequence[Token], source: str, *, bound: bool) -> Parsed:
    if source != "postgres" or not bound:
        return parse(sql, source, tokens)
    text, taken = numbered(sql)
    return parse(text, source, statement_tokens(text, source), taken)


def _plan_tree(parsed: Parsed, params: Sequence[Any], catalog: Catalog) -> Plan:
    seen = _seen(parsed.tree)
    if seen.kinds & _CHANGES:
        return _no_query("it writes, by itself, a CTE or INTO", WRITING)
    if not isinstance(parsed.tree, exp.Query):
        return _to_source(f"a statement of kind {parsed.tree.key.upper()} is the source's")
    return _plan_query(parsed, seen, params, catalog)


def _why(error: Exception, unforeseen: str = "its form is not translated") -> str:
    if isinstance(error, StaysWithSourceError):
        return str(error)
    return _TOO_DEEP if isinstance(error, RecursionError) else unforeseen


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a statement's tree holds, gathered in one walk.

    Attributes:
        kinds: The classes of its nodes.
        history: Whether it names a column of a temporal mirror's own.
        compared: Names of columns that it equates with something.
        analytical: What makes it one that reads many rows; None for a plain read.
    """

    kinds: frozenset[type[exp.Expr]]
    history: bool
    compared: frozenset[str]
    analytical: str | None


def _seen(tree: exp.Expr) -> _Seen:
    kinds: set[type[exp.Expr]] = set()
    compared: set[str] = set()
    history = aggregates = False
    for node in tree.walk():
        kind = type(node)
        kinds.add(kind)
        if kind is exp.Column:
            name = node.name.lower()
            history = history or name in HISTORY_NAMES or is_kept_past(name)
        elif kind is exp.EQ or kind is exp.In:
            engines = (node.this, node.args.get("expression"))
            compared |= {side.name.lower() for side in engines if isinstance(side, exp.Column)}
        elif not aggregates:
            aggregates = _aggregates(node)
    found = frozenset(kinds | {base for kind in kinds for base in kind.__mro__})
    return _Seen(found, history, frozenset(compared), _analytical(tree, found, aggregates))


def _to_source(reason: str) -> Plan:
    return Plan(Route("oltp", reason))


def _no_query(reason: str, instead: str | None) -> Plan:
    return Plan(Route("oltp", reason), reads=False, instead=instead)


def _plan_query(parsed: Parsed, seen: _Seen, params: Sequence[Any], catalog: Catalog) -> Plan:
    if seen.history:
        return Plan(
            Route("olap", "it asks for history, which the mirror alone keeps"), history=True
        )
    try:
        made = _translated(parsed, seen, params, catalog)
    except Exception as error:  # noqa: BLE001  (see `plan`)
        lead = f"it {seen.analytical}, but " if seen.analytical else ""
        columns = _columns_alone(parsed, params, catalog)
        return Plan(Route("oltp", lead + _why(error)), columns=columns)
    if seen.analytical is None:
        route = Route("oltp", "it reads rows of one table, which the source has as they are now")
        scans = bool(made.tables) and not _names_keys(seen, made.tables, catalog)
        return replace(made, route=route, scans=scans)
    if not made.tables:
        return Plan(Route("oltp", "it reads no table"), names=made.names, columns=made.columns)
    return made


def _names_keys(seen: _Seen, tables: frozenset[str], catalog: Catalog) -> bool:
    """Return whether a condition equates a column of a primary key, so that few rows are read."""
    keys = {
        name.lower()
        for table in catalog.tables.values()
        if table.schema.name in tables
        for name in table.schema.primary_key
    }
    return bool(keys & seen.compared)


def _analytical(
    tree: exp.Expr,
    kinds: frozenset[type],
    aggregates: bool,  # noqa: FBT001
) -> str | None:
    """Return what makes a query one that reads many rows; None for a plain read."""
    checks: tuple[tuple[bool, str], ...] = (
        (isinstance(tree, exp.SetOperation), "combines queries"),
        (tree.args.get("with_") is not None, "has a CTE"),
        (exp.Join in kinds, "joins tables"),
        (exp.Window in kinds, "has a window"),
        (not kinds.isdisjoint({exp.Group, exp.Having}), "groups rows"),
        (aggregates, "aggregates rows"),
        (not kinds.isdisjoint({exp.Subquery, exp.Exists}), "has a subquery"),
    )
    return next((what for is_so, what in checks if is_so), None)


def _aggregates(node: exp.Expr) -> bool:
    named = isinstance(node, exp.Anonymous) and str(node.this).lower() in {
        "total",
        "json_group_array",
        "json_group_object",
    }
    return isinstance(node, exp.AggFunc) or named


def _translated(parsed: Parsed, seen: _Seen, params: Sequence[Any], catalog: Catalog) -> Plan:
    if parsed.doubt is not None:
        raise StaysWithSourceError(parsed.doubt)
    if parsed.parameters != len(params):
        raise StaysWithSourceError(
            f"it takes {parsed.parameters} parameters, and is given {len(params)}"
        )
    context = TranslationContext(catalog, params, parsed.lists)
    query = translate(parsed.tree, None, context)
    relations = [
        table.schema.relation
        for table in catalog.tables.values()
        if table.schema.name in context.used
    ]
    query = replace(query, sql=Translated(query.sql, relations))
    names = _names(parsed, query, catalog)
    columns = tuple(_column(typed) for _, typed in query.columns)
    return Plan(
        Route("olap", f"it {seen.analytical or 'reads rows'}{_warning(query)}"),
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


def _names(parsed: Parsed, query: Query, catalog: Catalog) -> tuple[str, ...]:
    if all(name is not None for name, _ in query.columns):
        return tuple(str(name) for name, _ in query.columns)
    first: exp.Expr = parsed.tree
    while isinstance(first, exp.SetOperation | exp.Subquery):
        first = first.this
    texts = written(parsed.text, parsed.tokens)
    nodes = first.expressions
    if len(texts) != len(query.columns) or len(nodes) != len(texts):
        raise StaysWithSourceError(
            "an output column has no alias, and only the source knows its name"
        )
    named = sqlite_name if catalog.source == "sqlite" else postgres_name
    return tuple(
        name if name is not None else named(node, text)
        for (name, _), node, text in zip(query.columns, nodes, texts, strict=True)
    )


def _columns_alone(
    parsed: Parsed, params: Sequence[Any], catalog: Catalog
) -> tuple[Column | None, ...] | None:
    """Return the columns of a query that the mirror cannot answer, as far as they are known."""
    try:
        found = outputs_alone(parsed.tree, TranslationContext(catalog, params, parsed.lists))
    except Exception:  # noqa: BLE001  (see `plan`)
        return None
    return (
        None
        if found is None
        else tuple(None if typed is None else _column(typed) for typed in found)
    )
