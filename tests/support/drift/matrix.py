"""The drift matrix: each drift, at each moment, for each way to mirror a table."""

from collections.abc import Iterator
from dataclasses import dataclass, fields

from tests.support.drift.drifts import BY_NAME, Drift

#: With events pending; with none, and the pipeline open; closed meanwhile, with events pending.
MOMENTS = ("pending", "quiet", "reopened")
MODES = ("destructive", "temporal")
MIRRORS = ("duckdb", "parquet", "ipc")


@dataclass(frozen=True)
class Capture:
    """A way to learn of changes, and whether it sees each version or what became of a row."""

    name: str
    source: str
    method: str
    buffered: bool = False

    @property
    def sees_versions(self) -> bool:
        """Whether each change is a version; a poll sees what a row has become."""
        return self.method != "polling"


CAPTURES = {
    capture.name: capture
    for capture in (
        Capture("sqlite_triggers", "sqlite", "trigger"),
        Capture("sqlite_polling", "sqlite", "polling"),
        Capture("sqlite_buffer", "sqlite", "trigger", buffered=True),
        Capture("postgres_log", "postgres", "logical"),
        Capture("postgres_triggers", "postgres", "trigger"),
        Capture("postgres_polling", "postgres", "polling"),
    )
}


@dataclass(frozen=True)
class Cell:
    """One cell of the matrix."""

    drift: str
    moment: str
    capture: str
    mode: str
    mirror: str

    def __str__(self) -> str:
        return f"{self.drift}-{self.moment}-{self.capture}-{self.mode}-{self.mirror}"

    @property
    def axes(self) -> tuple[tuple[str, str], ...]:
        """What it is a combination of."""
        return tuple((field.name, getattr(self, field.name)) for field in fields(self))

    @property
    def drifts(self) -> Drift:
        """What is done to the table."""
        return BY_NAME[self.drift]

    @property
    def captures(self) -> Capture:
        """How changes are learned of."""
        return CAPTURES[self.capture]

    @property
    def statements(self) -> tuple[str, ...]:
        """The statements; none where the source has no such thing."""
        drift = self.drifts
        return drift.sqlite if self.captures.source == "sqlite" else drift.postgres

    @property
    def ends(self) -> str:
        """How the cell must end."""
        drift = self.drifts
        told = (drift.ends_in.get(part) for part in (self.capture, self.mode))
        return next((ends for ends in told if ends), drift.ends)


def cells() -> Iterator[Cell]:
    """Make the whole matrix."""
    for drift in BY_NAME:
        for capture in CAPTURES:
            for mode in MODES:
                for mirror in MIRRORS:
                    for moment in MOMENTS:
                        cell = Cell(drift, moment, capture, mode, mirror)
                        if cell.statements:
                            yield cell
