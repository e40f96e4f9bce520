"""One committed state of a mirror of files: the segments of each table, and the ledger."""

import json
import zlib
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from rhei_pipeline.errors import MirrorDamagedError, MirrorError
from rhei_pipeline.mirrors.datafusion.checksums import Checksum
from rhei_pipeline.mirrors.datafusion.constants import Constant
from rhei_pipeline.mirrors.datafusion.unchanged_parts import UnchangedParts
from rhei_pipeline.model.changes import Position
from rhei_pipeline.model.feed_state import FEED_PREFIX
from rhei_pipeline.model.progress import CopyProgress, Ledger, Watermark
from rhei_pipeline.model.schema import (
    HISTORY_NAMES,
    RESERVED_PREFIX,
    VALID_TO,
    Column,
    Mode,
    Table,
    TableSchema,
)
from rhei_pipeline.model.stored_format import too_new
from rhei_pipeline.model.type_names import parse_type, type_name
from rhei_pipeline.sql.text import as_sqlite_reads

MEMORY = ":memory:"
FORMAT = 4
#: What is written where the index of each segment has the digests of whole rows.
WITH_WHOLE_DIGESTS = 3
#: In the first format no version ended where its row stood; before the third, nothing had a
#: checksum, and Parquet files had statistics that leave NaN out. In the fourth, added columns can
#: be constants of segments whose index does not know them.
_READ = {1, 2, WITH_WHOLE_DIGESTS, FORMAT}
_CHECKED_FROM = 3
#: What a manifest ends with: the checksum of all that stands before.
_SEAL = b', "crc32": "%08x"}'

#: A table's rows while they are copied beside it are in a table whose name begins so.
COPY_PREFIX = "_rhei_copy_"
#: The schema of the snapshots of temporal tables.
SNAPSHOTS = "snapshot"


@dataclass(frozen=True, slots=True)
class DeletionVector:
    """The location of a segment's deletion vector within a file of such vectors."""

    file: str
    offset: int
    rows: int


@dataclass(frozen=True, slots=True)
class VersionEndsPart:
    """The location of some of a segment's version ends within a file of such parts."""

    file: str
    offset: int
    rows: int


@dataclass(frozen=True, slots=True)
class Segment:
    """An immutable file of rows, with an index of its keys beside it.

    Attributes:
        schema: The columns in the file, without the row number that each segment has.
        constants: Columns that are not in the file and have one value, as a number or a text.
        past: The rows are versions that have ended.
        tag: Segments with different tags are never merged.
        gone: The rows that have been removed, or whose versions have ended.
        ended: The versions that have ended, of those that are gone.
        written_at: When it was written; None if it is older than this field.
    """

    name: str
    rows: int
    size_bytes: int
    schema: pa.Schema
    constants: Mapping[str, Constant] = field(default_factory=lambda: MappingProxyType({}))
    past: bool = False
    tag: str = ""
    gone: DeletionVector | None = None
    ended: tuple[VersionEndsPart, ...] = ()
    written_at: datetime | None = None

    @property
    def ended_rows(self) -> int:
        """Number of rows of versions that have ended."""
        return sum(part.rows for part in self.ended)

    @property
    def hidden_rows(self) -> int:
        """Number of rows that no reader sees."""
        return self.rows - self.present_rows - self.ended_rows

    @property
    def present_rows(self) -> int:
        """Number of current rows."""
        return self.rows - (self.gone.rows if self.gone else 0)


@dataclass(frozen=True, slots=True)
class TableShape:
    """The source table and key that a table was built for.

    Attributes:
        name: The source table's name.
        primary_key: The key by which its index finds rows.
        set_aside: It is a history kept under this name, and follows no source table.
    """

    name: str
    primary_key: tuple[str, ...]
    set_aside: bool = False


