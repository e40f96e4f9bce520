"""Which tables a statement for the mirror names, by a parser of our own."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import sqlglot
from sqlglot import exp

from rhei_pipeline.sql.placeholders import judged_form

_DEFAULT_SCHEMAS = {"", "main", "public"}
#: What stands before a statement whose plan is asked for; no parser of ours reads on behind it.
_EXPLAIN = re.compile(r"\s*explain(\s+analyze)?\s", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class NamedTable:
    """A table as a statement names it, in lower case.

    Attributes:
        catalog: What stands before its schema; empty where nothing does.
        schema: What stands before its name; empty where nothing does.
    """

    catalog: str
    schema: str
    name: str

    @property
    def forms(self) -> frozenset[str]:
        """The names that it may have, with and without schemas."""
        own = {f"{self.schema or 'public'}.{self.name}"}
        own |= {self.name} if self.schema in _DEFAULT_SCHEMAS else set()
        # The first part names one of several mirrors that are read together.
        return frozenset(own | {f"{self.catalog}.{each}" for each in own if self.catalog})


def tables_read(sql: str, dialect: str) -> frozenset[str] | None:
    """Return the tables that a statement names, in lower case, with and without their schemas.

    None if it cannot be parsed.
    """
    parsed = _parsed(sql, dialect)
    if parsed is None:
        return None
    return frozenset(form for table in parsed.find_all(exp.Table) for form in _named(table).forms)


def named_tables(sql: str, dialect: str) -> set[NamedTable] | None:
    """Return the tables that a statement reads, or asks for the plan or the columns of.

    Queries of its own, which it names by `with`, are none, nor are series of numbers. None if it is
    no such statement, or cannot be parsed; so is one that lists all tables.
    """
    parsed = _parsed(_EXPLAIN.sub("", sql, count=1), dialect)
    if parsed is None:
        return None
    found = list(parsed.find_all(exp.Table))
    if not found and not isinstance(parsed, exp.Query | exp.Values):
        return None
    return {
        _named(table)
        for table in found
        if not isinstance(table.this, exp.GenerateSeries) and not _is_own(table)
    }


def _is_own(table: exp.Table) -> bool:
    """Return whether it is a query that the statement itself names by `with`, and may read here."""
    inside: exp.Expr = table
    while not table.db and (around := inside.parent) is not None:
        if any(each.alias.lower() == table.name.lower() for each in _named_for(inside, around)):
            return True
        inside = around
    return False


def _named_for(inside: exp.Expr, around: exp.Expr) -> Sequence[exp.Expr]:
    """Return the queries that `around` has names for, which a part of it may read."""
    if isinstance(around, exp.With):  # those before it; and itself, if it may
        named = around.expressions
        return named[: (inside.index or 0) + bool(around.recursive)]
    own = around.args.get("with_")
    return [] if own is None or own is inside else own.expressions


def _parsed(sql: str, dialect: str) -> exp.Expr | None:
    try:
        if dialect != "sqlite":  # which has no text between dollars
            sql = judged_form(sql)
        parsed = sqlglot.parse_one(sql, dialect="duckdb" if dialect == "datafusion" else dialect)
    except Exception:  # noqa: BLE001  (see `router.plan`)
        return None
    return None if isinstance(parsed, exp.Command) else parsed


def _named(table: exp.Table) -> NamedTable:
    return NamedTable(table.catalog.lower(), table.db.lower(), table.name.lower())
