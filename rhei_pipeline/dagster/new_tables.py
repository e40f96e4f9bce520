"""Notices that the source's tables, or the declaration, are not what the definitions show."""

import hashlib
from collections.abc import Set as AbstractSet
from pathlib import Path
from urllib.parse import urlsplit

import dagster as dg

from rhei_pipeline.dagster.declaration import Declaration
from rhei_pipeline.dagster.relay import content
from rhei_pipeline.dagster.resources import CdcResource
from rhei_pipeline.errors import SettingsError, needs_extra
from rhei_pipeline.model.schema import Table
from rhei_pipeline.settings.model import Settings
from rhei_pipeline.wiring.declared_schemas import DeclaredSchemas, declared_schemas

_EVERY_SECONDS = 60
_EDITED = "the declaration was changed"
#: The cursor while there is nothing to ask for; Dagster keeps the one before an empty one.
_SHOWN = "shown"
#: How long the webserver may take to reload; a tick that lasts for a minute is ended by Dagster.
_RELOAD_SECONDS = 45


def new_tables_sensors(declaration: Declaration) -> list[dg.SensorDefinition]:
    """Make the sensor that asks for a reload once tables or declaration differ.

    A new table is synced by the next session; its assets are there after a reload. Where
    `schedule.webserver` is declared, the sensor asks it for one; else it says what to reload.
    """
    names = declaration.names
    loaded = _shapes(declaration.tables)
    left_out = declaration.faults.keys()
    file = declaration.settings.file
    loaded_content = content(file)

    @dg.sensor(
        name=names.named("new_tables"),
        minimum_interval_seconds=_EVERY_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Looks once a minute whether tables were added, changed or dropped in the "
        "source, or the declaration was changed, and has the code location reloaded.",
        required_resource_keys={names.cdc},
    )
    def new_tables(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        cdc: CdcResource = getattr(context.resources, names.cdc)
        settings = cdc.settings()
        now = content(file)
        if now != loaded_content and (fault := _fault(file)):
            return dg.SensorResult(skip_reason=f"{_EDITED}, and now every run fails: {fault}")
        edited = _EDITED if now != loaded_content else ""
        found = declared_schemas(settings, settings.schedule.catalog_seconds)
        if found.source_fault is not None and not edited:
            return dg.SensorResult(skip_reason=found.source_fault)
        tables = "" if found.source_fault else _difference(loaded, left_out, found)
        difference = "; ".join(filter(None, (edited, tables)))
        if not difference and declaration.source_fault is None:
            # What comes later may be what a reload was once asked for, as a source that was away.
            return dg.SensorResult(
                skip_reason="the definitions show the source's tables", cursor=_SHOWN
            )
        said = difference or "the source answers again"
        # Of what is there, not of what is said: the same words may come again for another change.
        state = _digest((said, _shapes(found.tables), sorted(found.faults), now))
        location = context.code_location_origin
        name = None if location is None else location.location_name
        if state == context.cursor:
            reason = f"{said}; a reload was asked for already: reload code location {name!r}"
        elif settings.schedule.webserver is None or name is None:
            reason = f"{said}: reload code location {name!r} to see it"
        else:
            told, is_answered = _reload(settings.schedule.webserver, name)
            reason = f"{said}; {told}"
            if not is_answered:  # it is asked again by the next tick
                return dg.SensorResult(skip_reason=reason)
        return dg.SensorResult(skip_reason=reason, cursor=state)

    return [new_tables]


def _fault(file: Path | None) -> str | None:
    """Return why a declaration's file cannot be loaded any more."""
    try:
        if file is not None:
            Settings.load(file)
    except SettingsError as error:
        return str(error)
    return None


def _digest(state: object) -> str:
    return hashlib.sha256(repr(state).encode()).hexdigest()


def _shapes(tables: tuple[Table, ...]) -> dict[str, object]:
    return {table.name: (table.schema.columns, table.schema.primary_key) for table in tables}


def _difference(
    loaded: dict[str, object], left_out: AbstractSet[str], found: DeclaredSchemas
) -> str:
    """Return which tables are not as the definitions show them; an empty text where none is."""
    shapes = _shapes(found.tables)
    parts = {
        "new": sorted(shapes.keys() - loaded.keys()),
        "changed": sorted(
            name for name in shapes.keys() & loaded.keys() if shapes[name] != loaded[name]
        ),
        "gone": sorted(loaded.keys() - shapes.keys()),
        "left out": sorted(found.faults.keys() - left_out),
        "no longer left out": sorted(left_out - found.faults.keys()),
    }
    return "; ".join(f"{what}: {', '.join(names)}" for what, names in parts.items() if names)


def _reload(webserver: str, location: str) -> tuple[str, bool]:
    """Ask a webserver to reload a code location; return what came of it, and if it answered."""
    with needs_extra("dagster", "asking the webserver"):
        from dagster_graphql import DagsterGraphQLClient, ReloadRepositoryLocationStatus
    address = urlsplit(webserver)
    # With its port, and the path that a proxy gives it.
    place = address.netloc + address.path.rstrip("/") if address.netloc else webserver
    client = DagsterGraphQLClient(
        place, use_https=address.scheme == "https", timeout=_RELOAD_SECONDS
    )
    try:
        answer = client.reload_repository_location(location)
    except Exception as error:  # noqa: BLE001  (an unreachable webserver must not fail the tick)
        return f"webserver {webserver} was asked to reload {location!r} and failed: {error}", False
    if answer.status is ReloadRepositoryLocationStatus.SUCCESS:
        return f"code location {location!r} was reloaded", True
    return f"code location {location!r} could not be reloaded: {answer.message}", True
