"""The source's own records of capture by triggers: its logs, and the mirrors that read them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from psycopg.pq import TransactionStatus

from rhei_pipeline.errors import CaptureError
from rhei_pipeline.model.stored_format import UNNUMBERED, too_new
from rhei_pipeline.sources.postgres.catalog import Connection
from rhei_pipeline.sources.postgres.identity import array_of, one
from rhei_pipeline.sources.postgres.table_facts import candidates
from rhei_pipeline.sources.postgres.triggers.ddl import (
    BEGUN,
    FORMAT,
    FORMAT_PREFIX,
    OWN_TABLES,
    SCHEMA,
    LoggedColumn,
    TableLog,
    log_name,
    remains,
)
from rhei_pipeline.sources.postgres.triggers.logs import Generation
from rhei_pipeline.sources.postgres.triggers.misfit import MISFIT_BODY, OTHER_KINDS
from rhei_pipeline.sources.postgres.triggers.position import Proof, VisibleText
from rhei_pipeline.sources.postgres.triggers.retired_logs import (
    drop_passed,
    former_name,
    former_remains,
    note_former,
    read_formers,
)

#: A mirror unseen for so long no longer holds a log back; it re-syncs when it comes back.
FORGET_MIRROR_AFTER = "7 days"

#: Everybody may read a comment, and only the table's owner writes it.
_FORMAT_COMMENT = f"""
(select obj_description(c.oid, 'pg_class') from pg_class c
 join pg_namespace n on n.oid = c.relnamespace
 where n.nspname = '{SCHEMA}' and c.relname = 'capture')
"""
#: Whoever may not look into the schema would be refused by `to_regclass`.
PREPARED = f"""
select from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname = '{SCHEMA}' and c.relname = 'capture'
    and has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select')
"""
#: Changes whenever a trigger is turned off, even for a moment, or a part is made again.
_IDENTITY = f"""
md5(concat_ws(':', %(origin)s::text, c.relation, to_regclass('{SCHEMA}.log_' || c.relation)::oid,
    (select p.xmin from pg_proc p where p.proname = ('capture_' || c.relation)::name
        and p.pronargs = 0 and p.pronamespace = '{SCHEMA}'::regnamespace),
    (select string_agg(concat_ws(' ', t.tgname, t.tgenabled, t.tgfoid, t.xmin), ',' order by tgname)
     from pg_trigger t where t.tgrelid = c.relation and t.tgname like '\\_rhei\\_%%')))
"""
_NUMBERS, _NO_NUMBERS = (
    "c.attributes, c.types::bigint[], c.log::bigint, c.whole",
    "null, null, null, null",
)
_LOST, _BROKEN = " and b.lost", ""
_CAPTURES = f"""
select c.relation::bigint, c.columns, c.key, c.images, c.wanted, c.base, c.pruned, c.identity,
    to_regclass('{SCHEMA}.log_' || c.relation) is not null,
    not exists (select from {SCHEMA}.broken b where b.relation = c.relation),
    c.identity = {_IDENTITY}
    and not exists (select from {SCHEMA}.broken b where b.relation = c.relation{{lost}})
    and not exists (select from pg_subscription_rel s where s.srrelid = c.relation),
    {{numbers}}
from {SCHEMA}.capture c where c.relation = any(%(oids)s::oid[])
    or exists (select from {SCHEMA}.consumer m
               where m.mirror = %(mirror)s and m.relation = c.relation)
"""
#: Of all of them only how many they are, and those whose marks are not known.
_CHANGED = """
with found as materialized ({captures}),
marked as materialized (select md5(f::text) as mark, f.* from found f)
select n.count, d.* from (select count(*) from found) n(count)
left join marked d on d.mark not in (select unnest(%(marks)s::text[]))
"""
_STANDING = f"""
select relation::bigint from {SCHEMA}.capture
where to_regclass('{SCHEMA}.log_' || relation) is not null
"""
#: Of a table that is no more, keys without rows tell nothing.
_POSITIONS = f"""
select m.relation::bigint, m.snapshot::text, m.position, m.marker, m.marked_by::text
from {SCHEMA}.consumer m where m.mirror = %s
    and (exists (select from pg_class where oid = m.relation)
         or exists (select from {SCHEMA}.capture c where c.relation = m.relation and c.images))
