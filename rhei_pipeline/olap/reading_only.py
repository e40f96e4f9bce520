"""What a query may be: one statement that reads. Parsed, never guessed from how it begins."""

import re
from collections.abc import Collection

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError
from sqlglot.tokenizer_core import TokenType

from rhei_pipeline.errors import QueryError

_DIALECT = "duckdb"
_EXPLAIN = re.compile(r"^\s*explain(\s+analyze)?(\s+verbose)?\s+", re.IGNORECASE)
_WRITING = (
    exp.DML,
    exp.DDL,
    exp.Copy,
    exp.Create,
    exp.Drop,
    exp.Alter,
    exp.Set,
    exp.Command,
    exp.Attach,
    exp.Detach,
    exp.Install,
    exp.Pragma,
    exp.Into,
)


def refuse_writing(sql: str, hidden: Collection[str]) -> None:
    """Refuse what is not one reading statement, or reads a schema that is hidden.

    Raises:
        QueryError: Names the kind of statement.
    """
    found = [statement for statement in _parsed(_explained(sql)) if statement is not None]
    if len(found) != 1:
        raise QueryError(f"a query is one statement, and this is {len(found)}")
    statement = found[0]
    if not isinstance(statement, exp.Query):
        raise _refusal(statement)
    for node in statement.walk():
        if isinstance(node, _WRITING) and not isinstance(node, exp.Query):
            raise _refusal(node)
        if isinstance(node, exp.Table) and node.db in hidden:
            raise QueryError(f"schema {node.db!r} is not for reading")


def _explained(sql: str) -> str:
    """Leave out the words that ask for a plan; what is planned is what matters."""
    return _EXPLAIN.sub("", sql, count=1)


def _parsed(sql: str) -> list[exp.Expr | None]:
    try:
        return list(sqlglot.parse(sql, dialect=_DIALECT))
    except SqlglotError as error:
        first = str(error).splitlines()[0]
        raise QueryError(f"the query cannot be parsed: {first}") from error


def _refusal(node: exp.Expr) -> QueryError:
    name = node.name if isinstance(node, exp.Command) else node.key
    return QueryError(
        f"{name.upper()} is not a reading statement",
        hint="use execute for writes: they go to the source, and reach the mirror by sync",
    )


def numbered_placeholders(sql: str) -> str:
    """Write `?` as `$1`, `$2`, ...: the form that DataFusion binds values to."""
    # What follows `explain` would be one token, a text.
    plan = _EXPLAIN.match(sql)
    lead = plan.end() if plan else 0
    sql, parts, end, number = sql[lead:], [sql[:lead]], 0, 0
    for token in sqlglot.tokenize(sql, read=_DIALECT):
        if token.token_type is TokenType.PLACEHOLDER:
            number += 1
            parts += [sql[end : token.start], f"${number}"]
            end = token.end + 1
    return "".join([*parts, sql[end:]])
