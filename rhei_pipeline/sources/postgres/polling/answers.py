"""Answers of one snapshot, by the text of the question: many are asked with one statement."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg

from rhei_pipeline.errors import RheiError
from rhei_pipeline.sources.postgres.catalog import Connection

#: Questions in one statement, and about how long its text may be: the server plans it as a whole.
_AT_ONCE, _TEXT_LENGTH = 25, 500_000
#: Few rows lie behind a position, which a plan for any values cannot know: it uses the index that
#: polling asks for wherever there is one.
_CHOICES = {"plan_cache_mode": "force_generic_plan", "enable_seqscan": "off", "jit": "off"}
_PLANNED_ONCE = "".join(f"set local {name} = {value}; " for name, value in _CHOICES.items())
_PLANNED_AS_EVER = "".join(f"set local {name} to default; " for name in _CHOICES)


class Answers:
    """Runs questions, which are statements that return one row, inside one transaction.

    In one snapshot a question has one answer, so asking it ahead changes nothing but the time.

    Args:
        connection: Open, in a REPEATABLE READ transaction.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._known: dict[str, tuple[Any, ...]] = {}

    def row(self, question: str) -> tuple[Any, ...]:
        """Return the answer to one question."""
        if question not in self._known:
            found = self._connection.execute(question.encode()).fetchone()
            self._known[question] = found if found is not None else (None,)
        return self._known[question]

    def ask(self, questions: Iterable[str], columns: int = 1) -> None:
        """Ask questions ahead whose answers have so many columns: numbers, texts, truths, lists."""
        names = ", ".join(f"a{number}" for number in range(columns))
        for some in _groups(sorted({*questions} - self._known.keys())):
            statement = " union all ".join(
                f"select {number}, json_build_array({names})::text from ({question}) q({names})"
                for number, question in enumerate(some)
            )
            for number, found in self._connection.execute(statement.encode()).fetchall():
                self._known[some[number]] = tuple(json.loads(found))

    @contextmanager
    def ahead(self) -> Iterator[None]:
        """Ask in a block that may fail: it is then as if nothing had been asked in it.

        Whoever needs an answer asks for it alone, and an error is then its own.
        """
        before = dict(self._known)
        self._connection.execute(f"savepoint rhei_ahead; {_PLANNED_ONCE}", prepare=False)
        try:
            yield
            self._connection.execute(
                f"{_PLANNED_AS_EVER} release savepoint rhei_ahead", prepare=False
            )
        except (psycopg.Error, RheiError):
            # The locks that keep a table from being rewritten are given back as well.
            self._known = before
            self._connection.execute("rollback to savepoint rhei_ahead")


def _groups(questions: Sequence[str]) -> Iterator[Sequence[str]]:
    start = length = 0
    for end, question in enumerate(questions):
        if end - start == _AT_ONCE or (end > start and length + len(question) > _TEXT_LENGTH):
            yield questions[start:end]
            start, length = end, 0
        length += len(question)
    if start < len(questions):
        yield questions[start:]
