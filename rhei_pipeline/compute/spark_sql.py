"""Writes a query of the mirror in Spark's SQL, where both engines are known to answer it alike.

What translation has written for the mirror says every cast and every order of nulls. Of that, a
small part means the same in both: comparisons, counts, minima, maxima, sums of integers, joins,
groups, windows that number rows. All else is left to the mirror.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import sqlglot
from sqlglot import exp

from rhei_pipeline.sql.text import quote

#: The nodes of a query's tree that mean the same to both.
_ALIKE = {
    *(exp.Select, exp.From, exp.Where, exp.Group, exp.Having, exp.Join, exp.With, exp.CTE),
    *(exp.Table, exp.TableAlias, exp.Alias, exp.Column, exp.Identifier, exp.Subquery, exp.Star),
    *(exp.And, exp.Or, exp.Not, exp.Paren, exp.EQ, exp.NEQ, exp.LT, exp.LTE, exp.GT, exp.GTE),
    *(exp.Is, exp.Null, exp.Boolean, exp.Literal, exp.Neg, exp.In, exp.Case, exp.If),
    *(exp.Count, exp.Distinct, exp.Min, exp.Max, exp.Sum, exp.Cast, exp.DataType, exp.Nullif),
    *(exp.DataTypeParam, exp.Order, exp.Ordered, exp.Limit, exp.Window, exp.RowNumber),
}
#: Arrow's names of types, and Spark's.
_TYPES = {
    "Int64": "bigint",
    "Int32": "int",
    "Int16": "smallint",
    "Utf8": "string",
    "Boolean": "boolean",
    "Date32": "date",
    "Timestamp(Microsecond, None)": "timestamp_ntz",
    'Timestamp(Microsecond, Some("UTC"))': "timestamp",
}
_DECIMAL = re.compile(r"Decimal128\((\d+), (\d+)\)")
#: A sum of so many digits has ten more: no number of rows exceeds them.
_SUMMED_DIGITS = 28
_DAY = re.compile(r"\d{4}-\d\d-\d\d")
#: What Spark reads otherwise within quotes.
_ESCAPED = re.compile(r"['\\\x00-\x1f]")
_SMALLEST, _LARGEST = -(2**63), 2**63 - 1


@dataclass(frozen=True, slots=True)
class SparkQuery:
    """A query in Spark's SQL.

    Attributes:
        sql: The statement; each table is a view.
        views: The tables by the names of their views, as the mirror calls them.
        columns: The names of all columns that it works with, besides handing them on.
    """

    sql: str
    views: Mapping[str, str]
    columns: frozenset[str]


class _UnlikeError(Exception):
    """The query may mean something else to Spark."""


def in_spark(sql: str, bound: Mapping[str, Any]) -> SparkQuery | None:
    """Write what translation has written for the mirror; None where that may mean another thing.

    Args:
        sql: The statement.
        bound: Values for its parameters, by name.
    """
    try:
        return _written(sql, tuple((name, _text(value)) for name, value in bound.items()))
    except (_UnlikeError, sqlglot.errors.SqlglotError, RecursionError):
        return None


def _text(value: object) -> str:
    if type(value) is int and _SMALLEST <= value <= _LARGEST:
        return str(value)
    if isinstance(value, str) and not _ESCAPED.search(value):
        return f"'{value}'"
    raise _UnlikeError


@lru_cache(256)
def _written(sql: str, bound: tuple[tuple[str, str], ...]) -> SparkQuery:
    tree = sqlglot.parse_one(sql, dialect="postgres")
    if not isinstance(tree, exp.Select):
        raise _UnlikeError
    values = dict(bound)
    columns = frozenset(c.name for c in tree.find_all(exp.Column) if not _is_handed_on(c))
    for node in reversed(list(tree.walk())):  # what is within a cast first
        plain = _plain(node, values)
        if plain is not node:
            node.replace(plain)
    ctes = {cte.alias for cte in tree.find_all(exp.CTE)}
    views: dict[str, str] = {}
    for node in list(tree.walk()):
        if type(node) not in _ALIKE or not _CHECKS.get(type(node), _always)(node):
            raise _UnlikeError
        if isinstance(node, exp.Table) and (node.db or node.name not in ctes):
            name = ".".join(quote(part.name) for part in node.parts)
            view = views.setdefault(name, f"_t{len(views)}")
            alias = exp.TableAlias(this=exp.to_identifier(node.alias_or_name, quoted=True))
            node.replace(exp.Table(this=exp.to_identifier(view), alias=alias))
    written = tree.sql(dialect="spark")
    return SparkQuery(written, {view: name for name, view in views.items()}, columns)


def _plain(node: exp.Expr, values: Mapping[str, str]) -> exp.Expr:
    """Return a cast of Arrow's as a cast, and a parameter as its value."""
    if isinstance(node, exp.Anonymous) and node.name.lower() == "arrow_cast":
        value, kind = node.expressions
        return exp.cast(value, _spark_type(kind.name), dialect="spark")
    if isinstance(node, exp.Parameter | exp.Placeholder):
        given = values.get(node.name)
        if given is None:
            raise _UnlikeError
        return sqlglot.parse_one(given, dialect="postgres")
    return node


def _is_handed_on(column: exp.Column) -> bool:
    """Return whether a column stands alone in a SELECT, where it keeps its name."""
    select = column.parent
    return (
        isinstance(select, exp.Select)
        and column.arg_key == "expressions"
        and (not select.args.get("distinct"))
    )


def _spark_type(kind: str) -> str:
    decimal = _DECIMAL.fullmatch(kind)
    if decimal:
        return f"decimal({decimal[1]}, {decimal[2]})"
    if kind not in _TYPES:
        raise _UnlikeError
    return _TYPES[kind]


def _always(_node: exp.Expr) -> bool:
    return True


def _is_alike_literal(node: exp.Expr) -> bool:
    if node.is_string:
        return not _ESCAPED.search(node.name)
    return node.name.isdigit()


def _is_alike_cast(node: exp.Expr) -> bool:
    """Return whether a cast is of a text that both read as the same value, or of no text."""
    if not isinstance(node.this, exp.Literal) or not node.this.is_string:
        return True
    if node.args["to"].is_type("date"):
        return _DAY.fullmatch(node.this.name) is not None
    return bool(node.args["to"].is_type("string", "text"))


def _is_alike_sum(node: exp.Expr) -> bool:
    """Return whether a sum has room for any number of rows; large integers are cast for it."""
    summed = node.this
    if not isinstance(summed, exp.Cast) or not summed.to.is_type("decimal"):
        return not isinstance(summed, exp.Distinct)
    return int(summed.to.expressions[0].name) <= _SUMMED_DIGITS


#: Nodes that mean the same only in some forms.
_CHECKS: dict[type[exp.Expr], Callable[[exp.Expr], bool]] = {
    exp.Literal: _is_alike_literal,
    exp.Cast: _is_alike_cast,
    exp.Sum: _is_alike_sum,
    exp.Is: lambda node: isinstance(node.expression, exp.Null),
    exp.Nullif: lambda node: isinstance(node.expression, exp.Null),
    exp.In: lambda node: not node.args.get("query") and not node.args.get("unnest"),
    exp.Join: lambda node: (
        not node.args.get("using") and (node.args.get("side") or "LEFT") == "LEFT"
    ),
    exp.Distinct: lambda node: isinstance(node.parent, exp.Count | exp.Select),
    exp.Window: lambda node: isinstance(node.this, exp.RowNumber) and not node.args.get("spec"),
    exp.Ordered: lambda node: node.args.get("nulls_first") is not None,
}
