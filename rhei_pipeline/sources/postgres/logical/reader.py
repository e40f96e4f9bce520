"""Reads the messages of a slot: polled in each cycle, or streamed by the server."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice

import psycopg
from psycopg import sql as psql

from rhei_pipeline.errors import SourceBusyError, SourceFullError
from rhei_pipeline.model.portions import portions
from rhei_pipeline.sources.postgres.catalog import Connection
from rhei_pipeline.sources.postgres.copy import copy_out_values
from rhei_pipeline.sources.postgres.logical.moment import LogPortion, Slot, lsn_text
from rhei_pipeline.sources.postgres.logical.sessions import LogSessions
from rhei_pipeline.sources.postgres.logical.standbys import await_standbys
from rhei_pipeline.sources.postgres.logical.stream import LogicalStream, Replicating
from rhei_pipeline.sources.waiting import wait_until
from rhei_pipeline.sql.text import quote

_log = logging.getLogger(__name__)

#: Messages fetched, and decoded, at once.
FETCH_MESSAGES = 50_000
#: A longer stretch of the log is asked for, in bounded memory, rather than streamed.
STREAM_BYTES = 4 * 2**20
_RELEASE_SECONDS = 10.0
#: So long after the server had no room for a stream, another one is tried.
_STREAM_AGAIN_SECONDS = 60.0

#: A larger message comes in pieces: the driver holds each as often as a value beside it.
PIECE_BYTES = 2**23
#: The last piece is shorter, if need be empty.
_PEEK = """
select substr(data, 1 + {piece} * generate_series(0, length(data) / {piece}), {piece})
from pg_logical_slot_peek_binary_changes(
    {slot}, {end}::pg_lsn, null, 'proto_version', '1', 'publication_names', {publication})
"""

#: A row if the slot is there, and to be moved.
_IS_BEHIND = """
select from pg_replication_slots
where slot_name = %(slot)s and plugin = 'pgoutput' and database = current_database()
    and not coalesce({lost}, false) and coalesce(confirmed_flush_lsn, '0/0') < %(place)s::pg_lsn
