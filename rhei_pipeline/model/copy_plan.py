"""The plan of a copy that several processes share, and the records of what each has copied.

A table's keys are cut into ranges. A range is copied part by part, and each part is a record of its
own, so whoever goes on with a range finds where.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rhei_pipeline.model.changes import DeadLetter, Position
from rhei_pipeline.model.progress import CopyProgress
from rhei_pipeline.model.report import Report, counted, named
from rhei_pipeline.model.schema import TableSchema


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """How a table's keys are shared out.

    Attributes:
        plan_id: Tells it from all other plans, also of the same table.
        schema: The table as it is copied.
        position, shape: Those of the copy's progress: no range was read before the position.
        ends: Where each range but the last ends.
        rows: How many rows the table had when it was planned.
    """

    plan_id: str
    schema: TableSchema
    position: Position
    shape: str
    ends: tuple[str, ...]
    rows: int

    @property
    def table(self) -> str:
        """The table's name."""
        return self.schema.name

    @property
    def ranges(self) -> int:
        """How many ranges there are; they are counted from 1."""
        return len(self.ends) + 1

    def is_of(self, progress: CopyProgress | None) -> bool:
        """Return whether a copy with this progress is still the one that was planned."""
        if progress is None or progress.complete or progress.resume is not None:
            return False
        own = (self.table, self.position, self.shape)
        return own == (progress.table, progress.position, progress.shape)

    def bounds(self, number: int) -> tuple[str | None, str | None]:
        """Return after which key a range begins, and with which it ends."""
        places = (None, *self.ends, None)
        return places[number - 1], places[number]

    def to_json(self) -> dict[str, Any]:
        """Return the form that is stored."""
        return {
            "plan": self.plan_id,
            "schema": self.schema.to_json(),
            "position": [self.position.order, self.position.proof],
            "shape": self.shape,
            "ends": list(self.ends),
            "rows": self.rows,
        }

    @classmethod
    def from_json(cls, form: Mapping[str, Any]) -> "CopyPlan":
        """Read the form that is stored."""
        return cls(
            form["plan"],
            TableSchema.from_json(form["schema"]),
            Position(*form["position"]),
            form["shape"],
            tuple(form["ends"]),
            form["rows"],
        )


@dataclass(frozen=True, slots=True)
class RangePart:
    """What one process has copied of a range, and recorded at once.

    Attributes:
        plan_id: The plan's.
        number: The range.
        place: Which part of the range it is, from 1 on; of each there is one at most.
        after: After which key it begins; None at the table's beginning.
        resume: The last key that was read; None where the range has no row.
        is_last: The range ends here.
        rows: How many rows were read.
        letters: Rows of it that cannot be mirrored.
        files: What was written, as the mirror describes it.
    """

    plan_id: str
    number: int
    place: int
    after: str | None
    resume: str | None
    is_last: bool
    rows: int
    letters: tuple[DeadLetter, ...]
    files: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the form that is stored."""
        return {
            "plan": self.plan_id,
            "range": self.number,
            "place": self.place,
            "after": self.after,
            "resume": self.resume,
            "is_last": self.is_last,
            "rows": self.rows,
            "letters": [each.to_json() for each in self.letters],
            "files": dict(self.files),
        }

    @classmethod
    def from_json(cls, form: Mapping[str, Any]) -> "RangePart":
        """Read the form that is stored."""
        return cls(
            form["plan"],
            form["range"],
            form["place"],
            form["after"],
            form["resume"],
            form["is_last"],
            form["rows"],
            tuple(map(DeadLetter.from_json, form["letters"])),
            form["files"],
        )


@dataclass(frozen=True, slots=True)
class RangeStanding:
    """How far a copy in ranges has come.

    Attributes:
        plan: The plan.
        parts: What is recorded of each range, in order; of the ranges that were begun.
    """

    plan: CopyPlan
    parts: Mapping[int, Sequence[RangePart]]

    @property
    def missing(self) -> tuple[int, ...]:
        """The ranges that are not complete."""
        numbers = range(1, self.plan.ranges + 1)
        return tuple(number for number in numbers if not self.is_complete(number))

    @property
    def rows(self) -> int:
        """How many rows were read."""
        return sum(part.rows for parts in self.parts.values() for part in parts)

    def is_complete(self, number: int) -> bool:
        """Return whether all of a range is recorded."""
        parts = self.parts.get(number)
        return parts is not None and parts[-1].is_last

    def begin(self, number: int) -> tuple[int, str | None]:
        """Return which part of a range comes next, and after which key it begins."""
        return self._end_of(number, self.parts.get(number, ()))

    def gap(self) -> tuple[int, int] | None:
        """Return a range and the place of its first part that is not as it must be.

        It is lost, or another one has its name. What is recorded behind it then does not go on
        from what is recorded before it. None: each part begins where the one before it ends.
        """
        for number, parts in self.parts.items():
            for done, part in enumerate(parts):
                place, after = self._end_of(number, parts[:done])
                own = (part.plan_id, part.number, part.place, part.after)
                if own != (self.plan.plan_id, number, place, after):
                    return number, place
        return None

    def _end_of(self, number: int, parts: Sequence[RangePart]) -> tuple[int, str | None]:
        if not parts:
            return 1, self.plan.bounds(number)[0]
        return len(parts) + 1, parts[-1].resume


@dataclass(frozen=True, slots=True, repr=False)
class RangeReport(Report):
    """What one process has done for a copy in ranges.

    Attributes:
        of: How many ranges the copy has; 0 where it was complete already.
        ranges: Those of which this process has read a part.
        rows, parts, dead_letters: What it has read and recorded.
        missing: The ranges that are not complete yet.
    """

    table: str
    of: int
    ranges: tuple[int, ...] = ()
    rows: int = 0
    parts: int = 0
    dead_letters: int = 0
    missing: tuple[int, ...] = ()
    duration_seconds: float = 0.0
    shown = ("table", "ranges", "of", "rows", "parts", "missing", "duration_seconds")

    def _facts(self) -> Iterator[str]:
        yield repr(self.table)
        yield f"{counted(self.rows, 'row')} of {len(self.ranges)} of {counted(self.of, 'range')}"
        if self.dead_letters:
            yield counted(self.dead_letters, "dead letter")
        yield from named("missing", [str(number) for number in self.missing])
        yield f"{self.duration_seconds:.3f} s"
