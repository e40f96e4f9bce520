"""What an asset's page shows before anything has run: columns, place, key."""

from typing import Any

import dagster as dg

from rhei_pipeline.dagster.descriptions import column_description
from rhei_pipeline.dagster.stages import Stage
from rhei_pipeline.model.schema import (
    HISTORY_FIELDS,
    OPERATION,
    VALID_FROM,
    VALID_TO,
    Mode,
    Table,
)
from rhei_pipeline.settings.model import Settings
from rhei_pipeline.sql.text import duckdb_type

_KEPT = {
    VALID_FROM: "since when this version is valid, by the source's clock",
    VALID_TO: "when it ended; empty while it is valid",
    OPERATION: "I: inserted, U: updated, D: the last version before the row was deleted",
}


def static_metadata(stage: Stage, settings: Settings, table: Table | None) -> dict[str, Any]:
    """Return the metadata of a table at a stage; no connection string is in it."""
    if table is None:
        return {"capture_method": settings.capture_method}
    if stage is Stage.SOURCE:
        return {
            "dagster/column_schema": column_schema(table, history=False),
            **_source_place(table, settings),
            "primary_key": ", ".join(table.schema.primary_key),
        }
    if stage is Stage.MIRROR:
        return {
            "dagster/column_schema": column_schema(table, history=True),
            "dagster/table_name": f"{settings.mirror.path.stem}.{_mirror_place(table)}",
            "dagster/storage_kind": settings.mirror.kind,
            "dagster/uri": settings.mirror.uri,
        }
    if stage is Stage.SNAPSHOT:
        return {
            "dagster/column_schema": column_schema(table, history=False),
            "dagster/table_name": f"{settings.mirror.path.stem}.snapshot.{table.name}",
        }
    return {}


def column_lineage(table: Table, upstream: dg.AssetKey) -> dict[str, Any]:
    """Return the metadata that lead each column to the one that it comes from."""
    lineage = dg.TableColumnLineage(
        {name: [dg.TableColumnDep(upstream, name)] for name in table.schema.names}
    )
    return {"dagster/column_lineage": lineage}


def _source_place(table: Table, settings: Settings) -> dict[str, str]:
    if settings.source.kind == "sqlite":
        file = settings.sqlite_path
        uri = file.resolve().as_uri()
        return {"dagster/table_name": f"{file.stem}.main.{table.name}", "dagster/uri": uri}
    namespace, relation = table.schema.namespace, table.schema.relation
    return {"dagster/table_name": f"source.{namespace}.{relation}"}


def _mirror_place(table: Table) -> str:
    return f"{table.schema.namespace or 'main'}.{table.schema.mirror_relation}"


def column_schema(table: Table, *, history: bool) -> dg.TableSchema:
    """Describe a table's columns as its mirror has them."""
    key = table.schema.primary_key
    versioned = history and table.mode is Mode.TEMPORAL
    columns = [
        dg.TableColumn(
            column.name,
            duckdb_type(column.type, column.logical),
            constraints=dg.TableColumnConstraints(
                nullable=column.nullable, unique=key == (column.name,) and not versioned
            ),
            description=column_description(column, table),
        )
        for column in table.schema.columns
    ]
    if versioned:
        columns += [
            dg.TableColumn(field.name, duckdb_type(field.type), description=_KEPT[field.name])
            for field in HISTORY_FIELDS
        ]
    return dg.TableSchema(columns)
