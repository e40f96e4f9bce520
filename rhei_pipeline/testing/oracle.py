"""The oracle: what a mirror has to hold, known from nothing but the source's own states."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa

#: A row as exact texts.
Row = tuple[str, ...]


def exact(row: Iterable[Any]) -> Row:
    """Write values so that equal texts mean equal bits: 1 is not 1.0, 0.0 is not -0.0."""
    return tuple(map(_exact, row))


def _exact(value: Any) -> str:
    if isinstance(value, datetime) and value.tzinfo is not None:
        value = value.astimezone(UTC)  # an instant is the same in every zone
    return repr(value)


def arrow_rows(table: pa.Table) -> frozenset[Row]:
    """Return an Arrow table's rows; fails on a row that stands twice."""
    rows = [exact(row.values()) for row in table.to_pylist()]
    assert len(set(rows)) == len(rows), "a row is there twice"
    return frozenset(rows)


Key = tuple[Any, ...]
#: A row by its columns' names; None where there is none.
Named = dict[str, Any] | None


class _Anything:
    """Stands where a row went through states that nobody noted."""


ANYTHING = _Anything()


@dataclass(frozen=True)
class State:
    """A table as it is committed: its rows by key, those that cannot be mirrored among them."""

    rows: Mapping[Key, dict[str, Any]]
    unfit: Collection[Key]


@dataclass
class Expected:
    """What a mirror has to hold of a table whose rows do not all fit.

    A row that does not fit is unknown: the mirror keeps what it last was, and which state that
    is depends on which of them a sync saw. From then on it stays as it is.
    """

    now: State = field(default_factory=lambda: State({}, ()))
    #: What the row of a key was the last time that it fitted, or was not there.
    last: dict[Key, Named | _Anything] = field(default_factory=dict)
    #: What it was since the last sync, and what the mirror held then.
    since: dict[Key, list[Named | _Anything]] = field(default_factory=dict)

    def saw(self, state: State, *, whole: bool = False) -> None:
        """Take in a committed state; `whole`: no row has gone through another on the way."""
        for key in {*state.rows, *self.now.rows, *self.last}:
            seen = self.since.setdefault(key, [None])
            if key not in state.unfit:
                self.last[key] = state.rows.get(key)
                seen.append(self.last[key])
            elif key not in self.now.unfit and not whole:
                self.last[key] = ANYTHING
                seen.append(ANYTHING)
            self.last.setdefault(key, None)
        self.now = state

    def forgot(self) -> None:
        """Take in that the mirror has begun again, and knows nothing of rows that do not fit."""
        for key in self.now.unfit:
            self.since[key].append(None)

    def check(self, held: Mapping[Key, dict[str, Any]]) -> None:
        """Demand that a mirror that is in sync holds these rows, and remember what it holds."""
        for key in {*held, *self.since}:
            row = held.get(key)
            allowed = self.since.get(key, [None])
            if key not in self.now.unfit:
                allowed = [self.now.rows.get(key)]
            assert any(_agrees(row, each) for each in allowed), (key, row, allowed)
            self.since[key] = [row]


@dataclass(frozen=True)
class Dated:
    """What a temporal mirror has to show of a table as of an instant."""

    rows: Mapping[Key, Named | _Anything]

    @classmethod
    def of(cls, expected: Expected) -> "Dated":
        """Freeze what is expected now."""
        return cls(dict(expected.last))

    def check(self, held: Mapping[Key, dict[str, Any]]) -> None:
        """Demand that these are the rows."""
        for key in {*held, *self.rows}:
            wanted = self.rows.get(key)
            assert _agrees(held.get(key), wanted), (key, held.get(key), wanted)


def _agrees(held: Named, wanted: Named | _Anything) -> bool:
    """Compare two rows in the columns that both have: a column may have come or gone since."""
    if isinstance(wanted, _Anything):
        return True
    if held is None or wanted is None:
        return held is wanted
    common = held.keys() & wanted.keys()
    return all(_meaning(held[name]) == _meaning(wanted[name]) for name in common)


def _meaning(value: Any) -> str:
    if isinstance(value, Decimal) and value.is_finite():
        value = value.normalize()
    return _exact(value)


def by_key(rows: Iterable[dict[str, Any]], key: Collection[str]) -> dict[Key, dict[str, Any]]:
    """Return rows by their keys; fails on a key that stands twice."""
    found: dict[Key, dict[str, Any]] = {}
    for row in rows:
        own = tuple(row[name] for name in key)
        assert own not in found, f"a key is there twice: {own}"
        found[own] = row
    return found
