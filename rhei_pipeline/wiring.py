"""The one place where a name in the settings becomes an object."""

import importlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol

from rhei_pipeline.capture.bridge import BridgeSource, Draining
from rhei_pipeline.capture.change_log import ChangeLog, Limits
from rhei_pipeline.capture.confirmation import unapplied_events
from rhei_pipeline.capture.trigger_log import TriggerSource, unacknowledged
from rhei_pipeline.door import Door, Freshness
from rhei_pipeline.errors import MissingExtraError, SchemaError, SettingsError
from rhei_pipeline.metrics import Finding
from rhei_pipeline.olap.duckdb import MEMORY, DuckDBMirror
from rhei_pipeline.oltp.sqlite import SqliteDatabase
from rhei_pipeline.pipeline import Declared, Pipeline, no_step
from rhei_pipeline.protocols import ChangeSource, Database, OnStep
from rhei_pipeline.registry import Registry, mirror_id_of
from rhei_pipeline.schema import Table, TableOptions, TableSchema
from rhei_pipeline.settings import BufferSettings, Settings, SqliteSettings
from rhei_pipeline.sync import Pace


class SourceDatabase(Database, Protocol):
    """A source's database, and its catalogue."""

    def table_names(self) -> list[str]:
        """Return the names of all ordinary tables that have a primary key."""

    def read_schema(
        self, name: str, options: TableOptions, known: TableSchema | None
    ) -> TableSchema:
        """Read a table's schema; `known` is what it is mirrored with, if it is."""

    def examine(
        self,
        tables: Sequence[str],
        options: Callable[[str], TableOptions],
        mirror_id: str | None,
    ) -> list[Finding]:
        """Say what stands in the way of capture, why, and what mends it."""


class Source(ChangeSource, Protocol):
    """A source of changes that this process owns."""

    def forget_mirror(self) -> None:
        """Let the source forget that this mirror exists."""

    def close(self) -> None:
        """Close what it holds; safe to repeat."""


@dataclass(frozen=True, slots=True)
class Engine:
    """Everything open that one declaration asks for; `resources` closes it, last opened first."""

    database: Database
    source: ChangeSource
    mirror: DuckDBMirror
    pipeline: Pipeline
    resources: ExitStack


def open_engine(settings: Settings, on_step: OnStep = no_step) -> Engine:
    """Open source, mirror and pipeline; on an error, close again what was opened."""
    with ExitStack() as stack:
        database = open_database(settings)
        stack.callback(database.close)
        mirror = open_mirror(settings)
        stack.callback(mirror.close)
        in_memory = mirror.path == MEMORY
        registry = Registry(None if in_memory else settings.registry.path, mirror.mirror_id)
        declared = declared_tables(settings, database)
        log = open_buffer(settings.capture.buffer, stack) if settings.capture.buffer else None
        reader = mirror.mirror_id if log is None else log.log_id
        inner = _open_source(settings, database, reader, registry)
        stack.callback(inner.close)
        if in_memory:
            # Nobody comes back for it, so the log must not be held for it either.
            stack.callback(inner.forget_mirror)
        source = inner if log is None else _bridged(settings, inner, log, declared, on_step)
        pipeline = Pipeline(
            declared,
            source,
            mirror,
            registry,
            Pace(settings.sync.batch_rows, settings.sync.prune),
            on_step,
        )
        return Engine(database, source, mirror, pipeline, stack.pop_all())


def open_door(settings: Settings, engine: Engine) -> Door:
    """Open what answers queries."""
    freshness = Freshness(settings.queries.when_stale, settings.queries.wait_seconds)
    dialects = (settings.source.kind, settings.mirror.kind)
    options = table_options(settings)
    return Door(engine.database, engine.mirror, engine.pipeline, options, dialects, freshness)


def _open_source(
    settings: Settings, database: SourceDatabase, mirror_id: str, registry: Registry
) -> Source:
    options = table_options(settings)
    if isinstance(database, SqliteDatabase):
        return TriggerSource(database, mirror_id, options, registry.table)
    source: Source = postgres().LogicalSource(database, mirror_id, options)
    return source


def open_database(settings: Settings) -> SourceDatabase:
    """Open the operational database."""
    source = settings.source
    if isinstance(source, SqliteSettings):
        return SqliteDatabase(
            source.path,
            busy_timeout_seconds=source.busy_timeout_seconds,
            read_pool=source.read_pool,
        )
    database: SourceDatabase = postgres().PostgresDatabase(
        source.dsn.get_secret_value(),
        statement_timeout_seconds=source.statement_timeout_seconds,
        pool_size=source.pool_size,
        connect_timeout_seconds=source.connect_timeout_seconds,
    )
    return database


