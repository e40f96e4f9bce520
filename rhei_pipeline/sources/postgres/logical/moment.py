"""The state of a PostgreSQL server at one time: its log's end, our slot, visible transactions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType

import numpy as np

from rhei_pipeline.sources.postgres.catalog import Connection


@dataclass(frozen=True, slots=True)
class LogPortion:
    """Messages of the log, in order.

    Attributes:
        messages: Messages, or pieces of them.
        piece_bytes: One that is as long is continued by the next, which may be in the next part;
            0: all are whole.
    """

    messages: list[bytes] | list[bytes | memoryview]
    piece_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Slot:
    """The server's description of our slot.

    Attributes:
        name: Its name, and that of our publication.
        confirmed: The server may remove everything before this position.
        lost: The server has removed what follows it.
        failover: It is kept on standbys, too, and waits for them.
        idle: Nobody has used it for a while, and the server drops such ones, if it is told to.
    """

    name: str
    confirmed: int
    lost: bool
    failover: bool = False
    idle: bool = False


@dataclass(frozen=True, slots=True)
class Visible:
    """The transactions that a row snapshot sees, from `pg_current_snapshot()`."""

    xmax: int
    running: frozenset[int]

    @classmethod
    def parse(cls, text: str) -> "Visible":
        """Parse `xmin:xmax:running,running,...`."""
        _, high, running = text.split(":")
        return cls(int(high), frozenset(map(int, filter(None, running.split(",")))))

    def sees(self, xids: np.ndarray) -> np.ndarray:
        """Return which transactions, by their 32-bit ids, had committed."""
        # The nearest 64-bit id to xmax whose lower half it is: ids wrap around.
        behind = (self.xmax - xids) & 0xFFFFFFFF
        behind = np.where(behind >= 2**31, behind - 2**32, behind)
        full = self.xmax - behind
        return (full < self.xmax) & ~np.isin(full, list(self.running))


@dataclass(frozen=True, slots=True)
class LogMoment:
    """The server's state when a snapshot was taken.

    Attributes:
        head: Where its log ended; reading ends there, too.
        slot: Our slot; None when there is none.
        recent: One that has only the newest part of what it has; None when there is none.
        server: Identifies the server and its timeline.
        proofs: For each captured table, by name, a proof that distinguishes it from a table of
            that name that was dropped, left the publication, or belongs to another server.
        silent: Whether the slot is known to have no pending changes.
        columns: Of tables that were logged under other columns' names: the names that all their
            columns have now, in the log's order.
        keys: Of each captured table, by name, the numbers of what makes its key unique.
    """

    head: int
    clock: datetime
    schema_version: int
    slot: Slot | None
    server: str
    proofs: Mapping[str, str]
    recent: Slot | None = None
    silent: bool = False
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    keys: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class RowView:
    """A connection inside a REPEATABLE READ transaction, and what that transaction sees.

    Attributes:
        share: Opens one more connection that sees the same; None behind a pooler.
    """

    connection: Connection
    visible: Visible
    share: Callable[[], Connection] | None


def lsn_text(position: int) -> str:
    """Return a position of the log in PostgreSQL's form."""
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


def lsn_number(text: str) -> int:
    """Parse a position of the log."""
    high, low = text.split("/")
    return (int(high, 16) << 32) + int(low, 16)
