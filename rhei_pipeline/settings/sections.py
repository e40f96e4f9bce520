"""The sections of a declaration: source, capture, mirror, tables, and how they are processed."""

import re
from datetime import date
from pathlib import Path
from typing import Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

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
#: A cron expression that ticks once a day at most.
_WINDOW = re.compile(r"[0-5]?\d ([01]?\d|2[0-3])( [\d*/,A-Za-z-]+){3}")
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
        description="If dsn leads to a pooler: the address of the server itself. Capture uses "
        "it, and can then stream the log and copy on several connections.",
    )
    pool_size: int = Field(4, ge=1, description="How many connections to keep for queries.")
    statement_timeout_seconds: float = Field(
        300.0, ge=0, description="The server cancels an application's statement after this time."
    )
    connect_timeout_seconds: float = Field(
        10.0, gt=0, description="How long to wait for a connection to the server."
    )


class BufferSettings(_Section):
    """Where changes are stored between the source and the mirror."""

    kind: Literal["rocksdb"] = Field("rocksdb", description="What kind of buffer it is.")
    path: Path = Field(description="The directory, created when missing; one process opens it.")
    max_bytes: int | None = Field(
        10 * 1024**3, ge=1, description="The most it holds; null: as much as the disk allows."
    )
    max_age_seconds: float | None = Field(
        None,
        gt=0,
        description="While the mirror is unavailable, changes that wait longer stop the draining.",
    )


class CaptureSettings(_Section):
    """How changes are captured."""

    method: Literal["trigger", "polling", "logical"] | None = Field(
        None,
        description="trigger: triggers in the source log the keys that are touched. logical: the"
        " server's own log is read (PostgreSQL). polling: the source is only read, by a "
        "timestamp column of its rows. Left out: trigger for SQLite, logical for PostgreSQL.",
    )
    streaming: bool = Field(
        default=False,
        description="logical: keep a connection open on which the server sends each commit, "
        "instead of reading the slot in every cycle.",
    )
    publication: str | None = Field(
        None,
        min_length=1,
        description="logical: a publication that somebody else maintains, if the user may create "
        "none. Left out: the mirror creates its own.",
    )
    buffer: BufferSettings | None = Field(
        None, description="Store changes in a durable buffer before they reach the mirror."
    )

    def anchored(self, directory: Path) -> Self:
        """Return the same settings with relative paths resolved against a directory."""
        if self.buffer is None:
            return self
        moved = self.buffer.model_copy(update={"path": directory / self.buffer.path})
        return self.model_copy(update={"buffer": moved})


