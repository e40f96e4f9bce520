"""Change capture by logical decoding: reads PostgreSQL's log through a replication slot.

No plugin is needed on the server: pgoutput is built in. The log is peeked up to its end when a
cycle began, and the slot is advanced only after the mirror has committed: so a crash at any point
leads to reading the same changes again, never to losing one. Source: postgresql.org/docs/18,
chapters 47 (logical decoding) and 9.28.6 (replication management functions).
"""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa

from rhei_pipeline.errors import (
    CaptureError,
    SchemaError,
    SourceBusyError,
    SourceFullError,
    TableBusyError,
)
from rhei_pipeline.model.changes import Position
from rhei_pipeline.model.kept_columns import KeptColumns
from rhei_pipeline.model.polling import PollOptions
from rhei_pipeline.model.schema import Table, TableOptions, TableSchema
from rhei_pipeline.sources.postgres.added_columns import (
    added_values,
    leads_here,
    logged_names,
)
from rhei_pipeline.sources.postgres.catalog import (
    Connection,
    PostgresTable,
    qualified,
    read_table,
    slot_name,
)
from rhei_pipeline.sources.postgres.database import PostgresDatabase, pooled_stream
from rhei_pipeline.sources.postgres.identity import SourceCatalog, lost_slot
from rhei_pipeline.sources.postgres.kept_columns import (
    columns_ever,
    is_named_as,
    kept_columns,
)
from rhei_pipeline.sources.postgres.logical import slots
from rhei_pipeline.sources.postgres.logical.copy_start import CopyStart
from rhei_pipeline.sources.postgres.logical.moment import (
    LogMoment,
    LogPortion,
    RowView,
    Slot,
    Visible,
    lsn_number,
)
from rhei_pipeline.sources.postgres.logical.position import LogMemory, LogPosition
from rhei_pipeline.sources.postgres.logical.publication import Publication
from rhei_pipeline.sources.postgres.logical.reader import LogReader
from rhei_pipeline.sources.postgres.logical.recent_slot import RecentSlot
from rhei_pipeline.sources.postgres.logical.sessions import LogSessions
from rhei_pipeline.sources.postgres.logical.shared_keys import UniqueKey, read_unique
from rhei_pipeline.sources.postgres.logical.snapshot import LogicalSnapshot
from rhei_pipeline.sources.postgres.logical.standing import as_confirmed
from rhei_pipeline.sources.postgres.marks import STATE
from rhei_pipeline.sources.postgres.table_facts import FactsOfState, TableFacts
from rhei_pipeline.sources.postgres.versions import Since, has, where
from rhei_pipeline.sources.progress_notes import Notes
from rhei_pipeline.sources.waiting import wait_until
from rhei_pipeline.sql.text import quote

_log = logging.getLogger(__name__)

#: How long a slot waits for transactions that began before it, and a row snapshot for its log.
SETTLE_SECONDS = 60.0
#: How long a copy does, while which the other tables wait; only the first time that it is tried.
WRITERS_SECONDS = 10.0
#: A slot that nobody used for so long is used: a copy may take longer than a server keeps it.
IDLE_SECONDS = 60.0
_NOTE_EVERY_BYTES = 2 * 2**20

_SYSTEM = "select system_identifier::text from pg_control_system()"
_FLUSHED = "select pg_current_wal_flush_lsn()::text"
_INSERTED = "select pg_current_wal_insert_lsn()::text"
_VISIBLE = "select pg_current_snapshot()::text"
#: A transaction that changes nothing: its message is in the log, and no reader asks for messages.
_COMMIT = "select pg_logical_emit_message(true, 'rhei', '')::text"
#: How long a busy server's own commits are waited for.
_FLUSH_SECONDS = 0.5

_HEAD = """
select lsn::text, extract(epoch from clock_timestamp())::float8, substr(pg_walfile_name(lsn), 1, 8)
from pg_current_wal_flush_lsn() as lsn
"""
_SLOT = """
select state, slot_name::text, confirmed_flush_lsn::text, coalesce({lost}, false),
    {failover}, {idle}
from (select {state} as state) now left join pg_replication_slots on slot_name = %s
    and plugin = 'pgoutput' and database = current_database()
"""
_IDLE = "coalesce(inactive_since < clock_timestamp() - interval '{} s', false)"
_RETAINED = """
select greatest(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::bigint
from pg_replication_slots where slot_name = %s and restart_lsn is not null
"""


