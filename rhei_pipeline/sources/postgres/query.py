"""How PostgreSQL is asked: one reading statement in a transaction that is rolled back."""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import psycopg
import pyarrow as pa
from psycopg import errors

from rhei_pipeline.errors import QueryError, QueryLimitError
from rhei_pipeline.model.cancellation import Cancel
from rhei_pipeline.model.plain_values import instant_of
from rhei_pipeline.model.query_limits import AnswerLimits
from rhei_pipeline.model.schema import Column
from rhei_pipeline.model.streaming import Begun, Streamed
from rhei_pipeline.sources.postgres.catalog import NUMERIC, arrow_type
from rhei_pipeline.sources.postgres.functions import Functions
from rhei_pipeline.sources.postgres.read_only import Statement, reading_statement
from rhei_pipeline.sources.postgres.read_sessions import Lent, ReadSessions
from rhei_pipeline.sources.postgres.types import RowShape, admit_text, row_shape
from rhei_pipeline.sources.rejections import Rejection
from rhei_pipeline.sql.read_only import WRITING, returns_nothing

#: Of a stream, so many rows come first; more at a time once it is known how large they are.
_FIRST_ROWS = 1024
_BATCH_BYTES = 32 << 20


class _NoRoomError(QueryError):
    """A numeric does not fit the decimal that was expected of its column."""


@dataclass(slots=True)
class _Asked:
    """A query: its statement, its parameters, and what is known of its columns.

    Attributes:
        begun: Whether rows were read, so that the columns' types stay as they are.
    """

    statement: Statement
    params: Sequence[Any]
    columns: Sequence[Column | None] | None
    cancel: Cancel
    begun: bool = False


