"""The masks that a declaration asks for."""

from collections.abc import Callable

from rhei_pipeline.changes.masks import MaskingKey, source_table
from rhei_pipeline.model.schema import Table, TableOptions, TableSchema
from rhei_pipeline.model.semantics import MirroredTable
from rhei_pipeline.protocols import Database
from rhei_pipeline.settings.model import Settings
from rhei_pipeline.sources.masked_source import DeclaredMasks, Filters
from rhei_pipeline.sync.schema_registry import Registrations, Registry
from rhei_pipeline.wiring.table_options import table_options


def declared_masks(
    settings: Settings, registry: Registrations, database: Database
) -> DeclaredMasks:
    """Return the masks and row filters of all tables."""
    options = table_options(settings, registry)

    def meaning(schema: TableSchema) -> MirroredTable | None:
        said = database.meanings([Table(schema)], lambda name: options.get(name, TableOptions()))
        return said[0] if said else None

    return DeclaredMasks(
        options,
        masking_key(settings),
        names_keys=settings.capture_method == "polling",
        filters=Filters(settings.source.dialect, meaning),
    )


def masking_key(settings: Settings) -> MaskingKey:
    """Return the key of hashes."""
    key = settings.masking.key
    return MaskingKey("" if key is None else key.get_secret_value())


def known_to_source(registry: Registry) -> Callable[[str], Table | None]:
    """Return what finds a mirrored table by its name, as the source has it."""

    def found(name: str) -> Table | None:
        known = registry.table(name)
        return None if known is None else source_table(known)

    return found
