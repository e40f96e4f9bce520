"""Rewrites placeholders into the form that DataFusion binds values to."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import sqlglot
from sqlglot.tokenizer_core import TokenType

from rhei_pipeline.errors import QueryError

_DIALECT = "duckdb"
#: The second is `?::`, before a type.
_PLACEHOLDERS = {TokenType.PLACEHOLDER, TokenType.QDCOLON}
#: Values of a statement, by place or by name.
Params = Sequence[Any] | Mapping[str, Any]
#: How a statement may name a value; in a text it means nothing, which only lets more pass.
_NAMED = re.compile(r"[$:](\w+)")
_EXPLAIN = re.compile(r"^\s*explain(\s+analyze)?(\s+verbose)?\s+", re.IGNORECASE)


def numbered_placeholders(sql: str) -> str:
    """Replace `?` by `$1`, `$2`, ..., and `?3` by `$3`: the form that DataFusion binds to."""
    # What follows `explain` would be one token, a text.
    plan = _EXPLAIN.match(sql)
    lead = plan.end() if plan else 0
    sql, parts, end, number = sql[lead:], [sql[:lead]], 0, 0
    for token in sqlglot.tokenize(sql, read=_DIALECT):
        if token.token_type in _PLACEHOLDERS:
            end_before, end = end, token.start + 1
            has_number = sql[end : end + 1].isdigit()
            number += not has_number
            parts += [sql[end_before : token.start], "$" if has_number else f"${number}"]
    return "".join([*parts, sql[end:]])


def named_values(params: Params) -> dict[str, Any]:
    """Return the values by the names that a statement with numbered placeholders has for them."""
    if isinstance(params, Mapping):
        return dict(params)
    return {str(place): value for place, value in enumerate(params, start=1)}


def refuse_surplus(bound: str, params: Params) -> None:
    """Refuse values that a statement has no placeholder for: DataFusion would ignore them.

    Raises:
        QueryError: The statement, with numbered placeholders, names one of them nowhere.
    """
    taken = set(_NAMED.findall(bound)) if params else ()
    surplus = next((name for name in named_values(params) if name not in taken), None)
    if surplus is not None:
        raise QueryError(
            f"the query has no placeholder for parameter {surplus!r}",
            hint="give one value for each placeholder",
        )
