"""Lists the tables to mirror: those that are declared, or else all of the source."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

from rhei_pipeline.settings.model import Settings
from rhei_pipeline.settings.source import SqliteSettings
from rhei_pipeline.sync.kept_history import Declared
from rhei_pipeline.sync.schema_registry import Registry


class TableCatalog(Protocol):
    """A database whose tables can be listed."""

    def table_names(self) -> list[str]:
        """Return the names of all ordinary tables that have a primary key."""

    def other_names(self) -> Mapping[str, str]:
        """Return the names of all other tables and views, each with what it is or lacks."""


def may_be_empty(settings: Settings) -> bool:
    """Return whether a declaration is in order while there is no table to mirror."""
    created = isinstance(settings.source, SqliteSettings) and settings.source.create
    return created or settings.tables is not None


def finding_tables(
    settings: Settings, database: TableCatalog, registry: Registry
) -> Callable[[], list[Declared]]:
    """Return what finds the tables to mirror; those of a declaration stay the same."""
    if settings.tables is None:
        return partial(declared_tables, settings, database, registry)
    declared = declared_tables(settings, database, registry)
    return lambda: declared


def declared_tables(
    settings: Settings, database: TableCatalog, registry: Registry
) -> list[Declared]:
    """Return the tables of the declaration; without any, all that have a primary key.

    Then also those that were mirrored once and are there still, though no key of theirs is: they
    are left out by name, and not forgotten.
    """
    explicit = "mode" in settings.model_fields_set
    if settings.tables is not None:
        return [
            Declared(
                table.name,
                table.mode or settings.mode,
                explicit or table.mode is not None,
                table.mirror_name or "",
            )
            for table in settings.tables
        ]
    names = database.table_names()
    missing = registry.tables.keys() - names
    if missing:
        names += sorted(missing & database.other_names().keys())
    return [Declared(name, settings.mode, explicit) for name in names]
