"""What one query may take: its turn, its time, its rows, and the bytes that are held of it."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pyarrow as pa

from rhei_pipeline.errors import QueriesBusyError, QueryLimitError, RheiError, mirror_closed
from rhei_pipeline.model.cancellation import Cancel
from rhei_pipeline.model.places import Places
from rhei_pipeline.model.streaming import Begun

#: How soon a query that was ended is ended again: an engine about to begin may not have heard it.
_AGAIN_SECONDS = 1.0
#: Bytes after which a batch is given on, however few rows it has.
_BATCH_BYTES = 8 * 2**20


@dataclass(frozen=True, slots=True)
class AnswerLimits:
    """How large an answer may be.

    Attributes:
        held_bytes: The most that it takes while it is held whole; None: any.
        rows: The most rows that it has; None: any.
    """

    held_bytes: int | None = None
    rows: int | None = None

    def refuse_bytes(self, held: int) -> None:
        """Do nothing for an answer that takes no more than is allowed.

        Raises:
            QueryLimitError: It takes more.
        """
        if self.held_bytes is not None and held > self.held_bytes:
            raise QueryLimitError(
                f"the answer takes more than {self.held_bytes:,} bytes",
                hint="ask for less at once, stream it, or raise queries.query_bytes",
            )

    def refuse_rows(self, count: int) -> None:
        """Do nothing for an answer that has no more rows than are allowed.

        Raises:
            QueryLimitError: It has more.
        """
        if self.rows is not None and count > self.rows:
            raise QueryLimitError(
                f"the answer has more than {self.rows:,} rows",
                hint="ask for fewer rows, or raise queries.query_rows",
            )

    def with_another_row(self) -> "AnswerLimits":
        """Return limits for an answer of which one row more is read than is given on."""
        return self if self.rows is None else replace(self, rows=self.rows + 1)


#: An answer may be of any size.
NO_LIMITS = AnswerLimits()


@dataclass(frozen=True, slots=True)
class QueryLimits:
    """What queries may take.

    Attributes:
        seconds: The longest that one may take; of a streamed one until its last batch is taken.
        answer: How large an answer may be.
        at_once: How many long queries run at once, and beside them how many short ones.
        turn_seconds: How long one waits for its turn.
    """

    seconds: float = 300.0
    answer: AnswerLimits = AnswerLimits(held_bytes=2**30)
    at_once: int = 64
    turn_seconds: float = 30.0


class Turns:
    """Lets so many in at once; the others wait in line, and whoever came first goes first."""

    def __init__(self, at_once: int, wait_seconds: float) -> None:
        self._places = Places(at_once)
        self._wait_seconds = wait_seconds

    @contextmanager
    def taken(self, begun: Begun | None = None) -> Iterator[None]:
        """Hold a turn for the length of the block; its asker is given, too, what ends the wait.

        Raises:
            QueriesBusyError: None was free in time.
            QueryError: Its asker has ended the wait.
        """
        cancel = Cancel.given(begun)
        if not self._places.take(self._wait_seconds, cancel):
            cancel.refuse_cancelled()
            raise QueriesBusyError(
                f"{self._places.number} queries are under way, and this one's turn did not come in"
                f" {self._wait_seconds:g} s",
                hint="try again, or let more run at once: queries.at_once",
            )
        try:
            yield
        finally:
            self._places.give_back()


class QueryClock:
    """Ends queries that take too long; one thread watches over all of them.

    Args:
        seconds: How long each may take.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._lock = threading.Condition()  # notified when it is closed
        self._timed: OrderedDict[int, TimedQuery] = OrderedDict()  # the first ends first
        self._late: dict[int, TimedQuery] = {}
        self._watching = False
        self._resting = False
        self._closed = False

    @contextmanager
    def timing(self, begun: Begun | None = None) -> Iterator["TimedQuery"]:
        """Time a query for the length of the block; its asker is given, too, what cancels it.

        Raises:
            QueryLimitError: The query failed, and its time was up.
            MirrorError: It failed, and the mirror was closed.
        """
        query = TimedQuery(self.seconds, begun)
        with self._lock:
            if self._closed:
                query.end(mirror_closed())
            self._timed[id(query)] = query
            if not self._watching:
                self._watching = True
                threading.Thread(target=self._watch, name="rhei-clock", daemon=True).start()
        try:
            yield query
        except RheiError:
            query.refuse_ended()
            raise
        finally:
            with self._lock:
                self._timed.pop(id(query), None)
                self._late.pop(id(query), None)
                if self._resting:
                    self._lock.notify()

    def rest(self) -> None:
        """Let the thread end as soon as nothing is timed: whoever asks is done, as far as it shows.

        What is under way goes on, and what begins later is timed all the same. Without this the
        thread waits for as long as the last query might have taken.
        """
        with self._lock:
            self._resting = True
            self._lock.notify()

    def close(self) -> None:
        """End all queries, those under way and any that begins later: the mirror is closed."""
        with self._lock:
            self._closed = True
            self._late.update(self._timed)
            self._timed.clear()
            under_way = list(self._late.values())
            self._lock.notify()
        for query in under_way:
            query.end(mirror_closed())

    def _watch(self) -> None:
        while (pause := self._end_late()) is not None:
            with self._lock:
                is_idle = not self._timed and not self._late
                if not (is_idle and (self._closed or self._resting)):
                    self._lock.wait(_AGAIN_SECONDS if self._closed else pause)

    def _end_late(self) -> float | None:
        """End what is late; return after how long to look again, None where nothing is timed."""
        now = time.monotonic()
        with self._lock:
            while self._timed and next(iter(self._timed.values())).deadline <= now:
                late, query = self._timed.popitem(last=False)
                self._late[late] = query
            ended = list(self._late.values())
            self._watching = bool(self._timed or ended)
            first = next(iter(self._timed.values()), None)
        for query in ended:
            query.end(too_long(self.seconds))
        if first is None:
            return _AGAIN_SECONDS if ended else None
        return min(first.deadline - now, _AGAIN_SECONDS if ended else self.seconds)


