"""Publishes each table of a mirror as a Delta Lake table, for other engines.

Only the manifest defines what a mirror holds. The Delta tables are derived from it, and can be
deleted and written again. A file's name is derived from its segment, the rows shown and their
columns, so the work left is a difference of names: an interrupted publication is finished by the
next one, and a repeated one changes nothing.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
from deltalake import Schema
from deltalake.transaction import AddAction, CommitProperties, Transaction

from rhei_pipeline.errors import MirrorError, RheiError
from rhei_pipeline.mirrors.datafusion.deletion_vectors import present
from rhei_pipeline.mirrors.datafusion.delta_states import write_state
from rhei_pipeline.mirrors.datafusion.delta_target import LOG, DeltaTarget, now
from rhei_pipeline.mirrors.datafusion.files import Files, refuse_silent_store
from rhei_pipeline.mirrors.datafusion.formats import Parquet, encoded
from rhei_pipeline.mirrors.datafusion.manifest import Manifest, Segment, StoredTable
from rhei_pipeline.mirrors.datafusion.segment_store import SegmentStore, conform
from rhei_pipeline.mirrors.publishing import PublishSchedule
from rhei_pipeline.model.published_state import PublishedState, PublishedTable
from rhei_pipeline.model.schema import RESERVED_PREFIX
from rhei_pipeline.model.upkeep import DamagedFile

#: The folder of all Delta tables; in it, as in SQL, a folder for each namespace.
DELTA = "delta"
_MAIN = "main"
_PUBLIC = "public"
#: After how many commits a checkpoint tells what they left. Whoever opens a table reads the log
#: from there on, and to publish a table is to open it; Delta's own number is 100.
_CHECKPOINT_COMMITS = "10"


class DeltaTables:
    """The Delta tables of one mirror; only the mirror's one writer publishes.

    Args:
        interval_seconds: The minimum time between two publications while the mirror is written.
        retention_hours: How long files that a table no longer names are kept for its readers.
    """

    def __init__(self, interval_seconds: float = 300.0, retention_hours: int = 1) -> None:
        self.pace = PublishSchedule(interval_seconds)
        self._retention_hours = retention_hours
        #: By folder, the table that is shown, and the version that shows it.
        self._published: dict[str, tuple[StoredTable, int]] = {}
        #: By folder, the Delta tables as this process left them.
        self._left: dict[str, DeltaTarget] = {}
        self._gone: list[StoredTable] = []
        kept = f"interval {max(retention_hours, 1)} hours"
        self._configuration = {
            "delta.deletedFileRetentionDuration": kept,
            "delta.logRetentionDuration": kept,
            "delta.checkpointInterval": _CHECKPOINT_COMMITS,
        }

    def follow(self, manifest: Manifest, gone: Iterable[StoredTable], store: SegmentStore) -> None:
        """Publish the last commit if the interval has passed, or if tables were added or removed.

        Tables in `gone` were dropped or renamed: their Delta tables are deleted.
        """
        self.note(gone)
        is_new = not self._published.keys() >= dict(_tables(manifest)).keys()
        if self.pace.due or self._gone or is_new:
            self.catch_up(manifest, store)

    def note(self, gone: Iterable[StoredTable]) -> None:
        """Record that there is a newer state, without the tables in `gone`; publish nothing."""
        self.pace.note_change()
        self._gone += gone

    def catch_up(self, manifest: Manifest, store: SegmentStore) -> None:
        """Publish every table at a committed state; tables that are up to date are skipped.

        A table that cannot be published is named in `pace.trouble`; the others are published.
        """
        if self.pace.behind:
            with self.pace.noting_trouble():
                self._publish_all(manifest, store)

    def _publish_all(self, manifest: Manifest, store: SegmentStore) -> None:
        self._remove_gone(store)
        failed: list[RheiError] = []
        for folder, table in _tables(manifest):
            if self.showing(table) is None:
                try:
                    with _translated(table, folder):
                        self._published[folder] = table, self._publish(manifest, table, store)
                except RheiError as error:
                    failed.append(error)  # the other tables are published all the same
        if failed:
            raise failed[0]
        versions = {folder: version for folder, (_, version) in self._published.items()}
        write_state(_state(manifest, versions), store)
        self.pace.note_publication()

    def showing(self, table: StoredTable) -> PublishedTable | None:
        """Return the version that shows just this state of a table; None if none does."""
        folder = _folder(table)
        shown, version = self._published.get(folder, (None, 0))
        if shown is not table:
            return None
        return PublishedTable(table.namespace, table.relation, folder, version)

    def heal(self, manifest: Manifest, name: str, store: SegmentStore) -> tuple[DamagedFile, ...]:
        """Compare a Delta table's files with what the mirror holds; delete a table that differs.

        It is a copy, and the next publication writes it again. `name` is as in the manifest.
        """
        table = manifest.tables.get(name)
        if table is None:
            return ()
        found = sorted(_damaged_files(table, store))
        if found:
            self.begin_again(manifest, name, store)
        return tuple(DamagedFile(file, "the Delta table is written again") for file in found)

    def begin_again(self, manifest: Manifest, name: str, store: SegmentStore) -> None:
        """Delete a Delta table with its earlier versions; the next publication writes it again."""
        table = manifest.tables.get(name)
        if table is None or table.relation.startswith(RESERVED_PREFIX):
            return
        folder = _folder(table)
        log = f"{folder}/{LOG}"
        store.files.delete([*store.files.names(log), *store.files.names(folder)])
        self._forget(folder)
        self.pace.note_change()

    def _remove_gone(self, store: SegmentStore) -> None:
        while self._gone:
            self._remove(self._gone[-1], store)
            self._gone.pop()

    def _remove(self, table: StoredTable, store: SegmentStore) -> None:
        if table.relation.startswith(RESERVED_PREFIX):
            return  # a copy, which was never published
        folder = _folder(table)
        self._forget(folder)
        with _translated(table, folder):
            # The log goes first: without it there is no table.
            for files in (store.files.names(f"{folder}/{LOG}"), store.files.names(folder)):
                store.files.delete(name for name in files if not name.endswith(LOG))

    def _forget(self, folder: str) -> None:
        self._published.pop(folder, None)
        self._left.pop(folder, None)

    def _publish(self, manifest: Manifest, table: StoredTable, store: SegmentStore) -> int:
        """Publish a table; return the version of its Delta table."""
        target = self._target(_folder(table), store.files)
        wanted = {_file(table, segment): segment for segment in table.segments}
        schema = Schema.from_arrow(_shape(table))
        if not target.shows(set(wanted), schema):
            _refuse_going_back(manifest, table, target)
            new = [name for name in wanted if name not in target.held_in(schema)]
            added = [_add(store, table, wanted[name], f"{target.folder}/{name}") for name in new]
            store.files.flush()
            target.commit(
                added, set(wanted), schema, _properties(manifest, table), self._configuration
            )
            # What a process that was killed has left lies beside the log, and is looked for once.
            target.vacuum(self._retention_hours, full=target.folder not in self._published)
            store.files.harden(f"{target.folder}/{LOG}")
        target.leave()
        self._left[target.folder] = target
        return target.version

    def _target(self, folder: str, files: Files) -> DeltaTarget:
        """Return a Delta table as it is: read again where it is not as this process left it."""
        left = self._left.pop(folder, None)
        return left if left is not None and left.is_as_left() else DeltaTarget(files, folder)


def _tables(manifest: Manifest) -> Iterator[tuple[str, StoredTable]]:
    """Yield each published table with its folder."""
    for table in manifest.tables.values():
        if not table.relation.startswith(RESERVED_PREFIX):
            yield _folder(table), table


def _folder(table: StoredTable) -> str:
    return "/".join([DELTA, _plain(table.namespace or _MAIN), _plain(table.relation)])


def _plain(name: str) -> str:
    """Return a name without characters that are special in file systems or URLs."""
    kept = (
        char if char.isascii() and (char.isalnum() or char in "_-") else f"~{ord(char):x}~"
        for char in name
    )
    return "".join(kept)


def _shape(table: StoredTable) -> pa.Schema:
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


def _file(table: StoredTable, segment: Segment) -> str:
    gone = segment.gone
    holding = [
        [[field.name, str(field.type)] for field in table.schema],
        sorted(segment.constants.items()),
        [gone.file, gone.offset] if gone else None,
        [[part.file, part.offset] for part in segment.ended],
    ]
    shown = hashlib.sha256(json.dumps(holding).encode()).hexdigest()[:16]
    return f"{segment.name}-{shown}{Parquet.suffix}"


def _add(store: SegmentStore, table: StoredTable, segment: Segment, name: str) -> AddAction:
    if _is_shown_whole(table, segment):
        store.files.link(name, store.place(segment.name))
        size = store.files.size(name)
    else:
        size = store.write_shown(name, _shown_rows(store, table, segment))
    stats = json.dumps({"numRecords": segment.present_rows + segment.ended_rows})
    return AddAction(name.rpartition("/")[2], size, {}, now(), data_change=True, stats=stats)


def _damaged_files(table: StoredTable, store: SegmentStore) -> Iterator[str]:
    """Yield the files of a Delta table that differ from what would be published now."""
    folder = _folder(table)
    try:
        target = DeltaTarget(store.files, folder)
    except Exception:  # noqa: BLE001  (delta-rs raises types of many kinds)
        yield f"{folder}/{LOG}"
        return
    segments = {_file(table, segment): segment for segment in table.segments}
    for name in target.held_in(Schema.from_arrow(_shape(table))).keys() & segments.keys():
        mark = store.files.mark(f"{folder}/{name}")
        if mark is None or not store.files.get(f"{folder}/{name}").equals(
            _content(store, table, segments[name])
        ):
            yield f"{folder}/{name}"


def _content(store: SegmentStore, table: StoredTable, segment: Segment) -> pa.Buffer:
    if _is_shown_whole(table, segment):
        return store.content(segment)
    return encoded(store.form, _shown_rows(store, table, segment))


def _is_shown_whole(table: StoredTable, segment: Segment) -> bool:
    """Return whether Delta readers can use the segment's own file."""
    if segment.gone or segment.constants:
        return False
    wanted = {field.name: delta_type(field.type) for field in table.schema}
    return all(wanted.get(field.name, field.type) == field.type for field in segment.schema)


