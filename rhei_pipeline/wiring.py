"""The one place where a name in the settings becomes an object."""

from contextlib import ExitStack
from dataclasses import dataclass

from rhei_pipeline.capture.bridge import BridgeSource, Draining
from rhei_pipeline.capture.change_log import ChangeLog, Limits
from rhei_pipeline.capture.confirmation import unapplied_events
from rhei_pipeline.capture.trigger_log import TableOptions, TriggerSource, unacknowledged
from rhei_pipeline.errors import SchemaError, SettingsError
from rhei_pipeline.olap.duckdb import MEMORY, DuckDBMirror
from rhei_pipeline.oltp.sqlite import SqliteDatabase
from rhei_pipeline.oltp.sqlite_schema import read_table, table_names
from rhei_pipeline.pipeline import Declared, Pipeline, no_step
from rhei_pipeline.protocols import ChangeSource, OnStep
from rhei_pipeline.registry import Registry, mirror_id_of
from rhei_pipeline.schema import Table
from rhei_pipeline.settings import BufferSettings, Settings
from rhei_pipeline.sync import Pace


@dataclass(frozen=True, slots=True)
class Engine:
    """Everything open that one declaration asks for; `resources` closes it, last opened first."""

    database: SqliteDatabase
    source: ChangeSource
    mirror: DuckDBMirror
    pipeline: Pipeline
    resources: ExitStack


def open_engine(settings: Settings, on_step: OnStep = no_step) -> Engine:
    """Open source, mirror and pipeline; on an error, close again what was opened."""
    with ExitStack() as stack:
        database = open_source(settings)
        stack.callback(database.close)
        mirror = open_mirror(settings)
        stack.callback(mirror.close)
        in_memory = mirror.path == MEMORY
        registry = Registry(None if in_memory else settings.registry.path, mirror.mirror_id)
        declared = declared_tables(settings, database)
        log = open_buffer(settings.capture.buffer, stack) if settings.capture.buffer else None
        reader = mirror.mirror_id if log is None else log.log_id
        inner = TriggerSource(database, reader, table_options(settings), registry.table)
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


def open_source(settings: Settings) -> SqliteDatabase:
    """Open the operational database."""
    return SqliteDatabase(
        settings.source.path,
        busy_timeout_seconds=settings.source.busy_timeout_seconds,
        read_pool=settings.source.read_pool,
    )


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
        database = open_source(settings)
        stack.callback(database.close)
        log = open_buffer(buffer, stack)
        mirror_id = mirror_id_of(settings.registry.path)
        registry = Registry(settings.registry.path if mirror_id else None, mirror_id or "")
        inner = TriggerSource(database, log.log_id, table_options(settings), registry.table)
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
    database = open_source(settings)
    try:
        unread = unacknowledged(database, name)
    finally:
        database.close()
    return None if unread is None else unread + unapplied


def declared_tables(settings: Settings, database: SqliteDatabase) -> list[Declared]:
    """Return the tables of the declaration; without any, all that have a primary key."""
    if settings.tables is not None:
        return [Declared(table.name, table.mode or settings.mode) for table in settings.tables]
    with database.reader() as connection:
        names = table_names(connection)
    if not names:
        raise SchemaError(
            f"source database {database.path.name!r} has no table with a primary key",
            hint="create one, or name tables and their 'primary_key' under 'tables'",
        )
    return [Declared(name, settings.mode) for name in names]


def declared_schemas(settings: Settings) -> list[Table]:
    """Read the declared tables' schemas from the source, and open nothing else."""
    database = open_source(settings)
    try:
        options, tables = table_options(settings), []
        mirror_id = mirror_id_of(settings.registry.path)
        registry = Registry(settings.registry.path if mirror_id else None, mirror_id or "")
        with database.reader() as connection:
            for declared in declared_tables(settings, database):
                chosen = options.get(declared.name, TableOptions())
                known = registry.table(declared.name)
                found = read_table(
                    connection,
                    declared.name,
                    columns=chosen.columns,
                    primary_key=chosen.primary_key,
                    types=chosen.types,
                    known=known.schema if known else None,
                )
                tables.append(Table(found.schema, declared.mode))
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