"""
_GONE = f"""
select c.relation::bigint, c.images and to_regclass('{SCHEMA}.log_' || c.relation) is not null
from {SCHEMA}.capture c where not exists (select from pg_class where oid = c.relation)
"""
_NAMED = f"""
select c.oid::bigint from pg_class c join pg_namespace n on n.oid = c.relnamespace
join {SCHEMA}.capture r on r.relation = c.oid where n.nspname = %s and c.relname = %s
"""
_LOG_BYTES = """
select coalesce(sum(pg_total_relation_size(to_regclass(name))), 0)::bigint
from unnest(%s::text[]) name where to_regclass(name) is not null
"""
_ENTER = f"""
insert into {SCHEMA}.capture
    (relation, columns, key, images, wanted, base, pruned, attributes, types, log, whole)
values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) on conflict (relation) do update
set columns = excluded.columns, key = excluded.key, images = excluded.images,
    wanted = excluded.wanted, base = excluded.base, pruned = excluded.pruned,
    attributes = excluded.attributes, types = excluded.types, log = excluded.log,
    whole = excluded.whole
"""
_ACKNOWLEDGE = f"""
insert into {SCHEMA}.consumer values (%s, %s, %s, %s, %s, %s) on conflict (mirror, relation)
do update set snapshot = excluded.snapshot, position = excluded.position,
    marker = excluded.marker, marked_by = excluded.marked_by, seen_at = excluded.seen_at
"""
#: Functions as an earlier version made them are none of ours if this user may not replace them.
_IS_WHOLE = f"""
select to_regclass('{SCHEMA}.former') is not null
    and to_regproc('{SCHEMA}.misfit') is not null and to_regproc('{SCHEMA}.shown') is not null
    and not exists (select from pg_proc where oid = to_regproc('{SCHEMA}.misfit')
        and prosrc <> %s and pg_has_role(proowner, 'usage'))
"""
_IS_KEY = """
select exists (
    select from pg_index i join pg_attribute a on a.attrelid = i.indrelid
        and array_position(i.indkey::int2[], a.attnum) < i.indnkeyatts
    where i.indrelid = %s and i.indisunique and i.indpred is null and i.indexprs is null
    group by i.indexrelid having array_agg(a.attname::text) <@ %s::text[]
)
"""
_FILLED = f"""
insert into {SCHEMA}.broken(relation, lost)
select f.oid, true from unnest(%s::oid[]) f(oid)
where not exists (select from {SCHEMA}.broken b where b.relation = f.oid and b.lost)
"""
_SEEN = f"update {SCHEMA}.consumer set seen_at = now() where mirror = %s and relation = %s"
_HAS_CONSUMER = f"select exists (select from {SCHEMA}.consumer where relation = %s)"
_LEAST = f"""
select snapshot::text, position, least(pg_snapshot_xmin(snapshot), (
    select min(marked_by) from {SCHEMA}.consumer m where m.relation = c.relation))::text
from {SCHEMA}.consumer c where relation = %s order by position limit 1
"""


@dataclass(frozen=True, slots=True)
class Registered:
    """The record of a table's capture, compared with what exists.

    Attributes:
        fits: The triggers found the table as they expect it.
        unbroken: Log and triggers are the original ones, and were never disabled; all changes of
            the table are in the log.
        attributes, types, log, whole: As of a `Generation`.
        formers: The earlier logs that are still kept, the oldest first.
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
    fits: bool
    unbroken: bool
    attributes: tuple[int, ...] = ()
    types: tuple[int, ...] = ()
    log: int | None = None
    whole: bool = False
    formers: tuple[Generation, ...] = field(default=(), compare=False)

    @classmethod
    def of(cls, row: tuple[Any, ...]) -> "Registered":
        """Read a row of the catalogue query."""
        relation, columns, key, *rest, attributes, types, log, whole = row
        known = cls(relation, tuple(columns), tuple(key), *rest)
        return replace(
            known,
            attributes=tuple(attributes or ()),
            types=tuple(types or ()),
            log=log,
            whole=bool(whole),
        )

    def is_same(self, other: "Registered") -> bool:
        """Return whether another entry says the same, also of the logs that were retired."""
        return self is other or (self == other and self.formers == other.formers)

    @property
    def intact(self) -> bool:
        """Whether nothing must be created again."""
        return self.fits and self.unbroken

    @property
    def generations(self) -> tuple[Generation, ...]:
        """All of the table's logs that are kept, the oldest first."""
        own = Generation(
            self.relation,
            log_name(self.relation),
            self.log,
            self.columns,
            self.key,
            self.attributes,
            self.types,
            self.base,
            self.pruned,
            self.identity,
            self.images,
            whole=self.whole,
            is_cut=self.images and not self.fits and bool(self.attributes),
        )
        return (*self.formers, own)

    def needed_of(self, columns: Mapping[str, LoggedColumn]) -> list[str]:
        """Return the columns, by present names, that another mirror may need in the log."""
        if not self.attributes:
            return [name for name in self.columns if name in columns]
        # In a log of rows, one that came since may be the other's as well.
        last = max(self.attributes) if self.images else max(c.attribute for c in columns.values())
        return [
            name
            for name, column in columns.items()
            if column.attribute in self.attributes or column.attribute > last
        ]

    def has(self, identity: str) -> bool:
        """Return whether a log of this identity is kept."""
        return identity in {self.identity, *(log.identity for log in self.formers)}


