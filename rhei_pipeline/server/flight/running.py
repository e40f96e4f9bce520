"""The running queries: how many at once, for how long, and how to cancel them."""

import logging
import math
import secrets
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import wraps
from typing import ParamSpec, TypeVar

import pyarrow as pa
from pyarrow import flight

from rhei_pipeline.errors import QueriesBusyError, RheiError, without_places
from rhei_pipeline.model.client_calls import ClientCall
from rhei_pipeline.model.query_limits import Turns
from rhei_pipeline.model.streaming import Begun, Streamed
from rhei_pipeline.server.flight.messages import MalformedError

_log = logging.getLogger(__name__)
_Given = ParamSpec("_Given")
_Answer = TypeVar("_Answer")

#: How soon a query ends whose client has gone or whose time is over, and is ended again: an engine
#: that is just about to begin may not hear it the first time.
_LOOK_SECONDS = 0.2


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
    """A query that waits for its turn or runs; it is ended from any thread, also before it begins.

    Args:
        seconds: How long it may take.
        call: The call of the client that it answers now.
    """

    def __init__(self, seconds: float, call: ClientCall) -> None:
        self._seconds = seconds
        self._deadline = math.inf
        self.call = call
        self._ended = False
        self._cancel: Callable[[], None] | None = None

    def start(self) -> None:
        """Let its time run: its turn has come.

        Raises:
            flight.FlightCancelledError: It was ended while it waited.
        """
        self.look()
        self.refuse_ended()
        self._deadline = time.monotonic() + self._seconds

    def begun(self, cancel: Callable[[], None]) -> None:
        """Store the function that cancels it."""
        self._cancel = cancel
        if self._ended:
            cancel()

    def look(self) -> None:
        """End it if its client has gone, or its time is over."""
        if self.call.is_left:
            self._ended = True
        if self._ended or self._is_late:
            self._interrupt()

    def end(self) -> None:
        """Cancel it, at its client's request."""
        self._ended = True
        self._interrupt()

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Replace an engine's interruption error by our message, which has the reason."""
        try:
            with translated():
                yield
        except flight.FlightServerError:
            self.refuse_ended()
            raise

    def refuse_ended(self) -> None:
        """Raise an error with the reason if the query was ended."""
        if self._ended:
            raise flight.FlightCancelledError("the query was cancelled")
        if self._is_late:
            raise flight.FlightTimedOutError(f"the query took longer than {self._seconds:g} s")

    @property
    def _is_late(self) -> bool:
        return time.monotonic() > self._deadline

    def _interrupt(self) -> None:
        if self._cancel is not None:
            with suppress(Exception):  # others are to be ended
                self._cancel()


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
        self._is_watched = False

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
            query = held.enter_context(self._under_way(handle, ClientCall(is_cancelled)))
            with query.call.running(), query.explained():
                held.enter_context(self._turns[is_short].taken(query.begun))
                query.start()
                streamed = ask(query.begun)
            batches = _batches(query, streamed, held.pop_all())
        next(batches)  # begun, it lets go of its place also where nobody takes a batch
        return streamed.schema, batches

    @contextmanager
    def _under_way(self, handle: bytes, call: ClientCall) -> Iterator[_Query]:
        query = _Query(self.limits.seconds, call)
        with self._lock:
            self._queries.setdefault(handle, []).append(query)
            if not self._is_watched:
                self._is_watched = True
                threading.Thread(target=self._watch, name="rhei-flight", daemon=True).start()
        try:
            yield query
        finally:
            with self._lock:
                self._queries[handle].remove(query)
                if not self._queries[handle]:
                    del self._queries[handle]

    def _watch(self) -> None:
        """Look after the queries for as long as there are any."""
        while self._has_any():
            for query in self._all():
                query.look()
            time.sleep(_LOOK_SECONDS)

    def _has_any(self) -> bool:
        """Return whether there are queries; whoever begins one after the last begins a watch."""
        with self._lock:
            self._is_watched = bool(self._queries)
            return self._is_watched

    def _all(self) -> list[_Query]:
        with self._lock:
            return [query for own in self._queries.values() for query in own]

    def end(self) -> None:
        """Cancel all running queries."""
        for query in self._all():
            query.end()

    def cancel(self, handle: bytes) -> bool:
        """Cancel every running query of a handle; return whether there was one."""
        with self._lock:
            found = list(self._queries.get(handle, ()))
        for query in found:
            query.end()
        return bool(found)


def _batches(
    query: _Query, streamed: Streamed, held: ExitStack
) -> Generator[pa.RecordBatch, None, None]:
    """Yield an empty batch, then those of the answer."""
    with held, query.explained():
        yield pa.record_batch({})
        while (batch := _next(query, streamed)) is not None:
            yield batch


def _next(query: _Query, streamed: Streamed) -> pa.RecordBatch | None:
    with query.call.running():
        batch = next(streamed.batches, None)
        query.look()
    if batch is not None:
        query.refuse_ended()
    return batch


@contextmanager
def translated() -> Iterator[None]:
    """Translate our errors for clients: message and hint, without a traceback."""
    try:
        yield
    except flight.FlightError:
        raise
    except MalformedError as error:
        raise flight.FlightServerError(f"not a message of Flight SQL: {error}") from None
    except QueriesBusyError as error:
        raise flight.FlightUnavailableError(str(error)) from None
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
