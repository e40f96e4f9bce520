"""Notices that the source's tables are no longer those that the definitions were built from."""

import hashlib
from collections.abc import Set as AbstractSet
from urllib.parse import urlsplit

import dagster as dg

from rhei_pipeline.dagster.declaration import Declaration
from rhei_pipeline.dagster.resources import CdcResource
from rhei_pipeline.errors import needs_extra
from rhei_pipeline.model.schema import Table
from rhei_pipeline.wiring.declared_schemas import DeclaredSchemas, declared_schemas

_EVERY_SECONDS = 60


def new_tables_sensors(declaration: Declaration) -> list[dg.SensorDefinition]:
    """Make the sensor that asks for a reload once the source's tables differ.

    A new table is synced by the next session; its assets are there after a reload. Where
    `schedule.webserver` is declared, the sensor asks it for one; else it says what to reload.
    """
    names = declaration.names
    loaded = _shapes(declaration.tables)
    left_out = declaration.faults.keys()

    @dg.sensor(
        name=names.named("new_tables"),
        minimum_interval_seconds=_EVERY_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Looks once a minute whether tables were added, changed or dropped in the "
        "source, and has the code location reloaded.",
        required_resource_keys={names.cdc},
    )
    def new_tables(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        cdc: CdcResource = getattr(context.resources, names.cdc)
        settings = cdc.settings()
        found = declared_schemas(settings, settings.schedule.catalog_seconds)
        if found.source_fault is not None:
            return dg.SensorResult(skip_reason=found.source_fault)
        difference = _difference(loaded, left_out, found)
        if not difference and declaration.source_fault is None:
            return dg.SensorResult(skip_reason="the definitions show the source's tables")
        said = difference or "the source answers again"
        digest = hashlib.sha256(said.encode()).hexdigest()
        location = context.code_location_origin
        name = None if location is None else location.location_name
        if digest == context.cursor:
            reason = f"{said}; a reload was asked for already: reload code location {name!r}"
        elif settings.schedule.webserver is None or name is None:
            reason = f"{said}: reload code location {name!r} to see it"
        else:
            reason = f"{said}; {_reload(settings.schedule.webserver, name)}"
        return dg.SensorResult(skip_reason=reason, cursor=digest)

    return [new_tables]


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


def _reload(webserver: str, location: str) -> str:
    """Ask a webserver to reload a code location; return what came of it."""
    with needs_extra("dagster", "asking the webserver"):
        from dagster_graphql import DagsterGraphQLClient, ReloadRepositoryLocationStatus
    address = urlsplit(webserver)
    client = DagsterGraphQLClient(
        address.hostname or webserver, port_number=address.port, use_https=address.scheme == "https"
    )
    try:
        answer = client.reload_repository_location(location)
    except Exception as error:  # noqa: BLE001  (an unreachable webserver must not fail the tick)
        return f"webserver {webserver} was asked to reload {location!r} and failed: {error}"
    if answer.status is ReloadRepositoryLocationStatus.SUCCESS:
        return f"code location {location!r} was reloaded"
    return f"code location {location!r} could not be reloaded: {answer.message}"
