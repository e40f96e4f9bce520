"""The interfaces: what a source of changes and a mirror guarantee each other.

No interface has more than eight methods of its own. The large ones are made of small ones, by who
reads them; a function asks for the smallest that it can do with. What only some adapters can do is
in `capabilities`.
"""

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
    LetterReason,
    NetChanges,
    Position,
    RowBatch,
    Versions,
)
from rhei_pipeline.model.key_span import WHOLE, KeySpan
from rhei_pipeline.model.progress import AsOf, CopyProgress, Ledger, Past, Watermark
from rhei_pipeline.model.query_limits import NO_LIMITS, AnswerLimits
from rhei_pipeline.model.schema import (
    Column,
    FormerNames,
    Table,
    TableOptions,
    TableSchema,
)
from rhei_pipeline.model.semantics import MirroredTable
from rhei_pipeline.model.streaming import Begun, Streamed
from rhei_pipeline.model.upkeep import MaintenanceReport


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
    RANGES_PLANNED = "ranges_planned"
    RANGE_WRITTEN = "range_written"
    RANGE_RECORDED = "range_recorded"
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
#: Finds a table's rows of a day, as of an instant and of this shape; None: the mirror finds them.
FindRows = Callable[[date, AsOf, pa.Schema], pa.Table | None]


class DatabaseWrites(Protocol):
    """Statements that write."""

    def execute(self, sql: str, params: Sequence[Any] = ()) -> int:
        """Run one writing statement and commit it; return how many rows it changed."""

    def execute_returning(self, sql: str, params: Sequence[Any] = ()) -> pa.Table:
        """Run one writing statement and return its rows; it is committed once they are read.

        Raises:
            QueryError: The statement returns no rows, or these cannot be shown; it had no effect.
        """

    def execute_batch(self, statements: Sequence[tuple[str, Sequence[Any]]]) -> int:
        """Run all statements in one transaction, all or nothing; return the rows changed."""


class DatabaseQueries(Protocol):
    """Statements that only read."""

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


class DatabaseTables(Protocol):
    """The tables, as queries know them and as their owner changes them."""

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


class Database(DatabaseWrites, DatabaseQueries, DatabaseTables, Protocol):
    """The operational database, as its own application uses it."""

    def close(self) -> None:
        """Close every connection; safe to repeat."""


class SourcePositions(Protocol):
    """Where one committed state of the source stands, and what lies behind a position."""

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

    def pending(self, table: Table, after: Position) -> int:
        """Return the number of events after `position`, cheaply."""

    def oldest_pending(self, table: Table, after: Position) -> datetime | None:
        """Return when the first event after `position` was made; None if there is none."""


class SourceChanges(SourcePositions, Protocol):
    """The changes up to one committed state."""

    def changes(self, table: Table, after: Position, limit: int) -> Iterator[ChangeBatch]:
        """Yield all changes after `after`, in batches of about `limit` rows.

        Temporal tables: every version that the source logged, in order. Destructive tables: the
        same, or the net change of each key, once over all batches, if the source supports that
        (`ChangeBatch.net`).
        """

    def net_changes(self, table: Table, after: Position, limit: int) -> Iterator[ChangeBatch]:
        """Yield the net changes after `after`, whatever the table's mode."""


class SourceRows(SourcePositions, Protocol):
    """The rows of one committed state."""

    def rows(self, table: Table, resume: str | None, limit: int) -> RowBatch | None:
        """Return the next rows after `resume` in key order; None when there are no more."""

    def count(self, table: Table) -> int:
        """Return the table's row count."""


class SourceSnapshot(SourceChanges, SourceRows, Protocol):
    """One committed state of the source, the same for all tables and calls."""


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

    def snapshot(self) -> AbstractContextManager[SourceSnapshot]:
        """Hold one committed state of the source during the block.

        Its rows can be read as well, unless the source `HoldsRowsApart`.
        """

    def acknowledge(self, needed_from: Mapping[str, Position], /, *, prune: bool) -> int:
        """Record the position from which this mirror still needs each table's changes.

        With `prune`, delete what no mirror needs. Returns how many events were deleted. Safe to
        repeat.
        """

    def touch(self, table: Table, keys: Sequence[tuple[Any, ...]]) -> None:
        """Report keys as changed, so that the next cycle reads their rows again."""


