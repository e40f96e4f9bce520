"""A table that triggers capture as the catalogue describes it, and its log as it was made."""

from collections.abc import Mapping
from dataclasses import dataclass

from rhei_pipeline.capture.postgres.trigger_registry import Registered
from rhei_pipeline.capture.postgres.trigger_sql import LoggedColumn, TableLog
from rhei_pipeline.oltp.postgres_schema import PostgresTable
from rhei_pipeline.schema import Mode, Table, TableSchema


@dataclass(frozen=True, slots=True)
class Entry:
    """A table as the catalogue describes it, and all of its columns."""

    source: PostgresTable
    columns: Mapping[str, LoggedColumn]


def is_captured(found: Registered | None, table: Table, entry: Entry) -> bool:
    """Tell whether log and triggers stand as they would be made now, or log more."""
    if found is None or not found.intact or not _is_enough(found, table, entry):
        return False
    return found.wanted == log_of(found, entry).wanted


def _is_enough(found: Registered, table: Table, entry: Entry) -> bool:
    """Tell whether a log keeps what a table's mirror needs."""
    schema = entry.source.schema
    keeps_rows = found.images and {*schema.names} <= {*found.columns}
    return found.key == schema.primary_key and (keeps_rows or table.mode is Mode.DESTRUCTIVE)


def log_of(found: Registered, entry: Entry) -> TableLog:
    """Return a log in the shape it was made in; of a column that is no more, its name is known."""
    columns = tuple(entry.columns.get(name) or _dropped(name) for name in found.columns)
    return TableLog(entry.source, found.key, columns, found.images)


def log_of_the_gone(found: Registered, schema: TableSchema) -> TableLog:
    """Return the log of a table that was dropped or renamed, as its mirror knew that table."""
    columns = tuple(map(_dropped, found.columns))
    return TableLog(PostgresTable(schema, found.relation), found.key, columns, images=True)


def _dropped(name: str) -> LoggedColumn:
    return LoggedColumn(name, 0, 0, "text", None, "operator(pg_catalog.=)")
