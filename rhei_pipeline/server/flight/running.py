"""The running queries: how many at once, for how long, and how to cancel them."""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import ParamSpec, TypeVar

import pyarrow as pa
from pyarrow import flight

from rhei_pipeline.errors import QueriesBusyError, RheiError, without_places
from rhei_pipeline.model.query_limits import Turns
from rhei_pipeline.model.streaming import Begun, Streamed
from rhei_pipeline.server.flight.messages import MalformedError

_log = logging.getLogger(__name__)
_Given = ParamSpec("_Given")
_Answer = TypeVar("_Answer")
_AGAIN_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class FlightLimits:
    """How much one server does.

    Attributes:
        queries: Long queries under way at once, and beside them short ones; more wait for their
            turn.
        seconds: The longest that one may take, its sending included.
        batch_rows: Rows in one message; of each query a few of them are in memory.
        turn_seconds: How long one waits for its turn before it is refused for now.
    """

    queries: int = 64
    seconds: float = 300.0
    batch_rows: int = 16_384
    turn_seconds: float = 30.0


class _Query:
    """A running query, which can be cancelled from any thread, even before it has begun."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._ended = threading.Event()
        self._cancel: Callable[[], None] | None = None
        self._over = False
        self._timer: threading.Timer | None = None
        self._arm(seconds)

    def begun(self, cancel: Callable[[], None]) -> None:
        """Store the function that cancels it."""
        self._cancel = cancel
        if self._ended.is_set():
            cancel()

    def end(self) -> None:
        """Cancel it, at its client's request."""
        self._ended.set()
        self._interrupt()

    def over(self) -> None:
        """Record that it has ended."""
        self._over = True
        if self._timer is not None:
            self._timer.cancel()

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Replace an engine's interruption error by our message, which has the reason."""
        try:
            with translated():
                yield
        except flight.FlightServerError:
            self.refuse_ended()
            raise

    def refuse_ended(self, *, cancelled: bool = False) -> None:
        """Raise an error with the reason if the query was cancelled."""
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
    """The running queries of a server."""

    def __init__(self, limits: FlightLimits) -> None:
        self.limits = limits
        #: A read of single rows never waits behind long queries, nor behind slow readers.
        self._turns = {
            is_short: Turns(limits.queries, limits.turn_seconds) for is_short in (True, False)
        }
        self._queries: dict[bytes, list[_Query]] = {}
        self._lock = threading.Lock()

    def send(
        self,
        handle: bytes,
        ask: Callable[[Begun], Streamed],
        is_cancelled: Callable[[], bool],
        *,
        is_short: bool = False,
    ) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        """Start a query; return its schema, and its batches as they are read.

        Raises:
            flight.FlightUnavailableError: Too many are running.
        """
        with ExitStack() as held:
            try:
                held.enter_context(self._turns[is_short].taken())
            except QueriesBusyError as error:
                raise flight.FlightUnavailableError(str(error)) from None
            query = held.enter_context(self._under_way(handle))
            with query.explained():
                streamed = ask(query.begun)
            batches = _batches(query, streamed, is_cancelled, held.pop_all())
        next(batches)  # begun, it lets go of its place also where nobody takes a batch
        return streamed.schema, batches

    @contextmanager
    def _under_way(self, handle: bytes) -> Iterator[_Query]:
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

    def end(self) -> None:
        """Cancel all running queries."""
        with self._lock:
            found = [query for own in self._queries.values() for query in own]
        for query in found:
            query.end()

    def cancel(self, handle: bytes) -> bool:
        """Cancel every running query of a handle; return whether there was one."""
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
    """Translate our errors for clients: message and hint, without a traceback."""
    try:
        yield
    except flight.FlightError:
        raise
    except MalformedError as error:
        raise flight.FlightServerError(f"not a message of Flight SQL: {error}") from None
    except RheiError as error:
        raise flight.FlightServerError(without_places(str(error))) from None
    except RecursionError:
        raise flight.FlightServerError("the statement is nested too deeply") from None
    except Exception:  # noqa: BLE001  (a client gets no more of it than how to find it)
        number = secrets.token_hex(4)
        _log.exception("a call of a client failed: error %s", number)
        raise flight.FlightServerError(
            f"the server failed, for a reason in its log: error {number}"
        ) from None


def answered(call: Callable[_Given, _Answer]) -> Callable[_Given, _Answer]:
    """Turn whatever a client's call ends in into an answer, or an error of ours."""

    @wraps(call)
    def guarded(*args: _Given.args, **kwargs: _Given.kwargs) -> _Answer:
        with translated():
            return call(*args, **kwargs)

    return guarded
