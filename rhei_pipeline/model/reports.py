"""The reports of sync, copy, status and verify."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from rhei_pipeline.model.changes import Counts
from rhei_pipeline.model.coverage import Coverage, KeyRange, RowSample
from rhei_pipeline.model.progress import TableState
from rhei_pipeline.model.report import Report, changed, counted, named

#: How many keys, or ranges, of each kind of difference are named; the counts are always whole.
SAMPLE_KEYS = 20


class Severity(StrEnum):
    """How serious a finding is: nothing syncs, something may go wrong, or information only."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """A finding of `rhei check`.

    Attributes:
        what: What was found.
        why: Why it matters.
        remedy: The statement or command that fixes it.
        table: The table it concerns, if it concerns one.
    """

    severity: Severity
    what: str
    why: str
    remedy: str
    table: str | None = None


@dataclass(frozen=True, slots=True)
class TableReport:
    """What one sync did to one table.

    Attributes:
        events: Events of the source that were consumed.
        inserted, updated, deleted: Rows that really changed in the mirror.
        dead_letters: Rows that could not be mirrored, met in this sync.
        watermark: The position up to which the table is applied; None when none is recorded.
        lag_seconds: How old the oldest change was when it became visible; 0 without changes.
        copied_rows: Rows read by an initial sync that was part of this one.
        error: Why the table was left out, when it was.
        as_of: The source's clock when the state that the table now shows was read.
    """

    table: str
    events: int = 0
    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    dead_letters: int = 0
    watermark: int | None = None
    lag_seconds: float = 0.0
    copied_rows: int = 0
    error: str | None = None
    as_of: datetime | None = None

    @property
    def changed(self) -> int:
        """All rows that really changed."""
        return self.inserted + self.updated + self.deleted

    def after(self, earlier: "TableReport") -> "TableReport":
        """Return the sum of an earlier cycle's report and this one."""
        return replace(
            self,
            events=earlier.events + self.events,
            inserted=earlier.inserted + self.inserted,
            updated=earlier.updated + self.updated,
            deleted=earlier.deleted + self.deleted,
            dead_letters=earlier.dead_letters + self.dead_letters,
            copied_rows=earlier.copied_rows + self.copied_rows,
            lag_seconds=max(earlier.lag_seconds, self.lag_seconds),
        )

    @classmethod
    def of(cls, table: str, counts: Counts, **others: Any) -> "TableReport":  # noqa: ANN401
        """Return the report of one table's counts."""
        return cls(
            table,
            inserted=counts.inserted,
            updated=counts.updated,
            deleted=counts.deleted,
            **others,
        )


@dataclass(frozen=True, slots=True, repr=False)
class SyncReport(Report):
    """What one sync did: one source state, applied in one mirror transaction.

    The sums over all tables, and the same per table in `tables`. `watermark` is the sum of the
    tables' positions: it grows by one for each event of the source. `not_followed` names tables
    of the mirror that are no longer synced, and since when. `not_published` is the reason why the
    published copy or the Delta tables are older than the mirror. `rows_pruned` counts the rows that
    were deleted from the source's own log, or from the buffer, since every mirror has them; a log
    that the database server keeps counts none. `frozen` names tables that go on with the columns
    that they had, and what their source has changed. `copying` names tables of which a sync in the
    background copies more next time.
    """

    tables: Mapping[str, TableReport] = field(default_factory=lambda: MappingProxyType({}))
    duration_seconds: float = 0.0
    not_followed: Mapping[str, datetime] = field(default_factory=lambda: MappingProxyType({}))
    not_published: str | None = None
    rows_pruned: int = 0
    frozen: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    copying: Sequence[str] = ()
    derived = (
        *("events", "inserted", "updated", "deleted", "dead_letters"),
        *("watermark", "lag_seconds"),
    )
    shown = ("table", "events", "inserted", "updated", "deleted", "dead_letters", "watermark")

    def _facts(self) -> Iterator[str]:
        yield counted(len(self.tables), "table")
        yield counted(self.events, "event")
        yield from changed(self.inserted, self.updated, self.deleted)
        if self.dead_letters:
            yield counted(self.dead_letters, "dead letter")
        yield f"{self.duration_seconds:.3f} s"
        yield from named("left out", list(self.errors))
        yield from (*named("frozen", list(self.frozen)), *named("copying", self.copying))
        if self.not_published:
            yield "not published"

    @property
    def events(self) -> int:
        """Events of the source that were consumed."""
        return sum(report.events for report in self.tables.values())

    @property
    def inserted(self) -> int:
        """Rows inserted in the mirror."""
        return sum(report.inserted for report in self.tables.values())

    @property
    def updated(self) -> int:
        """Rows really changed in the mirror."""
        return sum(report.updated for report in self.tables.values())

    @property
    def deleted(self) -> int:
        """Rows deleted from the mirror."""
        return sum(report.deleted for report in self.tables.values())

    @property
    def dead_letters(self) -> int:
        """Rows that could not be mirrored, met in this sync."""
        return sum(report.dead_letters for report in self.tables.values())

    @property
    def watermark(self) -> int:
        """The sum of the tables' positions."""
        return sum(report.watermark or 0 for report in self.tables.values())

    @property
    def lag_seconds(self) -> float:
        """How old the oldest change was when it became visible."""
        return max((report.lag_seconds for report in self.tables.values()), default=0.0)

    @property
    def errors(self) -> dict[str, str]:
        """The tables left out, each with the reason."""
        return {name: report.error for name, report in self.tables.items() if report.error}

    def of_table(self, name: str) -> "SyncReport":
        """Return the same of one table alone."""
        return replace(self, tables={name: self.tables[name]} if name in self.tables else {})

    @property
    def did_something(self) -> bool:
        """Whether there were events or rows, or a table was left out."""
        tables = self.tables.values()
        return any(table.events or table.copied_rows or table.error for table in tables)


