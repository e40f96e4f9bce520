"""Change capture from PostgreSQL by triggers, for a server whose log cannot be read.

Writers in any process and language are captured, since the triggers are the database's own and
fire for every statement, those of bulk loads as well. Of a plain mirror only the touched keys are
logged, and their rows read when they are needed.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa

from rhei_pipeline.errors import RheiError, SchemaError, SourceBusyError
from rhei_pipeline.model.changes import Position
from rhei_pipeline.model.missing_table import no_such_table
from rhei_pipeline.model.polling import PollOptions
from rhei_pipeline.model.reports import Finding
from rhei_pipeline.model.schema import Mode, Table, TableOptions, TableSchema
from rhei_pipeline.sources import progress_notes
from rhei_pipeline.sources.acknowledged import Acknowledged
from rhei_pipeline.sources.postgres.added_columns import added_values
from rhei_pipeline.sources.postgres.catalog import Connection, PostgresTable, qualified, read_table
from rhei_pipeline.sources.postgres.database import PostgresDatabase
from rhei_pipeline.sources.postgres.identity import (
    SourceCatalog,
    one,
    origin,
    refuse_other_server,
    refuse_standby,
)
from rhei_pipeline.sources.postgres.rows import bare_literal
from rhei_pipeline.sources.postgres.table_facts import FactsOfState, TableFacts, read_ahead
from rhei_pipeline.sources.postgres.triggers import registry, validate
from rhei_pipeline.sources.postgres.triggers.ddl import (
    BEGUN,
    COMMIT,
    SCHEMA,
    STATEMENT,
    LoggedColumn,
    TableLog,
    columns_of,
    primaries_of,
    refuse_too_many_columns,
)
from rhei_pipeline.sources.postgres.triggers.entry import (
    Entry,
    captured,
    is_captured,
    log_of,
    log_of_the_gone,
)
from rhei_pipeline.sources.postgres.triggers.known_logs import KnownLogs
from rhei_pipeline.sources.postgres.triggers.logs import Captured
from rhei_pipeline.sources.postgres.triggers.position import Proof, VisibleText
from rhei_pipeline.sources.postgres.triggers.registry import Registered
from rhei_pipeline.sources.postgres.triggers.retired_logs import drop_passed
from rhei_pipeline.sources.postgres.triggers.snapshot import (
    PostgresTriggerSnapshot,
    TriggerMemory,
    TriggerMoment,
    log_is_gone,
    unseen,
)
from rhei_pipeline.sources.progress_notes import Notes

#: Who waits for the lock that creating a trigger takes has all later writers wait behind it.
_LOCK_TIMEOUT = "1s"
_LOCK_ATTEMPTS, _PAUSE_SECONDS = 2, 0.3
#: Of tables that are looked at together, each one behind the first that was waited for in vain:
#: one transaction may have written all of them.
_HASTY_TIMEOUT = "50ms"
#: Keys logged by one statement.
_TOUCHED_ROWS = 500

_MOMENT = """
select clock_timestamp(), pg_current_snapshot()::text,
    current_setting('track_commit_timestamp')::boolean
"""


@dataclass(frozen=True, slots=True)
class _Read:
    """How a table's logs were to be read last, and for what."""

    table: Table
    found: Registered
    entry: Entry | None
    proof: Proof | None
    captured: Captured | None

    def is_of(
        self, table: Table, found: Registered, entry: Entry | None, proof: Proof | None
    ) -> bool:
        """Return whether the same is wanted."""
        same = self.table is table and self.found is found and self.entry is entry
        return same and (self.proof is proof or self.proof == proof)


@dataclass(frozen=True, slots=True)
class _Records:
    """What capture needs to know of a table: its faults, columns and key, and its log's record."""

    faults: Sequence[bool]
    columns: Mapping[str, LoggedColumn]
    primary: str
    found: Registered | None


