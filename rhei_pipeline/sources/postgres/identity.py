"""Detects that a PostgreSQL server, database or catalogue is another one, or an older state."""

import hashlib
import json
from collections.abc import Callable, Collection
from typing import Any

from rhei_pipeline.errors import CaptureError, SourceBusyError
from rhei_pipeline.model.ownership import SourceIdentity
from rhei_pipeline.sources.postgres.catalog import Connection, PostgresTable
from rhei_pipeline.sources.postgres.marks import STATE, shapes
from rhei_pipeline.sources.postgres.table_facts import candidates
from rhei_pipeline.sources.postgres.versions import Since, where

_VERSION_DIGITS = 15  # of a hash in hexadecimal, so that the version fits 63 bits

_ORIGIN = """
select s.system_identifier::text || ':' || case when pg_is_in_recovery() then c.timeline_id::text
    else substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) end
from pg_control_system() s, pg_control_checkpoint() c
"""
_SERVER = "select system_identifier::text from pg_control_system()"
_DATABASE = "select oid::text, datname from pg_database where datname = current_database()"
#: The comment on a publication that was there before its slot was; the publication's number is
#: behind it since version 0.2, and another one is of a publication that a dump made again.
BEGUN_WITH = "rhei: its slot has begun with it"
_STANDS = f"""
select from pg_publication p where p.pubname = slot_name
    and obj_description(p.oid, 'pg_publication') in ('{BEGUN_WITH}', '{BEGUN_WITH} ' || p.oid)
"""
_OIDS = """
select c.oid::bigint from jsonb_to_recordset(%s::jsonb) as t(namespace text, relation text)
join pg_namespace n on n.nspname = t.namespace
join pg_class c on c.relname = t.relation and c.relnamespace = n.oid order by 1
"""
_REWRITTEN = """
with asked as (select oid, relkind, relfilenode from pg_class where oid = any(%(oids)s))
select oid::bigint from asked
where relkind <> 'p' and pg_relation_filenode(oid) is distinct from nullif(relfilenode, 0)
union all
select a.oid::bigint from asked a cross join lateral pg_partition_tree(a.oid) part
join pg_class c on c.oid = part.relid
where a.relkind = 'p' and pg_relation_filenode(c.oid) is distinct from nullif(c.relfilenode, 0)
"""

#: The way out of a standby.
TO_PRIMARY = "give the primary server in 'source.dsn', or use 'capture: {method: polling}'"


def origin(connection: Connection) -> str:
    """Return the server and its timeline, which changes by a promotion or a restored backup."""
    return str(one(connection, _ORIGIN)[0])


def refuse_other_server(connection: Connection, known: str) -> None:
    """Refuse if the pooler now leads to another server, or to a promoted one.

    Raises:
        SourceBusyError: It does; the connection is closed, and the next one starts again.
    """
    if connection.is_pooled and origin(connection) != known:
        connection.close()
        raise another_server(" behind the pooler")


def refuse_standby(connection: Connection) -> None:
    """Refuse a server that applies the log of another one: nothing can be created there.

    Raises:
        SourceBusyError: It does, until it is promoted; the connection is closed.
    """
    if one(connection, "select pg_is_in_recovery()")[0]:
        connection.close()
        raise SourceBusyError(
            "the server is a standby, and neither triggers nor a slot can be created there",
            hint=TO_PRIMARY,
        )


def another_server(where_from: str = "") -> SourceBusyError:
    """Return the error for a server that is not the one that was asked before."""
    return SourceBusyError(
        f"another server answers{where_from}, or one that was promoted", hint="it is tried again"
    )


def identity(connection: Connection) -> SourceIdentity:
    """Return the identity of a server's database, which is the same on every timeline."""
    (may_ask,) = one(connection, "select has_function_privilege('pg_control_system()', 'execute')")
    server = one(connection, _SERVER)[0] if may_ask else ""
    oid, name = one(connection, _DATABASE)
    return SourceIdentity("postgres", f"{name} of server {server}", f"{oid} of server {server}")


