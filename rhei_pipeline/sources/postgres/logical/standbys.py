"""Standbys that a failover slot waits for: the server hands out no log that they do not have.

Since PostgreSQL 17 a slot can be kept on standbys, too. Who reads such a slot waits, without an
end, for those that `synchronized_standby_slots` names. So what they lack is asked for beforehand.
Source: postgresql.org/docs/18/logicaldecoding-explanation.html (replication slot synchronization).
"""

from rhei_pipeline.errors import SourceBusyError
from rhei_pipeline.sources.postgres.catalog import Connection
from rhei_pipeline.sources.postgres.identity import one
from rhei_pipeline.sources.postgres.logical.moment import lsn_text
from rhei_pipeline.sources.postgres.versions import Since, has
from rhei_pipeline.sources.waiting import wait_until

#: A standby that follows has the newest log within milliseconds.
STANDBY_SECONDS = 10.0

_BEHIND = "it is behind"
#: Of each named slot: whether it is one of a standby, and where that has the log; null where it
#: was never used, or has lost its log.
_NAMED = """
with named(slot) as (
    select trim(both ' "' from name)
    from pg_replication_slots own cross join lateral
        string_to_table(current_setting('synchronized_standby_slots'), ',') name
    where own.slot_name = %(slot)s and own.failover and trim(name) <> ''
)
select named.slot, s.slot_name is not null, s.restart_lsn::text, coalesce(s.active, false),
    coalesce(s.restart_lsn < %(head)s::pg_lsn, true)
from named left join pg_replication_slots s
    on s.slot_name = named.slot and s.slot_type = 'physical'
order by s.restart_lsn nulls first
"""
_HEAD = "select pg_current_wal_flush_lsn()::text"


def await_standbys(connection: Connection, slot: str, place: int) -> None:
    """Wait until the standbys that a failover slot waits for have the log up to a place.

    Raises:
        SourceBusyError: One of them does not get there.
    """
    found: dict[str, str] = {}

    def is_there() -> bool:
        found.clear()
        found.update(_behind(connection, slot, lsn_text(place)))
        return not found

    if not wait_until(is_there, STANDBY_SECONDS):
        raise SourceBusyError(told(slot, found), hint=way_out(found))


def absent(connection: Connection, slot: str) -> dict[str, str]:
    """Return, by its slot, why a standby that a slot waits for does not follow."""
    if not has(connection, Since.FAILOVER_SLOTS):
        return {}
    (head,) = one(connection, _HEAD)
    found = _behind(connection, slot, head)
    return {name: why for name, why in found.items() if why != _BEHIND}


def _behind(connection: Connection, slot: str, head: str) -> dict[str, str]:
    asked = connection.execute(_NAMED.encode(), {"slot": slot, "head": head})
    return {name: _why(*found) for name, *found, is_late in asked if is_late}


def readable_to(connection: Connection, slot: str) -> str | None:
    """Return up to where a slot can be read at once; None where a standby does not follow."""
    (head,) = one(connection, _HEAD)
    if not has(connection, Since.FAILOVER_SLOTS):
        return str(head)
    asked = connection.execute(_NAMED.encode(), {"slot": slot, "head": head}).fetchall()
    late = [reached if active else None for *_, reached, active, is_late in asked if is_late]
    return None if None in late else next(iter(late), head)


def told(slot: str, found: dict[str, str]) -> str:
    """Return what holds up a slot."""
    standbys = ", ".join(f"{name!r} ({why})" for name, why in found.items())
    return f"slot {slot!r} is a failover slot, and the server waits for standby slot {standbys}"


def way_out(found: dict[str, str]) -> str:
    """Return what to do about standbys that do not follow."""
    return f"start the standby, or take {', '.join(found)} out of synchronized_standby_slots"


def _why(is_there: bool, reached: str | None, is_active: bool) -> str:  # noqa: FBT001  (a row)
    if not is_there:
        return "there is no physical slot of that name"
    if reached is None:
        return "no standby has used it yet, or the server has removed the log that it kept"
    return _BEHIND if is_active else "nobody uses it"
