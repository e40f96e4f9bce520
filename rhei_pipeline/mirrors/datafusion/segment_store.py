"""Writes and reads segments: their rows, key index and deletion vectors.

A name is used only once, so everything cached about a segment stays valid.
"""

import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from types import MappingProxyType

import numpy as np
import pyarrow as pa
from datafusion import SessionContext

from rhei_pipeline.errors import MirrorDamagedError
from rhei_pipeline.mirrors.datafusion.checksums import CheckedFiles
from rhei_pipeline.mirrors.datafusion.constants import conform
from rhei_pipeline.mirrors.datafusion.deletion_vectors import Bits, none_gone, present
from rhei_pipeline.mirrors.datafusion.digests import KeyHashes, Words
from rhei_pipeline.mirrors.datafusion.files import (
    REPAIR_ANY,
    Files,
    Mark,
    refuse_failed_store,
    replaced_meanwhile,
)
from rhei_pipeline.mirrors.datafusion.formats import ROW, Format, Parquet
from rhei_pipeline.mirrors.datafusion.key_index import KeyIndex, Numbers
from rhei_pipeline.mirrors.datafusion.manifest import (
    Manifest,
    Segment,
    StoredTable,
    VersionEndsPart,
)
from rhei_pipeline.mirrors.datafusion.unchanged_parts import UnchangedParts
from rhei_pipeline.mirrors.datafusion.version_ends import VersionEnds
from rhei_pipeline.model.large_rows import are_large, give_back_freed

DATA = "data"
INDEX = ".index"
_GONE = ".gone"
_ENDED = ".ended"
_LETTERS = ".letters"
#: What the files here are called, a segment's of a copy in ranges by two names. The folder of a
#: mirror may be one that others have files in, too: those are not ours to delete.
OWN_NAME = re.compile(rf"{DATA}/([0-9a-f]{{32}})+\.[a-z]+")
_ROW = pa.field(ROW, pa.uint32())
#: What was written of more rows is mapped from its file once it is wanted, and not held in memory:
#: of a history that would be ever more.
_HELD_ROWS = 65_536


