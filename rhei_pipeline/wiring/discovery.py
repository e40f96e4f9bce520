"""Lists the tables to mirror: those that are declared, or else all of the source."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Protocol

from rhei_pipeline.settings.model import Settings
from rhei_pipeline.settings.source import SqliteSettings
from rhei_pipeline.sync.kept_history import Declared
from rhei_pipeline.sync.schema_registry import Registry
from rhei_pipeline.wiring.declarations import all_tables, ignored, plain_name, registered


class TableCatalog(Protocol):
    """A database whose tables can be listed."""

    def table_names(self) -> list[str]:
        """Return the names of all ordinary tables that have a primary key."""

    def other_names(self) -> Mapping[str, str]:
        """Return the names of all other tables and views, each with what it is or lacks."""


def may_be_empty(settings: Settings) -> bool:
    """Return whether a declaration is in order while there is no table to mirror."""
    created = isinstance(settings.source, SqliteSettings) and settings.source.create
    return created or settings.tables is not None or settings.shard is not None


def finding_tables(
    settings: Settings, database: TableCatalog, registry: Registry
) -> Callable[[], list[Declared]]:
    """Return what finds the tables to mirror; those that are named change with the registry."""
    if settings.tables is None:
        return partial(declared_tables, settings, database, registry)
    known: tuple[object, list[Declared]] | None = None

    def find() -> list[Declared]:
        nonlocal known
        if known is None or known[0] is not registry.registered:
            known = (registry.registered, named_tables(settings, registry))
        return known[1]

    return find


def declared_tables(
    settings: Settings, database: TableCatalog, registry: Registry
) -> list[Declared]:
    """Return the tables that are named; where the declaration names none, all that have a key.

    Then also those that were mirrored once and are there still, though no key of theirs is: they
    are left out by name, and not forgotten. Those that were unregistered are not among them.
    """
    named = named_tables(settings, registry)
    if settings.tables is not None:
        return named
    names = database.table_names()
    missing = registry.tables.keys() - names
    if missing:
        names += sorted(missing & database.other_names().keys())
    return [*named, *_all_others(names, settings, registry)]


def named_tables(settings: Settings, registry: Registry) -> list[Declared]:
    """Return the tables that are declared or registered by name."""
    explicit = "mode" in settings.model_fields_set
    return [
        Declared(
            table.name,
            table.mode or settings.mode,
            explicit or table.mode is not None,
            table.mirror_name or "",
            table.schema_changes or settings.schema_changes,
            table.dropped_columns or settings.dropped_columns,
        )
        for table in all_tables(settings, registry)
    ]


def mirrored_before(settings: Settings, registry: Registry) -> list[Declared]:
    """Return the tables to mirror as they are known without the source."""
    named = named_tables(settings, registry)
    if settings.tables is not None:
        return named
    return [*named, *_all_others(sorted(registry.tables), settings, registry)]


def _all_others(names: Iterable[str], settings: Settings, registry: Registry) -> list[Declared]:
    """Return those of the tables of which nothing is said."""
    explicit, plain = "mode" in settings.model_fields_set, plain_name(settings)
    known = {plain(table.name) for table in registered(settings, registry)}
    known |= ignored(registry)
    return [
        Declared(
            name,
            settings.mode,
            explicit,
            policy=settings.schema_changes,
            dropped=settings.dropped_columns,
        )
        for name in names
        if plain(name) not in known and settings.takes(name)
    ]