@dataclass(slots=True)
class _ReadAhead:
    """What was read of many tables at once, and of our slot and publication when first needed."""

    state: object
    facts: Mapping[str, TableFacts]
    slot: Slot | None = None
    members: set[int] = field(default_factory=set)
    #: Why the slot could not be created: once is enough, for all of these tables.
    busy: TableBusyError | None = None


class LogicalSource:
    """A `ChangeSource` over one PostgreSQL database.

    Args:
        database: The source.
        mirror_id: The reader: each mirror has its own slot and publication.
        options: Partial replication, chosen keys, given types, by table.
        streaming: Keep a replication connection open, on which the server sends each commit.
        publication: One that somebody else maintains; None: the mirror has its own.
        notes: A file with what was confirmed, for other processes; never read here.

    Raises:
        CaptureError: The server's log cannot be read; the hint says what to do.

    Not for several threads at once; the caller holds a lock around its work.
    """

    def __init__(
        self,
        database: PostgresDatabase,
        mirror_id: str,
        options: Mapping[str, TableOptions] | None = None,
        *,
        streaming: bool = False,
        publication: str | None = None,
        notes: Path | None = None,
    ) -> None:
        self._database = database
        self._notes = Notes(notes)
        self._name = slot_name(mirror_id)
        self._sessions = LogSessions(database, self._forget_server)
        self._log = LogReader(
            self._sessions,
            database.connect,
            database.connect_replicating,
            publication=publication or self._name,
            streaming=streaming,
        )
        self._recent = RecentSlot(self._sessions, self._name)
        self._options = {_plain(name): chosen for name, chosen in (options or {}).items()}
        self._is_own = publication is None
        self._publication = Publication(
            lambda: self._connection, publication or self._name, is_ours=self._is_own
        )
        self._catalogue = SourceCatalog(lambda *_: sorted(self._look().items()))
        self._members: dict[int, str] = {}
        self._known: dict[str, tuple[object, PostgresTable]] = {}
        self._facts = FactsOfState()
        self._ahead: _ReadAhead | None = None
        self._installed: dict[str, PostgresTable] = {}
        self._renamed: dict[str, tuple[int, tuple[str, ...]]] = {}
        self._keys: dict[str, tuple[tuple[int, int] | None, frozenset[str]]] = {}
        self._unique: dict[int, tuple[int, Sequence[UniqueKey] | None]] = {}
        self._advanced = self._noted = 0
        self._copy_start = CopyStart()
        self._may_note = True
        self._silent_until: int | None = None
        self._reader: Connection | None = None
        self._system = self._timeline = ""
        self._positions = LogMemory()
        self._reached = 0
        with database.translated():
            self._refuse_unready(streaming=streaming)

    def _refuse_unready(self, *, streaming: bool) -> None:
        try:
            slots.refuse_unread_log(self._connection)
        except CaptureError:
            self.close()
            raise
        if streaming and self._connection.is_pooled:
            self.close()
            raise pooled_stream()

    @property
    def _connection(self) -> Connection:
        """The connection for everything but rows, and the log itself."""
        return self._sessions.asked

    def _forget_server(self, connection: Connection) -> None:
        """Forget what was known of the server on an earlier connection."""
        self._catalogue.forget()
        self._known.clear()
        self._facts.forget()
        self._ahead = None
        # It may have been put back to an earlier state meanwhile, in which its log ends before.
        self._log.close()
        if self._reader is not None:
            self._reader.close()
        self._advanced = self._noted = self._reached = 0
        self._silent_until = None
        self._copy_start.forget()
        self._positions.forget_session()
        self._system = _value(connection, _SYSTEM)

    def _look(self) -> dict[int, str]:
        """Return what is published; cached while the catalogue's version is the same."""
        self._members = self._publication.look()
        return self._members

    def describe(self, name: str) -> TableSchema:
        """Read a table's schema as it is now."""
        return self._table(name).schema

    def schema_version(self) -> int:
        """Return a number that changes with the catalogue's entries of all described tables."""
        with self._database.translated():
            return self._catalogue.version(self._connection)

    def added_values(
        self, table: Table, known: TableSchema, after: Position
    ) -> Mapping[str, pa.Scalar] | None:
        """Return what columns that are new since are in rows that nobody has written since."""
        oid = self._table(table.name).oid
        with self.snapshot() as snapshot:
            values = added_values(self._connection, oid, known, table.schema)
            logged = snapshot.logged_columns(after) if values is not None else ()
            return values if leads_here(self._connection, oid, logged) else None

    def kept_columns(self, table: Table, known: TableSchema, after: Position) -> KeptColumns | None:
        """Return which columns are those that were known, and hold what they held.

        Where no column came or went, the log is read by the columns' places, whatever they were
        called when it was written: from then on, while the catalogue stays as it is.
        """
        found = kept_columns(known, table.schema)
        if found is None:
            return None
        # What was logged before the names were others is among what is read next.
        self._await_flush(lsn_number(_value(self._connection, _INSERTED)))
        with self.snapshot() as snapshot:
            oid = self._table(table.name).oid
            own, logged = logged_names(self._connection, oid), snapshot.logged_columns(after)
            are_all_there = columns_ever(known) == columns_ever(table.schema)
            if are_all_there and all(len(columns) == len(own) for columns in logged):
                self._renamed[table.name] = snapshot.schema_version, own
                return found
            if found.former.keys() < {*table.schema.names}:
                is_named = leads_here(self._connection, oid, logged)
            else:
                is_named = all(is_named_as(columns, known, own) for columns in logged)
            return found if is_named and not found.renamed else None

    def reads_wider(self) -> bool:
        """Return True: the server logs all columns, from the change of the table on."""
        return True

    @property
    def logs_rows(self) -> bool:
        """True: the server logs whole rows."""
        return True

    def is_installed(self, table: Table) -> bool:
        """Return whether the table is published with this schema, and the slot exists."""
        try:
            known = self._table(table.name)
        except SchemaError:
            return False
        return known.schema == table.schema and self._is_captured(known)

    def _is_captured(self, table: PostgresTable) -> bool:
        with self._database.translated():
            slot, members = self._standing()
            return table.oid in members and slot is not None and not slot.lost

    def _standing(self) -> tuple[Slot | None, Collection[int]]:
        """Return the slot, and what is published."""
        ahead = self._ahead
        if ahead is None:
            return self._slot(), self._publication.members().keys()
        if ahead.slot is None:
            ahead.slot, ahead.members = self._slot(), {*self._publication.members()}
        return ahead.slot, ahead.members

    @contextmanager
    def reading_together(self, names: Collection[str]) -> Iterator[None]:
        """Read tables, publication and slot once for what is described and installed in a block."""
        with self._database.translated():
            connection = self._connection
            for name in names:
                self._catalogue.follow(name)
            state = self._catalogue.state(connection)
            self._ahead = _ReadAhead(state, self._facts.read(connection, names, state))
        try:
            yield
        finally:
            self._ahead = None

    def install(self, table: Table, least: int) -> None:
        """Publish the table, and create the slot if there is none.

        A lost or missing slot is created again. The changes it held are gone, so no older
        position is proved any more, and every table is copied again by its difference.

        Raises:
            TableBusyError: A slot cannot be created, as an older transaction does not end.
        """
        known = self._table(table.name)
        if not self._is_captured(known):
            self._capture(known, least)
        self._installed[table.name] = known
        self._begin_behind(table.name, least)

    def _begin_behind(self, name: str, least: int) -> None:
        """Make new positions greater than `least`, also those of a log that is shorter."""
        base = self._positions.bases.get(name, 0)
        if self._reached + base < least:  # mostly the log has got there, and did so long ago
            self._reached = lsn_number(_value(self._connection, _FLUSHED))
        if self._reached + base < least:
            self._positions.bases[name] = least + 1 - self._reached

    def _capture(self, table: PostgresTable, least: int) -> None:
        with self._database.translated():
            self._log.end_stream()
            self._publication.add(table)
            slot = self._slot_that_keeps()
            if slot is None:
                self._recent.drop()
                self._create_slot()
                if least:
                    _log.warning(
                        "slot %r was gone: it is created again, and all tables are copied",
                        self._name,
                    )
                self._publication.note_begun()
                self._advanced = 0
                self._copy_start.forget()
                slot = self._slot()
            if self._ahead is not None:
                self._ahead.slot = slot
                self._ahead.members.add(table.oid)

    def _create_slot(self) -> None:
        ahead = self._ahead
        if ahead is not None and ahead.busy is not None:
            raise TableBusyError(ahead.busy.message, hint=ahead.busy.hint)
        try:
            slots.create(self._connection, self._name, SETTLE_SECONDS)
        except TableBusyError as error:
            if ahead is not None:
                ahead.busy = error
            raise

    def snapshot(self) -> AbstractContextManager[LogicalSnapshot]:
        """Hold one committed state: a log position."""
        return self._held(rows=False)

    def row_snapshot(self) -> AbstractContextManager[LogicalSnapshot]:
        """Hold one committed state: exactly what a snapshot of the rows sees."""
        return self._held(rows=True)

    @contextmanager
    def _held(self, *, rows: bool) -> Iterator[LogicalSnapshot]:
        with ExitStack() as stack:
            stack.enter_context(self._database.translated())
            view = stack.enter_context(self._row_view()) if rows else None
            moment = self._moment()
            snapshot = LogicalSnapshot(
                lambda slot, head: (
                    self._read_recent(slot, head)
                    if slot is moment.recent
                    else self._read(slot, head)
                ),
                replace(moment, silent=moment.head == self._silent_until),
                self._positions,
                self._visible,
                self._wait_for_writers,
                self._key_at,
                self._unique_at,
                view,
            )
            stack.callback(snapshot.close)
            yield snapshot
            if snapshot.is_silent and view is None:
                self._silent_until = moment.head

    def _read(self, slot: Slot, head: int) -> Iterator[LogPortion]:
        try:
            yield from self._log.read(slot, head)
        except psycopg.errors.UndefinedObject as error:
            raise CaptureError(
                f"publication {self._publication.name!r} did not exist while rows were written, "
                "and before PostgreSQL 18 a server cannot read past such rows",
                hint=f"run: select pg_drop_replication_slot('{self._name}'); the next sync "
                "creates the slot again, and copies tables by their difference",
            ) from error

    def _read_recent(self, slot: Slot, head: int) -> Iterator[LogPortion]:
        """Read the temporary slot; where it is gone, all of the log, which has the same in it."""
        is_begun = False
        try:
            for part in self._log.read_temporary(slot, head):
                is_begun = True
                yield part
        except psycopg.errors.UndefinedObject:
            self._recent.forget()
            kept = self._slot()
            if is_begun or kept is None:
                raise
            yield from self._read(kept, head)

    def _moment(self) -> LogMoment:
        if self._connection.is_pooled:
            self._system = _value(self._connection, _SYSTEM)
            self._positions.forget_session()  # the session may be another one by now
        head, seconds, self._timeline = _row(self._connection, _HEAD)
        # Asked behind the head: what was published at it and is no more, shows.
        state, slot = self._state_and_slot()
        if slot is not None and slot.idle and not slot.lost:
            slots.use(self._connection, slot)
        version = self._catalogue.version(self._connection, state)
        members, server = self._members, f"{self._system}:{self._timeline}"
        proofs = {
            name: f"{server}:{table.oid}:{members[table.oid]}"
            for name, table in self._installed.items()
            if table.oid in members
        }
        clock = datetime.fromtimestamp(seconds, UTC)
        self._renamed = {name: of for name, of in self._renamed.items() if of[0] == version}
        columns = {name: own for name, (_, own) in self._renamed.items()}
        place = self._reached = lsn_number(head)
        recent = self._recent.slot if slot is not None else None
        keys = {name: table.keys for name, table in self._installed.items()}
        return LogMoment(
            place, clock, version, slot, server, proofs, recent, columns=columns, keys=keys
        )

    @contextmanager
    def _row_view(self) -> Iterator[RowView]:
        if self._reader is None or self._reader.closed:
            try:
                self._reader = self._database.connect()
            except SourceFullError:
                if not self._sessions.give_back():  # rows cannot be read in the other one
                    raise
                self._reader = self._database.connect()
        with self._reader.atomic("isolation level repeatable read read only"):
            visible = Visible.parse(_value(self._reader, _VISIBLE))
            # A commit can be seen before it is flushed, and is read from the log only after.
            self._await_flush(lsn_number(_value(self._reader, _INSERTED)))
            yield RowView(self._reader, visible, self._share(self._reader))

    def _visible(self) -> Visible:
        return Visible.parse(_value(self._connection, _VISIBLE))

    def _share(self, reader: Connection) -> Callable[[], Connection] | None:
        if reader.is_pooled:  # each more would wait for a session that others may need as well
            return None
        exported = _value(reader, "select pg_export_snapshot()")
        return lambda: self._sharing(exported)

    def _sharing(self, exported: str) -> Connection:
        """Open a connection that sees what the exported snapshot does."""
        connection = self._database.connect()
        connection.begin("isolation level repeatable read read only")
        connection.execute(f"set transaction snapshot '{exported}'".encode())
        return connection

    def _wait_for_writers(self) -> int:
        """Return where in the log a copy begins; see `CopyStart`."""
        return self._copy_start.wait(self._connection, WRITERS_SECONDS)

    def _await_flush(self, position: int) -> None:
        def flushed() -> bool:
            return lsn_number(_value(self._connection, _FLUSHED)) >= position

        if wait_until(flushed, _FLUSH_SECONDS):
            return
        # Where the log ends with a page, the next record's place is behind the header of a page
        # that is not written yet. On a quiet server that may last: a commit ends it.
        _value(self._connection, _COMMIT)
        if not wait_until(flushed, SETTLE_SECONDS):
            raise SourceBusyError("the server does not write its log to disk")

    def acknowledge(self, needed_from: Mapping[str, Position], *, prune: bool) -> int:
        """Advance the slot to what all tables of this mirror have; the server removes the rest.

        A copy, which reports only its own table (without `prune`), keeps what it needs because it
        is not applied yet.
        """
        if not prune or not needed_from:
            return 0
        self._copy_start.let_go()
        found = map(self._positions.place, needed_from.values())
        # One of another server, or of a log that was put back, needs nothing of this one.
        reached = {each.lsn for each in found if self._has_reached(each)}
        with self._database.translated():
            begin = self._begin()
            positions = {lsn for lsn in reached if lsn >= begin}
            if not positions:
                return 0
            target = min(positions)
            if (needed := self._copy_start.needed_from) is not None:
                target = min(target, needed)
            if target > self._advanced:
                if self._log.confirm(self._name, target, self._lost()):
                    self._let_forget(target)
                self._advanced = target
                self._note(target)
            self._recent.follow(positions, self._advanced)
            if self._recent.slot is not None:
                self._let_forget(self._recent.slot.confirmed)
        return 0

    def _note(self, confirmed: int) -> None:
        """Note what the slot was moved to, which others may move further, and where that is."""
        server, members = f"{self._system}:{self._timeline}", self._members
        own = {table.oid for table in self._installed.values()} & members.keys()
        self._notes.write(as_confirmed(confirmed, server, {oid: members[oid] for oid in own}))

    def _begin(self) -> int:
        """Return what the slot has been moved to: who needs what was before is to be copied."""
        if self._advanced:
            return self._advanced
        slot = self._slot()
        return slot.confirmed if slot is not None else 0

    def _has_reached(self, position: LogPosition) -> bool:
        is_here = position.relation.startswith(f"{self._system}:") or not position.relation
        return is_here and position.lsn <= self._reached

    def _let_forget(self, target: int) -> None:
        """Make the server log the running transactions, after a long part of its log.

        Each decoding starts from the last such record. The server writes one every 15 seconds,
        and until then would read the whole part again in every cycle.
        """
        if target - self._noted < _NOTE_EVERY_BYTES or not self._may_note:
            return
        if not has(self._connection, Since.SNAPSHOTS_LOGGED):
            return
        try:
            self._run("select pg_log_standby_snapshot()")
            self._noted = target
        except psycopg.errors.InsufficientPrivilege:
            self._may_note = False

    def touch(self, table: Table, keys: Sequence[tuple[Any, ...]]) -> None:
        """Write these rows again unchanged, so that the log contains them."""
        schema = self._table(table.name).schema
        column = quote(schema.primary_key[0])
        same = " and ".join(f"{quote(name)} = %s" for name in schema.primary_key)
        with self._database.translated(), self._connection.atomic() as connection:
            connection.cursor().executemany(
                f"update {qualified(schema)} set {column} = {column} where {same}".encode(), keys
            )

    def held_bytes(self) -> dict[str, int]:
        """Return the bytes of log that the server keeps for our slot."""
        with self._database.translated():
            found = self._connection.execute(_RETAINED.encode(), (self._name,)).fetchone()
        return {} if found is None else {"slot": int(found[0])}

    def forget_mirror(self) -> None:
        """Drop the slot and the publication: they are no longer used."""
        with self._database.translated():
            self._log.end_stream()
            self._recent.drop()
            if self._slot() is not None:
                self._run("select pg_drop_replication_slot(%s)", self._name)
            self._publication.drop()
        self._notes.forget()

    def redeclare(self, name: str, options: TableOptions, _polling: PollOptions) -> None:
        """Take what is said of a table from now on."""
        self._options[_plain(name)] = options
        self._known.clear()

    def end_capture(self, name: str) -> None:
        """Publish a table no more; with the last one, the slot goes, which would hold the log."""
        self._installed.pop(name, None)
        with self._database.translated():
            self._log.end_stream()
            self._publication.remove(name)
            # A table that is left out is published still, and needs what the slot keeps.
            if not self._installed and self._publication.is_empty:
                self.forget_mirror()

    def close(self) -> None:
        """Close the connections; safe to repeat."""
        self._log.close()
        self._sessions.close()
        if self._reader is not None:
            self._reader.close()

    def _key_at(self, name: str, oid: int, version: int) -> frozenset[str]:
        """Return a table's key, none where another has its name; read once for each version."""
        read_at, key = self._keys.get(name, (None, frozenset[str]()))
        if read_at == (oid, version):
            return key
        try:
            found = self._table(name)
            key = frozenset(found.schema.primary_key if found.oid == oid else ())
        except SchemaError:
            key = frozenset()
        self._keys[name] = (oid, version), key
        return key

    def _unique_at(self, oid: int, version: int) -> Sequence[UniqueKey] | None:
        """Return a table's unique indexes, None where it is gone; read once for each version."""
        read_at, found = self._unique.get(oid, (None, None))
        if read_at != version:
            found = read_unique(self._connection, oid)
            self._unique[oid] = version, found
        return found

    def _table(self, name: str) -> PostgresTable:
        options = self._options.get(_plain(name), TableOptions())
        with self._database.translated():
            connection = self._connection
            ahead = self._ahead
            if ahead is not None and name in ahead.facts:
                found = read_table(connection, name, options, facts=ahead.facts[name])
                self._known[name] = ahead.state, found
                return found
            self._catalogue.follow(name)
            # Asked first: what is committed while it is read has it read again.
            state = self._catalogue.state(connection)
            read_at, table = self._known.get(name, (None, None))
            if table is None or read_at != state:
                table = read_table(connection, name, options)
                self._known[name] = state, table
            return table

    def _slot(self) -> Slot | None:
        return self._state_and_slot()[1]

    def _state_and_slot(self) -> tuple[object, Slot | None]:
        """Return what changes with every commit, and the slot."""
        idle = _IDLE.format(IDLE_SECONDS)
        asked = _SLOT.format(
            state=STATE,
            lost=self._lost(),
            failover=where(self._connection, Since.FAILOVER_SLOTS, "failover", "false"),
            idle=where(self._connection, Since.IDLE_SLOTS_DROPPED, idle, "false"),
        )
        state, name, confirmed, lost, is_failover, is_idle = _row(
            self._connection, asked, self._name
        )
        if name is None:
            return state, None
        # The server takes a moment to note what a stream confirms.
        reached = max(lsn_number(confirmed or "0/0"), self._advanced)
        return state, Slot(name, reached, lost=lost, failover=is_failover, idle=is_idle)

    def _lost(self) -> str:
        return lost_slot(self._connection, is_ours=self._is_own)

    def _slot_that_keeps(self) -> Slot | None:
        """Return the slot; one that is lost is dropped."""
        slot = self._slot()
        if slot is None or not slot.lost:
            return slot
        _log.warning("slot %r: the log that it kept was removed, or cannot be read", self._name)
        self._run("select pg_drop_replication_slot(%s)", self._name)
        return None

    def _run(self, sql: str, *params: object) -> None:
        self._connection.execute(sql.encode(), params or None)


def _plain(name: str) -> str:
    return name.removeprefix("public.")


def _row(connection: Connection, sql: str, *params: object) -> tuple[Any, ...]:
    found = connection.execute(sql.encode(), params or None).fetchone()
    if found is None:
        raise CaptureError("the server's catalogue returned no row")
    return found


def _value(connection: Connection, sql: str, *params: object) -> Any:  # noqa: ANN401
    return _row(connection, sql, *params)[0]
