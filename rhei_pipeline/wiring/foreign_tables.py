"""What others made in a DuckDB file that has, or is to have, a mirror; for `rhei check`."""

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace

from rhei_pipeline.errors import RheiError, SchemaDriftError
from rhei_pipeline.mirrors.duckdb.foreign_tables import made_by_others, read_contents, read_macros
from rhei_pipeline.mirrors.duckdb.tables import folded
from rhei_pipeline.model.reports import Finding, Severity
from rhei_pipeline.model.schema import TableOptions
from rhei_pipeline.settings.model import Settings
from rhei_pipeline.wiring.discovery import declared_tables
from rhei_pipeline.wiring.source import known_tables, open_database
from rhei_pipeline.wiring.table_options import table_options


def validate_foreign(settings: Settings) -> list[Finding]:
    """Find tables that are not mirrored as others have one in their place, and functions replaced.

    Nothing is found while a process holds the file.
    """
    why = "this table is left out, and the others are mirrored"
    found = [
        Finding(Severity.WARNING, error.message, why, error.hint or "", name)
        for name, error in foreign_tables(settings).items()
    ]
    if _is_file(settings) and (macros := read_macros(settings.mirror.path)):
        found.append(
            Finding(
                Severity.ERROR,
                f"the mirror's file has macros that somebody else made by names of DuckDB's own"
                f" functions: {', '.join(macros)}",
                "whatever a query or a sync computes by these names is computed by the macros",
                "drop them in DuckDB while nothing has the file open, or give another mirror.path",
            )
        )
    return found


def foreign_tables(settings: Settings) -> dict[str, SchemaDriftError]:
    """Return the same, each with the error that a sync will leave the table out with.

    Nothing is changed, and nothing is found while a process holds the file: it has named them.
    """
    if not _is_file(settings):
        return {}
    contents = read_contents(settings.mirror.path)
    if contents is None or not contents.foreign:
        return {}
    places = _places(settings)
    return {name: made_by_others(name) for name, place in places if place in contents.foreign}


def _is_file(settings: Settings) -> bool:
    return settings.mirror.kind == "duckdb" and settings.mirror.path.is_file()


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
