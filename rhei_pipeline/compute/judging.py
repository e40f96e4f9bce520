"""What may be asked of a cluster: one statement that reads published tables, in Spark's SQL."""

from collections.abc import Collection

import sqlglot
from sqlglot import exp

from rhei_pipeline.errors import QueryError
from rhei_pipeline.model.schema import nearest
from rhei_pipeline.sql.read_only import READING

_CHANGING = (exp.DML, exp.DDL, exp.Command, exp.Into, exp.Set, exp.Use)


def tables_read(sql: str, known: Collection[str]) -> dict[str, str]:
    """Return the published tables that a statement reads, by their names as it writes them.

    Raises:
        QueryError: It is not one query, or reads something else.
    """
    try:
        trees = [tree for tree in sqlglot.parse(sql, dialect="spark") if tree is not None]
    except sqlglot.ParseError as error:
        raise QueryError("the statement is not in Spark's SQL") from error
    if len(trees) != 1 or not isinstance(trees[0], exp.Query):
        raise QueryError("a query of the cluster is one SELECT", hint=READING)
    tree = trees[0]
    for node in tree.walk():
        if isinstance(node, _CHANGING):
            raise QueryError("the query changes something", hint=READING)
        if isinstance(node, exp.Anonymous):
            # sqlglot has a class of its own for each function that all engines know.
            raise QueryError(
                f"function {node.name!r} is not known to work out values alone", hint=READING
            )
    ctes = {cte.alias.lower() for cte in tree.find_all(exp.CTE)}
    tables = [table for table in tree.find_all(exp.Table) if _plain_name(table).lower() not in ctes]
    return {table.name: _known_name(table, known) for table in tables}


def _known_name(table: exp.Table, known: Collection[str]) -> str:
    found = {name.lower(): name for name in known}.get(_plain_name(table).lower())
    if found is None:
        full = ".".join(part.name for part in table.parts)
        raise QueryError(
            f"table {full!r} is not published", hint=nearest(table.name, sorted(known))
        )
    return found


def _plain_name(table: exp.Table) -> str:
    """Return the name of a table; nothing where it is qualified, as files are."""
    if not isinstance(table.this, exp.Identifier):
        raise QueryError("the query reads a function as a table", hint=READING)
    return "" if table.db else table.name