def _shown_rows(store: SegmentStore, table: StoredTable, segment: Segment) -> pa.Table:
    rows = store.form.read(store.content(segment), segment.schema.names)
    bits = store.bits(segment)
    if bits is not None:
        rows = rows.filter(pa.array(present(bits, segment.rows)))
    shown = [conform(rows, table.schema, segment.constants)]
    if segment.ended:
        shown.append(store.ended_rows(segment, table.schema)[0])
    return pa.concat_tables(shown).cast(_shape(table))


def _properties(manifest: Manifest, table: StoredTable) -> CommitProperties:
    properties: dict[str, Any] = {
        "rhei.version": manifest.version,
        "rhei.committed_at": manifest.committed_at.isoformat(),
    }
    marks = manifest.ledger.watermarks
    name = table.relation if table.namespace is None else f"{table.namespace}.{table.relation}"
    mark = marks.get(name) or (marks.get(table.relation) if table.namespace == _PUBLIC else None)
    if mark is not None:
        properties["rhei.watermark"] = mark.position.order
        properties["rhei.recorded_at"] = mark.recorded_at.isoformat()
    applied = Transaction(_application(manifest), manifest.version, now())
    return CommitProperties(properties, max_commit_retries=0, app_transactions=[applied])


def _state(manifest: Manifest, versions: Mapping[str, int]) -> PublishedState:
    tables = (
        PublishedTable(table.namespace, table.relation, folder, versions[folder])
        for folder, table in _tables(manifest)
    )
    marks = manifest.ledger.watermarks
    return PublishedState(
        manifest.version,
        manifest.committed_at.isoformat(),
        {name: mark.position.order for name, mark in marks.items()},
        tuple(tables),
    )


def _application(manifest: Manifest) -> str:
    return f"rhei-{manifest.mirror_id}"


def _refuse_going_back(manifest: Manifest, table: StoredTable, target: DeltaTarget) -> None:
    """Refuse to publish an older state after a newer one, which Delta itself would allow."""
    found = target.version_of(_application(manifest))
    if found is not None and found >= manifest.version:
        raise MirrorError(
            f"its Delta table shows version {found}, and the mirror is at {manifest.version}",
            table=table.relation,
            hint=f"stop any other process that writes the mirror; if the mirror's files were "
            f"restored, delete {target.folder!r} too: it is published again",
        )


@contextmanager
def _translated(table: StoredTable, folder: str) -> Iterator[None]:
    try:
        yield
    except RheiError:
        raise
    except Exception as error:  # delta-rs raises types of many kinds
        what = f"its Delta table {folder!r} cannot be published"
        refuse_silent_store(error, what, table=table.relation)
        raise MirrorError(
            f"{what} ({type(error).__name__})",
            table=table.relation,
            hint=f"the mirror itself is not affected; if {folder!r} is damaged, run"
            f" 'rhei repair {table.relation}': it is published again",
        ) from error
