"""Which files of a Delta table show a table of the mirror, and what is in them.

Where readers may be asked to leave removed rows out, a segment's file is shown as it is, and a
vector beside it says which rows are removed. Versions that ended are in files of their own then,
as their ends are not in the segment's file. Else a file with removed rows is written without them,
and that of a large segment in parts.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from rhei_pipeline.errors import MirrorError
from rhei_pipeline.mirrors.datafusion.constants import conform
from rhei_pipeline.mirrors.datafusion.deletion_vectors import Bits, present
from rhei_pipeline.mirrors.datafusion.delta_parts import SegmentPart, has_parts, parts_of
from rhei_pipeline.mirrors.datafusion.formats import Parquet, encoded
from rhei_pipeline.mirrors.datafusion.manifest import (
    DeletionVector,
    Segment,
    StoredTable,
    VersionEndsPart,
)
from rhei_pipeline.mirrors.datafusion.segment_store import SegmentStore

#: Between the places of which a file was made.
_AND = ","


@dataclass(frozen=True, slots=True)
class ShownFile:
    """A file of a Delta table.

    Attributes:
        segment: What it shows, as the file itself has it.
        vector: The segment whose removed rows a vector leaves out; None where it has no vector.
        made_of: Of what the vector, or a file of ended versions, was made.
        part: The rows that it shows of a large segment; None where it shows all.
    """

    table: StoredTable
    segment: Segment
    vector: Segment | None = None
    made_of: str = ""
    part: SegmentPart | None = None

    @property
    def name(self) -> str:
        """Its name: of the segment, the rows shown, and their columns."""
        segment, gone = self.segment, self.segment.gone
        columns = [[field.name, str(field.type)] for field in self.table.schema]
        holding: list[object] = [columns, sorted(segment.constants.items())]
        if self.part is not None:
            holding.append(self.part.shown)
        else:
            holding.append([gone.file, gone.offset] if gone else None)
            holding.append([[part.file, part.offset] for part in segment.ended])
        shown = hashlib.sha256(json.dumps(holding).encode()).hexdigest()[:16]
        return f"{segment.name}-{shown}{Parquet.suffix}"

    @property
    def rows(self) -> int:
        """How many rows it has, with those that its vector removes."""
        if self.part is not None:
            return self.part.rows
        return self.segment.present_rows + self.segment.ended_rows

    @property
    def is_whole(self) -> bool:
        """Whether Delta readers can use the segment's own file."""
        segment = self.segment
        if self.part is not None or segment.gone or segment.constants:
            return False
        wanted = {field.name: delta_type(field.type) for field in self.table.schema}
        return all(wanted.get(field.name, field.type) == field.type for field in segment.schema)

    def removed(self, store: SegmentStore) -> Bits | None:
        """Return which of its rows a vector removes; None where it has no vector."""
        return store.bits(self.vector) if self.vector is not None else None

    def put(self, store: SegmentStore, place: str) -> int:
        """Give it a place; return its bytes."""
        if self.is_whole:
            own = store.place(self.segment.name)
            store.files.link(place, own)
            known = store.checked.sums_of([own]).get(own)
            return known.size if known else store.files.size(place)
        return store.write_shown(place, self._shown_rows(store))

    def content(self, store: SegmentStore) -> pa.Buffer:
        """Return what is in it."""
        if self.is_whole:
            return store.content(self.segment)
        return encoded(store.form, self._shown_rows(store))

    def _shown_rows(self, store: SegmentStore) -> pa.Table:
        segment, schema = self.segment, self.table.schema
        if self.part is not None:
            return self.part.read(schema, store).cast(delta_schema(self.table))
        shown = []
        if segment.present_rows or not segment.ended:
            rows = store.form.read(store.content(segment), segment.schema.names)
            bits = store.bits(segment)
            if bits is not None:
                rows = rows.filter(pa.array(present(bits, segment.rows)))
            shown.append(conform(rows, schema, segment.constants))
        if segment.ended:
            shown.append(store.ended_versions(segment, schema))
        return pa.concat_tables(shown).cast(delta_schema(self.table))


def shown_files(
    table: StoredTable, held: Mapping[str, str], store: SegmentStore, *, vectors: bool
) -> Iterator[ShownFile]:
    """Yield the files that show a table.

    Args:
        table: What is shown.
        held: The files that the Delta table has, and of what they were made.
        store: Tells which rows of large segments are gone.
        vectors: Leave removed rows out by vectors.
    """
    for segment in table.segments:
        if not vectors:
            yield from _without_vectors(table, segment, store)
            continue
        if segment.present_rows:
            whole = replace(segment, gone=None, ended=())
            is_whole = segment.gone is None
            made_of = "" if segment.gone is None else _made_of([segment.gone])
            yield ShownFile(table, whole, None if is_whole else segment, made_of)
        yield from _ended_files(table, segment, held)


def _without_vectors(
    table: StoredTable, segment: Segment, store: SegmentStore
) -> Iterator[ShownFile]:
    whole = ShownFile(table, segment)
    if whole.is_whole or not has_parts(segment):
        yield whole
        return
    for part in parts_of(segment, store):
        yield ShownFile(table, segment, part=part)


def _ended_files(
    table: StoredTable, segment: Segment, held: Mapping[str, str]
) -> Iterator[ShownFile]:
    """Yield the files of a segment's ended versions: those that stand, and one for the others."""
    left = {_made_of([part]): part for part in segment.ended}
    for name, made_of in held.items():
        parts = made_of.split(_AND)
        if left.keys() >= set(parts):
            standing = _ended_file(table, segment, [left[part] for part in parts])
            if standing.name == name:
                left = {part: where for part, where in left.items() if part not in parts}
                yield standing
    if left:
        yield _ended_file(table, segment, list(left.values()))


def _ended_file(
    table: StoredTable, segment: Segment, parts: Sequence[VersionEndsPart]
) -> ShownFile:
    alone = replace(segment, gone=DeletionVector("", 0, segment.rows), ended=tuple(parts))
    return ShownFile(table, alone, made_of=_made_of(parts))


def _made_of(places: Sequence[DeletionVector | VersionEndsPart]) -> str:
    return _AND.join(f"{place.file}:{place.offset}" for place in places)


def delta_schema(table: StoredTable) -> pa.Schema:
    """Return the columns in Delta's types; it has no time of day, so that becomes text."""
    seen: set[str] = set()
    for name in table.schema.names:
        if name.lower() in seen:
            raise MirrorError(
                f"column {name!r} differs from another one by case only, which Delta cannot hold",
                table=table.relation,
                hint="leave it out with 'columns', or mirror to the storage 'parquet' at another"
                " path",
            )
        seen.add(name.lower())
    return pa.schema([pa.field(field.name, delta_type(field.type)) for field in table.schema])


def delta_type(kind: pa.DataType) -> pa.DataType:
    """Return the type that a Delta table has for an Arrow type: it knows no times of day."""
    return pa.string() if pa.types.is_time(kind) else kind
