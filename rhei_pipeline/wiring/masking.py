"""The masks that a declaration asks for."""

from collections.abc import Callable

from rhei_pipeline.changes.masks import MaskingKey, source_table
from rhei_pipeline.model.schema import Table
from rhei_pipeline.settings.model import Settings
from rhei_pipeline.sources.masked_source import DeclaredMasks
from rhei_pipeline.sync.schema_registry import Registrations, Registry
from rhei_pipeline.wiring.table_options import table_options


def declared_masks(settings: Settings, registry: Registrations) -> DeclaredMasks:
    """Return the masks of all tables."""
    key = settings.masking.key
    return DeclaredMasks(
        table_options(settings, registry),
        MaskingKey("" if key is None else key.get_secret_value()),
        names_keys=settings.capture_method == "polling",
    )


def known_to_source(registry: Registry) -> Callable[[str], Table | None]:
    """Return what finds a mirrored table by its name, as the source has it."""

    def found(name: str) -> Table | None:
        known = registry.table(name)
        return None if known is None else source_table(known)

    return found
