"""Rewrites placeholders into the form that DataFusion binds values to."""

import re

import sqlglot
from sqlglot.tokenizer_core import TokenType

_DIALECT = "duckdb"
_EXPLAIN = re.compile(r"^\s*explain(\s+analyze)?(\s+verbose)?\s+", re.IGNORECASE)


def numbered_placeholders(sql: str) -> str:
    """Replace `?` by `$1`, `$2`, ...: the form that DataFusion binds values to."""
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
