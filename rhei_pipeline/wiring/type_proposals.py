"""Declarations of types that would take dead letters, found by trying them on the source."""

from collections.abc import Iterator, Sequence
from contextlib import closing

import pyarrow as pa

from rhei_pipeline.changes.masks import has_masked_key, source_schema
from rhei_pipeline.errors import PermanentError
from rhei_pipeline.model.reports import TypeProposal
from rhei_pipeline.model.schema import TableSchema
from rhei_pipeline.settings.model import Settings
from rhei_pipeline.sync.dead_letters import keys_by_column
from rhei_pipeline.sync.pipeline import Pipeline
from rhei_pipeline.wiring.source import SourceDatabase

#: So many types are proposed for a column.
_MOST = 2
_OTHER = "the settings declare another kind of source"


def proposals(
    settings: Settings, letters: pa.Table, pipeline: Pipeline, database: SourceDatabase
) -> Iterator[TypeProposal]:
    """Yield the types that would take most of each column's dead letters, the best first.

    Nothing for a log of events, which has nothing else to try them on; nor where the letters name
    no row of the source: by a masked key, or one that has no value.
    """
    if settings.source.kind == "log":
        return
    for (name, column), named in keys_by_column(letters).items():
        try:
            table = pipeline.table(name)
        except PermanentError:  # it is left out, which is to be mended first
            continue
        keys = [key for key in named if None not in key]
        if column not in table.schema.names or has_masked_key(table.schema) or not keys:
            continue
        found = list(_tried(settings, database, source_schema(table.schema), column, keys))
        safe = [each for each in found if not each.refused] or found
        safe.sort(key=lambda each: (-each.healed, each.refused))
        yield from safe[:_MOST]


def _tried(
    settings: Settings,
    database: SourceDatabase,
    table: TableSchema,
    column: str,
    keys: Sequence[tuple[object, ...]],
) -> Iterator[TypeProposal]:
    if settings.source.kind == "postgres":
        from rhei_pipeline.sources.postgres import type_trials as in_postgres
        from rhei_pipeline.sources.postgres.database import PostgresDatabase

        assert isinstance(database, PostgresDatabase), _OTHER
        with database.translated(), closing(database.connect()) as connection:
            yield from in_postgres.proposals(connection, table, column, keys)
    else:
        from rhei_pipeline.sources.sqlite import type_trials as in_sqlite
        from rhei_pipeline.sources.sqlite.database import SqliteDatabase

        assert isinstance(database, SqliteDatabase), _OTHER
        with database.reader() as reader:
            yield from in_sqlite.proposals(reader, table, column, keys)
