"""Declarations of types that would take dead letters, found by trying them on the source."""

from collections.abc import Iterator

import pyarrow as pa

from rhei_pipeline.errors import PermanentError
from rhei_pipeline.model.reports import TypeProposal
from rhei_pipeline.settings.model import Settings
from rhei_pipeline.sync.dead_letters import keys_by_column
from rhei_pipeline.sync.pipeline import Pipeline
from rhei_pipeline.wiring.source import SourceDatabase

#: So many types are proposed for a column.
_MOST = 2


def proposals(
    settings: Settings, letters: pa.Table, pipeline: Pipeline, database: SourceDatabase
) -> Iterator[TypeProposal]:
    """Yield the types that would take most of each column's dead letters, the best first.

    Nothing for a source that types its columns itself, such as PostgreSQL.
    """
    if settings.source.kind != "sqlite":
        return
    from rhei_pipeline.sources.sqlite import type_trials
    from rhei_pipeline.sources.sqlite.database import SqliteDatabase

    assert isinstance(database, SqliteDatabase), "the settings declare another kind of source"
    for (name, column), keys in keys_by_column(letters).items():
        try:
            table = pipeline.table(name)
        except PermanentError:  # it is left out, which is to be mended first
            continue
        if column not in table.schema.names:
            continue
        with database.reader() as connection:
            found = list(type_trials.proposals(connection, table.schema, column, keys))
        safe = [each for each in found if not each.refused] or found
        safe.sort(key=lambda each: (-each.healed, each.refused))
        yield from safe[:_MOST]
