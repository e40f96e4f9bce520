"""An operational PostgreSQL database: pooled connections, and translated errors."""

import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import psycopg
import pyarrow as pa
from psycopg import errors
from psycopg_pool import PoolTimeout

from rhei_pipeline.errors import (
    CaptureError,
    QueryError,
    RheiError,
    SettingsError,
    SourceBusyError,
    SourceError,
    SourceFullError,
    SourceUnreachableError,
    TableBusyError,
    shown_cause,
    without_values,
)
from rhei_pipeline.model.forking import leave_to_parent
from rhei_pipeline.model.ownership import SourceIdentity
from rhei_pipeline.model.query_limits import AnswerLimits
from rhei_pipeline.model.schema import Column, Table, TableOptions, TableSchema
from rhei_pipeline.model.semantics import MirroredTable
from rhei_pipeline.model.streaming import Begun, Streamed
from rhei_pipeline.sources.postgres.catalog import (
    Connection,
    declaration,
    other_names,
    qualified,
    read_table,
    table_names,
    view_names,
)
from rhei_pipeline.sources.postgres.connection import PooledConnection, StandingPool
from rhei_pipeline.sources.postgres.connection_string import refuse_unreadable, with_keepalives
from rhei_pipeline.sources.postgres.functions import Functions
from rhei_pipeline.sources.postgres.identity import identity
from rhei_pipeline.sources.postgres.query import Reader, returned
from rhei_pipeline.sources.postgres.read_sessions import ReadSessions
from rhei_pipeline.sources.postgres.refusals import DENIED, FULL, WAYS_IN, Refusals
from rhei_pipeline.sources.postgres.semantics import finds_public, meaning
from rhei_pipeline.sources.postgres.types import LEXED, SESSION_SETTINGS
from rhei_pipeline.sources.postgres.versions import Since, has, never_idle, refuse_older
from rhei_pipeline.sql.read_only import BATCHED, WRITING, no_unicode, only_reads
from rhei_pipeline.sql.text import quote

_Opened = TypeVar("_Opened")

_TRANSACTION_WORDS = {"begin", "commit", "end", "rollback", "savepoint", "release", "start"}
#: What these do would stay in a session, and ours are shared by all statements.
_SESSION_WORDS = {"set", "reset", "discard", "listen", "unlisten", "prepare", "deallocate", "load"}
#: Statements that write rows, and set nothing for a session.
_ROW_WORDS = {"insert", "update", "delete", "merge"}
_RETRIES = 5
#: How a line begins that goes on with what the one before it says, in every language.
_DETAIL = re.compile(r"\S+\s?:\s\s")
#: What a server or pooler says that has no connection free for a user, a database, or at all.
_FULL = (
    *("too many connections", "too many clients", "remaining connection slots"),
    "max_wal_senders",
)
#: Classes of errors that the driver counts as trouble of the connection, which stands: what the
#: server lacks or cannot read for now, and transactions that gave way to others ...
_PASSING = {"40", "58"}
_LACKING = {"53000", "53100", "53200", "53400"}
#: ... and statements that ask for too much, or in a state that does not allow it.
_OF_STATEMENTS = {"54", "55"}
_FIRST_WAIT_SECONDS = 0.1
#: What a connection starts with; poolers know both parameters, and keep them apart by client.
_STARTED_WITH: dict[str, Any] = {
    "autocommit": True,
    "client_encoding": "UTF8",
    "fallback_application_name": "rhei",
}
#: The server ends a replication connection that is silent, as ours is while nothing is written.
_PATIENT = {"wal_sender_timeout": "0"}
#: What reads tables to mirror them sees all rows or fails: a policy made meanwhile hides none.
_ALL_ROWS = {"row_security": "off"}
#: A copy takes as long as it takes, and its connection may wait for the mirror meanwhile.
_UNLIMITED_BEFORE = {"statement_timeout": "0", "idle_in_transaction_session_timeout": "0"}
#: What mirrors waits for no table that another session has locked: the other tables go on.
_PATIENCE = {"lock_timeout": "1s"}
_UNLIMITED = {**_UNLIMITED_BEFORE, "transaction_timeout": "0"}


