"""Reads a mirror of files from any process, while another process writes it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from rhei_pipeline.changes import consume
from rhei_pipeline.changes.consume import After, OnLost
from rhei_pipeline.errors import (
    MirrorDamagedError,
    MirrorError,
    MirrorUnreachableError,
    SchemaError,
)
from rhei_pipeline.mirrors.datafusion.dead_letters import LETTERS, open_letters
from rhei_pipeline.mirrors.datafusion.feed import instant_text, read_feed
from rhei_pipeline.mirrors.datafusion.files import Files, deleted_meanwhile
from rhei_pipeline.mirrors.datafusion.manifest import Manifest
from rhei_pipeline.mirrors.datafusion.manifest_store import ManifestStore
from rhei_pipeline.mirrors.datafusion.mirror import RETAINED_MANIFESTS
from rhei_pipeline.mirrors.datafusion.parameters import Params
from rhei_pipeline.mirrors.datafusion.past import past_of
from rhei_pipeline.mirrors.datafusion.segment_store import SegmentStore
from rhei_pipeline.mirrors.datafusion.session import ReadingSession
from rhei_pipeline.mirrors.datafusion.storages import FORMATS, open_files
from rhei_pipeline.model.cancellation import Cancel
from rhei_pipeline.model.change_feed import TableChanges
from rhei_pipeline.model.closing import Closing
from rhei_pipeline.model.feed_state import FeedState
from rhei_pipeline.model.progress import Ledger, Past
from rhei_pipeline.model.query_limits import NO_LIMITS, AnswerLimits
from rhei_pipeline.model.schema import Table, nearest
from rhei_pipeline.model.streaming import Begun

if TYPE_CHECKING:
    from rhei_pipeline.mirrors.datafusion.object_store import StoreAccess

_TRIES = 10


class MirrorReader(Closing):
    """One committed state of a mirror, as long as this is open; a context manager.

    Syncs and maintenance can run at the same time and change nothing here; `refresh` moves to
    what they have committed. Any number of processes may read.

    Args:
        path: The mirror's directory, or its URL in an object store. There a writer cannot see
            readers: a state is kept as long as manifests are retained.
        version: An earlier state that is still kept; left out: the newest.
        access: How the object store is reached; left out: from environment variables.

    Raises:
        MirrorError: There is no mirror, or it no longer holds that state.
    """

    def __init__(
        self, path: Path | str, version: int | None = None, *, access: "StoreAccess | None" = None
    ) -> None:
        self._files = open_files("parquet", path, access)
        self._pin = ExitStack()
        self._is_seen = False
        try:
            self._manifest = self._hold(version)
            self.store = SegmentStore(self._files, FORMATS[self._manifest.storage]())
            self.store.learn(self._manifest)
            self._session = ReadingSession(self.store)
        except BaseException:
            self.close()
            raise

    @property
    def version(self) -> int:
        """The version of the state that is read."""
        return self._manifest.version

    @property
    def mirror_id(self) -> str:
        """The mirror whose state it is."""
        return self._manifest.mirror_id

    @property
    def manifest(self) -> Manifest:
        """What the state that is read consists of."""
        return self._manifest

    @property
    def session(self) -> ReadingSession:
        """What shows the state."""
        return self._session

    @property
    def files(self) -> Files:
        """Where the state is."""
        return self._files

    def versions(self) -> list[int]:
        """Return the versions that can be read now, the newest last."""
        return ManifestStore(self._files, RETAINED_MANIFESTS).versions()

    def tables(self) -> dict[str, Table]:
        """Return the tables of the mirror with their stored schemas, by quoted name."""
        return self._manifest.mirrored()

    def ledger(self) -> Ledger:
        """Return what this state has recorded."""
        return self._manifest.ledger

    def dead_letters(self, table: str | None = None) -> pa.Table:
        """Return open dead letters: table_name, key, column_name, reason, captured_at.

        Raises:
            MirrorBusyError: The state was deleted meanwhile; `refresh` moves to the newest.
        """
        letters = self._manifest.letters
        if not letters:
            return open_letters(LETTERS.empty_table(), table)
        with self.kept():
            return open_letters(self.store.letters(letters), table)

    def query(
        self,
        sql: str,
        params: Params = (),
        begun: Begun | None = None,
        limits: AnswerLimits = NO_LIMITS,
    ) -> pa.Table:
        """Run one read-only statement on this state; `?` or named parameters.

        Raises:
            QueryError: Not one read-only statement, or DataFusion refuses it.
            QueryLimitError: The answer is larger than `limits` allow.
            MirrorBusyError: The state was deleted meanwhile; `refresh` moves to the newest.
        """
        cancel = None if begun is None else Cancel.given(begun)
        with self.kept():
            return self._session.query(sql, params, self._manifest, cancel, limits)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Refuse what is read in the block if the state was deleted under way.

        A writer does not see who reads without a right to write, or in an object store. DataFusion
        takes a file that is gone by then for one without rows.

        Raises:
            MirrorBusyError: It was deleted; `refresh` moves to the newest.
        """
        try:
            yield
        except Exception:
            with suppress(MirrorUnreachableError):  # the error tells that, too
                self._refuse_deleted()
            raise
        self._refuse_deleted()

    def _refuse_deleted(self) -> None:
        # Its manifest is deleted before its files are.
        if not self._is_seen and self.version not in self.versions():
            raise deleted_meanwhile(self._files.root)

    def changes(self, table: str, after: After = None, on_lost: OnLost = "raise") -> TableChanges:
        """Return what changed in a temporal table up to this state; see `HTAP.changes`.

        Raises:
            ChangesLostError: What changed since the position is not known. A position that is
                newer than this state is such a one: `refresh` first.
        """
        return consume.changes(self._table(table), after, self, on_lost)

    def diff(self, table: str, a: datetime, b: datetime) -> pa.Table:
        """Return what differs in a temporal table between two instants; see `HTAP.diff`."""
        return consume.diff(self._table(table), a, b, self)

    def past(self, table: Table) -> Past | None:
        """Return what is recorded of a temporal table's history in this state."""
        return past_of(self._manifest, table)

    def feed(self, table: Table) -> FeedState | None:
        """Return which state of a temporal table's history this is."""
        return read_feed(self._manifest, table, self._session)

    def instant_text(self, microseconds: int) -> str:
        """Write an instant in the mirror's SQL."""
        return instant_text(microseconds)

    def _table(self, name: str) -> Table:
        """Return a table by its name in the source, with the columns that it has now."""
        tables = [own for own in self._manifest.tables.values() if own.is_mirrored]
        for stored in tables:
            found = stored.as_mirrored()
            if name in {found.name, f"{stored.namespace}.{stored.relation}", stored.relation}:
                present = tuple(c for c in found.schema.columns if c.name not in stored.left)
                return replace(found, schema=replace(found.schema, columns=present))
        names = [stored.as_mirrored().name for stored in tables]
        raise SchemaError("it is not in the mirror", table=name, hint=nearest(name, names))

    def refresh(self) -> None:
        """Move to the newest state."""
        self._manifest = self._hold(None)
        self.store.learn(self._manifest)

    def close(self) -> None:
        """Release the state; safe to repeat."""
        self._pin.close()
        self._files.close()

    def _hold(self, wanted: int | None) -> Manifest:
        """Read a state, and pin it: a writer may delete it in between."""
        for _ in range(_TRIES):
            manifests = ManifestStore(self._files, RETAINED_MANIFESTS)
            found = manifests.newest() if wanted is None else _earlier(manifests, wanted)
            if found is None:
                raise _none(self._files.root)
            with ExitStack() as pin:
                is_seen = pin.enter_context(self._files.pin(found.version))
                # A pin that no writer sees keeps nothing: whoever reads looks afterwards.
                if not is_seen or found.version in manifests.versions():
                    self._pin.close()
                    self._pin = pin.pop_all()
                    self._is_seen = is_seen
                    return found
        raise deleted_meanwhile(self._files.root)


def _earlier(manifests: ManifestStore, version: int) -> Manifest | None:
    """Return a state that is still kept; None where there is no mirror."""
    try:
        return manifests.read(version)
    except MirrorDamagedError:
        there = manifests.versions()
        if version in there:
            raise
    if not there:
        return None
    raise MirrorError(
        f"the mirror does not hold version {version}", hint="read one that 'versions' names"
    )


def _none(place: Path | str | None) -> MirrorError:
    return MirrorError(f"there is no mirror at {str(place)!r}", hint="sync once, then read")
