"""What an asset's page shows before anything has run: columns, place, key."""

from typing import Any

import dagster as dg

from rhei_pipeline.dagster.descriptions import column_description, snapshot_place
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
            "dagster/column_schema": _snapshot_schema(table),
            "dagster/table_name": f"{settings.mirror.path.stem}.{snapshot_place(table)}",
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
    versioned = history and table.mode is Mode.TEMPORAL
    columns = _columns(table, is_key_unique=not versioned)
    if versioned:
        columns += [
            dg.TableColumn(field.name, duckdb_type(field.type), description=_KEPT[field.name])
            for field in HISTORY_FIELDS
        ]
    return dg.TableSchema(columns)


def _snapshot_schema(table: Table) -> dg.TableSchema:
    """Describe a table's snapshots: all days are in one table, so a key is there once for each."""
    day = dg.TableColumn(
        "snapshot_date",
        "date",
        constraints=dg.TableColumnConstraints(nullable=False),
        description="the window that the row is of, by the day that it begins with",
    )
    return dg.TableSchema([day, *_columns(table, is_key_unique=False)])


def _columns(table: Table, *, is_key_unique: bool) -> list[dg.TableColumn]:
    key = table.schema.primary_key
    return [
        dg.TableColumn(
            column.name,
            duckdb_type(column.type, column.logical),
            constraints=dg.TableColumnConstraints(
                nullable=column.nullable, unique=is_key_unique and key == (column.name,)
            ),
            description=column_description(column, table),
        )
        for column in table.schema.columns
    ]
