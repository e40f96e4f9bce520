"""The sections of a declaration: source, capture, mirror, tables, and how they are worked on."""

import re
from datetime import date
from pathlib import Path
from typing import Literal, Self

from pydantic import (
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)

from rhei_pipeline.errors import SchemaError, SettingsError
from rhei_pipeline.model.polling import Clock, PollOptions, parse_deletes
from rhei_pipeline.model.schema import Mode, parse_type

_MEMORY = ":memory:"
_OBJECT_URL = re.compile(r"(s3|gs):/+(.+)")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SqliteSettings(_Section):
    """An SQLite file."""

    kind: Literal["sqlite"] = Field("sqlite", description="What kind of database it is.")
    path: Path = Field(description="The SQLite file. It must exist.")
    busy_timeout_seconds: float = Field(
        10.0, gt=0, description="How long to wait while another process holds the write lock."
    )
    read_pool: int = Field(4, ge=1, description="How many idle reading connections to keep.")


class PostgresSettings(_Section):
    """A PostgreSQL database."""

    kind: Literal["postgres"] = Field(description="What kind of database it is.")
    dsn: SecretStr = Field(
        description="libpq's connection string, such as postgresql://user@host/db?sslmode=require."
    )
    direct_dsn: SecretStr | None = Field(
        None,
        description="Where dsn leads to a pooler: the server itself, for capture, which then may"
        " stream the log and copy on several connections.",
    )
    pool_size: int = Field(4, ge=1, description="How many connections to keep for queries.")
    statement_timeout_seconds: float = Field(
        300.0, ge=0, description="The server ends an application's statement after so long."
    )
    connect_timeout_seconds: float = Field(
        10.0, gt=0, description="How long to try to reach the server."
    )


class BufferSettings(_Section):
    """Where changes rest between the source and the mirror."""

    kind: Literal["rocksdb"] = Field("rocksdb", description="What kind of buffer it is.")
    path: Path = Field(description="The directory, created when missing; one process opens it.")
    max_bytes: int | None = Field(
        10 * 1024**3, ge=1, description="The most it holds; null: as much as the disk allows."
    )
    max_age_seconds: float | None = Field(
        None, gt=0, description="Without a mirror, changes that wait for longer stop the bridging."
    )


class CaptureSettings(_Section):
    """How changes are learned of."""

    method: Literal["trigger", "polling", "logical"] | None = Field(
        None,
        description="trigger: triggers in the source log the keys that are touched. logical: the"
        " server's own log is read (PostgreSQL). polling: the source is only read, by its rows'"
        " own timestamps. Left out: trigger for SQLite, logical for PostgreSQL.",
    )
    streaming: bool = Field(
        default=False,
        description="logical: keep a connection open on which the server sends what is committed,"
        " instead of asking it in every cycle.",
    )
    publication: str | None = Field(
        None,
        min_length=1,
        description="logical: a publication that somebody else keeps, where the user may make none."
        " Left out: the mirror keeps one of its own.",
    )
    buffer: BufferSettings | None = Field(
        None, description="Take changes into a log of our own before the mirror gets them."
    )

    def anchored(self, directory: Path) -> Self:
        """Return the same with relative paths taken from a directory."""
        if self.buffer is None:
            return self
        moved = self.buffer.model_copy(update={"path": directory / self.buffer.path})
        return self.model_copy(update={"buffer": moved})


class PollingSettings(_Section):
    """How a table is polled."""

    updated_at: str = Field("updated_at", description="The column that every write stamps.")
    deletes: str = Field(
        "disabled",
        description="disabled; soft_delete:<column>, which is not null once a row is deleted; or"
        " reconcile: compare the table whole at an interval.",
    )
    clock: Clock = Field(
        Clock.APPLICATION,
        description="database: the source's own clock stamps every write, so no change can go by"
        " unseen. application: another one does, and the table is compared whole at an interval.",
    )
    reconcile_seconds: float = Field(
        3600.0, ge=0, description="How often a table is compared whole; 0: at every change."
    )

    @field_validator("deletes")
    @classmethod
    def _known_policy(cls, deletes: str) -> str:
        try:
            parse_deletes(deletes)
        except SettingsError as error:
            raise ValueError(str(error)) from error
        return deletes

    @property
    def options(self) -> PollOptions:
        """The same, as capture takes it."""
        policy, deleted_at = parse_deletes(self.deletes)
        return PollOptions(self.updated_at, policy, deleted_at, self.clock, self.reconcile_seconds)


