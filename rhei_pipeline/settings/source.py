"""Sections of a declaration: the source, how changes are captured, and how long they are kept."""

from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, SecretStr, field_validator

from rhei_pipeline.errors import SettingsError
from rhei_pipeline.model.bounds import LONGEST_TIMEOUT_SECONDS
from rhei_pipeline.model.polling import Clock, PollOptions, parse_deletes
from rhei_pipeline.settings.places import LocalPath
from rhei_pipeline.settings.section import Section
from rhei_pipeline.settings.shards import label

#: Ways to capture each kind of source; the first one is taken where none is declared.
METHODS: dict[str, tuple[str, ...]] = {
    "sqlite": ("trigger", "polling"),
    "postgres": ("logical", "polling", "trigger"),
    "log": ("append",),
}


class SqliteSettings(Section):
    """An SQLite file."""

    kind: Literal["sqlite"] = Field("sqlite", description="What kind of database it is.")
    path: LocalPath = Field(description="The SQLite file.")
    create: bool = Field(
        default=False,
        description="Create the file, empty, if it is missing and nothing was mirrored from it"
        " yet. Left out: a missing file is an error.",
    )
    busy_timeout_seconds: float = Field(
        10.0,
        gt=0,
        le=LONGEST_TIMEOUT_SECONDS,
        description="How long to wait while another process holds the write lock.",
    )
    read_pool: int = Field(4, ge=1, description="How many idle reading connections to keep.")

    #: The SQL in which statements for it are written.
    dialect: ClassVar[str] = "sqlite"


class LogSettings(Section):
    """A log to which an application appends its own events, without a database."""

    kind: Literal["log"] = Field(description="What kind of source it is.")
    path: LocalPath = Field(
        description="The log's directory, created when missing; one process opens it."
    )

    #: The SQL in which conditions on its tables are written: it runs no statements itself.
    dialect: ClassVar[str] = "sqlite"


class PostgresSettings(Section):
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
        300.0,
        ge=0,
        le=LONGEST_TIMEOUT_SECONDS,
        description="The server cancels an application's statement after this time.",
    )
    connect_timeout_seconds: float = Field(
        10.0,
        gt=0,
        le=LONGEST_TIMEOUT_SECONDS,
        description="How long to wait for a connection to the server.",
    )

    #: The SQL in which statements for it are written.
    dialect: ClassVar[str] = "postgres"


class BufferSettings(Section):
    """Where changes are stored between the source and the mirror."""

    kind: Literal["rocksdb"] = Field("rocksdb", description="What kind of buffer it is.")
    path: LocalPath = Field(
        description="The directory, created when missing; one process opens it."
    )
    max_bytes: int | None = Field(
        10 * 1024**3, ge=1, description="The most it holds; null: as much as the disk allows."
    )
    max_age_seconds: float | None = Field(
        None,
        gt=0,
        description="While the mirror is unavailable, changes that wait longer stop the draining.",
    )


class CaptureSettings(Section):
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

    def of_shard(self, shard: int) -> Self:
        """Return the same settings with a buffer that is one shard's own."""
        if self.buffer is None:
            return self
        own = self.buffer.model_copy(update={"path": self.buffer.path / label(shard)})
        return self.model_copy(update={"buffer": own})


class PollingSettings(Section):
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


class LocalSettings(Section):
    """A local database for writes beside a read-only source."""

    path: LocalPath = Field(description="The SQLite file, created when missing.")
