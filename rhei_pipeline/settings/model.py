"""The declaration: what is mirrored, from where, to where, and how. YAML, environment, Python."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import (
    BaseModel,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as PydanticSettingsError

from rhei_pipeline.errors import SettingsError
from rhei_pipeline.model.polling import PollOptions
from rhei_pipeline.model.schema import DroppedColumns, Mode, SchemaPolicy
from rhei_pipeline.settings.compute import ComputeSettings
from rhei_pipeline.settings.keeping import (
    DeadLetterSettings,
    HistorySettings,
    checked_people,
    refuse_apart,
)
from rhei_pipeline.settings.mirror import MirrorSettings
from rhei_pipeline.settings.own_places import refuse_shared_places
from rhei_pipeline.settings.problems import (
    ENVIRONMENT_PREFIX,
    describe,
    is_misformed,
    own_variables,
    refuse_unknown_variables,
)
from rhei_pipeline.settings.reading import project_directory, read_declaration
from rhei_pipeline.settings.sections import (
    MaskingSettings,
    QuerySettings,
    RegistrySettings,
    ScheduleSettings,
    SyncSettings,
    TableSettings,
    VerifySettings,
    refuse_unfit,
)
from rhei_pipeline.settings.shards import Sharding, Shards, beside, label, plain_name_in
from rhei_pipeline.settings.source import (
    METHODS,
    CaptureSettings,
    LocalSettings,
    LogSettings,
    PostgresSettings,
    SqliteSettings,
)

_Section = TypeVar("_Section", bound=BaseModel)

_AS_JSON = "lists and mappings are written as JSON"


def _source_kind(source: object) -> str:
    """Return a source's kind; one without `kind` is an SQLite file."""
    kind = source.get("kind") if isinstance(source, dict) else getattr(source, "kind", None)
    return str(kind or "sqlite")


