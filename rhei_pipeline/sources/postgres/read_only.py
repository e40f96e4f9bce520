"""What a statement for PostgreSQL is, by PostgreSQL's own grammar: one that only reads, or refused.

Only node types and fields that are known to be harmless pass, wherever in the tree they stand, so
that comments, escapes, quotes and nesting hide nothing. What a read calls is collected by its
decoded names; `postgres_functions` looks up in the server's catalogue what these do.
Source: src/include/nodes/parsenodes.h and src/backend/parser/gram.y of PostgreSQL, by libpg_query.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from pglast import ast, parser

from rhei_pipeline.errors import QueryError
from rhei_pipeline.sql.read_only import BATCHED, OF_FILES, SETTING, WRITING, no_unicode

#: How many texts are remembered; an application repeats its few.
_REMEMBERED = 2048
_WAYS_OUT = {
    "TransactionStmt": BATCHED,
    "VariableSetStmt": SETTING,
    "CopyStmt": OF_FILES,
    "LoadStmt": OF_FILES,
    "LockStmt": BATCHED,
}
#: All that a query is made of; a statement of another kind within one is none of these.
_MADE_OF = """
A_ArrayExpr A_Const A_Expr A_Indices A_Indirection A_Star Alias BitString Boolean BooleanTest
BoolExpr CTECycleClause CTESearchClause CaseExpr CaseWhen CoalesceExpr CollateClause ColumnDef
ColumnRef CommonTableExpr Float FuncCall GroupingFunc GroupingSet Integer JoinExpr
JsonAggConstructor JsonArgument JsonArrayAgg JsonArrayConstructor JsonArrayQueryConstructor
JsonBehavior JsonFormat JsonFuncExpr JsonIsPredicate JsonKeyValue JsonObjectAgg
JsonObjectConstructor JsonOutput JsonParseExpr JsonReturning JsonScalarExpr JsonSerializeExpr
JsonTable JsonTableColumn JsonTablePathSpec JsonValueExpr List MinMaxExpr NamedArgExpr NullTest
ParamRef RangeFunction RangeSubselect RangeTableFunc RangeTableFuncCol RangeTableSample RangeVar
ResTarget RowExpr SQLValueFunction SelectStmt SortBy String SubLink TypeCast TypeName WindowDef
WithClause XmlExpr XmlSerialize
"""
_NODES = set(_MADE_OF.split())
_REFUSED_FIELDS = {"intoClause", "lockingClause"}
_KNOWN = (
    {name for node in _NODES - {"List"} for name in getattr(ast, node).__slots__}
    # How the tree's text writes constants and lists.
    | {"boolval", "bsval", "fval", "ival", "sval", "isnull", "items"}
    | _NODES
) - _REFUSED_FIELDS
#: What holds nothing but names and constants.
_LEAVES = {"A_Const", "ColumnRef", "ParamRef", "RangeVar", "String", "funcname", "method", "names"}
_EXPLAIN_OPTIONS = {
    "analyze",
    "buffers",
    "costs",
    "format",
    "generic_plan",
    "memory",
    "serialize",
    "settings",
    "summary",
    "timing",
    "verbose",
    "wal",
}
#: What older servers, whose grammar does not know these words, take for calls of functions.
_CALLS_TO_OLDER = {
    "JsonArrayAgg": "json_arrayagg",
    "JsonArrayConstructor": "json_array",
    "JsonArrayQueryConstructor": "json_array",
    "JsonObjectAgg": "json_objectagg",
    "JsonObjectConstructor": "json_object",
    "JsonParseExpr": "json",
    "JsonScalarExpr": "json_scalar",
    "JsonSerializeExpr": "json_serialize",
    "JsonTable": "json_table",
    "JSON_EXISTS_OP": "json_exists",
    "JSON_QUERY_OP": "json_query",
    "JSON_VALUE_OP": "json_value",
}
_COMPARED = ("<", "<=", ">", ">=")
_PLACEHOLDER = re.compile(r"%(.?)", re.DOTALL)
_JSON_TOKEN = re.compile(r'[{}\[\]]|"(?:[^"\\]|\\.)*"|[^\s{}\[\],:"]+')

#: A name as the catalogue has it, behind its schema's; that is empty where the path finds it.
Name = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Call:
    """A function's call.

    Attributes:
        arguments: How many there are; None where more than their number decides.
    """

    name: Name
    arguments: int | None


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement that reads, as far as its text tells, and what it names.

    Attributes:
        text: What the server is to be sent; its parameters are `$1`, `$2`, ....
        is_fetched: Whether a cursor can have its rows; a plan or a setting is short.
        calls: The functions that are called.
        fields: Names behind a row, as in `t.name`: also a way to call a function of the row.
        operators: The operators, also those that the grammar implies.
        types: What is cast to, also by a call of that name.
        relations: The tables and views, and the names of common table expressions.
    """

    text: str
    is_fetched: bool = True
    calls: frozenset[Call] = frozenset()
    fields: frozenset[str] = frozenset()
    operators: frozenset[Name] = frozenset()
    types: frozenset[Name] = frozenset()
    relations: frozenset[Name] = frozenset()


