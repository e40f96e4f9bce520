"""Replication slots of a reader; their names are unique on a server, across its databases."""

import psycopg

from rhei_pipeline.errors import SourceBusyError
from rhei_pipeline.sources.postgres.catalog import Connection, slot_name
from rhei_pipeline.sources.postgres.database import PostgresDatabase

_LONGEST = """
select pid, to_char(xact_start at time zone 'UTC', 'HH24:MI:SS') from pg_stat_activity
where backend_xid is not null and pid <> pg_backend_pid() order by xact_start limit 1
"""
_CREATE = b"select pg_create_logical_replication_slot(%s, 'pgoutput')"
_ELSEWHERE = (
    "select pg_drop_replication_slot(slot_name) from pg_replication_slots"
    " where slot_name = %s and database <> current_database() and not active"
)


def drop_elsewhere(database: PostgresDatabase, reader: str) -> None:
    """Drop a reader's slot in another database of the server: it is no longer used."""
    with database.translated(), database.connect() as connection:
        connection.execute(_ELSEWHERE, (slot_name(reader),))


def create(connection: Connection, name: str, seconds: float) -> None:
    """Create a slot, for which the server waits until every transaction open now has ended.

    Raises:
        SourceBusyError: One is still open after so many seconds.
    """
    limit = {"statement_timeout": str(int(seconds * 1000)), "lock_timeout": "0"}
    try:
        with connection.atomic(settings={**connection.settings, **limit}):
            connection.execute(_CREATE, (name,))
    except psycopg.errors.QueryCanceled as error:
        raise older_transaction(connection) from error


def older_transaction(connection: Connection) -> SourceBusyError:
    """Return the error for a copy that an open transaction holds up; names the oldest one."""
    found = connection.execute(_LONGEST).fetchone()
    who = f"process {found[0]}, open since {found[1]} UTC" if found else "one"
    return SourceBusyError(
        f"a copy cannot begin while an older transaction is open: {who}",
        hint="wait until it ends, or end it; the copy is tried again",
    )
