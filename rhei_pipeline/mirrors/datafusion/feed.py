"""The feeds of temporal tables in a mirror of files: see `changes.feed`."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.changes.feed import FeedEnd, Feeds, Recording, feed_schema
from rhei_pipeline.mirrors.datafusion.digests import KeyHashes
from rhei_pipeline.mirrors.datafusion.manifest import Manifest, StoredTable
from rhei_pipeline.mirrors.datafusion.segment_store import SegmentStore
from rhei_pipeline.mirrors.datafusion.session import ReadingSession
from rhei_pipeline.mirrors.datafusion.write_buffer import WriteBuffer
from rhei_pipeline.model.feed_state import FEED_PREFIX, KIND, LATE, LINEAGE, TOLD, FeedState
from rhei_pipeline.model.schema import VALID_FROM, VALID_TO, Mode, Table
from rhei_pipeline.model.semantics import Translated
from rhei_pipeline.model.type_names import INSTANT
from rhei_pipeline.sql.text import datafusion_type, literal, mirror_table

_READ = [KIND, LATE, LINEAGE, VALID_FROM]


class FileFeeds(Feeds):
    """What one transaction of files adds to the feeds of its tables.

    Args:
        base: The committed state.
        store: The files.
        tables: The tables that the transaction changes, by name; feeds are put there too.
        dropped: The names of those that it drops.
        known: What the feeds came to before it, of the tables for which that is known.
    """

    def __init__(
        self,
        base: Manifest,
        store: SegmentStore,
        tables: dict[str, WriteBuffer],
        dropped: set[str],
        known: Mapping[str, FeedEnd],
    ) -> None:
        super().__init__(known)
        self._base = base
        self._store = store
        self._tables = tables
        self._dropped = dropped

    def reached(self, tables: Mapping[str, StoredTable]) -> dict[str, StoredTable]:
        """Return the tables to commit with the latest instants of their versions."""
        result = dict(tables)
        for recording in self._recordings.values():
            name = mirror_table(recording.table)
            if name in result:
                result[name] = replace(result[name], newest=recording.end().newest)
        return result

    def move(self, old: StoredTable, table: Table) -> None:
        """Let a table that was renamed keep its feed."""
        former = mirror_table(replace(table.schema, mirror_name=old.relation), FEED_PREFIX)
        standing = self._standing(former)
        if standing is not None:
            standing.move(table.schema.namespace, FEED_PREFIX + table.schema.mirror_relation)
            self._tables.pop(former, None)
            self._dropped.add(former)
            self._tables[feed_name(table)] = standing

    def entries(self, table: Table) -> pa.Table:
        """Return what a table's feed holds."""
        standing, shape = self._standing(feed_name(table)), feed_schema(table.schema)
        parts = standing.scan(shape.names, past=True) if standing is not None else ()
        return pa.concat_tables([shape.empty_table(), *(rows.cast(shape) for rows, _ in parts)])

    def rewrite(self, table: Table, entries: pa.Table) -> None:
        """Replace what a table's feed holds."""
        self._tables[feed_name(table)] = _written(WriteBuffer(_empty(table), self._store), entries)

    def _is_fitting(self, table: Table) -> bool:
        standing = self._standing(feed_name(table))
        return standing is None or standing.schema.equals(feed_schema(table.schema))

    def _discard(self, table: Table) -> None:
        self._tables.pop(feed_name(table), None)
        self._dropped.add(feed_name(table))

    def _standing(self, name: str) -> WriteBuffer | None:
        """Return a table as this transaction has it."""
        found = self._tables.get(name)
        if found is None and name in self._base.tables and name not in self._dropped:
            self._store.refuse_damaged(self._base.tables[name])
            found = WriteBuffer(self._base.tables[name], self._store)
        return found

    def _read_end(self, table: Table) -> FeedEnd:
        standing, feed = (
            self._standing(mirror_table(table.schema)),
            self._standing(feed_name(table)),
        )
        late = 0
        if feed is not None:
            numbers = (rows[LATE] for rows, _ in feed.scan([LATE], past=True))
            late = max((pc.max(found).as_py() or 0 for found in numbers), default=0)
        newest = None
        if standing is not None:
            newest = standing.table.newest
            newest = _newest(_instants(standing)) if newest is None else newest
        return FeedEnd(late, newest)

    def _add(self, table: Table, entries: pa.Table) -> None:
        if entries.num_rows:
            buffer = self._standing(feed_name(table)) or WriteBuffer(_empty(table), self._store)
            self._tables[feed_name(table)] = _written(buffer, entries)


def feed_name(table: Table) -> str:
    """Return the quoted name of a table's feed."""
    return mirror_table(table.schema, FEED_PREFIX)


def without_positions(manifest: Manifest, table: Table, store: SegmentStore) -> Manifest:
    """Return a state in which no earlier position of a table says anything: files were lost."""
    if table.mode is not Mode.TEMPORAL or mirror_table(table.schema) not in manifest.tables:
        return manifest
    entries = Recording(table.schema, FeedEnd()).lose()
    buffer = _written(WriteBuffer(_empty(table), store), entries)
    tables = {**manifest.tables, feed_name(table): buffer.prepare_commit()}
    return replace(manifest, tables=MappingProxyType(tables))


def read_feed(manifest: Manifest, table: Table, session: ReadingSession) -> FeedState | None:
    """Return where a table's feed stands in a state; None if that lacks the table."""
    standing = manifest.tables.get(mirror_table(table.schema))
    if standing is None:
        return None
    entries, name = feed_schema(table.schema).empty_table(), feed_name(table)
    if name in manifest.tables:
        relation = FEED_PREFIX + table.schema.mirror_relation
        asked = Translated(f"select {', '.join(_READ)} from {name}", [relation])
        entries = session.query(asked, (), manifest)
    newest = standing.newest
    if newest is None and standing.segments:
        asked = Translated(
            f"select max({VALID_FROM}) as a, max({VALID_TO}) as b"
            f" from {mirror_table(table.schema)}",
            [table.schema.mirror_relation],
        )
        newest = _newest(session.query(asked, (), manifest).columns)
    late = pc.max(entries[LATE]).as_py() or 0
    own = entries.filter(pc.is_in(entries[KIND], pa.array([kind.value for kind in TOLD])))
    return FeedState.of(own, late, newest)


def instant_text(microseconds: int) -> str:
    """Write an instant in DataFusion's SQL."""
    return f"arrow_cast({microseconds}, {literal(datafusion_type(INSTANT))})"


def _empty(table: Table) -> StoredTable:
    schema = table.schema
    relation = FEED_PREFIX + schema.mirror_relation
    return StoredTable(schema.namespace, relation, feed_schema(schema))


def _written(buffer: WriteBuffer, entries: pa.Table) -> WriteBuffer:
    """Add entries; nobody looks for one by its key."""
    count = entries.num_rows
    nowhere = KeyHashes(np.zeros(count, np.uint64), np.zeros(count, np.uint32))
    buffer.append(entries, nowhere, np.zeros(count, np.uint64), past=True)
    return buffer


def _instants(buffer: WriteBuffer) -> Iterable[pa.ChunkedArray]:
    for past in (False, True):
        for rows, _ in buffer.scan([VALID_FROM, VALID_TO], past=past):
            yield from rows.columns


def _newest(instants: Iterable[pa.ChunkedArray]) -> int | None:
    latest = (pc.max(some.cast(pa.int64())).as_py() for some in instants)
    return max((found for found in latest if found is not None), default=None)
