"""Opens the mirror that the settings declare; its engine is imported only then."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from rhei_pipeline.errors import MirrorError, needs_extra
from rhei_pipeline.mirrors.duckdb.foreign_tables import read_contents
from rhei_pipeline.mirrors.duckdb.mirror import DuckDBMirror
from rhei_pipeline.mirrors.duckdb.published_copy import PublishedCopy, refuse_copy_of_others
from rhei_pipeline.mirrors.locking import lock_of_directory, lock_of_file
from rhei_pipeline.model.forking import note_opened
from rhei_pipeline.model.progress import Ledger
from rhei_pipeline.model.query_limits import NO_LIMITS, AnswerLimits
from rhei_pipeline.model.schema import Table
from rhei_pipeline.model.streaming import Begun
from rhei_pipeline.protocols import Mirror
from rhei_pipeline.settings.mirror import DeltaSettings, MirrorSettings

if TYPE_CHECKING:
    from rhei_pipeline.mirrors.datafusion.delta import DeltaTables
    from rhei_pipeline.mirrors.datafusion.object_store import StoreAccess
    from rhei_pipeline.mirrors.datafusion.reader import MirrorReader

_THIS = "this mirror"


class OwnedMirror(Mirror, Protocol):
    """A mirror that this process owns."""

    #: Tells this mirror from all others.
    mirror_id: str
    #: Where it rests; `:memory:` where it ends with the process.
    path: str

    @property
    def owner(self) -> str | None:
        """Whose it is, as `ownership.Owner` writes it; None where that was never recorded."""

    def claim(self, owner: str, *, new_id: str | None = None) -> None:
        """Record whose it is; under a new id, it is another reader, and every table is copied."""


def open_mirror(mirror: MirrorSettings) -> OwnedMirror:
    """Open a mirror, alone among all processes that write; whoever opened it closes it."""
    note_opened()
    if mirror.kind == "duckdb":
        copy = mirror.published
        return DuckDBMirror(
            mirror.path,
            lock_timeout_seconds=mirror.lock_timeout_seconds,
            published=PublishedCopy(copy.path, copy.interval_seconds) if copy else None,
            memory_limit_bytes=mirror.memory_limit,
        )
    with needs_extra("delta" if mirror.storage == "delta" else "datafusion", _THIS):
        from rhei_pipeline.mirrors.datafusion.mirror import DataFusionMirror
    return DataFusionMirror(
        "memory" if mirror.in_memory else mirror.storage or "parquet",
        mirror.url or mirror.path,
        access=store_access(mirror) if mirror.url else None,
        delta=_delta(mirror) if mirror.storage == "delta" else None,
        lock_timeout_seconds=mirror.lock_timeout_seconds,
        retained_manifests=mirror.retained_manifests,
        memory_limit_bytes=mirror.memory_limit,
    )


def is_made(mirror: MirrorSettings) -> bool:
    """Return whether a mirror is at its path, or something that cannot be told from one.

    Nothing is changed there: an empty directory, or another program's file, is left as it is.
    """
    if mirror.in_memory or mirror.url or not mirror.path.exists():
        return False
    if mirror.kind == "duckdb":
        contents = read_contents(mirror.path)
        return contents is None or contents.is_mirror
    with needs_extra("datafusion", _THIS):
        from rhei_pipeline.mirrors.datafusion.manifest_store import ManifestStore
        from rhei_pipeline.mirrors.datafusion.storages import open_files
    return not mirror.path.is_dir() or ManifestStore(open_files("", mirror.path), 1).is_begun


class ReadMirror(Protocol):
    """One committed state of a mirror that this process only reads."""

    @property
    def mirror_id(self) -> str:
        """The mirror whose state it is."""

    def query(
        self,
        sql: str,
        params: Sequence[Any] | Mapping[str, Any] = (),
        begun: Begun | None = None,
        limits: AnswerLimits = NO_LIMITS,
    ) -> pa.Table:
        """Run one read-only statement, in the mirror's SQL."""

    def tables(self) -> dict[str, Table]:
        """Return the tables of the mirror, by quoted name."""

    def ledger(self) -> Ledger:
        """Return what the state has recorded."""

    def dead_letters(self, table: str | None = None) -> pa.Table:
        """Return open dead letters: table_name, key, column_name, reason, captured_at."""

    def close(self) -> None:
        """Release the state; safe to repeat."""


def read_mirror(mirror: MirrorSettings, path: Path | None = None) -> ReadMirror:
    """Open a mirror's files for reading alone; whoever opened them closes them.

    Args:
        mirror: What is declared.
        path: A copy of a DuckDB file, to be read instead.

    Raises:
        MirrorBusyError: A process has the DuckDB file open for writing.
        MirrorError: There is no mirror yet, or it is in memory; or the copy is another mirror's.
    """
    note_opened()
    refuse_unread(mirror, path)
    if mirror.kind == "duckdb":
        file, limit = path or mirror.path, mirror.memory_limit
        with ExitStack() as opened:
            read = DuckDBMirror(
                file, lock_timeout_seconds=0, memory_limit_bytes=limit, read_only=True
            )
            opened.callback(read.close)
            if path is not None:
                refuse_copy_of_others(mirror.path, path, read.mirror_id)
            opened.pop_all()
        return read
    return read_files(mirror)


def read_files(mirror: MirrorSettings) -> "MirrorReader":
    """Open a mirror of files at its newest state; whoever opened it closes it."""
    with needs_extra("datafusion", _THIS):
        from rhei_pipeline.mirrors.datafusion.reader import MirrorReader
    access = store_access(mirror) if mirror.url else None
    return MirrorReader(mirror.url or mirror.path, access=access)


def refuse_unread(mirror: MirrorSettings, path: Path | None = None) -> None:
    """Refuse a mirror that no process but its own can read.

    Raises:
        MirrorError: It is in memory, or its DuckDB file is not there.
    """
    if mirror.in_memory:
        raise MirrorError(
            "a mirror in memory is read by the process that made it alone",
            hint="give mirror.path a file or a directory",
        )
    file = path or mirror.path
    if mirror.kind == "duckdb" and not file.exists():
        raise MirrorError(f"there is no mirror at {str(file)!r}", hint="sync once, then read")


def lock_file(mirror: MirrorSettings) -> Path | None:
    """Return the file whose lock the writing process holds.

    None where no other process can have the mirror: in memory; or need not wait: in a store.
    """
    if mirror.in_memory or mirror.url:
        return None
    return lock_of_file(mirror.path) if mirror.kind == "duckdb" else lock_of_directory(mirror.path)


def store_access(mirror: MirrorSettings) -> "StoreAccess":
    """Return how a mirror's object store is reached."""
    with needs_extra("datafusion", _THIS):
        from rhei_pipeline.mirrors.datafusion.object_store import StoreAccess
    store = mirror.object_store
    return StoreAccess(
        endpoint=store.endpoint,
        region=store.region,
        allow_http=store.allow_http,
        secrets=store.secrets,
        timeout_seconds=store.timeout_seconds,
        retry_seconds=store.retry_seconds,
    )


def _delta(mirror: MirrorSettings) -> "DeltaTables":
    with needs_extra("delta", _THIS):
        from rhei_pipeline.mirrors.datafusion.delta import DeltaTables
    chosen = mirror.delta or DeltaSettings()
    return DeltaTables(
        chosen.interval_seconds,
        chosen.retention_hours,
        deletion_vectors=chosen.deletion_vectors,
    )