class TimedQuery:
    """A query under way, which may be ended before it has begun."""

    def __init__(self, seconds: float, begun: Begun | None) -> None:
        self.started = time.monotonic()
        self.deadline = self.started + seconds
        self._asker = begun
        self._cancel: Callable[[], None] | None = None
        self._ended: RheiError | None = None

    @property
    def elapsed_seconds(self) -> float:
        """How long it has taken so far."""
        return time.monotonic() - self.started

    def begun(self, cancel: Callable[[], None]) -> None:
        """Take what ends it; may be called again where another side is asked."""
        self._cancel = cancel
        if self._asker is not None:
            self._asker(cancel)
        if self._ended is not None:
            cancel()

    def end(self, reason: RheiError) -> None:
        """End it; what is said first is why."""
        self._ended = self._ended or reason
        if self._cancel is not None:
            self._cancel()

    def refuse_ended(self) -> None:
        """Do nothing while nobody has ended it.

        Raises:
            RheiError: Why it was ended.
        """
        if self._ended is not None:
            raise self._ended from None


def too_long(seconds: float) -> QueryLimitError:
    """Return the error of a query, or of an answer on its way, that takes longer than it may."""
    return QueryLimitError(
        f"the query took longer than {seconds:g} s",
        hint="ask for less at once, or raise queries.query_seconds",
    )


def whole(
    schema: pa.Schema, batches: Iterable[pa.RecordBatch], limits: AnswerLimits = NO_LIMITS
) -> pa.Table:
    """Gather an answer, as long as it is within the limits.

    Raises:
        QueryLimitError: It is larger.
    """
    gathered, held = list[pa.RecordBatch](), 0
    for batch in counted(batches, limits):
        gathered.append(batch)
        held += batch.nbytes
        limits.refuse_bytes(held)
    return pa.Table.from_batches(gathered, schema)


def counted(batches: Iterable[pa.RecordBatch], limits: AnswerLimits) -> Iterator[pa.RecordBatch]:
    """Yield batches for as long as they have no more rows than an answer may.

    Raises:
        QueryLimitError: They have more.
    """
    rows = 0
    for batch in batches:
        rows += batch.num_rows
        limits.refuse_rows(rows)
        yield batch


def gathered(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """Yield batches of about so many rows, of fewer where they are wide."""
    waiting, held, size = list[pa.RecordBatch](), 0, 0
    for batch in batches:
        waiting.append(batch)
        held, size = held + batch.num_rows, size + batch.nbytes
        if held >= rows or size >= _BATCH_BYTES:
            yield pa.concat_batches(waiting)
            waiting, held, size = [], 0, 0
    if waiting:
        yield pa.concat_batches(waiting)
