"""How far the server's log is ahead of a mirror, which is not opened."""

from contextlib import closing
from datetime import UTC, datetime, timedelta

import psycopg

from rhei_pipeline.model.standing import SourceStanding
from rhei_pipeline.sources.postgres.catalog import slot_name
from rhei_pipeline.sources.postgres.database import PostgresDatabase
from rhei_pipeline.sql.text import quote

_HELD = """
select pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::bigint,
    greatest(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::bigint
from pg_replication_slots where slot_name = %s
"""
#: The commits up to the first one with a change, each with its time: message B, then the log's
#: position and the time, in microseconds of this century.
_BEGUN = """
select substr(data, 10, 8) from pg_logical_slot_peek_binary_changes(
    %s, pg_current_wal_flush_lsn(), 1, 'proto_version', '1', 'publication_names', %s)
where get_byte(data, 0) = 66
"""
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


def standing(
    database: PostgresDatabase, mirror_id: str, publication: str | None, pending: int | None
) -> SourceStanding:
    """Return where the log ends, since when a change waits in it, and what the slot holds."""
    name = slot_name(mirror_id)
    with closing(database.connect()) as connection, database.translated():
        held = connection.execute(_HELD.encode(), (name,)).fetchone()
        if held is None:
            return SourceStanding(pending, is_exact=False)
        waiting = {}
        if pending:
            try:
                begun = connection.execute(
                    _BEGUN.encode(), (name, quote(publication or name))
                ).fetchall()
            except (psycopg.errors.ObjectInUse, psycopg.errors.UndefinedObject):
                begun = []  # a session reads it, or it has to be seen to
            if begun:
                waiting["log"] = _instant(bytes(begun[-1][0]))
    return SourceStanding(
        pending,
        is_exact=False,
        heads={"log": held[0]},
        waiting=waiting,
        held_bytes={"slot": held[1]},
    )


def _instant(stamp: bytes) -> datetime:
    return _EPOCH + timedelta(microseconds=int.from_bytes(stamp, "big", signed=True))
