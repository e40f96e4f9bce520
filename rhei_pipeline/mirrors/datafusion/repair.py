"""Repairs a table whose files are damaged: everything that can be recovered is kept.

What can be derived from healthy files is rebuilt: an index from its rows, a deletion vector from
the version ends. Other damaged files are removed from the table, set aside, and reported; a copy
from the source then restores the current rows. History in a damaged file is lost.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import MappingProxyType

import numpy as np
import pyarrow as pa

from rhei_pipeline.errors import MirrorDamagedError
from rhei_pipeline.mirrors.datafusion.deletion_vectors import none_gone, remove
from rhei_pipeline.mirrors.datafusion.digests import key_hashes, row_digests
from rhei_pipeline.mirrors.datafusion.files import Files
from rhei_pipeline.mirrors.datafusion.key_index import KeyIndex
from rhei_pipeline.mirrors.datafusion.manifest import (
    COPY_PREFIX,
    SNAPSHOTS,
    DeletionVector,
    Manifest,
    Segment,
    StoredTable,
)
from rhei_pipeline.mirrors.datafusion.segment_store import SegmentStore, index_place
from rhei_pipeline.model.feed_state import FEED_PREFIX
from rhei_pipeline.model.progress import Ledger
from rhei_pipeline.model.schema import HISTORY_NAMES, VALID_TO, Mode, Table
from rhei_pipeline.model.upkeep import DamagedFile
from rhei_pipeline.sql.text import mirror_table, quote

#: How often a store is asked for what it has lost before that is believed, and when it is asked
#: again: what it says for a moment would cost the history in a healthy file.
LOOKS, PAUSE_SECONDS = 3, 1.0

_READ_AGAIN = "its rows are read again from the source"
_LOST = "the versions it held are lost; the current rows are read again from the source"


def looks_at(files: Files) -> Iterator[None]:
    """Yield for each look at what seems to be damaged; with pauses where a store is asked."""
    for look in range(LOOKS if files.remote else 1):
        if look:
            time.sleep(PAUSE_SECONDS)
        yield


@dataclass(slots=True)
class TableRepair:
    """Repairs one table of a committed state.

    Attributes:
        found: The damaged files, and what is done about each.
        aside: Files to set aside.
        spared: Healthy files to keep with them: a person may still recover something.
        damaged: The damaged files among those that the table has.
    """

    table: Table
    store: SegmentStore
    found: list[DamagedFile] = field(default_factory=list)
    aside: set[str] = field(default_factory=set)
    spared: set[str] = field(default_factory=set)
    damaged: set[str] = field(default_factory=set)

    def of(self, manifest: Manifest) -> Manifest:
        """Return the state without what is damaged; the caller commits it."""
        tables = dict(manifest.tables)
        kept = (
            mirror_table(self.table.schema),
            f"{SNAPSHOTS}.{quote(self.table.schema.snapshot_name)}",
        )
        feed = mirror_table(self.table.schema, FEED_PREFIX)
        copy = mirror_table(self.table.schema, COPY_PREFIX)
        parts = [tables[name] for name in (*kept, feed, copy) if name in tables]
        files = {file for part in parts for file in self.store.table_files(part)}
        self._look_at(files | ({manifest.letters} if manifest.letters else set()))
        for name in kept:
            if name in tables:
                tables[name] = self._healed(tables[name], manifest)
        if feed in tables and self._damaged(self.store.table_files(tables[feed])):
            self._note(
                self.store.table_files(tables.pop(feed)),
                "consumers of the table's changes take the whole table afresh",
            )
        copies = dict(manifest.ledger.copies)
        if copy in tables and self._damaged(self.store.table_files(tables[copy])):
            self._note(
                self.store.table_files(tables.pop(copy)),
                "the running copy starts again from the beginning",
            )
            copies.pop(self.table.name, None)
        return replace(
            manifest,
            tables=MappingProxyType(tables),
            ledger=Ledger(manifest.ledger.watermarks, MappingProxyType(copies)),
            letters=self._healed_letters(manifest.letters),
        )

    def _healed(self, stored: StoredTable, manifest: Manifest) -> StoredTable:
        healed = [self._healed_segment(stored, segment) for segment in stored.segments]
        segments = tuple(segment for segment in healed if segment)
        lost = len(segments) < len(healed) or any(
            new.ended != old.ended for new, old in zip(segments, stored.segments, strict=False)
        )
        gaps = stored.gaps_until
        if lost and self.table.mode is Mode.TEMPORAL and stored.namespace != SNAPSHOTS:
            mark = manifest.ledger.watermarks.get(self.table.name)
            now = datetime.now(UTC)
            gaps = max(now, mark.recorded_at) if mark else now
        return replace(stored, segments=segments, gaps_until=gaps)

    def _healed_segment(self, stored: StoredTable, segment: Segment) -> Segment | None:
        store = self.store
        bad = self._damaged(store.segment_files(segment))
        if not bad:
            return segment
        ends = {part.file for part in segment.ended} & bad
        bits = {segment.gone.file} & bad if segment.gone else set()
        lost_bits = bits and (ends or segment.hidden_rows or not segment.ended)
        if store.place(segment.name) in bad or lost_bits:
            self._leave_out(stored, segment)
            return None
        if ends:
            segment = self._without_ends(segment, ends)
        if bits:
            self._note(bits, "it is rebuilt from the version ends; nothing is lost")
            segment = self._with_bits(segment)
        if index_place(segment) in bad:
            self._note([index_place(segment)], "it is rebuilt from the rows; nothing is lost")
            segment = self._with_index(segment)
        return segment

    def _look_at(self, names: set[str]) -> None:
        """Find the damaged files; a store is asked again for all that it seems to have lost."""
        bad = names
        for _ in looks_at(self.store.files):
            bad = {name for name in bad if not self._is_whole(name)}
            if not bad:
                return
        self.damaged = bad

    def _is_whole(self, name: str) -> bool:
        try:
            self.store.check_anew([name])
        except MirrorDamagedError:
            return False
        return True

    def _damaged(self, names: Iterable[str]) -> set[str]:
        return self.damaged.intersection(names)

    def _leave_out(self, stored: StoredTable, segment: Segment) -> None:
        """Remove a segment from the table, and set all its files aside."""
        if stored.namespace == SNAPSHOTS:
            self._spare(segment, f"the snapshot of {segment.tag} is lost: take it again")
        elif self.table.mode is Mode.DESTRUCTIVE:
            self._spare(segment, _READ_AGAIN)
        else:
            self._spare(segment, _LOST)

    def _without_ends(self, segment: Segment, ends: set[str]) -> Segment:
        rows = sum(part.rows for part in segment.ended if part.file in ends)
        self._note(ends, f"{rows:,} versions whose ends it held are lost")
        self.spared |= {self.store.place(segment.name), index_place(segment)}
        return replace(segment, ended=tuple(p for p in segment.ended if p.file not in ends))

    def _with_bits(self, segment: Segment) -> Segment:
        bits, gone = none_gone(segment.rows), 0
        for part in self.store.version_ends(segment.ended):
            remove(bits, part.positions.astype(np.int64))
            gone += len(part.positions)
        [(file, offset)] = self.store.write_bits([bits])
        return replace(segment, gone=DeletionVector(file, offset, gone))

    def _with_index(self, segment: Segment) -> Segment:
        """Write the rows again, at the same positions, with an index built from them."""
        rows = self.store.form.read(self.store.content(segment), segment.schema.names)
        key = list(self.table.schema.primary_key)
        if segment.past:
            digests_or_ends = rows[VALID_TO].cast(pa.int64()).to_numpy().view(np.uint64)
        else:
            others = [n for n in rows.column_names if n not in key and n not in HISTORY_NAMES]
            digests_or_ends = row_digests(rows.select(others))
        index = KeyIndex.build(key_hashes(rows.select(key)), digests_or_ends)
        made = self.store.write(rows, index, past=segment.past, tag=segment.tag)
        return replace(
            segment, name=made.name, size_bytes=made.size_bytes, written_at=made.written_at
        )

    def _healed_letters(self, name: str | None) -> str | None:
        if name is None or name not in self.damaged:
            return name
        self._note(
            [name],
            "the dead letters of all tables are lost; this table's are found again:"
            " repair the others as well",
        )
        return None

    def _spare(self, segment: Segment, outcome: str) -> None:
        files = list(self.store.segment_files(segment))
        self._note(files, outcome)
        self.spared.update(files)

    def _note(self, names: Iterable[str], outcome: str) -> None:
        bad = self._damaged(names) - self.aside
        self.found += [DamagedFile(name, outcome) for name in sorted(bad)]
        self.aside |= bad
