"""Which source, and how its changes are learned of: the only place that knows every adapter."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from rhei_pipeline.buffer.confirmation import unapplied_events
from rhei_pipeline.buffer.events.database import EventLogDatabase
from rhei_pipeline.buffer.events.declared import declared_schema
from rhei_pipeline.buffer.events.source import EventLogSource, unapplied
from rhei_pipeline.buffer.log import ChangeLog
from rhei_pipeline.errors import RheiError, SchemaError, SourceError, needs_extra
from rhei_pipeline.model.forking import refuse_in_fork
from rhei_pipeline.model.ownership import SourceIdentity
from rhei_pipeline.model.reports import Finding, Severity
from rhei_pipeline.model.schema import TableOptions, TableSchema
from rhei_pipeline.protocols import ChangeSource, Database
from rhei_pipeline.settings.model import Settings
from rhei_pipeline.settings.sections import TableSettings
from rhei_pipeline.settings.source import LogSettings, SqliteSettings
from rhei_pipeline.sources import polling_validate
from rhei_pipeline.sources.polling_progress import unseen
from rhei_pipeline.sources.sqlite.database import SqliteDatabase, is_there
from rhei_pipeline.sources.sqlite.polling.source import SqlitePollingSource
from rhei_pipeline.sources.sqlite.triggers import abandoned_logs
from rhei_pipeline.sources.sqlite.triggers.source import SqliteTriggerSource, unacknowledged
from rhei_pipeline.sync.naming import nothing_declared
from rhei_pipeline.sync.schema_registry import Registry, mirror_id_of
from rhei_pipeline.wiring.discovery import declared_tables, may_be_empty
from rhei_pipeline.wiring.masking import declared_masks, known_to_source
from rhei_pipeline.wiring.table_options import poll_options, table_options

_POSTGRES = "a PostgreSQL source"
#: What a reader's notes are called, by how changes are captured.
_NOTES = {"polling": "polled", "logical": "slot", "trigger": "read"}


class SourceDatabase(Database, Protocol):
    """A source's database, and its catalogue."""

    def identity(self) -> SourceIdentity:
        """Return the identity of this source."""

    def marked_identity(self) -> SourceIdentity:
        """Return the same, having written an id into a source that needs one and has none."""

    def table_names(self) -> list[str]:
        """Return the names of all ordinary tables that have a primary key."""

    def other_names(self) -> Mapping[str, str]:
        """Return the names of all other tables and views, each with what it is or lacks."""

    def read_schema(
        self, name: str, options: TableOptions, known: TableSchema | None
    ) -> TableSchema:
        """Read a table's schema; `known` is what it is mirrored with, if it is."""


class Source(ChangeSource, Protocol):
    """A source of changes that this process owns."""

    def forget_mirror(self) -> None:
        """Let the source forget that this mirror exists."""

    def close(self) -> None:
        """Close what it holds; safe to repeat."""


class PolledSource(Source, polling_validate.Polled, Protocol):
    """A source that is only read."""


def open_database(settings: Settings, *, looking: bool = False) -> SourceDatabase:
    """Open the operational database; one that is polled is never opened for writing.

    Where it is only looked at, not even its journal mode is changed.
    """
    refuse_in_fork()
    source = settings.source
    if isinstance(source, SqliteSettings):
        if source.create:
            _refuse_lost(settings, source.path)
        return SqliteDatabase(
            source.path,
            busy_timeout_seconds=source.busy_timeout_seconds,
            read_pool=source.read_pool,
            read_only=settings.capture_method == "polling",
            looking=looking,
            create=source.create,
            query_bytes=settings.queries.query_bytes,
            query_rows=settings.queries.query_rows,
        )
    if isinstance(source, LogSettings):
        return EventLogDatabase(source.path)
    with needs_extra("postgres", _POSTGRES):
        from rhei_pipeline.wiring import postgres
    return postgres.open_database(settings)


def _refuse_lost(settings: Settings, path: Path) -> None:
    """Refuse a missing file that has a mirror already: it would be replaced by an empty one."""
    mirror = settings.mirror
    stands = mirror.url is None and mirror.path.exists()
    is_lost = not is_there(path) and not path.exists()
    if not mirror.in_memory and is_lost and (settings.registry.path.exists() or stands):
        raise SourceError(
            f"source database {str(path)!r} does not exist any more",
            hint="put it back; or delete its mirror and registry as well",
        )


def open_source(
    settings: Settings, database: SourceDatabase, reader: str, registry: Registry
) -> Source:
    """Open capture; the source knows the reader of its changes, a mirror or a buffer, by name."""
    options = table_options(settings, registry)
    if settings.capture_method == "polling":
        return _open_polling(settings, database, registry, _notes_path(settings, reader))
    notes = _notes_path(settings, reader)
    if isinstance(database, SqliteDatabase):
        return SqliteTriggerSource(database, reader, options, known_to_source(registry), notes)
    if settings.source.kind == "log":
        return EventLogSource(log_of(database), reader, options)
    with needs_extra("postgres", _POSTGRES):
        from rhei_pipeline.wiring import postgres
    return postgres.open_source(settings, postgres.of_postgres(database), reader, options, notes)


