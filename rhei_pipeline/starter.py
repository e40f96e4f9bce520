"""A first declaration, written from what a live source holds, with a reason for each choice."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rhei_pipeline.errors import SchemaError, SettingsError
from rhei_pipeline.metrics import Severity
from rhei_pipeline.schema import TableOptions, TableSchema
from rhei_pipeline.settings import Settings
from rhei_pipeline.sources import SourceDatabase, examine, open_database

#: Columns whose past values people ask for.
_WORTH_KEEPING = {"status", "state", "price", "balance", "plan", "tier", "stage", "owner_id"}


def starter(source: str) -> str:
    """Write a declaration for a source.

    Args:
        source: A SQLite file's path, or PostgreSQL's connection string.

    Raises:
        SettingsError: The source holds no table that can be mirrored.
    """
    settings = Settings(source=_source(source), mirror={"path": "data/mirror.duckdb"})
    database = open_database(settings)
    try:
        tables = list(_tables(database))
    finally:
        database.close()
    if not any(line.startswith("  - ") for line in tables):
        raise SettingsError(
            "the source has no table that can be mirrored",
            hint="a table needs a primary key; 'rhei check' says more",
        )
    return "\n".join([*_head(settings, source), *tables, *_TAIL, ""])


def _source(source: str) -> dict[str, Any]:
    if source.startswith(("postgres://", "postgresql://")) or "dbname=" in source:
        return {"kind": "postgres", "dsn": source}
    return {"kind": "sqlite", "path": Path(source)}


def _head(settings: Settings, source: str) -> Iterator[str]:
    if settings.source.kind == "postgres":
        yield "# PostgreSQL. Its connection string may hold a password: the environment gives it."
        yield "#   export RHEI__SOURCE__DSN='postgresql://...'"
        yield "source: {kind: postgres}"
        obstacle = _obstacle(settings)
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
    """Say what of the server stands in the way of the way to capture that suits best."""
    found = (f for f in examine(settings) if f.severity is Severity.ERROR and not f.table)
    return next((finding.what for finding in found), None)


def _tables(database: SourceDatabase) -> Iterator[str]:
    for name in database.table_names():
        try:
            schema = database.read_schema(name, TableOptions(), None)
        except SchemaError as error:
            yield f"  # {name}: left out: {error}"
            continue
        yield from _table(schema)


def _table(schema: TableSchema) -> Iterator[str]:
    kept = sorted(_WORTH_KEEPING & {name.lower() for name in schema.names})
    key = ", ".join(json.dumps(name) for name in schema.primary_key)
    yield f"  - name: {json.dumps(schema.name)}"
    if kept:
        yield f"    mode: temporal     # {', '.join(kept)}: its past values are often asked for"
    else:
        yield "    mode: destructive  # nothing in it looks as if its past were asked for"
    yield f"    primary_key: [{key}]  # as the source declares it"


_TAIL = (
    "",
    "# About how many rows are in memory at once, and the pause between background syncs.",
    "sync: {batch_rows: 50000, interval_seconds: 1.0, prune: true}",
    "# When the mirror is older than a query allows: 'sync' first, or ask the source ('oltp').",
    "queries: {when_stale: sync}",
    "registry: {path: data/registry.json}",
)
