"""What only some adapters can do: a small protocol each, and a question with a neutral answer.

An adapter that cannot do a thing does not have its methods, and says nothing of it. Base classes
with neutral answers would do the same, but every adapter would have to inherit from them, and the
contracts would list methods that most need not have. A method whose name is misspelt counts as
missing: that is why the contract suites ask these same questions.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import date, datetime
from functools import cache
from types import MappingProxyType
from typing import Protocol, TypeGuard, runtime_checkable

import numpy as np
import pyarrow as pa

from rhei_pipeline.errors import SchemaError
from rhei_pipeline.model.changes import DeadLetter, Position, RowBatch
from rhei_pipeline.model.copy_plan import CopyPlan, RangePart, RangeStanding
from rhei_pipeline.model.feed_state import FeedState
from rhei_pipeline.model.kept_columns import KeptColumns
from rhei_pipeline.model.key_span import orders_alike
from rhei_pipeline.model.polling import PollOptions
from rhei_pipeline.model.progress import AsOf, CopyProgress
from rhei_pipeline.model.published_state import PublishedTable
from rhei_pipeline.model.retention import Ageing, ExpiredHistory
from rhei_pipeline.model.schema import Table, TableOptions, TableSchema
from rhei_pipeline.model.upkeep import DamagedFile
from rhei_pipeline.protocols import (
    ChangeSource,
    Database,
    FindRows,
    Mirror,
    MirrorRecords,
    Rescan,
    SourcePositions,
    SourceRows,
    SourceSnapshot,
    TableAdministration,
)


@runtime_checkable
class Rescans(Protocol):
    """A snapshot of a source that cannot see every change."""

    def rescan(self, table: Table, after: Position) -> Rescan:
        """Return whether the whole table must be compared within this snapshot.

        The caller then does so before it records the head, which confirms it.
        """


@runtime_checkable
class Doubts(Protocol):
    """A snapshot of a source that may miss changes until the next rescan."""

    def doubt(self, table: Table) -> str | None:
        """Return why changes may be missed until the next rescan; None if none can be."""


@runtime_checkable
class Retains(Protocol):
    """A snapshot of a source that may keep much for a position."""

    def retains(self, position: Position) -> bool:
        """Return whether the source keeps much for this position alone, with or without changes."""


@runtime_checkable
class ChangesShape(Protocol):
    """A snapshot of logs of images, which go on in other shapes than they began."""

    def next_shape(self, table: Table, after: Position) -> TableSchema | None:
        """Return the table with the schema of the changes after `after`, if that is another one.

        None if they have the given table's schema, or the source's present one. All changes in
        the given schema come before them.
        """


@runtime_checkable
class HasKeylessRows(Protocol):
    """A snapshot of a source whose rows may have no usable key."""

    def keyless(self, table: Table) -> tuple[DeadLetter, ...]:
        """Return dead letters for the rows without a usable key, one for each key they have.

        `rows` leaves these rows out.
        """

    def keyless_count(self, table: Table, where: str) -> int:
        """Count these rows, several of which may share a key, of those with a condition."""


@runtime_checkable
class OrdersKeys(Protocol):
    """A snapshot that knows how its source orders keys."""

    def orders_bytewise(self, table: Table) -> bool:
        """Return whether rows come in the order of their keys, texts by their bytes in UTF-8."""


@runtime_checkable
class FindsKeys(Protocol):
    """A snapshot that can read a table's rows from any key on."""

    def start_at(self, table: Table, key: pa.Table) -> str | None:
        """Return a text from which `rows` goes on with this key, or the first one behind it."""


@runtime_checkable
class DrawsRows(Protocol):
    """A snapshot whose source draws rows by lot itself."""

    def draw(self, table: Table, share: float, limit: int) -> Iterator[RowBatch]:
        """Yield rows in any order, each row of the table with this chance."""


