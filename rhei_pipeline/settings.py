"""The declaration: what is mirrored, from where, to where, and how. YAML, environment, Python."""

import json
import os
import re
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import (
    BaseModel,
    ByteSize,
    ConfigDict,
    Discriminator,
    Field,
    SecretStr,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings import SettingsError as PydanticSettingsError

from rhei_pipeline.capture.keyset import Clock, PollOptions, parse_deletes
from rhei_pipeline.errors import SchemaError, SettingsError
from rhei_pipeline.schema import Mode, nearest, parse_type

ENVIRONMENT_PREFIX = "RHEI__"
_MEMORY = ":memory:"
_OBJECT_URL = re.compile(r"(s3|gs):/+(.+)")
#: Ways to capture each kind of source; the first one is taken where none is declared.
_METHODS = {"sqlite": ("trigger", "polling"), "postgres": ("logical", "polling", "trigger")}


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


def _source_kind(source: object) -> str:
    """Tell sources apart; one that does not say its kind is an SQLite file."""
    kind = source.get("kind") if isinstance(source, dict) else getattr(source, "kind", None)
    return str(kind or "sqlite")


class Settings(BaseSettings):
    """A whole declaration; frozen, and valid once it exists.

    Environment variables `RHEI__SECTION__FIELD` stand above what the file or the caller gives.

    Raises:
        SettingsError: A field is unknown, missing, or does not make sense; names the field.
    """

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix=ENVIRONMENT_PREFIX, env_nested_delimiter="__"
    )

    source: Annotated[
        Annotated[SqliteSettings, Tag("sqlite")] | Annotated[PostgresSettings, Tag("postgres")],
        Discriminator(_source_kind),
    ] = Field(description="The operational database.")
    capture: CaptureSettings = Field(CaptureSettings(), description="How changes are learned of.")
    mirror: MirrorSettings = Field(description="The analytical copy.")
    local: LocalSettings | None = Field(
        None, description="Where writes go while the source is polled; left out: they are refused."
    )
    mode: Mode = Field(
        Mode.DESTRUCTIVE,
        description="Default of every table. destructive: overwrite; temporal: keep history.",
    )
    tables: list[TableSettings] | None = Field(
        None, min_length=1, description="Left out: every table that has a primary key."
    )
    sync: SyncSettings = Field(SyncSettings(), description="How a sync works.")
    queries: QuerySettings = Field(QuerySettings(), description="How queries are answered.")
    registry: RegistrySettings = Field(
        RegistrySettings(), description="Where known schemas are kept."
    )
    schedule: ScheduleSettings = Field(
        ScheduleSettings(), description="When things happen by themselves."
    )

    def __init__(self, **values: Any) -> None:  # noqa: ANN401  (pydantic validates them)
        _refuse_unknown_variables()
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SettingsError(_describe(error)) from None  # its text would show the values
        except PydanticSettingsError as error:
            raise SettingsError(
                f"an environment variable {ENVIRONMENT_PREFIX}... is not of its field's form",
                hint="lists and mappings are written as JSON",
            ) from error

    @field_validator("tables")
    @classmethod
    def _unique_names(cls, tables: list[TableSettings] | None) -> list[TableSettings] | None:
        seen: set[str] = set()
        for table in tables or ():
            if table.name.lower() in seen:
                raise ValueError(f"table {table.name!r} is declared twice")
            seen.add(table.name.lower())
        return tables

    @model_validator(mode="after")
    def _fitting_capture(self) -> Self:
        fitting = _METHODS[self.source.kind]
        if self.capture.method not in (None, *fitting):
            raise ValueError(
                f"capture.method {self.capture.method!r} does not suit a {self.source.kind} source:"
                f" use {' or '.join(map(repr, fitting))}"
            )
        if self.capture.streaming and self.capture_method != "logical":
            raise ValueError("capture.streaming: only PostgreSQL's log can be streamed")
        if self.capture_method == "polling":
            self._refuse_lossy_buffer()
        elif self.local is not None:
            raise ValueError("local: a local database stands beside a source that is polled")
        return self

    def _refuse_lossy_buffer(self) -> None:
        polls = [(t.name, t.polling.options) for t in self.tables or ()] or [("", PollOptions())]
        compared = [name for name, options in polls if options.is_compared]
        if self.capture.buffer and compared:
            raise ValueError(
                f"capture.buffer: table {compared[0]!r} needs whole comparisons with the mirror,"
                " which a buffer cannot hold: use 'clock: database' and no 'reconcile', or no"
                " buffer"
            )

    @property
    def capture_method(self) -> str:
        """How changes are learned of: as declared, or what suits the source."""
        return self.capture.method or _METHODS[self.source.kind][0]

    @property
    def sqlite_path(self) -> Path:
        """The source's file.

        Raises:
            SettingsError: The source is no file.
        """
        if not isinstance(self.source, SqliteSettings):
            raise SettingsError(f"a {self.source.kind} source has no file")
        return self.source.path

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003  (pydantic-settings' signature)
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put the environment above what is given."""
        return env_settings, init_settings

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a YAML file, with the environment above it.

        Relative paths are taken from the project's directory: the parent of a directory named
        `config` where the file lies in one, else the file's own.

        Raises:
            SettingsError: The file cannot be read, or a field does not make sense.
        """
        file = Path(path)
        values = _read(file)
        try:
            settings = cls(**values)
        except SettingsError as error:
            raise SettingsError(f"{file}: {error.message}", hint=error.hint) from error
        return settings.anchored(_project_directory(file))

    def anchored(self, directory: Path) -> Self:
        """Return the same settings with relative paths taken from a directory."""
        source = self.source
        if isinstance(source, SqliteSettings):
            source = source.model_copy(update={"path": directory / source.path})
        return self.model_copy(
            update={
                "source": source,
                "capture": self.capture.anchored(directory),
                "mirror": self.mirror.anchored(directory),
                "local": self.local
                and self.local.model_copy(update={"path": directory / self.local.path}),
                "registry": self.registry.model_copy(
                    update={"path": directory / self.registry.path}
                ),
            }
        )


def _project_directory(file: Path) -> Path:
    directory = file.resolve().parent
    return directory.parent if directory.name == "config" else directory


def _read(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(
            f"{file}: the declaration cannot be read: {error.strerror}",
            hint="give its path with --config, or start one with the README's ten lines",
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise SettingsError(f"{file}: this is not YAML{place}") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise SettingsError(f"{file}: a declaration is a mapping that begins with 'source:'")
    return values


def _refuse_unknown_variables() -> None:
    known = list(Settings.model_fields)
    for variable in os.environ:
        if variable.upper().startswith(ENVIRONMENT_PREFIX):
            section = variable[len(ENVIRONMENT_PREFIX) :].split("__")[0].lower()
            if section not in known:
                raise SettingsError(
                    f"environment variable {variable}: unknown section {section!r}",
                    hint=nearest(section, known),
                )


def _describe(error: ValidationError) -> str:
    """Name every problem by its field's path; never by the value, which may be a secret."""
    problems = error.errors(include_input=False, include_url=False, include_context=False)
    return "; ".join(
        _problem(_declared_path(tuple(problem["loc"])), problem["type"], problem["msg"])
        for problem in problems
    )


def _declared_path(path: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """Leave out which kind of source was tried: a declaration has no such level."""
    return path[:1] + path[2:] if path[:1] == ("source",) and path[1:2] != () else path


def _problem(path: tuple[str | int, ...], kind: str, message: str) -> str:
    dotted = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".")
    if kind == "extra_forbidden":
        return f"unknown field {dotted!r}; {nearest(str(path[-1]), _fields_beside(path))}"
    if kind == "union_tag_invalid":
        return f"field '{dotted}.kind': use {' or '.join(map(repr, _METHODS))}"
    if kind == "missing":
        return f"field {dotted!r} is missing"
    message = message.removeprefix("Value error, ")
    return f"field {dotted!r}: {message[:1].lower()}{message[1:]}"


def _fields_beside(path: tuple[str | int, ...]) -> list[str]:
    """Return the names of the fields that the model at this place of the path knows."""
    model: type[BaseModel] = Settings
    for part in path[:-1]:
        if isinstance(part, str) and part in model.model_fields:
            model = _model_in(model.model_fields[part].annotation) or model
    return list(model.model_fields)


def _model_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_model_in(argument) for argument in get_args(annotation))
    return next((model for model in inner if model), None)


def schema_text() -> str:
    """Return the JSON schema of a declaration, as `config/pipeline.schema.json` holds it."""
    return json.dumps(Settings.model_json_schema(), indent=2) + "\n"
