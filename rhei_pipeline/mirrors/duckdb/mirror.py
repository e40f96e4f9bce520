"""A mirror in a DuckDB file, or in memory.

Tables have no primary key on purpose: in the time that an indexed upsert changes a hundred rows,
DELETE + INSERT on a plain table changes 10,000 random rows of a million (see benchmarks/).
"""

import logging
import threading
import time
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from copy import copy
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from rhei_pipeline.errors import (
    MirrorDamagedError,
    QueryError,
    RheiError,
    mirror_closed,
)
from rhei_pipeline.mirrors.duckdb.block_cache import BlockCache
from rhei_pipeline.mirrors.duckdb.connecting import (
    CONFIG,
    MEMORY,
    READERS_END_SECONDS,
    connect_once_free,
    create_whole,
    ended_by_signals,
    interrupt,
    roll_back,
)
from rhei_pipeline.mirrors.duckdb.damage import first_line
from rhei_pipeline.mirrors.duckdb.driver_errors import (
    is_fatal,
    keys_of_the_user,
    query_error,
    translated,
    unusable,
)
from rhei_pipeline.mirrors.duckdb.feed import DuckDBFeeds, instant_text, read_feed
from rhei_pipeline.mirrors.duckdb.foreign_tables import ForeignTables
from rhei_pipeline.mirrors.duckdb.forgetting import Door, rewrite_file
from rhei_pipeline.mirrors.duckdb.housekeeping import (
    OPEN_LETTERS,
    open_names,
    prepare,
    read_mirror_id,
    read_owner,
)
from rhei_pipeline.mirrors.duckdb.last_commit import LastCommit, noted
from rhei_pipeline.mirrors.duckdb.lent_rows import LentRows
from rhei_pipeline.mirrors.duckdb.past import read_past
from rhei_pipeline.mirrors.duckdb.progress import ProgressRecords, read_ledger
from rhei_pipeline.mirrors.duckdb.published_copy import PublishedCopy
from rhei_pipeline.mirrors.duckdb.read_only import DuckDBGuard
from rhei_pipeline.mirrors.duckdb.retention import read_kept_since
from rhei_pipeline.mirrors.duckdb.statements import Statements
from rhei_pipeline.mirrors.duckdb.table_notes import TableNotes
from rhei_pipeline.mirrors.duckdb.tables import (
    SNAPSHOTS,
    in_utc,
    mirrors_public,
    read_tables,
    table_exists,
)
from rhei_pipeline.mirrors.duckdb.transaction import DuckDBTransaction
from rhei_pipeline.mirrors.locking import WriterLock, left, lock_of_file
from rhei_pipeline.model.cancellation import Cancel
from rhei_pipeline.model.changes import LetterName
from rhei_pipeline.model.feed_state import FeedState
from rhei_pipeline.model.held_place import HeldPlace
from rhei_pipeline.model.progress import Ledger, Past
from rhei_pipeline.model.query_limits import NO_LIMITS, AnswerLimits, gathered, whole
from rhei_pipeline.model.retention import Ageing, ExpiredHistory
from rhei_pipeline.model.schema import VALID_TO, Mode, Table
from rhei_pipeline.model.semantics import Translated
from rhei_pipeline.model.streaming import Begun, Streamed
from rhei_pipeline.model.upkeep import MaintenanceReport
from rhei_pipeline.sql.text import mirror_table

if TYPE_CHECKING:
    from rhei_pipeline.changes.feed import FeedEnd

_log = logging.getLogger(__name__)


#: How long to wait for queries to hear that they are ended.
_PAUSE_SECONDS = 0.01
#: How long to wait for another program that opened the file in between; queries wait, too.
REOPENED_SECONDS = 5.0
#: Rows that DuckDB gives at once; so few that wide ones take little.
BATCH_ROWS = 8192


