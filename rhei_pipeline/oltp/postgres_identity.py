"""What tells one state of one PostgreSQL server from another server's, or from an older one."""

import hashlib
from collections.abc import Iterable
from typing import Any

from rhei_pipeline.errors import CaptureError, SourceBusyError
from rhei_pipeline.oltp.postgres_schema import Connection, PostgresTable
from rhei_pipeline.ownership import SourceIdentity

_VERSION_DIGITS = 15  # of a hash in hexadecimal, so that the version fits 63 bits

_ORIGIN = """
select s.system_identifier::text || ':' || case when pg_is_in_recovery() then c.timeline_id::text
    else substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) end
from pg_control_system() s, pg_control_checkpoint() c
"""
_SERVER = "select system_identifier::text from pg_control_system()"
_DATABASE = "select oid::text, datname from pg_database where datname = current_database()"
_OIDS = "select to_regclass(name)::oid::bigint from unnest(%s::text[]) name"
_REWRITTEN = """
select bool_or(pg_relation_filenode(c.oid) is distinct from nullif(c.relfilenode, 0))
from pg_class c where c.oid = %(oid)s or c.oid in (select relid from pg_partition_tree(%(oid)s))
"""


def origin(connection: Connection) -> str:
    """Name the server and its timeline: another one after a promotion or a restored backup."""
    return str(one(connection, _ORIGIN)[0])


def identity(connection: Connection) -> SourceIdentity:
    """Tell a database of a server from all others, whatever became of its timeline."""
    (may_ask,) = one(connection, "select has_function_privilege('pg_control_system()', 'execute')")
    server = one(connection, _SERVER)[0] if may_ask else ""
    oid, name = one(connection, _DATABASE)
    return SourceIdentity("postgres", f"{name} of server {server}", f"{oid} of server {server}")


def oids_of(connection: Connection, tables: Iterable[str]) -> list[int]:
    """Return the oids of those tables, written with their schema, that there are."""
    rows = connection.execute(_OIDS, (list(tables),)).fetchall()
    return [oid for (oid,) in rows if oid is not None]


def refuse_rewritten(connection: Connection, table: PostgresTable) -> None:
    """Refuse a table that was rewritten since this transaction's snapshot was taken.

    To that snapshot it looks empty: TRUNCATE and ALTER TABLE do not keep the rows that it should
    see. To be called once the table was read, or locked: from then on it cannot be rewritten.

    Raises:
        SourceBusyError: It was; the next snapshot sees it whole.
    """
    if connection.execute(_REWRITTEN, {"oid": table.oid}).fetchall() == [(True,)]:
        raise SourceBusyError(
            f"table {table.schema.name!r} was rewritten while it was read", hint="it is tried again"
        )


def version_of(text: str) -> int:
    """Fold what is known of a catalogue into a number."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:_VERSION_DIGITS], 16)


def one(connection: Connection, sql: str, *params: object) -> tuple[Any, ...]:
    """Run a statement that returns one row."""
    found = connection.execute(sql.encode(), params or None).fetchone()
    if found is None:
        raise CaptureError("the server's catalogue does not answer")
    return found
