"""What polling PostgreSQL remembers between snapshots; forgetting it costs reads, never rows."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Window:
    """Where the next look begins, behind a position at which nothing was pending.

    Attributes:
        proof: The position's.
        low, least: As in `Horizon`.
        read: The transactions whose rows from there on were read.
        clock: The source's clock then.
        state: Nothing was committed since while the source is in this state.
    """

    proof: str
    low: int | None
    least: str | None
    read: tuple[str, ...]
    clock: int
    state: str


@dataclass
class PostgresPollMemory:
    """What earlier snapshots found out, by table; forgetting it costs reads, never rows.

    Attributes:
        floors: New positions are above these.
        windows: Where the next look begins.
        witnessed: The newest row of this proof was there in this state of the source.
        audited: The clock of the last audit, and the source's state then.
        doubts: Why changes may go by unseen, as found in a state of the source.
        touched: Keys to read again.
        distrusted: Positions up to here are not to be relied on: the clock went back behind them.
    """

    floors: dict[str, int] = field(default_factory=dict)
    windows: dict[str, Window] = field(default_factory=dict)
    witnessed: dict[str, tuple[str, str]] = field(default_factory=dict)
    audited: dict[str, tuple[int, str]] = field(default_factory=dict)
    doubts: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    touched: dict[str, list[tuple[Any, ...]]] = field(default_factory=dict)
    distrusted: dict[str, int] = field(default_factory=dict)

    def note(self, table: str, order: int) -> None:
        """Learn of a position that exists."""
        self.floors[table] = max(self.floors.get(table, 0), order)

    def distrust(self) -> None:
        """Rely on no position that exists by now."""
        self.distrusted = dict(self.floors)
        self.windows.clear()

    def forget_states(self) -> None:
        """Forget what was tied to a connection to the server."""
        for facts in (self.windows, self.witnessed, self.audited, self.doubts):
            facts.clear()
