"""The reports of what keeps a mirror in order: maintenance, repair, and dropping a table."""

from collections.abc import Iterator
from dataclasses import dataclass

from rhei_pipeline.model.coverage import KeyRange
from rhei_pipeline.model.report import Report, changed, counted
from rhei_pipeline.model.retention import ExpiredHistory


@dataclass(frozen=True, slots=True, repr=False)
class MaintenanceReport(Report):
    """What maintenance changed in a mirror's files.

    Attributes:
        files_before, files_after: Files that hold rows.
        bytes_before, bytes_after: Their size.
        rows_written: Rows that were rewritten.
        done: Nothing more is due; else the limit was reached, and another call continues.
        damaged: Damaged files, each with what to do; their tables were not changed.
        expired: What was removed of the past of temporal tables, as is declared.
    """

    files_before: int = 0
    files_after: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    rows_written: int = 0
    done: bool = True
    damaged: tuple[str, ...] = ()
    expired: tuple[ExpiredHistory, ...] = ()
    derived = ("versions_removed",)
    shown = (
        "versions_removed",
        "files_before",
        "files_after",
        "bytes_before",
        "bytes_after",
        "rows_written",
        "done",
    )

    @property
    def versions_removed(self) -> int:
        """How many versions of all tables were removed."""
        return sum(found.versions for found in self.expired)

    def _facts(self) -> Iterator[str]:
        if self.expired:
            yield counted(self.versions_removed, "version") + " removed"
        yield f"{self.files_before:,} to {counted(self.files_after, 'file')}"
        yield f"{self.bytes_before:,} to {counted(self.bytes_after, 'byte')}"
        yield counted(self.rows_written, "row") + " written"
        if not self.done:
            yield "more is due"
        if self.damaged:
            yield counted(len(self.damaged), "damaged file")


@dataclass(frozen=True, slots=True)
class DropReport:
    """What dropping a table of the mirror did.

    Attributes:
        rows: The rows, or versions, it had.
        kept_as: The name under which they are kept; None if they were deleted.
    """

    table: str
    rows: int
    kept_as: str | None


@dataclass(frozen=True, slots=True)
class DamagedFile:
    """A file of the mirror that a repair set aside, and what was done about its content."""

    file: str
    outcome: str


@dataclass(frozen=True, slots=True, repr=False)
class RepairReport(Report):
    """What a repair changed in one table's mirror, and which of its files were damaged.

    Attributes:
        ranges: The keys that differed, where a range of keys was repaired.
        dry_run: Nothing was changed: this is what there is to change.
    """

    table: str
    inserted: int
    updated: int
    deleted: int
    duration_seconds: float
    damaged: tuple[DamagedFile, ...] = ()
    ranges: tuple[KeyRange, ...] = ()
    dry_run: bool = False
    shown = ("table", "inserted", "updated", "deleted", "duration_seconds")

    def _facts(self) -> Iterator[str]:
        yield repr(self.table)
        if self.dry_run:
            yield "dry run"
        yield from changed(self.inserted, self.updated, self.deleted)
        yield f"{self.duration_seconds:.3f} s"
        if self.damaged:
            yield counted(len(self.damaged), "damaged file")
