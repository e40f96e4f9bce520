"""Queries under way: how many at once, for how long, and how to end them."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pyarrow as pa
from pyarrow import flight

from rhei_pipeline.errors import RheiError
from rhei_pipeline.model.streaming import Begun, Streamed

_AGAIN_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class QueryLimits:
    """How much one server does.

    Attributes:
        queries: Queries under way at once; more are told to come again.
        seconds: The longest that one may take, its sending included.
        batch_rows: Rows in one message; about so many of each query are in memory.
    """

    queries: int = 64
    seconds: float = 300.0
    batch_rows: int = 65_536


class _Query:
    """A query under way, which may be ended from any thread, also before it has begun."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._ended = threading.Event()
        self._cancel: Callable[[], None] | None = None
        self._over = False
        self._timer: threading.Timer | None = None
        self._arm(seconds)

    def begun(self, cancel: Callable[[], None]) -> None:
        """Take what ends it."""
        self._cancel = cancel
        if self._ended.is_set():
            cancel()

    def end(self) -> None:
        """End it, as its client asks."""
        self._ended.set()
        self._interrupt()

    def over(self) -> None:
        """Note that it is over."""
        self._over = True
        if self._timer is not None:
            self._timer.cancel()

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Give a client our message; that of an engine that was interrupted is not the reason."""
        try:
            with translated():
                yield
        except flight.FlightServerError:
            self.refuse_ended()
            raise

    def refuse_ended(self, *, cancelled: bool = False) -> None:
        """Say why it ended, where it did before its time."""
        if cancelled or self._ended.is_set():
            raise flight.FlightCancelledError("the query was cancelled")
        if time.monotonic() > self._deadline:
            raise flight.FlightTimedOutError(f"the query took longer than {self._seconds:g} s")

    def _interrupt(self) -> None:
        if self._cancel is not None:
            self._cancel()
        if not self._over:
            # An engine that is just about to begin may not hear it the first time.
            self._arm(_AGAIN_SECONDS)

    def _arm(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(seconds, self._interrupt)
        self._timer.daemon = True
        self._timer.start()


class QueryRegistry:
    """The queries under way."""

    def __init__(self, limits: QueryLimits) -> None:
        self.limits = limits
        self._places = threading.BoundedSemaphore(limits.queries)
        self._queries: dict[bytes, list[_Query]] = {}
        self._lock = threading.Lock()

    def send(
        self,
        handle: bytes,
        ask: Callable[[Begun], Streamed],
        is_cancelled: Callable[[], bool],
    ) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        """Begin a query; return its schema, and its batches as they are wanted.

        Raises:
            flight.FlightUnavailableError: Too many are under way.
        """
        with ExitStack() as held:
            query = held.enter_context(self._under_way(handle))
            with query.explained():
                streamed = ask(query.begun)
            batches = _batches(query, streamed, is_cancelled, held.pop_all())
        next(batches)  # begun, it lets go of its place also where nobody takes a batch
        return streamed.schema, batches

    @contextmanager
    def _under_way(self, handle: bytes) -> Iterator[_Query]:
        if not self._places.acquire(blocking=False):
            raise flight.FlightUnavailableError(
                f"{self.limits.queries} queries are under way: try again"
            )
        query = _Query(self.limits.seconds)
        with self._lock:
            self._queries.setdefault(handle, []).append(query)
        try:
            yield query
        finally:
            query.over()
            with self._lock:
                self._queries[handle].remove(query)
                if not self._queries[handle]:
                    del self._queries[handle]
            self._places.release()

    def cancel(self, handle: bytes) -> bool:
        """End every query under way by a handle; tell whether there was one."""
        with self._lock:
            found = list(self._queries.get(handle, ()))
        for query in found:
            query.end()
        return bool(found)


def _batches(
    query: _Query, streamed: Streamed, is_cancelled: Callable[[], bool], held: ExitStack
) -> Iterator[pa.RecordBatch]:
    """Yield an empty batch, then those of the answer."""
    with held, query.explained():
        yield pa.record_batch({})
        for batch in streamed.batches:
            query.refuse_ended(cancelled=is_cancelled())
            yield batch


@contextmanager
def translated() -> Iterator[None]:
    """Give a client our message and hint, and nothing of where it came from."""
    try:
        yield
    except RheiError as error:
        raise flight.FlightServerError(str(error)) from None
