"""Whether a table's CREATE text is the one of before, with nothing but columns added to it.

`alter table ... add column` inserts the declaration behind the last column, and changes no other
letter. Of the text of before only a digest is known.
"""

import sqlite3
from collections.abc import Callable

from rhei_pipeline.sources.sqlite.database import blank_database

#: So many ways to cut the text are tried; a wide table's are more, and it counts as changed.
_MOST_TRIED = 20_000


def columns_added(text: str, is_before: Callable[[str], bool]) -> int:
    """Return how many columns were added to the text of before; 0 where that is not all.

    Args:
        text: The table's CREATE text now.
        is_before: Tells whether a text is that of before.
    """
    ends = [place for place, letter in enumerate(text) if letter in ",)"]
    cuts = ((start, end) for nth, start in _from_last(ends) for end in ends[nth + 1 :])
    for _, (start, end) in zip(range(_MOST_TRIED), cuts, strict=False):
        if text[start] == "," and is_before(text[:start] + text[end:]):
            return _columns_in(text[start:end])
    return 0


def _from_last(ends: list[int]) -> list[tuple[int, int]]:
    return [(nth, ends[nth]) for nth in reversed(range(len(ends)))]


def _columns_in(added: str) -> int:
    """Count the columns that a part of a CREATE text declares; 0 where it declares other things.

    SQLite itself reads it.
    """
    with blank_database() as apart:
        try:
            apart.execute(f"create table t(before{added})")
        except sqlite3.Error:
            return 0
        return len(apart.execute("select * from temp.pragma_table_xinfo('t')").fetchall()) - 1
