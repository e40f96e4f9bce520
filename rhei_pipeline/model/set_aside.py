"""Columns of a history whose values mean something else from some time on.

A local time is no instant: which instant it was, nobody recorded. So a history whose `timestamp`
becomes a `timestamptz` keeps the former values as they are, in a column of another name, and goes
on with an empty one. The names are reserved ones, which no column of a source has.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import pyarrow as pa

from rhei_pipeline.model.schema import RESERVED_PREFIX, FormerNames, TableSchema

_NAME = re.compile(rf"{RESERVED_PREFIX}was_(\d+)_(.+)", re.DOTALL | re.IGNORECASE)


def means_otherwise(old: pa.DataType, new: pa.DataType) -> bool:
    """Return whether one type has instants and the other local times or dates."""
    return (_is_instant(old) and _is_local(new)) or (_is_local(old) and _is_instant(new))


def others_by_now(schema: TableSchema, standing: Mapping[str, pa.DataType]) -> Iterator[str]:
    """Yield the columns whose values mean something else than in a history; none of the key."""
    for column in schema.value_columns:
        old = standing.get(column.name)
        if old is not None and means_otherwise(old, column.type):
            yield column.name


def names_aside(columns: Iterable[str], standing: Iterable[str]) -> FormerNames:
    """Return names for columns that are set aside, each with the one that the column had.

    `standing`: The names of all columns, none of which is taken.
    """
    taken = {name.lower() for name in standing}
    return {_free_name(column, taken): column for column in columns}


def with_former(former: FormerNames, standing: Collection[str]) -> FormerNames:
    """Return new names of columns, and of what was set aside of each."""
    news = {old.lower(): new for new, old in former.items()}
    taken = {name.lower() for name in standing}
    found = dict(former)
    for name in sorted(filter(is_kept_past, standing), key=_number):
        new = news.get(former_name(name).lower())
        if new is not None:
            found[free := _free_name(new, taken)] = name
            taken.add(free.lower())
    return found


def is_kept_past(column: str) -> bool:
    """Return whether a column is one that keeps what another one was."""
    return column.startswith(RESERVED_PREFIX) and _NAME.fullmatch(column) is not None


def former_name(column: str) -> str:
    """Return what a column was called before it was set aside, or else its name."""
    found = _NAME.fullmatch(column)
    return found[2] if found else column


def is_set_aside(column: str, own: Iterable[str]) -> bool:
    """Return whether a column keeps what one of a table's own columns was."""
    found = _NAME.fullmatch(column)
    return found is not None and found[2].lower() in {name.lower() for name in own}


def as_they_were(rows: pa.Table, states: Sequence[str] = ("",)) -> pa.Table:
    """Return rows of an instant with one column for those that were the same one by then.

    That is the one which has values; where no row has any, the one that was first. Where several
    have values, the column took its other type between what these rows tell: then all are shown.

    `states`: What comes before the columns' names for each instant that the rows tell of.
    """
    if not any(map(is_kept_past, rows.column_names)):
        return rows
    there = {*rows.column_names}
    shown: list[dict[str, str]] = [{} for _ in states]
    for former, names in _by_former(rows.column_names, states).items():
        filled = [
            [n for n in names if state + n in there and _has_values(rows[state + n])]
            for state in states
        ]
        if any(len(found) > 1 for found in filled):
            chosen = [{n: n for n in names} for _ in states]
        else:
            other = next(filter(None, filled), [min(names, key=_number)])
            chosen = [{(found or other)[0]: former} for found in filled]
        for state, own, called in zip(states, shown, chosen, strict=True):
            own |= {state + n: state + name for n, name in called.items() if state + n in there}
    columns = {name: called for own in shown for name, called in own.items()}
    return rows.select(list(columns)).rename_columns(list(columns.values()))


def _by_former(columns: Iterable[str], states: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """Return which columns were one, by its name of now; their names are those of one instant."""
    others = tuple(filter(None, states))
    names = [name for name in columns if not (others and name.startswith(others))]
    own = [name for name in names if not is_kept_past(name)]
    # A mirror that ignores case has what a column was in the case that its name had then.
    called = {name.lower(): name for name in own} | {name: name for name in own}
    found: dict[str, list[str]] = {}
    for name in names:
        former = former_name(name)
        found.setdefault(called.get(former, called.get(former.lower(), former)), []).append(name)
    return found


def _has_values(column: pa.ChunkedArray) -> bool:
    return bool(column.null_count < len(column))


def _free_name(column: str, taken: Collection[str]) -> str:
    number = 1
    while (name := f"{RESERVED_PREFIX}was_{number}_{column}").lower() in taken:
        number += 1
    return name


def _number(column: str) -> float:
    found = _NAME.fullmatch(column)
    return int(found[1]) if found else float("inf")


def _is_instant(kind: pa.DataType) -> bool:
    return pa.types.is_timestamp(kind) and kind.tz is not None


def _is_local(kind: pa.DataType) -> bool:
    return pa.types.is_date32(kind) or (pa.types.is_timestamp(kind) and kind.tz is None)
