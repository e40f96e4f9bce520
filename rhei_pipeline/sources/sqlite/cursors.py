"""Takes the rows of a query, a few at a time, whatever bytes its texts are."""

import sqlite3
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import chain, islice
from sys import getsizeof
from typing import Any

from rhei_pipeline.errors import QueryError
from rhei_pipeline.model.portions import portions
from rhei_pipeline.sources.sqlite.placeholders import by_number
from rhei_pipeline.sources.sqlite.types import InvalidText
from rhei_pipeline.sql.read_only import no_unicode

#: Columns that one select can return (SQLITE_MAX_COLUMN).
MOST_CHOSEN = 2_000

Rows = list[tuple[Any, ...]]
#: Returns up to this many next rows; none at the end.
Take = Callable[[int], Rows]


class RowCursor:
    """The rows of a query, in order.

    Text that is not UTF-8 makes the driver fail in mid-row. The query is then run again from its
    start with a reader that keeps such text as `InvalidText`; inside one snapshot it meets the
    same rows in the same order. One that meets others each time is read so from the beginning.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        sql: str,
        params: Sequence[Any],
        *,
        repeats: bool = True,
    ) -> None:
        self._connection, self._query = connection, (sql, params)
        self._is_tolerant, self._taken = not repeats, 0
        with nullcontext() if repeats else _any_text(connection):
            self._cursor = connection.execute(sql, params)

    def take(self, count: int) -> Rows:
        """Return up to so many next rows; none at the end."""
        rows = self._next_tolerant(count) if self._is_tolerant else self._next(count)
        self._taken += len(rows)
        return rows

    def _next(self, count: int) -> Rows:
        try:
            return self._cursor.fetchmany(count)
        except sqlite3.OperationalError as error:
            if "UTF-8" not in str(error):
                raise
        self._is_tolerant = True
        with _any_text(self._connection):
            self._cursor = self._connection.execute(*self._query)
            deque(islice(self._cursor, self._taken), maxlen=0)
        return self._next_tolerant(count)

    def _next_tolerant(self, count: int) -> Rows:
        with _any_text(self._connection):
            return self._cursor.fetchmany(count)


def wide_rows(
    connection: sqlite3.Connection, chosen: Sequence[str], source: str, params: Sequence[Any]
) -> Take:
    """Run `select chosen` + `source`, however many columns are chosen; return what takes its rows.

    More than one select can return are read by several side by side, so `source` must then give
    its rows in one order.
    """
    parts = [chosen[i : i + MOST_CHOSEN] for i in range(0, len(chosen), MOST_CHOSEN)]
    cursors = [RowCursor(connection, f"select {', '.join(part)}{source}", params) for part in parts]
    if len(cursors) == 1:
        return cursors[0].take
    return lambda count: [
        tuple(chain.from_iterable(pieces))
        for pieces in zip(*(cursor.take(count) for cursor in cursors), strict=True)
    ]


def run(on: sqlite3.Connection | sqlite3.Cursor, sql: str, params: Sequence[Any]) -> sqlite3.Cursor:
    """Run a statement of the user's; return its cursor.

    Raises:
        QueryError: SQLite has no such value, or text.
    """
    try:
        return on.execute(by_number(sql, params), params)
    except OverflowError:
        raise QueryError(
            "a value is larger than the integers of SQLite", hint="give it as a text or a real"
        ) from None
    except UnicodeEncodeError:
        raise no_unicode() from None


def fetch(
    connection: sqlite3.Connection, sql: str, params: Sequence[Any], size: int
) -> Iterator[Rows]:
    """Run a query and yield its rows in lists of at most `size`, and of bounded bytes."""
    yield from portions(RowCursor(connection, sql, params).take, size_of, size)


def gather(cursor: sqlite3.Cursor, size: int) -> Iterator[Rows]:
    """Yield a cursor's rows in lists of at most `size`, and of bounded bytes."""
    yield from portions(cursor.fetchmany, size_of, size)


def size_of(rows: Sequence[tuple[Any, ...]]) -> int:
    """Return how many bytes the values of rows take, about."""
    return sum(map(getsizeof, chain.from_iterable(rows)))


@contextmanager
def _any_text(connection: sqlite3.Connection) -> Iterator[None]:
    ordinary = connection.text_factory
    connection.text_factory = _tolerant_text
    try:
        yield
    finally:
        connection.text_factory = ordinary


def _tolerant_text(raw: bytes) -> str | InvalidText:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return InvalidText(raw)
