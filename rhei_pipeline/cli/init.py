"""A first declaration, written from what a live source holds, with a reason for each choice."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rhei_pipeline.errors import SchemaError, SettingsError
from rhei_pipeline.model.reports import Severity
from rhei_pipeline.model.schema import TableOptions, TableSchema
from rhei_pipeline.settings.model import Settings
from rhei_pipeline.settings.sections import TableSettings
from rhei_pipeline.sql.text import mirror_table
from rhei_pipeline.sync.naming import refuse_like_columns
from rhei_pipeline.wiring.source import SourceDatabase, open_database, validate

#: Columns whose past values people ask for.
_WORTH_KEEPING = {"status", "state", "price", "balance", "plan", "tier", "stage", "owner_id"}


@dataclass(frozen=True, slots=True)
class StarterDeclaration:
    """A generated declaration.

    Attributes:
        text: The declaration, as YAML.
        left_out: The tables and views that it leaves out, with the reasons.
    """

    text: str
    left_out: Mapping[str, str]


def starter(source: str) -> StarterDeclaration:
    """Return a declaration for a source, which a sync accepts unchanged.

    Args:
        source: A SQLite file's path, or PostgreSQL's connection string.

    Raises:
        SettingsError: The source holds no table that can be mirrored.
    """
    settings = Settings(source=_source(source), mirror={"path": "data/mirror.duckdb"})
    database = open_database(settings, looking=True)
    try:
        obstacle = _obstacle(settings) if settings.source.kind == "postgres" else None
        method = "trigger" if obstacle or settings.source.kind == "sqlite" else "logical"
        schemas, left_out = _tables(database, _capturing(settings, method))
    finally:
        database.close()
    if not schemas:
        raise SettingsError(
            "the source has no table that can be mirrored",
            hint="add a primary key to a table that it has"
            + "".join(f"; {name}: {why}" for name, why in left_out.items()),
        )
    entries = [line for schema in schemas for line in _table(schema)]
    omitted = [f"  # {name}: left out: {_one_line(why)}" for name, why in left_out.items()]
    text = "\n".join([*_head(settings, source, obstacle), *entries, *omitted, *_TAIL, ""])
    return StarterDeclaration(text, left_out)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _capturing(settings: Settings, method: str) -> Settings:
    capture = settings.capture.model_copy(update={"method": method})
    return settings.model_copy(update={"capture": capture})


def _tables(
    database: SourceDatabase, settings: Settings
) -> tuple[list[TableSchema], dict[str, str]]:
    """Return the tables that a sync accepts, and why others are left out."""
    left_out = dict(database.other_names())
    schemas: list[TableSchema] = []
    for name in database.table_names():
        try:
            schema = database.read_schema(name, TableOptions(), None)
            refuse_like_columns(schema)
        except SchemaError as error:
            left_out[name] = f"{error.message} ({error.hint})" if error.hint else error.message
        else:
            schemas.append(_with_own_name(schema, schemas))
    declared = [TableSettings(name=schema.name) for schema in schemas]
    if declared:
        for found in validate(settings.model_copy(update={"tables": declared})):
            if found.severity is Severity.ERROR and found.table:
                left_out[found.table] = f"{found.what} ({found.remedy})"
    return [schema for schema in schemas if schema.name not in left_out], left_out


def _with_own_name(schema: TableSchema, others: Sequence[TableSchema]) -> TableSchema:
    """Return a table with another mirror name if its name differs from another's by case only."""
    taken = {mirror_table(other).lower() for other in others}
    number = 1
    while mirror_table(schema).lower() in taken:
        number += 1
        schema = replace(schema, mirror_name=f"{schema.relation}_{number}")
    return schema


def _source(source: str) -> dict[str, Any]:
    if source.startswith(("postgres://", "postgresql://")) or "dbname=" in source:
        return {"kind": "postgres", "dsn": source}
    return {"kind": "sqlite", "path": Path(source)}


def _head(settings: Settings, source: str, obstacle: str | None) -> Iterator[str]:
    if settings.source.kind == "postgres":
        yield "# PostgreSQL. Its connection string may hold a password: the environment gives it."
        yield "#   export RHEI__SOURCE__DSN='postgresql://...'"
        yield "source: {kind: postgres}"
        if obstacle is None:
            yield "# The server's own log is read, through a replication slot."
            yield "capture: {method: logical}"
        else:
            yield f"# The server's own log cannot be read: {obstacle}. So triggers"
            yield "# note what is touched; one that may only be read is captured by 'polling'."
            yield "capture: {method: trigger}"
    else:
        yield "# The application's SQLite file."
        yield f"source: {{kind: sqlite, path: {json.dumps(str(Path(source).resolve()))}}}"
        yield "# Triggers note which keys are touched, in the writer's own transaction: nothing is"
        yield "# missed. A file that may only be read is captured by 'polling'."
        yield "capture: {method: trigger}"
    yield ""
    yield "# The analytical copy; one file, made by the first sync."
    yield "mirror: {kind: duckdb, path: data/mirror.duckdb}"
    yield ""
    yield "# destructive: the mirror is what the source is now. temporal: it keeps every version;"
    yield "# 'rhei as-of' looks back. Leave a table out, and it is not mirrored."
    yield "tables:"


def _obstacle(settings: Settings) -> str | None:
    """Return why logical decoding, the best method, is not possible on this server."""
    found = (f for f in validate(settings) if f.severity is Severity.ERROR and not f.table)
    return next((finding.what for finding in found), None)


def _table(schema: TableSchema) -> Iterator[str]:
    kept = sorted(_WORTH_KEEPING & {name.lower() for name in schema.names})
    key = ", ".join(json.dumps(name) for name in schema.primary_key)
    yield f"  - name: {json.dumps(schema.name)}"
    if schema.mirror_name:
        yield f"    mirror_name: {json.dumps(schema.mirror_name)}  # another differs by case only"
    if kept:
        yield f"    mode: temporal     # {', '.join(kept)}: its earlier values are often needed"
    else:
        yield "    mode: destructive  # nothing in it suggests that its history is needed"
    yield f"    primary_key: [{key}]  # as the source declares it"


_TAIL = (
    "",
    "# About how many rows are in memory at once, and the pause between background syncs.",
    "sync: {batch_rows: 50000, interval_seconds: 1.0, prune: true}",
    "# When the mirror is older than a query allows: 'sync' first, or ask the source ('oltp').",
    "queries: {when_stale: sync}",
    "registry: {path: data/registry.json}",
)