@runtime_checkable
class ReadsRanges(Protocol):
    """A snapshot that cuts a table into ranges of keys, and reads one of them alone."""

    @property
    def cuts_ranges(self) -> bool:
        """Whether its source can: a snapshot may stand before one that cannot."""

    def range_ends(self, table: Table, count: int) -> Sequence[str]:
        """Return where all of `count` ranges but the last end; fewer where there are few keys.

        Each is a place from which `rows` goes on; the ranges have about as many rows.
        """

    def rows_within(
        self, table: Table, resume: str | None, until: str | None, limit: int
    ) -> RowBatch | None:
        """Return the next rows after `resume`, up to the end of a range; None: there are none."""


@runtime_checkable
class CountsChosen(Protocol):
    """A snapshot of a source that takes conditions in SQL."""

    def count_where(self, table: Table, where: str) -> int:
        """Return the number of rows of which a condition is true."""


@runtime_checkable
class HoldsRowsApart(Protocol):
    """A source whose changes and rows are read in different ways."""

    def row_snapshot(self) -> AbstractContextManager[SourceSnapshot]:
        """Hold one committed state with its rows; the changes end exactly where the rows do.

        Its head may be after changes that it does not show, and must not be recorded.
        """


@runtime_checkable
class ReadsForCopies(Protocol):
    """A source that reads rows sooner where they need not be of one state."""

    def copy_snapshot(self) -> AbstractContextManager[SourceSnapshot]:
        """Hold a committed state; its `rows` may be of later ones, of the same schema.

        That is enough for a copy, which reads again whatever is touched after its position.
        """


@runtime_checkable
class HoldsBytes(Protocol):
    """A source, or its buffer, that keeps changes until the mirror has them."""

    def held_bytes(self) -> Mapping[str, int]:
        """Return the bytes that are kept until this mirror has them, by what keeps them.

        Sizes that are not cheap to read are left out.
        """


@runtime_checkable
class HasViews(Protocol):
    """An operational database with views, which queries read at the source."""

    def views(self) -> list[tuple[str | None, str]]:
        """Return the schema, None where it has none, and the name of each view."""


@runtime_checkable
class RepairsFiles(Protocol):
    """A mirror that goes on without files that were damaged."""

    def heal(self, table: Table) -> tuple[DamagedFile, ...]:
        """Check all files of a table; remove damaged ones, so that a copy can repair the table.

        Nothing is deleted: damaged files are set aside. Returns what was damaged and what was
        done about it; nothing if all files are intact.
        """

    def gaps_until(self, table: Table) -> datetime | None:
        """Return until when a history may have gaps, because a repair lost files; None: no gaps."""


@runtime_checkable
class KeepsFeed(Protocol):
    """A mirror that knows in which order a temporal table's versions came to it."""

    def feed(self, table: Table) -> FeedState | None:
        """Return which state of the table's history it holds; None if it lacks the table."""

    def instant_text(self, microseconds: int) -> str:
        """Write an instant, counted from 1970, in the mirror's SQL."""


@runtime_checkable
class Forgets(Protocol):
    """A mirror that can lose single keys with all their past."""

    def forget(self, table: Table, keys: pa.Table, *, trial: bool = False) -> list[pa.Table]:
        """Remove all that there is of these keys: rows, versions, snapshots and dead letters.

        A trial changes nothing. Returns the rows that were removed, or would be.
        """

    def erase(self) -> tuple[str, ...]:
        """Remove from the disk what was deleted; return what still stands there, in words."""


@runtime_checkable
class Expires(Protocol):
    """A mirror whose temporal tables can lose old versions."""

    def expire(self, ageing: Sequence[Ageing]) -> list[ExpiredHistory]:
        """Remove versions that have ended, of all tables in one commit; return what went.

        Since when a history is kept is recorded with it: an instant before is refused from then
        on. A table that the mirror lacks is left out.
        """

    def kept_since(self) -> Mapping[str, datetime]:
        """Return since when histories are kept, of the tables that have lost older versions."""


@runtime_checkable
class Publishes(Protocol):
    """A mirror that publishes its tables for engines on other machines."""

    def publish(self, *, wait: bool = True) -> None:
        """Publish all tables as they are now, whatever the interval; or not, while it is written.

        That is so without `wait`: with it, the transaction under way is waited for.
        """

    def published(self, names: Sequence[str]) -> Sequence[PublishedTable] | None:
        """Return what shows these tables just as they are now, all at one state; None if nothing.

        Tables are named as in `tables`.
        """

    def stored_rows(self, relations: Collection[str]) -> int:
        """Return how many rows and versions the tables of these names have, in any schema."""