def prepare(connection: Connection) -> None:
    """Create our schema and tables, if they are missing."""
    if _is_prepared(connection) and one(connection, _IS_WHOLE, MISFIT_BODY)[0]:
        return
    # Asked first: who may not create schemas may still use one that an administrator made.
    if not one(connection, f"select to_regnamespace('{SCHEMA}') is not null")[0]:
        connection.execute(f"create schema {SCHEMA}".encode())
    for statement in OWN_TABLES:
        connection.execute(statement.encode())


def registered(
    connection: Connection, server: str, oids: Sequence[int], mirror: str
) -> list[Registered]:
    """Read the records of tables, and compare them with what exists on this server.

    Tables that a mirror has read are included, even if they were dropped or renamed since.
    """
    if not _is_prepared(connection):
        return []
    params = {"origin": server, "oids": list(oids), "mirror": mirror}
    if not _is_current(connection):
        sql = _CAPTURES.format(lost=_BROKEN, numbers=_NO_NUMBERS)
        return [Registered.of(row) for row in connection.execute(sql.encode(), params)]
    sql = _CAPTURES.format(lost=_LOST, numbers=_NUMBERS)
    found = [Registered.of(row) for row in connection.execute(sql.encode(), params)]
    formers = read_formers(connection, [one.relation for one in found])
    return [replace(one, formers=formers.get(one.relation, ())) for one in found]


def note_filled(connection: Connection, relations: Sequence[int]) -> None:
    """Record that a subscription fills tables: once it is gone, nothing shows what it wrote.

    In the transaction of a snapshot, which only reads, nothing is done: a sync describes such
    tables outside of one as well.
    """
    if relations and connection.info.transaction_status is TransactionStatus.IDLE:
        connection.execute(_FILLED.encode(), (list(relations),))


def changed(
    connection: Connection,
    server: str,
    oids: Sequence[int],
    mirror: str,
    marks: Iterable[str],
) -> tuple[int, list[tuple[str, Registered]]]:
    """Return how many records there are, and those whose marks are not known, with theirs.

    They are those that `registered` reads, without the logs that were retired.
    """
    if not _is_prepared(connection):
        return 0, []
    if not _is_current(connection):
        found = registered(connection, server, oids, mirror)
        return len(found), [("", one) for one in found]
    captures = _CAPTURES.format(lost=_LOST, numbers=_NUMBERS)
    params = {
        "origin": server,
        "oids": array_of(oids),
        "mirror": mirror,
        "marks": f"{{{','.join(filter(None, marks))}}}",
    }
    rows = connection.execute(_CHANGED.format(captures=captures).encode(), params).fetchall()
    read = [(mark, Registered.of(tuple(row))) for _, mark, *row in rows if mark is not None]
    return (rows[0][0] if rows else 0), read


