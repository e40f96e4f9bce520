"""One transaction of a mirror of files."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.changes.feed import FeedEnd
from rhei_pipeline.errors import MirrorError, RheiError
from rhei_pipeline.mirrors.datafusion import dead_letters as dead
from rhei_pipeline.mirrors.datafusion.buffered_rows import (
    all_keys,
    append_rows,
    append_versions,
    close_versions,
    end_overlapping,
    merge,
    open_versions,
    rows_of,
)
from rhei_pipeline.mirrors.datafusion.copy_ranges import admitted
from rhei_pipeline.mirrors.datafusion.diff import (
    compare,
    compare_digests,
    differences,
    present_repeats,
)
from rhei_pipeline.mirrors.datafusion.digests import key_hashes
from rhei_pipeline.mirrors.datafusion.feed import FileFeeds
from rhei_pipeline.mirrors.datafusion.left_columns import find_aside, fit_days, keep_left
from rhei_pipeline.mirrors.datafusion.manifest import (
    COPY_PREFIX,
    SNAPSHOTS,
    Manifest,
    StoredTable,
    TableShape,
)
from rhei_pipeline.mirrors.datafusion.past import note_columns
from rhei_pipeline.mirrors.datafusion.query_proof import refuse_misread
from rhei_pipeline.mirrors.datafusion.schema_evolution import (
    fit,
    last_good_rows,
    outgrown,
    reshape,
    widen,
)
from rhei_pipeline.mirrors.datafusion.segment_merge import folded
from rhei_pipeline.mirrors.datafusion.segment_store import SegmentStore
from rhei_pipeline.mirrors.datafusion.snapshots import DAY, add_snapshots, snapshots_of
from rhei_pipeline.mirrors.datafusion.write_buffer import WriteBuffer
from rhei_pipeline.mirrors.names import name_taken
from rhei_pipeline.model.blame import own_fault
from rhei_pipeline.model.changes import (
    Comparison,
    Counts,
    DeadLetter,
    LetterName,
    LetterReason,
    NetChanges,
    Operation,
    Versions,
)
from rhei_pipeline.model.copy_plan import RangePart
from rhei_pipeline.model.key_span import WHOLE, KeySpan
from rhei_pipeline.model.progress import AsOf, CopyProgress, Ledger, Watermark, refuse_lower
from rhei_pipeline.model.schema import (
    OPERATION,
    VALID_FROM,
    VALID_TO,
    FormerNames,
    Mode,
    Table,
    TableSchema,
    renamed,
)
from rhei_pipeline.model.selection import chosen
from rhei_pipeline.model.set_aside import with_former
from rhei_pipeline.model.type_names import INSTANT
from rhei_pipeline.protocols import FindRows
from rhei_pipeline.sql.text import is_other_spelling, mirror_table


@dataclass(slots=True)
class FileTransaction:
    """A `MirrorTransaction` on one committed state; `prepare_commit` returns the next one."""

    base: Manifest
    store: SegmentStore
    #: Runs a query on the committed state; None where nobody is to ask.
    ask: Callable[[str], pa.Table] | None = None
    #: What the feeds of temporal tables came to before; of the tables for which that is known.
    known_feeds: Mapping[str, FeedEnd] = field(default_factory=lambda: MappingProxyType({}))
    _tables: dict[str, WriteBuffer] = field(default_factory=dict)
    _dropped: set[str] = field(default_factory=set)
    _watermarks: dict[str, Watermark] = field(default_factory=dict)
    _copies: dict[str, CopyProgress] = field(default_factory=dict)
    _letters: pa.Table | None = None
    _letters_changed: bool = False
    _ledger: Ledger | None = None
    feeds: FileFeeds = field(init=False)

    def __post_init__(self) -> None:
        self.feeds = FileFeeds(self.base, self.store, self._tables, self._dropped, self.known_feeds)
        self._watermarks = dict(self.base.ledger.watermarks)
        self._copies = dict(self.base.ledger.copies)

    def prepare_commit(self) -> Manifest:
        """Write all new files, and return the state to commit."""
        tables = {n: t for n, t in self.base.tables.items() if n not in self._dropped}
        now = datetime.now(UTC)
        for name, buffer in self._tables.items():
            table = self._flushed(buffer)
            tables[name] = table if buffer.is_admitted else folded(table, now, self.store)
        kept = self.base.letters
        if self._letters_changed:
            kept = self.store.write_letters(self._kept()) if self._kept().num_rows else None
        return replace(
            self.base,
            version=self.base.version + 1,
            committed_at=now,
            tables=MappingProxyType(self.feeds.reached(tables)),
            ledger=self.ledger(),
            letters=kept,
        )

    def _flushed(self, buffer: WriteBuffer) -> StoredTable:
        """Write one table; an unknown error is reported as this table's."""
        try:
            return buffer.prepare_commit()
        except (RheiError, OSError):
            raise
        except Exception as error:
            built = buffer.table.built
            name = built.name if built else self.base.name_of(buffer.table)
            fault = own_fault(error, name)
            raise fault if fault is not None else error from error

    def ledger(self) -> Ledger:
        """Return what is recorded, as this transaction sees it."""
        if self._ledger is None:
            self._ledger = Ledger(
                MappingProxyType(dict(self._watermarks)), MappingProxyType(dict(self._copies))
            )
        return self._ledger

    def merge(self, table: Table, changes: NetChanges) -> Counts:
        """Compare with the digests of the present rows; remove and append what really changed."""
        return merge(self._buffer(table), table, changes)

    def present_keys(self, table: Table) -> pa.Table:
        """Return the keys of all current rows."""
        return all_keys(self._buffer(table), table)

    def copied_keys(self, table: Table) -> pa.Table:
        """Return the keys of all rows in the copy."""
        return all_keys(self._buffer(table, COPY_PREFIX), table)

    def present_rows(self, table: Table, keys: pa.Table) -> pa.Table:
        """Return the current rows of those keys."""
        return rows_of(self._buffer(table), table, keys)

    def copied_rows(self, table: Table, keys: pa.Table) -> pa.Table:
        """Return the rows of those keys in the copy."""
        return rows_of(self._buffer(table, COPY_PREFIX), table, keys)

    def open_versions(self, table: Table, events: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Return the open versions of the touched keys, and the last end of keys without one."""
        return open_versions(self._buffer(table), table, events)

    def supersede(self, table: Table, versions: Versions) -> None:
        """End versions, then append the new ones."""
        buffer = self._buffer(table)
        self.feeds.note(table, versions)
        if versions.closings.num_rows:
            close_versions(buffer, table, versions.closings)
        ended = pc.is_valid(versions.openings[VALID_TO]).to_numpy()
        for past, mask in ((True, ended), (False, ~ended)):
            append_versions(buffer, table, chosen(versions.openings, mask), past)

    def record(self, watermark: Watermark) -> None:
        """Record progress; a lower position is refused."""
        refuse_lower(watermark, self._watermarks.get(watermark.table))
        self._watermarks[watermark.table] = watermark
        self._ledger = None

    def quarantine(self, letters: Iterable[DeadLetter]) -> int:
        """Store dead letters; return how many."""
        self._letters, count = dead.keep(self._kept(), letters)
        self._letters_changed |= count > 0
        return count

    def quarantined(self, table: Table) -> set[LetterName]:
        """Return the names of a table's open dead letters."""
        return dead.open_names(self._kept(), table.name)

    def letter_reasons(self, table: Table) -> Mapping[LetterReason, int]:
        """Return how many of a table's open dead letters have each column and reason."""
        return dead.reasons(self._kept(), table.name)

    def release(self, table: Table, letters: Collection[LetterName], at: datetime) -> None:
        """Resolve dead letters; a temporal table keeps them as resolved."""
        if letters:
            dated = at if table.mode is Mode.TEMPORAL else None
            self._letters = dead.release(self._kept(), table.name, letters, dated)
            self._letters_changed = True

    def write_snapshots(self, table: Table, days: Mapping[date, AsOf]) -> dict[date, int]:
        """Store a temporal table's rows as of each day's instant, under the day."""
        return self.store_snapshots(table, days, lambda _day, _then, _shape: None)

    def store_snapshots(
        self, table: Table, days: Mapping[date, AsOf], find: FindRows
    ) -> dict[date, int]:
        """Store the same rows, as far as they are found elsewhere from there."""
        name, buffer = snapshots_of(table.schema), self._buffer(table)
        if not self._stands(name):
            empty = StoredTable(SNAPSHOTS, table.schema.snapshot_name, pa.schema([DAY]))
            self._tables[name] = WriteBuffer(empty, self.store)
        return add_snapshots(self._named(name, table), buffer, days, find)

    def begin_copy(self, table: Table, progress: CopyProgress) -> None:
        """Start an empty copy beside the table."""
        self._put(table, table.schema.arrow, COPY_PREFIX)
        self.append_copy(table, table.schema.arrow.empty_table(), progress)

    def append_copy(self, table: Table, rows: pa.Table, progress: CopyProgress) -> None:
        """Append rows to the copy and record its progress."""
        if rows.num_rows:
            append_rows(self._buffer(table, COPY_PREFIX), table, rows)
        self._copies[table.name] = progress
        self._ledger = None

    def admit_ranges(self, table: Table, parts: Iterable[RangePart], done: CopyProgress) -> None:
        """Make what was written of ranges the copy; none of it is read, nor written again."""
        self._buffer(table, COPY_PREFIX).admit(admitted(parts, self.store))
        self.append_copy(table, table.schema.arrow.empty_table(), done)

    def drop_copy(self, table: Table) -> None:
        """Drop the running copy; the table itself is not changed."""
        name = mirror_table(table.schema, COPY_PREFIX)
        self._tables.pop(name, None)
        self._copies.pop(table.name, None)
        self._ledger = None
        self._dropped.add(name)

    def keep_copies(self, tables: Collection[Table]) -> None:
        """Drop all running copies but those of these tables."""
        self._dropped |= self.base.copies - {mirror_table(t.schema, COPY_PREFIX) for t in tables}
        self._copies = {t.name: self._copies[t.name] for t in tables if t.name in self._copies}
        self._ledger = None

    def heal_copy(self, table: Table, changes: NetChanges) -> None:
        """Apply net changes that were made since to the copy."""
        merge(self._buffer(table, COPY_PREFIX), table, changes)

    def keep_unknown(self, table: Table, keys: pa.Table) -> None:
        """Add the table's present rows to the copy for keys that the copy could not read."""
        if keys.num_rows and self._stands(mirror_table(table.schema)):
            rows = last_good_rows(self._buffer(table), table, keys)
            copy = self._buffer(table, COPY_PREFIX)
            held = copy.find(key_hashes(rows.select(list(table.schema.primary_key)))).key_numbers
            lacking = np.setdiff1d(np.arange(rows.num_rows), held)
            append_rows(copy, table, rows.take(pa.array(lacking)))

    def adopt_copy(self, table: Table, at: datetime) -> int | None:
        """Make the copy the table unless one with its schema exists; return its rows, or None.

        A temporal table's rows become baseline versions that are valid from `at`.

        Raises:
            SchemaDriftError: A temporal table's history does not fit the new types.
        """
        name = mirror_table(table.schema)
        self._follow_case(table)
        if self._stands(name):
            standing = self._buffer(table)
            if not outgrown(standing, table):
                aside = find_aside(standing, table)
                self._tables[name] = fit(standing, table, self.store, append_versions, aside)
                note_columns(self._tables[name], table, at)
                self._fit_derived(table, aside)
                return None
            own, copy = mirror_table(table.schema, COPY_PREFIX), self._buffer(table, COPY_PREFIX)
            self._tables[own] = keep_left(standing, copy, table, self.store, append_rows)
        copy = self._drop_copy(table)
        copy.move(table.schema.namespace, table.schema.mirror_relation)
        if table.mode is Mode.TEMPORAL:
            copy.reshape(table.mirror_schema)
            since = pa.scalar(at, INSTANT).cast(pa.int64()).as_py()
            copy.fix({VALID_FROM: since, OPERATION: Operation.INSERT.value})
            copy.date(at, {})
            self.feeds.born(table, since)
        copy.build_for(TableShape(table.name, table.schema.primary_key))
        self._tables[name] = copy
        return copy.count()

    def mend_keys(self, table: Table, _at: datetime) -> Counts:
        """Leave one present row for each key; a key left without one is found as a difference."""
        buffer = self._buffer(table)
        places, keys = present_repeats(buffer)
        if table.mode is Mode.DESTRUCTIVE:
            too_many = places[1:][keys[1:] == keys[:-1]]
            buffer.remove(too_many)
            return Counts(deleted=len(too_many))
        self.feeds.begin(table)
        ended = end_overlapping(buffer, table, places, keys)
        if ended:
            self.feeds.lose(table)
        return Counts(deleted=ended)

    def _follow_case(self, table: Table) -> None:
        """Rename a table whose name changed its case, in a source without schemas."""
        schema = table.schema
        for old, stored in self.base.spellings(schema, self._dropped):
            if stored.relation != schema.mirror_relation:
                buffer = self._tables.pop(old, None) or WriteBuffer(stored, self.store)
                buffer.move(None, schema.mirror_relation)
                self._tables[mirror_table(schema)] = buffer
                self._dropped.add(old)
                self.feeds.move(stored, table)
            former = self.base.name_of(stored)
            if is_other_spelling(former, table.name):
                self._forget_records(former, dead.rename(self._kept(), former, table))

    def _forget_records(self, name: str, letters: pa.Table) -> None:
        self._watermarks.pop(name, None)
        self._copies.pop(name, None)
        self._ledger = None
        self._letters, self._letters_changed = letters, True

    def add_columns(self, table: Table, values: Mapping[str, pa.Scalar]) -> None:
        """Add columns behind those of a table; each row has this value in them."""
        name = mirror_table(table.schema)
        self._tables[name] = widen(self._buffer(table), table, values, self.store)

    def reshape(self, table: Table, at: datetime, former: FormerNames) -> None:
        """Give a table fewer, renamed or wider columns; a history keeps those that are gone."""
        name, own = mirror_table(table.schema), self._buffer(table)
        names = with_former(former, own.schema.names)
        self._tables[name] = reshape(own, table, at, names, self.store, append_versions)
        self._fit_derived(table, names)

    def _fit_derived(self, table: Table, former: FormerNames) -> None:
        self.feeds.reshaped(table, former)
        days = snapshots_of(table.schema)
        if table.mode is Mode.TEMPORAL and self._stands(days):
            own = {*self._buffer(table).schema.names, DAY.name}
            self._tables[days] = fit_days(self._named(days, table), table, own, former, self.store)

    def record_key(self, table: Table) -> None:
        """Record the key that the table was built for."""
        self._buffer(table).build_for(TableShape(table.name, table.schema.primary_key))

    def drop_table(self, table: Table, keep_as: str | None = None) -> int:
        """Drop a table and its records; return the number of rows or versions it had."""
        schema, kept = table.schema, renamed(table.schema, keep_as) if keep_as else None
        is_there = self._stands(mirror_table(schema))
        standing = self.base.tables.get(mirror_table(schema)) if is_there else None
        rows = sum(s.present_rows + s.ended_rows for s in standing.segments) if standing else 0
        if kept is not None:
            self._set_aside(mirror_table(schema), mirror_table(kept), table, kept)
            days = replace(kept, namespace=SNAPSHOTS)
            self._set_aside(snapshots_of(schema), snapshots_of(kept), table, days)
        self.feeds.drop(table)
        for name in (mirror_table(schema), snapshots_of(schema), mirror_table(schema, COPY_PREFIX)):
            self._tables.pop(name, None)
            self._dropped.add(name)
        self._forget_records(table.name, dead.forget(self._kept(), table.name))
        return rows

    def _set_aside(self, old: str, new: str, table: Table, kept: TableSchema) -> None:
        if self._stands(new):
            raise name_taken(kept.name, table.name)
        if self._stands(old):
            buffer = self._tables[new] = self._named(old, table)
            buffer.move(kept.namespace, kept.relation)
            buffer.build_for(TableShape(kept.name, table.schema.primary_key, set_aside=True))

    def _stands(self, name: str) -> bool:
        return name in self._tables or (name in self.base.tables and name not in self._dropped)

    def copy_differences(self, table: Table, limit: int) -> Iterator[NetChanges]:
        """Yield the changes from the table's present rows to the copy's, then drop the copy."""
        copy = self._drop_copy(table)
        yield from differences(self._buffer(table), copy, table.schema, limit)

    def count(self, table: Table) -> int:
        """Return the number of current rows."""
        return self._buffer(table).count()

    def compare_digests(
        self, table: Table, parts: Iterable[pa.Table]
    ) -> tuple[list[int], pa.Table]:
        """Compare with the index's digests, without reading rows."""
        return compare_digests(self._buffer(table), table.schema, parts)

    def compare(
        self, table: Table, rows: Iterable[pa.Table], span: KeySpan | None = WHOLE
    ) -> Comparison:
        """Compare the source's rows with the table's present ones, both ways.

        All files are checked, and the rows are read and hashed again; the index's own digests are
        not trusted. Queries must return what the files hold, which the last span of keys proves.
        """
        stored = self.base.tables.get(mirror_table(table.schema))
        if stored is not None:
            self.store.check_anew(self.store.table_files(stored))
            if span is not None and span.until is None and self.ask is not None:
                refuse_misread(stored, self.store, table, self.ask)
        return compare(self._buffer(table), table, rows, span)

    def _buffer(self, table: Table, prefix: str = "") -> WriteBuffer:
        return self._named(mirror_table(table.schema, prefix), table)

    def _named(self, name: str, table: Table) -> WriteBuffer:
        found = self._tables.get(name)
        if found is None:
            stored = self.base.tables.get(name)
            if stored is None or not self._stands(name):
                raise MirrorError("it is not in the mirror", table=table.name)
            self.store.refuse_damaged(stored)
            found = self._tables[name] = WriteBuffer(stored, self.store)
        return found

    def _put(self, table: Table, schema: pa.Schema, prefix: str) -> None:
        stored = StoredTable(table.schema.namespace, prefix + table.schema.mirror_relation, schema)
        self._tables[mirror_table(table.schema, prefix)] = WriteBuffer(stored, self.store)

    def _drop_copy(self, table: Table) -> WriteBuffer:
        copy = self._buffer(table, COPY_PREFIX)
        self.drop_copy(table)
        return copy

    def _kept(self) -> pa.Table:
        if self._letters is None:
            name = self.base.letters
            self._letters = self.store.letters(name) if name else dead.LETTERS.empty_table()
        return self._letters
