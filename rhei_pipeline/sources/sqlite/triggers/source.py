"""Change capture from SQLite by triggers into a log in the same file.

Writers in any process and language are captured, since the triggers are the database's own. The
log says which keys were touched; what became of them is read from the tables themselves, in the
same snapshot, so no stale image can reach the mirror.
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from rhei_pipeline.errors import SchemaError
from rhei_pipeline.model.changes import Position, RowBatch
from rhei_pipeline.model.kept_columns import KeptColumns
from rhei_pipeline.model.polling import PollOptions
from rhei_pipeline.model.schema import Mode, Table, TableOptions, TableSchema
from rhei_pipeline.sources import progress_notes
from rhei_pipeline.sources.acknowledged import Acknowledged
from rhei_pipeline.sources.catalog_cache import CatalogCache
from rhei_pipeline.sources.progress_notes import Notes
from rhei_pipeline.sources.sqlite.added_columns import added_values
from rhei_pipeline.sources.sqlite.arrow_rows import ArrowRows, StateProof
from rhei_pipeline.sources.sqlite.catalog import (
    SqliteTable,
    in_given_types,
    read_table,
    with_columns,
)
from rhei_pipeline.sources.sqlite.column_identities import has_identities, kept_by_identity
from rhei_pipeline.sources.sqlite.database import SqliteDatabase
from rhei_pipeline.sources.sqlite.given_keys import stored_keys
from rhei_pipeline.sources.sqlite.rows import ReadRows, SqliteRowReader
from rhei_pipeline.sources.sqlite.triggers import (
    capture_format,
    log_chain,
    needs,
    schema_watch,
    shared_log,
    trial,
)
from rhei_pipeline.sources.sqlite.triggers.abandoned_logs import FORGET_MIRROR_AFTER
from rhei_pipeline.sources.sqlite.triggers.ddl import (
    CLOCK,
    capture_sql,
    image_inserts,
    key_places,
    keyless_insert,
    log_table,
    object_names,
)
from rhei_pipeline.sources.sqlite.triggers.log_catalog import LogCatalog
from rhei_pipeline.sources.sqlite.triggers.log_chain import TriggerLog, exists, newest_entry
from rhei_pipeline.sources.sqlite.triggers.log_size import log_bytes
from rhei_pipeline.sources.sqlite.triggers.needs import Need
from rhei_pipeline.sources.sqlite.triggers.read_entries import (
    ReadEntries,
    delete_before,
    find_read,
)
from rhei_pipeline.sources.sqlite.triggers.snapshot import SqliteTriggerSnapshot
from rhei_pipeline.sql.text import quote

#: Rows of a log deleted in one transaction: a few milliseconds of the writer's lock.
PRUNE_ROWS = 5_000

_CONSUMERS = (
    "create table if not exists _rhei_consumer("
    "mirror text not null, tbl text not null, seq integer not null, seen_at integer not null,"
    " primary key(mirror, tbl)) without rowid"
)


def _unknown(_name: str) -> None:
    """Return None: nothing is mirrored yet."""


class SqliteTriggerSource:
    """A `ChangeSource` over one SQLite file.

    Args:
        database: The source.
        mirror_id: Who reads: several mirrors may follow one source, each at its own pace.
        options: Partial replication, chosen keys, given types, by table.
        known: Returns the table as it is mirrored, by name; None when it is not yet.
        notes: A file with what was acknowledged, for other processes; never read here.

    Not for several threads at once; the caller holds a lock around its work.
    """

    def __init__(
        self,
        database: SqliteDatabase,
        mirror_id: str,
        options: Mapping[str, TableOptions] | None = None,
        known: Callable[[str], Table | None] = _unknown,
        notes: Path | None = None,
    ) -> None:
        self._database = database
        self._notes = Notes(notes)
        self._known = known
        self._mirror_id = mirror_id
        self._options = {name.lower(): chosen for name, chosen in (options or {}).items()}
        self._catalogue: CatalogCache[SqliteTable] = CatalogCache()
        self._acknowledged = Acknowledged()
        self._marks: Mapping[str, int] = {}
        self._are_marks_known = True
        self._left_at: int | None = None
        self._file = database.file_id()
        self._connection = _connected(database)
        self._format_known_at: int | None = None
        self._logs = LogCatalog(self._connection)
        self._arrow_rows = ArrowRows(database.path)

    def describe(self, name: str) -> TableSchema:
        """Read a table's schema as it is now."""
        return self._table(name).schema

    def schema_version(self) -> int:
        """Return SQLite's own count of schema changes.

        Raises:
            CaptureError: A newer version of this package has changed what capture keeps here.
        """
        self._follow_the_file()
        self._note_schema()
        return self._version()

    def _version(self) -> int:
        self._follow_the_file()
        with self._database.translated():
            version = int(self._connection.execute("pragma schema_version").fetchone()[0])
            if version != self._format_known_at:
                capture_format.refuse_newer(self._connection, self._database.path)
                self._format_known_at = version
                # Another mirror may have marked tables, and logs are read before we install.
                self._are_marks_known = False
        return version

    def install(self, table: Table, least: int) -> None:
        """Create or repair the log and triggers of a table, in one transaction.

        Where anything was missing, or the log ends before `least` (cleared, or an older state
        put back), changes may have gone by unseen: a new log is begun, and the table is copied
        again or compared whole. The old log is kept while a mirror may want to read it. Where only
        the schema changed in a way that no difference shows, all logged tables are marked to be
        compared whole.

        Mirrors of one table share its log, which holds what all of them need. One that comes, or
        has gone, has a log begun that fits; the others read on from the one before.

        Raises:
            SchemaError: Another mirror captures it by another key.
        """
        self._are_marks_known = False
        if not has_identities(table.schema):
            self._catalogue.forget()  # it was described before its schema change was noted
        if self._is_installed(table, least) and self._is_schema_known():
            return
        try:
            with self._writing():
                self._mark_changed()
                # Another mirror may have done it since.
                if not self._is_installed(table, least):
                    self._make_anew(table, least)
                left_at = self._schema_count()
        except SchemaError:
            self._lift_harm(table.name)
            raise
        self._left_at = left_at
        self._catalogue.forget()

    def changed_unseen(self) -> set[str]:
        """Return the tables whose rows schema changes may have changed without an event."""
        with self._database.translated():
            is_known = self._is_schema_known()
            return set() if is_known else schema_watch.changed_unseen(self._connection)

    def _schema_count(self) -> int:
        return int(self._connection.execute("pragma schema_version").fetchone()[0])

    def _is_schema_known(self) -> bool:
        """Return whether the schema is as it was noted, or as our last transaction left it."""
        return self._left_at == self._schema_count() or schema_watch.is_noted(self._connection)

    def _mark_changed(self) -> None:
        """Mark what others may have changed unseen; what we made since the note explains itself."""
        if not self._is_schema_known():
            schema_watch.mark_changed(self._connection)

    def _note_schema(self) -> None:
        """Note the schema once for all tables that were captured, and read what was marked.

        A process that ends before only leaves more to be explained, or compared, the next time.
        """
        if self._left_at is not None:
            with self._writing():
                self._mark_changed()
                schema_watch.note(self._connection)
            self._left_at = None
        self._read_marks()

    def _read_marks(self) -> None:
        if not self._are_marks_known:
            with self._database.translated():
                self._marks = schema_watch.marks(self._connection)
            self._are_marks_known = True

    def _lift_harm(self, name: str) -> None:
        """Drop older triggers that prevent the application from writing."""
        with self._writing():
            before = trial.passing(self._connection, name)
            self._connection.execute("savepoint with_triggers")
            self._drop_triggers(name)
            if trial.passing(self._connection, name) == before:
                self._connection.execute("rollback to with_triggers")

    def _is_installed(self, table: Table, least: int) -> bool:
        """Return whether capture is as it is to be for all mirrors, and this one's need noted."""
        if not self.is_installed(table) or self._newest(table.name) < max(least, 1):
            return False
        source, need = self._table(table.name), self._need(table)
        with self._database.translated():
            if not needs.is_noted(self._connection, self._mirror_id, table.name, need):
                return False
            log = log_chain.current_log(self._connection, table.name)
            wanted = shared_log.joined_need(self._connection, self._mirror_id, source, need)
            return shared_log.holds_just(self._connection, log, wanted, source)

    def _make_anew(self, table: Table, least: int) -> None:
        """Note what this mirror needs, and create a log unless the one that is there will do.

        In a writing transaction. Nothing is written into the table meanwhile: what the old
        triggers logged is all in the old log, and the first entry of the new one is where it ends.
        """
        connection, name = self._connection, table.name
        connection.execute(_CONSUMERS)
        capture_format.note(connection)
        source, known, need = self._table(name), self._known(name), self._need(table)
        log = log_chain.current_log(connection, name)
        wanted = shared_log.joined_need(connection, self._mirror_id, source, need)
        needs.note(connection, self._mirror_id, name, need, _now())
        is_whole = shared_log.is_whole(connection, source, log)
        is_whole = is_whole and self._newest(name) >= max(least, 1)
        is_just = shared_log.holds_just(connection, log, wanted, source)
        if is_whole and is_just and self._is_enough(log, table):
            return
        logged = with_columns(
            connection,
            source,
            wanted.among(source.all_names),
            wanted.types,
        )
        sql = capture_sql(logged, Mode.TEMPORAL if wanted.images else Mode.DESTRUCTIVE)
        first = max(least, self._furthest(name)) + 1
        self._drop_triggers(name)
        log_chain.retire(connection, name, known.schema if known else None, keep_keys=is_whole)
        self._drop_tables(name)
        with trial.writes_go_on(connection, name):
            for text in sql.tables.values():
                connection.execute(text)
            connection.execute(
                f"insert into {quote(log_table(name))}(seq, at) values(?, {CLOCK})", (first,)
            )
            log_chain.note_log(connection, logged.schema, first)
            if not is_whole:
                # In the shape of before, a history is read up to the first entry, and not compared.
                due = first if log is None else schema_watch.add_entry(connection, name)
                schema_watch.mark(connection, name, due)
            for text in sql.triggers.values():
                connection.execute(text)

    def _need(self, table: Table) -> Need:
        """Return what this mirror needs of a table's log."""
        options = self._options.get(table.name.lower(), TableOptions())
        images = table.mode is Mode.TEMPORAL
        every = options.columns is None
        return Need(
            images,
            None if every and images else frozenset(table.schema.names),
            options.primary_key and table.schema.primary_key,
            options.types,
        )

    def _furthest(self, name: str) -> int:
        """Return the highest number that any log of a table gave, or any mirror has read."""
        logs = log_chain.find_logs(self._connection, name)
        ends = [max(log.first, newest_entry(self._connection, log.name)) for log in logs]
        read = self._connection.execute(
            "select max(seq) from _rhei_consumer where tbl = ? collate nocase", (name,)
        )
        return max([0, *ends, int(read.fetchone()[0] or 0)])

    def added_values(
        self, table: Table, known: TableSchema, _after: Position
    ) -> Mapping[str, pa.Scalar] | None:
        """Return what columns that are new since are in rows that no trigger has logged since."""
        with self._database.translated():
            return added_values(self._connection, known, table.schema)

    def kept_columns(
        self, table: Table, known: TableSchema, _after: Position
    ) -> KeptColumns | None:
        """Return which columns are those that were known; see `capabilities.KnowsKept`."""
        return kept_by_identity(known, table.schema)

    @property
    def logs_rows(self) -> bool:
        """False: a plain mirror's log holds keys, and rows are read from the table."""
        return False

    def is_installed(self, table: Table) -> bool:
        """Return whether log and triggers are as they were made, and log what this mirror needs.

        A log of images serves a destructive mirror too, and one of more columns than a mirror has,
        so mirrors can share it. SQLite itself rewrites triggers when a column is renamed, so they
        may fit a table that has changed.
        """
        try:
            source = self._table(table.name)
        except SchemaError:
            return False
        if source.schema != table.schema:
            return False
        with self._database.translated():
            log = log_chain.current_log(self._connection, table.name)
            return self._is_enough(log, table) and shared_log.is_whole(
                self._connection, source, log
            )

    def _is_enough(self, log: TriggerLog | None, table: Table) -> bool:
        """Return whether a log holds what this mirror needs of a table."""
        if log is None or log.schema is None:
            return log is not None
        if log.schema.primary_key != table.schema.primary_key:
            return False
        if table.mode is Mode.DESTRUCTIVE:
            return True
        # A column that this mirror had and has no more ends a shape: the log is read up to here.
        held = self._as_given(log.schema, table.schema).names
        is_kept = {*held} == {*table.schema.names}
        return is_kept and log_chain.holds_images(self._connection, log.name)

    def snapshot(self) -> AbstractContextManager[SqliteTriggerSnapshot]:
        """Hold one committed state of the source; its rows can always be read."""
        return self._held(self._rows_of_this_state)

    def copy_snapshot(self) -> AbstractContextManager[SqliteTriggerSnapshot]:
        """Hold a state from which a copy reads rows; they may be of a later one."""
        return self._held(self._arrow_rows.rows)

    def _rows_of_this_state(
        self, reader: SqliteRowReader, resume: str | None, limit: int
    ) -> RowBatch | None:
        """Read rows; a process beside has the same ones where the log has the same newest entry."""
        name = reader.source.schema.name
        newest = self._logs.newest_alone(name)
        sql = f"select seq || ' ' || at from {quote(log_table(name))} order by seq desc limit 1"
        proof = StateProof(sql, f"{newest.order} {newest.proof}")
        return self._arrow_rows.rows(reader, resume, limit, proof)

    @contextmanager
    def _held(self, read_rows: ReadRows) -> Iterator[SqliteTriggerSnapshot]:
        self._follow_the_file()
        self._read_marks()
        with self._database.translated():
            self._connection.execute("begin")
            try:
                snapshot = SqliteTriggerSnapshot(
                    self._connection,
                    self._table_at,
                    self._logs,
                    self._marks,
                    self._as_given,
                    read_rows=read_rows,
                )
                with self._arrow_rows.of(self._file, snapshot.schema_version):
                    yield snapshot
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("rollback")

    def acknowledge(self, needed_from: Mapping[str, Position], *, prune: bool) -> int:
        """Record the mirror's positions, then delete what no mirror needs.

        The entry at a watermark itself is kept: it proves, next time, that the log is the same.
        Saying the same again costs nothing. Where little is to be deleted, that is in the same
        transaction, so that writers wait for one lock.
        """
        news = self._acknowledged.news(needed_from)
        if not news:
            return 0
        with self._writing():
            self._note_read(news)
            pruned = self._prune_few(self._prunable(news)) if prune else 0
        self._acknowledged.note(news)
        self._notes.write({name: Position(at.order, "") for name, at in news.items()})
        if pruned is None:
            return sum(self._prune(name) for name in self._prunable(news))
        return pruned

    def _note_read(self, news: Mapping[str, Position]) -> None:
        self._connection.executemany(
            "insert into _rhei_consumer values(?, ?, ?, ?) on conflict do update set"
            " seq = excluded.seq, seen_at = excluded.seen_at",
            [(self._mirror_id, name, position.order, _now()) for name, position in news.items()],
        )
        self._connection.executemany(
            "delete from _rhei_consumer where mirror = ? and tbl = ? collate nocase and tbl <> ?",
            [(self._mirror_id, name, name) for name in news],
        )
        forgotten = _now() - FORGET_MIRROR_AFTER // timedelta(microseconds=1)
        self._connection.execute("delete from _rhei_consumer where seen_at < ?", (forgotten,))
        needs.forget_the_absent(self._connection, forgotten)

    def _prunable(self, news: Mapping[str, Position]) -> set[str]:
        """Return the tables with news, and those that may be gone, and whose old logs may go."""
        with self._database.translated():
            return {*news, *log_chain.tables_with_retired_logs(self._connection)}

    def touch(self, table: Table, keys: Sequence[tuple[Any, ...]]) -> None:
        """Log keys as changed, in the form that the table's log has."""
        with self._database.translated():
            source = self._table(table.name)
            log = log_chain.current_log(self._connection, table.name)
            source = shared_log.logged_as(source, log)
        with self._writing():
            for parts, values in stored_keys(self._connection, source, keys):
                for statement in _logging(source, table.mode, parts):
                    self._connection.execute(statement, values)

    def held_bytes(self) -> dict[str, int]:
        """Return about how many bytes the tables' logs hold; mirrors of one table share its log."""
        with self._database.translated():
            return {"log": log_bytes(self._connection, self._mirror_id)}

    def forget_mirror(self) -> None:
        """Delete the source's records of this mirror."""
        with self._writing():
            if exists(self._connection, "_rhei_consumer"):
                self._connection.execute(
                    "delete from _rhei_consumer where mirror = ?", (self._mirror_id,)
                )
            needs.forget(self._connection, self._mirror_id)
        self._notes.forget()

    def redeclare(self, name: str, options: TableOptions, _polling: PollOptions) -> None:
        """Take what is said of a table from now on."""
        self._options[name.lower()] = options
        self._catalogue.forget()

    def end_capture(self, name: str) -> None:
        """Delete this mirror's records of a table; with the last mirror's, triggers and logs go."""
        connection = self._connection
        with self._writing():
            self._mark_changed()
            if exists(connection, "_rhei_consumer"):
                connection.execute(
                    "delete from _rhei_consumer where mirror = ? and tbl = ? collate nocase",
                    (self._mirror_id, name),
                )
            needs.forget_table(connection, self._mirror_id, name)
            if not needs.is_read(connection, name):
                self._drop_triggers(name)
                log_chain.drop_all(connection, name)
                self._drop_tables(name)
            self._left_at = self._schema_count()
        self._acknowledged.clear()

    def close(self) -> None:
        """Close the connection; safe to repeat."""
        self._connection.close()

    def _follow_the_file(self) -> None:
        """Open the file again if another one replaced it."""
        file = self._database.file_id()
        if file != self._file and not self._connection.in_transaction:
            former, opened = self._connection, _connected(self._database)
            self._connection, self._file = opened, file
            former.close()
            self._logs = LogCatalog(opened)
            self._catalogue.forget()
            self._format_known_at = None
            self._acknowledged.clear()
            self._left_at, self._are_marks_known = None, False

    def _table(self, name: str) -> SqliteTable:
        return self._table_at(name, self._version())

    def _table_at(self, name: str, version: int) -> SqliteTable:
        self._catalogue.follow(version)
        return self._catalogue.get(name) or self._catalogue.put(self._read(name), name)

    def _read(self, name: str) -> SqliteTable:
        options, known = self._options.get(name.lower(), TableOptions()), self._known(name)
        with self._database.translated():
            return read_table(self._connection, name, options, known.schema if known else None)

    def _as_given(self, schema: TableSchema, table: TableSchema) -> TableSchema:
        """Return the shape of a log with the name, columns and types that this mirror knows.

        A log may hold columns that only another mirror has.
        """
        options = self._options.get(table.name.lower(), TableOptions())
        own = schema.columns
        if options.columns is not None:
            asked = {name.lower() for name in options.columns}
            kept = {*table.names, *schema.primary_key}
            own = tuple(c for c in own if c.name in kept or c.name.lower() in asked)
        return in_given_types(replace(schema, name=table.name, columns=own), options)

    def _newest(self, name: str) -> int:
        """Return the newest entry's place, or 0: positions grow even over a log made again."""
        log = log_table(name)
        return newest_entry(self._connection, log) if exists(self._connection, log) else 0

    def _drop_triggers(self, name: str) -> None:
        for trigger in object_names(name)[1]:
            self._connection.execute(f"drop trigger if exists {quote(trigger)}")

    def _drop_tables(self, name: str) -> None:
        for table in object_names(name)[0]:
            self._connection.execute(f"drop table if exists {quote(table)}")

    def _prune_few(self, names: Iterable[str]) -> int | None:
        """Forget what every mirror has read of tables, in a writing transaction.

        None, and nothing is forgotten, where that would hold the lock for long.
        """
        found = [read for name in names for read in find_read(self._connection, name)]
        if any(read.is_over for read in found) or sum(r.numbers for r in found) > PRUNE_ROWS:
            return None
        few = [read for read in found if read.numbers]
        return sum(delete_before(self._connection, read.log, read.end) for read in few)

    def _prune(self, name: str) -> int:
        """Forget what every mirror has read; a retired log goes with its last entry."""
        with self._database.translated():
            found = find_read(self._connection, name)
        return sum(self._forget(read) for read in found)

    def _forget(self, read: ReadEntries) -> int:
        end, forgotten = read.first, 0
        while end < read.end:
            end = min(end + PRUNE_ROWS, read.end)
            with self._writing():
                forgotten += delete_before(self._connection, read.log, end)
        if read.is_over:
            with self._writing():
                schema_watch.mark_changed(self._connection)
                log_chain.drop_retired(self._connection, read.log)
                schema_watch.note(self._connection)
        return forgotten

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._database.translated():
            self._connection.execute("begin immediate")
            try:
                yield
                self._connection.execute("commit")
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("rollback")


