"""What a PostgreSQL server showed at a moment: its log's end, our slot, what a snapshot sees."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from rhei_pipeline.sources.postgres.catalog import Connection


@dataclass(frozen=True, slots=True)
class Slot:
    """What the server says of our slot.

    Attributes:
        name: Its name, and that of our publication.
        confirmed: Everything before this position may be forgotten by the server.
        lost: The server has thrown away what follows it.
    """

    name: str
    confirmed: int
    lost: bool


@dataclass(frozen=True, slots=True)
class Visible:
    """Which transactions a row snapshot sees; as `pg_current_snapshot()` tells it."""

    xmin: int
    xmax: int
    running: frozenset[int]

    @classmethod
    def parse(cls, text: str) -> "Visible":
        """Read `xmin:xmax:running,running,...`."""
        low, high, running = text.split(":")
        return cls(int(low), int(high), frozenset(map(int, filter(None, running.split(",")))))

    def sees(self, xids: np.ndarray) -> np.ndarray:
        """Tell which transactions, by their 32-bit ids, had committed."""
        # The nearest 64-bit id to xmax whose lower half it is: ids wrap around.
        behind = (self.xmax - xids) & 0xFFFFFFFF
        behind = np.where(behind >= 2**31, behind - 2**32, behind)
        full = self.xmax - behind
        return (full < self.xmax) & ~np.isin(full, list(self.running))


@dataclass(frozen=True, slots=True)
class LogMoment:
    """What the server showed when a snapshot was taken.

    Attributes:
        head: Where its log ended; what is read ends there, too.
        slot: Our slot; None when there is none.
        server: What tells it from other servers, and from itself before a promotion.
        proofs: Of each table that is captured, by name, what tells it from a table of that name
            that was dropped, left the publication, or belongs to another server.
        silent: Whether it is known that nothing waits behind the slot.
    """

    head: int
    clock: datetime
    schema_version: int
    slot: Slot | None
    server: str
    proofs: Mapping[str, str]
    silent: bool = False


@dataclass(frozen=True, slots=True)
class RowView:
    """A connection inside a REPEATABLE READ transaction, and what that transaction sees.

    Attributes:
        share: Opens one more connection that sees the same; None where a pooler may have no more.
    """

    connection: Connection
    visible: Visible
    share: Callable[[], Connection] | None


def lsn_text(position: int) -> str:
    """Write a place in the log as PostgreSQL does."""
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


def lsn_number(text: str) -> int:
    """Read a place in the log."""
    high, low = text.split("/")
    return (int(high, 16) << 32) + int(low, 16)