class Reader:
    """Answers queries from sessions that only read.

    Args:
        sessions: Where they are asked.
        functions: What the functions that they call do.
    """

    def __init__(self, sessions: ReadSessions, functions: Functions) -> None:
        self._sessions = sessions
        self._functions = functions

    def query(
        self,
        sql: str,
        params: Sequence[Any],
        columns: Sequence[Column | None] | None,
        begun: Begun | None,
    ) -> pa.Table:
        """Run one reading statement and return its answer."""
        statement = reading_statement(sql, parameters=len(params))
        asked = _Asked(statement, params, columns, Cancel.given(begun))
        with ExitStack() as held:
            _, found = self._tried(asked, held, lambda lent: self._whole(asked, lent))
        return pa.Table.from_batches([found])

    def _whole(self, asked: _Asked, lent: Lent) -> pa.RecordBatch:
        most = self._sessions.limits.rows
        if most is not None and asked.statement.is_fetched:
            # A cursor is read no further than it takes to know that there are too many.
            found = self._first(asked, lent, most + 1)
            self._sessions.limits.refuse_rows(found.num_rows)
            return found
        session = lent.session
        # All are sent at once: a point read waits for the server once, not four times.
        with session.pipeline():
            session.begin_reading(lent.seconds)
            cursor = session.run(asked.statement.text, asked.params)
            session.execute("rollback")
        return self._batch(cursor, asked)

    def stream(
        self,
        sql: str,
        params: Sequence[Any],
        columns: Sequence[Column | None] | None,
        rows: int,
        begun: Begun | None,
    ) -> Streamed | None:
        """Run one reading statement and return its answer in batches; None where none is due."""
        statement = reading_statement(sql, parameters=len(params))
        if not statement.is_fetched:
            return None
        asked = _Asked(statement, params, columns, Cancel.given(begun))
        batches = self._streamed(asked, rows)
        return Streamed(next(batches).schema, batches, asked.cancel)

    def _streamed(self, asked: _Asked, rows: int) -> Generator[pa.RecordBatch]:
        """Yield an empty batch, then the rows as the server has them."""
        deadline = time.monotonic() + self._sessions.seconds
        wanted = min(rows, _FIRST_ROWS)
        with ExitStack() as held:
            lent, found = self._opened(asked, wanted, held)
            yield found.slice(0, 0)
            if found.num_rows < wanted:
                # All of it is here: whoever is slow to take it keeps nobody waiting.
                held.close()
                if found.num_rows:
                    yield found
                return
            timer = self._sessions.expiring(lent)
            if timer is not None:
                held.callback(timer.cancel)
            while found.num_rows:
                yield found
                asked.cancel.refuse_cancelled()
                wanted = _next_rows(found, wanted, rows)
                with self._ended_in_time(asked, lent):
                    found = self._fetched(asked, lent, wanted, deadline)

    def _opened(self, asked: _Asked, rows: int, held: ExitStack) -> tuple[Lent, pa.RecordBatch]:
        """Open a cursor and have its first rows; where there are more, in a session for long."""

        def first(lent: Lent) -> pa.RecordBatch | None:
            found = self._first(asked, lent, rows)
            return None if lent.is_short and found.num_rows == rows else found

        return self._tried(asked, held, first)

    def _first(self, asked: _Asked, lent: Lent, rows: int) -> pa.RecordBatch:
        session = lent.session
        with session.pipeline():
            session.begin_reading(lent.seconds)
            declared = f"declare rhei_stream no scroll cursor for {asked.statement.text}"
            session.run(declared, asked.params)
            cursor = session.run(f"fetch forward {rows} from rhei_stream", ())
        return self._batch(cursor, asked)

    def _fetched(self, asked: _Asked, lent: Lent, rows: int, deadline: float) -> pa.RecordBatch:
        session = lent.session
        with session.pipeline():
            if self._sessions.seconds:
                left = max(int((deadline - time.monotonic()) * 1000), 1)
                session.execute(
                    f"select pg_catalog.set_config('statement_timeout', '{left}', true)".encode()
                )
            cursor = session.run(f"fetch forward {rows} from rhei_stream", ())
        return self._batch(cursor, asked)

    def _tried(
        self, asked: _Asked, held: ExitStack, work: Callable[[Lent], pa.RecordBatch | None]
    ) -> tuple[Lent, pa.RecordBatch]:
        """Do work in a session, which `held` gives back; again where a short one does not do."""
        for is_long in (False, True):
            with ExitStack() as tried:
                lending = self._sessions.lend(
                    asked.statement.text, is_long=is_long, cancel=asked.cancel
                )
                lent = tried.enter_context(lending)
                with self._ended_in_time(asked, lent):
                    verdict = self._functions.judge(asked.statement, lent.session)
                    lent.is_tainted = verdict.runs_users_code
                    tried.enter_context(asked.cancel.ending_by(lent.session.cancel_safe))
                    found = work(lent)
                    if found is not None:
                        held.enter_context(tried.pop_all())
                        return lent, found
        raise self._too_slow()

    @contextmanager
    def _ended_in_time(self, asked: _Asked, lent: Lent) -> Iterator[None]:
        """Name a query that the server ended; pass by one that may have more time."""
        try:
            yield
        except errors.QueryCanceled as error:
            asked.cancel.refuse_cancelled()
            if not lent.is_short:
                raise self._too_slow() from error
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            if lent.is_expired:
                raise self._too_slow() from error
            raise

    def _too_slow(self) -> QueryLimitError:
        return QueryLimitError(
            f"the query took longer than {self._sessions.seconds:g} s at the source",
            hint="make it cheaper, or raise 'queries.query_seconds' (of PostgreSQL, also"
            " 'source.statement_timeout_seconds')",
        )

    def _batch(self, cursor: psycopg.Cursor[tuple[Any, ...]], asked: _Asked) -> pa.RecordBatch:
        try:
            found = _batch(cursor, asked.columns)
        except _NoRoomError as error:
            if asked.begun:
                raise QueryError(error.message, hint=error.hint) from error
            # What the server does not limit stays exact as text.
            asked.columns = None
            found = _batch(cursor, None)
        asked.begun = True
        self._sessions.limits.refuse_bytes(found.nbytes)
        return found

    def close(self) -> None:
        """Close every session; safe to repeat."""
        self._sessions.close()


