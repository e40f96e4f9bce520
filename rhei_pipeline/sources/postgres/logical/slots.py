"""Replication slots of a reader; their names are unique on a server, across its databases."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import psycopg

from rhei_pipeline.errors import CaptureError, RheiError, SourceBusyError, TableBusyError
from rhei_pipeline.model.ownership import SourceIdentity
from rhei_pipeline.sources.postgres.catalog import Connection, slot_name
from rhei_pipeline.sources.postgres.database import PostgresDatabase
from rhei_pipeline.sources.postgres.logical.moment import Slot, lsn_text

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
_ADVANCE = b"select from pg_replication_slot_advance(%s, %s::pg_lsn)"
_USE_MILLISECONDS = "1000"
#: What a server says of a slot that is in use already, was moved on by then, is gone or lost, or
#: waits for a standby.
_NOT_USED = (
    psycopg.errors.InvalidParameterValue,
    psycopg.errors.ObjectInUse,
    psycopg.errors.ObjectNotInPrerequisiteState,
    psycopg.errors.QueryCanceled,
    psycopg.errors.UndefinedObject,
)
_DROP_OF_REPLACED = (
    "select pg_drop_replication_slot(slot_name) from pg_replication_slots"
    " where slot_name = %s and datoid = %s::oid and database <> current_database() and not active"
)
_FOUND = (
    "select database, coalesce(database = current_database(), true) from pg_replication_slots"
    " where slot_name = %s"
)

#: All slots are used, or the server is not allowed any.
_REFUSED = (
    psycopg.errors.ConfigurationLimitExceeded,
    psycopg.errors.ObjectNotInPrerequisiteState,
)


def drop_of_replaced(
    database: PostgresDatabase, replaced: SourceIdentity, readers: Iterable[str]
) -> None:
    """Drop the slots that readers had in a database whose name another one has taken.

    That one is known by its number. A slot of that name in any other database is of a copy of the
    mirror, which may live on.
    """
    oid = replaced.mark.partition(" ")[0]
    with database.translated(), database.connect() as connection:
        for reader in readers:
            connection.execute(_DROP_OF_REPLACED, (slot_name(reader), oid))


def database_of(database: PostgresDatabase, reader: str) -> str | None:
    """Return the database of the server that has a reader's slot; None if there is none."""
    with database.translated(), database.connect() as connection:
        found = connection.execute(_FOUND, (slot_name(reader),)).fetchone()
    return None if found is None else str(found[0])


def create(connection: Connection, name: str, seconds: float) -> None:
    """Create a slot, for which the server waits until every transaction open now has ended.

    Raises:
        TableBusyError: One is still open after so many seconds; or another database of the server
            has a slot of that name.
        SourceBusyError: The server has as many slots as it may have.
        CaptureError: Another one has its name, which is left to whoever made it; or the server's
            log cannot be read.
    """
    limit = {"statement_timeout": str(int(seconds * 1000)), "lock_timeout": "0"}
    try:
        with connection.atomic(settings={**connection.settings, **limit}):
            connection.execute(_CREATE, (name,))
    except psycopg.errors.QueryCanceled as error:
        raise older_transaction(connection) from error
    except psycopg.errors.DuplicateObject as error:
        raise used_name(connection, name) from error
    except _REFUSED as error:
        refuse_unread_log(connection)
        raise SourceBusyError(
            "the server has no replication slot free",
            hint="drop one that nobody needs (select slot_name from pg_replication_slots where not"
            " active), or raise max_replication_slots and restart the server",
        ) from error


def use(connection: Connection, slot: Slot) -> None:
    """Use a slot and leave it where it is, so that the server does not count it as idle.

    Nothing is waited for, neither a session that uses it nor a standby that it waits for.
    """
    limit = {"statement_timeout": _USE_MILLISECONDS}
    with suppress(*_NOT_USED), connection.atomic(settings={**connection.settings, **limit}):
        connection.execute(_ADVANCE, (slot.name, lsn_text(slot.confirmed)))


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


def used_name(connection: Connection, name: str) -> RheiError:
    """Return the error for a slot that has the name of ours: of another plugin or database."""
    [found, is_here] = connection.execute(_FOUND.encode(), (name,)).fetchone() or ["", True]
    drop = f"select pg_drop_replication_slot('{name}')"
    if is_here:
        return CaptureError(
            f"a replication slot {name!r} is there that this mirror cannot read",
            hint="it has another plugin; if nobody needs it, end the session that uses it, and run:"
            f" {drop}; the next sync creates it again, and copies tables by their difference",
        )
    return TableBusyError(
        f"replication slot {name!r} is there already, in database {found!r}:"
        " a copy of this mirror may follow that one",
        hint="if so, run 'rhei adopt --as-copy' for one of the two mirrors; if not, drop the slot"
        f" in its database: {drop}",
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
