"""Tables of others in a DuckDB file that has, or is to have, a mirror; for `rhei check`."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

from rhei_pipeline.errors import SchemaError
from rhei_pipeline.mirrors.duckdb.foreign_tables import made_by_others, read_contents
from rhei_pipeline.mirrors.duckdb.tables import folded
from rhei_pipeline.model.reports import Finding, Severity
from rhei_pipeline.model.schema import TableOptions
from rhei_pipeline.settings.model import Settings
from rhei_pipeline.wiring.discovery import declared_tables
from rhei_pipeline.wiring.source import known_tables, open_database
from rhei_pipeline.wiring.table_options import table_options


def validate_foreign(settings: Settings) -> list[Finding]:
    """Find the tables that cannot be mirrored as somebody else has one in their place."""
    if settings.mirror.kind != "duckdb" or not settings.mirror.path.is_file():
        return []
    contents = read_contents(settings.mirror.path)
    return list(_findings(settings, contents.foreign)) if contents and contents.foreign else []


def _findings(settings: Settings, foreign: frozenset[tuple[str, str]]) -> Iterator[Finding]:
    registry = known_tables(settings)
    options = table_options(settings, registry)
    with ExitStack() as stack:
        database = open_database(settings, looking=True)
        stack.callback(database.close)
        for table in declared_tables(settings, database, registry):
            try:
                schema = database.read_schema(
                    table.name, options.get(table.name, TableOptions()), None
                )
            except SchemaError:
                continue  # another finding names it
            if folded(replace(schema, mirror_name=table.mirror_name)) in foreign:
                error = made_by_others(table.name)
                yield Finding(
                    Severity.WARNING,
                    error.message,
                    "this table is left out, and the others are mirrored",
                    error.hint or "",
                    table.name,
                )
