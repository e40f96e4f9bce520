"""Sections of a declaration: the tables, and how they are synced, queried and scheduled."""

import re
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import ByteSize, Field, SecretStr, field_validator

from rhei_pipeline.errors import SchemaError
from rhei_pipeline.model.bounds import LONGEST_TIMEOUT_SECONDS, MOST_DAYS
from rhei_pipeline.model.masks import LEAST_KEY_CHARACTERS, parse_rule
from rhei_pipeline.model.schema import DroppedColumns, Mode, SchemaPolicy
from rhei_pipeline.model.type_names import parse_type
from rhei_pipeline.settings.keeping import DeadLetterSettings, HistorySettings
from rhei_pipeline.settings.places import LocalPath
from rhei_pipeline.settings.section import Section
from rhei_pipeline.settings.source import PollingSettings

#: A cron expression that ticks once a day at most.
_WINDOW = re.compile(r"[0-5]?\d ([01]?\d|2[0-3])( [\d*/,A-Za-z-]+){3}")


class TableSettings(Section):
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
    as_text: bool = Field(
        default=False,
        description="Mirror UUIDs and JSON of PostgreSQL as text alone, as earlier versions did;"
        " 'types' does so for single columns.",
    )
    mask: dict[str, str] | None = Field(
        None,
        description="Columns that are masked before anything of them is stored: hash (keyed; equal"
        " values have equal hashes), redact, null, truncate:n (the first n characters), partial:n"
        " (the last n), or package.module:function over an Arrow array.",
    )
    where: str | None = Field(
        None,
        min_length=1,
        description="Mirror only the rows of which this is true: comparisons of columns with"
        " literals, joined by and, or, not.",
    )
    copy_ranges: int = Field(
        1,
        ge=1,
        le=10_000,
        description="Into how many ranges of keys its copies are cut. Several processes copy them"
        " at once; of a mirror of files only.",
    )
    history: HistorySettings | None = Field(
        None,
        description="How much of its history is kept; left out: the default. With neither: all.",
    )
    dead_letters: DeadLetterSettings | None = Field(
        None, description="How many it may have; left out: the default."
    )
    schema_changes: SchemaPolicy | None = Field(
        None, description="evolve, freeze or quarantine; left out: the default."
    )
    dropped_columns: DroppedColumns | None = Field(
        None, description="keep or drop; left out: the default."
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

    @field_validator("mask", mode="before")
    @classmethod
    def _bare_null(cls, masks: object) -> object:
        """Return masks with the word null where YAML has read none."""
        if not isinstance(masks, dict):
            return masks
        return {name: "null" if rule is None else rule for name, rule in masks.items()}

    @field_validator("mask")
    @classmethod
    def _known_masks(cls, masks: dict[str, str] | None) -> dict[str, str] | None:
        for rule in (masks or {}).values():
            try:
                parse_rule(rule)
            except SchemaError as error:
                raise ValueError(str(error)) from error
        return masks


def refuse_unfit(tables: Iterable[TableSettings], default: Mode, *, are_files: bool) -> None:
    """Refuse to bound a history that no table keeps, and ranges that no mirror takes.

    Raises:
        ValueError: One is declared so.
    """
    for table in tables:
        _refuse_ranges(table, are_files=are_files)
        if table.history is not None and (table.mode or default) is not Mode.TEMPORAL:
            raise ValueError(
                f"history: table {table.name!r} keeps none: give it 'mode: temporal', or leave its"
                " 'history' out"
            )


def _refuse_ranges(table: TableSettings, *, are_files: bool) -> None:
    if table.copy_ranges > 1 and not are_files:
        raise ValueError(
            f"copy_ranges: table {table.name!r} is copied in ranges into files alone: use"
            " 'mirror: {kind: datafusion, storage: parquet, path: ...}', or leave it out"
        )


class MaskingSettings(Section):
    """What the masks of all tables have in common."""

    key: SecretStr | None = Field(
        None,
        min_length=LEAST_KEY_CHARACTERS,
        description="The key of hashes, kept secret: best in the environment, as"
        " RHEI__MASKING__KEY. With another key every hash is another one.",
    )


class SyncSettings(Section):
    """How a sync works."""

    batch_rows: int = Field(50_000, ge=1, description="About how many rows are in memory at once.")
    interval_seconds: float = Field(1.0, gt=0, description="Pause between background syncs.")
    prune: bool = Field(
        default=True, description="Delete changes from the source once no mirror needs them."
    )


class QuerySettings(Section):
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
        le=LONGEST_TIMEOUT_SECONDS,
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
    masked: Literal["mirror", "source"] = Field(
        "mirror",
        description="Which side answers 'auto' about tables with masked columns or a row filter."
        " mirror: only the mirror, with what it has. source: only the source, with its own rows"
        " and values, for everyone who may query.",
    )
    functions: list[str] = Field(
        [],
        description="PostgreSQL's functions that queries may call though they are VOLATILE, or"
        " though tables are masked or filtered, as 'name' (in public) or 'schema.name'.",
    )


class RegistrySettings(Section):
    """Where the registry of schemas is stored."""

    path: LocalPath = Field(Path("data/registry.json"), description="The JSON file.")


class VerifySettings(Section):
    """What comparing source and mirror may ask of the source."""

    rows_per_second: float | None = Field(
        None,
        gt=0,
        description="The pace, part after part, with syncs in between; left out: as fast as it"
        " goes, all tables at one source state.",
    )
    max_rows: int | None = Field(
        None,
        gt=0,
        description="About how many rows of each table the scheduled check compares; the next one"
        " goes on behind them. Left out: all rows.",
    )


class ScheduleSettings(Section):
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
        90.0,
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
        " code location when the source's tables or the declaration change. Left out: a sensor says"
        " so.",
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
        0,
        ge=0,
        le=MOST_DAYS,
        description="How many of the latest windows are taken again each night.",
    )
    snapshot_files: LocalPath | None = Field(
        None,
        description="A directory to which each snapshot is also written, as"
        " <table>/<window>.parquet. Left out: snapshots are in the mirror only.",
    )
    maintenance_hour: int = Field(
        3,
        ge=0,
        le=23,
        description="The hour, in the time zone, at which a mirror's small files are merged; half"
        " an hour later, old runs are deleted.",
    )
    verify_hour: int | None = Field(
        4,
        ge=0,
        le=23,
        description="The hour, in the time zone, at which every row of source and mirror is"
        " compared; null: only when asked for.",
    )
    keep_runs_days: int = Field(
        14,
        ge=1,
        le=MOST_DAYS,
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
