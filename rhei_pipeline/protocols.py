"""The interfaces: what a source of changes and a mirror guarantee each other."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import date, datetime
from enum import Enum, StrEnum
from typing import Any, Protocol

import pyarrow as pa

from rhei_pipeline.errors import RheiError
from rhei_pipeline.model.changes import (
    ChangeBatch,
    Comparison,
    Counts,
    DeadLetter,
    LetterName,
    NetChanges,
    Position,
    RowBatch,
    Versions,
)
from rhei_pipeline.model.progress import AsOf, CopyProgress, Ledger, Past, Watermark
from rhei_pipeline.model.reports import DamagedFile, MaintenanceReport
from rhei_pipeline.model.schema import Column, Table, TableOptions, TableSchema
from rhei_pipeline.model.semantics import MirroredTable
from rhei_pipeline.model.streaming import Begun, Streamed


class Step(StrEnum):
    """The named steps of a sync, at which tests simulate crashes."""

    SNAPSHOT = "snapshot"
    CAPTURED = "captured"
    APPLIED = "applied"
    RECORDED = "recorded"
    COMMITTED = "committed"
    ACKNOWLEDGED = "acknowledged"
    AUDITED = "audited"
    COPY_BEGUN = "copy_begun"
    COPY_BATCH = "copy_batch"
    COPY_COMPLETE = "copy_complete"
    PROMOTED = "promoted"
    BUFFERING = "buffering"
    BRIDGED = "bridged"
    BRIDGE_ACKNOWLEDGED = "bridge_acknowledged"


class Rescan(Enum):
    """The comparison of a whole table, asked for by a source that cannot see every change.

    ROWS: rows missing or different in the mirror. ALL: also keys the source no longer has.
    """

    NONE = "none"
    ROWS = "rows"
    ALL = "all"


#: Called at each step; it may raise, and then the step is where the work ended.
OnStep = Callable[[Step], None]


class Database(Protocol):
    """The operational database, as its own application uses it."""

    def execute(self, sql: str, params: Sequence[Any] = ()) -> int:
        """Run one writing statement and commit it; return how many rows it changed."""

    def execute_batch(self, statements: Sequence[tuple[str, Sequence[Any]]]) -> int:
        """Run all statements in one transaction, all or nothing; return the rows changed."""

    def query(
        self,
        sql: str,
        params: Sequence[Any] = (),
        columns: Sequence[Column | None] | None = None,
        begun: Begun | None = None,
    ) -> pa.Table:
        """Run one read-only statement; `columns` is what is known of the answer's columns."""

    def stream(
        self,
        sql: str,
        params: Sequence[Any],
        columns: Sequence[Column | None] | None,
        rows: int,
        begun: Begun | None = None,
    ) -> Streamed | None:
        """Run one read-only statement and return its answer in batches of up to `rows` rows.

        None if only the whole answer shows the types of its columns; nothing was run then.
        """

    def meanings(
        self, tables: Iterable[Table], options: Callable[[str], TableOptions]
    ) -> list[MirroredTable]:
        """Describe tables for translation: how their columns behave in queries."""

    def finds_public(self) -> bool:
        """Return whether a name without schema always means a table in the default one."""

    def add_column(self, table: TableSchema, column: str, arrow_type: pa.DataType) -> None:
        """Add a column with a declaration that is read back as this type."""

    def drop_column(self, table: TableSchema, column: str) -> None:
        """Drop a column."""

    def close(self) -> None:
        """Close every connection; safe to repeat."""


class SourceSnapshot(Protocol):
    """One committed state of the source, the same for all tables and calls."""

    @property
    def clock(self) -> datetime:
        """The source's clock when the snapshot was taken."""

    @property
    def schema_version(self) -> int:
        """The source's `schema_version` in this snapshot."""

    @property
    def shares_log(self) -> bool:
        """Whether all tables share one log, so that a position kept back holds the changes of all.

        Where each table has its own log, one without changes keeps its position at no cost.
        """

    def head(self, table: Table) -> Position:
        """Return the position of the table's newest change in this snapshot."""

    def origin(self, table: Table) -> Position:
        """Return a position no later than any change that this snapshot's rows may lack.

        To a copy whose first rows are read in this snapshot, or later, changes are applied from it.
        """

    def proves(self, table: Table, position: Position) -> bool:
        """Return whether the source still holds every change after `position`, without gaps.

        False when the log was cleared, or the source was restored to an older state.
        """

    def retains(self, position: Position) -> bool:
        """Return whether the source keeps much for this position alone, with or without changes."""

    def pending(self, table: Table, after: Position) -> int:
        """Return the number of events after `position`, cheaply."""

    def oldest_pending(self, table: Table, after: Position) -> datetime | None:
        """Return when the first event after `position` was made; None if there is none."""

    def changes(self, table: Table, after: Position, limit: int) -> Iterator[ChangeBatch]:
        """Yield all changes after `after`, in batches of about `limit` rows.

        Temporal tables: every version that the source logged, in order. Destructive tables: the
        same, or the net change of each key, once over all batches, if the source supports that
        (`ChangeBatch.net`).
        """

    def net_changes(self, table: Table, after: Position, limit: int) -> Iterator[ChangeBatch]:
        """Yield the net changes after `after`, whatever the table's mode."""

    def next_shape(self, table: Table, after: Position) -> TableSchema | None:
        """Return the table with the schema of the changes after `after`, if that is another one.

        None if they have the given table's schema, or the source's present one. All changes in
        the given schema come before them.
        """

    def rows(self, table: Table, resume: str | None, limit: int) -> RowBatch | None:
        """Return the next rows after `resume` in key order; None when there are no more."""

    def keyless(self, table: Table) -> tuple[DeadLetter, ...]:
        """Return dead letters for the rows without a usable key, which `rows` leaves out."""

    def count(self, table: Table) -> int:
        """Return the table's row count."""

    def rescan(self, table: Table, after: Position) -> Rescan:
        """Return whether the whole table must be compared within this snapshot.

        The caller then does so before it records the head, which confirms it.
        """

    def doubt(self, table: Table) -> str | None:
        """Return why changes may be missed until the next rescan; None if none can be."""


