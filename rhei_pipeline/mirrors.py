"""Which mirror a declaration asks for, opened; what it needs is imported once it is wanted."""

import importlib
from types import ModuleType
from typing import Protocol

from rhei_pipeline.declaration import DeltaSettings, MirrorSettings
from rhei_pipeline.errors import MissingExtraError
from rhei_pipeline.olap.duckdb import DuckDBMirror
from rhei_pipeline.olap.publishing import PublishedCopy
from rhei_pipeline.protocols import Mirror
from rhei_pipeline.settings import Settings


class OwnedMirror(Mirror, Protocol):
    """A mirror that this process owns."""

    #: Tells this mirror from all others.
    mirror_id: str
    #: Where it rests; `:memory:` where it ends with the process.
    path: str

    @property
    def owner(self) -> str | None:
        """Whose it is, as `ownership.Owner` writes it; None where that was never recorded."""

    def claim(self, owner: str, *, anew: bool) -> None:
        """Record whose it is; with `anew`, no position counts any more: tables are copied again."""


def open_mirror(settings: Settings) -> OwnedMirror:
    """Open the mirror, alone among all processes that write."""
    mirror = settings.mirror
    if mirror.kind == "duckdb":
        copy = mirror.published
        return DuckDBMirror(
            mirror.path,
            lock_timeout_seconds=mirror.lock_timeout_seconds,
            published=PublishedCopy(copy.path, copy.interval_seconds) if copy else None,
            memory_limit_bytes=mirror.memory_limit,
        )
    delta = _delta(mirror) if mirror.storage == "delta" else None
    opened: OwnedMirror = datafusion().DataFusionMirror(
        "memory" if mirror.in_memory else mirror.storage or "parquet",
        mirror.url or mirror.path,
        access=_access(mirror) if mirror.url else None,
        delta=delta,
        lock_timeout_seconds=mirror.lock_timeout_seconds,
        retained_manifests=mirror.retained_manifests,
        memory_limit_bytes=mirror.memory_limit,
    )
    return opened


def datafusion() -> ModuleType:
    """Import what a DataFusion mirror needs, now that it is wanted.

    Raises:
        MissingExtraError: DataFusion is not installed.
    """
    return _imported("rhei_pipeline.olap.datafusion", "datafusion")


def _access(mirror: MirrorSettings) -> object:
    store = mirror.object_store
    return _imported("rhei_pipeline.olap.object_files", "obstore").Access(
        endpoint=store.endpoint,
        region=store.region,
        allow_http=store.allow_http,
        secrets=store.secrets,
        timeout_seconds=store.timeout_seconds,
        retry_seconds=store.retry_seconds,
    )


def _delta(mirror: MirrorSettings) -> object:
    _imported("rhei_pipeline.olap.datafusion", "datafusion", "delta")
    tables = _imported("rhei_pipeline.olap.delta_tables", "deltalake", "delta")
    chosen = mirror.delta or DeltaSettings()
    return tables.DeltaTables(chosen.interval_seconds, chosen.retention_hours)


def _imported(module: str, package: str, extra: str = "datafusion") -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise MissingExtraError(
            f"this mirror needs the package {package!r}",
            hint=f"pip install 'rhei-pipeline[{extra}]'",
        ) from error
