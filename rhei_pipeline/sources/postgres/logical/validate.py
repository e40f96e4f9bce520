"""Findings of `rhei check` about logical decoding: what prevents it, why, and how to fix it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from rhei_pipeline.errors import SchemaError
from rhei_pipeline.model.reports import Finding, Severity
from rhei_pipeline.model.schema import TableOptions
from rhei_pipeline.sources.postgres import grants
from rhei_pipeline.sources.postgres.catalog import Connection, read_table, slot_name
from rhei_pipeline.sources.postgres.database import PostgresDatabase, pooled_stream
from rhei_pipeline.sources.postgres.identity import TO_PRIMARY, lost_slot, one
from rhei_pipeline.sources.postgres.logical import standbys
from rhei_pipeline.sources.postgres.logical.publication import addition, published
from rhei_pipeline.sources.postgres.logical.slots import oldest_transaction, used_name

#: Free slots and senders below this leave no room for a second mirror or a replica.
_SPARE_SLOTS = 1
#: A slot that may keep so few more bytes before the server throws it away is in danger.
_SAFE_BYTES = 256 * 2**20
_LONG_SECONDS = 600

_SLOTS = """
select current_setting('max_replication_slots')::int - count(*)::int from pg_replication_slots
"""
_SLOT = """
select {lost}, coalesce(safe_wal_size, 9223372036854775807)::bigint,
    pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::bigint,
    plugin is distinct from 'pgoutput' or database <> current_database()
from pg_replication_slots where slot_name = %s
"""


def findings(
    database: PostgresDatabase,
    tables: Sequence[str],
    options: Callable[[str], TableOptions],
    mirror_id: str | None,
    publication: str | None = None,
    *,
    streaming: bool = False,
) -> list[Finding]:
    """Check the server and each table.

    Args:
        database: The source.
        tables: Names of the tables to mirror.
        options: Returns a table's declared options.
        mirror_id: The mirror's, once there is one: its slot is checked as well.
        publication: One that somebody else maintains; None: the mirror has its own.
        streaming: Whether the log is to be streamed.
    """
    slot = slot_name(mirror_id) if mirror_id else None
    known = _Known(options, slot, publication)
    with closing(database.connect()) as connection, database.translated():
        found = list(_examined(connection, tables, known))
        if streaming and connection.is_pooled:
            error = pooled_stream()
            why = "a stream of the log lasts as long as its session"
            found.append(Finding(Severity.ERROR, error.message, why, error.hint or ""))
        return found


@dataclass(frozen=True, slots=True)
class _Known:
    options: Callable[[str], TableOptions]
    slot: str | None
    foreign: str | None


def _examined(connection: Connection, tables: Sequence[str], known: _Known) -> Iterator[Finding]:
    if one(connection, "select pg_is_in_recovery()")[0]:
        yield Finding(
            Severity.ERROR, "the server is a standby", "no slot can be created there", TO_PRIMARY
        )
        return
    yield from _server(connection)
    if known.foreign is None:
        yield from grants.creation(
            connection,
            "the user may not create a publication",
            "a publication names the tables whose changes are sent",
        )
    yield from _slot(connection, known)
    name = known.foreign or known.slot or ""
    members = published(connection, name, is_ours=known.foreign is None)
    for declared in tables:
        try:
            table = read_table(connection, declared, known.options(declared))
        except SchemaError as error:
            hint, where = error.hint or "", error.table or declared
            yield Finding(Severity.ERROR, error.message, grants.LEFT_OUT, hint, where)
            continue
        yield from grants.reading(connection, table)
        if table.oid in members:
            continue
        if known.foreign is None:
            yield from grants.owning(connection, table, "only the owner may publish a table")
        else:
            yield Finding(
                Severity.ERROR,
                f"publication {known.foreign!r} does not publish all changes",
                f"changes are not sent to the mirror; {grants.LEFT_OUT}",
                addition(connection, known.foreign, table),
                table.schema.name,
            )


def _server(connection: Connection) -> Iterator[Finding]:
    level = one(connection, "show wal_level")[0]
    if level != "logical":
        yield Finding(
            Severity.ERROR,
            f"wal_level is {level!r}",
            "only with 'logical' the server's log holds row changes",
            "alter system set wal_level = 'logical'; then restart the server",
        )
    yield from grants.replication(connection)
    if one(connection, _SLOTS)[0] < _SPARE_SLOTS:
        yield Finding(
            Severity.WARNING,
            "no replication slot is free",
            "each mirror needs one",
            "alter system set max_replication_slots = ...; then restart the server",
        )
    yield from _unbounded_log(connection)
    yield from _long_transaction(connection)


def _unbounded_log(connection: Connection) -> Iterator[Finding]:
    if one(connection, "select current_setting('max_slot_wal_keep_size', true)")[0] == "-1":
        yield Finding(
            Severity.WARNING,
            "max_slot_wal_keep_size is not set",
            "while no sync runs, the server keeps its log for the mirror without bound, until its"
            " disk is full",
            "alter system set max_slot_wal_keep_size = ...; then select pg_reload_conf()",
        )


def _long_transaction(connection: Connection) -> Iterator[Finding]:
    found = oldest_transaction(connection)
    if found is not None and found.seconds >= _LONG_SECONDS:
        yield Finding(
            Severity.WARNING,
            f"{found.who} has held a transaction open for {found.seconds // 60} minutes",
            "a first copy waits for it, and until then the server keeps its log",
            f"end it in its application, or: {found.ended_by}",
        )


def _slot(connection: Connection, known: _Known) -> Iterator[Finding]:
    slot = known.slot
    statement = _SLOT.format(lost=lost_slot(connection, is_ours=known.foreign is None))
    found = connection.execute(statement, (slot,)).fetchone() if slot else None
    if found is None:
        return
    lost, safe, behind, is_foreign = found
    if is_foreign:
        error = used_name(connection, str(slot))
        why = "the mirror needs a slot of this name"
        yield Finding(Severity.ERROR, error.message, why, error.hint or "")
    elif lost:
        yield Finding(
            Severity.ERROR,
            f"slot {slot!r} is lost",
            "the server removed changes before the mirror had them, or its publication was "
            "created again",
            "rhei sync copies every table again by its difference; history is kept",
        )
    elif safe < _SAFE_BYTES:
        yield Finding(
            Severity.WARNING,
            f"slot {slot!r} is {behind:,} bytes behind and may keep {safe:,} more",
            "beyond that the server removes changes that the mirror does not have",
            "sync now, or raise max_slot_wal_keep_size",
        )
    yield from _standbys(connection, str(slot))


def _standbys(connection: Connection, slot: str) -> Iterator[Finding]:
    late = standbys.absent(connection, slot)
    if late:
        yield Finding(
            Severity.WARNING,
            standbys.told(slot, late),
            "a sync reads no change that the standby does not have yet",
            standbys.way_out(late),
        )
