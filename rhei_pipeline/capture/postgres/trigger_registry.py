"""What the source itself notes of capture by triggers: which logs there are, and who reads them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rhei_pipeline.capture.postgres.trigger_snapshot import Proof, Visible
from rhei_pipeline.capture.postgres.trigger_sql import (
    BEGUN,
    OWN_TABLES,
    SCHEMA,
    TableLog,
    log_name,
    remains,
)
from rhei_pipeline.oltp.postgres_identity import one
from rhei_pipeline.oltp.postgres_schema import Connection

#: A mirror unseen for so long no longer holds a log back; it re-syncs when it comes back.
FORGET_MIRROR_AFTER = "7 days"

#: Changes whenever a trigger is turned off, even for a moment, or a part is made anew.
_IDENTITY = f"""
md5(concat_ws(':', %(origin)s::text, c.relation, to_regclass('{SCHEMA}.log_' || c.relation)::oid,
    (select p.xmin from pg_proc p where p.oid = to_regproc('{SCHEMA}.capture_' || c.relation)),
    (select string_agg(concat_ws(' ', t.tgname, t.tgenabled, t.tgfoid, t.xmin), ',' order by tgname)
     from pg_trigger t where t.tgrelid = c.relation and t.tgname like '\\_rhei\\_%%')))
"""
_CAPTURES = f"""
select c.relation::bigint, c.columns, c.key, c.images, c.wanted, c.base, c.pruned, c.identity,
    to_regclass('{SCHEMA}.log_' || c.relation) is not null,
    c.identity = {_IDENTITY}
    and not exists (select from {SCHEMA}.broken b where b.relation = c.relation)
    and not exists (select from pg_subscription_rel s where s.srrelid = c.relation)
from {SCHEMA}.capture c where c.relation = any(%(oids)s::oid[])
    or exists (select from {SCHEMA}.consumer m
               where m.mirror = %(mirror)s and m.relation = c.relation)
"""
_STANDING = f"""
select relation::bigint from {SCHEMA}.capture
where to_regclass('{SCHEMA}.log_' || relation) is not null
"""
#: Of a table that is no more, keys without rows tell nothing.
_POSITIONS = f"""
select m.relation::bigint, m.snapshot::text from {SCHEMA}.consumer m where m.mirror = %s
    and (exists (select from pg_class where oid = m.relation)
         or exists (select from {SCHEMA}.capture c where c.relation = m.relation and c.images))
"""
_GONE = f"""
select c.relation::bigint, c.images and to_regclass('{SCHEMA}.log_' || c.relation) is not null
from {SCHEMA}.capture c where not exists (select from pg_class where oid = c.relation)
"""
_LOG_BYTES = """
select coalesce(sum(pg_total_relation_size(to_regclass(name))), 0)::bigint
from unnest(%s::text[]) name where to_regclass(name) is not null
"""
_ENTER = f"""
insert into {SCHEMA}.capture values (%s, %s, %s, %s, %s, %s, %s) on conflict (relation) do update
set columns = excluded.columns, key = excluded.key, images = excluded.images,
    wanted = excluded.wanted, base = excluded.base, pruned = excluded.pruned
"""
_ACKNOWLEDGE = f"""
insert into {SCHEMA}.consumer values (%s, %s, %s, %s, %s, %s) on conflict (mirror, relation)
do update set snapshot = excluded.snapshot, position = excluded.position,
    marker = excluded.marker, marked_by = excluded.marked_by, seen_at = excluded.seen_at
"""
_LEAST = f"""
select snapshot::text, position, least(pg_snapshot_xmin(snapshot), (
    select min(marked_by) from {SCHEMA}.consumer m where m.relation = c.relation))::text