class SegmentStore:
    """The segments of one mirror, in one format.

    Args:
        prefix: What the names of new segments begin with.
    """

    def __init__(self, files: Files, form: Format, prefix: str = "") -> None:
        self.files = files
        self.checked = CheckedFiles(files)
        self.form = form
        self._prefix = prefix
        self._manifest: Manifest | None = None
        self._indexes: dict[str, KeyIndex] = {}
        self._bits: dict[tuple[str, int], Bits] = {}
        self._version_ends: dict[VersionEndsPart, VersionEnds] = {}
        self._written: set[str] = set()
        self._named_by = UnchangedParts[StoredTable, tuple[str, ...]](
            lambda _, table: tuple(self.table_files(table))
        )

    def write(
        self,
        rows: pa.Table,
        index: KeyIndex | None,
        *,
        past: bool = False,
        tag: str = "",
        constants: Mapping[str, int | str] | None = None,
    ) -> Segment:
        """Write rows as a new segment; without an index if no key will be looked up."""
        name = self._prefix + uuid.uuid4().hex
        numbered = rows.append_column(_ROW, pa.array(np.arange(rows.num_rows, dtype=np.uint32)))
        place = self.place(name)
        self._written.add(place)
        size = self._fill(place, numbered)
        if index is not None:
            encoded = index.encode()
            self._put(f"{DATA}/{name}{INDEX}", encoded)
            if rows.num_rows <= _HELD_ROWS:
                self._indexes[name] = index
            size += encoded.size
        return Segment(
            name,
            rows.num_rows,
            size,
            rows.schema,
            constants or {},
            past=past,
            tag=tag,
            written_at=datetime.now(UTC),
        )

    def _fill(self, place: str, rows: pa.Table, *, is_ours: bool = True) -> int:
        is_large = are_large(rows)
        if is_large:
            give_back_freed()
        size = self.checked.write(
            place,
            lambda sink: self.form.write(rows, sink),
            is_large=is_large,
            is_ours=is_ours,
        )
        if is_large:
            give_back_freed()
        return size

    def write_shown(self, name: str, rows: pa.Table) -> int:
        """Write rows for others to read, with no checksum to keep; return the file's bytes."""
        return self._fill(name, rows, is_ours=False)

    def place(self, name: str) -> str:
        """Return the name of the file that holds a segment's rows."""
        return f"{DATA}/{name}{self.form.suffix}"

    def write_bits(self, bitmaps: Sequence[Bits]) -> list[tuple[str, int]]:
        """Write deletion vectors into one file; return the offset of each."""
        file = f"{DATA}/{uuid.uuid4().hex}{_GONE}"
        self._put(file, pa.py_buffer(b"".join(bits.tobytes() for bits in bitmaps)))
        ends = np.cumsum([len(bits) for bits in bitmaps])
        places = [(file, int(end) - len(bits)) for bits, end in zip(bitmaps, ends, strict=True)]
        self._bits.update(zip(places, bitmaps, strict=True))
        return places

    def write_version_ends(self, version_ends: Sequence[VersionEnds]) -> list[VersionEndsPart]:
        """Write version ends into one file; return the location of each."""
        if not version_ends:
            return []
        file = f"{DATA}/{uuid.uuid4().hex}{_ENDED}"
        encoded = [part.encode() for part in version_ends]
        self._put(file, pa.py_buffer(b"".join(encoded)))
        starts = np.cumsum([0, *map(len, encoded)])
        places = [
            VersionEndsPart(file, int(start), len(part.positions))
            for start, part in zip(starts, version_ends, strict=False)
        ]
        self._version_ends |= {
            place: part
            for place, part in zip(places, version_ends, strict=True)
            if place.rows <= _HELD_ROWS
        }
        return places

    def version_ends(self, places: Sequence[VersionEndsPart]) -> list[VersionEnds]:
        """Return version ends, memory-mapped or cached."""
        found = []
        for place in places:
            kept = self._version_ends.get(place)
            if kept is not None:
                self.check([place.file])  # mapped, as an index may be
            else:
                kept = VersionEnds.decode(self._get(place.file), place.offset, place.rows)
                self._version_ends[place] = kept
            found.append(kept)
        return found

    def write_letters(self, letters: pa.Table) -> str:
        """Write the dead letters to a file."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, letters.schema) as writer:
            writer.write_table(letters)
        name = f"{DATA}/{uuid.uuid4().hex}{_LETTERS}"
        self._put(name, sink.getvalue())
        return name

    def letters(self, name: str) -> pa.Table:
        """Return the dead letters of a file."""
        return pa.ipc.open_file(self._get(name)).read_all()

    def index(self, segment: Segment) -> KeyIndex:
        """Return a segment's key index, memory-mapped or cached."""
        name = index_place(segment)
        found = self._indexes.get(segment.name)
        if found is None:
            found = KeyIndex.decode(self._get(name))
            self._indexes[segment.name] = found
        else:
            # It may be mapped: a page of a file that was cut off since would end the process.
            self.check([name])
        return found

    def bits(self, segment: Segment) -> Bits | None:
        """Return a segment's deletion vector; None if no row is deleted. Read-only."""
        gone = segment.gone
        if gone is None:
            return None
        found = self._bits.get((gone.file, gone.offset))
        if found is None:
            length = len(none_gone(segment.rows))
            found = np.frombuffer(self._get(gone.file), np.uint8, length, gone.offset).copy()
            self._bits[gone.file, gone.offset] = found
        return found

    def content(self, segment: Segment) -> pa.Buffer:
        """Return the file that holds a segment's rows."""
        return self._get(self.place(segment.name))

    def register(self, segment: Segment, context: SessionContext, name: str) -> None:
        """Register a segment in a session under a name."""
        self.check([self.place(segment.name)])
        if self.files.root is not None and self._is_for_engines(segment):
            path = f"{self.files.url}/{self.place(segment.name)}"
            try:
                # Known already: DataFusion would ask each file for it, one after the other.
                schema = segment.schema.append(_ROW)
                context.register_parquet(name, path, file_extension=self.form.suffix, schema=schema)
            except Exception as error:  # DataFusion's errors have no type of their own
                refuse_failed_store(error, f"mirror {self.files.root!r} cannot be read")
                raise
        else:
            columns = [*segment.schema.names, ROW]
            rows = self.form.read(self.content(segment), columns)
            context.register_record_batches(name, [rows.to_batches()])

    def _is_for_engines(self, segment: Segment) -> bool:
        """Return whether DataFusion may read a segment's file directly."""
        form = self.form
        if not isinstance(form, Parquet):
            return False
        return not (self.is_unchecked(segment) and form.misleads(self.content(segment)))

    def is_unchecked(self, segment: Segment) -> bool:
        """Return whether a segment is older than checksums."""
        place = self.place(segment.name)
        return self.files.root is not None and not self.checked.sums_of([place])

    def rows(self, segment: Segment) -> tuple[pa.Table, KeyHashes, Words]:
        """Return a segment's present rows, with the index's entry of each."""
        rows = self.form.read(self.content(segment), segment.schema.names)
        hashes, digests_or_ends = self.index(segment).in_row_order()
        bits = self.bits(segment)
        if bits is None:
            return rows, hashes, digests_or_ends
        mask = present(bits, segment.rows)
        return rows.filter(pa.array(mask)), hashes.take(mask), digests_or_ends[mask]

    def ended_rows(self, segment: Segment, schema: pa.Schema) -> tuple[pa.Table, KeyHashes, Words]:
        """Return the rows of ended versions in a table's schema, with their index entries."""
        whole, version_ends = self._ended(segment, schema)
        hashes, _ = self.index(segment).in_row_order()
        positions = version_ends.positions.astype(np.int64)
        return whole, hashes.take(positions), version_ends.ends.view(np.uint64)

    def ended_versions(self, segment: Segment, schema: pa.Schema) -> pa.Table:
        """Return the rows of ended versions in a table's schema; the index is not read."""
        return self._ended(segment, schema)[0]

    def _ended(self, segment: Segment, schema: pa.Schema) -> tuple[pa.Table, VersionEnds]:
        version_ends = VersionEnds.merged(self.version_ends(segment.ended))
        there = set(segment.schema.names)
        names = [name for name in schema.names if name in there]
        positions = version_ends.positions.astype(np.int64)
        rows = self.form.take(self.content(segment), names, positions)
        return version_ends.written_into(conform(rows, schema, segment.constants)), version_ends

    def files_of(self, manifest: Manifest) -> Iterator[str]:
        """Yield every file that a manifest names."""
        for names in self._named_by.of(manifest.tables):
            yield from names
        if manifest.letters:
            yield manifest.letters

    def segment_files(self, segment: Segment, *, indexes: bool = True) -> Iterator[str]:
        """Yield every file of a segment; without indexes, only those that a query reads."""
        yield self.place(segment.name)
        if indexes and not segment.tag:
            yield index_place(segment)
        if segment.gone:
            yield segment.gone.file
        for part in segment.ended:
            yield part.file

    def table_files(self, table: StoredTable, *, indexes: bool = True) -> Iterator[str]:
        """Yield every file of a table, as `segment_files` does."""
        for segment in table.segments:
            yield from self.segment_files(segment, indexes=indexes)

    def learn(self, manifest: Manifest) -> None:
        """Record the checksums of the files of a committed state."""
        self.checked.learn(manifest.files)
        self._manifest = manifest

    def sealed(self, manifest: Manifest) -> Manifest:
        """Return a state with the checksums of all the files it names, once they are durable."""
        self.files.flush()
        sums = self.checked.sums_of(self.files_of(manifest))
        return replace(manifest, files=MappingProxyType(sums))

    def get_ready(self, table: StoredTable) -> None:
        """Check the files that queries of a table read; again, if one changed since.

        Raises:
            MirrorDamagedError: One is damaged or missing.
        """
        named = list(self.table_files(table, indexes=False))
        with self._named():
            if self.files.remote:
                beside = [name for name in named if name.endswith((_GONE, _ENDED))]
                self.checked.get_ready(set(named).difference(beside), beside)
            for name in named:
                self.checked.check(name)

    def marks(self, tables: Iterable[StoredTable]) -> dict[str, Mark]:
        """Return what those files of tables were like that DataFusion looks for by itself."""
        if self.files.root is None or not isinstance(self.form, Parquet):
            return {}
        segments = (segment for table in tables for segment in table.segments)
        return self.checked.marks(self.place(segment.name) for segment in segments)

    def refuse_changed(self, marks: Mapping[str, Mark]) -> None:
        """Refuse what an engine has read if a file is no longer there, or no longer the same.

        Raises:
            MirrorDamagedError: One is gone or damaged.
            MirrorBusyError: All are whole, but were replaced meanwhile.
        """
        changed = self.checked.changed(marks)
        if changed:
            self.check_anew(changed)
            raise replaced_meanwhile(self.files.root)

    def get_indexes_ready(self, table: StoredTable) -> None:
        """Fetch what tells the present rows of a table, where that takes requests."""
        if self.files.remote:
            names = (n for s in table.segments if not s.past for n in self.segment_files(s))
            with self._named():
                self.checked.get_ready([], [n for n in names if not n.endswith(self.form.suffix)])

    def check(self, names: Iterable[str]) -> None:
        """Check files that were not checked before.

        Raises:
            MirrorDamagedError: One is damaged or missing.
        """
        with self._named():
            for name in names:
                self.checked.check(name)

    def check_anew(self, names: Iterable[str]) -> None:
        """Read and check files, even if they were checked before.

        Raises:
            MirrorDamagedError: One is damaged or missing.
        """
        with self._named():
            self.files.each(names, self.checked.check_anew)

    def refuse_damaged(self, table: StoredTable) -> None:
        """Refuse a table with a file that was found damaged before; no other file is read.

        Raises:
            MirrorDamagedError: One is.
        """
        with self._named():
            self.checked.refuse_damaged(self.table_files(table))

    def forget(self, names: Iterable[str]) -> None:
        """Remove the records of files that are deleted or set aside."""
        self.checked.forget(names)

    def _get(self, name: str) -> pa.Buffer:
        with self._named():
            return self.checked.get(name)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Add the damaged file's table and what to do to the error."""
        try:
            yield
        except MirrorDamagedError as error:
            self.files.refuse_left()  # what is gone as a whole is not repaired
            raise self._with_table(error) from None

    def _with_table(self, error: MirrorDamagedError) -> MirrorDamagedError:
        name = error.table or self._owner_of(error.file) or None
        way = (
            f"run 'rhei repair {name}': it reads the rows again from the source"
            if name
            else REPAIR_ANY
        )
        message = f"mirror {self.files.root!r}: {error.message}"
        return MirrorDamagedError(message, file=error.file, table=name, hint=way)

    def _owner_of(self, file: str) -> str | None:
        manifest = self._manifest
        for table in manifest.tables.values() if manifest else ():
            if manifest and file in self.table_files(table):
                return manifest.name_of(table)
        return None

    def keep(self, manifest: Manifest) -> set[str]:
        """Keep the new files that a commit names; return others written since the last one."""
        self._manifest = manifest
        superseded = self._written.difference(self.files_of(manifest))
        self._written.clear()
        places = {(s.gone.file, s.gone.offset) for s in manifest.segments if s.gone}
        names = {segment.name for segment in manifest.segments}
        # Readers may add to either meanwhile; one that is lost is read again.
        indexes, bits = list(self._indexes.items()), list(self._bits.items())
        ended = {part for segment in manifest.segments for part in segment.ended}
        version_ends = list(self._version_ends.items())
        self._version_ends = {place: kept for place, kept in version_ends if place in ended}
        self._indexes = {name: kept for name, kept in indexes if name in names}
        self._bits = {place: kept for place, kept in bits if place in places}
        return superseded

    def discard(self) -> None:
        """Delete the files written since the last commit."""
        self.files.delete(self._written)
        self.checked.forget(self._written)
        self._written.clear()

    def leave(self) -> None:
        """Keep the files written since the last commit: its outcome is not known yet."""
        self._written.clear()

    def _put(self, name: str, content: pa.Buffer) -> None:
        self._written.add(name)
        self.checked.put(name, content)


def index_place(segment: Segment) -> str:
    """Return the name of the file that holds a segment's index."""
    return f"{DATA}/{segment.name}{INDEX}"


def ascending(positions: Numbers) -> tuple[Numbers, Numbers]:
    """Sort positions; return them, and the order that restores the original one."""
    order = np.argsort(positions, kind="stable")
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return positions[order], back
