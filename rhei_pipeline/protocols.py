"""The seams: what a source of changes and a mirror promise each other, and nothing more."""

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
    """The named steps of the way of the data, where a crash is tried in tests."""

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
    """What a whole comparison is asked for, by a source that cannot see every change.

    ROWS: rows the mirror lacks or has otherwise. ALL: also keys the source has no more.
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
        """Run one reading statement; `columns` is what is known of the answer's columns."""

    def stream(
        self,
        sql: str,
        params: Sequence[Any],
        columns: Sequence[Column | None] | None,
        rows: int,
        begun: Begun | None = None,
    ) -> Streamed | None:
        """Run one reading statement and return its answer in batches of at most so many rows.

        None where the types of its columns show in its whole answer only; nothing was run then.
        """

    def meanings(
        self, tables: Iterable[Table], options: Callable[[str], TableOptions]
    ) -> list[MirroredTable]:
        """Describe tables for translation: how their columns behave in queries."""

    def finds_public(self) -> bool:
        """Tell whether a table's name without its schema is sure to mean the default one."""

    def add_column(self, table: TableSchema, column: str, arrow_type: pa.DataType) -> None:
        """Add a column that is declared so that it is read back as this type."""

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
        """Whether all tables have one log, so that one left behind holds the changes of all.

        Where each has a log of its own, one without changes stays where it is and costs nothing.
        """

    def head(self, table: Table) -> Position:
        """Return the position of the table's newest change in this snapshot."""

    def origin(self, table: Table) -> Position:
        """Return a position no later than any change that this snapshot's rows may lack.

        A copy whose first rows are read in this snapshot, or in a later one, is caught up from it.
        """

    def proves(self, table: Table, position: Position) -> bool:
        """Tell whether the source still holds every change after `position`, unbroken.

        False when the log was cleared, or the source was put back to an older state.
        """

    def retains(self, position: Position) -> bool:
        """Tell whether the source keeps much for this position alone, changes or not."""

    def pending(self, table: Table, after: Position) -> int:
        """Count the events after `position`, cheaply."""

    def oldest_pending(self, table: Table, after: Position) -> datetime | None:
        """Return when the first event after `position` was made; None when there is none."""

    def changes(self, table: Table, after: Position, limit: int) -> Iterator[ChangeBatch]:
        """Read all changes after `after`, in batches of about `limit` rows.

        Temporal tables: every version that the source tells of, in order. Destructive tables: the
        same, or what became of each key, once over all batches, where the source can tell
        (`ChangeBatch.net`).
        """

    def net_changes(self, table: Table, after: Position, limit: int) -> Iterator[ChangeBatch]:
        """Read the net changes after `after`, whatever the table's mode."""

    def next_shape(self, table: Table, after: Position) -> TableSchema | None:
        """Return the table in the shape in which the changes behind `after` were made.

        None where they are in the given table's own, or in the one the source has now. Before it
        are all changes in the given shape.
        """

    def rows(self, table: Table, resume: str | None, limit: int) -> RowBatch | None:
        """Read the next rows behind `resume` in key order; None when there are no more."""

    def keyless(self, table: Table) -> tuple[DeadLetter, ...]:
        """Name rows that no key tells apart, and that `rows` therefore leaves out."""

    def count(self, table: Table) -> int:
        """Count the table's rows."""

    def rescan(self, table: Table, after: Position) -> Rescan:
        """Tell whether the table is due to be compared whole within this snapshot.

        The caller then does so before it records the head, which says that it was done.
        """

    def doubt(self, table: Table) -> str | None:
        """Say why changes may go by unseen until the next audit; None where that is proved."""


class ChangeSource(Protocol):
    """Where the facts are written, and how their changes are learned of."""

    def describe(self, name: str) -> TableSchema:
        """Read a table's schema as it is now.

        Raises:
            SchemaError: The table does not exist or cannot be captured; says the way out.
        """

    def install(self, table: Table, least: int) -> None:
        """Make changes of the table visible from now on. Idempotent; mends what is missing.

        `least`: new positions are greater than it, so that a watermark never has to go back.
        """

    def is_installed(self, table: Table) -> bool:
        """Tell whether capture of the table is as `install` would make it now."""

    def schema_version(self) -> int:
        """Return a number that changes whenever the source's schema may have changed."""

    @property
    def logs_rows(self) -> bool:
        """Whether changes hold rows whole for every mode, so that no table has to be there."""

    def snapshot(self, *, rows: bool = False) -> AbstractContextManager[SourceSnapshot]:
        """Hold one committed state of the source for the length of the block.

        With `rows`, that state's rows can be read as well, and the changes end exactly where the
        rows do; its head may then lie behind changes it does not show, and is not to be recorded.
        """

    def acknowledge(self, needed_from: Mapping[str, Position], *, prune: bool) -> int:
        """Record from where on this mirror still needs each table's changes.

        With `prune`, forget what no mirror needs. Returns how many events were forgotten. Safe
        to repeat.
        """

    def touch(self, table: Table, keys: Sequence[tuple[Any, ...]]) -> None:
        """Report keys as changed, so that the next cycle reads their rows again."""

    def held_bytes(self) -> Mapping[str, int]:
        """Return how many bytes are kept until this mirror has them, by what keeps them.

        Without what cannot be told cheaply.
        """


