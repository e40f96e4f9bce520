"""Creates the source, the mirror, the pipeline and the query service from settings."""

from contextlib import ExitStack
from dataclasses import dataclass

from rhei_pipeline.buffer.confirmation import unapplied_events
from rhei_pipeline.buffer.log import BufferLimits, ChangeLog
from rhei_pipeline.buffer.source import BufferedSource, BufferOptions
from rhei_pipeline.errors import SettingsError
from rhei_pipeline.model.polling import PollOptions
from rhei_pipeline.model.query_limits import AnswerLimits, QueryClock, QueryLimits
from rhei_pipeline.model.schema import TableOptions
from rhei_pipeline.protocols import ChangeSource, Database, OnStep
from rhei_pipeline.query.freshness import Freshness
from rhei_pipeline.query.planner import Engines
from rhei_pipeline.query.service import QueryService
from rhei_pipeline.settings.model import Settings
from rhei_pipeline.settings.source import BufferSettings
from rhei_pipeline.sources.masked_source import MaskedSource
from rhei_pipeline.sources.sqlite.database import SqliteDatabase
from rhei_pipeline.sync.kept_history import Declared
from rhei_pipeline.sync.options import SyncOptions
from rhei_pipeline.sync.pipeline import Pipeline, no_step
from rhei_pipeline.sync.schema_registry import Registry, due_tables, mirror_id_of
from rhei_pipeline.wiring.adoption import claim, claim_buffer
from rhei_pipeline.wiring.cluster import heavy_reads
from rhei_pipeline.wiring.declarations import all_tables
from rhei_pipeline.wiring.discovery import declared_tables, finding_tables, may_be_empty
from rhei_pipeline.wiring.masking import declared_masks
from rhei_pipeline.wiring.mirror import OwnedMirror, open_mirror
from rhei_pipeline.wiring.source import (
    SourceDatabase,
    open_database,
    open_source,
    restrict_functions,
    unread,
)
from rhei_pipeline.wiring.table_options import (
    copy_ranges,
    letter_bounds,
    poll_options,
    table_options,
)


@dataclass(frozen=True, slots=True)
class Engine:
    """Everything open that one declaration asks for; `resources` closes it, last opened first.

    Attributes:
        database: The source.
        source: How its changes are captured, or the buffer over that.
        masked: The same capture, with masked columns.
        oltp: Where the application writes through us: the source, a local database beside a
            source that is only read, or nowhere.
    """

    database: SourceDatabase
    oltp: Database | None
    source: ChangeSource
    masked: MaskedSource
    mirror: OwnedMirror
    pipeline: Pipeline
    registry: Registry
    resources: ExitStack


def open_engine(settings: Settings, on_step: OnStep = no_step) -> Engine:
    """Open source, mirror and pipeline; on an error, close again what was opened."""
    with ExitStack() as stack:
        database = open_database(settings)
        stack.callback(database.close)
        mirror = open_mirror(settings.mirror)
        stack.callback(mirror.close)
        claim(settings, database, mirror)
        in_memory = settings.mirror.in_memory

        def is_new() -> bool:
            return not mirror.ledger().watermarks

        registry = Registry(None if in_memory else settings.registry.path, mirror.mirror_id, is_new)
        restrict_functions(settings, database, all_tables(settings, registry))
        oltp = open_oltp(settings, database, stack)
        find = finding_tables(settings, database, registry)
        log = open_buffer(settings.capture.buffer, stack) if settings.capture.buffer else None
        if log is not None:
            claim_buffer(settings, database, log, mirror.mirror_id, is_new)
        reader = mirror.mirror_id if log is None else log.log_id
        inner = open_source(settings, database, reader, registry)
        stack.callback(inner.close)
        if in_memory:
            # Nobody comes back for it, so the log must not be held for it either.
            stack.callback(inner.forget_mirror)
        masked = MaskedSource(inner, declared_masks(settings, registry, database))
        buffered = None if log is None else _bridged(settings, masked, log, find(), on_step)
        options, polls = table_options(settings, registry), poll_options(settings, registry)
        pipeline = Pipeline(
            find,
            buffered or masked,
            mirror,
            registry,
            SyncOptions(
                settings.sync.batch_rows,
                settings.sync.prune,
                letter_bounds(settings, registry),
                copy_ranges(settings, registry),
            ),
            on_step,
            may_be_empty=may_be_empty(settings),
            said=lambda name: (
                options.get(name, TableOptions()),
                polls.get(name, PollOptions()),
            ),
        )
        source = buffered or inner
        return Engine(database, oltp, source, masked, mirror, pipeline, registry, stack.pop_all())