"""
_ADVANCE = "select pg_replication_slot_advance(%(slot)s, %(place)s::pg_lsn)"


class LogReader:
    """Reads the pending messages of a slot, and advances the slot.

    Args:
        sessions: Where the server is asked, and decodes.
        connect_apart: Opens another connection.
        connect: Opens one for replication.
        streaming: Keep a stream open while few changes are pending.
        publication: Its name.

    Not for several threads at once.
    """

    def __init__(
        self,
        sessions: LogSessions,
        connect_apart: Callable[[], Connection],
        connect: Callable[[], Replicating],
        *,
        publication: str,
        streaming: bool = False,
    ) -> None:
        self._sessions = sessions
        self._connect_apart = connect_apart
        self._connect = connect
        self._streaming = streaming
        self._publication = publication
        self._stream: LogicalStream | None = None
        self._stream_again_at = 0.0
        self._is_failover = False

    def read(self, slot: Slot, head: int) -> Iterator[LogPortion]:
        """Yield the messages of all transactions that committed before `head`, in parts.

        Whoever takes a part may clear it. What is not confirmed is read again the next time.

        Raises:
            SourceBusyError: A standby that the slot waits for does not have that log.
        """
        self._is_failover = slot.failover
        self._await_standbys(slot.name, head)
        streamed = self._streamed(slot, head)
        if streamed is None:
            yield from self._peeked(slot, head)
        else:
            yield LogPortion(streamed)

    def read_temporary(self, slot: Slot, head: int) -> Iterator[LogPortion]:
        """Yield the same of a slot that only the session can read in which the log is decoded."""
        yield from self._decoded(self._sessions.decoding, slot, head)

    def confirm(self, slot: str, position: int, lost: str) -> bool:
        """Allow the server to remove what committed before the position.

        `lost` is SQL that is true of a slot that is not to be moved any more.

        Returns:
            Whether the slot is moved.
        """
        if self._stream is not None:
            try:
                self._stream.confirm(position)
            except psycopg.OperationalError:
                self.end_stream()
            else:
                return True
        try:
            return self._advance(slot, position, lost)
        except psycopg.errors.ObjectInUse:
            self._await_release(slot)
            return self._advance(slot, position, lost)

    def _advance(self, slot: str, position: int, lost: str) -> bool:
        where = {"slot": slot, "place": lsn_text(position)}
        self._await_standbys(slot, position)
        # Not one statement: where the log is decoded, it would be planned each time.
        asked = self._sessions.asked.execute(_IS_BEHIND.format(lost=lost).encode(), where)
        if asked.fetchone() is None:
            return False
        self._sessions.decoding.execute(_ADVANCE.encode(), where)
        return True

    def end_stream(self) -> None:
        """Release the slot; messages that were not confirmed are read again."""
        if self._stream is not None:
            self._stream.close()
            self._await_release(self._stream.slot)
            self._stream = None

    def close(self) -> None:
        """End the stream without waiting; safe to repeat."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _streamed(self, slot: Slot, head: int) -> list[bytes] | None:
        """Read from the stream if that is worthwhile, else return None."""
        if not self._streaming or head - slot.confirmed > STREAM_BYTES:
            self.end_stream()
            return None
        if self._stream is None and time.monotonic() < self._stream_again_at:
            return None
        try:
            if self._stream is None:
                self._stream = LogicalStream(self._connect(), slot.name, self._publication)
            messages = self._stream.messages(head)
        except SourceFullError as error:
            _log.warning("slot %r is asked for the log, not streamed: %s", slot.name, error)
            self._stream_again_at = time.monotonic() + _STREAM_AGAIN_SECONDS
            return None
        except psycopg.OperationalError as error:
            _log.warning(
                "the stream of slot %r was interrupted: %s", slot.name, type(error).__name__
            )
            self.end_stream()
            return None
        if messages is None:
            self.end_stream()
        return messages

    def _peeked(self, slot: Slot, head: int) -> Iterator[LogPortion]:
        if head - slot.confirmed <= STREAM_BYTES:
            yield from self._peeked_by(self._sessions.decoding, slot, head)
            return
        # A connection keeps room for the largest message that it was ever sent, until it ends.
        try:
            apart = self._connect_apart()
        except SourceFullError:
            yield from self._peeked_by(self._sessions.decoding, slot, head)
            return
        with closing(apart) as connection:
            yield from self._peeked_by(connection, slot, head)

    def _peeked_by(self, connection: Connection, slot: Slot, head: int) -> Iterator[LogPortion]:
        try:
            yield from self._decoded(connection, slot, head)
        except psycopg.errors.ObjectInUse:  # that is said before the first message
            self._await_release(slot.name)
            yield from self._decoded(connection, slot, head)

    def _decoded(self, connection: Connection, slot: Slot, head: int) -> Iterator[LogPortion]:
        query = psql.SQL(_PEEK).format(
            piece=PIECE_BYTES,
            slot=slot.name,
            end=lsn_text(head),
            publication=quote(self._publication),
        )
        text = query.as_bytes(connection)
        with connection.settled(), closing(copy_out_values(connection, text)) as values:
            pieces = portions(
                lambda count: list(_up_to_a_full_one(islice(values, count))),
                lambda taken: sum(map(len, taken)),
                FETCH_MESSAGES,
            )
            yield from (LogPortion(portion, PIECE_BYTES) for portion in pieces)

    def _await_standbys(self, slot: str, place: int) -> None:
        if self._is_failover:
            await_standbys(self._sessions.asked, slot, place)

    def _await_release(self, slot: str) -> None:
        """Wait until the server notices that the slot is no longer used."""

        def released() -> bool:
            found = self._sessions.asked.execute(
                "select active from pg_replication_slots where slot_name = %s", (slot,)
            ).fetchone()
            return found is None or not found[0]

        if not wait_until(released, _RELEASE_SECONDS):
            raise SourceBusyError(
                f"slot {slot!r} is in use", hint="stop the other process that reads from it"
            )


def _up_to_a_full_one(pieces: Iterator[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """Yield pieces, no more than one of them large."""
    for piece in pieces:
        yield piece
        if len(piece) == PIECE_BYTES:
            return
