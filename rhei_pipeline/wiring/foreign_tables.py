"""Tables of others in a DuckDB file that has, or is to have, a mirror; for `rhei check`."""

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace

from rhei_pipeline.errors import RheiError, SchemaDriftError
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
    why = "this table is left out, and the others are mirrored"
    return [
        Finding(Severity.WARNING, error.message, why, error.hint or "", name)
        for name, error in foreign_tables(settings).items()
    ]


def foreign_tables(settings: Settings) -> dict[str, SchemaDriftError]:
    """Return the same, each with the error that a sync will leave the table out with.

    Nothing is changed, and nothing is found while a process holds the file: it has named them.
    """
    if settings.mirror.kind != "duckdb" or not settings.mirror.path.is_file():
        return {}
    contents = read_contents(settings.mirror.path)
    if contents is None or not contents.foreign:
        return {}
    places = _places(settings)
    return {name: made_by_others(name) for name, place in places if place in contents.foreign}


def _places(settings: Settings) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield each table to mirror, and its folded schema and name in the mirror."""
    registry = known_tables(settings)
    options = table_options(settings, registry)
    with ExitStack() as stack:
        database = open_database(settings, looking=True)
        stack.callback(database.close)
        for table in declared_tables(settings, database, registry):
            chosen = options.get(table.name, TableOptions())
            with suppress(RheiError):  # another finding names it
                schema = database.read_schema(table.name, chosen, None)
                yield table.name, folded(replace(schema, mirror_name=table.mirror_name))
