"""Replication slots of a reader; their names are unique on a server, across its databases."""

from dataclasses import dataclass

import psycopg

from rhei_pipeline.errors import CaptureError, SourceBusyError, TableBusyError
from rhei_pipeline.sources.postgres.catalog import Connection, slot_name
from rhei_pipeline.sources.postgres.database import PostgresDatabase

#: Of the whole server: a copy waits for those of its other databases, too.
_OLDEST = """
select who, to_char(since at time zone 'UTC', 'HH24:MI:SS'),
    extract(epoch from clock_timestamp() - since)::int, ended_by
from (
    select 'process ' || pid, xact_start, 'select pg_terminate_backend(' || pid || ')'
    from pg_stat_activity where backend_xid is not null and pid <> pg_backend_pid() union all
    select 'prepared transaction ' || quote_literal(gid), prepared,
        'rollback prepared ' || quote_literal(gid) from pg_prepared_xacts
) open(who, since, ended_by) order by since limit 1
"""
_CREATE = b"select pg_create_logical_replication_slot(%s, 'pgoutput')"
_ELSEWHERE = (
    "select pg_drop_replication_slot(slot_name) from pg_replication_slots"
    " where slot_name = %s and database <> current_database() and not active"
)

#: All slots are used, or the server is not allowed any.
_REFUSED = (
    psycopg.errors.ConfigurationLimitExceeded,
    psycopg.errors.ObjectNotInPrerequisiteState,
)


def drop_elsewhere(database: PostgresDatabase, reader: str) -> None:
    """Drop a reader's slot in another database of the server: it is no longer used."""
    with database.translated(), database.connect() as connection:
        connection.execute(_ELSEWHERE, (slot_name(reader),))


def create(connection: Connection, name: str, seconds: float) -> None:
    """Create a slot, for which the server waits until every transaction open now has ended.

    One of that name in another database is dropped.

    Raises:
        TableBusyError: One is still open after so many seconds.
        SourceBusyError: The server has as many slots as it may have.
        CaptureError: Another one has its name, which is left to whoever made it; or the server's
            log cannot be read.
    """
    limit = {"statement_timeout": str(int(seconds * 1000)), "lock_timeout": "0"}
    try:
        with connection.atomic(settings={**connection.settings, **limit}):
            # Ours stays in a database that was renamed, where another one took its name.
            connection.execute(_ELSEWHERE, (name,))
            connection.execute(_CREATE, (name,))
    except psycopg.errors.QueryCanceled as error:
        raise older_transaction(connection) from error
    except psycopg.errors.DuplicateObject as error:
        raise not_readable(name) from error
    except _REFUSED as error:
        refuse_unread_log(connection)
        raise SourceBusyError(
            "the server has no replication slot free",
            hint="drop one that nobody needs (select slot_name from pg_replication_slots where not"
            " active), or raise max_replication_slots and restart the server",
        ) from error


def refuse_unread_log(connection: Connection) -> None:
    """Refuse a server whose log has no changes of rows.

    Raises:
        CaptureError: Says how to have it log them.
    """
    [level] = connection.execute(b"show wal_level").fetchone() or [""]
    if level != "logical":
        raise CaptureError(
            f"the server's wal_level is {level!r}, and its log can be read only with 'logical'",
            hint="run: alter system set wal_level = 'logical', and restart the server;"
            " or use 'capture: {method: trigger}'",
        )


def not_readable(name: str) -> CaptureError:
    """Return the error for a slot of another plugin or database that has the name of ours."""
    return CaptureError(
        f"a replication slot {name!r} is there that this mirror cannot read",
        hint="it has another plugin, or is used in another database; if nobody needs it, end the"
        f" session that uses it, and run: select pg_drop_replication_slot('{name}'); the next sync"
        " creates it again, and copies tables by their difference",
    )


@dataclass(frozen=True, slots=True)
class OpenTransaction:
    """A transaction that has written and has not ended.

    Attributes:
        who: Whose it is.
        since: The time of the day when it began, in UTC.
        seconds: How long ago that was.
        ended_by: The statement that ends it.
    """

    who: str
    since: str
    seconds: int
    ended_by: str


def oldest_transaction(connection: Connection) -> OpenTransaction | None:
    """Return the oldest open transaction that has written; None where none can be seen."""
    found = connection.execute(_OLDEST).fetchone()
    return None if found is None else OpenTransaction(*found)


def older_transaction(connection: Connection) -> TableBusyError:
    """Return the error for a copy that an open transaction holds up; names the oldest one."""
    found = oldest_transaction(connection)
    who = f"{found.who}, open since {found.since} UTC" if found else "one"
    return TableBusyError(
        f"a copy cannot begin while an older transaction is open: {who}",
        hint="wait until it ends, or end it; the copy is tried again",
    )