def enter(
    connection: Connection,
    log: TableLog,
    server: str,
    least: int,
    before: Registered | None,
    retired: Generation | None,
) -> None:
    """Record a new log; its positions are greater than `least` and all before.

    With `retired`, mirrors continue to it from the retired log.
    """
    relation = log.source.oid
    order = VisibleText.parse(one(connection, "select pg_current_snapshot()::text")[0]).order
    reached = before.base + order if before else 0
    base = max(least, reached) + 1 - order
    if retired is None:
        # Of this log every mirror has yet to see all; none may be held up by where it once was.
        connection.execute(
            f"update {SCHEMA}.consumer set snapshot = pg_current_snapshot(), position = %s,"
            " marker = 0, marked_by = null where relation = %s".encode(),
            (base + order, relation),
        )
    elif before:
        note_former(connection, replace(retired, ended=base + order))
    values = (
        [column.name for column in log.columns],
        list(log.key),
        log.images,
        log.wanted,
        base,
        base + order,
        [column.attribute for column in log.columns],
        [column.base for column in log.columns],
        one(connection, "select to_regclass(%s)::oid::bigint", log.name)[0],
        log.whole,
    )
    connection.execute(_ENTER.encode(), (relation, *values))
    connection.execute(
        f"update {SCHEMA}.capture c set identity = {_IDENTITY} where relation = %(oid)s".encode(),
        {"origin": server, "oid": relation},
    )


def retire(connection: Connection, before: Registered | None, log: TableLog) -> Generation | None:
    """Retire the log that another is about to replace; None if no mirror needs it.

    The table is locked and its writers have ended, so the log is complete. Numbering continues in
    the next log, so that no number means two entries.
    """
    if (
        before is None
        or not (before.has_log and before.attributes)
        or not one(connection, _HAS_CONSUMER, before.relation)[0]
    ):
        return None
    oid, cut = one(
        connection,
        f"select to_regclass(%s)::oid::bigint,"
        f" (select min(seq) from {log.name} where kind in ({OTHER_KINDS}))",
        log.name,
    )
    name = former_name(oid).removeprefix(f"{SCHEMA}.")
    connection.execute(f"alter table {log.name} rename to {name}".encode())
    *_, own = before.generations
    leads_on = before.unbroken and oid == before.log
    return replace(own, name=former_name(oid), log=oid, cut=cut, leads_on=leads_on)


def go_on_numbering(connection: Connection, former: Generation, log: TableLog) -> None:
    """Continue a former log's numbering in a new one."""
    (last,) = one(
        connection,
        "select coalesce(pg_sequence_last_value(pg_get_serial_sequence(%s, 'seq')::regclass), 0)",
        former.name,
    )
    connection.execute(f"alter table {log.name} alter seq restart with {last + 1}".encode())


def has_others(connection: Connection, relation: int, mirror: str) -> bool:
    """Return whether another mirror has recently read a table's log."""
    found = one(
        connection,
        f"select exists (select from {SCHEMA}.consumer where relation = %s and mirror <> %s"
        f" and seen_at > now() - interval '{FORGET_MIRROR_AFTER}')",
        relation,
        mirror,
    )
    return bool(found[0])


def is_key(connection: Connection, relation: int, names: Sequence[str]) -> bool:
    """Return whether columns are still a key of a table."""
    return bool(one(connection, _IS_KEY, relation, list(names))[0])


def acknowledge(
    connection: Connection, mirror: str, relation: int, order: int, proof: Proof
) -> None:
    """Record that a mirror has what a snapshot sees of a log; the entry at it is kept."""
    marked_by = proof.marked_by or None
    connection.execute(
        _ACKNOWLEDGE.encode(),
        (mirror, relation, proof.snapshot, order, proof.marker, marked_by),
    )


def note_seen(connection: Connection, mirror: str, relation: int) -> None:
    """Record that a mirror is active, and still needs all that it needed."""
    connection.execute(_SEEN.encode(), (mirror, relation))


def prune(connection: Connection, relation: int, pruned: int, since: str | None) -> tuple[int, str]:
    """Delete the entries that every mirror has; `pruned` is how far that was done before.

    With the last call's result as `since`, index entries of older transactions are not scanned
    again: their rows are deleted.

    Returns:
        The number of deleted entries, and the oldest transaction that may have entries left.
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
    """Delete the records of a mirror."""
    if _is_prepared(connection):
        connection.execute(f"delete from {SCHEMA}.consumer where mirror = %s".encode(), (mirror,))


def forget_the_absent(connection: Connection) -> None:
    """Delete the records of mirrors that were not seen for long."""
    connection.execute(
        f"delete from {SCHEMA}.consumer"
        f" where seen_at < now() - interval '{FORGET_MIRROR_AFTER}'".encode()
    )


@dataclass(frozen=True, slots=True)
class AcknowledgedPlace:
    """How far a mirror has a table's changes.

    Attributes:
        snapshot: The changes that it sees.
        order: How many transactions it sees.
        marker, marked_by: The entry that was noted then, which the log keeps; 0 for none.
    """

    snapshot: str
    order: int
    marker: int
    marked_by: str | None


def positions(connection: Connection, mirror: str) -> dict[int, AcknowledgedPlace]:
    """Return up to where a mirror has each table's changes."""
    if not _is_prepared(connection):
        return {}
    found = connection.execute(_POSITIONS.encode(), (mirror,)).fetchall()
    return {relation: AcknowledgedPlace(*of) for relation, *of in found}


