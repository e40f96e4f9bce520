"""The log of a table as it stands, compared with what all mirrors that read it need."""

import sqlite3
from dataclasses import replace

from rhei_pipeline.errors import SchemaError
from rhei_pipeline.model.schema import Mode, TableOptions
from rhei_pipeline.sources.sqlite.catalog import SqliteTable, read_table
from rhei_pipeline.sources.sqlite.triggers import log_chain, needs
from rhei_pipeline.sources.sqlite.triggers.ddl import capture_sql, object_names
from rhei_pipeline.sources.sqlite.triggers.log_chain import TriggerLog
from rhei_pipeline.sources.sqlite.triggers.needs import Need
from rhei_pipeline.sql.text import literal


def logged_as(source: SqliteTable, log: TriggerLog | None) -> SqliteTable:
    """Return a table with the columns and the key that its log was made for."""
    if log is None or log.schema is None:
        return source
    own = {column.name: column for column in source.schema.columns}
    columns = tuple(own.get(column.name, column) for column in log.schema.columns)
    names = {column.name for column in columns}
    return replace(
        source,
        schema=replace(source.schema, columns=columns, primary_key=log.schema.primary_key),
        unmirrored=tuple(name for name in source.all_names if name not in names),
    )


def is_whole(connection: sqlite3.Connection, source: SqliteTable, log: TriggerLog | None) -> bool:
    """Return whether a log and its triggers are as they would be made now for its columns."""
    if log is None:
        return False
    tables, triggers = object_names(source.schema.name)
    names = ", ".join(literal(name) for name in [*tables, *triggers])
    rows = connection.execute(f"select name, sql from sqlite_master where name in ({names})")
    found = dict(rows.fetchall())
    images = log_chain.holds_images(connection, log.name)
    mode = Mode.TEMPORAL if images else Mode.DESTRUCTIVE
    return capture_sql(logged_as(source, log), mode).objects == found


def holds_just(
    connection: sqlite3.Connection, log: TriggerLog | None, wanted: Need, source: SqliteTable
) -> bool:
    """Return whether a log holds what is wanted, and nothing besides."""
    if log is None or log.schema is None:
        return True
    images = log_chain.holds_images(connection, log.name)
    is_same = {*log.schema.names} == wanted.among(source.all_names)
    return images is wanted.images and (is_same or not images)


def joined_need(
    connection: sqlite3.Connection, mirror: str, source: SqliteTable, need: Need
) -> Need:
    """Return what one mirror and all others need of a table's log, in a transaction.

    Raises:
        SchemaError: Another mirror needs another key, by which rows still can be told apart.
    """
    joined = need
    for other in needs.of_others(connection, mirror, source.schema.name):
        theirs = source.schema.primary_key
        if other.key != need.key:
            found = _key_of(connection, source.schema.name, other)
            if found is None:
                continue  # it cannot be mirrored so any more, and is left out there
            theirs = found
        if theirs != source.schema.primary_key:
            raise SchemaError(
                "another mirror captures it by another key",
                table=source.schema.name,
                hint=f"use 'primary_key: [{', '.join(theirs)}]' here too",
            )
        joined = joined.joined(other)
    return joined


def _key_of(connection: sqlite3.Connection, table: str, need: Need) -> tuple[str, ...] | None:
    options = TableOptions(primary_key=need.key, types=need.types)
    try:
        return read_table(connection, table, options).schema.primary_key
    except SchemaError:
        return None