@dataclass(frozen=True, slots=True, repr=False)
class CopyReport(Report):
    """What an initial sync did to one table.

    Attributes:
        rows: Rows read from the source by this call; a resumed copy reads only the rest.
        resumed: Whether it continued an interrupted copy.
        inserted, updated, deleted: Rows that really changed in the mirror.
    """

    table: str
    rows: int
    resumed: bool
    inserted: int
    updated: int
    deleted: int
    dead_letters: int
    watermark: int
    duration_seconds: float
    shown = ("table", "rows", "resumed", "inserted", "updated", "deleted", "duration_seconds")

    def _facts(self) -> Iterator[str]:
        yield repr(self.table)
        yield counted(self.rows, "row") + (" of a resumed copy" if self.resumed else "")
        yield from changed(self.inserted, self.updated, self.deleted)
        if self.dead_letters:
            yield counted(self.dead_letters, "dead letter")
        yield f"{self.duration_seconds:.3f} s"


@dataclass(frozen=True, slots=True)
class TableStatus:
    """The state of one table.

    Attributes:
        lag_events: Events of the source that are not applied yet, exactly; None where that is not
            known: `error` or `doubt` says why, or the table was never copied.
        lag_seconds: How long the oldest of them has waited; 0 when there is none, None where that
            is not known.
        dead_letters: Open ones.
        dead_letter_reasons: How many of them have each of the most frequent reasons.
        doubt: Why changes may be missed until the next rescan, or nobody can count them; else None.
        kept_since: Since when its history is kept; None if nothing was removed of it.
    """

    table: str
    mode: str
    state: TableState | None
    watermark: int | None
    lag_events: int | None
    lag_seconds: float | None
    dead_letters: int
    error: str | None = None
    doubt: str | None = None
    kept_since: datetime | None = None
    dead_letter_reasons: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    derived = ("proof",)

    @property
    def proof(self) -> str:
        """`proved` if no change can be missed, else `unproved`."""
        return "unproved" if self.doubt else "proved"


@dataclass(frozen=True, slots=True)
class CopyStatus:
    """The progress of a running copy; `of` is the source's row count when it began.

    `ranges`: Into how many it is cut, where several processes share it; `missing` are those that
    are not complete.
    """

    rows: int
    of: int
    ranges: int = 1
    missing: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Standing:
    """The state of the tables, as last read from source and mirror.

    Attributes:
        held_bytes: Bytes that are kept until this mirror has applied them, by `slot`, `log` or
            `buffer`.
        not_followed: Tables of the mirror that no sync brings up to date any more, and since when.
        not_published: See `SyncReport`.
        unreadable: Why source or mirror could not be read at the last try; the numbers are older
            then.
    """

    tables: Mapping[str, TableStatus]
    held_bytes: Mapping[str, int]
    age_seconds: float = 0.0
    not_followed: Mapping[str, datetime] = field(default_factory=lambda: MappingProxyType({}))
    not_published: str | None = None
    unreadable: str | None = None


