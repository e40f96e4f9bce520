"""Which tables differ from what the mirror follows, though no change of theirs is pending."""

from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import replace

from rhei_pipeline.capabilities import changed_unseen, reading_together
from rhei_pipeline.errors import SchemaError
from rhei_pipeline.model.schema import SchemaPolicy, Table
from rhei_pipeline.protocols import ChangeSource
from rhei_pipeline.settings.model import Settings
from rhei_pipeline.sources.masked_source import MaskedSource
from rhei_pipeline.wiring.discovery import declared_tables
from rhei_pipeline.wiring.masking import declared_masks
from rhei_pipeline.wiring.source import known_tables, open_database, open_source, reader_of


def unfollowed_tables(settings: Settings) -> frozenset[str]:
    """Return mirrored tables whose columns are others by now, or whose capture is or was broken.

    Opens the source only, and changes nothing there. A table that cannot be read is none of them,
    nor is one whose schema changes wait for somebody to decide.
    """
    reader = reader_of(settings)
    if reader is None:
        return frozenset()
    with ExitStack() as stack:
        database = open_database(settings, looking=True)
        stack.callback(database.close)
        registry = known_tables(settings)
        inner = open_source(settings, database, reader, registry)
        stack.callback(inner.close)
        source = MaskedSource(inner, declared_masks(settings, registry, database))
        followed = [
            of.name
            for of in declared_tables(settings, database, registry)
            if of.policy is SchemaPolicy.EVOLVE
        ]
        known = [table for table in map(registry.table, followed) if table is not None]
        with reading_together(source, [table.name for table in known]):
            unseen = changed_unseen(source)
            return frozenset(
                table.name for table in known if not _is_followed(table, source, unseen)
            )


def _is_followed(known: Table, source: ChangeSource, unseen: Collection[str]) -> bool:
    try:
        schema = source.describe(known.name)
    except SchemaError:
        return True  # it is left out for that
    same = replace(schema, mirror_name=known.schema.mirror_name) == known.schema
    return same and known.name not in unseen and source.is_installed(known)
