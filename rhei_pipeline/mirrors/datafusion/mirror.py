"""A mirror in files that DataFusion reads: immutable segments, and a manifest that names them.

A commit is the creation of a new manifest, which holds rows and watermarks of all tables
together. Readers of an earlier manifest continue to read the files it names.
"""

import logging
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa

from rhei_pipeline.errors import (
    MirrorDamagedError,
    MirrorError,
    MirrorUnreachableError,
    RheiError,
    mirror_closed,
)
from rhei_pipeline.mirrors.datafusion.copy_ranges import CopyRanges
from rhei_pipeline.mirrors.datafusion.dead_letters import LETTERS, open_letters
from rhei_pipeline.mirrors.datafusion.feed import instant_text, read_feed, without_positions
from rhei_pipeline.mirrors.datafusion.files import aside, committed_meanwhile, deleted_meanwhile
from rhei_pipeline.mirrors.datafusion.forgetting import Forgetting
from rhei_pipeline.mirrors.datafusion.manifest import SNAPSHOTS, Manifest, StoredTable
from rhei_pipeline.mirrors.datafusion.manifest_store import ManifestStore
from rhei_pipeline.mirrors.datafusion.parameters import Params
from rhei_pipeline.mirrors.datafusion.past import past_of
from rhei_pipeline.mirrors.datafusion.repair import TableRepair, looks_at
from rhei_pipeline.mirrors.datafusion.retention import Removal
from rhei_pipeline.mirrors.datafusion.segment_merge import maintained
from rhei_pipeline.mirrors.datafusion.segment_store import DATA, SegmentStore
from rhei_pipeline.mirrors.datafusion.session import (
    ReadingSession,
)
from rhei_pipeline.mirrors.datafusion.storages import FORMATS, MEMORY, open_files
from rhei_pipeline.mirrors.datafusion.transaction import FileTransaction
from rhei_pipeline.model.cancellation import Cancel
from rhei_pipeline.model.changes import LetterName
from rhei_pipeline.model.feed_state import FeedState
from rhei_pipeline.model.progress import Ledger, Past
from rhei_pipeline.model.published_state import PublishedTable
from rhei_pipeline.model.query_limits import NO_LIMITS, AnswerLimits, gathered
from rhei_pipeline.model.retention import Ageing, ExpiredHistory
from rhei_pipeline.model.schema import VALID_TO, Mode, Table
from rhei_pipeline.model.streaming import Begun, Streamed
from rhei_pipeline.model.upkeep import DamagedFile, MaintenanceReport
from rhei_pipeline.sql.text import mirror_table

if TYPE_CHECKING:
    from rhei_pipeline.changes.feed import FeedEnd
    from rhei_pipeline.mirrors.datafusion.delta import DeltaTables
    from rhei_pipeline.mirrors.datafusion.object_store import StoreAccess

_log = logging.getLogger(__name__)
_Found = TypeVar("_Found")
#: How many states are read in turn at most.
_TRIES = 5
#: How long a commit under way here is waited for, before what others have committed is looked for.
_COMMIT_SECONDS = 5.0

#: Manifests kept by default: whoever reads one has two more commits to say so.
RETAINED_MANIFESTS = 3
#: Rows that one call of `maintain` writes at most, about; half a minute's work.
MAINTENANCE_ROWS = 20_000_000