def _connected(database: SqliteDatabase) -> sqlite3.Connection:
    connection = database.connect()
    with database.translated():
        # Else a view of the application that is broken keeps any table from being renamed.
        connection.execute("pragma legacy_alter_table = on")
        # Losing an acknowledgement in a power cut only means giving it again.
        connection.execute("pragma synchronous = normal")
        if connection.execute("pragma journal_mode").fetchone()[0] != "wal":
            connection.execute("pragma journal_mode = wal")
    return connection


def _logging(source: SqliteTable, mode: Mode, key: Sequence[str]) -> list[str]:
    """Write the statements that log a key, the SQL of whose parts is given, as changed."""
    if mode is not Mode.TEMPORAL:
        into, places = quote(log_table(source.schema.name)), ", ".join(key_places(source.schema))
        return [f"insert into {into}(at, {places}) values({CLOCK}, {', '.join(key)})"]
    statements = image_inserts(source, key)
    return [*statements, keyless_insert(source, key)] if source.nullable_key else statements


def unacknowledged(database: SqliteDatabase, mirror_id: str, notes: Path) -> int | None:
    """Count the events that a mirror has not acknowledged, without opening the mirror.

    None when the source does not know the mirror, or an older state of it was put back: only a
    sync can tell what is to be done.
    """
    with database.reader() as connection:
        capture_format.refuse_newer(connection, database.path)
        if not exists(connection, "_rhei_consumer"):
            return None
        positions = connection.execute(
            "select tbl, seq from _rhei_consumer where mirror = ?", (mirror_id,)
        ).fetchall()
        recorded = {name: Position(place, "") for name, place in positions}
        if not positions or progress_notes.was_put_back(progress_notes.read(notes), recorded):
            return None
        logs = LogCatalog(connection)
        return sum(_behind(logs, name, place) for name, place in positions)


def _behind(logs: LogCatalog, name: str, place: int) -> int:
    found = logs.logs(name)
    if not found or found[-1].retired:
        return 1  # capture was lost: that, too, is something to see to
    return abs(logs.newest(name).order - place)


def _now() -> int:
    return int(datetime.now(UTC).timestamp() * 1_000_000)
