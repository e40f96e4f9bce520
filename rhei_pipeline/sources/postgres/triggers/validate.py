"""Findings of `rhei check` about triggers in PostgreSQL: what prevents capture, and the fix."""

from collections.abc import Collection, Iterator, Sequence

from rhei_pipeline.errors import CaptureError, SchemaError
from rhei_pipeline.model.reports import Finding, Severity
from rhei_pipeline.model.schema import Table
from rhei_pipeline.protocols import ChangeSource
from rhei_pipeline.sources.postgres import grants
from rhei_pipeline.sources.postgres.catalog import Connection, PostgresTable
from rhei_pipeline.sources.postgres.identity import one
from rhei_pipeline.sources.postgres.triggers.ddl import SCHEMA
from rhei_pipeline.sources.postgres.triggers.registry import PREPARED
from rhei_pipeline.sources.postgres.versions import Since, has
from rhei_pipeline.sql.text import quote

_UNFIT = """
select c.oid::bigint, c.relkind = 'p' or c.relispartition
        or exists (select from pg_inherits where c.oid in (inhrelid, inhparent)),
    c.relpersistence <> 'p',
    exists (select from pg_subscription_rel where srrelid = c.oid)
from pg_class c where c.oid = any(%s::oid[])
"""
_REASONS = (
    (
        "it is partitioned or inherited, and statements on its parts do not fire its triggers",
        "capture it by 'logical' or 'polling'",
    ),
    ("the server empties it after a crash without firing triggers", "make it a logged table"),
    (
        "a subscription fills it, and replication fires no statement triggers",
        "capture from the server that publishes it, or use 'logical' or 'polling'",
    ),
)
_CREATES = f"""
select to_regnamespace('{SCHEMA}') is not null
        and has_schema_privilege(to_regnamespace('{SCHEMA}')::oid, 'create')
        and has_schema_privilege(to_regnamespace('{SCHEMA}')::oid, 'usage')
    or to_regnamespace('{SCHEMA}') is null
        and has_database_privilege(current_database(), 'create')
"""
_HAS_LOG = f"""
select exists ({PREPARED}) and exists (
    select from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = '{SCHEMA}' and c.relname = 'log_' || %s)
"""
_SHARES = f"""
select coalesce(bool_and(has_table_privilege(c.oid, 'select')
    and has_table_privilege(c.oid, 'insert') and has_table_privilege(c.oid, 'update')
    and has_table_privilege(c.oid, 'delete')), true), min(pg_get_userbyid(c.relowner)::text)
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname = '{SCHEMA}' and c.relkind = 'r'
"""


def faults_of(connection: Connection, oids: Collection[int]) -> dict[int, Sequence[bool]]:
    """Return which reasons there are why triggers would not see every change, by oid."""
    return {oid: found for oid, *found in connection.execute(_UNFIT, (list(oids),))}


def is_filled(faults: Sequence[bool]) -> bool:
    """Return whether a subscription fills a table; `faults` is as `faults_of` has it."""
    return faults[-1]


def refuse_unfit(table: PostgresTable, faults: Sequence[bool]) -> None:
    """Refuse a table whose triggers would not see every change; `faults` is as `faults_of` has it.

    Raises:
        SchemaError: Says why; the hint says what to do.
    """
    for is_so, (reason, hint) in zip(faults, _REASONS, strict=True):
        if is_so:
            raise SchemaError(reason, table=table.schema.name, hint=hint)


def refuse_old(connection: Connection) -> None:
    """Refuse a server without the trigger features that capture needs.

    Raises:
        CaptureError: The hint says what to do.
    """
    if not has(connection, Since.TRIGGERS_REPLACED):
        connection.close()
        raise CaptureError(
            "the server is older than PostgreSQL 14, and only since then can triggers be "
            "replaced in place",
            hint="upgrade it, or use 'capture: {method: logical}' or 'polling'",
        )


def findings(
    source: ChangeSource,
    connection: Connection,
    tables: Sequence[tuple[str, PostgresTable | SchemaError]],
) -> Iterator[Finding]:
    """Check the database and each table: privileges, existing objects, owners."""
    if not one(connection, _CREATES)[0]:
        (user,) = one(connection, "select quote_ident(current_user)")
        yield Finding(
            Severity.ERROR,
            f"the user may not create anything in the schema {SCHEMA!r}",
            "capture keeps its log tables there",
            f"grant usage, create on schema {SCHEMA} to {user}"
            if one(connection, f"select to_regnamespace('{SCHEMA}') is not null")[0]
            else f"create schema {SCHEMA} authorization {user}",
        )
    shares, maker = one(connection, _SHARES)
    if not shares:
        (user,) = one(connection, "select quote_ident(current_user)")
        yield Finding(
            Severity.ERROR,
            f"the user may not use another user's tables in the schema {SCHEMA!r}",
            "mirrors of one source share its log tables",
            f"grant {quote(maker)} to {user}",
        )
    for name, found in tables:
        if isinstance(found, SchemaError):
            hint, where = found.hint or "", found.table or name
            yield Finding(Severity.ERROR, found.message, grants.LEFT_OUT, hint, where)
            continue
        shown = found.schema.name
        lacking = [
            *grants.reading(connection, found),
            *grants.owning(connection, found, "only the owner may enable triggers always"),
        ]
        yield from lacking
        if lacking or not one(connection, _HAS_LOG, found.oid)[0]:
            continue
        if not source.is_installed(Table(found.schema)):
            yield Finding(
                Severity.WARNING,
                "triggers were disabled, or were changed",
                "changes may have been missed",
                "rhei sync creates them again, and copies the table by its difference",
                shown,
            )