def open_range_source(
    settings: Settings, database: SourceDatabase, reader: str, registry: Registry
) -> Source:
    """Open a source for its rows alone, whoever captures its changes; notes nothing.

    Raises:
        SourceError: Its rows may be older than what was read of its changes.
    """
    if settings.source.kind == "postgres":
        with needs_extra("postgres", _POSTGRES):
            from rhei_pipeline.wiring import postgres
        postgres.refuse_standby(postgres.of_postgres(database))
    if settings.capture_method == "polling":
        return _open_polling(settings, database, registry, None)
    return open_source(settings, database, reader, registry)


def restrict_functions(
    settings: Settings, database: Database, tables: Iterable[TableSettings]
) -> None:
    """Let queries call only named functions of users where one of all tables is masked.

    A function of SQLite's cannot read a table.
    """
    if settings.source.kind == "postgres":
        with needs_extra("postgres", _POSTGRES):
            from rhei_pipeline.wiring import postgres
        postgres.restrict_functions(settings, postgres.of_postgres(database), tables)


def forget_replaced(
    settings: Settings, database: SourceDatabase, replaced: SourceIdentity, readers: Iterable[str]
) -> None:
    """Let a server forget readers of a database whose name the declared one has taken."""
    if settings.capture_method == "logical":
        with needs_extra("postgres", _POSTGRES):
            from rhei_pipeline.wiring import postgres
        postgres.drop_of_replaced(postgres.of_postgres(database), replaced, readers)


def left_slots(
    settings: Settings, database: SourceDatabase, readers: Iterable[str]
) -> Iterator[str]:
    """Name the slots of former readers on the declared server, which keep its log for them."""
    if settings.capture_method != "logical":
        return
    with needs_extra("postgres", _POSTGRES):
        from rhei_pipeline.wiring import postgres
    for reader in readers:
        name, found = (
            postgres.slot_name(reader),
            postgres.database_of(postgres.of_postgres(database), reader),
        )
        if found is not None:
            yield (
                f"replication slot {name!r} in database {found!r} was left: a copy of this mirror"
                " may read it; where none does, run there: select"
                f" pg_drop_replication_slot('{name}')"
            )


def unread(settings: Settings, reader: str) -> int | None:
    """Count the source's events that a reader has not acknowledged; None: it never came."""
    database = open_database(settings, looking=True)
    try:
        if settings.capture_method == "polling":
            return _unpolled(settings, database, reader)
        if isinstance(database, SqliteDatabase):
            return unacknowledged(database, reader, _notes_path(settings, reader))
        if settings.source.kind == "log":
            return unapplied(log_of(database), reader)
        with needs_extra("postgres", _POSTGRES):
            from rhei_pipeline.wiring import postgres
        notes = _notes_path(settings, reader)
        return postgres.unread(settings, postgres.of_postgres(database), reader, notes)
    finally:
        database.close()


def validate(settings: Settings) -> list[Finding]:
    """Return what prevents mirroring the declared tables; changes nothing."""
    database = open_database(settings, looking=True)
    try:
        registry = known_tables(settings)
        names = [declared.name for declared in declared_tables(settings, database, registry)]
        nothing = None if names or may_be_empty(settings) else nothing_declared()
        return [
            *([] if nothing is None else [_unfit(nothing)]),
            *_validate(settings, database, registry, names),
            *_validate_masks(settings, database, registry, names),
            *_validate_registry(registry, names),
            *_abandoned_logs(settings, database),
            *_validate_sessions(database),
        ]
    finally:
        database.close()


def _unfit(error: RheiError) -> Finding:
    return Finding(Severity.ERROR, error.message, "no sync can begin", error.hint or "")


def unread_logs(settings: Settings) -> list[Finding]:
    """Return the logs in the source that no mirror reads any more; changes nothing."""
    if not isinstance(settings.source, SqliteSettings) and settings.capture_method != "trigger":
        return []
    database = open_database(settings, looking=True)
    try:
        return list(_abandoned_logs(settings, database))
    finally:
        database.close()


def _abandoned_logs(settings: Settings, database: SourceDatabase) -> Iterator[Finding]:
    reader = reader_of(settings) if settings.capture_method == "trigger" else None
    if isinstance(database, SqliteDatabase):
        with database.reader() as connection:
            yield from abandoned_logs.findings(connection, reader)
    elif settings.capture_method == "trigger":
        with needs_extra("postgres", _POSTGRES):
            from rhei_pipeline.wiring import postgres
        yield from postgres.unread_logs(postgres.of_postgres(database), reader)


