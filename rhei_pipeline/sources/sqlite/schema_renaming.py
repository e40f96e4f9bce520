"""Whether a table's CREATE text is the one of before, with nothing but names or columns gone.

`alter table ... rename column` writes the new name wherever the text had the old one, and changes
no other letter; `alter table ... drop column` takes a declaration out. Of the text of before only
a digest is known, and the names of its columns.
"""

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence

from rhei_pipeline.sources.sqlite.database import blank_database
from rhei_pipeline.sql.text import quote

#: How a name may have stood in the text of before; SQLite writes it in the first form, or bare.
_FORMS = ('"{}"', "{}", "[{}]", "`{}`")


def columns_renamed(
    text: str, now: Sequence[str], was: Sequence[str], is_before: Callable[[str], bool]
) -> Mapping[str, str]:
    """Return the former name of each column that was renamed; empty where that is not all.

    No name counts that another column had: who swaps two names needs more statements than names.
    """
    former = {new: old for new, old in zip(now, was, strict=False) if new != old}
    had = {name.lower() for name in was}
    if len(now) != len(was) or any(name.lower() in had for name in former):
        return {}
    return former if any(map(is_before, _renamed_back(text, former))) else {}


def columns_dropped(now: Sequence[str], was: Sequence[str]) -> int:
    """Return how many columns are gone, where the others stand as they did; else 0."""
    there = {*now}
    return len(was) - len(now) if [name for name in was if name in there] == [*now] else 0


def _renamed_back(text: str, former: Mapping[str, str]) -> Iterator[str]:
    """Yield how a text may have been: SQLite itself gives the columns their former names."""
    for form in _FORMS[:2]:
        before = _text_after(text, [(new, form.format(old)) for new, old in former.items()])
        if before is None:
            continue
        yield before
        for other in _FORMS[1:]:
            written = before
            for old in former.values():
                written = written.replace(quote(old), other.format(old))
            yield written


_TABLE = "select name, sql from sqlite_master where type = 'table'"


def _text_after(text: str, renamings: Sequence[tuple[str, str]]) -> str | None:
    with blank_database() as apart:
        try:
            apart.execute(text)
            name, _ = apart.execute(_TABLE).fetchone()
            for new, old in renamings:
                apart.execute(f"alter table {quote(name)} rename column {quote(new)} to {old}")
            return str(apart.execute(_TABLE).fetchone()[1])
        except sqlite3.Error:
            return None
