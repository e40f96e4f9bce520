"""Sections of a declaration: the mirror, where it is stored, and what others read of it."""

import re
from pathlib import Path
from typing import Literal, Self

from pydantic import ByteSize, Field, SecretStr, model_validator

from rhei_pipeline.errors import SettingsError
from rhei_pipeline.settings.places import (
    IN_DIRECTORY,
    IN_DUCKDB,
    IN_STORE,
    LocalPath,
    MirrorPath,
    unfit,
)
from rhei_pipeline.settings.section import Section
from rhei_pipeline.settings.shards import beside, label

_MEMORY = ":memory:"
_OBJECT_URL = re.compile(r"(s3|gs):/+(.+)")


class ObjectStoreSettings(Section):
    """How an object store is reached; missing values are taken from the environment."""

    endpoint: str | None = Field(None, description="The URL of an S3-compatible store.")
    region: str | None = Field(None, description="The bucket's region.")
    allow_http: bool = Field(default=False, description="Allow an endpoint without TLS.")
    access_key_id: SecretStr | None = Field(None, description="S3: who asks.")
    secret_access_key: SecretStr | None = Field(None, description="S3: the secret access key.")
    session_token: SecretStr | None = Field(
        None, description="S3: the session token of temporary keys."
    )
    service_account_path: SecretStr | None = Field(
        None, description="GCS: the service account's key file."
    )
    timeout_seconds: float = Field(30.0, gt=0, description="How long one request may take.")
    retry_seconds: float = Field(60.0, ge=0, description="How long failed requests are retried.")

    @property
    def secrets(self) -> dict[str, str]:
        """Return the secrets that are given, by name."""
        names = ("access_key_id", "secret_access_key", "session_token", "service_account_path")
        found = {name: getattr(self, name) for name in names}
        return {name: value.get_secret_value() for name, value in found.items() if value}


class PublishedSettings(Section):
    """A copy of a DuckDB mirror for other processes to read."""

    path: LocalPath = Field(description="The file's path; each copy replaces the whole file.")
    interval_seconds: float = Field(
        60.0, ge=0, description="Minimum time between two copies; each copies the whole file."
    )


class DeltaSettings(Section):
    """Delta Lake tables for other engines."""

    interval_seconds: float = Field(
        300.0, ge=0, description="Minimum time between two publications while syncs run."
    )
    retention_hours: int = Field(
        1, ge=1, description="How long a table's former files are kept for readers."
    )
    deletion_vectors: bool = Field(
        default=False,
        description="Name removed rows in Delta's deletion vectors, which readers must know; else"
        " files with removed rows are written again.",
    )


