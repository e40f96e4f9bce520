"""Source tables as external assets, and the stream of their changes: where lineage begins."""

import hashlib
import re
from collections.abc import Sequence

import dagster as dg

from rhei_pipeline import HISTORY_FIELDS, Mode, Settings, Table, duckdb_type

CHANGES = dg.AssetKey(["cdc", "changes"])

_KINDS = {"sqlite": "sqlite", "postgres": "postgres"}
_CAPTURED = {
    "trigger": "The keys and row images that triggers log, in the transaction of the change "
    "itself.",
    "logical": "The server's own log, decoded from a replication slot.",
}


def key_parts(table: Table) -> list[str]:
    """Return a table's name as parts of an asset key, its namespace first where it is told."""
    schema = table.schema
    told = schema.namespace is not None and schema.name != schema.relation
    return [_key_part(name) for name in ([schema.namespace] if told else []) + [schema.relation]]


def _key_part(name: str | None) -> str:
    """Write a name with letters, digits and `_` only, as keys demand.

    Another name gets the characters of its own that fit, and a few digits to stay unique.
    """
    name = name or ""
    plain = re.sub(r"[^A-Za-z0-9_]", "_", name)
    return plain if plain == name else f"{plain}_{hashlib.sha256(name.encode()).hexdigest()[:4]}"


def source_key(table: Table) -> dg.AssetKey:
    """Return the key of a table in the source."""
    return dg.AssetKey(["oltp", *key_parts(table)])


def source_specs(tables: Sequence[Table], settings: Settings) -> list[dg.AssetSpec]:
    """Describe the source's tables and the stream of their changes."""
    specs = [
        dg.AssetSpec(
            source_key(table),
            description=f"The table `{table.name}` of the operational database.",
            group_name="oltp",
            kinds={_KINDS[settings.source.kind], "table"},
            metadata={
                "dagster/column_schema": column_schema(table, history=False),
                **_place(table, settings),
                "primary_key": ", ".join(table.schema.primary_key),
            },
        )
        for table in tables
    ]
    stream = dg.AssetSpec(
        CHANGES,
        deps=[spec.key for spec in specs],
        description=_CAPTURED[settings.capture_method],
        group_name="cdc",
        kinds={_KINDS[settings.source.kind], "stream"},
        metadata={"capture_method": settings.capture_method},
    )
    return [*specs, stream]


def _place(table: Table, settings: Settings) -> dict[str, str]:
    """Return where the table is, without connection strings."""
    if settings.source.kind == "sqlite":
        file = settings.sqlite_path
        uri = file.resolve().as_uri()
        return {"dagster/table_name": f"{file.stem}.main.{table.name}", "dagster/uri": uri}
    namespace, relation = table.schema.namespace, table.schema.relation
    return {"dagster/table_name": f"source.{namespace}.{relation}"}


def column_schema(table: Table, *, history: bool) -> dg.TableSchema:
    """Describe a table's columns as its mirror has them."""
    key = table.schema.primary_key
    versioned = history and table.mode is Mode.TEMPORAL
    columns = [
        dg.TableColumn(
            column.name,
            duckdb_type(column.type),
            constraints=dg.TableColumnConstraints(
                nullable=column.nullable, unique=key == (column.name,) and not versioned
            ),
            description="primary key" if column.name in key else None,
        )
        for column in table.schema.columns
    ]
    if versioned:
        columns += [
            dg.TableColumn(field.name, duckdb_type(field.type), description="kept by Rhei")
            for field in HISTORY_FIELDS
        ]
    return dg.TableSchema(columns)
