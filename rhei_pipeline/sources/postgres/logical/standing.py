"""How far the server's log is ahead of a mirror, which is not opened."""

from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg

from rhei_pipeline.model.changes import Position
from rhei_pipeline.model.standing import SourceStanding
from rhei_pipeline.sources import progress_notes
from rhei_pipeline.sources.postgres.catalog import slot_name
from rhei_pipeline.sources.postgres.database import PostgresDatabase
from rhei_pipeline.sources.postgres.identity import lost_slot, origin
from rhei_pipeline.sources.postgres.logical.publication import published
from rhei_pipeline.sources.postgres.logical.standbys import readable_to
from rhei_pipeline.sql.text import quote

#: What a note is about: the slot, which all tables share.
_SLOT = "slot"
#: Our slot, unless it is lost, or another one has its name.
_HERE = """
select pg_wal_lsn_diff(confirmed_flush_lsn, '0/0')::bigint
from pg_replication_slots where slot_name = %s and plugin = 'pgoutput'
    and database = current_database() and not coalesce({lost}, false)
"""
_ANY_CHANGE = """
select count(*) from (
    select data from pg_logical_slot_peek_binary_changes(
        %s, %s::pg_lsn, 1, 'proto_version', '1', 'publication_names', %s)
) found where get_byte(data, 0) in (68, 73, 84, 85) limit 1
"""
_HELD = """
select pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::bigint,
    greatest(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::bigint
from pg_replication_slots where slot_name = %s
"""
#: The commits up to the first one with a change, each with its time: message B, then the log's
#: position and the time, in microseconds of this century.
_BEGUN = """
select substr(data, 10, 8) from pg_logical_slot_peek_binary_changes(
    %s, %s::pg_lsn, 1, 'proto_version', '1', 'publication_names', %s)
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
        waiting, end = {}, readable_to(connection, name) if pending else None
        if end is not None:
            try:
                begun = connection.execute(
                    _BEGUN.encode(), (name, end, quote(publication or name))
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


def unconfirmed(
    database: PostgresDatabase,
    mirror_id: str,
    publication: str | None = None,
    notes: Path | None = None,
) -> int | None:
    """Return whether our slot has pending changes: 0 for none, 1 for some.

    None when there is no slot, or it has not all that followed what was confirmed last: only a
    sync can tell what is to be done.
    """
    name, own = slot_name(mirror_id), publication is None
    with closing(database.connect()) as connection, database.translated():
        here = _HERE.format(lost=lost_slot(connection, is_ours=own)).encode()
        found = connection.execute(here, (name,)).fetchone()
        if found is None:
            return None
        try:
            noted = progress_notes.read(notes).get(_SLOT) if notes else None
            if noted is not None:
                members = published(connection, publication or name, is_ours=own)
                now = as_confirmed(found[0], origin(connection), members)[_SLOT]
                if not _goes_on(noted, now):
                    return None
            end = readable_to(connection, name)
            if end is None:  # a sync names the standby that is waited for
                return 1
            pending = connection.execute(
                _ANY_CHANGE.encode(), (name, end, quote(publication or name))
            ).fetchone()
            return int(pending[0]) if pending else 0
        except psycopg.errors.ObjectInUse:  # somebody is reading it just now
            return 0
        except psycopg.errors.UndefinedObject:  # its publication is gone: to be seen to as well
            return 1


def as_confirmed(place: int, server: str, members: Mapping[int, str]) -> dict[str, Position]:
    """Return as a note what the slot was moved to, of which server, and how tables are published.

    They are told one by one: a publication may be of all tables, of which most are not ours.
    """
    published_as = (f"{oid}:{text}" for oid, text in sorted(members.items()))
    return {_SLOT: Position(place, " ".join([server, *published_as]))}


def _goes_on(noted: Position, now: Position) -> bool:
    """Return whether the log of a slot goes on from where it was confirmed last.

    It does not where somebody else moved the slot or made another one of its name, where the
    server was put back or promoted, or where a table was not published for a while. A server that
    crashed may have lost the last moves of a slot: that looks as if its disk was put back.
    """
    is_kept = {*noted.proof.split()} <= {*now.proof.split()}
    return now.order == noted.order and is_kept


def _instant(stamp: bytes) -> datetime:
    return _EPOCH + timedelta(microseconds=int.from_bytes(stamp, "big", signed=True))
