"""A first declaration, written from what a live source holds, with a reason for each choice."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
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

#: PostgreSQL's other form of a connection string.
_CONNECTION_STRING = re.compile(r"(?<!\w)(host|hostaddr|dbname|service|user)\s*=")
#: What a connection string may hold that is for nobody else: of a user, a key, or another service.
_SECRETS = ("password", "sslpassword", "scram_client_key", "oauth_client_secret")
#: Databases that people have, by the schemes of their URLs.
_OTHERS = {
    "mysql": "a MySQL database",
    "mariadb": "a MariaDB database",
    "mongodb": "a MongoDB database",
    "mssql": "a SQL Server database",
    "sqlserver": "a SQL Server database",
    "oracle": "an Oracle database",
    "duckdb": "a DuckDB file",
    "redis": "a Redis database",
    "s3": "an object store",
    "http": "a web address",
    "https": "a web address",
}


@dataclass(frozen=True, slots=True)
class StarterDeclaration:
    """A generated declaration.

    Attributes:
        text: The declaration, as YAML.
        left_out: The tables and views that it leaves out, with the reasons.
        secret: The line of a `.env` file that it needs beside it; None where it holds all.
    """

    text: str
    left_out: Mapping[str, str]
    secret: str | None = None


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
    from rhei_pipeline.cli.declaration_text import (
        declaration_text,
        postgres_source,
        sqlite_source,
    )

    secret = _secret(settings)
    if settings.source.kind == "postgres":
        declared = postgres_source(None if secret else source)
    else:
        declared = sqlite_source(str(settings.sqlite_path.resolve()))
    told = {name: _one_line(why) for name, why in left_out.items()}
    # Days end in UTC unless the declaration says otherwise.
    today = datetime.now(UTC).date()
    text = declaration_text(declared, method, obstacle, schemas, told, today)
    return StarterDeclaration(text, left_out, secret)


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
    scheme, has_scheme, rest = source.partition("://")
    if scheme.lower() in {"postgres", "postgresql"} or _CONNECTION_STRING.search(source):
        return {"kind": "postgres", "dsn": source}
    if scheme.lower() == "file" and has_scheme:
        return {"kind": "sqlite", "path": Path(rest)}
    if scheme.lower() == "sqlite" and has_scheme:  # a fourth slash begins an absolute path
        return {"kind": "sqlite", "path": Path(rest.removeprefix("/"))}
    if has_scheme and scheme.isidentifier():
        known = _OTHERS.get(scheme.lower(), f"a source {scheme!r}")
        raise SettingsError(
            f"{known} cannot be mirrored",
            hint="a source is a SQLite file, or a PostgreSQL server by its postgresql:// URL",
        )
    return {"kind": "sqlite", "path": Path(source)}


def _secret(settings: Settings) -> str | None:
    """Return the variable that gives a connection string with a secret; None without one."""
    if settings.source.kind != "postgres":
        return None
    from psycopg.conninfo import conninfo_to_dict

    dsn = settings.source.dsn.get_secret_value()
    parts = conninfo_to_dict(dsn)
    if not any(parts.get(name) for name in _SECRETS):
        return None
    quoted = dsn.replace("\\", "\\\\").replace("'", "\\'")
    return f"RHEI__SOURCE__DSN='{quoted}'"


def _obstacle(settings: Settings) -> str | None:
    """Return why logical decoding, the best method, is not possible on this server."""
    found = (f for f in validate(settings) if f.severity is Severity.ERROR and not f.table)
    return next((finding.what for finding in found), None)