class MirrorTransaction(Protocol):
    """All that one transaction of the mirror may do; it commits as a whole or not at all."""

    def ledger(self) -> Ledger:
        """Return what is recorded, as this transaction sees it."""

    def merge(self, table: Table, changes: NetChanges) -> Counts:
        """Overwrite rows by key and remove tombstones; count what really changed."""

    def present_keys(self, table: Table) -> pa.Table:
        """Return the keys of all rows that are valid now."""

    def copied_keys(self, table: Table) -> pa.Table:
        """Return the keys of all rows in the copy."""

    def present_rows(self, table: Table, keys: pa.Table) -> pa.Table:
        """Return the rows of those keys that are valid now, with the table's columns."""

    def copied_rows(self, table: Table, keys: pa.Table) -> pa.Table:
        """Return the rows of those keys in the copy, with the table's columns."""

    def open_versions(self, table: Table, events: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Return the open versions of the events' keys, and the floors of keys with a past only.

        Shapes as `history.supersede` takes them.
        """

    def supersede(self, table: Table, versions: Versions) -> None:
        """Close and open versions of a temporal table."""

    def record(self, watermark: Watermark) -> None:
        """Record progress. Refuses to go back."""

    def quarantine(self, letters: Iterable[DeadLetter]) -> int:
        """Keep dead letters, one per table, key and column, the newest; return how many."""

    def quarantined(self, table: Table) -> set[LetterName]:
        """Name the open dead letters of a table."""

    def release(self, table: Table, letters: Collection[LetterName], at: datetime) -> None:
        """Resolve dead letters of values that fit by now, or of rows that are gone."""

    def write_snapshots(self, table: Table, days: Mapping[date, AsOf]) -> dict[date, int]:
        """Keep a temporal table's rows as of each day's instant; return their numbers.

        They are the table of the same name in the schema `snapshot`; days there are written anew.
        """

    def begin_copy(self, table: Table, progress: CopyProgress) -> None:
        """Start an empty copy beside the table."""

    def append_copy(self, table: Table, rows: pa.Table, progress: CopyProgress) -> None:
        """Append rows to the copy and record how far it has come."""

    def drop_copy(self, table: Table) -> None:
        """Drop the copy under way; the table beside it stays as it was last recorded."""

    def heal_copy(self, table: Table, changes: NetChanges) -> None:
        """Bring the copy up to a later state by net changes."""

    def keep_unknown(self, table: Table, keys: pa.Table) -> None:
        """Give the copy the table's present rows of keys that the copy could not read.

        These rows are the last good ones, so that putting the copy in place changes nothing about
        them. In the copy's columns; what the table does not have, or has otherwise, is null.
        """

    def adopt_copy(self, table: Table, at: datetime) -> int | None:
        """Make the copy the table where none of its shape stands; return its rows, else None.

        The shape is the columns, their types and the key. A temporal table's rows become baseline
        versions that are valid from `at`. A standing table that has history is never replaced:
        it takes on the shape of the schema, if that changes nothing of its past.

        Raises:
            SchemaDriftError: The table is to have no history any more, or its past does not fit
                the new types or the new key.
        """

    def record_key(self, table: Table) -> None:
        """Record the key that a table was built for, of one of before this was recorded."""

    def drop_table(self, table: Table, keep_as: str | None = None) -> int:
        """Drop a table with its snapshots, and all that is recorded of it.

        With `keep_as`, table and snapshots stay as ordinary tables of that name, which follow no
        source table; the name is one of its own, without a schema. Safe for one that is not there.
        Nothing else of a mirror drops a table that has history.

        Returns:
            How many rows, or versions, it had.

        Raises:
            SchemaError: The name is taken; nothing was done.
        """

    def mend_keys(self, table: Table, at: datetime) -> Counts:
        """Leave one present row a key and none whose key is null; count what ended.

        Of a temporal table's versions that are valid at once, each ends where the next one begins;
        one without a key ends at `at`. Rows of a destructive table are removed.
        """

    def copy_differences(self, table: Table, limit: int) -> Iterator[NetChanges]:
        """Yield what leads from the table's present rows to the copy's, then drop the copy."""

    def count(self, table: Table) -> int:
        """Count the rows that are valid now."""

    def compare_digests(
        self, table: Table, parts: Iterable[pa.Table]
    ) -> tuple[list[int], pa.Table]:
        """Compare the table's present rows with all rows of the source by digests; cheaply.

        Returns:
            The numbers of the parts that hold a row the table lacks or has otherwise, and the keys
            of the table's rows that are in no part.
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
        """Run one read-only statement, and return its rows as they come, all of one state."""

    def tables(self) -> Mapping[str, Table]:
        """Return the tables that are in the mirror, as they are there, by `sql.mirror_table`.

        A table with history is temporal, whatever is declared; its key is empty where it was not
        recorded. Tables that were set aside are among them; snapshots and copies are not.
        """

    def count(self, table: Table) -> int:
        """Count the rows that are valid now."""

    def past(self, table: Table) -> Past | None:
        """Return what is recorded of a temporal table's past; None where it is not mirrored yet."""

    def dead_letters(self, table: str | None = None) -> pa.Table:
        """Return the dead letters kept, of one table or of all."""

    def heal(self, table: Table) -> tuple[DamagedFile, ...]:
        """Check all files of a table; leave out what is damaged, so that a copy can mend it.

        Nothing is deleted: damaged files are set aside. Returns what was damaged and what became
        of it; nothing where all files are whole.
        """

    def confirm(self) -> None:
        """Take what is held as newest: a sync compared its positions and had nothing to apply."""

    @property
    def not_published(self) -> RheiError | None:
        """Why what others read beside the mirror is older than the mirror; None where it is not."""

    def gaps_until(self, table: Table) -> datetime | None:
        """Return until when a repair has left gaps in a history, and said so; None: it is whole."""

    def maintain(self) -> MaintenanceReport:
        """Bring the files into the form that reads fastest; safe at any time, bounded a call."""

    def close(self) -> None:
        """Release the mirror; safe to repeat."""