@runtime_checkable
class TakesFoundRows(Protocol):
    """A transaction of a mirror that takes the rows of a snapshot from elsewhere."""

    def store_snapshots(
        self, table: Table, days: Mapping[date, AsOf], find: FindRows
    ) -> dict[date, int]:
        """Do what `write_snapshots` does, with what `find` finds."""


class RangeStore(Protocol):
    """Where processes find what is to be copied of a table, and say what they have copied."""

    def standing(self, table: str) -> RangeStanding | None:
        """Return how far the copy of a table has come; None: it is not under way in ranges.

        Raises:
            MirrorDamagedError: A record is not what was written.
        """

    def append(
        self,
        plan: CopyPlan,
        part: RangePart,
        table: Table,
        rows: pa.Table,
        on_written: Callable[[], None],
    ) -> bool:
        """Write a part's rows durably, call `on_written`, then record the part as a whole.

        False: another process has recorded this part; what was written here is deleted.
        """


class PlannedRanges(RangeStore, Protocol):
    """The same for the process that holds the mirror."""

    def plan(self, plan: CopyPlan) -> None:
        """Record a plan durably, so that others find it."""

    def drop(self, table: str) -> None:
        """Forget what is planned for a table, and all that was recorded of it."""

    def under_way(self) -> Sequence[RangeStanding]:
        """Return how far all copies in ranges have come; nothing is asked where there are none."""

    def lost(self, standing: RangeStanding) -> Sequence[str]:
        """Return the files of complete ranges that are missing or have another size."""


@runtime_checkable
class CopiesRanges(Protocol):
    """A mirror that names what other processes have written of a table."""

    ranges: PlannedRanges


@runtime_checkable
class AdmitsRanges(Protocol):
    """A transaction of such a mirror."""

    def admit_ranges(self, table: Table, parts: Iterable[RangePart], done: CopyProgress) -> None:
        """Make what was written of ranges the copy, and record its progress."""


@runtime_checkable
class ErasesPruned(Protocol):
    """A source with a buffer, whose files hold changes for a while after they were pruned."""

    def erase_pruned(self) -> None:
        """Remove from the disk what was pruned."""


class TellsChanges(KeepsFeed, Mirror, Protocol):
    """A mirror that can be asked what changed."""


def tells_changes(mirror: Mirror) -> TypeGuard[TellsChanges]:
    """Return whether a mirror can be asked what changed."""
    return _has(type(mirror), KeepsFeed)


@runtime_checkable
class ReadsTogether(Protocol):
    """A source whose catalogue can be read for many tables with as few statements as for one."""

    def reading_together(self, names: Collection[str]) -> AbstractContextManager[None]:
        """Read these tables at once; in the block they are described and installed from that.

        What is changed in the source meanwhile shows in `schema_version` afterwards.
        """


@runtime_checkable
class Replays(Protocol):
    """A snapshot of a source that may still have every change since its tables were empty."""

    def beginning(self, table: Table) -> tuple[Position, datetime] | None:
        """Return the position before the first change, and when that was made.

        None if the first changes are not there any more, or there were none.
        """


@runtime_checkable
class KnowsAdded(Protocol):
    """A source that knows what an added column is in rows that stood before.

    Whatever is written after the column was added is among its changes, with the column's value or
    without the column.
    """

    def added_values(
        self, table: Table, known: TableSchema, after: Position
    ) -> Mapping[str, pa.Scalar] | None:
        """Return that value of each column that `table` has and `known` lacks; null is one, too.

        The columns are the table's last ones. `known` is the table as it was described when the
        position `after` was recorded. None where a row may have another value that no change shows.
        """


@runtime_checkable
class KnowsKept(Protocol):
    """A source that knows which columns a schema change has left as they were."""

    def kept_columns(self, table: Table, known: TableSchema, after: Position) -> KeptColumns | None:
        """Return which columns of `table` are those of `known`, and hold what they held.

        Unless a change tells of another value. All changes after the position are told by the
        names that columns have now. None where that is not sure, or a column has a name by now
        that another one had.
        """