class ProgressRecord(Protocol):
    """What is recorded of each table's progress."""

    def ledger(self) -> Ledger:
        """Return what is recorded, as this transaction sees it."""

    def record(self, watermark: Watermark) -> None:
        """Record progress; a lower position is refused."""


class RowApply(Protocol):
    """The present rows and versions, and changes to them."""

    def merge(self, table: Table, changes: NetChanges) -> Counts:
        """Overwrite rows by key and remove tombstones; count what really changed."""

    def present_keys(self, table: Table) -> pa.Table:
        """Return the keys of all current rows."""

    def present_rows(self, table: Table, keys: pa.Table) -> pa.Table:
        """Return the current rows of those keys, with the table's columns."""

    def open_versions(self, table: Table, events: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Return the open versions of the events' keys, and the floors of keys without one.

        Both have the columns that `scd2.supersede` takes.
        """

    def supersede(self, table: Table, versions: Versions) -> None:
        """Close and open versions of a temporal table."""


class DeadLetterStore(Protocol):
    """The rows that cannot be mirrored, each a dead letter."""

    def quarantine(self, letters: Iterable[DeadLetter]) -> int:
        """Store dead letters, the newest per table, key and column; return how many."""

    def quarantined(self, table: Table) -> set[LetterName]:
        """Return the names of a table's open dead letters."""

    def letter_reasons(self, table: Table) -> Mapping[LetterReason, int]:
        """Return how many of a table's open dead letters have each column and reason."""

    def release(self, table: Table, letters: Collection[LetterName], at: datetime) -> None:
        """Resolve dead letters of values that fit now, or of rows that are gone."""


class CopyWrite(Protocol):
    """A copy of a table beside it: begun, filled, given up."""

    def begin_copy(self, table: Table, progress: CopyProgress) -> None:
        """Start an empty copy beside the table."""

    def append_copy(self, table: Table, rows: pa.Table, progress: CopyProgress) -> None:
        """Append rows to the copy and record its progress."""

    def drop_copy(self, table: Table) -> None:
        """Drop the running copy; the table itself is not changed."""

    def keep_copies(self, tables: Collection[Table]) -> None:
        """Drop all running copies but those of these tables, whatever they were of."""


class CopyPromotion(Protocol):
    """A complete copy: brought up to date, then put in its table's place."""

    def copied_keys(self, table: Table) -> pa.Table:
        """Return the keys of all rows in the copy."""

    def copied_rows(self, table: Table, keys: pa.Table) -> pa.Table:
        """Return the rows of those keys in the copy, with the table's columns."""

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
        replaced: it is fitted to the new schema, if that changes nothing in its history. A column
        of local times that is of instants now, or the other way, is empty in its past; what it was
        is kept in another one: see `model.set_aside`.

        Raises:
            SchemaDriftError: The table would lose its history, or its history does not fit the
                new types or the new key.
        """

    def mend_keys(self, table: Table, at: datetime) -> Counts:
        """Leave one present row for each key and none with a null key; return what ended.

        Of a temporal table's versions that are valid at once, each ends where the next one begins;
        one without a key ends at `at`. Rows of a destructive table are removed.
        """

    def copy_differences(self, table: Table, limit: int) -> Iterator[NetChanges]:
        """Yield the changes from the table's present rows to the copy's, then drop the copy."""


class RowComparison(Protocol):
    """The present rows beside all rows of the source."""

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

    def compare(
        self, table: Table, rows: Iterable[pa.Table], span: KeySpan | None = WHOLE
    ) -> Comparison:
        """Compare the table's present rows with the source's; changes nothing.

        `rows` are all rows of the source in that span of keys; one that is not the whole table is
        of keys that `orders_alike`. With None they are some rows: nothing is extra then.
        The rows are taken one table after the other, and not held.
        """


class TableAdministration(Protocol):
    """What is done to whole tables when somebody asks for it."""

    def write_snapshots(self, table: Table, days: Mapping[date, AsOf]) -> dict[date, int]:
        """Store a temporal table's rows as of each day's instant; return the row counts.

        They go into the table of this name in the schema `snapshot`; existing days are replaced.
        """

    def add_columns(self, table: Table, values: Mapping[str, pa.Scalar]) -> None:
        """Add columns behind those of a table; each row has this value in them, null in a history.

        `table` is the table with these columns. No row is written where the storage can do that.
        A column that is there already stays as it is.
        """

    def reshape(self, table: Table, at: datetime, former: FormerNames) -> None:
        """Give a table fewer columns, other names, or wider types; their values are left alone.

        `former`: The name that each renamed column had. Columns that `table` has no more are kept
        where it says so: by a history as left since `at`; else with their values, which rows keep
        that are merged, and which go to the copy that is adopted. Safe to repeat.
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


class ChangeApply(ProgressRecord, RowApply, DeadLetterStore, Protocol):
    """All that applying a table's changes takes."""


class MirrorTransaction(
    ChangeApply, CopyWrite, CopyPromotion, RowComparison, TableAdministration, Protocol
):
    """One transaction of the mirror; it commits as a whole or not at all."""


class MirrorRecords(Protocol):
    """What a mirror has committed, read without a transaction."""

    @property
    def folds_names(self) -> bool:
        """Whether names that differ by case only are one name."""

    @property
    def taken_schemas(self) -> Collection[str]:
        """The names of schemas, in lower case, that the mirror cannot take from the source."""

    def ledger(self) -> Ledger:
        """Return what is recorded."""

    def tables(self) -> Mapping[str, Table]:
        """Return the tables of the mirror with their stored schemas, by `sql.mirror_table`.

        A table with history is temporal, whatever is declared; its key is empty if it was not
        recorded. Tables that were set aside are included; snapshots and copies are not.
        """

    def count(self, table: Table) -> int:
        """Return the number of current rows."""

    def past(self, table: Table) -> Past | None:
        """Return what is recorded of a temporal table's history; None if it is not mirrored yet."""

    def quarantined(self, table: Table) -> set[LetterName]:
        """Return the names of a table's open dead letters: what a sync goes by.

        It answers for a mirror that is older than it was, which a sync brings up to date.
        """

    def dead_letters(self, table: str | None = None) -> pa.Table:
        """Return the stored dead letters, of one table or of all."""

    @property
    def not_published(self) -> RheiError | None:
        """Why the published copy or Delta tables are older than the mirror; None if not."""


class MirrorQueries(Protocol):
    """Queries on the last committed state."""

    def query(
        self,
        sql: str,
        params: Sequence[Any] | Mapping[str, Any] = (),
        begun: Begun | None = None,
        limits: AnswerLimits = NO_LIMITS,
    ) -> pa.Table:
        """Run one read-only statement on the last committed state; parameters by place or name.

        Raises:
            QueryLimitError: The answer is larger than `limits` allow.
        """

    def stream(
        self,
        sql: str,
        params: Sequence[Any] | Mapping[str, Any],
        rows: int,
        begun: Begun | None = None,
    ) -> Streamed:
        """Run one read-only statement, and return its rows in batches, all of one state."""


class MirrorUpkeep(Protocol):
    """A mirror's files and copies for others, beside its contents."""

    def confirm(self) -> None:
        """Confirm that the state is the newest: a sync compared positions and found no changes."""

    def maintain(self) -> MaintenanceReport:
        """Rewrite the files for fast reading; safe at any time, with limited work in each call."""

    def close(self) -> None:
        """Release the mirror; safe to repeat."""


class Mirror(MirrorRecords, MirrorQueries, MirrorUpkeep, Protocol):
    """The analytical copy."""

    def transaction(self, *, trial: bool = False) -> AbstractContextManager[MirrorTransaction]:
        """Open the one writing transaction; leaving the block commits, an error rolls back.

        A trial is rolled back in any case.
        """