class PostgresTriggerSource:
    """A `ChangeSource` over one PostgreSQL database.

    Args:
        database: The source.
        mirror_id: Who reads: several mirrors may follow one source, each at its own pace.
        options: Partial replication, chosen keys, given types, by table.
        notes: A file with what was acknowledged, for other processes; never read here.

    Not for several threads at once; the caller holds a lock around its work.
    """

    def __init__(
        self,
        database: PostgresDatabase,
        mirror_id: str,
        options: Mapping[str, TableOptions] | None = None,
        notes: Path | None = None,
    ) -> None:
        self._database = database
        self._notes = Notes(notes)
        self._mirror_id = mirror_id
        self._options = {_plain(name): chosen for name, chosen in (options or {}).items()}
        self._memory = TriggerMemory()
        self._catalogue = SourceCatalog(self._look)
        self._entries: dict[str, Entry] = {}
        self._entry_states: dict[str, object] = {}
        self._entries_at = -1
        self._ahead: dict[str, TableFacts] = {}
        self._is_hasty = False
        self._ahead_at: object = None
        self._order_ahead: int | None = None
        self._records: dict[int, _Records] = {}
        self._facts = FactsOfState()
        self._recorded: tuple[Mapping[str, TableFacts], Mapping[int, _Records]] = {}, {}
        self._registered = KnownLogs()
        self._installed: dict[str, int] = {}
        self._read: dict[str, _Read] = {}
        self._acknowledged = Acknowledged()
        self._pruned_since: dict[str, str] = {}
        self._kept: Connection | None = None
        self._origin = ""

    @property
    def _connection(self) -> Connection:
        """The connection; a new one where the server ended the last."""
        if self._kept is None or self._kept.closed:
            self._kept = self._database.connect()
            validate.refuse_old(self._kept)
            refuse_standby(self._kept)
            # Losing an acknowledgement in a power cut only means giving it again.
            self._kept.also_set({"synchronous_commit": "off"})
            self._catalogue.forget()
            self._entry_states.clear()
            self._entries_at = -1
            self._ahead, self._records, self._order_ahead = {}, {}, None
            self._facts.forget()
            self._memory.numbers.forget()
            self._acknowledged.clear()
            self._pruned_since.clear()
            self._origin = origin(self._kept)
        return self._kept

    def describe(self, name: str) -> TableSchema:
        """Read a table's schema as it is now."""
        return self._current(name).source.schema

    @contextmanager
    def reading_together(self, names: Collection[str]) -> Iterator[None]:
        """Read tables once for what is described in a block; one whose log is made, again.

        What the last block read is as good, where nothing was committed since.
        """
        with self._database.translated():
            connection = self._connection
            for name in names:
                self._catalogue.follow(name)
            self._ahead_at = self._catalogue.state(connection)
            facts = self._facts.read(connection, names, self._ahead_at)
            if facts is not self._recorded[0]:
                for name in names:
                    self._entries.pop(name, None)
                self._recorded = facts, self._read_all_records(connection, facts)
            self._ahead, self._records = dict(facts), dict(self._recorded[1])
            self._order_ahead = None
        try:
            yield
        finally:
            self._ahead, self._records = {}, {}
            self._is_hasty = False

    def _read_all_records(
        self, connection: Connection, facts: Mapping[str, TableFacts]
    ) -> dict[int, _Records]:
        """Read the records of tables; nothing where that fails: each one's error is its own."""
        try:
            return self._read_records(connection, [found.oid for found in facts.values()])
        except (psycopg.Error, RheiError):
            if connection.closed:
                raise
            return {}

    def _read_records(self, connection: Connection, oids: Collection[int]) -> dict[int, _Records]:
        """Read what capture needs to know of tables beside the catalogue's facts."""
        if not oids:
            return {}
        faults = validate.faults_of(connection, oids)
        columns, primaries = columns_of(connection, oids), primaries_of(connection, oids)
        rows = registry.registered(connection, self._origin, list(oids), "")
        found = {one.relation: one for one in rows}
        # Of a log of before there is no place for it until it is made again.
        registry.note_filled(
            connection,
            [
                oid
                for oid, one in found.items()
                if one.attributes and validate.is_filled(faults[oid])
            ],
        )
        return {
            oid: _Records(faults[oid], columns[oid], primaries.get(oid, ""), found.get(oid))
            for oid in faults
        }

    def schema_version(self) -> int:
        """Return a number made of the catalogue's entries of all described tables.

        It changes as well when a trigger is turned off or meets a table that is not its own.
        """
        with self._database.translated():
            return self._follow_schema()

    def install(self, table: Table, least: int) -> None:
        """Create or repair the log and triggers of a table, in one transaction.

        If anything was missing, or this server has not reached `least`, changes may have been
        missed: the log starts again, it proves no older position any more, and so the table is
        copied again.

        Raises:
            SourceBusyError: Long transactions write the table all the time.
        """
        entry = self._current(table.name)
        if not (self._is_captured(table, entry) and self._order(entry) >= max(least, 1)):
            self._install_soon(table, least)
        self._installed[table.name] = entry.source.oid

    def _install_soon(self, table: Table, least: int) -> None:
        self._soon(lambda connection: self._install(connection, table, least))

    def _soon(self, change: Callable[[Connection], None]) -> None:
        """Change capture in one transaction, as soon as the writers of its table leave room."""
        timeout, left = (_HASTY_TIMEOUT, 1) if self._is_hasty else (_LOCK_TIMEOUT, _LOCK_ATTEMPTS)
        while True:
            try:
                with self._writing(lasting=True) as connection:
                    connection.execute(f"set local lock_timeout = '{timeout}'".encode())
                    change(connection)
                    return
            except SourceBusyError:
                left -= 1
                if not left:
                    self._is_hasty = bool(self._ahead)
                    raise
                time.sleep(_PAUSE_SECONDS)

    def added_values(
        self, table: Table, known: TableSchema, _after: Position
    ) -> Mapping[str, pa.Scalar] | None:
        """Return what columns that are new since are in rows that nobody has written since."""
        oid = self._current(table.name).source.oid
        with self._database.translated():
            return added_values(self._connection, oid, known, table.schema)

    @property
    def logs_rows(self) -> bool:
        """False: a plain mirror's log holds keys, and rows are read from the table."""
        return False

    def is_installed(self, table: Table) -> bool:
        """Return whether the schema is unchanged, and log and triggers are as created now."""
        try:
            entry = self._entry(table.name)
        except SchemaError:
            return False
        return entry.source.schema == table.schema and self._is_captured(table, entry)

    def _is_captured(self, table: Table, entry: Entry) -> bool:
        return is_captured(self._registered.get(entry.source.oid), table, entry)

    @contextmanager
    def snapshot(self) -> Iterator[PostgresTriggerSnapshot]:
        """Hold one committed state of the source; its rows can always be read."""
        with self._database.translated():
            connection = self._connection
            connection.begin("isolation level repeatable read read only")
            try:
                refuse_other_server(connection, self._origin)
                moment = self._moment()
                snapshot = PostgresTriggerSnapshot(connection, moment, self._captured, self._memory)
                with closing(snapshot):
                    yield snapshot
            finally:
                connection.end_reading()

    def acknowledge(self, needed_from: Mapping[str, Position], *, prune: bool) -> int:
        """Record the mirror's positions, then delete what no mirror needs.

        The newest entry seen at a watermark is kept: it proves, next time, that the log is the
        same. Saying the same again costs nothing.
        """
        news = self._acknowledged.news(needed_from)
        if not news:
            return 0
        noted = dict[str, Position]()
        with self._writing() as connection:
            forgotten = [
                self._acknowledge(connection, position, noted, prune=prune)
                for position in news.values()
            ]
            registry.forget_the_absent(connection)
        self._acknowledged.note(news)
        self._notes.write(noted)
        return sum(forgotten)

    def touch(self, table: Table, keys: Sequence[tuple[Any, ...]]) -> None:
        """Log keys as changed, in the form that the table's log has."""
        found = self._captured(table)
        if found is None:
            raise log_is_gone(table.name)
        with self._writing(lasting=True) as connection:
            for start in range(0, len(keys), _TOUCHED_ROWS):
                rows = " union all ".join(
                    f"select {', '.join(map(bare_literal, key))}"
                    for key in keys[start : start + _TOUCHED_ROWS]
                )
                connection.execute(found.log.touch_insert(rows).encode())

    def validate(self, tables: Sequence[str]) -> Iterator[Finding]:
        """Return what prevents capture; see `validate.findings`."""
        self.schema_version()
        described: list[tuple[str, PostgresTable | SchemaError]] = []
        for name in tables:
            try:
                described.append((name, self._entry(name).source))
            except SchemaError as error:
                described.append((name, error))
        with self._database.translated():
            yield from validate.findings(self, self._connection, described)

    def held_bytes(self) -> dict[str, int]:
        """Return the bytes of the tables' logs; mirrors of one table share its log."""
        with self._database.translated():
            return {"log": registry.log_bytes(self._connection, list(self._registered))}

    def forget_mirror(self) -> None:
        """Delete the source's records of this mirror."""
        with self._writing(lasting=True) as connection:
            registry.forget(connection, self._mirror_id)
        self._notes.forget()

    def redeclare(self, name: str, options: TableOptions, _polling: PollOptions) -> None:
        """Take what is said of a table from now on."""
        self._options[_plain(name)] = options
        self._entries.clear()
        self._entry_states.clear()

    def end_capture(self, name: str) -> None:
        """Delete this mirror's records of a table; with the last mirror's, triggers and logs go.

        Raises:
            SourceBusyError: Long transactions write the table all the time.
        """
        self._soon(lambda connection: self._end_capture(connection, name))
        self._installed.pop(name, None)
        self._acknowledged.clear()

    def _end_capture(self, connection: Connection, name: str) -> None:
        relation = registry.captured(connection, name)
        if relation is not None and registry.leave(connection, self._mirror_id, relation):
            registry.remove(connection, relation)

    def close(self) -> None:
        """Close the connection; safe to repeat."""
        if self._kept is not None:
            self._kept.close()

    def _moment(self) -> TriggerMoment:
        clock, text, dates = one(self._connection, _MOMENT)
        visible, version = VisibleText.parse(text), self._follow_schema()
        return TriggerMoment(clock, visible, version, COMMIT if dates else STATEMENT)

    def _follow_schema(self) -> int:
        """Forget what is known of tables when one of them, or its capture, is not as it was."""
        version = self._catalogue.version(self._connection)
        if self._catalogue.generation != self._entries_at:
            self._entries.clear()
            self._entries_at = self._catalogue.generation
        return version

    def _look(self, connection: Connection, oids: Sequence[int]) -> object:
        rows = self._registered.read(connection, self._origin, oids, self._mirror_id)
        return sorted((found.relation, found.identity, found.intact) for found in rows)

    def _entry(self, name: str) -> Entry:
        return self._entries.get(name) or self._read_entry(name)

    def _current(self, name: str) -> Entry:
        """Return a table as it is now; whatever else was committed, it alone is read again."""
        if name in self._ahead:
            return self._entry(name)
        with self._database.translated():
            connection = self._connection  # a new one has the states forgotten
            is_current = self._catalogue.is_current(connection, self._entry_states.get(name))
        return self._entry(name) if is_current else self._read_entry(name)

    def _read_entry(self, name: str) -> Entry:
        """Read a table's schema, and its capture's record."""
        self._entries.pop(name, None)
        with self._database.translated():
            connection = self._connection
            self._catalogue.follow(name)
            # Asked first: what is committed while it is read has it read again.
            facts = self._ahead.get(name)
            read_at = self._ahead_at if facts else self._catalogue.state(connection)
            options = self._options.get(_plain(name), TableOptions())
            source = read_table(connection, name, options, reread=True, facts=facts)
            known = self._records.get(source.oid)
            known = known or self._read_records(connection, [source.oid]).get(source.oid)
            if known is None:  # dropped while it was read
                raise no_such_table(name, sorted(self._entries))
            validate.refuse_unfit(source, known.faults)
            entry, found = Entry(source, known.columns, known.primary), known.found
        self._registered.put(source.oid, found)
        for spelling in (name, source.schema.name):
            self._entries[spelling], self._entry_states[spelling] = entry, read_at
        return entry

    def _captured(self, table: Table, proof: Proof | None = None) -> Captured | None:
        """Return a table's logs from a position on; None where there is none.

        Until capture of the name is made again, those are the logs that lead on from the position,
        though its table was dropped or renamed since: the images in them are still to be read.
        """
        entry = self._entry_of(table.name)
        relation = self._installed.get(table.name)
        if relation is None and proof is None and entry is not None:
            relation = entry.source.oid
        found = self._registered.get(relation or 0)
        if found is None and proof is not None:
            found = self._registered.with_log(proof.identity)
        if found is None or not found.has_log:
            return None
        known = self._read.get(table.name)
        if known is None or not known.is_of(table, found, entry, proof):
            captured = self._read_captured(table, found, entry, proof)
            known = self._read[table.name] = _Read(table, found, entry, proof, captured)
        return known.captured

    def _read_captured(
        self, table: Table, found: Registered, entry: Entry | None, proof: Proof | None
    ) -> Captured | None:
        if entry is not None and entry.source.oid == found.relation:
            log = log_of(found, entry)
        elif found.images:
            log, entry = log_of_the_gone(found, table.schema), None
        else:
            return None
        return captured(found, log, table, entry, proof)

    def _entry_of(self, name: str) -> Entry | None:
        try:
            return self._entry(name)
        except SchemaError:
            return None

    def _order(self, entry: Entry) -> int:
        found = self._registered.get(entry.source.oid)
        return (found.base if found else 0) + self._visible_order()

    def _visible_order(self) -> int:
        """Return how far the server's transactions have got; in a block, as it was first asked."""
        if self._order_ahead is None or not self._ahead:
            with self._database.translated():
                text = one(self._connection, "select pg_current_snapshot()::text")[0]
            self._order_ahead = VisibleText.parse(text).order
        return self._order_ahead

    def _install(self, connection: Connection, table: Table, least: int) -> None:
        registry.prepare(connection)
        entry = self._entry(table.name)
        relation = entry.source.oid
        name = qualified(entry.source.schema)
        # From here on nobody writes the table, and who did has ended.
        connection.execute(f"lock table {name} in share row exclusive mode".encode())
        connection.execute(f"lock table {SCHEMA}.capture in exclusive mode".encode())
        if self._ahead.pop(table.name, None):
            # As it is under the lock: of the block, it is described once more, behind its log.
            self._ahead |= read_ahead(connection, [table.name])
        self._records.pop(relation, None)
        entry = self._read_entry(table.name)
        before = self._registered.get(relation)
        log = self._wanted(connection, table, entry, before)
        refuse_too_many_columns(log)
        registry.remove_remains(connection)
        retired = registry.retire(connection, before, log)
        connection.execute(f"drop table if exists {log.name}".encode())
        for statement in (*log.tables(), *log.triggers()):
            connection.execute(statement.encode())
        if retired is not None:
            registry.go_on_numbering(connection, retired, log)
        connection.execute(f"delete from {SCHEMA}.broken where relation = %s".encode(), (relation,))
        connection.execute(f"insert into {log.name}(kind) values ('{BEGUN}')".encode())
        registry.enter(connection, log, self._origin, least, before, retired)
        self._entries.pop(table.name, None)  # with the record of the log before this one

    def _wanted(
        self, connection: Connection, table: Table, entry: Entry, before: Registered | None
    ) -> TableLog:
        """Return the log to make; one that others read goes on logging what they need."""
        images = table.mode is Mode.TEMPORAL
        key = entry.source.schema.primary_key
        names = list(entry.source.schema.names if images else key)
        if before is not None and registry.has_others(
            connection, entry.source.oid, self._mirror_id
        ):
            if set(before.key) != set(key) and registry.is_key(
                connection, entry.source.oid, before.key
            ):
                raise SchemaError(
                    "another mirror captures it by another key",
                    table=table.name,
                    hint=f"use 'primary_key: [{', '.join(before.key)}]' here too",
                )
            images = images or before.images
            names += before.needed_of(entry.columns)
        return entry.log(key, list(dict.fromkeys(names)), images=images)

    def _acknowledge(
        self,
        connection: Connection,
        position: Position,
        noted: dict[str, Position],
        *,
        prune: bool,
    ) -> int:
        proof = Proof.parse(position.proof)
        found = self._registered.with_log(proof.identity) if proof else None
        if found is None or proof is None or not found.has_log:
            return 0
        relation = found.relation
        if proof.late:
            # Something before this place is still to be read, in another shape.
            registry.note_seen(connection, self._mirror_id, relation)
            return 0
        registry.acknowledge(connection, self._mirror_id, relation, position.order, proof)
        noted[str(relation)] = Position(position.order, self._origin)
        if not prune:
            return 0
        drop_passed(connection, found.formers)
        if found.identity != proof.identity:
            return 0
        since = self._pruned_since.get(found.identity)
        forgotten, oldest = registry.prune(connection, relation, found.pruned, since)
        self._pruned_since[found.identity] = oldest
        return forgotten

    @contextmanager
    def _writing(self, *, lasting: bool = False) -> Iterator[Connection]:
        """Run a transaction; one that is lasting is on the disk when it returns."""
        with self._database.translated(), self._connection.atomic():
            if lasting:
                self._connection.execute("set local synchronous_commit = on")
            yield self._connection


def unacknowledged(database: PostgresDatabase, mirror_id: str, notes: Path) -> int | None:
    """Count the events that a mirror has not acknowledged, without opening the mirror.

    None when the source does not know the mirror, or an older state of it was put back: only a
    sync can tell what is to be done.
    """
    with database.translated(), database.connect() as connection:
        positions = registry.positions(connection, mirror_id)
        server = origin(connection)
        recorded = {str(of): Position(at.order, server) for of, at in positions.items()}
        if progress_notes.was_put_back(progress_notes.read(notes), recorded):
            return None
        standing = registry.standing(connection) if positions else set()
        formers = registry.formers_of(connection, list(positions)) if positions else {}
        return unseen(connection, positions, standing, formers) if positions else None


def _plain(name: str) -> str:
    return name.removeprefix("public.")
