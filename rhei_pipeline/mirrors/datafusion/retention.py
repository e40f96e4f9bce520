"""Removes old versions from a mirror of files: each file that holds one is written again."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.changes.feed import FeedEnd
from rhei_pipeline.changes.retention import identity, surplus_sql
from rhei_pipeline.errors import MirrorDamagedError
from rhei_pipeline.mirrors.datafusion.constants import conform
from rhei_pipeline.mirrors.datafusion.digests import KeyHashes, key_hashes
from rhei_pipeline.mirrors.datafusion.feed import FileFeeds
from rhei_pipeline.mirrors.datafusion.key_index import KeyIndex
from rhei_pipeline.mirrors.datafusion.manifest import Manifest, Segment, StoredTable
from rhei_pipeline.mirrors.datafusion.segment_merge import fold
from rhei_pipeline.mirrors.datafusion.segment_store import SegmentStore
from rhei_pipeline.mirrors.datafusion.write_buffer import WriteBuffer
from rhei_pipeline.model.feed_state import KIND, LATE, FeedEntry
from rhei_pipeline.model.instants import instant, microseconds
from rhei_pipeline.model.retention import Ageing, ExpiredHistory
from rhei_pipeline.model.schema import VALID_FROM, VALID_TO
from rhei_pipeline.model.semantics import Translated
from rhei_pipeline.sql.text import mirror_table

Mask = npt.NDArray[np.bool_]
#: Entries of a feed that name a version.
_OF_VERSIONS = (FeedEntry.OPENED.value, FeedEntry.ENDED.value)
#: Entries that tell of earlier removals; the present one tells all of it again.
_OF_BEFORE = (FeedEntry.KEPT.value, FeedEntry.COUNTED.value)


@dataclass(slots=True)
class Removal:
    """Removes old versions of tables from a committed state.

    Attributes:
        base: That state.
        store: Its files.
        ask: Runs a query on it.
        known: What the feeds of its tables have come to, where that is known.
    """

    base: Manifest
    store: SegmentStore
    ask: Callable[[Translated], pa.Table]
    known: Mapping[str, FeedEnd]
    removed: list[ExpiredHistory] = field(default_factory=list)
    _tables: dict[str, StoredTable] = field(init=False)
    _changed_feeds: dict[str, WriteBuffer] = field(default_factory=dict)
    _feeds: FileFeeds = field(init=False)

    def __post_init__(self) -> None:
        self._tables = dict(self.base.tables)
        self._feeds = FileFeeds(self.base, self.store, self._changed_feeds, set(), self.known)

    def of(self, ageing: Iterable[Ageing]) -> Manifest:
        """Return the state without them, not committed yet; a damaged table stays as it is."""
        for each in ageing:
            stored = self.base.tables.get(mirror_table(each.table.schema))
            if stored is not None:
                # Whoever checks all files names it.
                with suppress(MirrorDamagedError):
                    self._remove(each, stored)
        for name, buffer in self._changed_feeds.items():
            self._tables[name] = buffer.prepare_commit()
        tables = self._feeds.reached(self._tables)
        return replace(self.base, tables=MappingProxyType(tables))

    def ends(self) -> Mapping[str, FeedEnd]:
        """Return what the feeds come to."""
        return self._feeds.ends()

    def _remove(self, ageing: Ageing, stored: StoredTable) -> None:
        name, expired = mirror_table(ageing.table.schema), self._expired(ageing, stored)
        self.store.refuse_damaged(stored)
        feed = _FeedEntries.of(self._feeds, ageing)
        holding: dict[str, Segment] = {}
        versions = cut = 0
        for segment, rows in _ended(stored, expired.columns, self.store):
            went = rows.filter(pa.array(expired.mask(rows)))
            if went.num_rows:
                holding[segment.name] = segment
                versions += went.num_rows
                cut = max(cut, pc.max(went[VALID_TO].cast(pa.int64())).as_py())
                feed.note(went)
        if not versions:
            return
        since = instant(cut)
        if stored.kept_since is not None:
            since = max(since, stored.kept_since)
        groups = [[segment] for segment in holding.values()]
        left = fold(stored, groups, self.store, lambda rows: ~expired.mask(rows))
        feed.rewrite(microseconds(since))
        self._tables[name] = replace(left, begins_at=since, kept_since=since)
        self.removed.append(ExpiredHistory(ageing.table.name, versions, since))

    def _expired(self, ageing: Ageing, stored: StoredTable) -> "_Expired":
        schema, surplus = ageing.table.schema, None
        columns = pa.schema([stored.schema.field(name) for name in identity(schema)])
        if ageing.versions is not None:
            asked = surplus_sql(schema, ageing.versions)
            found = self.ask(Translated(asked, [schema.mirror_relation]))
            surplus = _index(conform(found, columns))
        return _Expired(columns, ageing.until, surplus)


@dataclass(frozen=True, slots=True)
class _Expired:
    """What goes of a table's versions.

    Attributes:
        columns: Those that tell versions apart.
        until: Those that ended by then go.
        surplus: And those of this index.
    """

    columns: pa.Schema
    until: datetime | None
    surplus: KeyIndex | None

    def mask(self, rows: pa.Table) -> Mask:
        went = np.zeros(rows.num_rows, np.bool_)
        ended = pc.is_valid(rows[VALID_TO]).to_numpy()
        if self.until is not None:
            old = pc.less_equal(rows[VALID_TO], pa.scalar(self.until, rows.field(VALID_TO).type))
            went |= pc.fill_null(old, fill_value=False).to_numpy()
        if self.surplus is not None:
            places = np.flatnonzero(ended)
            own = conform(rows.take(pa.array(places)), self.columns)
            numbers, _ = self.surplus.find(_hashes(own))
            went[places[numbers]] = True
        return went


@dataclass(slots=True)
class _FeedEntries:
    """The feed of a table whose versions are removed.

    Attributes:
        feeds: What is to be noted.
        entries: What the feed holds.
        late: The last late commit that ended a version which went.
    """

    feeds: FileFeeds
    ageing: Ageing
    entries: pa.Table
    late: int
    _index: KeyIndex
    _stays: Mask

    @classmethod
    def of(cls, feeds: FileFeeds, ageing: Ageing) -> "_FeedEntries":
        feeds.begin(ageing.table)
        found = feeds.entries(ageing.table)
        told = found.filter(pc.equal(found[KIND], FeedEntry.KEPT.value))
        entries = found.filter(pc.invert(pc.is_in(found[KIND], pa.array(_OF_BEFORE))))
        own = pc.is_in(entries[KIND], pa.array(_OF_VERSIONS))
        places = np.flatnonzero(own.to_numpy())
        hashes = _hashes(_beginnings(entries.take(pa.array(places)), ageing))
        index = KeyIndex.build(hashes, places.astype(np.uint64))
        late = pc.max(told[LATE]).as_py() or 0
        return cls(feeds, ageing, entries, late, index, np.ones(entries.num_rows, np.bool_))

    def note(self, went: pa.Table) -> None:
        """Let the entries of versions go that were removed."""
        numbers, found = self._index.find(_hashes(_beginnings(went, self.ageing)))
        places = self._index.digests_or_ends[found].astype(np.int64)
        entries, versions = self.entries.take(pa.array(places)), went.take(pa.array(numbers))
        ends, late = versions[VALID_TO].cast(pa.int64()), entries[LATE].to_numpy()
        ended = pc.fill_null(pc.equal(entries[VALID_TO].cast(pa.int64()), ends), fill_value=False)
        self.late = max(self.late, int(late[ended.to_numpy()].max(initial=0)))
        # A version that ended as it began has the beginning of the one that follows it.
        own = pc.not_equal(versions[VALID_FROM].cast(pa.int64()), ends).to_numpy()
        self._stays[places[own]] = False

    def rewrite(self, since: int) -> None:
        """Let the feed have what stays of it, and since when the history is kept."""
        table = self.ageing.table
        self.feeds.rewrite(table, self.entries.filter(pa.array(self._stays)))
        self.feeds.keep(table, since, self.late)


def _ended(
    stored: StoredTable, columns: pa.Schema, store: SegmentStore
) -> Iterator[tuple[Segment, pa.Table]]:
    """Yield the versions that have ended, in portions, each with its segment."""
    for segment in stored.segments:
        buffer = WriteBuffer(replace(stored, segments=(segment,)), store)
        for rows, _ in buffer.scan(columns.names, past=True):
            yield segment, rows


def _beginnings(rows: pa.Table, ageing: Ageing) -> pa.Table:
    return rows.select([*ageing.table.schema.primary_key, VALID_FROM])


def _hashes(identities: pa.Table) -> KeyHashes:
    instants = (VALID_FROM, VALID_TO)
    return key_hashes(
        pa.table(
            {
                name: identities[name].cast(pa.int64()) if name in instants else identities[name]
                for name in identities.column_names
            }
        )
    )


def _index(identities: pa.Table) -> KeyIndex:
    return KeyIndex.build(_hashes(identities), np.zeros(identities.num_rows, np.uint64))
