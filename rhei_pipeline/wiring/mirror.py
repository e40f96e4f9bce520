"""Opens the mirror that the settings declare; its engine is imported only then."""

from typing import TYPE_CHECKING, Protocol

from rhei_pipeline.errors import needs_extra
from rhei_pipeline.mirrors.duckdb.mirror import DuckDBMirror
from rhei_pipeline.mirrors.duckdb.published_copy import PublishedCopy
from rhei_pipeline.protocols import Mirror
from rhei_pipeline.settings.sections import DeltaSettings, MirrorSettings

if TYPE_CHECKING:
    from rhei_pipeline.mirrors.datafusion.delta import DeltaTables
    from rhei_pipeline.mirrors.datafusion.object_store import StoreAccess

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

    def claim(self, owner: str, *, forget_positions: bool) -> None:
        """Record whose it is; with `forget_positions`, every table is copied again."""


def open_mirror(mirror: MirrorSettings) -> OwnedMirror:
    """Open a mirror, alone among all processes that write; whoever opened it closes it."""
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
        access=_access(mirror) if mirror.url else None,
        delta=_delta(mirror) if mirror.storage == "delta" else None,
        lock_timeout_seconds=mirror.lock_timeout_seconds,
        retained_manifests=mirror.retained_manifests,
        memory_limit_bytes=mirror.memory_limit,
    )


def _access(mirror: MirrorSettings) -> "StoreAccess":
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
    return DeltaTables(chosen.interval_seconds, chosen.retention_hours)