class ChangeSource(Protocol):
    """A source of changes: installs capture and gives out snapshots."""

    def describe(self, name: str) -> TableSchema:
        """Read a table's schema as it is now.

        Raises:
            SchemaError: The table does not exist or cannot be captured; the hint says what to do.
        """

    def install(self, table: Table, least: int) -> None:
        """Capture the table's changes from now on. Idempotent; repairs what is missing.

        `least`: new positions are greater, so that a watermark never goes back.
        """

    def is_installed(self, table: Table) -> bool:
        """Return whether the table's capture is as `install` would create it now."""

    def schema_version(self) -> int:
        """Return a number that changes whenever the source's schema may have changed."""

    @property
    def logs_rows(self) -> bool:
        """Whether changes always contain whole rows, so that the tables need not exist."""

    def snapshot(self, *, rows: bool = False) -> AbstractContextManager[SourceSnapshot]:
        """Hold one committed state of the source during the block.

        With `rows`, that state's rows can be read as well, and the changes end exactly where the
        rows do; its head may then be after changes that it does not show, and must not be
        recorded.
        """

    def acknowledge(self, needed_from: Mapping[str, Position], *, prune: bool) -> int:
        """Record the position from which this mirror still needs each table's changes.

        With `prune`, delete what no mirror needs. Returns how many events were deleted. Safe to
        repeat.
        """

    def touch(self, table: Table, keys: Sequence[tuple[Any, ...]]) -> None:
        """Report keys as changed, so that the next cycle reads their rows again."""

    def held_bytes(self) -> Mapping[str, int]:
        """Return the bytes that are kept until this mirror has them, by what keeps them.

        Sizes that are not cheap to read are left out.
        """