def open_query_service(settings: Settings, engine: Engine) -> QueryService:
    """Open what answers queries."""
    freshness = Freshness(settings.queries.when_stale, settings.queries.wait_seconds)
    is_log = settings.source.kind == "log"
    engines = Engines(
        engine.database,
        engine.oltp,
        engine.mirror,
        engine.pipeline,
        (settings.source.dialect, settings.mirror.kind),
        is_log,
        settings.queries.masked,
    )
    options = table_options(settings, engine.registry)
    heavy = heavy_reads(settings)
    return QueryService(engines, options, freshness, query_limits(settings), heavy)


def query_limits(settings: Settings) -> QueryLimits:
    """Return what one query may take."""
    asked = settings.queries
    answer = AnswerLimits(asked.query_bytes, asked.query_rows)
    return QueryLimits(asked.query_seconds, answer, asked.at_once, asked.turn_seconds)


def query_clock(settings: Settings) -> QueryClock:
    """Return what ends queries that take too long."""
    return QueryClock(settings.queries.query_seconds)


def open_oltp(settings: Settings, source: SourceDatabase, stack: ExitStack) -> Database | None:
    """Return where writes go: the source; a local database where the source is only read."""
    if settings.source.kind == "log":
        return None
    if settings.capture_method != "polling":
        return source
    if settings.local is None:
        return None
    settings.local.path.parent.mkdir(parents=True, exist_ok=True)
    settings.local.path.touch()
    local = SqliteDatabase(
        settings.local.path,
        query_bytes=settings.queries.query_bytes,
        query_rows=settings.queries.query_rows,
    )
    stack.callback(local.close)
    return local


def open_buffer(buffer: BufferSettings, stack: ExitStack) -> ChangeLog:
    """Open the log that changes go through, alone among all processes."""
    log = ChangeLog(buffer.path, BufferLimits(buffer.max_bytes, buffer.max_age_seconds))
    stack.callback(log.close)
    return log


def _bridged(
    settings: Settings,
    inner: ChangeSource,
    log: ChangeLog,
    declared: list[Declared],
    on_step: OnStep = no_step,
) -> BufferedSource:
    draining = BufferOptions(settings.sync.batch_rows, settings.sync.prune)
    source = BufferedSource(inner, log, draining, on_step)
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
        claim_buffer(settings, database, log, mirror_id)
        registry = Registry(settings.registry.path if mirror_id else None, mirror_id or "")
        inner = open_source(settings, database, log.log_id, registry)
        stack.callback(inner.close)
        declared = declared_tables(settings, database, registry)
        masked = MaskedSource(inner, declared_masks(settings, registry, database))
        return _bridged(settings, masked, log, declared, on_step).drain()


def unseen_events(settings: Settings) -> int | None:
    """Count the source's events that the mirror has not acknowledged, without opening it.

    A table of which a process has found that only a sync can tell what changed counts as one more.
    None when nothing was ever synced.
    """
    mirror_id = mirror_id_of(settings.registry.path)
    buffer = settings.capture.buffer
    # What was buffered is acknowledged to the source, and the mirror may still lack it.
    reader = (mirror_id or "", 0) if buffer is None else unapplied_events(buffer.path)
    if mirror_id is None or reader is None:
        return None
    name, unapplied = reader
    behind = unread(settings, name)
    return None if behind is None else behind + unapplied + due_tables(settings.registry.path)


def unbridged_events(settings: Settings) -> int | None:
    """Count the source's events that the buffer does not have yet, without opening it.

    None when nothing was ever buffered, or there is no buffer.
    """
    buffer = settings.capture.buffer
    reader = None if buffer is None else unapplied_events(buffer.path)
    return None if reader is None else unread(settings, reader[0])