from {SCHEMA}.consumer c where relation = %s order by position limit 1
"""


@dataclass(frozen=True, slots=True)
class Registered:
    """What the source notes of a table's capture, and whether it is still so.

    Attributes:
        intact: Log and triggers are those that were made, were never off, and met their table.
    """

    relation: int
    columns: tuple[str, ...]
    key: tuple[str, ...]
    images: bool
    wanted: str
    base: int
    pruned: int
    identity: str
    has_log: bool
    intact: bool

    @classmethod
    def of(cls, row: tuple[Any, ...]) -> "Registered":
        """Take a row of the catalogue query."""
        relation, columns, key, *rest = row
        return cls(relation, tuple(columns), tuple(key), *rest)


def prepare(connection: Connection) -> None:
    """Create the schema and the tables of ours that are missing."""
    if _is_prepared(connection):
        return
    # Asked first: who may not create schemas may still use one that an administrator made.
    if not one(connection, f"select to_regnamespace('{SCHEMA}') is not null")[0]:
        connection.execute(f"create schema {SCHEMA}".encode())
    for statement in OWN_TABLES:
        connection.execute(statement.encode())


def registered(
    connection: Connection, server: str, oids: Sequence[int], mirror: str
) -> list[Registered]:
    """Read what is noted of tables, and compare it with what stands on this server.

    Tables that a mirror has read are among them though they were dropped or renamed since.
    """
    if not _is_prepared(connection):
        return []
    params = {"origin": server, "oids": list(oids), "mirror": mirror}
    return [Registered.of(row) for row in connection.execute(_CAPTURES.encode(), params)]


def enter(
    connection: Connection, log: TableLog, server: str, least: int, before: Registered | None
) -> None:
    """Note a log that was just made; positions in it are greater than `least` and all before."""
    relation = log.source.oid
    order = Visible.parse(one(connection, "select pg_current_snapshot()::text")[0]).order
    reached = before.base + order if before else 0
    base = max(least, reached) + 1 - order
    # Of this log every mirror has yet to see all; none may be held up by where it once was.
    connection.execute(
        f"update {SCHEMA}.consumer set snapshot = pg_current_snapshot(), position = %s,"
        " marker = 0, marked_by = null where relation = %s".encode(),
        (base + order, relation),
    )
    names = [column.name for column in log.columns]
    connection.execute(
        _ENTER.encode(),
        (relation, names, list(log.key), log.images, log.wanted, base, base + order),
    )
    connection.execute(
        f"update {SCHEMA}.capture c set identity = {_IDENTITY} where relation = %(oid)s".encode(),
        {"origin": server, "oid": relation},
    )


def has_others(connection: Connection, relation: int, mirror: str) -> bool:
    """Tell whether another mirror has read a table's log lately."""
    found = one(
        connection,
        f"select exists (select from {SCHEMA}.consumer where relation = %s and mirror <> %s"
        f" and seen_at > now() - interval '{FORGET_MIRROR_AFTER}')",
        relation,
        mirror,
    )
    return bool(found[0])


def acknowledge(
    connection: Connection, mirror: str, relation: int, order: int, proof: Proof
) -> None:
    """Note that a mirror has what a snapshot sees of a log; the entry it noted there is kept."""
    marked_by = proof.marked_by or None
    connection.execute(
        _ACKNOWLEDGE.encode(),
        (mirror, relation, proof.snapshot, order, proof.marker, marked_by),
    )


def prune(connection: Connection, relation: int, pruned: int, since: str | None) -> tuple[int, str]:
    """Delete the entries that every mirror has; `pruned` is up to where that is noted as done.

    Given what the last call returned as `since`, what is left of older transactions in the index
    is not looked through again: their entries are gone.

    Returns:
        How many, and the oldest transaction of which an entry may be left.
    """
    snapshot, order, oldest = one(connection, _LEAST, relation)
    seen = "xid < pg_snapshot_xmax(%s::pg_snapshot) and pg_visible_in_snapshot(xid, %s)"
    cursor = connection.execute(
        f"delete from {log_name(relation)} where xid >= %s::xid8 and {seen} and seq not in"
        f" (select marker from {SCHEMA}.consumer where relation = %s)".encode(),
        (since or "0", snapshot, snapshot, relation),
    )
    if order > pruned:
        connection.execute(
            f"update {SCHEMA}.capture set pruned = %s where relation = %s".encode(),
            (order, relation),
        )
    return cursor.rowcount, oldest


def forget(connection: Connection, mirror: str) -> None:
    """Forget a mirror."""
    if _is_prepared(connection):
        connection.execute(f"delete from {SCHEMA}.consumer where mirror = %s".encode(), (mirror,))


def forget_the_absent(connection: Connection) -> None:
    """Forget the mirrors that have long not been seen."""
    connection.execute(
        f"delete from {SCHEMA}.consumer"
        f" where seen_at < now() - interval '{FORGET_MIRROR_AFTER}'".encode()
    )


def positions(connection: Connection, mirror: str) -> dict[int, str]:
    """Return the snapshot up to which a mirror has each table's changes."""
    if not _is_prepared(connection):
        return {}
    return dict(connection.execute(_POSITIONS.encode(), (mirror,)).fetchall())


def standing(connection: Connection) -> set[int]:
    """Return the tables whose logs exist."""
    return {relation for (relation,) in connection.execute(_STANDING.encode())}


def log_bytes(connection: Connection, relations: Sequence[int]) -> int:
    """Return how much room the logs of tables take."""
    names = [log_name(relation) for relation in relations]
    return int(one(connection, _LOG_BYTES, names)[0])


def remove_remains(connection: Connection) -> None:
    """Remove the capture of tables that were dropped, once every mirror has what its log tells."""
    for relation, tells in connection.execute(_GONE.encode()).fetchall():
        if tells and _is_awaited(connection, relation):
            continue
        for statement in remains(relation):
            connection.execute(statement.encode())


def _is_awaited(connection: Connection, relation: int) -> bool:
    """Tell whether a mirror lacks an entry of a log that is written no more."""
    seen = "l.xid < pg_snapshot_xmax(c.snapshot) and pg_visible_in_snapshot(l.xid, c.snapshot)"
    found = one(
        connection,
        f"select exists (select from {SCHEMA}.consumer c, {log_name(relation)} l"
        f" where c.relation = %s and l.kind <> '{BEGUN}' and not ({seen}))",
        relation,
    )
    return bool(found[0])


def _is_prepared(connection: Connection) -> bool:
    return bool(one(connection, f"select to_regclass('{SCHEMA}.capture') is not null")[0])