class Settings(BaseSettings):
    """A whole declaration; frozen, and valid once it exists.

    Environment variables `RHEI__SECTION__FIELD` override what the file or the caller gives.

    Raises:
        SettingsError: A field is unknown, missing, or does not make sense; names the field.
    """

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix=ENVIRONMENT_PREFIX, env_nested_delimiter="__"
    )

    name: str | None = Field(
        None,
        min_length=1,
        description="What this pipeline is called; its mirror then refuses pipelines of another"
        " name.",
    )
    source: Annotated[
        Annotated[SqliteSettings, Tag("sqlite")]
        | Annotated[PostgresSettings, Tag("postgres")]
        | Annotated[LogSettings, Tag("log")],
        Discriminator(_source_kind),
    ] = Field(description="The operational database.")
    capture: CaptureSettings = Field(CaptureSettings(), description="How changes are captured.")
    mirror: MirrorSettings = Field(description="The analytical copy.")
    compute: ComputeSettings | None = Field(
        None, description="A cluster that answers heavy queries, and finds the rows of snapshots."
    )
    local: LocalSettings | None = Field(
        None,
        description="Where writes go while the source is polled. Left out: writes are refused.",
    )
    mode: Mode = Field(
        Mode.DESTRUCTIVE,
        description="Default of every table. destructive: overwrite; temporal: keep history.",
    )
    history: HistorySettings = Field(
        HistorySettings(), description="How much of temporal tables is kept, default of every one."
    )
    dead_letters: DeadLetterSettings = Field(
        DeadLetterSettings(), description="How many dead letters a table may have, default of all."
    )
    schema_changes: SchemaPolicy = Field(
        SchemaPolicy.EVOLVE,
        description="What becomes of a table whose schema changes in the source, default of every"
        " table. evolve: the mirror follows; freeze: the table goes on with the columns that it"
        " had, where only others were added; quarantine: the table is left out, by name, until"
        " somebody decides.",
    )
    dropped_columns: DroppedColumns | None = Field(
        None,
        description="What becomes of a column that the source has no more, or that is left out of"
        " 'columns', default of every table. keep: it stays in the mirror, with its old values;"
        " drop: it goes. Left out: a temporal table keeps it, a destructive one drops it.",
    )
    tables: list[TableSettings] | None = Field(
        None,
        description="Left out: every table that has a primary key. An empty list: those that are"
        " registered at run time.",
    )
    masking: MaskingSettings = Field(
        MaskingSettings(), description="What the masks of all tables have in common."
    )
    people: dict[str, dict[str, str]] = Field(
        {},
        description="By which columns people are found to be forgotten, such as {customer:"
        " {customers: id, orders: customer_id, items: order_id -> orders}}.",
    )
    shards: Shards | None = Field(
        None,
        description="Share the tables among several pipelines, each with a mirror of its own: how"
        " many, by a hash of their names; or a list for each, of the names of its tables, in which"
        " '*' is any text, and the last one takes all others. Left out: one pipeline.",
    )
    sync: SyncSettings = Field(SyncSettings(), description="How a sync works.")
    verify: VerifySettings = Field(
        VerifySettings(), description="How source and mirror are compared."
    )
    queries: QuerySettings = Field(QuerySettings(), description="How queries are answered.")
    registry: RegistrySettings = Field(
        RegistrySettings(), description="Where known schemas are kept."
    )
    schedule: ScheduleSettings = Field(
        ScheduleSettings(), description="Schedules and limits of what runs automatically."
    )

    _file: Path | None = PrivateAttr(None)
    _shard: int | None = PrivateAttr(None)

    def __init__(self, **values: Any) -> None:  # noqa: ANN401  (pydantic validates them)
        refuse_unknown_variables(list(Settings.model_fields))
        try:
            super().__init__(**values)
        except ValidationError as error:
            hint = _AS_JSON if is_misformed(error) else None
            raise SettingsError(
                describe(error, Settings), hint=hint
            ) from None  # its text shows the values
        except PydanticSettingsError as error:
            raise SettingsError(
                f"an environment variable {ENVIRONMENT_PREFIX}... has a value of the wrong form",
                hint=_AS_JSON,
            ) from error

    @model_validator(mode="after")
    def _fitting_capture(self) -> Self:
        self._refuse_unfit_capture()
        return self

    def _refuse_unfit_capture(self) -> None:
        self._refuse_hash_without_key()
        refuse_shared_places(self)
        refuse_unfit(self.tables or (), self.mode, are_files=self.mirror.is_of_files)
        fitting = METHODS[self.source.kind]
        if self.source.kind == "log" and (self.capture.method or self.capture.buffer):
            raise ValueError(
                "'capture' does not suit a log, to which events are appended: leave out its method"
                " and its buffer"
            )
        if self.capture.method not in (None, *fitting):
            raise ValueError(
                f"capture.method {self.capture.method!r} does not suit a {self.source.kind} source:"
                f" use {' or '.join(map(repr, fitting))}"
            )
        if self.capture.streaming and self.capture_method != "logical":
            raise ValueError(
                "capture.streaming needs the method 'logical': only PostgreSQL's log can be"
                " streamed"
            )
        if self.capture.publication and self.capture_method != "logical":
            raise ValueError(
                "capture.publication needs the method 'logical': only PostgreSQL's log has"
                " publications"
            )
        if self.capture_method == "polling":
            self._refuse_created_source()
            self._refuse_lossy_buffer()
        elif self.local is not None:
            raise ValueError(
                "'local' needs a source that is polled: use 'capture: {method: polling}', or leave"
                " it out"
            )

    def _refuse_hash_without_key(self) -> None:
        rules = {rule for table in self.tables or () for rule in (table.mask or {}).values()}
        if "hash" in rules and self.masking.key is None:
            raise ValueError(
                "masking.key: the mask 'hash' needs a key; set the environment variable"
                f" {ENVIRONMENT_PREFIX}MASKING__KEY"
            )

    def _refuse_created_source(self) -> None:
        if isinstance(self.source, SqliteSettings) and self.source.create:
            raise ValueError(
                "source.create: a polled source is only read: use 'capture: {method: trigger}', or"
                " create the file with its application"
            )

    def _refuse_lossy_buffer(self) -> None:
        polls = [(t.name, t.polling.options) for t in self.tables or ()] or [("", PollOptions())]
        compared = [name for name, options in polls if options.is_compared]
        if self.capture.buffer and compared:
            raise ValueError(
                f"capture.buffer: table {compared[0]!r} needs whole comparisons with the mirror,"
                " which a buffer cannot hold: use 'clock: database' and no 'reconcile', or no"
                " buffer"
            )

    @model_validator(mode="after")
    def _fitting_compute(self) -> Self:
        if self.compute is not None and self.mirror.storage != "delta":
            raise ValueError("'compute' reads Delta tables: give the mirror the storage 'delta'")
        return self

    @model_validator(mode="after")
    def _fitting_shards(self) -> Self:
        if self.shards is None:
            return self
        sharding = Sharding(self.shards, plain_name_in(self.source.kind))
        sharding.refuse_unfit()
        refuse_apart(self.people, sharding.shard_of)
        if self.source.kind == "log":
            raise ValueError("'shards' does not suit a log, which one process opens: leave it out")
        if self.mirror.in_memory:
            raise ValueError("'shards' needs a 'mirror.path' in which each has a place of its own")
        return self

    @field_validator("people")
    @classmethod
    def _known_before(cls, people: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
        return checked_people(people)

    @property
    def shard(self) -> int | None:
        """Which shard of a declaration this is; None where it is the whole."""
        return self._shard

    @property
    def sharding(self) -> Sharding | None:
        """What distributes the tables over shards; None where there is one pipeline."""
        if self.shards is None:
            return None
        return Sharding(self.shards, plain_name_in(self.source.kind))

    def takes(self, table: str) -> bool:
        """Return whether a table of the source belongs to this pipeline."""
        sharding = self.sharding
        return sharding is None or self._shard in (None, sharding.shard_of(table))

    def pipelines(self) -> list[Self]:
        """Return the declaration of each pipeline: of every shard, or this alone."""
        if self.sharding is None or self._shard is not None:
            return [self]
        return [self.of_shard(shard) for shard in range(1, self.sharding.count + 1)]

    def of_shard(self, shard: int) -> Self:
        """Return the declaration of one shard: its tables, its name, and places of its own.

        Raises:
            SettingsError: There is no such shard.
        """
        sharding = self.sharding
        if sharding is None or self._shard is not None or not 1 <= shard <= sharding.count:
            count = 0 if sharding is None or self._shard is not None else sharding.count
            raise SettingsError(
                f"this declaration has no shard {shard}",
                hint=f"give a number from 1 to {count}" if count else "leave the shard out",
            )
        own = self.model_copy(
            update={
                "name": "_".join(filter(None, (self.name, label(shard)))),
                "capture": self.capture.of_shard(shard),
                "mirror": self.mirror.of_shard(shard),
                "registry": self.registry.model_copy(
                    update={"path": beside(self.registry.path, shard)}
                ),
            }
        )
        own._shard = shard  # noqa: SLF001  (of the same class)
        tables = None if self.tables is None else [t for t in self.tables if own.takes(t.name)]
        return own.model_copy(update={"tables": tables})

    def refuse_whole(self) -> None:
        """Do nothing where this declares one pipeline.

        Raises:
            SettingsError: It declares several, none of which was chosen.
        """
        if self.sharding is not None and self._shard is None:
            raise SettingsError(
                f"this declares {self.sharding.count} pipelines, one for each shard",
                hint="take one: rhei.open(settings.of_shard(1)); rhei.reader reads all of them",
            )

    @property
    def capture_method(self) -> str:
        """How changes are captured: as declared, or the default for the source."""
        return self.capture.method or METHODS[self.source.kind][0]

    @property
    def sqlite_path(self) -> Path:
        """The source's file.

        Raises:
            SettingsError: The source is not a file.
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
        """Let environment variables override given values, where there are any."""
        # To look for a variable of each field takes three times as long as all else.
        return (env_settings, init_settings) if own_variables() else (init_settings,)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a YAML file; environment variables override it.

        Relative paths are taken from the project's directory: the parent of a directory named
        `config` where the file lies in one, else the file's own.

        Raises:
            SettingsError: The file cannot be read, or a field does not make sense.
        """
        file = Path(path)
        values = read_declaration(file)
        try:
            settings = cls(**values)
        except SettingsError as error:
            raise SettingsError(f"{file}: {error.message}", hint=error.hint) from error
        settings._file = file.absolute()  # a link may lead to another file later
        return settings.anchored(project_directory(file))

    @property
    def file(self) -> Path | None:
        """The file that this was loaded from; None where it was made in Python."""
        return self._file

    @staticmethod
    def checked(section: type[_Section], fields: Mapping[str, Any], name: str) -> _Section:
        """Return a part of a declaration that is given in Python.

        Raises:
            SettingsError: A field is unknown or does not make sense; names the field.
        """
        try:
            return section.model_validate(fields)
        except ValidationError as error:
            raise SettingsError(describe(error, Settings, name)) from None

    def refuse_table(self, table: TableSettings) -> None:
        """Refuse a table that this declaration could not name.

        Raises:
            SettingsError: It needs another way of capture.
        """
        try:
            self.model_copy(update={"tables": [table]})._refuse_unfit_capture()  # noqa: SLF001
        except ValueError as error:
            raise SettingsError(str(error)) from None

    def with_fields(self, sections: Mapping[str, Mapping[str, Any]]) -> Self:
        """Return the same settings with some fields of sections replaced, and validated as a whole.

        What is given here stands above the environment.

        Raises:
            SettingsError: A field is unknown or does not make sense; names the field.
        """
        made = {}
        for name, fields in sections.items():
            section = getattr(self, name)
            made[name] = self.checked(type(section), {**dict(section), **fields}, name)
        changed = self.model_copy(update=made)
        try:
            changed._refuse_unfit_capture()  # noqa: SLF001  (of the same class)
        except ValueError as error:
            raise SettingsError(str(error)) from None
        return changed

    def anchored(self, directory: Path) -> Self:
        """Return the same settings with relative paths resolved against a directory."""
        source = self.source
        if isinstance(source, SqliteSettings | LogSettings):
            source = source.model_copy(update={"path": directory / source.path})
        return self.model_copy(
            update={
                "source": source,
                "capture": self.capture.anchored(directory),
                "mirror": self.mirror.anchored(directory),
                "schedule": self.schedule.anchored(directory),
                "local": self.local
                and self.local.model_copy(update={"path": directory / self.local.path}),
                "registry": self.registry.model_copy(
                    update={"path": directory / self.registry.path}
                ),
            }
        )


def schema_text() -> str:
    """Return the JSON schema of a declaration, as stored in `config/pipeline.schema.json`."""
    return json.dumps(Settings.model_json_schema(), indent=2) + "\n"