class ObjectStoreSettings(_Section):
    """How an object store is reached; what is left out is taken from the environment."""

    endpoint: str | None = Field(None, description="The URL of a store that speaks S3's language.")
    region: str | None = Field(None, description="The bucket's region.")
    allow_http: bool = Field(default=False, description="Allow an endpoint without TLS.")
    access_key_id: SecretStr | None = Field(None, description="S3: who asks.")
    secret_access_key: SecretStr | None = Field(None, description="S3: what proves it.")
    session_token: SecretStr | None = Field(None, description="S3: for keys lent for a while.")
    service_account_path: SecretStr | None = Field(None, description="GCS: the key file.")
    timeout_seconds: float = Field(30.0, gt=0, description="How long one request may take.")
    retry_seconds: float = Field(60.0, ge=0, description="How long requests are tried again.")

    @property
    def secrets(self) -> dict[str, str]:
        """Return the secrets that are given, by name."""
        names = ("access_key_id", "secret_access_key", "session_token", "service_account_path")
        found = {name: getattr(self, name) for name in names}
        return {name: value.get_secret_value() for name, value in found.items() if value}


class PublishedSettings(_Section):
    """A copy of a DuckDB mirror for other processes to read."""

    path: Path = Field(description="Where it stands; it is replaced whole.")
    interval_seconds: float = Field(
        60.0, ge=0, description="The least time between two copies, each of the whole file."
    )


class DeltaSettings(_Section):
    """Delta Lake tables for engines that are not ours."""

    interval_seconds: float = Field(
        300.0, ge=0, description="The least time between two publications while syncs go on."
    )
    retention_hours: int = Field(
        1, ge=1, description="How long a table's former files stay for whoever reads them."
    )