@lru_cache(maxsize=_REMEMBERED)
def reading_statement(sql: str, *, parameters: int = 0) -> Statement:
    """Return the one reading statement that a text is.

    Args:
        sql: As the caller gave it.
        parameters: How many it is given for its `%s`; without any, a `%` is an operator.

    Raises:
        QueryError: It is something else; names what, and the way out.
    """
    text = _numbered(sql, parameters) if parameters else sql
    found = _parsed(text)
    if len(found) != 1:
        many = f"this is {len(found)}" if found else "this is none"
        raise QueryError(
            f"a query is one statement, and {many}",
            hint="run them one by one" if found else None,
        )
    ((kind, statement),) = found[0]["stmt"].items()
    if kind == "VariableShowStmt":
        return Statement(text, is_fetched=False)
    if kind == "ExplainStmt":
        _refuse_options(statement)
        return _collected(statement["query"], _written_anew(text), is_fetched=False)
    return _collected(found[0]["stmt"], text, is_fetched=True)


def _parsed(text: str) -> list[dict[str, Any]]:
    """Return the statements of a text as the grammar has them."""
    if "\0" in text:
        raise QueryError("the statement holds a NUL, which no text of PostgreSQL does")
    try:
        written = parser.parse_sql_json(text)
    except UnicodeEncodeError:
        raise no_unicode() from None
    except parser.ParseError as error:
        raise QueryError(f"PostgreSQL's grammar refuses the statement: {error.args[0]}") from error
    try:
        tree = json.loads(written)
    except RecursionError:
        tree = _deeply_loaded(written)
    statements: list[dict[str, Any]] = tree["stmts"]
    return statements


def _deeply_loaded(written: str) -> Any:  # noqa: ANN401  (any JSON)
    """Read JSON of any depth, slowly: a thousand terms of a sum are as many levels."""
    root: list[Any] = []
    held: list[tuple[Any, list[Any]]] = [(root, [])]
    for match in _JSON_TOKEN.finditer(written):
        piece = match[0]
        if piece in "]}":
            held.pop()
            continue
        container, keys = held[-1]
        opened: Any = {"{": {}, "[": []}.get(piece)
        value = json.loads(piece) if opened is None else opened
        if isinstance(container, list):
            container.append(value)
        elif keys:
            container[keys.pop()] = value
        else:
            keys.append(value)
        if opened is not None:
            held.append((opened, []))
    return root[0]


def _numbered(sql: str, parameters: int) -> str:
    """Write `$1`, `$2` for psycopg's `%s`, which stands for a parameter wherever it is written."""
    place = 0

    def numbered(match: re.Match[str]) -> str:
        nonlocal place
        if match[1] == "%":
            return "%"
        if match[1] not in ("s", "b", "t"):
            raise QueryError(
                f"'%{match[1]}' is no placeholder",
                hint="a parameter is written %s, and a percent sign beside parameters %%",
            )
        place += 1
        return f"${place}"

    text = _PLACEHOLDER.sub(numbered, sql)
    if place != parameters:
        raise QueryError(
            f"the statement takes {place} parameters, and is given {parameters}",
            hint="give one for each %s",
        )
    return text


def _refuse_options(explain: dict[str, Any]) -> None:
    for option in explain.get("options", ()):
        name = option["DefElem"]["defname"]
        if name not in _EXPLAIN_OPTIONS:
            raise QueryError(
                f"EXPLAIN has no option {name!r}",
                hint=f"it has {', '.join(sorted(_EXPLAIN_OPTIONS))}",
            )
    if next(iter(explain["query"])) != "SelectStmt":
        raise _not_reading(next(iter(explain["query"])), "EXPLAIN of a statement that")


def _written_anew(text: str) -> str:
    """Rebuild a statement from its tree, so that the server sees nothing beside what we saw."""
    try:
        written = str(parser.deparse_protobuf(parser.parse_sql_protobuf(text)))
    except parser.DeparseError as error:
        raise QueryError("EXPLAIN of this statement is not supported") from error
    if _without_places(_parsed(text)) != _without_places(_parsed(written)):
        raise QueryError("EXPLAIN of this statement is not supported")
    return written


def _without_places(node: Any) -> Any:  # noqa: ANN401  (any JSON)
    """Return a tree without where its parts stand in the text."""
    if isinstance(node, list):
        return [_without_places(part) for part in node]
    if not isinstance(node, dict):
        return node
    return {
        key: _without_places(value)
        for key, value in node.items()
        if not re.search(r"(location|_start|_end|_len)$", key)
    }


def _not_reading(node: str, lead: str = "") -> QueryError:
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", node.removesuffix("Stmt")).upper()
    lead = lead or "a statement that"
    return QueryError(f"{lead} is no query: it is {words}", hint=_WAYS_OUT.get(node, WRITING))