class MirrorSettings(Section):
    """The analytical copy."""

    kind: Literal["duckdb", "datafusion"] = Field("duckdb", description="Which engine holds it.")
    storage: Literal["memory", "ipc", "parquet", "delta"] | None = Field(
        None,
        description="datafusion: how it is stored. memory: copied again at each start; ipc: "
        "Arrow files,"
        " mapped into memory; parquet: compressed files; delta: the same, and Delta Lake tables"
        " for other engines. Left out: parquet.",
    )
    path: MirrorPath = Field(
        Path(_MEMORY),
        description="duckdb: the file; datafusion: the directory. Created when missing;"
        " ':memory:' is copied again at each start. Parquet and delta can also "
        "be stored at s3://bucket/path or gs://bucket/path.",
    )
    lock_timeout_seconds: float = Field(
        30.0, ge=0, description="How long to wait while another process writes it."
    )
    retained_manifests: int = Field(
        3, ge=1, description="datafusion: how many committed versions stay readable."
    )

    memory_limit: ByteSize | None = Field(
        None,
        ge=2**26,
        description="The most memory that queries and syncs of it may take together, such as 2GB;"
        " what needs more spills to disk if possible, or fails. Left out: most of the machine's "
        "memory.",
    )
    published: PublishedSettings | None = Field(
        None, description="duckdb: keep a copy that notebooks and BI tools open read-only."
    )
    delta: DeltaSettings | None = Field(
        None,
        description="storage delta: when tables are published, and how long old files are kept.",
    )
    object_store: ObjectStoreSettings = Field(
        ObjectStoreSettings(), description="How an object store is reached."
    )

    @model_validator(mode="after")
    def _fitting_storage(self) -> Self:
        if self.url and (self.kind != "datafusion" or self.storage in ("memory", "ipc")):
            raise ValueError(
                "an object store holds a 'datafusion' mirror with storage 'parquet' or 'delta'"
            )
        if self.delta and self.storage != "delta":
            raise ValueError("'delta' is for the storage 'delta'")
        if self.kind == "duckdb" and self.storage is not None:
            raise ValueError("'storage' is for the kind 'datafusion'")
        if self.published and (self.kind == "datafusion" or self.in_memory):
            raise ValueError("'published' is for a DuckDB file; others are read as they are")
        if self.published and self.published.path.resolve() == self.path.resolve():
            raise ValueError("'published' needs a path of its own, beside the mirror's")
        if "path" not in self.model_fields_set and self.storage != "memory":
            raise ValueError("'path' is missing")
        in_memory = str(self.path) == _MEMORY
        if self.kind == "datafusion" and in_memory and self.storage not in (None, "memory"):
            raise ValueError(f"storage {self.storage!r} needs a directory as its 'path'")
        return self

    @model_validator(mode="after")
    def _fitting_paths(self) -> Self:
        if self.unfit_path:
            raise ValueError(self.unfit_path)
        return self

    def anchored(self, directory: Path) -> Self:
        """Return the same settings with relative paths resolved against a directory.

        Raises:
            SettingsError: The mirror's engine takes no path in it.
        """
        update: dict[str, object] = {}
        if not (self.in_memory or self.url):
            update["path"] = directory / self.path
        if self.published:
            place = {"path": directory / self.published.path}
            update["published"] = self.published.model_copy(update=place)
        anchored = self.model_copy(update=update)
        if anchored.unfit_path:
            raise SettingsError(anchored.unfit_path)
        return anchored

    @property
    def unfit_path(self) -> str | None:
        """Why its engine takes none of its paths; None if it takes them."""
        if self.url:
            return unfit("mirror.path", self.url, IN_STORE)
        if self.in_memory:
            return None
        signs = IN_DUCKDB if self.kind == "duckdb" else IN_DIRECTORY
        found = unfit("mirror.path", self.path.absolute(), signs)
        if self.published and not found:
            return unfit("mirror.published.path", self.published.path.absolute(), signs)
        return found

    def of_shard(self, shard: int) -> Self:
        """Return the same settings with places that are one shard's own."""
        is_file = self.kind == "duckdb"
        own = beside(self.path, shard) if is_file else self.path / label(shard)
        update: dict[str, object] = {"path": own}
        if self.published:
            place = {"path": beside(self.published.path, shard)}
            update["published"] = self.published.model_copy(update=place)
        return self.model_copy(update=update)

    @property
    def url(self) -> str | None:
        """The URL in an object store; None if the path is a local one."""
        # A path folds the two slashes behind the scheme into one.
        found = _OBJECT_URL.fullmatch(self.path.as_posix())
        return f"{found[1]}://{found[2]}" if found else None

    @property
    def uri(self) -> str:
        """Where it is stored, as a URI."""
        return self.url or self.path.resolve().as_uri()

    @property
    def is_of_files(self) -> bool:
        """Whether it is made of files that several processes can write."""
        return self.kind == "datafusion" and not self.in_memory

    @property
    def publishes(self) -> bool:
        """Whether others read what is made of the mirror: a copy of it, or Delta tables."""
        return self.published is not None or self.storage == "delta"

    @property
    def in_memory(self) -> bool:
        """Whether the mirror is in memory only."""
        return self.storage == "memory" or str(self.path) == _MEMORY
