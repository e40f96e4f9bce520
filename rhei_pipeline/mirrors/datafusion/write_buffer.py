"""A table within one transaction: the committed segments, and new rows in memory."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rhei_pipeline.mirrors.datafusion.constants import Constant, conform, constant_digest
from rhei_pipeline.mirrors.datafusion.deletion_vectors import (
    Bits,
    are_gone,
    none_gone,
    present,
    remove,
)
from rhei_pipeline.mirrors.datafusion.digests import KeyHashes, Words, covers
from rhei_pipeline.mirrors.datafusion.key_index import KeyIndex, Numbers
from rhei_pipeline.mirrors.datafusion.manifest import (
    DeletionVector,
    Segment,
    StoredTable,
    TableShape,
    VersionEndsPart,
)
from rhei_pipeline.mirrors.datafusion.segment_store import SegmentStore, ascending
from rhei_pipeline.mirrors.datafusion.version_ends import VersionEnds, full_hand
from rhei_pipeline.model.schema import Column
from rhei_pipeline.model.selection import chosen, taken, taken_apart

#: A place is the number of a part in its table, and a row's position in that part.
_POSITION_BITS = 32
_POSITION = (1 << _POSITION_BITS) - 1

#: Rows, and bytes of rows, that a transaction holds in memory before it writes them; readers see
#: them at its end.
SPILL_ROWS = 1_000_000
SPILL_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True)
class Found:
    """Rows found by their keys.

    Attributes:
        key_numbers: Which of the keys sought each row has.
        places: Where each row stands.
        digests_or_ends: What the index keeps of each row.
    """

    key_numbers: Numbers
    places: Numbers
    digests_or_ends: Words


class _Staged:
    """New rows, in memory only."""

    def __init__(
        self, rows: pa.Table, index: KeyIndex, *, past: bool = False, tag: str = ""
    ) -> None:
        self.rows = rows.combine_chunks()
        self.past, self.tag, self.count = past, tag, rows.num_rows
        self._index = index

    def index(self) -> KeyIndex:
        return self._index

    def digests(self, columns: Sequence[Column]) -> bool:
        return covers(self.rows.schema, columns)

    def take(self, columns: Sequence[str], positions: Numbers) -> pa.Table:
        return self.rows.select(list(columns)).take(pa.array(positions))

    def parts(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        yield self.rows.select(list(columns))

    def size(self) -> int:
        return int(self.rows.nbytes)


class _Written:
    """Rows of a committed segment."""

    def __init__(self, segment: Segment, store: SegmentStore) -> None:
        self.segment, self._store = segment, store
        self.past, self.tag, self.count = segment.past, segment.tag, segment.rows

    def index(self) -> KeyIndex:
        return self._store.index(self.segment)

    def digests(self, columns: Sequence[Column]) -> bool:
        return covers(self.segment.schema, columns)

    def take(self, columns: Sequence[str], positions: Numbers) -> pa.Table:
        ordered, back = ascending(positions)
        names, content = self._own(columns), self._store.content(self.segment)
        if not names:
            return pa.table({"": pa.nulls(len(positions))})
        return taken_apart(self._store.form.take(content, names, ordered), back)

    def parts(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        names = self._own(columns) or self.segment.schema.names[:1]
        return self._store.form.parts(self._store.content(self.segment), names)

    def size(self) -> int:
        return self.segment.size_bytes

    def _own(self, columns: Sequence[str]) -> list[str]:
        return [name for name in columns if self.segment.schema.get_field_index(name) >= 0]


class _Part:
    """Rows, and which of them are removed."""

    def __init__(self, rows: _Staged | _Written, bits: Bits | None = None) -> None:
        self.rows = rows
        self._bits = bits
        self.constants: Mapping[str, Constant] = MappingProxyType({})
        self.ended: tuple[VersionEndsPart, ...] = ()
        self.new_ends: list[VersionEnds] = []
        if isinstance(rows, _Written):
            self.constants = rows.segment.constants
            self.ended = rows.segment.ended
        self.changed = False

    @property
    def bits(self) -> Bits | None:
        return self._bits

    def digests(self, entries: Words, schema: pa.Schema) -> Words:
        """Return digests of whole rows; those of the index lack columns that are in no file."""
        more = constant_digest(self.constants, schema)
        return entries + more if more else entries

    def remove(self, positions: Numbers) -> None:
        if not self.changed:
            # What was committed belongs to readers too.
            self._bits = none_gone(self.rows.count) if self._bits is None else self._bits.copy()
            self.changed = True
        assert self._bits is not None  # noqa: S101  (made just above)
        remove(self._bits, positions)

    def there(self, positions: Numbers) -> npt.NDArray[np.bool_]:
        if self._bits is None:
            return np.ones(len(positions), dtype=bool)
        return ~are_gone(self._bits, positions)

    def mask(self) -> npt.NDArray[np.bool_]:
        if self._bits is None:
            return np.ones(self.rows.count, dtype=bool)
        return present(self._bits, self.rows.count)

    def gone(self) -> int:
        return 0 if self._bits is None else int(np.bitwise_count(self._bits).sum())


class WriteBuffer:
    """A table that a transaction may change; nothing is visible before the commit.

    Args:
        table: The committed table; empty for a new one.
    """

    def __init__(self, table: StoredTable, store: SegmentStore) -> None:
        self.table = table
        self._store = store
        store.get_indexes_ready(table)
        self._parts = [_Part(_Written(s, store), store.bits(s)) for s in table.segments]
        self._staged = self._staged_bytes = 0
        #: Whether others have written what it is made of.
        self.is_admitted = False

    @property
    def schema(self) -> pa.Schema:
        """The columns that a reader sees."""
        return self.table.schema

    def reshape(self, schema: pa.Schema) -> None:
        """Change the table's columns; no row is written."""
        self.table = replace(self.table, schema=schema)

    def build_for(self, built: TableShape) -> None:
        """Record what the table is built for."""
        self.table = replace(self.table, built=built)

    def move(self, namespace: str | None, relation: str) -> None:
        """Rename the table."""
        self.table = replace(self.table, namespace=namespace, relation=relation)

    def date(self, begins_at: datetime | None, left: Mapping[str, datetime]) -> None:
        """Record when its history begins, and when its columns left the source."""
        self.table = replace(self.table, begins_at=begins_at, left=MappingProxyType(dict(left)))

    def append(
        self, rows: pa.Table, hashes: KeyHashes, digests_or_ends: Words, *, past: bool = False
    ) -> None:
        """Add rows; their keys must have no present row."""
        if not rows.num_rows:
            return
        wanted = pa.schema([f for f in self.schema if rows.schema.get_field_index(f.name) >= 0])
        staged = _Staged(conform(rows, wanted), KeyIndex.build(hashes, digests_or_ends), past=past)
        self._parts.append(_Part(staged))
        self._staged += rows.num_rows
        self._staged_bytes += staged.rows.nbytes
        if self._staged > SPILL_ROWS or self._staged_bytes > SPILL_BYTES:
            self._spill()

    def admit(self, segments: Iterable[Segment]) -> None:
        """Add segments that stand in the files already, and are not read."""
        self.is_admitted = True
        self._parts += [_Part(_Written(segment, self._store)) for segment in segments]

    def append_tagged(self, rows: pa.Table, tag: str) -> None:
        """Add rows without a key index, replacing all rows with the same tag."""
        self._parts = [part for part in self._parts if part.rows.tag != tag]
        nothing = KeyHashes(np.zeros(0, np.uint64), np.zeros(0, np.uint32))
        index = KeyIndex.build(nothing, np.zeros(0, np.uint64))
        self._parts.append(_Part(_Staged(conform(rows, self.schema), index, tag=tag)))

    def find(self, sought: KeyHashes, *, past: bool = False) -> Found:
        """Find present rows by their keys, or versions that have ended."""
        key_numbers, places, digests_or_ends = [_NONE], [_NONE], [_NONE.astype(np.uint64)]
        order = np.argsort(sought.words)
        sought = sought.take(order)
        for number, part in self._numbered(past=past):
            index = part.rows.index()
            which, entries = index.find(sought)
            if not len(which):
                continue
            positions = index.positions[entries].astype(np.int64)
            there = part.there(positions)
            key_numbers.append(which[there])
            places.append(positions[there] | (number << _POSITION_BITS))
            own = index.digests_or_ends[entries[there]]
            digests_or_ends.append(own if past else part.digests(own, self.schema))
        for number, part, version_ends in self._with_version_ends() if past else ():
            which, entries = part.rows.index().find(sought)
            positions = part.rows.index().positions[entries].astype(np.int64)
            for some in version_ends:
                met, where = some.find(positions)
                key_numbers.append(which[met])
                places.append(positions[met] | (number << _POSITION_BITS))
                digests_or_ends.append(some.ends[where].view(np.uint64))
        return Found(
            order[np.concatenate(key_numbers)],
            np.concatenate(places),
            np.concatenate(digests_or_ends),
        )

    def end(
        self, places: Numbers, ends: Numbers, deleted: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.bool_]:
        """End versions by the positions of their rows.

        Returns:
            Which of them ended; the rows of the others are in memory only, and must be moved.
        """
        done = np.zeros(len(places), dtype=bool)
        for number, positions, where in self._by_part(places):
            part = self._parts[number]
            if isinstance(part.rows, _Written):
                part.remove(positions)
                part.new_ends.append(VersionEnds.of(positions, ends[where], deleted[where]))
                done[where] = True
        return done

    def digests_hold(self, places: Numbers, columns: Sequence[Column]) -> npt.NDArray[np.bool_]:
        """Return which rows' digests cover these columns, in types that hash alike.

        A column that was dropped since is still in the digests of the rows that had it.
        """
        held = np.zeros(len(places), dtype=bool)
        for number, _, where in self._by_part(places):
            held[where] = self._parts[number].rows.digests(columns)
        return held

    def remove(self, places: Numbers) -> None:
        """Remove rows."""
        for number, positions, _ in self._by_part(places):
            self._parts[number].remove(positions)

    def take(self, places: Numbers, columns: Sequence[str]) -> pa.Table:
        """Return the rows at these positions, in their order, with the given columns."""
        schema = pa.schema([self.schema.field(name) for name in columns])
        found, order = [schema.empty_table()], [_NONE]
        for number, positions, where in self._by_part(places):
            part = self._parts[number]
            rows = part.rows.take(self._own(part, columns), positions)
            found.append(conform(rows, schema, part.constants))
            order.append(where)
        return taken(pa.concat_tables(found), np.argsort(np.concatenate(order)))

    def sizes(self, places: Numbers) -> npt.NDArray[np.float64]:
        """Return about how many bytes the rows at these positions have, as they are stored."""
        sizes = np.zeros(len(places))
        for number, _, where in self._by_part(places):
            rows = self._parts[number].rows
            sizes[where] = rows.size() / rows.count
        return sizes

    def entries(self) -> Iterator[tuple[KeyHashes, Words, Numbers]]:
        """Yield hashes, digests and positions of all present rows, part by part."""
        for number, part in self._numbered(past=False):
            hashes, digests_or_ends = part.rows.index().in_row_order()
            kept = np.flatnonzero(part.mask())
            digests = part.digests(digests_or_ends[kept], self.schema)
            yield hashes.take(kept), digests, kept | (number << _POSITION_BITS)

    def scan(
        self, columns: Sequence[str], *, past: bool = False
    ) -> Iterator[tuple[pa.Table, Numbers]]:
        """Yield all present rows with their positions, a part at a time."""
        schema = pa.schema([self.schema.field(name) for name in columns])
        for number, part in self._numbered(past=past):
            mask, low = part.mask(), 0
            for rows in part.rows.parts(self._own(part, columns)):
                kept = np.flatnonzero(mask[low : low + rows.num_rows])
                whole = conform(rows, schema, part.constants)
                if len(kept) < rows.num_rows:
                    whole = whole.take(pa.array(kept))
                yield whole, (kept + low) | (number << _POSITION_BITS)
                low += rows.num_rows
        for number, part, version_ends in self._with_version_ends() if past else ():
            low, all_of_it = 0, VersionEnds.merged(version_ends)
            for rows in part.rows.parts(self._own(part, columns)):
                some = all_of_it.within(low, low + rows.num_rows)
                positions = some.positions.astype(np.int64)
                whole = conform(rows.take(pa.array(positions - low)), schema, part.constants)
                yield some.written_into(whole), positions | (number << _POSITION_BITS)
                low += rows.num_rows

    def count(self) -> int:
        """Count present rows."""
        return sum(p.rows.count - p.gone() for _, p in self._numbered(past=False))

    def fix(self, constants: Mapping[str, Constant]) -> None:
        """Set columns that no row has yet to one value in all rows."""
        self._spill()
        for part in self._parts:
            part.constants = MappingProxyType({**part.constants, **constants})

    def prepare_commit(self) -> StoredTable:
        """Write the rows in memory; return the table to commit."""
        self._gather()
        changed = [part for part in self._parts if part.changed]
        bitmaps = [part.bits for part in changed if part.bits is not None]
        written = self._store.write_bits(bitmaps) if bitmaps else []
        places = dict(zip(map(id, changed), written, strict=True))
        ended = self._stage_version_ends()
        segments = []
        for part in self._parts:
            assert isinstance(part.rows, _Written)  # noqa: S101  (gathered just above)
            segment = part.rows.segment
            if part.constants is not segment.constants:
                segment = replace(segment, constants=part.constants)
            if part.changed:
                segment = replace(segment, gone=DeletionVector(*places[id(part)], part.gone()))
            if id(part) in ended:
                segment = replace(segment, ended=ended[id(part)])
            if segment.present_rows or segment.ended:
                segments.append(segment)
        return replace(self.table, segments=tuple(segments))

    def _stage_version_ends(self) -> dict[int, tuple[VersionEndsPart, ...]]:
        """Write the new version ends; return the locations of all of them by part."""
        changed = [part for part in self._parts if part.new_ends]
        kept: list[tuple[VersionEndsPart, ...]] = []
        merged = []
        for part in changed:
            mine = VersionEnds.merged(part.new_ends)
            full = full_hand(part.ended, len(mine.positions))
            kept.append(tuple(place for place in part.ended if place not in full))
            merged.append(VersionEnds.merged([mine, *self._store.version_ends(full)]))
        places = self._store.write_version_ends(merged)
        return {
            id(part): (*stay, place)
            for part, stay, place in zip(changed, kept, places, strict=True)
        }

    def _gather(self) -> None:
        """Write the remaining staged rows as one segment of each kind."""
        staged = [part for part in self._parts if isinstance(part.rows, _Staged)]
        self._parts = [part for part in self._parts if isinstance(part.rows, _Written)]
        kinds = {(part.rows.past, part.rows.tag): None for part in staged}
        for past, tag in kinds:
            chosen = [p for p in staged if (p.rows.past, p.rows.tag) == (past, tag)]
            segment = self._write(chosen, past=past, tag=tag)
            if segment is not None:
                self._parts.append(_Part(_Written(segment, self._store)))
        self._staged = self._staged_bytes = 0

    def _write(self, parts: list[_Part], *, past: bool, tag: str) -> Segment | None:
        kept: list[pa.Table] = []
        words, checks, digests_or_ends = [], [], []
        for part in parts:
            mask = part.mask()
            assert isinstance(part.rows, _Staged)  # noqa: S101  (chosen by the caller)
            kept.append(chosen(part.rows.rows, mask))
            if not tag:
                hashes, own = part.rows.index().in_row_order()
                words.append(hashes.words[mask])
                checks.append(hashes.checks[mask])
                digests_or_ends.append(own[mask])
        rows = pa.concat_tables(kept, promote_options="permissive")
        if not rows.num_rows:
            return None
        if tag:
            return self._store.write(rows, None, past=past, tag=tag)
        merged = KeyHashes(np.concatenate(words), np.concatenate(checks))
        index = KeyIndex.build(merged, np.concatenate(digests_or_ends))
        return self._store.write(rows, index, past=past)

    def _spill(self) -> None:
        """Write each staged part where it is, so that positions stay valid."""
        for part in self._parts:
            rows = part.rows
            if isinstance(rows, _Staged):
                index = None if rows.tag else rows.index()
                segment = self._store.write(rows.rows, index, past=rows.past, tag=rows.tag)
                part.rows = _Written(segment, self._store)
        self._staged = self._staged_bytes = 0

    def _numbered(self, *, past: bool) -> Iterator[tuple[int, _Part]]:
        for number, part in enumerate(self._parts):
            if part.rows.past is past and not part.rows.tag:
                yield number, part

    def _with_version_ends(self) -> Iterator[tuple[int, _Part, list[VersionEnds]]]:
        for number, part in self._numbered(past=False):
            version_ends = [*self._store.version_ends(part.ended), *part.new_ends]
            if version_ends:
                yield number, part, version_ends

    def _by_part(self, places: Numbers) -> Iterator[tuple[int, Numbers, Numbers]]:
        numbers = places >> _POSITION_BITS
        for number in np.unique(numbers):
            where = np.flatnonzero(numbers == number)
            yield int(number), places[where] & _POSITION, where

    def _own(self, part: _Part, columns: Sequence[str]) -> list[str]:
        if isinstance(part.rows, _Staged):
            return [n for n in columns if part.rows.rows.schema.get_field_index(n) >= 0]
        return list(columns)


_NONE = np.zeros(0, dtype=np.int64)
