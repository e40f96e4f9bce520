"""An operational SQLite database: one writer, a pool of readers, translated errors.

Only the standard library's `sqlite3` touches the file: two copies of SQLite in one process break
each other's locks (sqlite.org/howtocorrupt.html, section 2.2.1).
"""

import re
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import pyarrow as pa

from rhei_pipeline.errors import (
    PermanentError,
    QueryError,
    RheiError,
    SourceBusyError,
    SourceError,
    shown_cause,
    without_values,
)
from rhei_pipeline.model.cancellation import Cancel
from rhei_pipeline.model.ownership import SourceIdentity
from rhei_pipeline.model.query_limits import AnswerLimits
from rhei_pipeline.model.reports import Finding
from rhei_pipeline.model.schema import Column, Table, TableOptions, TableSchema
from rhei_pipeline.model.semantics import MirroredTable
from rhei_pipeline.model.streaming import Begun, Streamed
from rhei_pipeline.sources.sqlite import query as sqlite_query
from rhei_pipeline.sources.sqlite import validate
from rhei_pipeline.sources.sqlite.catalog import (
    declaration,
    other_names,
    read_table,
    table_names,
    view_names,
)
from rhei_pipeline.sources.sqlite.cursors import run
from rhei_pipeline.sources.sqlite.identity import read_mark, write_mark
from rhei_pipeline.sources.sqlite.open_wal import WalId, has_wal, opened_wal, refuse_another_wal
from rhei_pipeline.sources.sqlite.read_only import lock_down
from rhei_pipeline.sources.sqlite.semantics import meaning
from rhei_pipeline.sources.sqlite.signals import signals_heard
from rhei_pipeline.sql.read_only import BATCHED
from rhei_pipeline.sql.text import quote

_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
#: What it says of a path in JSON, a search, or a text that is not UTF-8, which a row holds.
_OF_ROWS = re.compile(
    "bad JSON path|JSON path error|malformed JSON|fts[0-9]:|Could not decode to UTF-8"
)
_SHUT = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM}
_PRIMARY_CODE = 0xFF  # the low byte of an extended result code names its family

#: Device and inode.
FileId = tuple[int, int] | None
_Idle = SimpleQueue[tuple[FileId, sqlite3.Connection]]

#: A value is held as SQLite's, as Python's and as Arrow's, and may be made of another one.
_VALUES_HELD = 4

_TRANSACTION_WORDS = {"begin", "commit", "end", "rollback", "savepoint", "release"}