class DataFusionMirror:
    """A `Mirror` in a directory of files, or in memory.

    Args:
        storage: `memory`, `ipc`, `parquet` or `delta`.
        path: The directory, created when it is missing; a URL in an object store, for `parquet`
            and `delta`; in memory, `:memory:`.
        access: How the object store is reached; left out: from environment variables.
        delta: The tables published for other engines, for `delta`.
        lock_timeout_seconds: How long to wait while another process writes the mirror.
        retained_manifests: How many committed states stay readable.
        memory_limit_bytes: The most that queries take together.

    Raises:
        MirrorBusyError: Another process held the mirror all that time.
        MirrorError: The directory cannot be used, or a manifest is damaged.
    """

    def __init__(  # noqa: PLR0913  (each is a setting of its own)
        self,
        storage: str,
        path: Path | str = MEMORY,
        *,
        access: "StoreAccess | None" = None,
        delta: "DeltaTables | None" = None,
        lock_timeout_seconds: float = 30.0,
        retained_manifests: int = RETAINED_MANIFESTS,
        memory_limit_bytes: int | None = None,
    ) -> None:
        self.storage = storage
        self.path = MEMORY if storage == "memory" else str(path)
        files = open_files(storage, path, access, lock_timeout_seconds)
        self._files = files
        self._store = SegmentStore(files, FORMATS[storage]())
        self._manifests = ManifestStore(files, retained_manifests)
        #: What several processes copy of one table.
        self.ranges = CopyRanges(files, FORMATS[storage](), lambda: self._manifest.ledger)
        self._session = ReadingSession(self._store, memory_limit_bytes)
        self._lock = threading.Lock()
        self._glance = threading.Lock()
        self._reading: Counter[int] = Counter()
        self._delta = delta or _delta_tables(storage)
        self._closed = self._is_in_doubt = self._has_committed = False
        self._feeds: Mapping[str, FeedEnd] = {}
        self._damage: MirrorDamagedError | None = None
        try:
            self._manifest = self._begin()
        except BaseException:
            files.close()
            raise
        self.mirror_id = self._manifest.mirror_id

    def _begin(self) -> Manifest:
        recorded = self.ranges.recorded()
        found, self._damage = self._manifests.newest_whole()
        if found is None:
            if self._damage is not None:
                raise self._damage
            found = Manifest(1, uuid.uuid4().hex, self.storage, datetime.now(UTC))
            self._manifests.commit(found)
        if found.storage != self.storage:
            raise MirrorError(
                f"mirror {self.path!r} was created with storage {found.storage!r}, not "
                f"{self.storage!r}",
                hint="declare that storage, or use another path",
            )
        self._store.learn(found)
        self._look_at_sizes(found)
        if self._damage is None:
            self.ranges.take_up(found.ledger, recorded)
            self._manifests.collect_orphans(self._store, self.ranges.prefixes)
        return found

    @property
    def folds_names(self) -> bool:
        """False: a name is found as written, or in lower case."""
        return False

    @property
    def taken_schemas(self) -> Collection[str]:
        """Where snapshots are."""
        return {SNAPSHOTS}

    @property
    def owner(self) -> str | None:
        """The source and pipeline it belongs to, as recorded."""
        return self._manifest.owner

    def claim(self, owner: str, *, new_id: str | None = None) -> None:
        """Record the owner; under a new id, every table is copied again."""
        with self._lock, self._undoing():
            base = self._manifest
            claimed = replace(
                base,
                version=base.version + 1,
                committed_at=datetime.now(UTC),
                mirror_id=new_id or base.mirror_id,
                ledger=base.ledger.unproved() if new_id else base.ledger,
                owner=owner,
            )
            self._commit(claimed)
            self.mirror_id = claimed.mirror_id

    def _look_at_sizes(self, manifest: Manifest) -> None:
        """Compare the sizes of all files with what was written, by a listing."""
        named = list(self._store.files_of(manifest))
        if named and self._files.root is not None:
            for file in self._store.checked.compare_sizes(self._files.names(DATA), named):
                _log.error("mirror %r: file %r is damaged or missing", self.path, file)

    def ledger(self) -> Ledger:
        """Return what is recorded, as last committed; no other process can write."""
        self._refuse_unusable()
        if self._is_in_doubt and self._lock.acquire(blocking=False):
            try:
                with suppress(RheiError):
                    self._settle()
            finally:
                self._lock.release()
        return self._manifest.ledger

    @contextmanager
    def transaction(self, *, trial: bool = False) -> Iterator[FileTransaction]:
        """Open the one writing transaction; a trial is rolled back at its end."""
        with self._lock, self._undoing():
            base = self._manifest
            transaction = FileTransaction(
                base, self._store, lambda sql: self._session.query(sql, (), base), self._feeds
            )
            with self._discarding():
                yield transaction
                manifest = None if trial else transaction.prepare_commit()
                if manifest is not None:
                    self._files.flush()  # here, where what fails is deleted again
            if manifest is None:
                self._store.discard()
            else:
                self._commit(manifest)
                self._feeds = transaction.feeds.ends()

    def maintain(self, max_rows: int = MAINTENANCE_ROWS) -> MaintenanceReport:
        """Merge small segments into large ones, and rewrite those with many deleted rows.

        Safe at any time and safe to repeat; readers are not interrupted. Writes about `max_rows`
        rows at most; a call that reaches this limit reports it, and the next one continues.
        """
        with self._lock, self._undoing():
            with self._discarding():
                tables, report = maintained(self._manifest.tables, self._store, max_rows)
            report = replace(report, damaged=(*report.damaged, *self._damaged_letters()))
            for damage in report.damaged:
                _log.error("%s", damage)
            if any(tables[name] is not kept for name, kept in self._manifest.tables.items()):
                merged = replace(
                    self._manifest,
                    version=self._manifest.version + 1,
                    committed_at=datetime.now(UTC),
                    tables=MappingProxyType(tables),
                )
                self._commit(merged)
            if self._delta is not None:
                self._delta.look_again()
                self._delta.catch_up(self._manifest, self._store)
            return report

    def expire(self, ageing: Sequence[Ageing]) -> list[ExpiredHistory]:
        """Remove old versions of temporal tables, all in one commit; return what went."""
        with self._lock, self._undoing():
            base = self._manifest
            removal = Removal(
                base, self._store, lambda sql: self._session.query(sql, (), base), self._feeds
            )
            with self._discarding():
                state = removal.of(ageing)
            if removal.removed:
                version = base.version + 1
                self._commit(replace(state, version=version, committed_at=datetime.now(UTC)))
                self._feeds = removal.ends()
            return removal.removed

    def kept_since(self) -> Mapping[str, datetime]:
        """Return since when histories are kept, of the tables that have lost older versions."""
        manifest = self._manifest
        return {
            manifest.name_of(stored): stored.kept_since
            for stored in manifest.tables.values()
            if stored.kept_since is not None
        }

    def forget(self, table: Table, keys: pa.Table, *, trial: bool = False) -> list[pa.Table]:
        """Remove all that there is of these keys, with their past; return the rows."""
        with self._lock, self._undoing():
            forgetting = Forgetting(table, keys, self._store)
            with self._discarding():
                state, found = forgetting.of(self._manifest)
            if trial:
                self._store.discard()
            elif state != self._manifest:
                self._feeds = {}
                version = self._manifest.version + 1
                self._commit(replace(state, version=version, committed_at=datetime.now(UTC)))
            if self._delta is not None and not trial:
                for name in forgetting.names():
                    self._delta.begin_again(self._manifest, name, self._store)
                self._delta.catch_up(self._manifest, self._store)
            return found

    def erase(self) -> tuple[str, ...]:
        """Delete the states of before, and the files that only they name; return what stays."""
        with self._lock, self._undoing():
            self._manifests.collect(self._store, self._in_use, retained=1)
            self._manifests.collect_orphans(self._store, self.ranges.prefixes)
            held = len(self._manifests.versions()) - 1
        if not held:
            return ()
        return (f"{held} earlier states of the mirror, which queries under way still read",)

    def _damaged_letters(self) -> list[str]:
        try:
            self._store.check_anew([self._manifest.letters] if self._manifest.letters else [])
        except MirrorDamagedError as error:
            return [str(error)]
        return []

    def heal(self, table: Table) -> tuple[DamagedFile, ...]:
        """Check all files of a table; remove damaged ones, so that a copy can repair the table."""
        with self._lock, self._undoing(despite_damage=True):
            base, healing = self._manifest, TableRepair(table, self._store)
            if self._damage is not None:
                base = self._without_damaged_manifest(self._damage, healing)
            with self._discarding():
                healed = healing.of(base)
            if healing.found:
                self._set_aside(healing)
                healed = without_positions(healed, table, self._store)
                self._feeds = {}
                self._commit(
                    replace(healed, version=base.version + 1, committed_at=datetime.now(UTC))
                )
                self._damage = None
            if self._delta is not None:
                name = mirror_table(table.schema)
                healing.found += self._delta.heal(self._manifest, name, self._store)
                self._delta.catch_up(self._manifest, self._store)
        for damaged in healing.found:
            _log.error("mirror %r: file %r: %s", self.path, damaged.file, damaged.outcome)
        return tuple(healing.found)

    def confirm(self) -> None:
        """Publish what is due; file mirrors need no other confirmation."""
        if self._delta is not None and self._delta.pace.due:
            self.publish()

    def publish(self, *, wait: bool = True) -> None:
        """Publish all tables as they are now, whatever the interval."""
        if self._delta is not None and self._lock.acquire(blocking=wait):
            try:
                self._refuse_unusable()
                self._delta.catch_up(self._manifest, self._store)
            finally:
                self._lock.release()

    def published(self, names: Sequence[str]) -> list[PublishedTable] | None:
        """Return what shows these tables just as they are now, all at one state; None if nothing.

        Tables are named as in `tables`.
        """
        tables = self._manifest.tables
        found = [self._delta.showing(tables[n]) for n in names if self._delta and n in tables]
        shown = [table for table in found if table is not None]
        return shown if len(shown) == len(names) else None

    def stored_rows(self, relations: Collection[str]) -> int:
        """Return how many rows and versions the tables of these names have, in any schema."""
        tables = [t for t in self._manifest.tables.values() if t.relation.lower() in relations]
        return sum(part.present_rows + part.ended_rows for t in tables for part in t.segments)

    @property
    def not_published(self) -> RheiError | None:
        """Why a Delta table could not be published; None if all were, or there are none."""
        return self._delta.pace.trouble if self._delta else None

    def gaps_until(self, table: Table) -> datetime | None:
        """Return until when a history may have gaps, because a repair lost files."""
        stored = self._manifest.tables.get(mirror_table(table.schema))
        return stored.gaps_until if stored else None

    def _without_damaged_manifest(
        self, damage: MirrorDamagedError, healing: TableRepair
    ) -> Manifest:
        base = self._manifest
        outcome = (
            f"the mirror returns to its state of {base.committed_at:%Y-%m-%d %H:%M:%S} UTC;"
            " later changes that the source still holds are applied again"
        )
        healing.found.append(DamagedFile(damage.file, outcome))
        return replace(base, version=self._manifests.set_aside_after(base.version))

    def _look_again(self) -> None:
        """Take on the newest state where it was damaged or missing, and is so no more."""
        for _ in looks_at(self._files) if self._damage is not None else ():
            found, self._damage = self._manifests.newest_whole()
            self._manifest = found or self._manifest
            self._store.learn(self._manifest)
            if self._damage is None:
                return

    def _set_aside(self, healing: TableRepair) -> None:
        for name in healing.spared - healing.aside:
            self._files.link(aside(name), name)
        self._files.flush()
        self._files.set_aside(healing.aside)
        self._store.forget(healing.aside)

    @contextmanager
    def _undoing(self, *, despite_damage: bool = False) -> Iterator[None]:
        self._refuse_closed()
        self._files.refuse_left()
        if despite_damage:
            self._look_again()
        else:
            self._refuse_unusable()
        if self._settle():
            raise MirrorUnreachableError(
                f"mirror {self.path!r}: a commit has arrived whose answer was lost",
                hint="try again: it goes on from there",
            )
        self._refuse_outdated()
        try:
            yield
        except BaseException:
            self._feeds = {}
            self._store.leave()
            self._is_in_doubt = True
            with suppress(RheiError):  # a store that is away says no more now
                self._settle()
            raise

    @contextmanager
    def _discarding(self) -> Iterator[None]:
        """Delete what the block has written if it fails: later work would wait for it, and fail."""
        try:
            yield
        except BaseException:
            self._store.discard()
            raise

    def _refuse_outdated(self) -> None:
        """Refuse work on a state that is not the newest: in a store any process may write."""
        if self._files.remote and not self._manifests.is_newest(self._manifest.version):
            self._feeds, self._is_in_doubt = {}, True
            if self._settle():
                raise committed_meanwhile(self.path)

    def _settle(self) -> bool:
        """Where it is in doubt what was committed last, take it on; return whether it is new.

        Whether a manifest has appeared only the files can tell.
        """
        if not self._is_in_doubt:
            return False
        newest, _ = self._manifests.newest_whole()
        self._is_in_doubt = False
        if newest is None or newest.version <= self._manifest.version:
            return False
        self._store.learn(newest)
        if self._delta is not None:
            self._delta.note(_gone(self._manifest, newest))
        self._manifest = newest
        return True

    def _commit(self, drafted: Manifest) -> None:
        before = self._manifest
        manifest = self._store.sealed(drafted)
        self._manifests.commit(manifest)
        self._has_committed = True
        with self._glance:
            self._manifest = manifest
        if self._delta is not None:  # at once: a store may fail what follows
            self._delta.note(_gone(before, manifest))
        superseded = self._store.keep(manifest)
        self._manifests.collect(self._store, self._in_use, superseded=superseded)
        self.ranges.settle(manifest.ledger)
        if self.ranges.left and not self._files.remote:
            # Of a large table it may be as much as the mirror, and a session goes on for days. In
            # an object store another process may have planned what is not known here.
            self._manifests.collect_orphans(self._store, self.ranges.prefixes)
            self.ranges.left = False
        if self._delta is not None:
            self._delta.follow(manifest, self._store)

    def _in_use(self) -> set[int]:
        with self._glance:
            return {*self._reading, *self._files.pinned()}

    def query(
        self,
        sql: str,
        params: Params = (),
        begun: Begun | None = None,
        limits: AnswerLimits = NO_LIMITS,
    ) -> pa.Table:
        """Run one read-only statement on the last committed state; parameters by place or name.

        Raises:
            QueryError: Not one statement, not a reading one, or DataFusion refuses it.
            QueryLimitError: The answer is larger than `limits` allow.
        """
        self._refuse_unusable()
        cancel = None if begun is None else Cancel.given(begun)
        return self._read(lambda state: self._session.query(sql, params, state, cancel, limits))

    def stream(self, sql: str, params: Params, rows: int, begun: Begun | None = None) -> Streamed:
        """Run one read-only statement, and return its rows in batches, all of one state.

        Raises:
            QueryError: It is not one read-only statement, or DataFusion refuses it.
            MirrorBusyError: Another process has deleted the state; also after the last batch.
        """
        self._refuse_unusable()
        cancel = Cancel.given(begun)
        with ExitStack() as held:
            manifest = held.enter_context(self._held())
            asked = self._session.plan(sql, params, manifest, None if begun is None else cancel)
            batches = asked.streamed(cancel) if begun is None else asked.interruptible(cancel)
            gathered = _gathered(self._kept(manifest, batches), rows, held.pop_all())
        next(gathered)  # begun, it lets go of its files even where nobody takes a row
        return Streamed(asked.schema, gathered, cancel)

    def _read(self, read: Callable[[Manifest], _Found]) -> _Found:
        """Read the current state, or the next where another process has deleted it meanwhile.

        In an object store any process may write. DataFusion takes a file that is gone for one
        without rows.
        """
        for _ in range(_TRIES):
            with self._held() as manifest:
                try:
                    found = read(manifest)
                except Exception:
                    if self._may_keep(manifest):
                        raise
                else:
                    if self._keeps(manifest):
                        return found
            self._move_on()
        raise deleted_meanwhile(self._files.root)

    def _kept(
        self, manifest: Manifest, batches: Iterator[pa.RecordBatch]
    ) -> Iterator[pa.RecordBatch]:
        try:
            yield from batches
        except Exception:
            if self._may_keep(manifest):
                raise
        self._refuse_deleted(manifest)

    def _refuse_deleted(self, manifest: Manifest) -> None:
        if not self._keeps(manifest):
            self._move_on()
            raise deleted_meanwhile(self._files.root)

    def _keeps(self, manifest: Manifest) -> bool:
        """Return whether all files of a state are there: its manifest is deleted before them."""
        return not self._files.remote or manifest.version in self._manifests.versions()

    def _may_keep(self, manifest: Manifest) -> bool:
        """Return the same after an error; True where the store is away, as the error tells."""
        try:
            return self._keeps(manifest)
        except RheiError:
            return True

    def _move_on(self) -> None:
        """Take on what another process has committed, unless a commit is under way here."""
        if self._lock.acquire(timeout=_COMMIT_SECONDS):
            try:
                self._feeds, self._is_in_doubt = {}, True
                self._settle()
            finally:
                self._lock.release()

    @contextmanager
    def _held(self) -> Iterator[Manifest]:
        """Keep the files of the current state during the block."""
        with self._glance:
            manifest = self._manifest
            self._reading[manifest.version] += 1
        try:
            yield manifest
        finally:
            with self._glance:
                self._reading.subtract([manifest.version])
                self._reading = +self._reading

    def tables(self) -> dict[str, Table]:
        """Return the tables of the mirror with their stored schemas, by quoted name."""
        self._refuse_closed()
        return self._manifest.mirrored()

    def count(self, table: Table) -> int:
        """Return the number of current rows."""
        condition = "" if table.mode is Mode.DESTRUCTIVE else f" where {VALID_TO} is null"
        found = self.query(f"select count(*) as n from {mirror_table(table.schema)}{condition}")
        return int(found["n"][0].as_py())

    def past(self, table: Table) -> Past | None:
        """Return what is recorded of a temporal table's history; None if it is not mirrored yet."""
        self._refuse_closed()
        return past_of(self._manifest, table)

    def feed(self, table: Table) -> FeedState | None:
        """Return which state of a temporal table's history this is; None if there is no table."""
        self._refuse_unusable()
        return self._read(lambda state: read_feed(state, table, self._session))

    def instant_text(self, microseconds: int) -> str:
        """Write an instant in the mirror's SQL."""
        return instant_text(microseconds)

    def quarantined(self, table: Table) -> set[LetterName]:
        """Return the names of a table's open dead letters."""
        found = self.dead_letters(table.name)
        return set(zip(found["key"].to_pylist(), found["column_name"].to_pylist(), strict=True))

    def dead_letters(self, table: str | None = None) -> pa.Table:
        """Return open dead letters: table_name, key, column_name, reason, captured_at."""
        self._refuse_unusable()
        kept = LETTERS.empty_table()
        if self._manifest.letters:  # or the store is not asked
            kept = self._read(lambda it: self._store.letters(it.letters) if it.letters else kept)
        return open_letters(kept, table)

    def close(self) -> None:
        """Publish what is left to publish, and release the lock; safe to repeat."""
        with self._lock:
            try:
                is_whole = not self._closed and self._damage is None
                # In a store, another process may be publishing what this one only read.
                is_ours = self._has_committed or not self._files.remote
                if self._delta is not None and is_whole and is_ours:
                    self._delta.catch_up(self._manifest, self._store)
            finally:
                self._closed = True
                self._files.close()

    def _refuse_closed(self) -> None:
        if self._closed:
            raise mirror_closed()

    def _refuse_unusable(self) -> None:
        self._refuse_closed()
        if self._damage is not None:
            raise self._damage


def _delta_tables(storage: str) -> "DeltaTables | None":
    if storage != "delta":
        return None
    from rhei_pipeline.mirrors.datafusion.delta import (  # noqa: PLC0415  (its package is optional)
        DeltaTables,
    )

    return DeltaTables()


def _gone(before: Manifest, after: Manifest) -> list[StoredTable]:
    """Return the tables of a state that a later one no longer has."""
    return [before.tables[name] for name in before.tables.keys() - after.tables.keys()]


def _gathered(
    batches: Iterator[pa.RecordBatch], rows: int, held: ExitStack
) -> Iterator[pa.RecordBatch]:
    """Yield an empty batch, then batches of about so many rows; DataFusion's own are small."""
    with held:
        yield pa.record_batch({})
        yield from gathered(batches, rows)
