"""What of a table was compared with its source, and when."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Self

#: More parts than these are kept as half as many.
_MOST_PARTS = 64


@dataclass(frozen=True, slots=True)
class KeyRange:
    """A range of keys with differences, the first and the last key as JSON."""

    first: str
    last: str
    keys: int


@dataclass(frozen=True, slots=True)
class RowSample:
    """Rows that were drawn by lot and compared, each with the same chance.

    Attributes:
        share: The chance of each row of the source.
        source_rows, mirror_rows: All rows of both; they were counted.
    """

    share: float
    rows: int
    source_rows: int
    mirror_rows: int
    derived = ("chances",)

    def chance(self, wrong: int) -> float:
        """Return how probably it meets one of so many rows that are missing or different.

        Rows of the mirror that are too many are seen by the counts, unless as many are missing.
        """
        return 1.0 - (1.0 - self.share) ** wrong

    @property
    def chances(self) -> Mapping[int, float]:
        """The same for 1, 10, 100 and 1,000 such rows."""
        return {wrong: round(self.chance(wrong), 6) for wrong in (1, 10, 100, 1_000)}


@dataclass(frozen=True, slots=True)
class CheckedPart:
    """A part of a table that was compared at one source state.

    Attributes:
        until: Its last key, as JSON; None: it reached the table's end.
        checked_at: The source's clock then.
        rows: The source's rows in it.
    """

    until: str | None
    checked_at: datetime
    rows: int

    def to_json(self) -> list[Any]:
        """Return it as a list."""
        return [self.until, self.checked_at.isoformat(), self.rows]

    @classmethod
    def from_json(cls, form: list[Any]) -> Self:
        """Read the output of `to_json`."""
        return cls(form[0], datetime.fromisoformat(form[1]), int(form[2]))


@dataclass(frozen=True, slots=True)
class Coverage:
    """How far a table has been compared part by part: one round after the other.

    Attributes:
        key: The columns of the key that the parts are ordered by.
        parts: The parts of this round, in the order of their keys.
        former: What the round before compared behind them.
        resume: Where the source goes on to be read.
    """

    key: tuple[str, ...]
    parts: tuple[CheckedPart, ...] = ()
    former: tuple[CheckedPart, ...] = ()
    resume: str | None = None
    derived = ("through", "complete", "rows", "oldest_checked_at")

    @property
    def through(self) -> str | None:
        """The key up to which this round has compared; None: none yet, or all of them."""
        return self.parts[-1].until if self.parts else None

    @property
    def complete(self) -> bool:
        """Whether this round has reached the table's end."""
        return bool(self.parts) and self.parts[-1].until is None

    @property
    def rows(self) -> int:
        """The rows that this round has compared."""
        return sum(part.rows for part in self.parts)

    @property
    def oldest_checked_at(self) -> datetime | None:
        """When the part was compared whose turn is longest ago; None if one never was."""
        known = (*self.parts, *self.former)
        if not known or known[-1].until is not None:
            return None
        return min(part.checked_at for part in known)

    def next_round(self) -> Self:
        """Return it as the next part finds it: behind a table's end comes its beginning."""
        return type(self)(self.key, former=self.parts) if self.complete else self

    def joined(self, part: CheckedPart, former: tuple[CheckedPart, ...], resume: str) -> Self:
        """Return it with one more part; `former` is what is still behind it."""
        parts = _fewer((*self.parts, part))
        return replace(self, parts=parts, former=former, resume=resume)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "key": list(self.key),
            "parts": [part.to_json() for part in self.parts],
            "former": [part.to_json() for part in self.former],
            "resume": self.resume,
        }

    @classmethod
    def from_json(cls, form: Mapping[str, Any]) -> Self:
        """Read the output of `to_json`."""
        parts, former = (
            tuple(CheckedPart.from_json(part) for part in form[name])
            for name in ("parts", "former")
        )
        return cls(tuple(form["key"]), parts, former, form["resume"])


def _fewer(parts: tuple[CheckedPart, ...]) -> tuple[CheckedPart, ...]:
    """Join neighbours where there are many; what is joined is as old as its older half."""
    if len(parts) <= _MOST_PARTS:
        return parts
    pairs = zip(parts[0:-1:2], parts[1::2], strict=False)
    joined = [
        CheckedPart(b.until, min(a.checked_at, b.checked_at), a.rows + b.rows) for a, b in pairs
    ]
    return (*joined, *parts[2 * len(joined) :])