def _collected(tree: dict[str, Any], text: str, *, is_fetched: bool) -> Statement:
    """Look at every node and field of a tree, and refuse one that is not known."""
    found = _Found()
    waiting: list[Any] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting += node
            continue
        for key, value in node.items():
            if key not in _KNOWN:
                raise _refused(key, value)
            collect = _COLLECTORS.get(key)
            if collect is not None:
                collect(found, value)
            if key not in _LEAVES and isinstance(value, dict | list):
                waiting.append(value)
    return Statement(
        text,
        is_fetched,
        frozenset(found.calls),
        frozenset(found.fields),
        frozenset(found.operators),
        frozenset(found.types),
        frozenset(found.relations),
    )


def _refused(key: str, value: Any) -> QueryError:  # noqa: ANN401  (any JSON)
    if key == "intoClause":
        return QueryError("SELECT INTO makes a table", hint=WRITING)
    if key == "lockingClause":
        strength = value[0]["LockingClause"]["strength"].removeprefix("LCS_FOR")
        return QueryError(
            f"FOR {strength} locks rows", hint="lock them in execute_batch's transaction"
        )
    if key in {"InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt"}:
        word = key.removesuffix("Stmt").upper()
        return QueryError(f"the query changes data by {word}", hint=WRITING)
    return _not_reading(key)


@dataclass(slots=True)
class _Found:
    """What a tree names, as far as it was walked."""

    calls: set[Call] = field(default_factory=set)
    fields: set[str] = field(default_factory=set)
    operators: set[Name] = field(default_factory=set)
    types: set[Name] = field(default_factory=set)
    relations: set[Name] = field(default_factory=set)

    def call(self, node: dict[str, Any]) -> None:
        """Note a function; a call with one argument may also be a cast."""
        name = _name(node["funcname"])
        arguments: int | None = len(node.get("args", ()))
        if node.get("func_variadic") or node.get("agg_within_group"):
            arguments = None
        self.calls.add(Call(name, arguments))
        if arguments == 1:
            self.types.add(name)

    def expression(self, node: dict[str, Any]) -> None:
        """Note an operator; BETWEEN stands for several."""
        schema, name = _name(node["name"])
        if "BETWEEN" in node["kind"]:
            self.operators.update(("", compared) for compared in _COMPARED)
        else:
            self.operators.add((schema, name))

    def comparison(self, node: dict[str, Any]) -> None:
        """Note the operator of IN, ANY, USING, NATURAL or CASE, which need not be written."""
        if "operName" in node:
            self.operators.add(_name(node["operName"]))
        else:
            self.operators.add(("", "="))

    def ordering(self, node: dict[str, Any]) -> None:
        """Note the operator of ORDER BY ... USING."""
        if "useOp" in node:
            self.operators.add(_name(node["useOp"]))

    def column(self, node: dict[str, Any]) -> None:
        """Note the last parts of a name of several."""
        self.fields.update(_strings(node["fields"][1:]))

    def indirection(self, node: dict[str, Any]) -> None:
        """Note the fields that are taken from a value."""
        self.fields.update(_strings(node["indirection"]))

    def sample(self, node: dict[str, Any]) -> None:
        """Note the function that draws a sample."""
        self.calls.add(Call(_name(node["method"]), None))

    def cast(self, node: dict[str, Any]) -> None:
        """Note a type."""
        if "names" in node:
            schema, name = _name(node["names"])
            # An array's type has a name of its own, and is cast to by its elements.
            self.types.update({(schema, name), (schema, name.removeprefix("_"))})

    def relation(self, node: dict[str, Any]) -> None:
        """Note a table, a view, or what a common table expression is called."""
        self.relations.add((node.get("schemaname", ""), node["relname"]))

    def older(self, node: dict[str, Any]) -> None:
        """Note the function for which an older server takes a JSON expression."""
        self.calls.add(Call(("", _CALLS_TO_OLDER[node["op"]]), None))


def _calling(name: str) -> Callable[[_Found, dict[str, Any]], None]:
    return lambda found, _: found.calls.add(Call(("", name), None))


_COLLECTORS: dict[str, Callable[[_Found, dict[str, Any]], None]] = {
    **{node: _calling(name) for node, name in _CALLS_TO_OLDER.items()},
    "FuncCall": _Found.call,
    "A_Expr": _Found.expression,
    "SubLink": _Found.comparison,
    "JoinExpr": _Found.comparison,
    "CaseExpr": _Found.comparison,
    "SortBy": _Found.ordering,
    "ColumnRef": _Found.column,
    "A_Indirection": _Found.indirection,
    "RangeTableSample": _Found.sample,
    "TypeName": _Found.cast,
    "typeName": _Found.cast,
    "RangeVar": _Found.relation,
    "JsonFuncExpr": _Found.older,
}


def _strings(nodes: list[dict[str, Any]]) -> Iterator[str]:
    for node in nodes:
        if "String" in node:
            yield node["String"]["sval"]


def _name(nodes: list[dict[str, Any]]) -> Name:
    """Return a name and its schema's; before that may stand this database's."""
    *_, schema, name = "", *_strings(nodes)
    return schema, name
