"""Columns that a mirror from before keeps as text, for `rhei check`."""

from collections.abc import Iterator
from contextlib import ExitStack

from rhei_pipeline.errors import MirrorBusyError, MirrorError, SchemaError
from rhei_pipeline.model.reports import Finding, Severity
from rhei_pipeline.model.schema import Table, TableOptions, TableSchema
from rhei_pipeline.settings.model import Settings
from rhei_pipeline.wiring.mirror import is_made, open_mirror
from rhei_pipeline.wiring.source import known_tables, open_database
from rhei_pipeline.wiring.table_options import table_options


def validate_texts(settings: Settings) -> list[Finding]:
    """Find the columns that DuckDB has as text and could have as more; waits for no mirror."""
    if settings.mirror.kind != "duckdb" or not is_made(settings.mirror):
        return []
    patience = settings.mirror.model_copy(update={"lock_timeout_seconds": 0.0, "published": None})
    with ExitStack() as stack:
        try:
            mirror = open_mirror(patience)
        except (MirrorBusyError, MirrorError):
            return []  # another finding names that, or whoever holds it has looked
        stack.callback(mirror.close)
        standing = list(mirror.tables().values())
    return list(_findings(settings, standing))


def _findings(settings: Settings, standing: list[Table]) -> Iterator[Finding]:
    options = table_options(settings, known_tables(settings))
    with ExitStack() as stack:
        database = open_database(settings, looking=True)
        stack.callback(database.close)
        for table in standing:
            chosen = options.get(table.name, TableOptions())
            try:
                described = database.read_schema(table.name, chosen, table.schema)
            except SchemaError:
                continue  # what it no longer has, or cannot be mirrored, is found elsewhere
            names = _kept(table.schema, described)
            if names:
                yield _finding(table.name, names)


def _kept(standing: TableSchema, described: TableSchema) -> list[str]:
    held = {column.name: column.logical for column in standing.columns}
    return [name for name in described.logical if name in held and held[name] is None]


def _finding(table: str, names: list[str]) -> Finding:
    return Finding(
        Severity.NOTE,
        f"{', '.join(names)} of an earlier version's mirror: text, and nothing more than text",
        "DuckDB's functions for these do not take text",
        f"run 'rhei copy --table {table}', which converts them and keeps the history; one that"
        f" stays text has other values in it: 'types: {{{names[0]}: text}}'",
        table,
    )