def standing(connection: Connection) -> set[int]:
    """Return the tables whose logs exist."""
    return {relation for (relation,) in connection.execute(_STANDING.encode())}


def log_bytes(connection: Connection, relations: Sequence[int]) -> int:
    """Return the size of the tables' logs."""
    names = [log_name(relation) for relation in relations]
    names += [name for logs in formers_of(connection, relations).values() for name in logs]
    return int(one(connection, _LOG_BYTES, names)[0])


def formers_of(connection: Connection, relations: Sequence[int]) -> dict[int, list[str]]:
    """Return the names of the tables' earlier logs."""
    if not _is_current(connection):
        return {}
    found = read_formers(connection, relations)
    return {relation: [log.name for log in logs] for relation, logs in found.items()}


def remove_remains(connection: Connection) -> None:
    """Remove the capture of dropped tables, once every mirror has read their logs."""
    for relation, tells in connection.execute(_GONE.encode()).fetchall():
        formers = read_formers(connection, [relation]).get(relation, ())
        drop_passed(connection, formers)
        logs = [log_name(relation), *(former.name for former in formers)]
        if tells and any(_is_awaited(connection, relation, log) for log in logs):
            continue
        remove(connection, relation)


def remove(connection: Connection, relation: int) -> None:
    """Remove a table's triggers, all its logs and their records."""
    for former in read_formers(connection, [relation]).get(relation, ()):
        for statement in former_remains(former.log):
            connection.execute(statement.encode())
    for statement in remains(relation):
        connection.execute(statement.encode())


def captured(connection: Connection, name: str) -> int | None:
    """Return the oid of a table, if it is captured; nobody else changes capture meanwhile."""
    if not _is_prepared(connection):
        return None
    connection.execute(f"lock table {SCHEMA}.capture in exclusive mode".encode())
    for found in candidates(name):
        row = connection.execute(_NAMED.encode(), found).fetchone()
        if row is not None:
            return int(row[0])
    return None


def leave(connection: Connection, mirror: str, relation: int) -> bool:
    """Delete a mirror's record of a table; return whether no mirror has one any more."""
    connection.execute(
        f"delete from {SCHEMA}.consumer where mirror = %s and relation = %s".encode(),
        (mirror, relation),
    )
    return not one(connection, _HAS_CONSUMER, relation)[0]


def _is_awaited(connection: Connection, relation: int, log: str) -> bool:
    """Return whether a mirror still needs an entry of a log that is no longer written."""
    if not one(connection, "select to_regclass(%s) is not null", log)[0]:
        return False
    seen = "l.xid < pg_snapshot_xmax(c.snapshot) and pg_visible_in_snapshot(l.xid, c.snapshot)"
    found = one(
        connection,
        f"select exists (select from {SCHEMA}.consumer c, {log} l"
        f" where c.relation = %s and l.kind <> '{BEGUN}' and not ({seen}))",
        relation,
    )
    return bool(found[0])


def _is_prepared(connection: Connection) -> bool:
    is_prepared, comment = one(connection, f"select exists ({PREPARED}), {_FORMAT_COMMENT}")
    _refuse_newer(comment)
    return bool(is_prepared)


def _refuse_newer(comment: str | None) -> None:
    """Refuse what a newer version of this package keeps in the schema.

    Raises:
        CaptureError: It does; nothing was read or changed.
    """
    number = (comment or "").removeprefix(FORMAT_PREFIX)
    written = int(number) if number.isdecimal() else UNNUMBERED
    if written > FORMAT:
        raise CaptureError(
            too_new(f"what capture keeps in the schema {SCHEMA!r}", written, FORMAT),
            hint="use the newer version of rhei-pipeline that made it",
        )


def _is_current(connection: Connection) -> bool:
    """Return whether our tables have all of today's columns."""
    return bool(one(connection, f"select to_regclass('{SCHEMA}.former') is not null")[0])
