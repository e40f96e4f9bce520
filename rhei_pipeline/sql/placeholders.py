"""Where placeholders are, and texts between dollars, by the rules of DataFusion's parser.

The parser that queries are judged with has no such dialect. It takes `$1,$` in `$1,$2` for the
beginning of a text.
"""

import re
from collections.abc import Callable, Iterator

from rhei_pipeline.sql.text import literal, quote

#: What holds a `$` or a `?` that is no placeholder, and placeholders. Comments nest: they are read
#: apart.
_PIECE = re.compile(
    r"""
    e'(?:[^'\\]|\\.|'')*'               # a text with escapes
    | '(?:[^']|'')*' | "(?:[^"]|"")*" | `[^`]*`
    | --[^\n]*
    | (?P<comment>/\*)
    | \$(?P<tag>\w*)\$(?P<text>.*?)\$(?P=tag)\$
    | (?P<placeholder>\$\w+ | \?\d*)
    | (?P<name>(?:[^\W\d]|@-|[@\#])[\w$@\#]*)
    """,
    re.VERBOSE | re.DOTALL | re.IGNORECASE,
)
_WORD = re.compile(r"\w")
_COMMENT_ENDS = re.compile(r"/\*|\*/")
#: Returns what is written in the place of a piece.
_Written = Callable[[re.Match[str]], str]


def numbered_placeholders(sql: str) -> str:
    """Replace `?` by `$1`, `$2`, ..., and `?3` by `$3`: the form that DataFusion binds to."""
    number = 0

    def written(found: re.Match[str]) -> str:
        nonlocal number
        piece = found["placeholder"] or ""
        if not piece.startswith("?"):
            return found[0]
        number += piece == "?"
        # A word behind it would belong to it, as it does not to a question mark.
        is_joined = _WORD.match(sql, found.end())
        return f"${piece[1:] or number}{' ' if is_joined else ''}"

    return _rewritten(sql, written) if "?" in sql else sql


def judged_form(sql: str) -> str:
    """Return a statement in the form that any parser reads alike; it is not to be run.

    Texts between dollars are as other texts are, each placeholder is a null, and a name that has a
    dollar in it is quoted: another parser may take its end for the beginning of a text.
    """

    def written(found: re.Match[str]) -> str:
        if found["text"] is not None:
            return literal(found["text"])
        if "$" in (found["name"] or ""):
            return quote(found["name"].lower())
        return " null " if found["placeholder"] else found[0]

    return _rewritten(sql, written) if "$" in sql else sql


def _rewritten(sql: str, written: _Written) -> str:
    return "".join(_pieces(sql, written))


def _pieces(sql: str, written: _Written) -> Iterator[str]:
    place = 0
    while found := _PIECE.search(sql, place):
        yield sql[place : found.start()]
        place = found.end()
        if found["comment"]:
            place = _comment_end(sql, place)
            yield sql[found.start() : place]
        else:
            yield written(found)
    yield sql[place:]


def _comment_end(sql: str, place: int) -> int:
    """Return where a comment ends that has begun before."""
    depth = 1
    while depth:
        found = _COMMENT_ENDS.search(sql, place)
        if found is None:
            return len(sql)
        depth += 1 if found[0] == "/*" else -1
        place = found.end()
    return place
