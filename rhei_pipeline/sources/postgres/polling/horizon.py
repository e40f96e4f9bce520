"""Reads a PostgreSQL server's clock and the earliest timestamp that may still be committed.

The horizon is read before the rows. A transaction that those rows do not show was running then,
and is in `pg_stat_activity` with its start, or began later: in both cases its timestamps are not
earlier than the horizon. Source: postgresql.org/docs/18, 27.2.3 (pg_stat_activity) and 53.17
(pg_prepared_xacts).
"""

import logging
from dataclasses import dataclass

from rhei_pipeline.sources.postgres.catalog import Connection

_log = logging.getLogger(__name__)

_SECOND = 1_000_000
#: A transaction takes its start a moment before `pg_stat_activity` shows it, and the server's clock
#: may be set back by so much without being noticed.
_SHOWN_SECONDS = 1
#: So far behind the clock rows are looked at again where stamps need not follow it.
_OVERLAP_SECONDS = 10
#: The doubt about a table that a subscription fills.
FILLED = "a subscription fills it, with timestamps of the server that publishes it"
#: A transaction that is open for longer is named in the log.
LONG_SECONDS = 60

#: Vacuum runs long and writes no row of an application.
_ACTIVITY = """
select (extract(epoch from now()) * 1000000)::bigint,
    (extract(epoch from min(xact_start)) * 1000000)::bigint,
    (array_agg(pid order by xact_start))[1],
    (array_agg(pid) filter (where state = 'disabled'))[1],
    pg_has_role('pg_read_all_stats', 'usage'),
    pg_is_in_recovery(),
    (select array_agg(distinct part.oid) from pg_subscription_rel s cross join lateral (
        select s.srrelid::bigint union all
        select relid::oid::bigint from pg_partition_ancestors(s.srrelid) relid union all
        select relid::oid::bigint from pg_partition_tree(s.srrelid)) part(oid))
from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid()
    and backend_type is distinct from 'autovacuum worker'
"""
_PREPARED = """
select transaction::text from pg_prepared_xacts where database = current_database()
"""


@dataclass(frozen=True, slots=True)
class HorizonReading:
    """The server's state before a snapshot was taken; microseconds since 1970.

    Attributes:
        clock: The server's clock.
        bound: Rows that the snapshot does not show have no earlier timestamp.
        doubt: Why that cannot be proved; None if it is.
        unknown: A prepared transaction with an unknown start is pending: only bounds from before
            this process are valid.
        filled: The tables that subscriptions fill, and their partitions and those they are of.
    """

    clock: int
    bound: int
    doubt: str | None
    unknown: bool = False
    filled: frozenset[int] = frozenset()

    def doubt_of(self, oid: int) -> str | None:
        """Return why a table's rows may have earlier timestamps; None if that is proved."""
        # What replication applies keeps its timestamps, however much later it is committed here.
        return FILLED if oid in self.filled else self.doubt

    def low(self, earlier: int | None, *, doubted: bool) -> int | None:
        """Return the timestamp from which rows must be read again; None: all of them.

        Args:
            earlier: The same, from when the table was last read.
            doubted: Whether timestamps need not follow the clock.
        """
        if self.unknown:
            return earlier
        behind = _OVERLAP_SECONDS if doubted else _SHOWN_SECONDS
        return self.bound - behind * _SECOND


class HorizonReader:
    """Reads one server's horizon repeatedly; remembers when transactions were prepared."""

    def __init__(self) -> None:
        self._bound: int | None = None
        self._begun: dict[str, int | None] = {}
        self._named: set[tuple[int, int]] = set()

    def read(self, connection: Connection) -> HorizonReading:
        """Read it; `connection` is in no transaction, and takes its snapshot afterwards."""
        clock, oldest, pid, silent, sees_all, recovers, filled = _row(connection, _ACTIVITY)
        # Only now: one that was prepared in between was still running in the first answer.
        self._follow_prepared(connection)
        self._name_long(clock, oldest, pid)
        begun = [clock if oldest is None else min(oldest, clock)]
        begun += [at for at in self._begun.values() if at is not None]
        self._bound = min(begun)
        doubt = None
        if recovers:
            doubt = "the server is a replica, which does not know its primary's open transactions"
        elif not sees_all:
            doubt = "the user may not see when others' transactions began (pg_read_all_stats)"
        elif silent is not None:
            doubt = f"process {silent} hides when its transactions begin (track_activities)"
        unknown = None in self._begun.values()
        return HorizonReading(clock, self._bound, doubt, unknown, frozenset(filled or ()))

    def _follow_prepared(self, connection: Connection) -> None:
        """Limit the start of each prepared transaction: the server shows only its preparation.

        One that was not prepared at the last reading was running then, or began later.
        """
        pending = [str(xid) for (xid,) in connection.execute(_PREPARED)]
        self._begun = {xid: self._begun.get(xid, self._bound) for xid in pending}

    def _name_long(self, clock: int, oldest: int | None, pid: int) -> None:
        if oldest is None or clock - oldest < LONG_SECONDS * _SECOND:
            return
        if (pid, oldest) not in self._named:
            self._named.add((pid, oldest))
            _log.warning(
                "process %d has held a transaction open for %d s: every poll reads the rows "
                "stamped since then again",
                pid,
                (clock - oldest) // _SECOND,
            )


def _row(
    connection: Connection, sql: str
) -> tuple[int, int | None, int, int | None, bool, bool, list[int] | None]:
    found = connection.execute(sql.encode()).fetchone()
    if found is None:
        raise RuntimeError("an aggregate gives one row")
    clock, oldest, pid, silent, sees_all, recovers, filled = found
    return clock, oldest, pid, silent, sees_all, recovers, filled
