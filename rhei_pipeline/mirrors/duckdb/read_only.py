"""What may be asked of a DuckDB mirror: one statement that reads, judged by DuckDB's own parser.

DuckDB gives the tree of a SELECT as JSON. Every form in it, every function and every view of the
catalogue has to be on a list; what is on none is refused.
"""

import json
import math
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import duckdb

from rhei_pipeline.errors import QueryError
from rhei_pipeline.mirrors.duckdb.functions import GROWING, REFUSED_VIEWS, may_call
from rhei_pipeline.model.schema import RESERVED_PREFIX
from rhei_pipeline.sql.read_only import (
    READING,
    file_refused,
    is_file_like,
    no_unicode,
    too_deep,
    way_out,
)

#: How many texts are remembered as harmless, and the longest one; an application repeats its few.
_REMEMBERED = 1024
_REMEMBERED_LENGTH = 65_536
#: The longest text that a function may make of one value, and the longest list, by the numbers in
#: the statement: DuckDB works on 2048 rows at a time, outside of its memory limit.
_MOST_GROWTH = 2**18
#: Of these the size is a number among the arguments, and grows with that of what they are given.
_MULTIPLYING = {"array_resize", "generate_series", "list_resize", "range", "repeat"}
#: The one housekeeping table that is for reading.
_SHOWN = {"_rhei_dead_letter"}
_READING = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
_FORMS = _READING | {
    "BASE_TABLE",
    "COLUMN_DATA",
    "EMPTY",
    "EXPRESSION_LIST",
    "JOIN",
    "PIVOT",
    "SHOW_REF",
    "SUBQUERY",
    "TABLE_FUNCTION",
    "DISTINCT_MODIFIER",
    "LIMIT_MODIFIER",
    "LIMIT_PERCENT_MODIFIER",
    "ORDER_MODIFIER",
    "ASCENDING",
    "DESCENDING",
    "ORDER_DEFAULT",
}
_EXPLAIN_OPTIONS = {"explain", "(", ")", ",", "analyze", "format", "json", "text", "true", "on"}
_Node = Mapping[str, Any]


class DuckDBGuard:
    """Judges statements, and remembers those it let through."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, str] = OrderedDict()

    def admitted(self, sql: str, cursor: duckdb.DuckDBPyConnection) -> str:
        """Return the statement to run: the same, or an EXPLAIN of what was judged.

        Raises:
            QueryError: Names what is refused, and the way out.
        """
        known = self._known.get(sql)
        if known is None:
            known = _judged(sql, cursor)
            if len(sql) <= _REMEMBERED_LENGTH:
                self._known[sql] = known
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return known


def _judged(sql: str, cursor: duckdb.DuckDBPyConnection) -> str:
    try:
        tree = _tree(sql, cursor)
        if tree.get("error_type") == "not implemented":
            return _explaining(sql, cursor)
    except RecursionError:
        raise too_deep() from None
    _refuse_forms(tree, cursor)
    return sql


def _tree(sql: str, cursor: duckdb.DuckDBPyConnection) -> _Node:
    """Return the tree of one SELECT; of anything else what DuckDB says of it."""
    try:
        found = cursor.execute("select json_serialize_sql(?::varchar)", [sql]).fetchall()
    except UnicodeEncodeError:
        raise no_unicode() from None
    tree: _Node = json.loads(found[0][0])
    if "max_expression_depth" in tree.get("error_message", ""):
        raise too_deep()  # DuckDB would have a setting changed, which no query may
    if tree.get("error_type") == "parser":
        raise QueryError(f"DuckDB refused the query: Parser Error: {tree['error_message']}")
    if tree["error"] and tree["error_type"] != "not implemented":
        raise QueryError(f"DuckDB refused the query: {tree['error_message']}")
    pieces = len(tree.get("statements", [0]))
    if not pieces:
        raise QueryError("a query is one statement, and this is none")
    if pieces > 1:
        raise QueryError(
            f"a query is one statement, and this is {pieces}", hint="run them one by one"
        )
    return tree


def _explaining(sql: str, cursor: duckdb.DuckDBPyConnection) -> str:
    """Return an EXPLAIN, rebuilt from what it explains, which is judged as if it ran alone."""
    statements = cursor.extract_statements(sql)
    if len(statements) != 1:
        raise QueryError(f"a query is one statement, and this is {len(statements)}")
    if _kind(statements[0]) != "EXPLAIN":
        raise _not_reading(statements[0])
    skipped = list[str]()
    for start, text in _words(sql):
        if text not in _EXPLAIN_OPTIONS:
            break
        if text == "(" and _is_select(sql[start:], cursor):
            break
        skipped.append(text)
    explained = sql[start:]
    tree = _tree(explained, cursor)
    if tree["error"]:
        inner = cursor.extract_statements(explained)
        raise _not_reading(inner[0]) if inner else QueryError("this explains nothing")
    _refuse_forms(tree, cursor)
    options = [word for word in ("analyze",) if word in skipped]
    if "json" in skipped:
        options.append("format json")
    return f"explain ({', '.join(options)}) {explained}" if options else f"explain {explained}"


def _words(sql: str) -> Iterator[tuple[int, str]]:
    """Yield DuckDB's tokens but for comments, each with its place in the text."""
    tokens = duckdb.tokenize(sql)
    # Its places count bytes.
    data = sql.encode()
    ends = [place for place, _ in tokens[1:]] + [len(data)]
    for (place, kind), end in zip(tokens, ends, strict=True):
        if kind is not duckdb.token_type.comment:
            text = re.split(rb"\s|--|/\*", data[place:end], maxsplit=1)[0].decode(errors="replace")
            yield len(data[:place].decode()), text.lower()


