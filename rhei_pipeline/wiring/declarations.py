"""What is said of tables: in the declaration, and at run time beside it."""

from collections.abc import Callable, Mapping
from typing import Any

from rhei_pipeline.errors import SchemaError, SettingsError
from rhei_pipeline.settings.model import Settings
from rhei_pipeline.settings.sections import TableSettings
from rhei_pipeline.settings.shards import plain_name_in
from rhei_pipeline.sync.schema_registry import Registrations, Registry

#: Of a table that would be found in the source: it is not to be mirrored.
_IGNORED = {"ignored": True}


def plain_name(settings: Settings) -> Callable[[str], str]:
    """Return what gives all spellings of one table's name the same form."""
    return plain_name_in(settings.source.kind)


def declared(settings: Settings, name: str) -> TableSettings | None:
    """Return what the declaration says of a table; None if it does not name it."""
    plain = plain_name(settings)
    return next((t for t in settings.tables or () if plain(t.name) == plain(name)), None)


def registered(settings: Settings, registry: Registrations) -> list[TableSettings]:
    """Return the tables that were registered at run time and that the declaration does not name."""
    plain = plain_name(settings)
    named = {plain(table.name) for table in settings.tables or ()}
    return [
        TableSettings.model_validate(form)
        for name, form in registry.registered.items()
        if name not in named and form != _IGNORED
    ]


def ignored(registry: Registrations) -> set[str]:
    """Return the plain names of tables that are in the source and are not to be mirrored."""
    return {name for name, form in registry.registered.items() if form == _IGNORED}


def all_tables(settings: Settings, registry: Registrations) -> list[TableSettings]:
    """Return all tables of which something is said."""
    return [*(settings.tables or ()), *registered(settings, registry)]


def joined(settings: Settings, registry: Registry, asked: TableSettings) -> TableSettings:
    """Return what is said of a table with what is asked for beside it; nothing is changed yet.

    Raises:
        SchemaError: The declaration says something else of it.
        SettingsError: A table of this pipeline cannot be polled so, or is another shard's.
    """
    _refuse_of_other_shard(settings, asked.name)
    given = {name: getattr(asked, name) for name in asked.model_fields_set - {"name"}}
    standing = declared(settings, asked.name)
    if standing is not None:
        _refuse_other(settings, standing, given)
        return standing
    plain = plain_name(settings)
    known = (t for t in registered(settings, registry) if plain(t.name) == plain(asked.name))
    found = next(known, TableSettings(name=asked.name)).model_copy(update=given)
    settings.refuse_table(found)
    return found


def remember(settings: Settings, registry: Registry, table: TableSettings) -> None:
    """Keep what was registered at run time, unless the declaration says the same."""
    if declared(settings, table.name) is not None:
        return
    form = table.model_dump(mode="json", exclude_defaults=True)
    is_found_anyhow = settings.tables is None and form.keys() == {"name"}
    registry.register(plain_name(settings)(table.name), None if is_found_anyhow else form)


def refuse_declared(settings: Settings, name: str) -> None:
    """Refuse to end the capture of a table that the next sync would capture again.

    Raises:
        SchemaError: The declaration names it.
    """
    if declared(settings, name) is not None:
        raise SchemaError(
            "the declaration names it",
            table=name,
            hint="remove it from 'tables' there; then 'rhei unregister' ends its capture",
        )


def forget(settings: Settings, registry: Registry, name: str) -> None:
    """Forget what was registered of a table; where all are mirrored, it is ignored from now on."""
    form = _IGNORED if settings.tables is None else None
    registry.register(plain_name(settings)(name), form)


def _refuse_of_other_shard(settings: Settings, name: str) -> None:
    if settings.sharding is not None and not settings.takes(name):
        shard = settings.sharding.shard_of(name)
        raise SettingsError(
            f"table {name!r} belongs to shard {shard} of this declaration",
            hint=f"register it there: with '--shard {shard}', or settings.of_shard({shard})",
        )


def _refuse_other(settings: Settings, table: TableSettings, given: Mapping[str, Any]) -> None:
    is_open = {"mode"} if "mode" not in settings.model_fields_set else set[str]()
    for name, value in given.items():
        if name in is_open and table.mode is None:
            continue
        said = (table.mode or settings.mode) if name == "mode" else getattr(table, name)
        if value != said:
            raise SchemaError(
                f"the declaration says otherwise of its {name!r}",
                table=table.name,
                hint="change it there, and leave it out of the call",
            )


def table_settings(fields: Mapping[str, Any]) -> TableSettings:
    """Return what is asked for of a table.

    Raises:
        SettingsError: A field does not make sense; names it.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    return Settings.checked(TableSettings, given, "tables")