class PostgresDatabase:
    """One PostgreSQL database as an application uses it.

    Args:
        dsn: libpq's connection string; its `sslmode` and `sslrootcert` configure TLS.
        direct_dsn: The server's own, for capture, if `dsn` leads to a pooler.
        statement_timeout_seconds: The server cancels an application's statement after this time.
        pool_size: How many connections are kept.
        connect_timeout_seconds: How long a connection may take to come about.
        read_only: Change nothing in it.
        reread: Changes are learned of without the server's log; see `catalog.read_table`.
        query_seconds: The server ends a query after so long, a streamed one with its last batch.
        query_bytes: How much of an answer is held at once; None: any.
        query_rows: The most rows that an answer has; None: any.
        functions: Functions that queries may call though they are VOLATILE; see `Functions`.

    Raises:
        SettingsError: The connection string cannot be read.
        SourceError: The server refuses the connection, or its encoding is not UTF-8.
        SourceBusyError: The server cannot be reached, or has no connection free.
    """

    def __init__(  # noqa: PLR0913  (each is a setting of its own)
        self,
        dsn: str,
        *,
        direct_dsn: str | None = None,
        statement_timeout_seconds: float = 300.0,
        pool_size: int = 4,
        connect_timeout_seconds: float = 10.0,
        read_only: bool = False,
        reread: bool = False,
        query_seconds: float = 300.0,
        query_bytes: int | None = None,
        query_rows: int | None = None,
        functions: Iterable[str] = (),
    ) -> None:
        refuse_unreadable(dsn, "source.dsn")
        refuse_unreadable(direct_dsn or dsn, "source.direct_dsn")
        dsn = with_keepalives(dsn)
        self._refusals = Refusals()
        self._dsn = dsn
        self._direct_dsn = with_keepalives(direct_dsn or dsn)
        self._more = {"transaction_read_only": "on"} if read_only else {}
        timeout = str(int(statement_timeout_seconds * 1000))
        #: For an application's statements, which find names as its own sessions do.
        self._asking = {**SESSION_SETTINGS, "statement_timeout": timeout, **self._more}
        self._reread = reread
        self._connect_timeout = connect_timeout_seconds
        self._write_lock = threading.RLock()
        self._closed = False
        self._limits = AnswerLimits(query_bytes, query_rows)
        with self.translated(), self.connect() as connection:
            refuse_older(connection)
            self._refuse_other_encodings(connection)
            if direct_dsn is not None:
                self._refuse_other_database(connection)
        self._pool: StandingPool[PooledConnection] = StandingPool(
            dsn,
            connection_class=PooledConnection,
            min_size=1,
            max_size=pool_size,
            timeout=connect_timeout_seconds,
            kwargs=_STARTED_WITH,
            configure=self._configure,
        )
        limits = [limit for limit in (query_seconds, statement_timeout_seconds) if limit]
        sessions = ReadSessions(
            dsn,
            size=pool_size,
            seconds=min(limits, default=0.0),
            limits=self._limits,
            wait_seconds=connect_timeout_seconds,
            started_with=_STARTED_WITH,
        )
        self._functions = Functions(functions)
        self._reader = Reader(sessions, self._functions)

    def allow_named_functions_alone(self, *, asked: bool) -> None:
        """Let queries call no function that users wrote but those that are named; or any."""
        self._functions.allow_no_others(asked=asked)

    def _configure(self, connection: Connection) -> None:
        connection.settings = {**self._asking, **never_idle(connection)}
        connection.look_around()

    def connect(self) -> Connection:
        """Open a new connection, in autocommit, without a statement timeout.

        It waits for a table's lock for a second only; see `TableBusyError`.
        """
        return self._connected(self._direct_dsn)

    def _connected(self, dsn: str) -> Connection:
        with self.translated():
            connection = self._retried(dsn, lambda: Connection.connect(dsn, **self._how))
            unlimited = (
                _UNLIMITED if has(connection, Since.TRANSACTION_TIMEOUT) else _UNLIMITED_BEFORE
            )
            unlimited = {**unlimited, **never_idle(connection)}
            wanted = {**LEXED, **_ALL_ROWS, **unlimited, **_PATIENCE, **self._more}
            connection.settings = {**SESSION_SETTINGS, **wanted}
            try:
                connection.look_around()
            except psycopg.Error:
                connection.close()
                raise
            return connection

    def connect_replicating(self) -> psycopg.Connection[tuple[Any, ...]]:
        """Open a connection that accepts replication commands."""
        with self.connect() as connection:
            path, awake = connection.settings["search_path"], never_idle(connection)
        settings = {**SESSION_SETTINGS, **LEXED, **_PATIENT, **awake, "search_path": path}
        escaped = {name: re.sub(r"([ \\])", r"\\\1", value) for name, value in settings.items()}
        options = " ".join(f"-c {name}={value}" for name, value in escaped.items())
        with self.translated():
            replicating = self._retried(
                self._direct_dsn,
                lambda: psycopg.connect(
                    self._direct_dsn, options=options, replication="database", **self._how
                ),
            )
        leave_to_parent(replicating)
        return replicating

    @property
    def _how(self) -> dict[str, Any]:
        return {
            **_STARTED_WITH,
            "connect_timeout": max(int(self._connect_timeout), 2),
        }

    def _retried(self, dsn: str, connect: Callable[[], _Opened]) -> _Opened:
        """Try again with growing pauses while the server cannot be reached."""
        wait = _FIRST_WAIT_SECONDS
        deadline = time.monotonic() + self._connect_timeout
        for _ in range(_RETRIES):
            try:
                with self._named(dsn):
                    return connect()
            except psycopg.OperationalError as error:
                if _is_refusal(error) or time.monotonic() + wait > deadline:
                    raise
            time.sleep(wait)
            wait *= 2
        with self._named(dsn):
            return connect()

    @contextmanager
    def _named(self, dsn: str) -> Iterator[None]:
        """Give the error of a connection that is refused the server's code."""
        try:
            yield
        except psycopg.OperationalError as error:
            self._refusals.name(error, dsn, self._connect_timeout)
            raise

    def _refuse_other_encodings(self, connection: Connection) -> None:
        found = connection.execute("show server_encoding").fetchone()
        if found is not None and found[0] != "UTF8":
            connection.close()
            raise SourceError(
                f"the source database's encoding is {found[0]}, and only UTF8 can be mirrored",
                hint="dump it and restore it into a database with encoding UTF8",
            )

    def _refuse_other_database(self, direct: Connection) -> None:
        with self._connected(self._dsn) as connection:
            if identity(connection) != identity(direct):
                raise SettingsError(
                    "source.direct_dsn leads to another database than source.dsn",
                    hint="set it to the server and database behind the pooler",
                )

    def execute(self, sql: str, params: Sequence[Any] = ()) -> int:
        """Run one statement and commit it; return how many rows it changed.

        Placeholders are `%s`.

        Raises:
            QueryError: The statement is wrong, breaks a constraint, or opens a transaction.
        """
        _refuse_transactions(sql)
        with self._lent() as connection:
            if not connection.is_pooled:
                with _holding(connection, sql):
                    return _run_alone(connection, sql, params)
            try:
                with connection.atomic(settings=self._asking):
                    return _run(connection, sql, params)
            except (errors.ActiveSqlTransaction, errors.InvalidTransactionTermination):
                if self._more:
                    raise
                # `vacuum`, or a procedure that commits: the server has undone all of it.
                return _run_alone(connection, sql, params)

    def execute_batch(self, statements: Sequence[tuple[str, Sequence[Any]]]) -> int:
        """Run all statements in one transaction, all or nothing; return the rows changed."""
        for sql, _ in statements:
            _refuse_transactions(sql)
        every = [sql for sql, _ in statements]
        with (
            self._lent() as connection,
            _holding(connection, *every),
            connection.atomic(settings=self._asking),
        ):
            return sum(_run(connection, sql, params) for sql, params in statements)

    def execute_returning(self, sql: str, params: Sequence[Any] = ()) -> pa.Table:
        """Run one statement and return its rows; it is committed once they are read.

        Raises:
            QueryError: As `execute`; or the statement returns no rows.
        """
        _refuse_transactions(sql)
        with (
            self._lent() as connection,
            _holding(connection, sql),
            connection.atomic(settings=self._asking),
        ):
            return returned(connection.execute(sql, params or None), self._limits)

    def query(
        self,
        sql: str,
        params: Sequence[Any] = (),
        columns: Sequence[Column | None] | None = None,
        begun: Begun | None = None,
    ) -> pa.Table:
        """Run one read-only statement.

        Shape: one column for each of the statement's, in its order and with its names and types;
        `columns` gives a column's type if the server's description is less exact.

        Raises:
            QueryError: It is not a reading statement, or the server refuses it.
            SourceBusyError: No session came free in time.
            QueryLimitError: It takes more time or memory than it may, or has more rows.
        """
        with self.translated(), _texts_refused():
            return self._reader.query(sql, params, columns, begun)

    def stream(
        self,
        sql: str,
        params: Sequence[Any],
        columns: Sequence[Column | None] | None,
        rows: int,
        begun: Begun | None = None,
    ) -> Streamed | None:
        """Run one reading statement and return its answer in batches; see `Database.stream`."""
        with self.translated(), _texts_refused():
            streamed = self._reader.stream(sql, params, columns, rows, begun)
        return streamed and replace(streamed, batches=self._each_translated(streamed.batches))

    def _each_translated(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        with self.translated():
            yield from batches

    def default_zone(self) -> str:
        """Return the time zone of a session that sets none."""
        with self.translated(), self._named(self._dsn):
            opened = psycopg.connect(self._dsn, autocommit=True)
        with self.translated(), opened as connection:
            return str(connection.execute("show timezone").fetchone()[0])  # type: ignore[index]

    def meanings(
        self, tables: Iterable[Table], options: Callable[[str], TableOptions]
    ) -> list[MirroredTable]:
        """Describe tables for translation; see `semantics.meaning`."""
        with self._lent() as connection:
            return [meaning(connection, table, options(table.name)) for table in tables]

    def finds_public(self) -> bool:
        """Return whether a name without schema can only mean a table in `public`."""
        with self._lent() as connection, connection.atomic(settings=self._asking):
            return finds_public(connection)

    def table_names(self) -> list[str]:
        """Return the names of all ordinary tables that have a primary key."""
        with self._lent() as connection:
            return table_names(connection)

    def views(self) -> list[tuple[str | None, str]]:
        """Return the schema and name of each view that this user may read."""
        with self._lent() as connection:
            return view_names(connection)

    def other_names(self) -> dict[str, str]:
        """Return the names of all other tables and views, each with the reason."""
        with self._lent() as connection:
            return other_names(connection)

    def read_schema(
        self,
        name: str,
        options: TableOptions,
        _known: TableSchema | None,
    ) -> TableSchema:
        """Read a table's schema; see `catalog.read_table`."""
        with self._lent() as connection:
            return read_table(connection, name, options, reread=self._reread).schema

    def identity(self) -> SourceIdentity:
        """Return the identity of this database, which distinguishes it from all others."""
        with self._lent() as connection:
            return identity(connection)

    def marked_identity(self) -> SourceIdentity:
        """Return the same: a server needs no mark."""
        return self.identity()

    def is_standby(self) -> bool:
        """Return whether the server applies the log of another one, and may lag behind it."""
        with self._lent() as connection:
            return bool(connection.execute(b"select pg_is_in_recovery()").fetchall()[0][0])

    def add_column(self, table: TableSchema, column: str, arrow_type: pa.DataType) -> None:
        """Add a column with a declaration that is read back as this type."""
        self._alter(table, f"add column {quote(column)} {declaration(arrow_type)}")

    def drop_column(self, table: TableSchema, column: str) -> None:
        """Drop a column."""
        self._alter(table, f"drop column {quote(column)}")

    def _alter(self, table: TableSchema, change: str) -> None:
        """Change a table, or none: whoever reads or writes it queues behind us while we wait."""
        impatient = {**self._asking, **_PATIENCE}
        try:
            with self._lent() as connection, connection.atomic(settings=impatient):
                connection.execute(f"alter table {qualified(table)} {change}".encode())
        except TableBusyError as error:
            raise TableBusyError(
                "a transaction of another session uses the table, which was left as it is",
                table=table.name,
                hint="call it again once that transaction has ended; 'pg_locks' shows whose it is",
            ) from error

    @contextmanager
    def _lent(self) -> Iterator[Connection]:
        with self.translated(), self._pool.connection() as connection, _texts_refused():
            try:
                yield connection
            finally:
                connection.rested_from = time.monotonic()

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turn the driver's errors into ours."""
        try:
            yield
        except PoolTimeout as error:
            raise self._none_free() from error
        except psycopg.Error as error:
            raise translate(error) from shown_cause(error)

    def _none_free(self) -> RheiError:
        """Return why a pool gave no connection, which by itself does not say it."""
        try:
            with self._named(self._dsn):
                psycopg.connect(self._dsn, **self._how).close()
        except psycopg.OperationalError as error:
            return translate(error)
        return SourceBusyError(
            "no connection to the source became free in time",
            hint="it is tried again; if it stays, raise source.pool_size",
        )

    def close(self) -> None:
        """Close every connection; safe to repeat."""
        self._reader.close()
        self._pool.close()


@contextmanager
def _texts_refused() -> Iterator[None]:
    """Name a text that the driver cannot send; its own error would quote it."""
    try:
        yield
    except UnicodeEncodeError:
        raise no_unicode() from None


def _run(connection: Connection, sql: str, params: Sequence[Any]) -> int:
    return _changed(connection.execute(sql, params or None), sql)


@contextmanager
def _holding(connection: Connection, *statements: str) -> Iterator[None]:
    """Restore the session after statements that may change its settings."""
    yield
    if not all(sql.split(None, 1)[0].lower() in _ROW_WORDS for sql in statements if sql.strip()):
        connection.hold_again()


def _run_alone(connection: Connection, sql: str, params: Sequence[Any]) -> int:
    """Run a statement in the session as it is: no settings, and it may end transactions."""
    return _changed(connection.execute_alone(sql, params or None), sql)


def _changed(cursor: psycopg.Cursor[Any], sql: str) -> int:
    """Return how many rows a statement changed: the server counts those that one reads alike."""
    if cursor.description is not None and only_reads(sql, "postgres"):
        return 0
    return max(cursor.rowcount, 0)


def _refuse_transactions(sql: str) -> None:
    words = [word.rstrip(";").lower() for word in sql.split(None, 2)[:2]] or [""]
    if words[0] in _TRANSACTION_WORDS:
        raise QueryError(
            f"{words[0]} cannot be run as a single statement",
            hint=BATCHED,
        )
    if words[0] in _SESSION_WORDS and words != ["set", "local"]:
        raise QueryError(
            f"{words[0]} changes a session, and a single statement has no session of its own",
            hint="use 'set local' as the first statement of execute_batch",
        )


def pooled_stream() -> CaptureError:
    """Return the error for streaming the log through a pooler."""
    return CaptureError(
        "'capture.streaming' needs a direct session at the server, but the connection goes "
        "through a pooler",
        hint="give the server's own address as 'source.direct_dsn', or remove 'capture.streaming'",
    )


def _is_refusal(error: psycopg.OperationalError) -> bool:
    """Return whether the server answered: then a new try does not help."""
    text = str(error)
    return error.sqlstate in DENIED or any(
        part in text for part in ("authentication", "does not exist", "no pg_hba.conf")
    )


def translate(error: psycopg.Error) -> RheiError:
    """Name a driver's error by what can be done about it; never quotes a row's values."""
    if isinstance(error, errors.ReadOnlySqlTransaction):
        return QueryError("a query only reads", hint=WRITING)
    if isinstance(error, errors.ObjectInUse | errors.LockNotAvailable | errors.QueryCanceled):
        return _busy(error)
    if isinstance(error, errors.InsufficientPrivilege):
        return SourceError(
            f"the source refuses the statement: {error.diag.message_primary}",
            hint="grant the missing privilege; of what mirroring needs, 'rhei check' shows the "
            "statements",
        )
    of = (error.sqlstate or "")[:2]
    if error.sqlstate in _LACKING or of in _PASSING:
        return _busy(error)
    # Of a connection that was never made the server's answer is not parsed, whatever its code.
    is_of_a_statement = of in _OF_STATEMENTS and error.diag.message_primary is not None
    if isinstance(error, psycopg.OperationalError) and not is_of_a_statement:
        return _connection_error(error)
    # The primary message names objects, but of a value that does not fit, the value; the detail,
    # which may quote values, stays out.
    message = error.diag.message_primary or "the statement"
    if isinstance(error, errors.DataError):
        message = without_values(message)
    return QueryError(f"PostgreSQL refused: {message}")


def _busy(error: psycopg.Error) -> SourceBusyError:
    if isinstance(error, errors.LockNotAvailable):
        return TableBusyError(
            "another session of the source has locked the table",
            hint="it is tried again; 'select * from pg_locks where granted' shows who holds it",
        )
    if isinstance(error, errors.QueryCanceled):
        return SourceBusyError(
            "the source's server cancelled the statement after its timeout",
            hint="make the statement cheaper, or raise source.statement_timeout_seconds",
        )
    told = error.diag.message_primary or ""
    is_slot = "replication slot" in told
    return SourceBusyError(
        f"the source is busy: {told}",
        hint="stop the other process that reads from it" if is_slot else "it is tried again",
    )


def _connection_error(error: psycopg.OperationalError) -> RheiError:
    if "statement pooling mode" in str(error):
        return SourceError(
            "the pooler in front of the source gives each statement another session, so they "
            "cannot share a snapshot",
            hint="pool whole transactions ('pool_mode = transaction'), or set source.dsn to the "
            "server itself",
        )
    if "query_wait_timeout" in str(error):
        return SourceBusyError(
            "the pooler in front of the source gave no session in time",
            hint="it is tried again; let the pool hold two more sessions for a sync, or give the "
            "server's own address as source.direct_dsn",
        )
    if error.sqlstate == FULL or any(part in str(error) for part in _FULL):
        return SourceFullError(
            f"the source has no connection free: {_last_line(error)}",
            hint="it is tried again; end other sessions, or allow more of them, by 'alter role ... "
            "connection limit' or the server's 'max_connections'",
        )
    if _is_refusal(error):
        return SourceError(
            f"the source refuses the connection: {_last_line(error)}",
            hint=WAYS_IN.get(error.sqlstate or "", "correct source.dsn, its user or its password"),
        )
    return SourceUnreachableError(
        f"the source cannot be reached: {_last_line(error)}",
        hint="it is tried again; check that the server is running",
    )


def _last_line(error: psycopg.Error) -> str:
    # Those that begin with a tab say what the one before them may mean, and so do details.
    lines = [line for line in str(error).strip().splitlines() if line[:1] != "\t"]
    told = [line for line in lines if not _DETAIL.match(line)] or lines
    return told[-1] if told else type(error).__name__
