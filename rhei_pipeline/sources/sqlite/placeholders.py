"""Placeholders with a number, which SQLite takes for names unless a `?` is before it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

_NUMBERED = re.compile(r"[$:@]\d")
#: What may hold such a placeholder and is none, then what is one.
_PIECE = re.compile(
    r"""
    '(?:[^']|'')*' | "(?:[^"]|"")*" | `[^`]*` | \[[^\]]*\]
    | --[^\n]* | /\*(?:.*?\*/|.*)
    | [^\W\d][\w$]*                                     # a name
    | [$:@](?P<number>\d+)(?![\w$(:])
    """,
    re.VERBOSE | re.DOTALL,
)


def by_number(sql: str, params: Sequence[Any]) -> str:
    """Write `$2` as `?2` where values are given in order.

    SQLite numbers names in the order in which they appear: the first value would be that of `$2`
    in `$2 - $1`.
    """
    if not params or isinstance(params, Mapping) or not _NUMBERED.search(sql):
        return sql
    return _PIECE.sub(lambda found: f"?{found['number']}" if found["number"] else found[0], sql)
