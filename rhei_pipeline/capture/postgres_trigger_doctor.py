"""What stands in the way of capturing a PostgreSQL database by triggers, why, and what mends it."""

from collections.abc import Iterator, Sequence
from typing import Any

from rhei_pipeline.capture.postgres_trigger_sql import SCHEMA
from rhei_pipeline.errors import SchemaError
from rhei_pipeline.metrics import Finding, Severity
from rhei_pipeline.oltp.postgres_schema import Connection, PostgresTable
from rhei_pipeline.protocols import ChangeSource
from rhei_pipeline.schema import Table

_LEFT_OUT = "the table is left out until this is mended"
_CREATES = f"""
select to_regnamespace('{SCHEMA}') is not null
        and has_schema_privilege(to_regnamespace('{SCHEMA}')::oid, 'create')
    or to_regnamespace('{SCHEMA}') is null
        and has_database_privilege(current_database(), 'create')
"""
_OWNS = """
select pg_has_role(relowner, 'usage'), pg_get_userbyid(relowner)::text from pg_class where oid = %s
"""
_HAS_LOG = f"""
select to_regclass('{SCHEMA}.capture') is not null
    and to_regclass('{SCHEMA}.log_' || %s) is not null
"""


def examine(
    source: ChangeSource,
    connection: Connection,
    tables: Sequence[tuple[str, PostgresTable | SchemaError]],
) -> Iterator[Finding]:
    """Examine the database and each table: what may be created, what stands, who owns it."""
    if not _one(connection, _CREATES)[0]:
        yield Finding(
            Severity.ERROR,
            f"the user may not create anything in the schema {SCHEMA!r}",
            "the logs of what is touched are kept there",
            f"create schema {SCHEMA} authorization <user>; or: grant create on database <database>"
            " to <user>",
        )
    for name, found in tables:
        if isinstance(found, SchemaError):
            hint, where = found.hint or "", found.table or name
            yield Finding(Severity.ERROR, found.message, _LEFT_OUT, hint, where)
            continue
        shown = found.schema.name
        owns, owner = _one(connection, _OWNS, found.oid)
        if not owns:
            yield Finding(
                Severity.ERROR,
                "the user does not own it",
                f"only its owner may have triggers fire always; {_LEFT_OUT}",
                f'grant "{owner}" to <user>',
                shown,
            )
        elif _one(connection, _HAS_LOG, found.oid)[0] and not source.stands(Table(found.schema)):
            yield Finding(
                Severity.WARNING,
                "its triggers were off, or are not as they were made",
                "changes may have gone by unseen",
                "rhei sync makes them anew, and copies the table by its difference",
                shown,
            )


def _one(connection: Connection, sql: str, *params: object) -> tuple[Any, ...]:
    found = connection.execute(sql.encode(), params or None).fetchone()
    return found if found is not None else (None, None)
