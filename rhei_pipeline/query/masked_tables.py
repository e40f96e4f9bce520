"""Keeps `auto` queries of masked tables away from the source, which has the values themselves.

Where a table is masked, the source answers only what is certain not to read it: statements that
name mirrored tables without masks. A view, a partition or a function may show a masked one.
"""

from collections.abc import Iterator
from dataclasses import replace

import sqlglot
from sqlglot import exp
from sqlglot.tokenizer_core import TokenType

from rhei_pipeline.errors import QueryError
from rhei_pipeline.query.router import Plan, Route
from rhei_pipeline.query.translation.meaning import Catalog
from rhei_pipeline.sql.read_only import statement_tokens

#: Statements about the session and the schema, which return no rows of tables.
_HARMLESS = {"pragma", "show"}
#: The schema that a name without one is of.
_DEFAULT = {"sqlite": "main", "postgres": "public"}


def only_mirror(made: Plan, sql: str, catalog: Catalog) -> Plan:
    """Return the plan of a statement that the source may not answer if it reads a masked table."""
    if not catalog.masked or not made.reads or made.history:
        return made
    why = next(_reasons(made, sql, catalog), None)
    if why is None:
        return made
    route = made.route if made.query is None else Route("olap", why)
    return replace(made, route=route, masked=why)


def refuse_source(plan: Plan, reason: str) -> None:
    """Refuse to ask the source for what only the mirror may answer.

    Raises:
        QueryError: The statement may read a masked table; says why the mirror does not answer.
    """
    if plan.masked is not None:
        lead = f"{plan.masked}, but "
        raise QueryError(
            f"{plan.masked}, and the mirror cannot answer: {reason.removeprefix(lead)}",
            hint="write it in the mirror's SQL with the hint 'olap', or ask the source itself with"
            " the hint 'oltp'",
        )


def _reasons(made: Plan, sql: str, catalog: Catalog) -> Iterator[str]:
    if made.query is not None:
        for name in sorted(made.tables):
            if name.lower() in catalog.masked:
                yield f"table {name!r} is masked or filtered"
    elif _first_word(sql, catalog.source) not in _HARMLESS:
        yield from _of_untranslated(sql, catalog)


def _first_word(sql: str, dialect: str) -> str:
    """Return a statement's first word, behind comments and parentheses; none of several ones."""
    try:
        tokens = statement_tokens(sql, dialect)
    except QueryError:
        return ""
    words = (token.text for token in tokens if token.token_type is not TokenType.L_PAREN)
    return next(words, "").lower()


def _of_untranslated(sql: str, catalog: Catalog) -> Iterator[str]:
    parsed = _parsed(sql, catalog.source)
    if parsed is None:
        yield "it may read a masked or filtered table"
        return
    if catalog.source == "postgres" and parsed.find(exp.Anonymous):
        yield "it calls a function, which may read a masked or filtered table"
    if any(node.args.get("field") for node in parsed.find_all(exp.In)):
        yield "it has a table behind IN, which may be a masked or filtered one"
    for table in parsed.find_all(exp.Table):
        yield from _of_table(table, catalog)


def _parsed(sql: str, dialect: str) -> exp.Query | None:
    """Return a query's tree; None of another statement, and of one that is not understood."""
    if _first_word(sql, dialect) not in {"select", "with"}:
        return None
    try:
        found = sqlglot.parse_one(sql, dialect=dialect)
    except Exception:  # noqa: BLE001  (whatever the parser trips over)
        return None
    return found if isinstance(found, exp.Query) else None


def _of_table(table: exp.Table, catalog: Catalog) -> Iterator[str]:
    if not isinstance(table.this, exp.Identifier) or table.catalog:
        yield "it reads from a function, which may read a masked or filtered table"
        return
    if _is_cte(table, catalog.source):
        return
    name, schema = _folded(table.this, catalog.source), table.args.get("db")
    namespace = _folded(schema, catalog.source) if schema else ""
    full = name if namespace in {"", _DEFAULT[catalog.source]} else f"{namespace}.{name}"
    if full.lower() in catalog.masked:
        yield f"table {full!r} is masked or filtered"
    elif catalog.named(name, namespace) is None:
        yield f"{full!r} is not mirrored, and may show what is masked or filtered"


def _folded(name: exp.Identifier, dialect: str) -> str:
    """Return a name as the source understands it."""
    is_exact = dialect == "postgres" and name.args.get("quoted")
    return name.name if is_exact else name.name.lower()


def _is_cte(table: exp.Table, dialect: str) -> bool:
    """Return whether a name means a CTE where it stands: elsewhere it means a table or a view."""
    if table.args.get("db"):
        return False
    name = _folded(table.this, dialect)
    node: exp.Expr = table
    while node.parent is not None:
        below, node = node, node.parent
        seen = _ctes_seen(below, node, dialect)
        if any(_folded(cte.args["alias"].this, dialect) == name for cte in seen):
            return True
    return False


def _ctes_seen(below: exp.Expr, node: exp.Expr, dialect: str) -> list[exp.CTE]:
    """Return the CTEs that a node declares, of those that are seen in a part of it."""
    if isinstance(node, exp.With):
        sees_all = dialect == "sqlite" or node.args.get("recursive")
        ctes: list[exp.CTE] = node.expressions
        return ctes if sees_all else ctes[: below.index]
    declared = node.args.get("with_")
    return [] if declared is None or declared is below else declared.expressions