@runtime_checkable
class KnowsUnseen(Protocol):
    """A source that sees by its schema which tables may have changed without a change event."""

    def changed_unseen(self) -> Collection[str]:
        """Return the tables that the next `install` has compared whole for that.

        Reads the source, and changes nothing there.
        """


@runtime_checkable
class ReadsWider(Protocol):
    """A source whose log has every column that a table had, whoever asked for which."""

    def reads_wider(self) -> bool:
        """Return whether changes that were made since a column was added have its value.

        Though it was added before anybody looked, and capture was made again.
        """


@runtime_checkable
class Redeclares(Protocol):
    """A source that takes what is said of a table while it is open."""

    def redeclare(self, name: str, options: TableOptions, polling: PollOptions) -> None:
        """Capture a table as these say from now on, once it is described and installed again."""


@runtime_checkable
class EndsCapture(Protocol):
    """A source that keeps something for each table whose changes it captures."""

    def end_capture(self, name: str) -> None:
        """Capture a table no more for this mirror; what other mirrors of it need stays.

        Its changes that this mirror lacks are lost. Safe to repeat, and for a table that is gone.
        """


def redeclare(source: ChangeSource, name: str, options: TableOptions, polling: PollOptions) -> None:
    """Give a source what is said of a table; not one that knows no options."""
    if _redeclares(source):
        source.redeclare(name, options, polling)


def added_values(
    source: ChangeSource, table: Table, known: TableSchema, after: Position
) -> Mapping[str, pa.Scalar] | None:
    """Return what added columns are in rows that no change shows; None where that is not known."""
    return source.added_values(table, known, after) if _knows_added(source) else None


def kept_columns(
    source: ChangeSource, table: Table, known: TableSchema, after: Position
) -> KeptColumns | None:
    """Return which columns a schema change has left as they were; None where that is not known."""
    return source.kept_columns(table, known, after) if _knows_kept(source) else None


def changed_unseen(source: ChangeSource) -> Collection[str]:
    """Return the tables with changes that capture may have missed, as far as a source knows."""
    return source.changed_unseen() if _knows_unseen(source) else ()


def reads_wider(source: ChangeSource) -> bool:
    """Return whether changes always have the values of columns that the table had then."""
    return _reads_wider(source) and source.reads_wider()


def end_capture(source: ChangeSource, name: str) -> None:
    """End the capture of a table where a source keeps something for it."""
    if _ends_capture(source):
        source.end_capture(name)


def beginning_of(snapshot: SourcePositions, table: Table) -> tuple[Position, datetime] | None:
    """Return the position before the first change that there was; None where it is not known."""
    return snapshot.beginning(table) if _replays(snapshot) else None


def rescan_due(snapshot: SourcePositions, table: Table, after: Position) -> Rescan:
    """Return whether the whole table must be compared; never where every change is seen."""
    return snapshot.rescan(table, after) if _rescans(snapshot) else Rescan.NONE


def doubt_about(snapshot: SourcePositions, table: Table) -> str | None:
    """Return why changes may be missed; None where none can be."""
    return snapshot.doubt(table) if _doubts(snapshot) else None


def is_retained_for(snapshot: SourcePositions, position: Position) -> bool:
    """Return whether the source keeps much for this position alone."""
    return _retains(snapshot) and snapshot.retains(position)


def shape_after(snapshot: SourcePositions, table: Table, after: Position) -> TableSchema | None:
    """Return another schema in which the table's changes go on; None where there is none."""
    return snapshot.next_shape(table, after) if _changes_shape(snapshot) else None


def keyless_rows(snapshot: SourcePositions, table: Table) -> tuple[DeadLetter, ...]:
    """Return dead letters for rows without a usable key; none where every row has one."""
    return snapshot.keyless(table) if _has_keyless_rows(snapshot) else ()


def keyless_count(snapshot: SourcePositions, table: Table, where: str = "true") -> int:
    """Count the rows without a usable key of which a condition in the source's SQL is true."""
    return snapshot.keyless_count(table, where) if _has_keyless_rows(snapshot) else 0


