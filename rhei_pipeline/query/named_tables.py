"""Which tables a statement for the mirror names, by a parser of our own."""

from collections.abc import Sequence
from dataclasses import dataclass

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from rhei_pipeline.sql.placeholders import judged_form

_DEFAULT_SCHEMAS = {"", "main", "public"}
#: What may stand between `explain` and its statement; no parser of ours reads on behind it.
_PLAN_OPTIONS = {"analyze", "analyse", "verbose"}
#: What `show` lists without a table's name.
_LISTED = {"all", "databases", "functions", "schemas", "tables", "variables"}


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
    parsed = _asked_of(sql, dialect)
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


def _asked_of(sql: str, dialect: str) -> exp.Expr | None:
    """Return the statement whose answer, plan or columns are asked for; None: not known."""
    try:
        word, rest = _first_word(sql)
        if word == "explain":
            sql = _behind_options(rest)
        elif word == "show":
            sql = _describing(rest)
    except (SqlglotError, IndexError):
        return None
    return _parsed(sql, dialect)


def _first_word(sql: str) -> tuple[str, str]:
    """Return a statement's first word, and what stands behind it; comments are no words."""
    first = sqlglot.tokenize(sql, dialect="duckdb")[0]
    return first.text.lower(), sql[first.end + 1 :]


def _behind_options(sql: str) -> str:
    """Return the statement behind the options of an `explain`, as either engine writes them."""
    word, rest = _first_word(sql)
    if word in _PLAN_OPTIONS:
        return _behind_options(rest)
    if word == "format":
        return _behind_options(_first_word(rest)[1])
    if word == "(" and _first_word(rest)[0] in {"format", *_PLAN_OPTIONS}:
        return rest.partition(")")[2]
    return sql


def _describing(sql: str) -> str:
    """Return the statement that describes the table whose columns a `show` asks for."""
    return f"show {sql}" if _first_word(sql)[0] in _LISTED else f"describe {sql}"


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