def _is_select(sql: str, cursor: duckdb.DuckDBPyConnection) -> bool:
    try:
        return not _tree(sql, cursor)["error"]
    except QueryError:
        return False


def _kind(statement: duckdb.Statement) -> str:
    try:
        return statement.type.name
    except ValueError:  # DuckDB has kinds that its Python module has no name for
        return "this"


def _not_reading(statement: duckdb.Statement) -> QueryError:
    kind = _kind(statement)
    if kind == "MULTI":
        return QueryError("PIVOT without its values makes a type", hint="name them: on x in (...)")
    return QueryError(f"{kind} is not a reading statement", hint=way_out(kind.lower()))


def _refuse_forms(tree: _Node, cursor: duckdb.DuckDBPyConnection) -> None:
    growth = list[tuple[str, int]]()
    for node, is_table in _nodes(tree):
        if "class" not in node and isinstance(form := node.get("type"), str):
            _refuse_form(form, node, cursor)
        name = str(node.get("function_name", "")).lower()
        if not name:
            continue
        if not may_call(name):
            raise QueryError(
                f"function {name!r} reaches beyond the tables, or changes something",
                hint=READING,
            )
        if name in GROWING and not is_table:
            growth.append((name, _size(name, node)))
    _refuse_growth(growth)


def _nodes(tree: _Node) -> Iterator[tuple[_Node, bool]]:
    """Yield every mapping in a tree, and whether it is a function in a table's place."""
    waiting: list[tuple[Any, bool]] = [(tree, False)]
    while waiting:
        node, is_table = waiting.pop()
        if isinstance(node, dict):
            yield node, is_table
            in_table = "class" not in node and node.get("type") == "TABLE_FUNCTION"
            waiting += [(found, in_table and key == "function") for key, found in node.items()]
        elif isinstance(node, list):
            waiting += [(found, False) for found in node]


def _refuse_form(form: str, node: _Node, cursor: duckdb.DuckDBPyConnection) -> None:
    if form.endswith("_QUERY_NODE"):
        kind = form.removesuffix("_QUERY_NODE")
        raise QueryError(f"the query changes data by {kind}", hint=way_out(""))
    if form.endswith("_TYPE_INFO") or form in _FORMS:
        if form in {"BASE_TABLE", "SHOW_REF"}:
            _refuse_table(node, cursor)
        return
    raise QueryError(f"the query has a form, {form}, that is not known to read")