class PollingSettings(_Section):
    """How a table is polled."""

    updated_at: str = Field(
        "updated_at", description="The timestamp column that every write updates."
    )
    deletes: str = Field(
        "disabled",
        description="disabled; soft_delete:<column>, which is not null once a row is deleted; or"
        " reconcile: compare the whole table at an interval.",
    )
    clock: Clock = Field(
        Clock.APPLICATION,
        description="database: the source's own clock sets the timestamp of every write, so no "
        "change is missed. application: another clock does, so the whole table is compared at an "
        "interval.",
    )
    reconcile_seconds: float = Field(
        3600.0, ge=0, description="How often a whole table is compared; 0: at every change."
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
        """The options in the form that capture uses."""
        policy, deleted_at = parse_deletes(self.deletes)
        return PollOptions(self.updated_at, policy, deleted_at, self.clock, self.reconcile_seconds)


class ObjectStoreSettings(_Section):
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


class PublishedSettings(_Section):
    """A copy of a DuckDB mirror for other processes to read."""

    path: Path = Field(description="The file's path; each copy replaces the whole file.")
    interval_seconds: float = Field(
        60.0, ge=0, description="Minimum time between two copies; each copies the whole file."
    )


class DeltaSettings(_Section):
    """Delta Lake tables for other engines."""

    interval_seconds: float = Field(
        300.0, ge=0, description="Minimum time between two publications while syncs run."
    )
    retention_hours: int = Field(
        1, ge=1, description="How long a table's former files are kept for readers."
    )


class MirrorSettings(_Section):
    """The analytical copy."""

    kind: Literal["duckdb", "datafusion"] = Field("duckdb", description="Which engine holds it.")
    storage: Literal["memory", "ipc", "parquet", "delta"] | None = Field(
        None,
        description="datafusion: how it is stored. memory: copied again at each start; ipc: "
        "Arrow files,"
        " mapped into memory; parquet: compressed files; delta: the same, and Delta Lake tables"
        " for other engines. Left out: parquet.",
    )
    path: Path = Field(
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

    def anchored(self, directory: Path) -> Self:
        """Return the same settings with relative paths resolved against a directory."""
        update: dict[str, object] = {}
        if not (self.in_memory or self.url):
            update["path"] = directory / self.path
        if self.published:
            place = {"path": directory / self.published.path}
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
    def in_memory(self) -> bool:
        """Whether the mirror is in memory only."""
        return self.storage == "memory" or str(self.path) == _MEMORY


class TableSettings(_Section):
    """One table to mirror."""

    name: str = Field(min_length=1, description="Its name in the source.")
    mode: Mode | None = Field(None, description="destructive or temporal; left out: the default.")
    mirror_name: str | None = Field(
        None,
        min_length=1,
        description="Its name in the mirror, without a schema. Left out: as in the source.",
    )
    columns: list[str] | None = Field(
        None, min_length=1, description="Mirror these columns only; the key must be among them."
    )
    primary_key: list[str] | None = Field(
        None, min_length=1, description="Use this unique key; left out: the declared one."
    )
    types: dict[str, str] | None = Field(
        None, description="Types that override the declared ones, by column."
    )
    polling: PollingSettings = Field(
        PollingSettings(), description="How it is polled, with the capture method polling."
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
    """A local database for writes beside a read-only source."""

    path: Path = Field(description="The SQLite file, created when missing.")


class SyncSettings(_Section):
    """How a sync works."""

    batch_rows: int = Field(50_000, ge=1, description="About how many rows are in memory at once.")
    interval_seconds: float = Field(1.0, gt=0, description="Pause between background syncs.")
    prune: bool = Field(
        default=True, description="Delete changes from the source once no mirror needs them."
    )


class QuerySettings(_Section):
    """How queries are answered."""

    when_stale: Literal["sync", "wait", "oltp"] = Field(
        "sync",
        description="When the mirror is older than a query allows. sync: sync "
        "first. wait: wait for the background sync. oltp: query the source.",
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
    query_rows: int | None = Field(
        None,
        ge=1,
        description="The most rows that an answer may have, also a streamed one; left out: any"
        " number.",
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
    """Where the registry of schemas is stored."""

    path: Path = Field(Path("data/registry.json"), description="The JSON file.")


class ScheduleSettings(_Section):
    """Schedules and limits of what runs automatically, under an orchestrator."""

    mode: Literal["session", "run"] = Field(
        "session",
        description="session: a run syncs on while changes come, and hands over to the next. run:"
        " a run for each batch of changes, which ends when it is applied.",
    )
    session_seconds: float = Field(
        7200.0,
        gt=0,
        description="A sync session that lasts as long hands over to the next one. Without a next"
        " one it ends after twice this time.",
    )
    idle_seconds: float = Field(
        300.0, gt=0, description="A sync session ends after this time without changes."
    )
    report_seconds: float = Field(
        60.0,
        gt=0,
        description="How often a session reports on tables that changed, two of them at once.",
    )
    max_lag_seconds: float = Field(
        60.0,
        gt=0,
        description="Lag above this is a warning of the lag check, ten times it an error.",
    )
    catalog_seconds: float = Field(
        5.0,
        gt=0,
        description="How long the source may take to show its tables when definitions are loaded."
        " After that they show the schemas that the mirror was last built with.",
    )
    webserver: str | None = Field(
        None,
        description="Dagster's webserver, such as http://127.0.0.1:3000: it is asked to reload the"
        " code location when a table appears in the source. Left out: a sensor says so.",
    )
    time_zone: str = Field(
        "UTC", description="The time zone in which days end and schedules tick, such as Asia/Tokyo."
    )
    snapshots_from: date = Field(
        date(2024, 1, 1), description="The first day of the snapshots, in the time zone."
    )
    snapshot_window: str = Field(
        "0 0 * * *",
        description="When a snapshot's window ends and the next begins, as a cron expression of a"
        " day or longer: '0 0 * * *' for days, '0 0 * * 1' for weeks from Monday, '0 6 1 * *' for"
        " months from the first at 06:00.",
    )
    snapshot_rebuild: int = Field(
        0, ge=0, description="How many of the latest windows are taken again each night."
    )
    snapshot_files: Path | None = Field(
        None,
        description="A directory to which each snapshot is also written, as"
        " <table>/<window>.parquet. Left out: snapshots are in the mirror only.",
    )
    maintenance_hour: int = Field(
        3,
        ge=0,
        le=23,
        description="The hour, in the time zone, at which a mirror's small files are merged.",
    )
    verify_hour: int | None = Field(
        4,
        ge=0,
        le=23,
        description="The hour, in UTC, at which every row of source and mirror is compared; null:"
        " only when asked for.",
    )
    keep_runs_days: int = Field(
        14,
        ge=1,
        description="How long finished sync runs are kept, with what they reported and logged; the"
        " plots show as much.",
    )
    snapshot_hour: int = Field(
        1,
        ge=0,
        le=23,
        description="The hour, in the time zone, at which the snapshot of the window that has"
        " ended is taken.",
    )

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise ValueError(
                f"unknown time zone {name!r}: use a name such as 'Europe/Berlin' or 'UTC'"
            ) from error
        return name

    @field_validator("snapshot_window")
    @classmethod
    def _whole_days(cls, window: str) -> str:
        if not _WINDOW.fullmatch(window):
            raise ValueError(
                f"{window!r} is no window of a day or longer: give minute and hour as numbers and"
                " three more fields, such as '0 0 * * *'; of other instants, ask 'rhei as-of'"
            )
        return window

    def anchored(self, directory: Path) -> Self:
        """Return the same section with a relative directory resolved against another."""
        if self.snapshot_files is None:
            return self
        return self.model_copy(update={"snapshot_files": directory / self.snapshot_files})
