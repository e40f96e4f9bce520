"""Publishes each table of a mirror as a Delta Lake table, for other engines.

Only the manifest defines what a mirror holds. The Delta tables are derived from it, and can be
deleted and written again. A file's name is derived from its segment, the rows shown and their
columns, so the work left is a difference of names: an interrupted publication is finished by the
next one, and a repeated one changes nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
from deltalake import Schema

from rhei_pipeline.errors import MirrorDamagedError, MirrorError, RheiError
from rhei_pipeline.mirrors.datafusion.delta_log import LOG, NamedFile
from rhei_pipeline.mirrors.datafusion.delta_shown import ShownFile, delta_schema, shown_files
from rhei_pipeline.mirrors.datafusion.delta_states import last_readable, write_state
from rhei_pipeline.mirrors.datafusion.delta_target import (
    APPLICATION,
    OWN_NAME,
    DeltaTarget,
    Note,
)
from rhei_pipeline.mirrors.datafusion.delta_vectors import DeltaVector, holds, vector_file
from rhei_pipeline.mirrors.datafusion.files import Files, refuse_failed_store
from rhei_pipeline.mirrors.datafusion.manifest import Manifest, StoredTable
from rhei_pipeline.mirrors.datafusion.repair import looks_at
from rhei_pipeline.mirrors.datafusion.segment_store import SegmentStore
from rhei_pipeline.mirrors.publishing import PublishSchedule
from rhei_pipeline.model.published_state import PublishedState, PublishedTable
from rhei_pipeline.model.schema import RESERVED_PREFIX
from rhei_pipeline.model.upkeep import DamagedFile

#: The folder of all Delta tables; in it, as in SQL, a folder for each namespace.
DELTA = "delta"
_MAIN = "main"
#: So many tables of a mirror in a store are published at the same time, but those that are larger.
_AT_ONCE, _LARGE_BYTES = 8, 64 * 2**20


class DeltaTables:
    """The Delta tables of one mirror; only the mirror's one writer publishes.

    Args:
        interval_seconds: The minimum time between two publications while the mirror is written.
        retention_hours: How long files that a table no longer names are kept for its readers.
        deletion_vectors: Leave removed rows out by Delta's deletion vectors; else files that have
            any are written again.
    """

    def __init__(
        self,
        interval_seconds: float = 300.0,
        retention_hours: int = 1,
        *,
        deletion_vectors: bool = False,
    ) -> None:
        self._vectors = deletion_vectors
        self.pace = PublishSchedule(interval_seconds)
        self._retention_hours = retention_hours
        #: By folder, the table that is shown, and the version that shows it.
        self._published: dict[str, tuple[StoredTable, int]] = {}
        #: By folder, the Delta tables as this process left them.
        self._left: dict[str, DeltaTarget] = {}
        #: The folders of tables that were dropped or renamed, and what these were called.
        self._gone: list[tuple[str, str]] = []
        self._has_looked_for_gone = False
        kept = f"interval {max(retention_hours, 1)} hours"
        self._configuration = {
            "delta.deletedFileRetentionDuration": kept,
            "delta.logRetentionDuration": kept,
        }

    def follow(self, manifest: Manifest, store: SegmentStore) -> None:
        """Publish the last commit if that is due, or if tables were added or removed."""
        is_new = not self._published.keys() >= dict(_tables(manifest)).keys()
        if self.pace.due or self._gone or is_new:
            self.catch_up(manifest, store)

    def note(self, gone: Iterable[StoredTable]) -> None:
        """Record that there is a newer state; publish nothing.

        Tables in `gone` were dropped or renamed: the next publication deletes their Delta tables.
        """
        self.pace.note_change()
        self._gone += [
            (_folder(table), table.relation)
            for table in gone
            if not table.relation.startswith(RESERVED_PREFIX)  # a copy, which was never published
        ]

    def catch_up(self, manifest: Manifest, store: SegmentStore) -> None:
        """Publish every table at a committed state; tables that are up to date are skipped.

        A table that cannot be published is named in `pace.trouble`; the others are published.
        """
        if self.pace.behind:
            with self.pace.noting_trouble():
                self._publish_all(manifest, store)

    def _publish_all(self, manifest: Manifest, store: SegmentStore) -> None:
        self._remove_gone(manifest, store)
        failed: list[RheiError] = []

        def publish(one: tuple[str, StoredTable]) -> None:
            folder, table = one
            try:
                with _translated(table.relation, folder):
                    self._published[folder] = table, self._publish(manifest, table, store)
            except RheiError as error:
                error.table = error.table or table.relation
                failed.append(error)  # the other tables are published all the same

        due = [one for one in _tables(manifest) if self.showing(one[1]) is None]
        for one in _side_by_side(due, publish) if store.files.remote else due:
            publish(one)
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
        self.look_again()
        found: list[str] = []
        for _ in looks_at(store.files):
            found = sorted(self._damaged_files(table, store))
            if not found:
                return ()
        self.begin_again(manifest, name, store)
        return tuple(DamagedFile(file, "the Delta table is written again") for file in found)

    def look_again(self) -> None:
        """Note that other programs may have written tables: the next publication looks at all."""
        self._published.clear()
        self.pace.note_change()

    def _damaged_files(self, table: StoredTable, store: SegmentStore) -> Iterator[str]:
        """Yield the files of a Delta table that differ from what would be published now."""
        folder = _folder(table)
        target = _opened(folder, store)
        if target is None:
            yield f"{folder}/{LOG}"
            return
        if target.is_of_others:
            return
        schema = Schema.from_arrow(delta_schema(table))
        wanted, held = self._wanted(table, target, schema, store), target.held_in(schema)
        for name in held.keys() & wanted.keys():
            yield from _differing(wanted[name], held[name], folder, store)

    def begin_again(self, manifest: Manifest, name: str, store: SegmentStore) -> None:
        """Delete a Delta table with its earlier versions; the next publication writes it again."""
        table = manifest.tables.get(name)
        if table is None or table.relation.startswith(RESERVED_PREFIX):
            return
        folder = _folder(table)
        _delete(folder, store)
        self._forget(folder)
        self.pace.note_change()

    def _remove_gone(self, manifest: Manifest, store: SegmentStore) -> None:
        """Delete the Delta tables of tables that are gone.

        A process may have been killed after it dropped one: what was published last tells of it.
        """
        if not self._has_looked_for_gone:
            before, held = last_readable(store.files), dict(_tables(manifest))
            shown = before.tables if before else ()
            self._gone += [(it.folder, it.relation) for it in shown if it.folder not in held]
            self._has_looked_for_gone = True
        while self._gone:
            folder, relation = self._gone[-1]
            self._forget(folder)
            with _translated(relation, folder):
                _delete(folder, store)
            self._gone.pop()

    def _forget(self, folder: str) -> None:
        self._published.pop(folder, None)
        self._left.pop(folder, None)

    def _publish(self, manifest: Manifest, table: StoredTable, store: SegmentStore) -> int:
        """Publish a table; return the version of its Delta table."""
        target = self._target(_folder(table), store)
        if target.is_of_others:
            raise MirrorError(
                f"{target.folder!r} beside its files is a Delta table that somebody else made",
                table=table.relation,
                hint="move it away, or give another mirror.path; the mirror itself is not affected",
            )
        schema = Schema.from_arrow(delta_schema(table))
        wanted = self._wanted(table, target, schema, store)
        made_of = {name: file.made_of for name, file in wanted.items()}
        if not target.shows(made_of, schema, vectors=self._vectors):
            _refuse_going_back(manifest, table, target)
            named = _named_files(wanted, target, schema, store)
            store.files.flush(target.folder)
            note = _note(manifest, table)
            target.commit(named, schema, note, self._configuration, vectors=self._vectors)
            # What a process that was killed has left lies beside the log, and is looked for once.
            target.vacuum(self._retention_hours, full=target.folder not in self._published)
            target.checkpoint()
            store.files.harden(f"{target.folder}/{LOG}")
        target.leave()
        self._left[target.folder] = target
        return target.version

    def _wanted(
        self, table: StoredTable, target: DeltaTarget, schema: Schema, store: SegmentStore
    ) -> dict[str, ShownFile]:
        """Return the files that show a table, by their names."""
        held = {name: file.made_of for name, file in target.held_in(schema).items()}
        shown = shown_files(table, held, store, vectors=self._vectors)
        return {file.name: file for file in shown}

    def _target(self, folder: str, store: SegmentStore) -> DeltaTarget:
        """Return a Delta table as it is: read again where it is not as this process left it.

        Readers of one that may have vectors cannot be told that it has none any more.
        """
        left = self._left.pop(folder, None)
        if left is not None and left.is_as_left():
            return left
        found = DeltaTarget(store.files, folder)
        if found.removes_by_vectors and not self._vectors:
            _delete(folder, store)
            return DeltaTarget(store.files, folder)
        return found


def _side_by_side(
    due: Sequence[tuple[str, StoredTable]], publish: Callable[[tuple[str, StoredTable]], None]
) -> list[tuple[str, StoredTable]]:
    """Publish small tables at the same time, as each waits for its requests; return the others."""
    large = [one for one in due if sum(s.size_bytes for s in one[1].segments) > _LARGE_BYTES]
    with ThreadPoolExecutor(_AT_ONCE, "rhei-publishing") as publishing:
        for _ in publishing.map(publish, [one for one in due if one not in large]):
            continue
    return large


def _tables(manifest: Manifest) -> Iterator[tuple[str, StoredTable]]:
    """Yield each published table with its folder."""
    for table in manifest.tables.values():
        if not table.relation.startswith(RESERVED_PREFIX):
            yield _folder(table), table


def _folder(table: StoredTable) -> str:
    return "/".join([DELTA, _plain(table.namespace or _MAIN), _plain(table.relation)])


def _plain(name: str) -> str:
    """Return a name without what is special in file systems, in URLs, or to readers of Delta."""
    kept = "" if name == LOG else "_-"
    return "".join(
        char if char.isascii() and (char.isalnum() or char in kept) else f"~{ord(char):x}~"
        for char in name
    )


def _opened(folder: str, store: SegmentStore) -> DeltaTarget | None:
    """Return a Delta table; None where its log is damaged.

    A store that does not answer, or refuses, does not say whose the table is: that is raised.
    """
    try:
        return DeltaTarget(store.files, folder)
    except Exception as error:  # what a damaged log leads to is of many kinds
        if isinstance(error, RheiError) and not isinstance(error, MirrorDamagedError):
            raise
        return None


def _delete(folder: str, store: SegmentStore) -> None:
    """Delete a Delta table with what other programs wrote into it, unless somebody else made it.

    Its log goes first: without it there is no table. Files of which it tells nothing are of others.
    """
    target = _opened(folder, store)
    if target is not None and target.is_of_others:
        return
    told = set[str]() if target is None else target.told
    store.files.delete(store.files.names(f"{folder}/{LOG}"))
    names = {name.removeprefix(f"{folder}/") for name in store.files.names(folder)}
    ours = told | {name for name in names if OWN_NAME.fullmatch(name)}
    store.files.delete(f"{folder}/{name}" for name in sorted(ours))


def _named_files(
    wanted: Mapping[str, ShownFile], target: DeltaTarget, schema: Schema, store: SegmentStore
) -> dict[str, NamedFile]:
    """Return the files of a Delta table's next version; those that it has not yet are written."""
    held, lead = target.held_in(schema), f"{target.folder}/"
    named = {
        name: kept
        for name, file in wanted.items()
        if (kept := held.get(name)) is not None and kept.made_of == file.made_of
    }
    changed = {name: file for name, file in wanted.items() if name not in named}
    vectors = _put_vectors(changed, target.folder, store)
    sizes = {name: held[name].size for name in changed if name in held}

    def put(name: str) -> None:
        sizes[name] = changed[name].put(store, lead + name)

    new = [name for name in changed if name not in held]
    store.files.each([name for name in new if changed[name].is_whole], put)
    for name in new:
        if not changed[name].is_whole:  # what has to be made takes memory
            put(name)
    for name, file in changed.items():
        named[name] = NamedFile(name, sizes[name], file.rows, vectors.get(name), file.made_of)
    return named