def returned(cursor: psycopg.Cursor[tuple[Any, ...]], limits: AnswerLimits) -> pa.Table:
    """Return the rows of a writing statement that was run.

    Raises:
        QueryError: It returned none, or a value cannot be shown.
        QueryLimitError: They are more than `limits` allow.
    """
    if cursor.description is None:
        raise returns_nothing()
    limits.refuse_rows(cursor.rowcount)
    found = _batch(cursor, None)
    limits.refuse_bytes(found.nbytes)
    return pa.Table.from_batches([found])


def _next_rows(found: pa.RecordBatch, wanted: int, most: int) -> int:
    """Return how many rows to fetch, by how large the last ones were."""
    each: int = max(found.nbytes // max(found.num_rows, 1), 1)
    return max(min(most, wanted * 8, _BATCH_BYTES // each), 1)


def _batch(
    cursor: psycopg.Cursor[tuple[Any, ...]], columns: Sequence[Column | None] | None
) -> pa.RecordBatch:
    result = cursor.pgresult
    if result is None or result.status != psycopg.pq.ExecStatus.TUPLES_OK:
        raise QueryError("this is not a reading statement", hint=WRITING)
    places = range(result.nfields)
    declared = columns if columns is not None and len(columns) == len(places) else None
    known, shape = _columns(
        tuple([(result.fname(at), result.ftype(at), result.fmod(at)) for at in places]),
        tuple(declared) if declared is not None else (None,) * len(places),
    )
    if result.ntuples == 1 and shape is not None:
        single = shape.read([result.get_value(0, at) for at in places])
        if single is not None:
            return single
    arrays = [_array(result, place, column) for place, column in enumerate(known)]
    return pa.RecordBatch.from_arrays(arrays, [column.name for column in known])


@lru_cache(maxsize=1024)
def _columns(
    described: tuple[tuple[bytes | None, int, int], ...], declared: tuple[Column | None, ...]
) -> tuple[tuple[Column, ...], RowShape | None]:
    """Return an answer's columns, and how a single row of them is read."""
    found = []
    for (name, oid, modifier), known in zip(described, declared, strict=True):
        kept = arrow_type(oid, modifier)
        if known is not None and oid == NUMERIC and pa.types.is_decimal(known.type):
            # A sum of numerics has no declared digits, so the server leaves them out.
            kept = known.type
        found.append(Column((name or b"").decode(), kept))
    return tuple(found), row_shape(found)


def _array(result: psycopg.pq.abc.PGresult, place: int, column: Column) -> pa.Array:
    values = [result.get_value(row, place) for row in range(result.ntuples)]
    texts = pa.array(values, pa.binary()).cast(pa.string())
    array, misfits = admit_text(texts, column)
    if misfits and pa.types.is_temporal(column.type):
        array, misfits = _with_distant_instants(array, texts, misfits)
    if misfits:
        kind = _NoRoomError if pa.types.is_decimal(column.type) else QueryError
        raise kind(f"column {column.name!r}: {misfits[0].reason}", hint="cast it to text")
    return array


def _with_distant_instants(
    array: pa.Array, texts: pa.Array, misfits: list[Rejection]
) -> tuple[pa.Array, list[Rejection]]:
    """Fill in the years before Christ and behind 9999, which an answer holds though no mirror."""
    left, found = [], {}
    for misfit in misfits:
        try:
            found[misfit.row] = instant_of(texts[misfit.row].as_py(), array.type)
        except ValueError:
            left.append(misfit)
    scalars = [found.get(row, scalar) for row, scalar in enumerate(array)]
    return pa.array(scalars, array.type), left