@dataclass(frozen=True, slots=True, repr=False)
class SyncStatus(Report):
    """The state of the pipeline.

    Attributes:
        running: Whether the background sync is running.
        last_error: The last error of the background sync, or that there is nothing to mirror;
            None after a success.
        copying: The running copies, by table.
        held_bytes: See `Standing`.
        age_seconds: The age of these numbers; more than 0 if a running sync was not waited for.
        not_followed, not_published, unreadable: See `Standing`.
    """

    running: bool
    tables: Mapping[str, TableStatus]
    last_error: str | None = None
    copying: Mapping[str, CopyStatus] = field(default_factory=lambda: MappingProxyType({}))
    held_bytes: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    age_seconds: float = 0.0
    not_followed: Mapping[str, datetime] = field(default_factory=lambda: MappingProxyType({}))
    not_published: str | None = None
    unreadable: str | None = None
    derived = ("lag_events", "lag_seconds")
    shown = (
        *("table", "mode", "state", "proof", "watermark"),
        *("lag_events", "lag_seconds", "dead_letters", "error", "doubt", "kept_since"),
    )

    def _facts(self) -> Iterator[str]:
        yield "running" if self.running else "not running"
        yield counted(len(self.tables), "table")
        yield f"{counted(self.lag_events, 'event')} and {self.lag_seconds:.3f} s behind"
        yield from named("lag not known", [t.table for t in self.unmeasured])
        yield from named("copying", list(self.copying))
        yield from named("left out", [t.table for t in self.tables.values() if t.error])
        for what in ("last_error", "unreadable", "not_published"):
            if getattr(self, what):
                yield what.replace("_", " ")

    @property
    def lag_events(self) -> int:
        """Events not applied yet, over all tables whose lag is known."""
        return sum(status.lag_events or 0 for status in self.tables.values())

    @property
    def lag_seconds(self) -> float:
        """How long the oldest of them has waited."""
        return max((status.lag_seconds or 0.0 for status in self.tables.values()), default=0.0)

    @property
    def unmeasured(self) -> list[TableStatus]:
        """The tables whose lag is not known: see `TableStatus.lag_events`."""
        return [status for status in self.tables.values() if status.lag_events is None]


@dataclass(frozen=True, slots=True)
class RowParity:
    """The row counts of source and mirror at one watermark."""

    table: str
    source_rows: int
    mirror_rows: int
    watermark: int

    @property
    def equal(self) -> bool:
        """Whether both have the same number of rows."""
        return self.source_rows == self.mirror_rows


@dataclass(frozen=True, slots=True)
class TableVerification:
    """The differences between one table's mirror and its source, at one source state.

    `missing`, `extra`, `different` and `duplicate` count keys; `samples` holds the first few of
    each as JSON. `dead_letters` counts the source's rows that cannot be mirrored.
    `broken_history` counts keys of a temporal table whose versions contradict each other: two are
    valid at once, one ends before it begins, or one ends without a successor or a delete.
    `damage` names a file of the mirror that could not be read, and what to do; then no row was
    compared. `ranges` are the keys that differ, gathered where they are close to each other.
    `coverage` tells which parts of the table were compared when, this time and before; `rows`
    are those of this time. `sample` says what a comparison of some rows would have seen.
    """

    table: str
    rows: int
    missing: int
    extra: int
    different: int
    dead_letters: int
    samples: Mapping[str, tuple[str, ...]]
    duplicate: int = 0
    broken_history: int = 0
    damage: str | None = None
    ranges: tuple[KeyRange, ...] = ()
    coverage: Coverage | None = None
    sample: RowSample | None = None
    derived = ("equal",)

    @classmethod
    def of_damaged(cls, table: str, error: Exception) -> "TableVerification":
        """Return the result for a table whose files cannot be read."""
        return cls(table, 0, 0, 0, 0, 0, {}, damage=str(error))

    @property
    def equal(self) -> bool:
        """Whether source and mirror have equal rows, and the history is consistent."""
        differ = self.missing or self.extra or self.different or self.duplicate
        return not (differ or self.broken_history or self.dead_letters or self.damage)


@dataclass(frozen=True, slots=True, repr=False)
class VerifyReport(Report):
    """The differences between mirror and source, all tables at one source state.

    Attributes:
        errors: The tables left out, each with the reason.
        not_followed: Tables of the mirror that no sync brings up to date any more, and since when.
    """

    tables: Mapping[str, TableVerification]
    duration_seconds: float
    errors: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    not_followed: Mapping[str, datetime] = field(default_factory=lambda: MappingProxyType({}))
    derived = ("equal",)
    shown = ("table", "equal", "rows", "missing", "extra", "different", "dead_letters")

    def _facts(self) -> Iterator[str]:
        yield "equal" if self.equal else "not equal"
        yield counted(len(self.tables), "table")
        yield counted(sum(found.rows for found in self.tables.values()), "row")
        yield f"{self.duration_seconds:.3f} s"
        yield from named("differ", [t.table for t in self.tables.values() if not t.equal])
        yield from named("left out", list(self.errors))

    @property
    def equal(self) -> bool:
        """Whether every table is equal, and none was left out."""
        return not self.errors and all(found.equal for found in self.tables.values())


@dataclass(frozen=True, slots=True)
class TypeProposal:
    """A type that could be declared for a column, because it takes dead letters of it.

    Attributes:
        type: Its name, as `types` in a declaration has it.
        letters: The dead letters of the column that it was tried on.
        healed: Those of them that it takes.
        refused: Rows that are mirrored now and that it would not take, of `others` that were tried.
    """

    table: str
    column: str
    type: str
    letters: int
    healed: int
    refused: int
    others: int