class SqliteDatabase:
    """One SQLite file as an application uses it.

    Args:
        path: The database file.
        busy_timeout_seconds: How long a statement waits for another process's lock.
        read_pool: How many idle reading connections are kept open.
        read_only: Never open it for writing, and change nothing in it, not even a pragma.
        looking: Leave its journal mode as it is, because nothing will be written.
        create: Create a missing file. Only looked at, it is the empty database that it will be.
        query_bytes: The most that an answer takes while it is held, and four times what one value
            takes; left out: any.
        query_rows: The most rows that an answer has; left out: any.

    Raises:
        SourceError: The file is missing, is no database, or cannot be opened.
    """

    def __init__(  # noqa: PLR0913  (settings, each with its name)
        self,
        path: Path,
        *,
        busy_timeout_seconds: float = 10.0,
        read_pool: int = 4,
        read_only: bool = False,
        looking: bool = False,
        create: bool = False,
        query_bytes: int | None = None,
        query_rows: int | None = None,
    ) -> None:
        self.path = path
        self._limits = AnswerLimits(query_bytes, query_rows)
        self._timeout = busy_timeout_seconds
        self._pool_size = read_pool
        self._readers: _Idle = SimpleQueue()
        self._askers: _Idle = SimpleQueue()
        self._write_lock = threading.RLock()
        self._read_only, self._looking = read_only, looking
        self._is_to_come = create and looking
        if not is_there(path) and not self._is_to_come:
            if not create:
                raise _missing(path) if read_only else _not_declared(path)
            self._create()
        self._writer, self._opened = self._open_writer()

    def connect(self, mode: str = "rw") -> sqlite3.Connection:
        """Open one more connection, in autocommit, that waits for locks."""
        uri = f"{self.path.resolve().as_uri()}?mode={mode}"
        if self._is_to_come and not self.path.exists():
            uri = "file::memory:"
        with self.translated():
            return sqlite3.connect(
                uri,
                uri=True,
                isolation_level=None,
                check_same_thread=False,
                timeout=self._timeout,
            )

    def _create(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.connect(mode="rwc").close()
        except (OSError, SourceError) as error:
            raise _not_created(self.path) from error

    def file_id(self) -> FileId:
        """Return what the path names now: another file once one was put in its place.

        Raises:
            SourceError: It is the same file, but its log is not the one that is open here.
        """
        found, (file, wal) = self._found_file(), self._opened
        if found == file and wal is not None:
            refuse_another_wal(self.path, wal)
        elif found == file and self._read_only and has_wal(self.path):
            # The application has switched it into WAL mode since.
            self._opened = file, opened_wal(self._writer, self.path)
        return found

    def _found_file(self) -> FileId:
        try:
            found = self.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found.st_dev, found.st_ino

    def _open_writer(self) -> tuple[sqlite3.Connection, tuple[FileId, WalId]]:
        file = self._found_file()
        connection = self.connect(mode="ro" if self._read_only else "rw")
        if self._looking:
            return connection, (file, None)
        if not self._read_only:
            with self.translated():
                prepare_writer(connection)
        return connection, (file, opened_wal(connection, self.path))

    def _follow_the_file(self) -> None:
        """Open the writer again if another file replaced its own."""
        if not self._writer.in_transaction and self.file_id() != self._opened[0]:
            former, opened = self._writer, self._open_writer()
            self._writer, self._opened = opened
            former.close()

    def execute(self, sql: str, params: Sequence[Any] = ()) -> int:
        """Run one statement and commit it; return how many rows it changed.

        Raises:
            QueryError: The statement is wrong, breaks a constraint, or opens a transaction.
        """
        _refuse_transactions(sql)
        with self._write_lock:
            self._follow_the_file()
            with (
                self.translated(),
                signals_heard(self._writer),
                closing(self._writer.cursor()) as cursor,
            ):
                before = self._writer.total_changes
                run(cursor, sql, params)
                cursor.fetchall()
                return _changed(cursor, before)

    def execute_batch(self, statements: Sequence[tuple[str, Sequence[Any]]]) -> int:
        """Run all statements in one transaction, all or nothing; return the rows changed."""
        with self.transaction():
            return sum(self.execute(sql, params) for sql, params in statements)

    def execute_returning(self, sql: str, params: Sequence[Any] = ()) -> pa.Table:
        """Run one statement and return its rows; it is committed once they are read.

        Raises:
            QueryError: As `execute`; or the statement returns no rows.
        """
        _refuse_transactions(sql)
        with self.transaction(), self.translated():
            return sqlite_query.returned(self._writer, sql, params, self._limits)

    def query(
        self,
        sql: str,
        params: Sequence[Any] = (),
        columns: Sequence[Column | None] | None = None,
        begun: Begun | None = None,
    ) -> pa.Table:
        """Run one reading statement; see `query.query`."""
        with self._lent(self._askers, self._lock_down) as connection:
            if begun is None:
                return sqlite_query.query(connection, sql, params, columns, self._limits)
            with Cancel.given(begun).ending_by(connection.interrupt):
                return sqlite_query.query(connection, sql, params, columns, self._limits)

    def _lock_down(self, connection: sqlite3.Connection) -> None:
        held = self._limits.held_bytes
        lock_down(connection, held and held // _VALUES_HELD)

    def stream(
        self,
        sql: str,
        params: Sequence[Any],
        columns: Sequence[Column | None] | None,
        rows: int,
        begun: Begun | None = None,
    ) -> Streamed | None:
        """Run one reading statement and return its answer in batches; see `Database.stream`."""
        known = [c for c in columns or () if c is not None and not pa.types.is_null(c.type)]
        if not known or len(known) != len(columns or ()):
            return None
        cancel = Cancel.given(begun)
        batches = self._streamed(sql, params, known, rows, cancel)
        return Streamed(next(batches).schema, batches, cancel)

    def _streamed(
        self, sql: str, params: Sequence[Any], columns: Sequence[Column], rows: int, cancel: Cancel
    ) -> Iterator[pa.RecordBatch]:
        with (
            self._lent(self._askers, self._lock_down) as connection,
            cancel.ending_by(connection.interrupt),
            closing(sqlite_query.stream(connection, sql, params, columns, rows)) as batches,
        ):
            for batch in batches:
                yield batch
                cancel.refuse_cancelled()

    def meanings(
        self, tables: Iterable[Table], options: Callable[[str], TableOptions]
    ) -> list[MirroredTable]:
        """Describe tables for translation; see `semantics.meaning`."""
        with self.reader() as connection:
            return [meaning(connection, table, options(table.name)) for table in tables]

    def finds_public(self) -> bool:
        """Return True: names have no schema here."""
        return True

    def table_names(self) -> list[str]:
        """Return the names of all ordinary tables that have a primary key."""
        with self.reader() as connection:
            return table_names(connection)

    def other_names(self) -> dict[str, str]:
        """Return the names of all other tables and views, each with what it is or lacks."""
        with self.reader() as connection:
            return other_names(connection)

    def views(self) -> list[tuple[str | None, str]]:
        """Return the views by name; they have no schema here."""
        with self.reader() as connection:
            return view_names(connection)

    def read_schema(
        self, name: str, options: TableOptions, known: TableSchema | None
    ) -> TableSchema:
        """Read a table's schema; see `catalog.read_table`."""
        with self.reader() as connection:
            return read_table(connection, name, options, known).schema

    def validate(
        self,
        tables: Sequence[str],
        options: Callable[[str], TableOptions],
    ) -> list[Finding]:
        """Return what prevents capture; see `validate.findings`."""
        with self.reader() as connection:
            return list(validate.findings(connection, tables, options))

    def identity(self) -> SourceIdentity:
        """Return the identity of this file, which distinguishes it from all others."""
        with self.reader() as connection:
            return self._identity(read_mark(connection))

    def marked_identity(self) -> SourceIdentity:
        """Return the same, with an id that is written into the file if it has none."""
        found = self.identity()
        if found.mark:
            return found
        with self.transaction(), self.translated():
            return self._identity(write_mark(self._writer))

    def _identity(self, mark: str) -> SourceIdentity:
        return SourceIdentity("sqlite", str(self.path.resolve()), mark)

    def add_column(self, table: TableSchema, column: str, arrow_type: pa.DataType) -> None:
        """Add a column that is declared so that it is read back as this type."""
        declared = f"{quote(column)} {declaration(arrow_type)}"
        self.execute(f"alter table {quote(table.name)} add column {declared}")

    def drop_column(self, table: TableSchema, column: str) -> None:
        """Drop a column."""
        self.execute(f"alter table {quote(table.name)} drop column {quote(column)}")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Hold the writer for one transaction; other threads wait until it has ended."""
        with self._write_lock:
            if self._writer.in_transaction:
                raise QueryError("a transaction is already open in this thread")
            self._follow_the_file()
            with self.translated():
                self._writer.execute("begin immediate")
            try:
                yield
                with self.translated():
                    self._writer.execute("commit")
            finally:
                if self._writer.in_transaction:
                    self._writer.execute("rollback")

    @contextmanager
    def reader(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection that refuses to write."""
        with self._lent(self._readers) as connection:
            yield connection

    @contextmanager
    def _lent(
        self,
        idle: "_Idle",
        prepare: Callable[[sqlite3.Connection], None] | None = None,
    ) -> Iterator[sqlite3.Connection]:
        file, connection = self._reading_connection(idle, prepare)
        try:
            with self.translated(), signals_heard(connection):
                yield connection
        finally:
            if connection.in_transaction:
                connection.execute("rollback")
            if idle.qsize() < self._pool_size:
                idle.put((file, connection))
            else:
                connection.close()

    def _reading_connection(
        self, idle: "_Idle", prepare: Callable[[sqlite3.Connection], None] | None
    ) -> tuple[FileId, sqlite3.Connection]:
        file = self.file_id()
        try:
            while (kept := idle.get_nowait())[0] != file:
                kept[1].close()
        except Empty:
            connection = self.connect(mode="ro")
            # Another file, once attached, could be written.
            connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
            if prepare is not None:
                prepare(connection)
            return file, connection
        return kept

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turn the driver's errors into ours."""
        try:
            yield
        except sqlite3.Error as error:
            told = translate(error, self.path, read_only=self._read_only)
            raise told from shown_cause(error)

    def close(self) -> None:
        """Close every connection; safe to repeat."""
        with self._write_lock:
            self._writer.close()
        for idle in (self._readers, self._askers):
            while not idle.empty():
                idle.get()[1].close()


def prepare_writer(connection: sqlite3.Connection) -> None:
    """Set what a writing connection needs, each pragma for its reason."""
    # WAL: readers of ours never make the application wait, nor it them. Kept in the file.
    if connection.execute("pragma journal_mode").fetchone()[0] != "wal":
        connection.execute("pragma journal_mode = wal")
    # FULL: a commit answered with success survives a power cut, so the mirror is never ahead.
    connection.execute("pragma synchronous = full")
    # Off by default for old applications' sake; a declared reference should hold.
    connection.execute("pragma foreign_keys = on")


def translate(error: sqlite3.Error, path: Path, *, read_only: bool = False) -> RheiError:
    """Name a driver's error by what can be done about it; never quotes a row's values."""
    code = getattr(error, "sqlite_errorcode", None)
    family = None if code is None else code & _PRIMARY_CODE
    if family in _BUSY:
        return SourceBusyError(
            f"source database {path.name!r} is locked",
            hint="another process holds a long write transaction; it is tried again",
        )
    if family in _DAMAGED:
        return SourceError(
            f"{str(path)!r} is not a valid SQLite database",
            hint="check the path, then run 'pragma integrity_check' in the sqlite3 shell",
        )
    if family in _SHUT and not path.exists():
        return _missing(path)
    if read_only and family in _SHUT:
        return SourceError(
            f"source database {str(path)!r} cannot be opened for reading",
            hint="give this user read access; a database in WAL mode also needs its -shm and "
            "-wal files, which exist only while it is open, or write access to their folder",
        )
    message = str(error)
    if _OF_ROWS.match(message):
        message = without_values(message)
    return _environment_error(code, path) or QueryError(f"SQLite refused: {message}")


def is_there(path: Path) -> bool:
    """Return whether there is a file.

    Raises:
        SourceError: This user may not look into its folder.
    """
    try:
        return path.is_file()
    except PermissionError as error:
        raise SourceError(
            f"source database {str(path)!r} cannot be opened: permission denied",
            hint="give this user access to it and to its folder, or correct source.path",
        ) from error


def _missing(path: Path) -> SourceError:
    return SourceError(
        f"source database {str(path)!r} does not exist",
        hint="create it with your application first, or correct source.path",
    )


def _not_declared(path: Path) -> SourceError:
    if path.exists():
        return SourceError(
            f"source database {str(path)!r} is no file",
            hint="give the path of the database's file, as source.path",
        )
    return SourceError(
        f"source database {str(path)!r} does not exist",
        hint="correct source.path; or, for a new database, create it with your application first,"
        " or declare 'create: true' under 'source'",
    )


def _not_created(path: Path) -> SourceError:
    return SourceError(
        f"source database {str(path)!r} cannot be created",
        hint="give this user write access to its folder, or correct source.path",
    )


def _environment_error(code: int | None, path: Path) -> PermanentError | None:
    if code == sqlite3.SQLITE_IOERR_GETTEMPPATH:
        return SourceError(
            "SQLite finds no temporary directory that it can write, to sort in",
            hint="have SQLITE_TMPDIR or TMPDIR name one, then try again",
        )
    family = None if code is None else code & _PRIMARY_CODE
    if family == sqlite3.SQLITE_FULL:
        # Its error is the same whichever of its files has no room.
        return SourceError(
            f"the disk that holds {str(path)!r} is full, or the temporary directory in which SQLite"
            " sorts (SQLITE_TMPDIR or TMPDIR names it)",
            hint="free space, then try again",
        )
    if family in _SHUT:
        return SourceError(
            f"source database {str(path)!r} cannot be opened for writing",
            hint="capture installs triggers: give this user write access to the file and folder",
        )
    if family == sqlite3.SQLITE_IOERR:
        return SourceError(
            f"the disk failed to read or write {str(path)!r}", hint="check the disk and its mounts"
        )
    return None


def _changed(cursor: sqlite3.Cursor, before: int) -> int:
    """Return how many rows a statement changed; the driver counts none behind a `with`."""
    if cursor.rowcount >= 0 or cursor.connection.total_changes == before:
        return max(cursor.rowcount, 0)
    (changed,) = cursor.execute("select changes()").fetchone()
    return int(changed)


def _refuse_transactions(sql: str) -> None:
    if _first_word(sql) in _TRANSACTION_WORDS:
        raise QueryError(
            f"{_first_word(sql)} cannot be run as a single statement",
            hint=BATCHED,
        )


def _first_word(sql: str) -> str:
    """Return the first word behind comments and white space, lower case."""
    text = sql.lstrip()
    while text.startswith(("--", "/*")):
        end = text.find("\n") if text.startswith("--") else text.find("*/") + 1
        text = text[end + 1 :].lstrip() if end > 0 else ""
    return text.split(None, 1)[0].rstrip(";").lower() if text else ""


@contextmanager
def blank_database() -> Iterator[sqlite3.Connection]:
    """Open an empty database in memory, in which SQLite shows what it makes of a declaration."""
    with closing(sqlite3.connect(":memory:")) as connection:
        yield connection
