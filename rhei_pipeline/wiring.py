"""The one place where a name in the settings becomes an object."""

from contextlib import ExitStack
from dataclasses import dataclass

from rhei_pipeline.capture.trigger_log import TableOptions, TriggerSource, unacknowledged
from rhei_pipeline.errors import SchemaError
from rhei_pipeline.olap.duckdb import MEMORY, DuckDBMirror
from rhei_pipeline.oltp.sqlite import SqliteDatabase
from rhei_pipeline.oltp.sqlite_schema import read_table, table_names
from rhei_pipeline.pipeline import Declared, Pipeline, no_step
from rhei_pipeline.protocols import OnStep
from rhei_pipeline.registry import Registry, mirror_id_of
from rhei_pipeline.schema import Table
from rhei_pipeline.settings import Settings
from rhei_pipeline.sync import Pace


@dataclass(frozen=True, slots=True)
class Engine:
    """Everything open that one declaration asks for; `resources` closes it, last opened first."""

    database: SqliteDatabase
    source: TriggerSource
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
        options = table_options(settings)
        source = TriggerSource(database, mirror.mirror_id, options, registry.table)
        stack.callback(source.close)
        if in_memory:
            # Nobody comes back for it, so the log must not be held for it either.
            stack.callback(source.forget_mirror)
        pipeline = Pipeline(
            declared_tables(settings, database),
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


def unseen_events(settings: Settings) -> int | None:
    """Count the source's events that the mirror has not acknowledged, without opening it.

    None when nothing was ever synced.
    """
    mirror_id = mirror_id_of(settings.registry.path)
    if mirror_id is None:
        return None
    database = open_source(settings)
    try:
        return unacknowledged(database, mirror_id)
    finally:
        database.close()


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