class MirrorTransaction(Protocol):
    """One transaction of the mirror; it commits as a whole or not at all."""

    def ledger(self) -> Ledger:
        """Return what is recorded, as this transaction sees it."""

    def merge(self, table: Table, changes: NetChanges) -> Counts:
        """Overwrite rows by key and remove tombstones; count what really changed."""

    def present_keys(self, table: Table) -> pa.Table:
        """Return the keys of all current rows."""

    def copied_keys(self, table: Table) -> pa.Table:
        """Return the keys of all rows in the copy."""

    def present_rows(self, table: Table, keys: pa.Table) -> pa.Table:
        """Return the current rows of those keys, with the table's columns."""

    def copied_rows(self, table: Table, keys: pa.Table) -> pa.Table:
        """Return the rows of those keys in the copy, with the table's columns."""

    def open_versions(self, table: Table, events: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Return the open versions of the events' keys, and the floors of keys without one.

        Both have the columns that `scd2.supersede` takes.
        """

    def supersede(self, table: Table, versions: Versions) -> None:
        """Close and open versions of a temporal table."""

    def record(self, watermark: Watermark) -> None:
        """Record progress; a lower position is refused."""

    def quarantine(self, letters: Iterable[DeadLetter]) -> int:
        """Store dead letters, the newest per table, key and column; return how many."""

    def quarantined(self, table: Table) -> set[LetterName]:
        """Return the names of a table's open dead letters."""

    def release(self, table: Table, letters: Collection[LetterName], at: datetime) -> None:
        """Resolve dead letters of values that fit now, or of rows that are gone."""

    def write_snapshots(self, table: Table, days: Mapping[date, AsOf]) -> dict[date, int]:
        """Store a temporal table's rows as of each day's instant; return the row counts.

        They go into the table of this name in the schema `snapshot`; existing days are replaced.
        """

    def begin_copy(self, table: Table, progress: CopyProgress) -> None:
        """Start an empty copy beside the table."""

    def append_copy(self, table: Table, rows: pa.Table, progress: CopyProgress) -> None:
        """Append rows to the copy and record its progress."""

    def drop_copy(self, table: Table) -> None:
        """Drop the running copy; the table itself is not changed."""

    def heal_copy(self, table: Table, changes: NetChanges) -> None:
        """Apply net changes that were made since to the copy."""

    def keep_unknown(self, table: Table, keys: pa.Table) -> None:
        """Add the table's present rows to the copy for keys that the copy could not read.

        These rows are the last good ones, so that adopting the copy does not change them. They
        get the copy's columns; values that the table lacks, or that do not fit, are null.
        """

    def adopt_copy(self, table: Table, at: datetime) -> int | None:
        """Make the copy the table unless one with its schema exists; return its rows, or None.

        The schema is the columns, their types and the key. A temporal table's rows become
        baseline versions that are valid from `at`. An existing table with history is never
        replaced: it is fitted to the new schema, if that changes nothing in its history.

        Raises:
            SchemaDriftError: The table would lose its history, or its history does not fit the
                new types or the new key.
        """

    def record_key(self, table: Table) -> None:
        """Record the key that a table was built for, if that was not recorded then."""

    def drop_table(self, table: Table, keep_as: str | None = None) -> int:
        """Drop a table with its snapshots and records.

        With `keep_as`, table and snapshots are kept as ordinary tables of that name, which follow
        no source table; the name has no schema. Safe for a table that does not exist. No other
        method drops a table that has history.

        Returns:
            How many rows, or versions, it had.

        Raises:
            SchemaError: The name is taken; nothing was done.
        """

    def mend_keys(self, table: Table, at: datetime) -> Counts:
        """Leave one present row for each key and none with a null key; return what ended.

        Of a temporal table's versions that are valid at once, each ends where the next one begins;
        one without a key ends at `at`. Rows of a destructive table are removed.
        """

    def copy_differences(self, table: Table, limit: int) -> Iterator[NetChanges]:
        """Yield the changes from the table's present rows to the copy's, then drop the copy."""

    def count(self, table: Table) -> int:
        """Return the number of current rows."""

    def compare_digests(
        self, table: Table, parts: Iterable[pa.Table]
    ) -> tuple[list[int], pa.Table]:
        """Compare the table's present rows with all rows of the source by digests; cheap.

        Returns:
            The numbers of the parts with a row that is missing or different in the table, and the
            keys of the table's rows that are in no part.
        """

    def compare(self, table: Table, rows: Iterable[pa.Table]) -> Comparison:
        """Compare the table's present rows with all rows of the source; changes nothing."""


class Mirror(Protocol):
    """The analytical copy."""

    @property
    def folds_names(self) -> bool:
        """Whether names that differ by case only are one name."""

    def ledger(self) -> Ledger:
        """Return what is recorded."""

    def transaction(self, *, trial: bool = False) -> AbstractContextManager[MirrorTransaction]:
        """Open the one writing transaction; leaving the block commits, an error rolls back.

        A trial is rolled back in any case.
        """

    def query(
        self,
        sql: str,
        params: Sequence[Any] | Mapping[str, Any] = (),
        begun: Begun | None = None,
        most_bytes: int | None = None,
    ) -> pa.Table:
        """Run one read-only statement on the last committed state; parameters by place or name.

        Raises:
            QueryLimitError: The answer takes more than `most_bytes`.
        """

    def stream(
        self,
        sql: str,
        params: Sequence[Any] | Mapping[str, Any],
        rows: int,
        begun: Begun | None = None,
    ) -> Streamed:
        """Run one read-only statement, and return its rows in batches, all of one state."""

    def tables(self) -> Mapping[str, Table]:
        """Return the tables of the mirror with their stored schemas, by `sql.mirror_table`.

        A table with history is temporal, whatever is declared; its key is empty if it was not
        recorded. Tables that were set aside are included; snapshots and copies are not.
        """

    def count(self, table: Table) -> int:
        """Return the number of current rows."""

    def past(self, table: Table) -> Past | None:
        """Return what is recorded of a temporal table's history; None if it is not mirrored yet."""

    def dead_letters(self, table: str | None = None) -> pa.Table:
        """Return the stored dead letters, of one table or of all."""

    def heal(self, table: Table) -> tuple[DamagedFile, ...]:
        """Check all files of a table; remove damaged ones, so that a copy can repair the table.

        Nothing is deleted: damaged files are set aside. Returns what was damaged and what was
        done about it; nothing if all files are intact.
        """

    def confirm(self) -> None:
        """Confirm that the state is the newest: a sync compared positions and found no changes."""

    @property
    def not_published(self) -> RheiError | None:
        """Why the published copy or Delta tables are older than the mirror; None if not."""

    def gaps_until(self, table: Table) -> datetime | None:
        """Return until when a history may have gaps, because a repair lost files; None: no gaps."""

    def maintain(self) -> MaintenanceReport:
        """Rewrite the files for fast reading; safe at any time, with limited work in each call."""

    def close(self) -> None:
        """Release the mirror; safe to repeat."""