def _differing(
    shown: ShownFile, named: NamedFile, folder: str, store: SegmentStore
) -> Iterator[str]:
    """Yield what a Delta table has of a file, or of its vector, and is not what it should be."""
    place = f"{folder}/{named.name}"
    if not _is_there_as(place, lambda found: found.equals(shown.content(store)), store.files):
        yield place
    bits, vector = shown.removed(store), named.vector
    if bits is None or vector is None or shown.made_of != named.made_of:
        return
    place = f"{folder}/{vector.file}"
    if not _is_there_as(place, lambda found: holds(found, vector, bits), store.files):
        yield place


def _is_there_as(place: str, is_right: Callable[[pa.Buffer], bool], files: Files) -> bool:
    return files.mark(place) is not None and is_right(files.get(place))


def _put_vectors(
    shown: Mapping[str, ShownFile], folder: str, store: SegmentStore
) -> dict[str, DeltaVector]:
    """Write the vectors of these files into one file; return where each is."""
    bitmaps = {name: file.removed(store) for name, file in shown.items()}
    removing = {name: bits for name, bits in bitmaps.items() if bits is not None}
    if not removing:
        return {}
    content, vectors = vector_file(list(removing.values()))
    store.files.put(f"{folder}/{vectors[0].file}", content)
    return dict(zip(removing, vectors, strict=True))


