"""PostgreSQL's adapters, made from the settings; imported once such a source is wanted."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from rhei_pipeline.errors import SourceError
from rhei_pipeline.model.reports import Finding
from rhei_pipeline.model.schema import TableOptions
from rhei_pipeline.model.standing import SourceStanding
from rhei_pipeline.protocols import Database
from rhei_pipeline.settings.model import Settings
from rhei_pipeline.settings.sections import TableSettings
from rhei_pipeline.settings.source import PostgresSettings
from rhei_pipeline.sources.postgres import grants
from rhei_pipeline.sources.postgres.catalog import slot_name
from rhei_pipeline.sources.postgres.database import PostgresDatabase
from rhei_pipeline.sources.postgres.logical import standing as of_log
from rhei_pipeline.sources.postgres.logical import validate
from rhei_pipeline.sources.postgres.logical.slots import database_of, drop_of_replaced
from rhei_pipeline.sources.postgres.logical.source import LogicalSource
from rhei_pipeline.sources.postgres.polling.source import PostgresPollingSource
from rhei_pipeline.sources.postgres.triggers import abandoned_logs
from rhei_pipeline.sources.postgres.triggers import standing as of_triggers
from rhei_pipeline.sources.postgres.triggers.source import PostgresTriggerSource, unacknowledged

__all__ = [
    "PostgresPollingSource",
    "database_of",
    "drop_of_replaced",
    "findings",
    "of_postgres",
    "open_database",
    "open_source",
    "refuse_standby",
    "slot_name",
    "standing",
    "unread",
    "unread_logs",
]


def of_postgres(database: Database) -> PostgresDatabase:
    """Return a database that the settings say is PostgreSQL's, as such."""
    assert isinstance(database, PostgresDatabase), "the settings declare another kind of source"
    return database


def open_database(settings: Settings) -> PostgresDatabase:
    """Open a server's database; one that is polled is never written to."""
    source = settings.source
    assert isinstance(source, PostgresSettings), "the settings declare another kind of source"
    database = PostgresDatabase(
        source.dsn.get_secret_value(),
        direct_dsn=source.direct_dsn.get_secret_value() if source.direct_dsn else None,
        statement_timeout_seconds=source.statement_timeout_seconds,
        pool_size=source.pool_size,
        connect_timeout_seconds=source.connect_timeout_seconds,
        read_only=settings.capture_method == "polling",
        reread=settings.capture_method != "logical",
        query_seconds=settings.queries.query_seconds,
        query_bytes=settings.queries.query_bytes,
        query_rows=settings.queries.query_rows,
        functions=settings.queries.functions,
    )
    restrict_functions(settings, database, settings.tables or ())
    return database


def refuse_standby(database: PostgresDatabase) -> None:
    """Refuse a server whose rows may be older than a position that was read from another one.

    Raises:
        SourceError: It is a standby.
    """
    if database.is_standby():
        raise SourceError(
            "the server is a standby, and its rows may be older than the copy under way",
            hint="give the primary server in 'source.dsn'; the process with the mirror may read a"
            " standby alone",
        )


def restrict_functions(
    settings: Settings, database: PostgresDatabase, tables: Iterable[TableSettings]
) -> None:
    """Let queries call only named functions of users where a table is masked or filtered."""
    database.allow_named_functions_alone(
        asked=settings.queries.masked == "mirror"
        and any(table.mask or table.where for table in tables)
    )


def open_source(
    settings: Settings,
    database: PostgresDatabase,
    reader: str,
    options: Mapping[str, TableOptions],
    notes: Path | None,
) -> PostgresTriggerSource | LogicalSource:
    """Open capture by triggers or from the server's log, as the settings say."""
    if settings.capture_method == "trigger":
        return PostgresTriggerSource(database, reader, options, notes)
    return LogicalSource(
        database,
        reader,
        options,
        streaming=settings.capture.streaming,
        publication=settings.capture.publication,
        notes=notes,
    )


def unread(settings: Settings, database: PostgresDatabase, reader: str, notes: Path) -> int | None:
    """Count the events that a reader has not acknowledged; None: it never came."""
    if settings.capture_method == "trigger":
        return unacknowledged(database, reader, notes)
    return of_log.unconfirmed(database, reader, settings.capture.publication, notes)


def standing(
    settings: Settings, database: PostgresDatabase, reader: str, pending: int | None
) -> SourceStanding:
    """Return how far the server is ahead of a reader of its changes."""
    if settings.capture_method == "trigger":
        return of_triggers.standing(database, reader, pending)
    return of_log.standing(database, reader, settings.capture.publication, pending)


def findings(
    settings: Settings,
    database: PostgresDatabase,
    names: Sequence[str],
    options: Mapping[str, TableOptions],
    mirror_id: str | None,
) -> list[Finding]:
    """Return what stands in the way of capture by triggers or from the log; changes nothing."""
    if settings.capture_method == "trigger":
        with closing(PostgresTriggerSource(database, mirror_id or "", options)) as source:
            return list(source.validate(names))
    return validate.findings(
        database,
        names,
        lambda name: options.get(name, TableOptions()),
        mirror_id,
        settings.capture.publication,
        streaming=settings.capture.streaming,
    )


def creators(database: PostgresDatabase) -> list[Finding]:
    """Return the schemas whose functions may run as the pipeline's user; changes nothing."""
    with database.translated(), closing(database.connect()) as connection:
        return list(grants.creators(connection))


def unread_logs(database: PostgresDatabase, reader: str | None) -> list[Finding]:
    """Return the logs of triggers that no mirror reads any more; changes nothing."""
    with database.translated(), closing(database.connect()) as connection:
        return list(abandoned_logs.findings(connection, reader))