def lost_slot(connection: Connection, *, is_ours: bool = True) -> str:
    """Return SQL that is true if a slot can no longer deliver what it was to keep.

    Before PostgreSQL 18 a server cannot read a part of its log in which the publication did not
    exist. A comment on the publication records with which one a slot began; it is gone when the
    publication is dropped. A publication that somebody else maintains has no comment.
    """
    invalidated = where(
        connection, Since.INVALIDATION_REASON, " or invalidation_reason is not null"
    )
    made_later = where(connection, Since.PUBLICATIONS_MISSED, "", f" or not exists ({_STANDS})")
    made_later = made_later if is_ours else ""
    return f"(wal_status = 'lost' or restart_lsn is null{invalidated}{made_later})"


def refuse_rewritten(connection: Connection, *tables: PostgresTable) -> None:
    """Refuse a table that was rewritten since this transaction's snapshot was taken.

    To that snapshot it looks empty: TRUNCATE and ALTER TABLE do not keep the rows that it should
    see. Call this after the tables were read or locked: from then on they cannot be rewritten.

    Raises:
        SourceBusyError: One was; the next snapshot sees all its rows.
    """
    by_oid = {table.oid: table for table in tables}
    for (oid,) in connection.execute(_REWRITTEN, {"oids": list(by_oid)}).fetchall():
        raise SourceBusyError(
            f"table {by_oid[oid].schema.name!r} was rewritten while it was read",
            hint="it is tried again",
        )


class SourceCatalog:
    """A number that changes whenever the catalogue's entries of followed tables change.

    A table is followed by its name, even while no such table exists or it cannot be captured. The
    catalogue is read again only after a commit.

    Args:
        more: Reads further parts of the number; given the tables' oids.

    Attributes:
        generation: Grows whenever a reading of the number shows that a table may have changed.
    """

    def __init__(self, more: Callable[[Connection, list[int]], object]) -> None:
        self._more = more
        self._names: set[tuple[str, str]] = set()
        self._sorted: list[tuple[str, str]] = []
        self._asked = _asked([])
        self._state: tuple[object, ...] | None = None
        self._version = -1
        self.generation = 0

    def follow(self, name: str) -> None:
        """Follow a table of this name, too, which may include its schema; read nothing yet."""
        self._names.update(candidates(name))

    def is_current(self, connection: Connection, read_at: object = None) -> bool:
        """Return whether nothing was committed since the number, or something else, was read."""
        state = self.state(connection)
        return state == read_at or (self._state is not None and self._state[0] == state)

    def state(self, connection: Connection) -> object:
        """Return what changes with every commit."""
        return one(connection, f"select {STATE}")[0]

    def forget(self) -> None:
        """Read the catalogue again, on another connection."""
        self._state = None

    def version(self, connection: Connection, at: object = None) -> int:
        """Return the number, as the connection's transaction sees the catalogue.

        `at` is the state, where the caller has just asked for it.
        """
        state = (at or self.state(connection), len(self._names))
        if state != self._state:
            before, is_later = self._version, self._state is None or state[0] != self._state[0]
            if len(self._sorted) != len(self._names):
                self._sorted = sorted(self._names)
                self._asked = _asked(self._sorted)
            names = self._sorted
            oids = [oid for (oid,) in connection.execute(_OIDS.encode(), (self._asked,))]
            more = self._more(connection, oids)
            self._version = version_of(f"{names}{oids}{shapes(connection, oids)}{more}")
            self._state = state
            # The number of more tables is another, but the others are as they were.
            self.generation += is_later and self._version != before
        return self._version


def _asked(names: Collection[tuple[str, str]]) -> str:
    """Return names as one text, which costs the driver less than a list."""
    return json.dumps([{"namespace": schema, "relation": name} for schema, name in names])


def array_of(oids: Collection[int]) -> str:
    """Return oids as the text of an array, which costs the driver less than a list."""
    return f"{{{','.join(map(str, oids))}}}"


def version_of(text: str) -> int:
    """Hash what is known of a catalogue to a number."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:_VERSION_DIGITS], 16)


def one(connection: Connection, sql: str, *params: object) -> tuple[Any, ...]:
    """Run a statement that returns one row."""
    found = connection.execute(sql.encode(), params or None).fetchone()
    if found is None:
        raise CaptureError("the server's catalogue returned no row")
    return found
