"""Asks the process that holds a mirror, over its socket."""

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from pyarrow import flight

from rhei_pipeline.changes.consume import After, OnLost
from rhei_pipeline.errors import MirrorBusyError, QueryError
from rhei_pipeline.holder import wire
from rhei_pipeline.holder.held import ANSWERED, Hint
from rhei_pipeline.holder.place import is_private
from rhei_pipeline.holder.worker import Worker, awaited
from rhei_pipeline.mirrors.locking import LockNote
from rhei_pipeline.model.change_feed import ChangeStream, TableChanges
from rhei_pipeline.model.forking import keep_from_forks, note_opened
from rhei_pipeline.model.query_limits import QueryClock, QueryLimits, whole
from rhei_pipeline.model.reports import SyncReport
from rhei_pipeline.model.streaming import Begun, Streamed
from rhei_pipeline.query.freshness import Demand, Written
from rhei_pipeline.sync.initial_sync import OnProgress
from rhei_pipeline.sync.pipeline import no_progress

_log = logging.getLogger(__name__)
_Found = TypeVar("_Found")

#: What an answer carries that is none: the process has just stepped aside.
STOOD_ASIDE = b"stood aside"
#: After so long, whoever waits is told for whom.
_TOLD_SECONDS = 1.0
#: A process that is alive takes note of this much sooner.
_NOTICE_SECONDS = 5.0
#: It steps aside in this time, or says that it does not.
_MOVE_SECONDS = 20.0


class HolderGoneError(Exception):
    """The process answers no more: it has ended, or stepped aside; somebody else holds the mirror.

    It never leaves this room: whoever asks then asks again.
    """


class _Request:
    """What this process asks for, by a name of its own, and may cancel."""

    def __init__(self) -> None:
        self.name = uuid.uuid4().hex
        self.is_cancelled = False