@dataclass(frozen=True, slots=True)
class StoredTable:
    """A table: the columns a reader sees, and the segments that hold its rows.

    Attributes:
        begins_at: When its history begins, where it keeps one and this is known.
        left: Columns that the source no longer has, and when that was noticed.
        gaps_until: Versions that ended before this may lack their successors: files were lost.
        built: What it was built for; None if it is older than this field.
        newest: The latest instant at which one of its versions begins or ends, in microseconds;
            None if there is none, or it is older than this field.
        kept_since: `begins_at` of a history that has lost its older versions, as is declared.
    """

    namespace: str | None
    relation: str
    schema: pa.Schema
    segments: tuple[Segment, ...] = ()
    begins_at: datetime | None = None
    left: Mapping[str, datetime] = field(default_factory=lambda: MappingProxyType({}))
    gaps_until: datetime | None = None
    built: TableShape | None = None
    newest: int | None = None
    kept_since: datetime | None = None

    @property
    def is_mirrored(self) -> bool:
        """Whether it holds rows of a source table; not a running copy, nor snapshots."""
        return self.namespace != SNAPSHOTS and not self.relation.startswith(RESERVED_PREFIX)

    def as_mirrored(self) -> Table:
        """Return it as a table of the source; the key is empty where it was not recorded."""
        prefix = f"{self.namespace}." if self.namespace else ""
        built = self.built or TableShape(prefix + self.relation, ())
        own = [field for field in self.schema if field.name not in HISTORY_NAMES]
        columns = tuple(Column(field.name, field.type) for field in own)
        mode = Mode.TEMPORAL if VALID_TO in self.schema.names else Mode.DESTRUCTIVE
        schema = TableSchema(built.name, columns, built.primary_key, self.namespace)
        if schema.relation != self.relation:
            schema = replace(schema, mirror_name=self.relation)
        return Table(schema, mode)


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything a mirror holds, as one committed state.

    Attributes:
        version: Grows by one with each commit.
        storage: How the rows are stored.
        tables: By the quoted name that SQL gives them, `sql.mirror_table`.
        letters: The file that holds the dead letters; None while there are none.
        owner: The source and pipeline it belongs to; None if never recorded.
        files: The checksum of every named file, except those of an earlier format.
    """

    version: int
    mirror_id: str
    storage: str
    committed_at: datetime
    tables: Mapping[str, StoredTable] = field(default_factory=lambda: MappingProxyType({}))
    ledger: Ledger = field(default_factory=Ledger)
    letters: str | None = None
    owner: str | None = None
    files: Mapping[str, Checksum] = field(default_factory=lambda: MappingProxyType({}))

    def mirrored(self) -> dict[str, Table]:
        """Return the tables that hold rows of the source's, by quoted name."""
        return {
            name: table.as_mirrored() for name, table in self.tables.items() if table.is_mirrored
        }

    def name_of(self, table: StoredTable) -> str:
        """Return the source's name of a table, or of the table it was derived from."""
        relation = table.relation.removeprefix(COPY_PREFIX).removeprefix(FEED_PREFIX)
        if table.built is not None and table.is_mirrored:
            return table.built.name
        if table.namespace is None or table.namespace == SNAPSHOTS:
            return relation
        name = f"{table.namespace}.{relation}"
        known = {**self.ledger.watermarks, **self.ledger.copies}
        return relation if relation in known and name not in known else name

    def spellings(
        self, schema: TableSchema, dropped: Container[str]
    ) -> Iterator[tuple[str, StoredTable]]:
        """Yield what stands under a name in any case, of a source without schemas."""
        wanted = as_sqlite_reads(schema.mirror_relation)
        for name, stored in self.tables.items():
            is_alike = stored.is_mirrored and as_sqlite_reads(stored.relation) == wanted
            if is_alike and not (schema.namespace or stored.namespace or name in dropped):
                yield name, stored

    @property
    def copies(self) -> set[str]:
        """The quoted names of copies under way, as they stand in `tables`."""
        return {n for n, t in self.tables.items() if t.relation.startswith(COPY_PREFIX)}

    @property
    def segments(self) -> list[Segment]:
        """All segments of all tables."""
        return [segment for table in self.tables.values() for segment in table.segments]

    @property
    def _format(self) -> int:
        """The oldest format that says all there is: more versions of this package read it."""
        constants = (segment.constants for segment in self.segments)
        is_new = any(own and not own.keys() <= HISTORY_NAMES for own in constants)
        return FORMAT if is_new else WITH_WHOLE_DIGESTS

    def encode(self, texts: "ManifestTexts | None" = None) -> bytes:
        """Return it as JSON that ends with its own checksum.

        `texts` has those of the parts that are as they were in another state.
        """
        texts = texts or ManifestTexts()
        head = json.dumps(
            {
                "format": self._format,
                "version": self.version,
                "mirror": self.mirror_id,
                "storage": self.storage,
                "committed_at": self.committed_at.isoformat(),
                "letters": self.letters,
                "owner": self.owner,
                "copies": [_copy(copy) for copy in self.ledger.copies.values()],
            }
        )
        marks = ", ".join(texts.marks.of(self.ledger.watermarks))
        tables = ", ".join(texts.tables.of(self.tables))
        files = ", ".join(texts.files.of(self.files))
        parts = f'"watermarks": [{marks}], "tables": {{{tables}}}, "files": {{{files}}}}}'
        return sealed(f"{head[:-1]}, {parts}".encode())

    @classmethod
    def decode(cls, text: bytes, file: str, mirror: str = MEMORY) -> "Manifest":
        """Read the output of `encode`.

        Raises:
            MirrorDamagedError: It is not what was written.
            MirrorError: A newer version of this package wrote it.
        """
        try:
            form = json.loads(_unsealed(text))
            if form["format"] in _READ:
                return cls._of(form)
        except (ValueError, TypeError, LookupError, AttributeError, pa.ArrowException) as error:
            raise MirrorDamagedError(
                f"mirror {mirror!r}: its manifest {file!r} is damaged", file=file
            ) from error
        raise MirrorError(
            too_new(f"mirror {mirror!r}", form["format"], FORMAT),
            hint="use the newer version of rhei-pipeline that wrote it, or give another path",
        )

    @classmethod
    def _of(cls, form: dict[str, Any]) -> "Manifest":
        marks = [_read_watermark(mark) for mark in form["watermarks"]]
        copies = [_read_copy(copy) for copy in form["copies"]]
        files = form.get("files", {}).items()
        return cls(
            form["version"],
            form["mirror"],
            form["storage"],
            datetime.fromisoformat(form["committed_at"]),
            MappingProxyType({n: _read_table(table) for n, table in form["tables"].items()}),
            Ledger(
                MappingProxyType({mark.table: mark for mark in marks}),
                MappingProxyType({copy.table: copy for copy in copies}),
            ),
            form["letters"],
            owner=form.get("owner"),
            files=MappingProxyType({name: Checksum.from_json(kept) for name, kept in files}),
        )