def is_ordered_alike(snapshot: SourcePositions, table: Table) -> bool:
    """Return whether the source gives its rows in an order of keys that every engine has.

    Of texts that is not known, unless the source says so: a collation orders them in its own way.
    """
    schema = table.schema
    if not orders_alike(schema):
        return False
    if isinstance(snapshot, OrdersKeys):
        return snapshot.orders_bytewise(table)
    return not any(pa.types.is_string(column.type) for column in schema.key_columns)


def start_at(snapshot: SourcePositions, table: Table, key: pa.Table) -> str | None:
    """Return where `rows` goes on with a key; None where all rows have to be read for that."""
    if not isinstance(snapshot, FindsKeys) or not orders_alike(table.schema):
        return None
    return snapshot.start_at(table, key)


def draw_rows(snapshot: SourceRows, table: Table, share: float, limit: int) -> Iterator[RowBatch]:
    """Yield rows drawn by lot; where the source does not draw, all of them are read for it."""
    if isinstance(snapshot, DrawsRows):
        yield from snapshot.draw(table, share, limit)
        return
    lot, resume = np.random.default_rng(), None
    while batch := snapshot.rows(table, resume, limit):
        resume = batch.resume
        drawn = pa.array(lot.random(batch.rows.num_rows) < share)
        yield replace(batch, rows=batch.rows.filter(drawn), rejected=())


def reads_ranges(snapshot: SourcePositions) -> TypeGuard[ReadsRanges]:
    """Return whether a snapshot can read single ranges of a table's keys."""
    return isinstance(snapshot, ReadsRanges) and snapshot.cuts_ranges


def count_where(snapshot: SourceRows, table: Table, where: str) -> int:
    """Return the number of rows of which a condition is true; of all rows where none is taken."""
    if _counts_chosen(snapshot):
        return snapshot.count_where(table, where)
    return snapshot.count(table)


def snapshot_of_rows(source: ChangeSource) -> AbstractContextManager[SourceSnapshot]:
    """Hold one committed state whose rows can be read; see `HoldsRowsApart`."""
    return source.row_snapshot() if _holds_rows_apart(source) else source.snapshot()


def snapshot_for_copy(source: ChangeSource) -> AbstractContextManager[SourceSnapshot]:
    """Hold a state whose rows a copy can read; see `ReadsForCopies`."""
    return source.copy_snapshot() if _reads_for_copies(source) else snapshot_of_rows(source)


def reading_together(source: ChangeSource, names: Collection[str]) -> AbstractContextManager[None]:
    """Let tables be described and installed from one reading, where the source can do that."""
    return source.reading_together(names) if _reads_together(source) else nullcontext()


def bytes_held_by(source: ChangeSource) -> Mapping[str, int]:
    """Return the bytes kept for the mirror, by what keeps them; {} where nothing is known."""
    return source.held_bytes() if _holds_bytes(source) else MappingProxyType({})


def views_of(database: Database) -> list[tuple[str | None, str]]:
    """Return the schema and name of each view; nothing where there are none."""
    return database.views() if _has_views(database) else []


def heal_files(mirror: MirrorRecords, table: Table) -> tuple[DamagedFile, ...]:
    """Remove damaged files of a table; return what was damaged, nothing without such files."""
    return mirror.heal(table) if _repairs_files(mirror) else ()


def refuse_unless_forgetting(mirror: MirrorRecords, table: Table) -> Forgets:
    """Return a mirror as one that can forget.

    Raises:
        SchemaError: It cannot.
    """
    if _forgets(mirror):
        return mirror
    raise SchemaError(
        "its mirror cannot forget single keys",
        table=table.name,
        hint=f"drop the whole table with 'rhei drop-table {table.name}'",
    )


def refuse_unless_expiring(mirror: MirrorRecords, table: Table) -> Expires:
    """Return a mirror as one whose histories can be shortened.

    Raises:
        SchemaError: They cannot.
    """
    if _expires(mirror):
        return mirror
    raise SchemaError(
        "its mirror cannot remove old versions alone",
        table=table.name,
        hint="leave out 'history' in the declaration",
    )