def postgres() -> ModuleType:
    """Import what PostgreSQL needs, now that it is wanted.

    Raises:
        MissingExtraError: The driver is not installed.
    """
    try:
        return importlib.import_module("rhei_pipeline.capture.logical_decoding")
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("psycopg"):
            raise
        raise MissingExtraError(
            f"a PostgreSQL source needs the package {error.name!r}",
            hint="pip install 'rhei-pipeline[postgres]'",
        ) from error


def open_mirror(settings: Settings) -> DuckDBMirror:
    """Open the mirror, alone among all processes."""
    return DuckDBMirror(
        settings.mirror.path, lock_timeout_seconds=settings.mirror.lock_timeout_seconds
    )


def open_buffer(buffer: BufferSettings, stack: ExitStack) -> ChangeLog:
    """Open the log that changes go through, alone among all processes."""
    log = ChangeLog(buffer.path, Limits(buffer.max_bytes, buffer.max_age_seconds))
    stack.callback(log.close)
    return log


def _bridged(
    settings: Settings,
    inner: ChangeSource,
    log: ChangeLog,
    declared: list[Declared],
    on_step: OnStep = no_step,
) -> BridgeSource:
    draining = Draining(settings.sync.batch_rows, settings.sync.prune)
    source = BridgeSource(inner, log, draining, on_step)
    source.forget_all_but([table.name for table in declared])
    return source


def bridge(settings: Settings, on_step: OnStep = no_step) -> int:
    """Take what is pending in the source into the buffer; the mirror is not opened.

    Tables that were never synced are left alone: their copy will have what they hold.

    Returns:
        How many events were taken.

    Raises:
        SettingsError: The declaration has no buffer.
        BufferFullError: The buffer has reached a limit.
    """
    buffer = settings.capture.buffer
    if buffer is None:
        raise SettingsError("there is no buffer", hint="declare one under 'capture.buffer'")
    with ExitStack() as stack:
        database = open_database(settings)
        stack.callback(database.close)
        log = open_buffer(buffer, stack)
        mirror_id = mirror_id_of(settings.registry.path)
        registry = Registry(settings.registry.path if mirror_id else None, mirror_id or "")
        inner = _open_source(settings, database, log.log_id, registry)
        stack.callback(inner.close)
        return _bridged(settings, inner, log, declared_tables(settings, database), on_step).drain()


def unseen_events(settings: Settings) -> int | None:
    """Count the source's events that the mirror has not acknowledged, without opening it.

    None when nothing was ever synced.
    """
    mirror_id = mirror_id_of(settings.registry.path)
    buffer = settings.capture.buffer
    # What was buffered is acknowledged to the source, and the mirror may still lack it.
    reader = (mirror_id or "", 0) if buffer is None else unapplied_events(buffer.path)
    if mirror_id is None or reader is None:
        return None
    name, unapplied = reader
    database = open_database(settings)
    try:
        unread = _unread(database, name)
    finally:
        database.close()
    return None if unread is None else unread + unapplied


def _unread(database: SourceDatabase, reader: str) -> int | None:
    if isinstance(database, SqliteDatabase):
        return unacknowledged(database, reader)
    found: int | None = postgres().unconfirmed(database, reader)
    return found


def examine(settings: Settings) -> list[Finding]:
    """Say what stands in the way of mirroring the declared tables; changes nothing."""
    database = open_database(settings)
    try:
        names = [declared.name for declared in declared_tables(settings, database)]
        options = table_options(settings)
        mirror_id = mirror_id_of(settings.registry.path)
        return database.examine(names, lambda n: options.get(n, TableOptions()), mirror_id)
    finally:
        database.close()


def declared_tables(settings: Settings, database: SourceDatabase) -> list[Declared]:
    """Return the tables of the declaration; without any, all that have a primary key."""
    if settings.tables is not None:
        return [Declared(table.name, table.mode or settings.mode) for table in settings.tables]
    names = database.table_names()
    if not names:
        raise SchemaError(
            "the source has no table with a primary key",
            hint="create one, or name tables and their 'primary_key' under 'tables'",
        )
    return [Declared(name, settings.mode) for name in names]


def declared_schemas(settings: Settings) -> list[Table]:
    """Read the declared tables' schemas from the source, and open nothing else."""
    database = open_database(settings)
    try:
        options = table_options(settings)
        mirror_id = mirror_id_of(settings.registry.path)
        registry = Registry(settings.registry.path if mirror_id else None, mirror_id or "")
        tables = []
        for declared in declared_tables(settings, database):
            known = registry.table(declared.name)
            chosen = options.get(declared.name, TableOptions())
            schema = database.read_schema(declared.name, chosen, known.schema if known else None)
            tables.append(Table(schema, declared.mode))
        return tables
    finally:
        database.close()


def table_options(settings: Settings) -> dict[str, TableOptions]:
    """Return what the declaration says of single tables."""
    return {
        table.name: TableOptions(
            columns=None if table.columns is None else tuple(table.columns),
            primary_key=None if table.primary_key is None else tuple(table.primary_key),
            types=dict(table.types or {}),
        )
        for table in settings.tables or ()
    }