class ManifestTexts:
    """The texts of a manifest's parts, of which most are the same in the next one."""

    def __init__(self) -> None:
        self.marks = UnchangedParts[Watermark, str](lambda _, mark: json.dumps(_watermark(mark)))
        self.tables = UnchangedParts[StoredTable, str](lambda n, t: _entry(n, _table(t)))
        self.files = UnchangedParts[Checksum, str](lambda n, found: _entry(n, found.to_json()))


def _entry(name: str, form: object) -> str:
    return f"{json.dumps(name)}: {json.dumps(form)}"


def sealed(content: bytes) -> bytes:
    """Let a JSON object end with the checksum of all that stands before."""
    return content[:-1] + _SEAL % zlib.crc32(content)


def unsealed(text: bytes) -> bytes | None:
    """Return such an object without its checksum; None where that is not the right one."""
    content = text[: -len(_SEAL % 0)] + b"}"
    return content if text == sealed(content) else None


def _unsealed(text: bytes) -> bytes:
    """Return the JSON without its checksum, after checking it; earlier formats have none."""
    content = unsealed(text)
    if content is not None:
        return content
    if json.loads(text)["format"] >= _CHECKED_FROM or b'"crc32"' in text[-len(_SEAL % 0) :]:
        raise ValueError("its checksum is not the one it was written with")
    return text


