"""Answers other processes for the mirror that this one holds: Arrow Flight over a Unix socket."""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import pyarrow as pa
from pyarrow import flight

from rhei_pipeline.errors import MirrorError, RheiError
from rhei_pipeline.holder import wire
from rhei_pipeline.holder.client import STOOD_ASIDE
from rhei_pipeline.holder.gate import StoodAsideError
from rhei_pipeline.holder.held import ANSWERED, Held
from rhei_pipeline.holder.place import sever
from rhei_pipeline.model.change_feed import TableChanges
from rhei_pipeline.model.client_calls import ClientCall
from rhei_pipeline.model.forking import keep_from_forks
from rhei_pipeline.model.query_limits import too_long
from rhei_pipeline.model.reports import SyncReport
from rhei_pipeline.model.streaming import Streamed

_log = logging.getLogger(__name__)
_Found = TypeVar("_Found")

#: How soon a query ends whose asker has ended.
_LOOK_SECONDS = 0.2
#: How long a server that closes waits for those who are slow to take their answers.
_CLOSE_SECONDS = 1.0
_IN_TABLES = frozenset({"query", "as_of", "dead_letters", "diff", "changes", "broken_histories"})
_IN_STREAMS = frozenset({"stream", "stream_changes"})
_IN_VALUES = ANSWERED - _IN_TABLES - _IN_STREAMS
_CANCELLABLE = frozenset({"query", "as_of"})


class Desk(Protocol):
    """What holds the mirror in this process, as those that ask it see it."""

    def answer_here(self, ask: Callable[[Held], _Found]) -> _Found:
        """Answer from the open engine.

        Raises:
            StoodAsideError: This process does not hold the mirror.
        """

    def stream_here(self, ask: Callable[[Held], Streamed]) -> Streamed:
        """Answer in batches; the mirror is held until they are taken, or closed."""

    def step_aside(self) -> bool:
        """Close the mirror for whoever has the turn; return whether that was done in time."""

    def follow(self, after: int | None) -> tuple[bool, int, list[SyncReport]]:
        """Return whether this process syncs in the background, and its reports after a number."""


class _Asked:
    """A query that another process asked for, and that may be cancelled at any time."""

    def __init__(self, context: flight.ServerCallContext | None = None) -> None:
        self._context = context
        self._cancel: Callable[[], None] | None = None
        self._ended = False

    def begun(self, cancel: Callable[[], None]) -> None:
        """Take what cancels it."""
        self._cancel = cancel
        if self._ended:
            cancel()

    def end(self) -> None:
        """Cancel it."""
        self._ended = True
        if self._cancel is not None:
            self._cancel()

    def look(self) -> None:
        """Cancel it if its asker has gone; again where the engine has not heard it."""
        if self._ended or (self._context is not None and self._context.is_cancelled()):
            self.end()


class _Sent(_Asked):
    """An answer on its way in batches; ended, it is an error, never a shorter answer.

    While a batch is on its way to an asker that takes none, nothing of ours runs: so whoever ends
    this also closes what is read from.
    """

    def __init__(
        self,
        streamed: Streamed,
        is_cancelled: Callable[[], bool],
        closing: threading.Event,
        seconds: float,
    ) -> None:
        super().__init__()
        self.begun(streamed.cancel)
        self._batches, self._call = streamed.batches, ClientCall(is_cancelled)
        self._closing = closing
        self._seconds, self._until = seconds, time.monotonic() + seconds
        self._is_late = False
        self._reading = threading.Lock()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> pa.RecordBatch:
        with self._reading, _answered(self._closing), self._call.running():
            if self._is_late:
                raise too_long(self._seconds)
            if self._ended or self._call.is_left:
                raise flight.FlightCancelledError("the query was cancelled")
            batch = next(self._batches, None)
        if batch is None:
            raise StopIteration
        return batch

    def end(self) -> None:
        """Cancel it, and let go of the mirror."""
        super().end()
        if self._reading.acquire(blocking=False):
            try:
                self._batches.close()  # type: ignore[attr-defined]
            finally:
                self._reading.release()

    def look(self) -> None:
        """End it where nobody has taken it in time, or its asker has gone."""
        self._is_late |= time.monotonic() > self._until
        if self._ended or self._is_late or self._call.is_left:
            self.end()