class Holder:
    """The process that holds a mirror, as another one asks it.

    It answers what `Held` answers, by the same names, where they are in `ANSWERED`.

    Args:
        note: What the process says of itself.
        limits: What a query of this process may take; the holder's own limits hold as well.
        on_query: Called with each query's side and seconds.

    Raises:
        MirrorBusyError: Its socket is not in a folder of this user alone.
    """

    def __init__(
        self, note: LockNote, limits: QueryLimits, on_query: Callable[[str, float], None]
    ) -> None:
        if note.socket is None or not is_private(Path(note.socket).parent):
            raise MirrorBusyError(
                f"the mirror is held by another process: {note.shown}; its socket is not in a "
                "folder that only this user can enter",
                hint="run both as the same user, and delete a folder that is not private",
            )
        note_opened()
        keep_from_forks(self)
        self.note, self._on_query = note, on_query
        self._worker = Worker()
        self._clock, self._limits = QueryClock(limits.seconds), limits
        # Its own log would tell a user's terminal of every process that ends.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        self._client = flight.FlightClient(f"grpc+unix://{note.socket}")

    def close(self) -> None:
        """Close the connection; safe to repeat."""
        self._worker.leave()
        self._clock.rest()
        self._client.close()

    def query(
        self,
        sql: str,
        params: Sequence[Any],
        hint: Hint,
        demand: Demand,
        begun: Begun | None = None,
    ) -> pa.Table:
        """Do what `Held.query` does."""
        started = time.monotonic()
        found = self._table("query", sql, params, hint, demand, begun=begun)
        self._tell(found.schema, started)
        return found

    def _tell(self, answered: pa.Schema, started: float) -> None:
        side = (answered.metadata or {}).get(b"rhei.engine", b"").decode()
        self._on_query(side, time.monotonic() - started)

    def as_of(self, table: str, instant: datetime, begun: Begun | None = None) -> pa.Table:
        """Do what `Held.as_of` does."""
        return self._table("as_of", table, instant, begun=begun)

    def diff(self, table: str, a: datetime, b: datetime) -> pa.Table:
        """Do what `Held.diff` does."""
        return self._table("diff", table, a, b)

    def changes(self, table: str, after: After, on_lost: OnLost) -> TableChanges:
        """Do what `Held.changes` does."""
        rows = self._table("changes", table, after, on_lost)
        schema, name, position, is_snapshot = wire.without_position(rows.schema)
        plain = rows.replace_schema_metadata(schema.metadata)
        return TableChanges(name, plain, position, is_snapshot)

    def stream_changes(self, table: str, after: After, rows: int, on_lost: OnLost) -> ChangeStream:
        """Do what `Held.stream_changes` does."""
        asked = _Request()
        cancel = partial(self._cancel, asked)
        arguments = (table, after, rows, on_lost)
        reader = self._asked(lambda: self._get(asked, "stream_changes", arguments), cancel)
        schema, name, position, is_snapshot = wire.without_position(reader.schema)
        batches = _unrepeated(_batches(self.note, reader, asked, cancel))
        plain = (batch.replace_schema_metadata(schema.metadata) for batch in batches)
        return ChangeStream(name, schema, plain, position, is_snapshot)

    def dead_letters(self, table: str | None) -> pa.Table:
        """Do what `Held.dead_letters` does."""
        return self._table("dead_letters", table)

    def broken_histories(self, table: str) -> pa.Table:
        """Do what `Held.broken_histories` does."""
        return self._table("broken_histories", table)

    def stream(
        self,
        sql: str,
        params: Sequence[Any],
        rows: int,
        begun: Begun | None,
        own: Written | None,
    ) -> Streamed:
        """Do what `Held.stream` does."""
        asked = _Request()
        cancel = partial(self._cancel, asked)
        if begun is not None:
            begun(cancel)
        arguments = (sql, params, rows, own)
        started = time.monotonic()
        reader = self._asked(lambda: self._get(asked, "stream", arguments), cancel)
        batches = _unrepeated(_batches(self.note, reader, asked, cancel))

        def told() -> Generator[pa.RecordBatch, None, None]:
            with closing(batches):
                yield from batches
            self._tell(reader.schema, started)

        return Streamed(reader.schema, told(), cancel)

    def sync_now(self, on_progress: OnProgress = no_progress) -> SyncReport:
        """Do what `Held.sync_now` does; the progress of copies is not reported."""
        del on_progress
        report: SyncReport = self._call("sync_now")
        return report

    def owner_unless(self, declared: Mapping[str, Any]) -> str | None:
        """Do what `Held.owner_unless` does."""
        owner: str | None = self._action("call", "owner_unless", declared, seconds=_MOVE_SECONDS)
        return owner

    def step_aside(self) -> bool:
        """Ask it to give the mirror away until this process lets its turn go.

        Returns:
            Whether it has: not where its own work takes longer than it is waited for.
        """
        return bool(self._action("step_aside", seconds=_MOVE_SECONDS))

    def follow(self, after: int | None) -> tuple[bool, int, list[SyncReport]]:
        """Return whether it syncs in the background, and what it has reported behind a number.

        Returns:
            Besides, the number of the last report; left out, none is returned.
        """
        syncs, number, reports = self._action("follow", after, seconds=_MOVE_SECONDS)
        return syncs, number, reports

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  (what `Held` has under the name)
        if name not in ANSWERED:
            raise AttributeError(name)
        return partial(self._call, name)

    def _call(self, name: str, *arguments: object) -> Any:  # noqa: ANN401
        return self._action("call", name, *arguments)

    def _action(self, kind: str, *arguments: object, seconds: float | None = None) -> Any:  # noqa: ANN401
        """Ask for a value; without a limit in seconds, as long as a sync takes."""
        body, options = wire.pack(arguments), flight.FlightCallOptions(timeout=seconds)

        def call() -> bytes:
            with _translated(self.note):
                (found,) = self._client.do_action((kind, body), options)
                answer: bytes = found.body.to_pybytes()
                return answer

        return wire.unpack(self._asked(call, lambda: None))

    def _table(self, name: str, *arguments: object, begun: Begun | None = None) -> pa.Table:
        asked = _Request()
        cancel = partial(self._cancel, asked)

        def call() -> pa.Table:
            reader = self._get(asked, name, arguments)
            with closing(_batches(self.note, reader, asked, cancel)) as batches:
                return whole(reader.schema, batches, self._limits.answer)

        with self._clock.timing(begun) as query:
            query.begun(cancel)
            return self._asked(call, cancel)

    def _get(
        self, asked: _Request, name: str, arguments: Sequence[object]
    ) -> flight.FlightStreamReader:
        ticket = flight.Ticket(wire.pack([asked.name, name, *arguments]))
        # The process may have been stopped; our own clock ends a query well before.
        patience = self._limits.seconds + self._limits.turn_seconds + _NOTICE_SECONDS
        with _translated(self.note, asked):
            return self._client.do_get(ticket, flight.FlightCallOptions(timeout=patience))

    def _cancel(self, asked: _Request) -> None:
        asked.is_cancelled = True
        options = flight.FlightCallOptions(timeout=_NOTICE_SECONDS)
        with suppress(flight.FlightError, pa.ArrowException, OSError):
            list(self._client.do_action(("cancel", asked.name.encode()), options))

    def _asked(self, call: Callable[[], _Found], cancel: Callable[[], None]) -> _Found:
        """Wait for an answer so that Ctrl-C ends the wait, and the query with it."""
        if threading.current_thread() is not threading.main_thread():
            return call()
        answer = Future[_Found]()
        self._worker.put(answer, call)
        try:
            with suppress(TimeoutError):
                answer.exception(_TOLD_SECONDS)
            if not answer.done():
                _log.warning("waiting for an answer: %s", self.note.holding)
            return awaited(answer)
        except KeyboardInterrupt:
            self._worker.leave()
            cancel()
            raise


