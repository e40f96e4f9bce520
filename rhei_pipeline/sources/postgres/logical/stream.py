"""Streams a slot's changes, so that they are not requested again in every cycle.

The server decodes its log once, when it is written, instead of from the slot's start at each
request; so the cost of a cycle follows its changes. While a stream is open the slot is in use, and
nothing else can read from it or move it. Source: postgresql.org/docs/18/protocol-replication.html.
"""

import struct
import time
from dataclasses import dataclass, field
from typing import Any

import psycopg

from rhei_pipeline.errors import SourceBusyError
from rhei_pipeline.sources.postgres.connection import readable
from rhei_pipeline.sql.text import quote

Replicating = psycopg.Connection[tuple[Any, ...]]

_XLOG_DATA, _KEEPALIVE = b"w", b"k"
_BEGIN, _RELATION, _TYPE = b"B", b"R", b"Y"
_DATA_HEADER = 25  # kind, start, end, time
_STATUS = struct.Struct(">cQQQqB")
_ASK_AGAIN_SECONDS = 0.001
#: Of what was sent and is not confirmed, no more is held.
HELD_BYTES = 64 * 2**20
#: How long the server may take to send what it has written.
PATIENCE_SECONDS = 60.0


@dataclass(slots=True)
class _Transaction:
    """Messages of one transaction, and where its commit record starts."""

    lsn: int
    messages: list[bytes] = field(default_factory=list)


class LogicalStream:
    """An open replication stream, and the messages that are not confirmed yet.

    Args:
        connection: Opened for replication; the stream owns it.
        slot: The slot's name.
        publication: The publication's.

    Not for several threads at once.
    """

    def __init__(self, connection: Replicating, slot: str, publication: str) -> None:
        self.slot = slot
        self._connection = connection
        # From 0/0: the server begins where it was confirmed.
        connection.execute(
            f"START_REPLICATION SLOT {quote(slot)} LOGICAL 0/0"
            f" (proto_version '1', publication_names '{quote(publication)}')".encode()
        )
        self._reached = self._confirmed = self._held = 0
        self._waiting: list[_Transaction] = []
        self._shapes: dict[bytes, bytes] = {}

    def messages(self, head: int) -> list[bytes] | None:
        """Return the unconfirmed messages of all transactions that committed before `head`.

        None when the server has sent more than is held in memory.

        Raises:
            SourceBusyError: The server does not send them.
            psycopg.OperationalError: The connection is gone.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self._reached < head:
            self._report(reply=True)
            self._receive_all()
            if self._held > HELD_BYTES:
                return None
            if self._reached < head:
                if time.monotonic() > deadline:
                    raise SourceBusyError("the server does not send the log that it has written")
                readable(self._connection.fileno(), _ASK_AGAIN_SECONDS)
        ready = [found for found in self._waiting if found.lsn < head]
        # The server tells a table's shape once, and later transactions rely on it.
        return [*self._shapes.values(), *(message for one in ready for message in one.messages)]

    def confirm(self, position: int) -> None:
        """Allow the server to remove what committed before the position."""
        if position <= self._confirmed:
            return
        self._confirmed = position
        for done in [found for found in self._waiting if found.lsn < position]:
            shapes = (m for m in done.messages if m[:1] in {_RELATION, _TYPE})
            self._shapes |= {message[:5]: message for message in shapes}
            self._held -= sum(map(len, done.messages))
        self._waiting = [found for found in self._waiting if found.lsn >= position]
        self._report(reply=False)

    def close(self) -> None:
        """End the stream; safe to repeat."""
        self._connection.close()

    def _receive_all(self) -> None:
        """Read the messages that have arrived."""
        pgconn = self._connection.pgconn
        pgconn.consume_input()
        while self._held <= HELD_BYTES:
            count, data = pgconn.get_copy_data(1)
            if count == 0:
                return
            if count < 0:
                raise psycopg.OperationalError("the server ended its stream of changes")
            self._take(memoryview(data))

    def _take(self, data: memoryview) -> None:
        kind = bytes(data[:1])
        if kind == _KEEPALIVE:
            self._reached = max(self._reached, int.from_bytes(data[1:9]))
        elif kind == _XLOG_DATA:
            message = bytes(data[_DATA_HEADER:])
            if message[:1] == _BEGIN:
                self._waiting.append(_Transaction(int.from_bytes(message[1:9])))
            self._waiting[-1].messages.append(message)
            self._held += len(message)

    def _report(self, *, reply: bool) -> None:
        """Send our position; with `reply`, the server answers with its own."""
        place = self._confirmed
        status = _STATUS.pack(b"r", place, place, place, 0, int(reply))
        self._connection.pgconn.put_copy_data(status)
        self._connection.pgconn.flush()