def _validate_sessions(database: SourceDatabase) -> list[Finding]:
    if isinstance(database, SqliteDatabase | EventLogDatabase):
        return []
    with needs_extra("postgres", _POSTGRES):
        from rhei_pipeline.wiring import postgres
    return postgres.creators(postgres.of_postgres(database))


def reader_of(settings: Settings) -> str | None:
    """Return the name by which the source knows this pipeline; None where nothing was synced."""
    buffer = settings.capture.buffer
    with suppress(RheiError):  # a damaged buffer is named by whoever needs what it holds
        buffered = None if buffer is None else unapplied_events(buffer.path)
        return buffered[0] if buffered else mirror_id_of(settings.registry.path)
    return None


def _validate(
    settings: Settings, database: SourceDatabase, registry: Registry, names: Sequence[str]
) -> list[Finding]:
    if settings.capture_method == "polling":
        return _validate_polling(settings, database, registry, names)
    options = table_options(settings, registry)
    reader = reader_of(settings)

    def chosen(name: str) -> TableOptions:
        return options.get(name, TableOptions())

    if isinstance(database, SqliteDatabase):
        return database.validate(names, chosen)
    if settings.source.kind == "log":
        return list(_undeclared(names, chosen))
    with needs_extra("postgres", _POSTGRES):
        from rhei_pipeline.wiring import postgres
    return postgres.findings(settings, postgres.of_postgres(database), names, options, reader)


def _validate_masks(
    settings: Settings, database: SourceDatabase, registry: Registry, names: Sequence[str]
) -> Iterator[Finding]:
    """Name the masks that do not suit their columns."""
    options, masks = table_options(settings, registry), declared_masks(settings, registry, database)
    for name in names:
        chosen = options.get(name)
        if chosen is None or not (chosen.masks or chosen.where):
            continue
        try:
            masks.masked(database.read_schema(name, chosen, None))
        except SchemaError as error:
            why = "the table is left out until this is fixed"
            yield Finding(Severity.ERROR, error.message, why, error.hint or "", name)


def _undeclared(names: Sequence[str], options: Callable[[str], TableOptions]) -> Iterator[Finding]:
    """Name the tables of a log whose columns or key are not declared."""
    for name in names:
        try:
            declared_schema(name, {name: options(name)})
        except SchemaError as error:
            why = "the table is left out until this is fixed"
            yield Finding(Severity.ERROR, error.message, why, error.hint or "", name)


def log_of(database: Database) -> ChangeLog:
    """Return the log that the settings say the source is."""
    assert isinstance(database, EventLogDatabase), "the settings declare another kind of source"
    return database.log


def known_tables(settings: Settings) -> Registry:
    """Return what the registry knows of the mirror, which is not opened."""
    mirror_id = mirror_id_of(settings.registry.path)
    return Registry(settings.registry.path if mirror_id else None, mirror_id or "")


def _validate_registry(registry: Registry, names: Sequence[str]) -> Iterator[Finding]:
    """Name the tables that were mirrored once and are not followed any more."""
    followed = {name.lower() for name in names}
    for name, table in registry.tables.items():
        known = {name.lower(), table.schema.full_name.lower()}
        if known.isdisjoint(followed):
            since = registry.not_followed.get(name)
            yield Finding(
                Severity.WARNING,
                "no longer followed" + (f" since {since.isoformat()}" if since else ""),
                "the mirror still holds the rows of that time, and no sync changes them;"
                " capture in the source ends a week after a table left the declaration",
                f"declare it again; end its capture now: 'rhei unregister {name}'; or drop it from"
                f" the mirror as well: 'rhei drop-table {name}'",
                name,
            )


def _open_polling(
    settings: Settings, database: SourceDatabase, registry: Registry, notes: Path | None
) -> PolledSource:
    polls, options = poll_options(settings, registry), table_options(settings, registry)
    if isinstance(database, SqliteDatabase):
        return SqlitePollingSource(database, polls, options, known_to_source(registry), notes)
    with needs_extra("postgres", _POSTGRES):
        from rhei_pipeline.wiring import postgres
    return postgres.PostgresPollingSource(postgres.of_postgres(database), polls, options, notes)


def _notes_path(settings: Settings, reader: str) -> Path:
    """Return where a reader notes how far it has come, where the source does not say it."""
    kind = _NOTES.get(settings.capture_method, "read")
    return settings.registry.path.with_name(f"{reader}.{kind}.json")


def _validate_polling(
    settings: Settings, database: SourceDatabase, registry: Registry, names: Sequence[str]
) -> list[Finding]:
    source = _open_polling(settings, database, registry, None)
    try:
        return list(polling_validate.findings(source, names))
    finally:
        source.close()


def _unpolled(settings: Settings, database: SourceDatabase, reader: str) -> int | None:
    registry = known_tables(settings)
    source = _open_polling(settings, database, registry, None)
    try:
        modes = {table.name: table.mode for table in declared_tables(settings, database, registry)}
        return unseen(source, modes, _notes_path(settings, reader))
    finally:
        source.close()