class MirrorSettings(_Section):
    """The analytical copy."""

    kind: Literal["duckdb", "datafusion"] = Field("duckdb", description="Which engine reads it.")
    storage: Literal["memory", "ipc", "parquet", "delta"] | None = Field(
        None,
        description="datafusion: how it rests. memory: copied anew at each start; ipc: Arrow files,"
        " mapped into memory; parquet: compressed files; delta: the same, and Delta Lake tables"
        " for other engines. Left out: parquet.",
    )
    path: Path = Field(
        Path(_MEMORY),
        description="duckdb: the file; datafusion: the directory. Created when missing;"
        " ':memory:' is copied anew at each start. Parquet and delta also rest at"
        " s3://bucket/place or gs://bucket/place.",
    )
    lock_timeout_seconds: float = Field(
        30.0, ge=0, description="How long to wait while another process writes it."
    )
    retained_manifests: int = Field(
        3, ge=1, description="datafusion: how many committed states stay readable."
    )

    memory_limit: ByteSize | None = Field(
        None,
        ge=2**26,
        description="The most memory that queries and syncs of it may take together, such as 2GB;"
        " what needs more goes to disk where that helps, or fails. Left out: most of the machine.",
    )
    published: PublishedSettings | None = Field(
        None, description="duckdb: keep a copy that notebooks and BI tools open read-only."
    )
    delta: DeltaSettings | None = Field(
        None, description="storage delta: when tables are published, and kept how long."
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

    def anchored(self, directory: Path) -> Self:
        """Return the same with relative paths taken from a directory."""
        update: dict[str, object] = {}
        if not (self.in_memory or self.url):
            update["path"] = directory / self.path
        if self.published:
            place = {"path": directory / self.published.path}
            update["published"] = self.published.model_copy(update=place)
        return self.model_copy(update=update)

    @property
    def url(self) -> str | None:
        """The place in an object store; None where the path is one of files."""
        # A path folds the two slashes behind the scheme into one.
        found = _OBJECT_URL.fullmatch(self.path.as_posix())
        return f"{found[1]}://{found[2]}" if found else None

    @property
    def uri(self) -> str:
        """Where it rests, as a URI."""
        return self.url or self.path.resolve().as_uri()

    @property
    def in_memory(self) -> bool:
        """Whether it ends with the process."""
        return self.storage == "memory" or str(self.path) == _MEMORY


class TableSettings(_Section):
    """One table to mirror."""

    name: str = Field(min_length=1, description="Its name in the source.")
    mode: Mode | None = Field(None, description="destructive or temporal; left out: the default.")
    mirror_name: str | None = Field(
        None,
        min_length=1,
        description="Its own name in the mirror, without a schema; left out: as in the source.",
    )
    columns: list[str] | None = Field(
        None, min_length=1, description="Mirror these columns only; the key must be among them."
    )
    primary_key: list[str] | None = Field(
        None, min_length=1, description="Use this unique key; left out: the declared one."
    )
    types: dict[str, str] | None = Field(
        None, description="Types that stand above the declared ones, by column."
    )
    polling: PollingSettings = Field(
        PollingSettings(), description="How it is polled, where capture polls."
    )

    @field_validator("types")
    @classmethod
    def _known_types(cls, types: dict[str, str] | None) -> dict[str, str] | None:
        for name in (types or {}).values():
            try:
                parse_type(name)
            except SchemaError as error:
                raise ValueError(str(error)) from error
        return types


class LocalSettings(_Section):
    """A database of your own beside a source that is only read."""

    path: Path = Field(description="The SQLite file, created when missing.")


class SyncSettings(_Section):
    """How a sync goes about its work."""

    batch_rows: int = Field(50_000, ge=1, description="About how many rows are in memory at once.")
    interval_seconds: float = Field(1.0, gt=0, description="Pause between background syncs.")
    prune: bool = Field(default=True, description="Let the source forget changes no mirror needs.")


class QuerySettings(_Section):
    """How queries are answered."""

    when_stale: Literal["sync", "wait", "oltp"] = Field(
        "sync",
        description="When the mirror is older than a query allows. sync: sync first."
        " wait: let the background sync come first. oltp: ask the source.",
    )
    wait_seconds: float = Field(5.0, ge=0, description="How long 'wait' waits before it syncs.")
    query_seconds: float = Field(
        300.0,
        gt=0,
        description="The longest that a query may take, whichever side answers it; of a streamed"
        " one until its last batch is taken.",
    )
    query_bytes: ByteSize = Field(
        ByteSize(2**30),
        ge=2**20,
        description="The most that an answer may take while it is held whole, such as 512MiB; a"
        " single value of a SQLite source a quarter of it. A streamed answer may be of any size.",
    )
    at_once: int = Field(
        64,
        ge=1,
        description="How many long queries run at once, and beside them how many reads of single"
        " rows; more wait for their turn.",
    )
    turn_seconds: float = Field(
        30.0, ge=0, description="How long a query waits for its turn before it is refused."
    )
    functions: list[str] = Field(
        [],
        description="PostgreSQL's functions that queries may call though they are VOLATILE, as"
        " 'name' (in public) or 'schema.name'.",
    )


class RegistrySettings(_Section):
    """Where the schemas that the mirror was built with are kept."""

    path: Path = Field(Path("data/registry.json"), description="The JSON file.")


class ScheduleSettings(_Section):
    """When things happen by themselves, under an orchestrator."""

    session_seconds: float = Field(600.0, gt=0, description="Longest length of a sync session.")
    idle_seconds: float = Field(
        60.0, gt=0, description="A sync session without changes for so long ends."
    )
    report_seconds: float = Field(
        15.0, gt=0, description="How often a session reports on each changed table."
    )
    max_lag_seconds: float = Field(60.0, gt=0, description="Lag above this fails the lag check.")
    snapshots_from: date = Field(
        date(2024, 1, 1), description="The first day of the daily snapshots, in UTC."
    )
    maintenance_hour: int = Field(
        3, ge=0, le=23, description="The hour, in UTC, at which a mirror's files are folded."
    )
    snapshot_hour: int = Field(
        1, ge=0, le=23, description="The hour, in UTC, at which the day before is snapshotted."
    )
