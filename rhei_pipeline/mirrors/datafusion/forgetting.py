"""Removes keys from a mirror of files: whatever file holds one is written again without it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.mirrors.datafusion import dead_letters as dead
from rhei_pipeline.mirrors.datafusion.constants import conform
from rhei_pipeline.mirrors.datafusion.deletion_vectors import present
from rhei_pipeline.mirrors.datafusion.digests import key_hashes
from rhei_pipeline.mirrors.datafusion.feed import without_positions
from rhei_pipeline.mirrors.datafusion.key_index import KeyIndex
from rhei_pipeline.mirrors.datafusion.manifest import (
    COPY_PREFIX,
    SNAPSHOTS,
    Manifest,
    Segment,
    StoredTable,
)
from rhei_pipeline.mirrors.datafusion.segment_merge import fold
from rhei_pipeline.mirrors.datafusion.segment_store import SegmentStore
from rhei_pipeline.model.changes import key_text
from rhei_pipeline.model.plain_values import plain_rows
from rhei_pipeline.model.schema import Table
from rhei_pipeline.sql.text import mirror_table, quote

Mask = npt.NDArray[np.bool_]


@dataclass(slots=True)
class Forgetting:
    """Keys of one table, to be removed from a committed state."""

    table: Table
    keys: pa.Table
    store: SegmentStore

    def names(self) -> tuple[str, ...]:
        """Return the names of the tables that have rows of the table's keys."""
        schema = self.table.schema
        days = f"{SNAPSHOTS}.{quote(schema.snapshot_name)}"
        return mirror_table(schema), days, mirror_table(schema, COPY_PREFIX)

    def of(self, base: Manifest) -> tuple[Manifest, list[pa.Table]]:
        """Return the state without the keys, not committed yet, and the rows that it lacks."""
        tables, found = dict(base.tables), []
        for name in self.names():
            stored = tables.get(name)
            if stored is not None and set(self.keys.column_names) <= set(stored.schema.names):
                self.store.refuse_damaged(stored)
                tables[name], removed = self._without(stored)
                found += removed
        if not found:
            return replace(base, letters=self._letters(base)), found
        state = replace(base, tables=MappingProxyType(tables), letters=self._letters(base))
        # Who follows the feed may not have read yet that a row is gone.
        return without_positions(state, self.table, self.store), found

    def _without(self, stored: StoredTable) -> tuple[StoredTable, list[pa.Table]]:
        holding, found = [], []
        for segment in stored.segments:
            rows = self.store.form.read(self.store.content(segment), segment.schema.names)
            mask = self._met(rows, stored.schema)
            if mask.any():
                holding.append(segment)
                found.append(rows.filter(pa.array(mask)))
        plain = [[segment] for segment in holding if not segment.tag]
        left = fold(stored, plain, self.store, lambda rows: ~self._met(rows, stored.schema))
        tagged = {segment.name for segment in holding if segment.tag}
        segments = (
            again
            for segment in left.segments
            for again in (self._retagged(segment) if segment.name in tagged else [segment])
        )
        return replace(left, segments=tuple(segments)), found

    def _retagged(self, segment: Segment) -> Iterator[Segment]:
        """Write a segment of a snapshot again, which has no index."""
        rows = self.store.form.read(self.store.content(segment), segment.schema.names)
        mask = ~self._met(rows, segment.schema)
        bits = self.store.bits(segment)
        if bits is not None:
            mask &= present(bits, segment.rows)
        if mask.any():
            yield self.store.write(
                rows.filter(pa.array(mask)),
                None,
                past=segment.past,
                tag=segment.tag,
                constants=segment.constants,
            )

    def _met(self, rows: pa.Table, schema: pa.Schema) -> Mask:
        """Return which rows have one of the keys."""
        names = self.keys.column_names
        own = conform(rows, pa.schema([schema.field(name) for name in names]))
        met = np.zeros(rows.num_rows, np.bool_)
        whole = np.ones(rows.num_rows, np.bool_)
        for name in names:
            whole &= pc.is_valid(own[name]).to_numpy()
        sought = key_hashes(self.keys)
        hashes = key_hashes(own.filter(pa.array(whole)))
        index = KeyIndex.build(hashes, hashes.words)
        _, entries = index.find(sought)
        met[np.flatnonzero(whole)[index.positions[entries]]] = True
        return met

    def _letters(self, base: Manifest) -> str | None:
        """Return the file of the dead letters without those of the keys."""
        if base.letters is None:
            return None
        kept = self.store.letters(base.letters)
        texts = pa.array([key_text(key) for key in plain_rows(self.keys)], pa.string())
        left = dead.without_keys(kept, self.table.name, texts)
        if left.num_rows == kept.num_rows:
            return base.letters
        return self.store.write_letters(left) if left.num_rows else None