def kept_since(mirror: MirrorRecords) -> Mapping[str, datetime]:
    """Return since when histories are kept that lost older versions; {} where none ever does."""
    return mirror.kept_since() if _expires(mirror) else MappingProxyType({})


def publishes(mirror: MirrorRecords) -> TypeGuard[Publishes]:
    """Return whether a mirror publishes its tables for other engines."""
    return _has(type(mirror), Publishes)


def takes_found_rows(transaction: TableAdministration) -> TypeGuard[TakesFoundRows]:
    """Return whether a transaction takes the rows of a snapshot from elsewhere."""
    return _has(type(transaction), TakesFoundRows)


def erase_pruned(source: ChangeSource) -> None:
    """Remove pruned changes from the disk, where the source keeps them in files of ours."""
    if _erases_pruned(source):
        source.erase_pruned()


def gaps_in(mirror: MirrorRecords, table: Table) -> datetime | None:
    """Return until when a history may have gaps; None where it has none."""
    return mirror.gaps_until(table) if _repairs_files(mirror) else None


@cache
def _has(kind: type, capability: type) -> bool:
    """Return whether a class has the methods; each cycle asks for every table."""
    return issubclass(kind, capability)


def _rescans(snapshot: SourcePositions) -> TypeGuard[Rescans]:
    return _has(type(snapshot), Rescans)


def _doubts(snapshot: SourcePositions) -> TypeGuard[Doubts]:
    return _has(type(snapshot), Doubts)


def _replays(snapshot: SourcePositions) -> TypeGuard[Replays]:
    return _has(type(snapshot), Replays)


def _retains(snapshot: SourcePositions) -> TypeGuard[Retains]:
    return _has(type(snapshot), Retains)


def _changes_shape(snapshot: SourcePositions) -> TypeGuard[ChangesShape]:
    return _has(type(snapshot), ChangesShape)


def _has_keyless_rows(snapshot: SourcePositions) -> TypeGuard[HasKeylessRows]:
    return _has(type(snapshot), HasKeylessRows)


def _counts_chosen(snapshot: SourceRows) -> TypeGuard[CountsChosen]:
    return _has(type(snapshot), CountsChosen)


def _holds_rows_apart(source: ChangeSource) -> TypeGuard[HoldsRowsApart]:
    return _has(type(source), HoldsRowsApart)


def _reads_for_copies(source: ChangeSource) -> TypeGuard[ReadsForCopies]:
    return _has(type(source), ReadsForCopies)


def _holds_bytes(source: ChangeSource) -> TypeGuard[HoldsBytes]:
    return _has(type(source), HoldsBytes)


def _reads_together(source: ChangeSource) -> TypeGuard[ReadsTogether]:
    return _has(type(source), ReadsTogether)


def _redeclares(source: ChangeSource) -> TypeGuard[Redeclares]:
    return _has(type(source), Redeclares)


def _knows_added(source: ChangeSource) -> TypeGuard[KnowsAdded]:
    return _has(type(source), KnowsAdded)


def _knows_kept(source: ChangeSource) -> TypeGuard[KnowsKept]:
    return _has(type(source), KnowsKept)


def _knows_unseen(source: ChangeSource) -> TypeGuard[KnowsUnseen]:
    return _has(type(source), KnowsUnseen)


def _reads_wider(source: ChangeSource) -> TypeGuard[ReadsWider]:
    return _has(type(source), ReadsWider)


def _ends_capture(source: ChangeSource) -> TypeGuard[EndsCapture]:
    return _has(type(source), EndsCapture)


def _has_views(database: Database) -> TypeGuard[HasViews]:
    return issubclass(type(database), HasViews)


def _repairs_files(mirror: MirrorRecords) -> TypeGuard[RepairsFiles]:
    return _has(type(mirror), RepairsFiles)


def _forgets(mirror: MirrorRecords) -> TypeGuard[Forgets]:
    return _has(type(mirror), Forgets)


def _expires(mirror: MirrorRecords) -> TypeGuard[Expires]:
    return _has(type(mirror), Expires)


def _erases_pruned(source: ChangeSource) -> TypeGuard[ErasesPruned]:
    return _has(type(source), ErasesPruned)
