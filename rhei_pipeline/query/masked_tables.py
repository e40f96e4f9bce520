"""Keeps `auto` queries of masked tables away from the source, which has the values themselves.

Where a table is masked, the source answers only what is certain not to read it: statements that
name mirrored tables without masks. A view, a partition or a function may show a masked one.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import sqlglot
from sqlglot import exp

from rhei_pipeline.errors import QueryError
from rhei_pipeline.query.router import Plan, Route
from rhei_pipeline.query.translation.meaning import Catalog

#: Statements about the session and the schema, which return no rows of tables.
_HARMLESS = ("pragma", "show")


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
        yield from _of_tables(made.tables, catalog)
    elif not sql.lstrip().lower().startswith(_HARMLESS):
        yield from _of_untranslated(sql, catalog)


def _of_untranslated(sql: str, catalog: Catalog) -> Iterator[str]:
    parsed = _parsed(sql, catalog.source)
    if parsed is None:
        yield "it may read a masked or filtered table"
        return
    if catalog.source == "postgres" and parsed.find(exp.Anonymous):
        yield "it calls a function, which may read a masked or filtered table"
    yield from _of_tables(_tables_of(parsed), catalog)


def _parsed(sql: str, dialect: str) -> exp.Query | None:
    """Return a query's tree; None of another statement, and of one that is not understood."""
    if not sql.lstrip("( \t\r\n").lower().startswith(("select", "with")):
        return None
    try:
        found = sqlglot.parse_one(sql, dialect=dialect)
    except Exception:  # noqa: BLE001  (whatever the parser trips over)
        return None
    return found if isinstance(found, exp.Query) else None


def _of_tables(names: Iterable[str], catalog: Catalog) -> Iterator[str]:
    plain = {name.lower() for name in catalog.tables}
    for name in sorted(names):
        lower = name.lower()
        if lower in catalog.masked:
            yield f"table {name!r} is masked or filtered"
        elif lower.removeprefix("public.").removeprefix("main.") not in plain:
            yield f"{name!r} is not mirrored, and may show what is masked or filtered"


def _tables_of(parsed: exp.Query) -> list[str]:
    """Return the tables that a query names, but for its own CTEs."""
    own = {cte.alias.lower() for cte in parsed.find_all(exp.CTE)}
    named = [(table.db, table.name) for table in parsed.find_all(exp.Table)]
    return [
        f"{schema}.{name}" if schema else name
        for schema, name in named
        if schema or name.lower() not in own
    ]