class DuckDBMirror:
    """A `Mirror` in one DuckDB database.

    Args:
        path: The file, created when it is missing; `:memory:` for a mirror that is not stored.
        published: A copy for other processes to read, written after commits.
        lock_timeout_seconds: How long to wait while another process holds the file.
        memory_limit_bytes: The most that queries and transactions take together.
        read_only: Open it for queries alone, without the lock of the one that writes: it must not
            be open anywhere else for writing.

    Raises:
        MirrorBusyError: Another process held the file all that time, or this one has it open.
        MirrorError: The file cannot be opened, is not a DuckDB database, or is of a newer version.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        lock_timeout_seconds: float = 30.0,
        published: PublishedCopy | None = None,
        memory_limit_bytes: int | None = None,
        read_only: bool = False,
    ) -> None:
        self.path = str(path)
        self._published = published
        config = dict(CONFIG)
        if memory_limit_bytes is not None:
            config["memory_limit"] = f"{memory_limit_bytes} B"
        self._lock = threading.Lock()
        self._guard = DuckDBGuard()
        self._ledger: Ledger | None = None
        self._feeds: Mapping[str, FeedEnd] = {}
        self._may_have_letters: bool | None = None
        self._commits = 0
        self._default_namespace = (-1, False)
        self._closed = self._is_closing = self._is_given_up = False
        self._unopened: RheiError | None = None
        self._door = Door()
        self._under_way: set[Cancel] = set()
        with ExitStack() as opened:
            deadline = time.monotonic() + lock_timeout_seconds
            is_new = False
            if read_only:
                config["access_mode"] = "READ_ONLY"
            else:
                is_new = self._hold(opened, lock_timeout_seconds)
                deadline = max(deadline, time.monotonic() + READERS_END_SECONDS)
            self._config = config
            self._connection = connect_once_free(self.path, config, deadline)
            self._place = HeldPlace(self.path)
            self._statements = Statements(self._connection)
            self._lent = LentRows(self._connection)
            opened.callback(self._disconnect)
            with translated(self.path):
                self.mirror_id = (
                    read_mirror_id(self._connection, self.path)
                    if read_only
                    else prepare(self._connection, self.path, is_new=is_new)
                )
            self._notes = TableNotes(ForeignTables(is_new=is_new))
            self._tables: tuple[int, dict[str, Table]] = (0 if is_new else -1, {})
            self._cache = BlockCache(self.path, memory_limit_bytes) if self.path != MEMORY else None
            self._last = self._look_back(opened, read_only=read_only)
            self._opened = opened.pop_all()

    def _look_back(self, opened: ExitStack, *, read_only: bool) -> LastCommit | None:
        """Detect whether the file is older than it was when it was last used."""
        self._older: MirrorDamagedError | None = None
        # A published copy has no such note, and one that only reads makes none.
        if self.path == MEMORY or (read_only and not noted(self.path)):
            return None
        last = LastCommit(self.path, writing=not read_only)
        opened.callback(last.close)
        self._older = last.lost(self.mirror_id, self.ledger())
        if self._older is not None:
            _log.warning("%s", self._older)
        return last

    def _hold(self, opened: ExitStack, timeout_seconds: float) -> bool:
        """Take our own lock besides DuckDB's, which any closing of the file would release.

        Returns:
            Whether there is no table in it yet.
        """
        if self.path == MEMORY:
            return True
        file = Path(self.path).resolve()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            lock = WriterLock(lock_of_file(file), self.path, timeout_seconds)
            opened.callback(lock.release)
            is_new = create_whole(self.path)
        except OSError as error:
            raise unusable(error, self.path) from error
        if self._published is not None:
            self._published.look_up(file)
        return is_new

    @property
    def folds_names(self) -> bool:
        """True: DuckDB's names are case-insensitive."""
        return True

    @property
    def taken_schemas(self) -> Collection[str]:
        """Where snapshots are, and DuckDB's names of open files: `a.t` could mean either."""
        with translated(self.path), self._cursor() as cursor:
            found = cursor.execute("select database_name from duckdb_databases()").fetchall()
        return {SNAPSHOTS, *(name.lower() for (name,) in found)}

    @property
    def owner(self) -> str | None:
        """The source and pipeline it belongs to, as recorded."""
        with translated(self.path), self._cursor() as cursor:
            return read_owner(cursor)

    def claim(self, owner: str, *, new_id: str | None = None) -> None:
        """Record the owner; under a new id, every table is copied again."""
        commits, (read_at, tables) = self._commits, self._tables
        with self.transaction() as transaction:
            transaction.claim(owner, new_id=new_id)
            # Before the commit, which publishes: the copy that is there may be of the former id.
            self.mirror_id = new_id or self.mirror_id
        if read_at == commits == self._commits - 1:
            self._tables = (self._commits, tables)  # they are as they were

    def ledger(self) -> Ledger:
        """Return what is recorded, as last committed; no other process can write to the file."""
        ledger = self._ledger
        if ledger is None:
            with translated(self.path), self._cursor() as cursor:
                self._ledger = ledger = read_ledger(cursor)
        return ledger

    @contextmanager
    def transaction(self, *, trial: bool = False) -> Iterator[DuckDBTransaction]:
        """Open the one writing transaction; a trial is rolled back at its end."""
        with (
            self._lock,
            translated(self.path),
            self._reopened(),
            ended_by_signals(self._connection),
            self._lent.within_transaction(trial=trial),
            self._notes.highest.within_transaction(trial=trial),
        ):
            self._statements.run("begin transaction")
            records = ProgressRecords(self._statements, self._ledger)
            feeds = DuckDBFeeds(self._connection, self._feeds)
            try:
                transaction = DuckDBTransaction(
                    self._statements, self._lent, records, feeds, self._cache, self._notes
                )
                transaction.may_have_letters = self._may_have_letters
                yield transaction
                if not trial:
                    records.write()
                    committed = records.ledger()
                    if self._last is not None:
                        self._last.blank(self.mirror_id)
                with transaction.large_rows.committing():
                    self._statements.run("rollback" if trial else "commit")
            except BaseException:
                # It may be committed all the same: what is known is asked again.
                self._ledger, self._feeds, self._may_have_letters = None, {}, None
                self._commits += 1
                roll_back(self._connection)
                raise
            if not trial:
                self._commits += 1
                self._ledger, self._feeds = committed, feeds.ends()
                # Whether those that there are have been resolved is asked again.
                asked = transaction.may_have_letters
                self._may_have_letters = None if asked else asked
                self._older = None
                if self._last is not None:
                    self._last.note(self.mirror_id, self.ledger())
            if not trial and self._published is not None:
                self._published.pace.note_change()
                self._publish(self._published)
            if not trial and self._cache is not None:
                self._cache.note_commit(self._connection)

    def _publish(self, copy: PublishedCopy) -> None:
        """Checkpoint the file and copy it; nothing writes meanwhile, because the lock is held."""
        if copy.pace.due:
            self._publish_now(copy)

    def _publish_now(self, copy: PublishedCopy) -> None:
        ledger = read_ledger(self._connection)
        if not ledger.watermarks:
            return  # the first tables are being copied
        try:
            self._connection.execute("checkpoint")
        except duckdb.TransactionException as error:
            _log.info("published copy: postponed while a query runs (%s)", first_line(error))
        else:
            with copy.pace.noting_trouble():
                copy.publish(Path(self.path), self.mirror_id, unfinished=bool(ledger.copies))

    @property
    def not_published(self) -> RheiError | None:
        """Why the published copy could not be written; None if it was, or there is none."""
        return self._published.pace.trouble if self._published else None

    def query(
        self,
        sql: str,
        params: Sequence[Any] | Mapping[str, Any] = (),
        begun: Begun | None = None,
        limits: AnswerLimits = NO_LIMITS,
    ) -> pa.Table:
        """Run one read-only statement on the last committed state; parameters by place or name.

        Raises:
            QueryError: Not one statement, not a reading one, or DuckDB refuses it.
            QueryLimitError: The answer is larger than `limits` allow.
        """
        with closing(self._begun(sql, params, BATCH_ROWS, Cancel.given(begun))) as batches:
            return whole(next(batches).schema, batches, limits)

    def stream(
        self,
        sql: str,
        params: Sequence[Any] | Mapping[str, Any],
        rows: int,
        begun: Begun | None = None,
    ) -> Streamed:
        """Run one read-only statement, and return its rows in batches, all of one state.

        Raises:
            QueryError: It is not one read-only statement, or DuckDB refuses it.
        """
        cancel = Cancel.given(begun)
        batches = self._begun(sql, params, min(rows, BATCH_ROWS), cancel)
        # DuckDB works up to the first rows before it says what columns there are.
        return Streamed(next(batches).schema, gathered(batches, rows), cancel)

    def _begun(
        self, sql: str, params: Sequence[Any] | Mapping[str, Any], rows: int, cancel: Cancel
    ) -> Generator[pa.RecordBatch, None, None]:
        """Yield an empty batch, then the rows."""
        if self._older is not None:
            raise self._older
        with (
            keys_of_the_user(),
            self._cursor() as cursor,
            self._ended_at_close(cancel),
            cancel.ending_by(partial(interrupt, cursor)),
        ):
            try:
                with ended_by_signals(cursor):
                    result = self._asked(cursor, sql, params)
                    if result is None:
                        raise QueryError("the statement returns no rows")
                    reader = result.to_arrow_reader(rows)
                # Whoever keeps an error has its frames. An answer in them that was not read to its
                # end kept the file open, and who opened it again in this process waited for ever.
                with closing(reader):
                    shape = in_utc(reader.schema.empty_table()).schema
                    yield pa.RecordBatch.from_pylist([], shape)
                    while (batch := _next(reader, cursor)) is not None:
                        yield batch if batch.schema.equals(shape) else batch.cast(shape)
                        cancel.refuse_cancelled()
            except (duckdb.Error, pa.ArrowException, OSError) as error:
                self._is_given_up |= is_fatal(error)
                if self._is_closing:
                    raise mirror_closed() from error
                is_empty = not self.ledger().watermarks
                raise query_error(error, self.path, is_empty=is_empty) from None  # may quote a row

    def _asked(
        self,
        cursor: duckdb.DuckDBPyConnection,
        sql: str,
        params: Sequence[Any] | Mapping[str, Any],
    ) -> duckdb.DuckDBPyRelation | None:
        admitted = sql if isinstance(sql, Translated) else self._guard.admitted(sql, cursor)
        if self._has_default_namespace(cursor):
            # Its tables first: somebody else may have one of such a name in `main`.
            cursor.execute("set search_path = 'public,main'")
        cursor.execute("begin transaction read only")
        bound = dict(params) if isinstance(params, Mapping) else list(params)
        return cursor.sql(admitted, params=bound) if bound else cursor.sql(admitted)

    def _has_default_namespace(self, cursor: duckdb.DuckDBPyConnection) -> bool:
        """Return whether tables of PostgreSQL's `public` are mirrored, which need no schema name.

        Looked for once after each commit, until there is one: that costs as much as a point query.
        A schema of that name may be somebody else's, beside the mirror of a SQLite database.
        """
        commits, (looked_at, found) = self._commits, self._default_namespace
        if not found and looked_at != commits:
            found = mirrors_public(cursor)
            self._default_namespace = (commits, found)
        return found

    def tables(self) -> dict[str, Table]:
        """Return the tables of the mirror with their stored schemas, by quoted name.

        Read once after each commit: DuckDB looks through its whole catalogue for them.
        """
        commits, (read_at, found) = self._commits, self._tables
        if read_at != commits:
            with translated(self.path), self._cursor() as cursor:
                found = read_tables(cursor)
            self._tables = (commits, found)
        return dict(found)

    def exists(self, table: Table) -> bool:
        """Return whether the table is in the mirror."""
        with translated(self.path), self._cursor() as cursor:
            return table_exists(cursor, table)

    def count(self, table: Table) -> int:
        """Return the number of current rows."""
        condition = "" if table.mode is Mode.DESTRUCTIVE else f" where {VALID_TO} is null"
        found = self.query(f"select count(*) as n from {mirror_table(table.schema)}{condition}")
        return int(found["n"][0].as_py())

    def past(self, table: Table) -> Past | None:
        """Return what is recorded of a temporal table's history; None if it is not mirrored yet."""
        with translated(self.path), self._cursor() as cursor:
            return read_past(cursor, table) if table_exists(cursor, table) else None

    def feed(self, table: Table) -> FeedState | None:
        """Return which state of a temporal table's history this is; None if there is no table."""
        with translated(self.path), self._cursor() as cursor:
            cursor.execute("begin transaction read only")
            return read_feed(cursor, table)

    def instant_text(self, microseconds: int) -> str:
        """Write an instant in the mirror's SQL."""
        return instant_text(microseconds)

    def quarantined(self, table: Table) -> set[LetterName]:
        """Return the names of a table's open dead letters, also where the file seems older."""
        with translated(self.path), self._cursor() as cursor:
            return open_names(cursor, table.name)

    def dead_letters(self, table: str | None = None) -> pa.Table:
        """Return open dead letters: table_name, key, column_name, reason, captured_at."""
        return self.query(
            f"{OPEN_LETTERS} and (?::varchar is null or table_name = ?)"
            " order by captured_at, table_name, key",
            [table, table],
        )

    def confirm(self) -> None:
        """Allow queries again if the file seemed older than it was; publish what is due."""
        if self._older is not None:
            with self.transaction():
                pass  # an empty commit notes the state
        elif self._published is not None and self._published.pace.due:
            with self._lock, translated(self.path), self._reopened():
                self._publish(self._published)

    def maintain(self) -> MaintenanceReport:
        """Checkpoint the write-ahead log into the file; useful while nothing else runs."""
        with self._lock, translated(self.path), self._reopened():
            before = self._bytes()
            self._connection.execute("checkpoint")
            return MaintenanceReport(1, 1, before, self._bytes())

    def expire(self, ageing: Sequence[Ageing]) -> list[ExpiredHistory]:
        """Remove old versions of temporal tables, all in one transaction; return what went."""
        with self.transaction() as transaction:
            return [found for each in ageing if (found := transaction.expire(each))]

    def kept_since(self) -> Mapping[str, datetime]:
        """Return since when histories are kept, of the tables that have lost older versions."""
        with translated(self.path), self._cursor() as cursor:
            return read_kept_since(cursor)

    def forget(self, table: Table, keys: pa.Table, *, trial: bool = False) -> list[pa.Table]:
        """Delete all that there is of these keys, with their past; return the rows."""
        with self.transaction(trial=trial) as transaction:
            return transaction.forget(table, keys)

    def erase(self) -> tuple[str, ...]:
        """Write the file again: deleted rows stand in its free parts until then.

        Queries wait meanwhile; those that take long are ended. The published copy follows.
        """
        if self.path == MEMORY:
            return ()
        self.ledger()  # whoever is inside may ask for it, and could not once the door is shut
        kept = []
        with self._lock, translated(self.path), self._reopened():
            with self._door.shut(self._end_queries) as is_empty:
                if is_empty:
                    self._rewrite()
                else:
                    kept.append("the free parts of the mirror's file: a query under way reads it")
            if self._published is not None:
                if is_empty:
                    self._publish_now(self._published)
                if self._published.pace.behind:
                    kept.append("the published copy, which was not written again yet")
        return tuple(kept)

    def _rewrite(self) -> None:
        self._connection.execute("checkpoint")
        self._let_go()
        try:
            rewrite_file(Path(self.path).resolve(), self._config.get("memory_limit"))
        finally:
            self._place = HeldPlace(self.path)
            self._connect_again(REOPENED_SECONDS)

    def _let_go(self) -> None:
        """Close the file, until it is open again."""
        self._is_given_up = True
        self._connection.close()

    def _connect_again(self, patience_seconds: float) -> None:
        """Open the file that was let go; whoever asks is told meanwhile why it is not open."""
        deadline = time.monotonic() + patience_seconds
        try:
            self._connection = connect_once_free(self.path, self._config, deadline)
            if self._place.is_left:  # while nobody had it open
                self._connection.close()
                raise left(self.path)
        except RheiError as error:
            self._unopened = error
            raise
        self._statements = Statements(self._connection)
        self._lent = LentRows(self._connection)
        if self._cache is not None:
            self._cache.note_opened()
        self._is_given_up, self._unopened = False, None

    def _why_closed(self) -> RheiError:
        # Each who asks raises one of its own.
        unopened = None if self._is_closing else copy(self._unopened)
        return unopened or mirror_closed()

    def _forget(self) -> None:
        """Ask again for all that is known of the file: others may have written to it."""
        self._ledger, self._feeds, self._may_have_letters = None, {}, None
        self._notes = TableNotes()
        self._commits += 1

    @contextmanager
    def _reopened(self) -> Iterator[None]:
        """Open the file again before a block if DuckDB has given it up or reads slowly.

        It gives it up where the disk fails as a commit is made durable, and answers nothing any
        more. The lock is held.

        Raises:
            MirrorError: The file was deleted or replaced meanwhile.
        """
        if self._place.is_left:
            raise left(self.path)
        if self._is_given_up and self.path != MEMORY:
            with self._door.shut(self._end_queries) as is_empty:
                if is_empty:
                    patient = self._unopened is None
                    self._let_go()
                    self._connect_again(REOPENED_SECONDS if patient else 0)
                    self._forget()
        elif self._reads_slowly():
            self._open_anew()
        try:
            yield
        except duckdb.Error as error:
            self._is_given_up |= is_fatal(error)
            raise

    def _reads_slowly(self) -> bool:
        """Return whether the file is worth opening again, and no copy is under way."""
        if self._cache is None or not self._cache.decodes_slowly or self._is_closing:
            return False
        return self._ledger is not None and not self._ledger.copies

    def _open_anew(self) -> None:
        """Open the file again if nobody reads."""
        with self._door.shut_if_empty() as is_empty:
            if is_empty:
                self._let_go()
                self._connect_again(REOPENED_SECONDS)
                self._forget()

    def _end_queries(self) -> None:
        for cancel in [*self._under_way]:
            cancel()

    def _bytes(self) -> int:
        """Return the size of the file and its write-ahead log; 0 in memory."""
        files = (Path(self.path), Path(f"{self.path}.wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    def close(self) -> None:
        """Publish if that is due, then close the file; safe to repeat."""
        with self._lock, self._opened, translated(self.path):
            is_open = not (self._closed or self._is_given_up)
            if self._published is not None and is_open:
                self._publish(self._published)
            self._closed = True

    def _disconnect(self) -> None:
        """Close the connection; what is read from it meanwhile is ended."""
        self._is_closing = True
        while True:
            # DuckDB refuses while one of its cursors is at work.
            with suppress(duckdb.ResourceInUseException):
                self._connection.close()
                return
            self._end_queries()
            time.sleep(_PAUSE_SECONDS)

    @contextmanager
    def _ended_at_close(self, cancel: Cancel) -> Iterator[None]:
        self._under_way.add(cancel)
        try:
            yield
        finally:
            self._under_way.discard(cancel)

    @contextmanager
    def _cursor(self) -> Iterator[duckdb.DuckDBPyConnection]:
        if self._is_given_up and self._lock.acquire(blocking=False):
            try:
                with self._reopened():
                    pass
            finally:
                self._lock.release()
        with self._door.entered(), self._cache.in_use() if self._cache else nullcontext():
            try:
                cursor = self._connection.cursor()
            except duckdb.ConnectionException as error:
                raise self._why_closed() from error
            try:
                yield cursor
            except duckdb.Error as error:
                self._is_given_up |= is_fatal(error)
                raise
            finally:
                cursor.close()


def _next(reader: pa.RecordBatchReader, cursor: duckdb.DuckDBPyConnection) -> pa.RecordBatch | None:
    with ended_by_signals(cursor):
        return next(reader, None)