def _batches(
    note: LockNote, reader: flight.FlightStreamReader, asked: _Request, cancel: Callable[[], None]
) -> Generator[pa.RecordBatch, None, None]:
    """Yield the batches of an answer; whoever closes this early ends the query."""
    is_over = False
    try:
        while True:
            with _translated(note, asked):
                try:
                    batch = reader.read_chunk().data
                except StopIteration:
                    is_over = True
                    return
            yield batch
    finally:
        if not is_over:
            cancel()
            with suppress(pa.ArrowException, flight.FlightError):
                reader.cancel()


def _unrepeated(
    batches: Generator[pa.RecordBatch, None, None],
) -> Generator[pa.RecordBatch, None, None]:
    """Yield batches of an answer that cannot be asked for again behind those that were taken."""
    with closing(batches):
        try:
            yield from batches
        except HolderGoneError:
            raise MirrorBusyError(
                "the process that holds the mirror ended before its answer was whole",
                hint="ask again: another process answers, or this one",
            ) from None


@contextmanager
def _translated(note: LockNote, asked: _Request | None = None) -> Iterator[None]:
    """Raise an error of the other process as what it is there."""
    try:
        yield
    except flight.FlightTimedOutError:
        raise MirrorBusyError(
            f"{note.holding}, and does not answer",
            hint="only one process can write a mirror: stop the other one first",
        ) from None
    except flight.FlightCancelledError:
        if asked is None or not asked.is_cancelled:
            raise HolderGoneError from None  # its server cancels what it answers no more
        raise QueryError("the query was cancelled") from None
    except flight.FlightError as error:
        told = bytes(error.extra_info or b"")
        if not told or told == STOOD_ASIDE:
            raise HolderGoneError from None
        raise wire.unpack_error(told) from None
    except (pa.ArrowException, OSError):
        raise HolderGoneError from None
