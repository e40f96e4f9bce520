"""What polling PostgreSQL caches between snapshots; losing it costs reads, never rows."""

from dataclasses import dataclass, field

from rhei_pipeline.model.changes import Position
from rhei_pipeline.model.polling import Horizon
from rhei_pipeline.model.schema import Table
from rhei_pipeline.sources.polling_source import PollMemory
from rhei_pipeline.sources.postgres.polling.table import Asked, PostgresGlance

#: So many transactions a position names; more of them it only tells by a digest.
NAMED = 64
#: Numbers of transactions in rows return after twice as many.
XIDS = 2**31


@dataclass(frozen=True, slots=True)
class Window:
    """Where the next poll begins, after a position at which nothing was pending.

    Attributes:
        proof: The position's.
        low, least: As in `Horizon`.
        read: The transactions whose rows from there on were read.
        xid: The number of the server's next transaction when they were read.
        clock: The source's clock then. state: The source's state; while it is the same, nothing
        was committed since.
    """

    proof: str
    low: int | None
    least: str | None
    read: tuple[str, ...]
    xid: int
    clock: int
    state: str

    def holds_all_from(self, low: int | None, xid: int) -> bool:
        """Return whether its transactions wrote all that is read from there on.

        They did if nothing else is in it, and reading begins no earlier.
        """
        is_later = low is not None and self.low is not None and low >= self.low
        return is_later and len(self.read) <= NAMED and xid - self.xid < XIDS


@dataclass
class PostgresPollMemory(PollMemory):
    """Results of earlier snapshots, too.

    Attributes:
        parsed: What a position's proof says, and by which column.
        asked: The position behind which a table was looked at last.
        questions: What was asked behind that position.
        windows: Where the next poll begins.
        glances: What a look behind this proof found in this state of the source.
        audited: The clock of the last rescan, and the source's state then.
        doubts: Why changes may be missed, as found in a state of the source.
    """

    parsed: dict[str, tuple[str, str, Horizon | None]] = field(default_factory=dict)
    asked: dict[str, tuple[Table, Position]] = field(default_factory=dict)
    questions: dict[str, Asked] = field(default_factory=dict)
    windows: dict[str, Window] = field(default_factory=dict)
    glances: dict[str, tuple[tuple[str, str], PostgresGlance]] = field(default_factory=dict)
    audited: dict[str, tuple[int, str]] = field(default_factory=dict)
    doubts: dict[str, tuple[str, str | None]] = field(default_factory=dict)

    def distrust(self) -> None:
        """Mark all existing positions as unreliable."""
        super().distrust()
        self.windows.clear()

    def forget_states(self) -> None:
        """Delete what depends on a connection to the server."""
        for facts in (self.windows, self.glances, self.audited, self.doubts):
            facts.clear()