def _watermark(mark: Watermark) -> list[Any]:
    position = mark.position
    return [mark.table, position.order, position.proof, mark.recorded_at.isoformat()]


def _read_watermark(form: list[Any]) -> Watermark:
    return Watermark(form[0], Position(form[1], form[2]), datetime.fromisoformat(form[3]))


def _copy(copy: CopyProgress) -> list[Any]:
    position = copy.position
    place = [copy.table, position.order, position.proof]
    return [*place, copy.shape, copy.resume, copy.complete]


def _read_copy(form: list[Any]) -> CopyProgress:
    return CopyProgress(form[0], Position(form[1], form[2]), *form[3:])


@lru_cache(maxsize=1024)
def _schema(schema: pa.Schema) -> tuple[tuple[str, str], ...]:
    """Name a schema's types; each segment has one, and many have the same."""
    return tuple((column.name, type_name(column.type)) for column in schema)


def _read_schema(form: list[list[str]]) -> pa.Schema:
    return pa.schema([(name, parse_type(kind)[0]) for name, kind in form])


def _table(table: StoredTable) -> dict[str, Any]:
    return {
        "namespace": table.namespace,
        "relation": table.relation,
        "columns": _schema(table.schema),
        "segments": [segment_form(segment) for segment in table.segments],
        "begins_at": table.begins_at.isoformat() if table.begins_at else None,
        "left": {name: at.isoformat() for name, at in table.left.items()},
        "gaps_until": table.gaps_until.isoformat() if table.gaps_until else None,
        "built": _built(table.built),
        "newest": table.newest,
        "kept_since": table.kept_since.isoformat() if table.kept_since else None,
    }


def _built(built: TableShape | None) -> list[Any] | None:
    return [built.name, list(built.primary_key), built.set_aside] if built else None


def _read_built(form: list[Any] | None) -> TableShape | None:
    return TableShape(form[0], tuple(form[1]), form[2]) if form else None


def _read_table(form: dict[str, Any]) -> StoredTable:
    left = form.get("left", {})
    return StoredTable(
        form["namespace"],
        form["relation"],
        _read_schema(form["columns"]),
        tuple(map(read_segment, form["segments"])),
        begins_at=datetime.fromisoformat(begun) if (begun := form.get("begins_at")) else None,
        left=MappingProxyType({name: datetime.fromisoformat(at) for name, at in left.items()}),
        gaps_until=datetime.fromisoformat(until) if (until := form.get("gaps_until")) else None,
        built=_read_built(form.get("built")),
        newest=form.get("newest"),
        kept_since=datetime.fromisoformat(kept) if (kept := form.get("kept_since")) else None,
    )


def segment_form(segment: Segment) -> dict[str, Any]:
    """Return the form of a segment that is stored."""
    gone = segment.gone
    return {
        "name": segment.name,
        "rows": segment.rows,
        "bytes": segment.size_bytes,
        "columns": _schema(segment.schema),
        "constants": dict(segment.constants),
        "past": segment.past,
        "tag": segment.tag,
        "gone": [gone.file, gone.offset, gone.rows] if gone else None,
        "ended": [[part.file, part.offset, part.rows] for part in segment.ended],
        "written_at": segment.written_at.isoformat() if segment.written_at else None,
    }


def read_segment(form: Mapping[str, Any]) -> Segment:
    """Read the output of `segment_form`."""
    return Segment(
        form["name"],
        form["rows"],
        form["bytes"],
        _read_schema(form["columns"]),
        MappingProxyType(form["constants"]),
        past=form["past"],
        tag=form["tag"],
        gone=DeletionVector(*form["gone"]) if form["gone"] else None,
        ended=tuple(VersionEndsPart(*part) for part in form.get("ended", ())),
        written_at=datetime.fromisoformat(written) if (written := form.get("written_at")) else None,
    )