def _note(manifest: Manifest, table: StoredTable) -> Note:
    told: dict[str, Any] = {
        "rhei.version": manifest.version,
        "rhei.committed_at": manifest.committed_at.isoformat(),
    }
    name = manifest.name_of(table) if table.is_mirrored else None  # not of snapshots
    mark = manifest.ledger.watermarks.get(name or "")
    if mark is not None:
        told["rhei.watermark"] = mark.position.order
        told["rhei.recorded_at"] = mark.recorded_at.isoformat()
    return Note(told, _application(manifest), manifest.version)


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
    return f"{APPLICATION}{manifest.mirror_id}"


def _refuse_going_back(manifest: Manifest, table: StoredTable, target: DeltaTarget) -> None:
    """Refuse to publish an older state after a newer one, which Delta itself would allow.

    The same one may be shown by other files: with vectors now, in parts, or after a compaction.
    """
    found = target.version_of(_application(manifest))
    if found is not None and found > manifest.version:
        raise MirrorError(
            f"its Delta table shows version {found}, and the mirror is at {manifest.version}",
            table=table.relation,
            hint=f"stop any other process that writes the mirror; if the mirror's files were "
            f"restored, delete {target.folder!r} too: it is published again",
        )


@contextmanager
def _translated(relation: str, folder: str) -> Iterator[None]:
    try:
        yield
    except RheiError:
        raise
    except Exception as error:  # delta-rs raises types of many kinds
        what = f"its Delta table {folder!r} cannot be published"
        refuse_failed_store(error, what, table=relation)
        raise MirrorError(
            f"{what} ({type(error).__name__})",
            table=relation,
            hint=f"the mirror itself is not affected; if {folder!r} is damaged, run"
            f" 'rhei repair {relation}': it is published again",
        ) from error