def _refuse_table(node: _Node, cursor: duckdb.DuckDBPyConnection) -> None:
    name = str(node["table_name"]).strip('"')
    if name.lower().startswith(RESERVED_PREFIX) and name.lower() not in _SHOWN:
        raise QueryError(
            f"table {name!r} is the mirror's housekeeping", hint="'rhei status' shows what it tells"
        )
    is_view = name.lower() in REFUSED_VIEWS
    is_file = not node["schema_name"] and is_file_like(name)
    if (is_view or is_file) and not _stands(node, cursor):
        if is_file:
            raise file_refused()
        raise QueryError(
            f"view {name!r} tells of the server, not of the tables",
            hint=READING,
        )


def _stands(node: _Node, cursor: duckdb.DuckDBPyConnection) -> bool:
    """Return whether a name is of a table in the mirror: DuckDB takes that before all others."""
    catalog, schema = node["catalog_name"], node["schema_name"]
    where = "database_name = current_database() and schema_name in ('main', 'public')"
    if catalog:
        where = "lower(database_name) = $2 and lower(schema_name) = $3"
    elif schema:
        where = "$2 in (lower(database_name), if(database_name = current_database(),"
        where += " lower(schema_name), null))"
    columns = "database_name, schema_name"
    found = cursor.execute(
        f"select 1 from (select {columns}, table_name from duckdb_tables() union all"
        f" select {columns}, view_name from duckdb_views() where not internal)"
        f" where lower(table_name) = $1 and {where} limit 1",
        [str(name).lower() for name in (node["table_name"], catalog, schema) if name],
    )
    return found.fetchone() is not None


def _refuse_growth(found: Sequence[tuple[str, int]]) -> None:
    together = math.prod(size for name, size in found if name in _MULTIPLYING)
    largest = max((size for name, size in found if name not in _MULTIPLYING), default=1)
    if together * largest > _MOST_GROWTH:
        raise QueryError(
            f"functions {sorted({name for name, _ in found})} make values of more than"
            f" {_MOST_GROWTH:,} parts of one",
            hint="make them shorter, or write 'range' and 'generate_series' in FROM",
        )


def _size(name: str, call: _Node) -> int:
    """Return how long what a function makes may become, by the constants it is given."""
    given = [argument["expression"] for argument in call["arguments"]]
    place = 3 if name == "bar" else 1
    if str(call["schema"]).lower() not in {"", "main", "pg_catalog"}:
        raise _unknown_size()  # called as a method, `x.repeat(5)`: the first argument is elsewhere
    if name in {"format", "printf"} and given:
        return _width(given[0])
    if name in {"range", "generate_series"}:
        return max([1, *map(_number, given)])
    if len(given) <= place:
        raise _unknown_size()
    return max(1, _number(given[place]))


def _width(template: _Node) -> int:
    literal = template.get("literal") or {}
    text = str(literal.get("text", "*")) if isinstance(literal, dict) else "*"
    if "*" in text or re.search(r"\{[^}]*\{", text):
        raise _unknown_size()
    return max([1, *map(int, re.findall(r"\d{1,18}", text))])


def _number(node: _Node) -> int:
    if node.get("type") == "OPERATOR_CAST":
        node = node["child"]
    if node.get("function_name") == "-" and len(node["arguments"]) == 1:
        node = node["arguments"][0]["expression"]
    literal = node.get("literal")
    if not isinstance(literal, dict) or literal.get("kind") != "INTEGER":
        raise _unknown_size()
    return abs(int(str(literal["text"]).replace("_", "")))


def _unknown_size() -> QueryError:
    return QueryError(
        "how long the values of a function become cannot be known before the query runs",
        hint="give its length as a number, or write 'range' and 'generate_series' in FROM",
    )
