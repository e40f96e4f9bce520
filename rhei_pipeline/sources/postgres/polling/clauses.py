"""SQL whose values stand apart, so that the server plans it once whatever they are."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import RawCursor

from rhei_pipeline.sources.postgres.catalog import Connection
from rhei_pipeline.sources.postgres.rows import bare_literal

#: A value, and the type that it is given as; an empty one: its context's.
Value = tuple[str | None, str]

#: Stands for a value; no name and no literal of PostgreSQL has it.
_PLACE = "\0"
#: Statements are kept prepared by the driver for so many questions in one.
_AT_ONCE = 50


@dataclass(frozen=True, slots=True)
class Clause:
    """A piece of SQL.

    Attributes:
        text: Has a mark wherever a value belongs.
        values: In this order.
    """

    text: str
    values: tuple[Value, ...] = ()

    @classmethod
    def of(cls, value: str | None, type_name: str = "") -> "Clause":
        """Return a value alone."""
        return cls(f"{_PLACE}::{type_name}" if type_name else _PLACE, ((value, type_name),))

    @classmethod
    def joined(cls, separator: str, parts: Iterable["Clause"]) -> "Clause":
        """Return pieces beside each other."""
        known = list(parts)
        values = tuple(value for part in known for value in part.values)
        return cls(separator.join(part.text for part in known), values)

    def then(self, other: "Clause", text: str) -> "Clause":
        """Return it with another piece and some text behind it."""
        return Clause(f"{self.text}{other.text}{text}", self.values + other.values)

    def __str__(self) -> str:
        """Return it with its values as literals."""
        first, *others = self.text.split(_PLACE)
        literals = (bare_literal(value) for value, _ in self.values)
        return first + "".join(
            f"{value}{text}" for value, text in zip(literals, others, strict=True)
        )


def ask_together(connection: Connection, questions: Sequence[Clause]) -> list[tuple[Any, ...]]:
    """Return the answers to questions, which are statements of one row and equal columns.

    The tables in them are the same in every snapshot, and only the values are others, so a
    statement stays prepared.
    """
    found: list[tuple[Any, ...]] = []
    for start in range(0, len(questions), _AT_ONCE):
        text, values = _together(questions[start : start + _AT_ONCE])
        rows = RawCursor(connection).execute(text.encode(), values, prepare=True).fetchall()
        found += [row[1:] for row in sorted(rows, key=lambda row: row[0])]
    return found


def _together(questions: Sequence[Clause]) -> tuple[str, list[str | None]]:
    """Return one statement with parameters; equal values of one declared type share theirs."""
    values: list[str | None] = []
    shared: dict[Value, str] = {}
    texts = []
    for number, question in enumerate(questions):
        first, *others = question.text.split(_PLACE)
        parts = [f"select {number}, ", first]
        for known, text in zip(question.values, others, strict=True):
            parameter = shared.get(known)
            if parameter is None:
                values.append(known[0])
                parameter = f"${len(values)}"
                if known[1]:
                    shared[known] = parameter
            parts += (parameter, text)
        texts.append("".join(parts))
    return " union all ".join(texts), values