class HolderServer(flight.FlightServerBase):  # type: ignore[misc]
    """Listens at a socket until it is closed.

    Args:
        socket: Its name; the folder is this user's alone.
        desk: What is asked.
        seconds: How long an asker may take over an answer in batches.
    """

    def __init__(self, socket: Path, desk: Desk, seconds: float) -> None:
        keep_from_forks(self)
        self.socket = socket
        self._desk, self._seconds = desk, seconds
        self._under_way: dict[str, _Asked] = {}
        self._lock = threading.Lock()
        self._some, self._closing = threading.Event(), threading.Event()
        self._watcher: threading.Thread | None = None
        super().__init__(f"grpc+unix://{socket}")

    def close(self) -> None:
        """End what is asked for, and listen no more; waits little for who takes no answers."""
        self._closing.set()
        self._some.set()
        with self._lock:
            asked = list(self._under_way.values())
        for one in asked:
            one.end()
        # Flight's own waits until the last answer is taken, for as long as that may be.
        ending = threading.Thread(target=self.shutdown, name="rhei-closing", daemon=True)
        ending.start()
        ending.join(_CLOSE_SECONDS)
        if ending.is_alive():
            sever(self.socket)
            ending.join(_CLOSE_SECONDS)

    def do_get(
        self, context: flight.ServerCallContext, ticket: flight.Ticket
    ) -> flight.FlightDataStream:
        """Answer with rows."""
        with _answered(self._closing):
            asked, name, *arguments = wire.unpack(ticket.ticket)
            if name in _IN_STREAMS:
                return self._stream(asked, context, name, arguments)
            if name not in _IN_TABLES:
                raise _unknown(name)
            with self._watched(asked, _Asked(context)) as query:
                more = {"begun": query.begun} if name in _CANCELLABLE else {}
                found = self._desk.answer_here(lambda held: getattr(held, name)(*arguments, **more))
            if isinstance(found, TableChanges):
                told = wire.with_position(found.rows.schema, found).metadata
                found = found.rows.replace_schema_metadata(told)
            return flight.RecordBatchStream(found)

    def _stream(
        self, asked: str, context: flight.ServerCallContext, name: str, arguments: list[Any]
    ) -> flight.FlightDataStream:
        with self._watched(asked, _Asked(context)) as query:

            def ask(held: Held) -> Streamed:
                if name == "stream":
                    sql, params, rows, own = arguments
                    return held.stream(sql, params, rows, query.begun, own)
                found = held.stream_changes(*arguments)
                return Streamed(wire.with_position(found.schema, found), found.batches)

            streamed = self._desk.stream_here(ask)
        sent = _Sent(streamed, context.is_cancelled, self._closing, self._seconds)
        return flight.GeneratorStream(streamed.schema, self._sent(asked, sent))

    def _sent(self, asked: str, sent: _Sent) -> Iterator[pa.RecordBatch]:
        with self._watched(asked, sent):
            try:
                yield from sent
            finally:
                sent.end()

    def do_action(
        self, context: flight.ServerCallContext, action: flight.Action
    ) -> Iterator[flight.Result]:
        """Answer with a value, cancel a query, or step aside."""
        del context
        with _answered(self._closing):
            body = action.body.to_pybytes()
            if action.type == "cancel":
                self._cancel(body.decode())
                return iter([])
            found = wire.pack(self._value(action.type, list(wire.unpack(body))))
            return iter([flight.Result(pa.py_buffer(found))])

    def _value(self, kind: str, arguments: list[Any]) -> object:
        if kind == "step_aside":
            return self._desk.step_aside()
        if kind == "follow":
            return list(self._desk.follow(*arguments))
        name, *arguments = arguments
        if kind != "call" or name not in _IN_VALUES:
            raise _unknown(name)
        return self._desk.answer_here(lambda held: getattr(held, name)(*arguments))

    def _cancel(self, asked: str) -> None:
        with self._lock:
            query = self._under_way.get(asked)
        if query is not None:
            query.end()

    @contextmanager
    def _watched(self, asked: str, query: _Asked) -> Iterator[_Asked]:
        """Cancel a query when its asker ends, or asks for that."""
        with self._lock:
            self._under_way[asked] = query
            if self._watcher is None:
                self._watcher = threading.Thread(target=self._watch, name="rhei-asked", daemon=True)
                self._watcher.start()
        self._some.set()
        try:
            yield query
        finally:
            with self._lock:
                del self._under_way[asked]
                if not self._under_way:
                    self._some.clear()

    def _watch(self) -> None:
        while self._some.wait() and not self._closing.wait(_LOOK_SECONDS):
            with self._lock:
                # Under the lock: a call that has ended has no context any more.
                for query in self._under_way.values():
                    query.look()


def _unknown(name: object) -> MirrorError:
    return MirrorError(
        f"the process that holds the mirror does not answer {name!r}",
        hint="restart it with the version of rhei-pipeline that is installed now",
    )


@contextmanager
def _answered(closing: threading.Event | None = None) -> Iterator[None]:
    """Send our errors as what they are, and of others no more than how to find them.

    What fails because the mirror is being closed is to be asked for elsewhere.
    """
    try:
        yield
    except StoodAsideError:
        raise flight.FlightServerError("stood aside", extra_info=STOOD_ASIDE) from None
    except flight.FlightError:
        raise
    except RheiError as error:
        if closing is not None and closing.is_set():
            raise flight.FlightServerError("closing", extra_info=STOOD_ASIDE) from None
        raise flight.FlightServerError("refused", extra_info=wire.pack_error(error)) from None
    except Exception as error:  # noqa: BLE001
        number = secrets.token_hex(4)
        _log.exception("a call of another process failed: error %s", number)
        known = RheiError(
            f"the process that holds the mirror failed with {type(error).__name__}, for a reason "
            f"in its log: error {number}"
        )
        raise flight.FlightServerError("failed", extra_info=wire.pack_error(known)) from None
