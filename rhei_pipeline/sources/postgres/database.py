"""An operational PostgreSQL database: pooled connections, each statement's error named."""

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
from psycopg_pool import ConnectionPool, PoolTimeout

from rhei_pipeline.errors import (
    CaptureError,
    QueryError,
    RheiError,
    SettingsError,
    SourceBusyError,
    SourceError,
    SourceUnreachableError,
    without_values,
)
from rhei_pipeline.model.ownership import SourceIdentity
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
)
from rhei_pipeline.sources.postgres.connection import PooledConnection
from rhei_pipeline.sources.postgres.functions import Functions
from rhei_pipeline.sources.postgres.identity import identity
from rhei_pipeline.sources.postgres.query import Reader
from rhei_pipeline.sources.postgres.read_sessions import ReadSessions
from rhei_pipeline.sources.postgres.semantics import finds_public, meaning
from rhei_pipeline.sources.postgres.types import SESSION_SETTINGS
from rhei_pipeline.sources.postgres.versions import Since, has, refuse_older
from rhei_pipeline.sql.text import quote

_Opened = TypeVar("_Opened")

_TRANSACTION_WORDS = {"begin", "commit", "end", "rollback", "savepoint", "release", "start"}
#: What these do would stay in a session, and ours are shared by all statements.
_SESSION_WORDS = {"set", "reset", "discard", "listen", "unlisten", "prepare", "deallocate", "load"}
#: Statements that write rows, and set nothing for a session.
_ROW_WORDS = {"insert", "update", "delete", "merge"}
_RETRIES = 5
_FIRST_WAIT_SECONDS = 0.1
#: What a connection starts with; poolers know both parameters, and keep them apart by client.
_STARTED_WITH: dict[str, Any] = {
    "autocommit": True,
    "client_encoding": "UTF8",
    "fallback_application_name": "rhei",
}
#: The server ends a replication connection that is silent, as ours is while nothing is written.
_PATIENT = {"wal_sender_timeout": "0"}
#: A copy takes as long as it takes, and its connection may wait for the mirror meanwhile.
_UNLIMITED_BEFORE = {"statement_timeout": "0", "idle_in_transaction_session_timeout": "0"}
_UNLIMITED = {**_UNLIMITED_BEFORE, "transaction_timeout": "0"}


class PostgresDatabase:
    """One PostgreSQL database as an application uses it.

    Args:
        dsn: libpq's connection string; TLS is what its `sslmode` and `sslrootcert` say.
        direct_dsn: Another one for capture, where `dsn` leads to a pooler.
        statement_timeout_seconds: The server ends an application's statement after so long.
        pool_size: How many connections are kept.
        connect_timeout_seconds: How long a connection may take to come about.
        read_only: Change nothing in it.
        reread: Changes are learned of without the server's log; see `postgres_schema.read_table`.
        query_seconds: The server ends a query after so long, a streamed one with its last batch.
        query_bytes: How much of an answer is held at once; None: any.
        functions: Functions that queries may call though they are VOLATILE; see `Functions`.

    Raises:
        SourceError: The server refuses us, or keeps text in another encoding than UTF-8.
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
        functions: Iterable[str] = (),
    ) -> None:
        self._dsn = dsn
        self._direct_dsn = direct_dsn or dsn
        self._more = {"transaction_read_only": "on"} if read_only else {}
        timeout = str(int(statement_timeout_seconds * 1000))
        #: For an application's statements, which find names as its own sessions do.
        self._asking = {**SESSION_SETTINGS, "statement_timeout": timeout, **self._more}
        self._reread = reread
        self._connect_timeout = connect_timeout_seconds
        self._write_lock = threading.RLock()
        self._closed = False
        with self.connect() as connection:
            refuse_older(connection)
            self._refuse_other_encodings(connection)
            if direct_dsn is not None:
                self._refuse_other_database(connection)
        self._pool: ConnectionPool[PooledConnection] = ConnectionPool(
            dsn,
            connection_class=PooledConnection,
            min_size=1,
            max_size=pool_size,
            timeout=connect_timeout_seconds,
            kwargs=_STARTED_WITH,
            configure=self._configure,
            check=PooledConnection.check,
            open=True,
        )
        limits = [limit for limit in (query_seconds, statement_timeout_seconds) if limit]
        sessions = ReadSessions(
            dsn,
            size=pool_size,
            seconds=min(limits, default=0.0),
            allowed_bytes=query_bytes,
            wait_seconds=connect_timeout_seconds,
            started_with=_STARTED_WITH,
        )
        self._reader = Reader(sessions, Functions(functions))

    def _configure(self, connection: Connection) -> None:
        connection.settings = self._asking
        connection.look_around()

    def connect(self) -> Connection:
        """Open one more connection, in autocommit, with no limit to a statement's time."""
        return self._connected(self._direct_dsn)

    def _connected(self, dsn: str) -> Connection:
        with self.translated():
            connection = self._retried(lambda: Connection.connect(dsn, **self._how))
            unlimited = (
                _UNLIMITED if has(connection, Since.TRANSACTION_TIMEOUT) else _UNLIMITED_BEFORE
            )
            connection.settings = {**SESSION_SETTINGS, **unlimited, **self._more}
            try:
                connection.look_around()
            except psycopg.Error:
                connection.close()
                raise
            return connection

    def connect_replicating(self) -> psycopg.Connection[tuple[Any, ...]]:
        """Open a connection on which the server takes replication commands."""
        with self.connect() as connection:
            path = connection.settings["search_path"]
        settings = {**SESSION_SETTINGS, **_PATIENT, "search_path": path}
        escaped = {name: re.sub(r"([ \\])", r"\\\1", value) for name, value in settings.items()}
        options = " ".join(f"-c {name}={value}" for name, value in escaped.items())
        with self.translated():
            return self._retried(
                lambda: psycopg.connect(
                    self._direct_dsn, options=options, replication="database", **self._how
                )
            )

    @property
    def _how(self) -> dict[str, Any]:
        return {
            **_STARTED_WITH,
            "connect_timeout": max(int(self._connect_timeout), 2),
        }

    def _retried(self, connect: Callable[[], _Opened]) -> _Opened:
        """Try again, ever more slowly, while the server cannot be reached."""
        wait = _FIRST_WAIT_SECONDS
        deadline = time.monotonic() + self._connect_timeout
        for _ in range(_RETRIES):
            try:
                return connect()
            except psycopg.OperationalError as error:
                if _is_refusal(error) or time.monotonic() + wait > deadline:
                    raise
            time.sleep(wait)
            wait *= 2
        return connect()

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
                    hint="let it name the server and database behind the pooler",
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

    def query(
        self,
        sql: str,
        params: Sequence[Any] = (),
        columns: Sequence[Column | None] | None = None,
        begun: Begun | None = None,
    ) -> pa.Table:
        """Run one reading statement.

        Shape: one column for each of the statement's, in its order and with its names and types;
        what `columns` tells of a column is its type, where the server tells less.

        Raises:
            QueryError: It is not a reading statement, or the server refuses it.
            SourceBusyError: No session came free in time, or it took too long.
        """
        with self.translated():
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
        with self.translated():
            streamed = self._reader.stream(sql, params, columns, rows, begun)
        return streamed and replace(streamed, batches=self._each_translated(streamed.batches))

    def _each_translated(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        with self.translated():
            yield from batches

    def default_zone(self) -> str:
        """Return the time zone of a session that chooses none."""
        with self.translated(), psycopg.connect(self._dsn, autocommit=True) as connection:
            return str(connection.execute("show timezone").fetchone()[0])  # type: ignore[index]

    def meanings(
        self, tables: Iterable[Table], options: Callable[[str], TableOptions]
    ) -> list[MirroredTable]:
        """Describe tables for translation; see `postgres_meaning.meaning`."""
        with self._lent() as connection:
            return [meaning(connection, table, options(table.name)) for table in tables]

    def finds_public(self) -> bool:
        """Tell whether a table's name without its schema can only mean one in `public`."""
        with self._lent() as connection, connection.atomic(settings=self._asking):
            return finds_public(connection)

    def table_names(self) -> list[str]:
        """Return the names of all ordinary tables that have a primary key."""
        with self._lent() as connection:
            return table_names(connection)

    def other_names(self) -> dict[str, str]:
        """Return the names of all other tables and views, each with what it is or lacks."""
        with self._lent() as connection:
            return other_names(connection)

    def read_schema(
        self,
        name: str,
        options: TableOptions,
        known: TableSchema | None,  # noqa: ARG002  (PostgreSQL's columns are typed)
    ) -> TableSchema:
        """Read a table's schema; see `postgres_schema.read_table`."""
        with self._lent() as connection:
            return read_table(connection, name, options, reread=self._reread).schema

    def identity(self, *, mark: bool = False) -> SourceIdentity:  # noqa: ARG002
        """Tell this database from all others; the server has a mark of its own."""
        with self._lent() as connection:
            return identity(connection)

    def add_column(self, table: TableSchema, column: str, arrow_type: pa.DataType) -> None:
        """Add a column that is declared so that it is read back as this type."""
        declared = f"{quote(column)} {declaration(arrow_type)}"
        self.execute(f"alter table {qualified(table)} add column {declared}")

    def drop_column(self, table: TableSchema, column: str) -> None:
        """Drop a column."""
        self.execute(f"alter table {qualified(table)} drop column {quote(column)}")

    @contextmanager
    def _lent(self) -> Iterator[Connection]:
        with self.translated(), self._pool.connection() as connection:
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
            raise SourceBusyError(
                "no connection to the source came free",
                hint="it will be tried again; or raise source.pool_size",
            ) from error
        except psycopg.Error as error:
            raise translate(error) from error

    def close(self) -> None:
        """Close every connection; safe to repeat."""
        self._reader.close()
        self._pool.close()


def _run(connection: Connection, sql: str, params: Sequence[Any]) -> int:
    return max(connection.execute(sql, params or None).rowcount, 0)


@contextmanager
def _holding(connection: Connection, *statements: str) -> Iterator[None]:
    """Have the session as it was after statements that may set something for it, as calls do."""
    yield
    if not all(sql.split(None, 1)[0].lower() in _ROW_WORDS for sql in statements if sql.strip()):
        connection.hold_again()


def _run_alone(connection: Connection, sql: str, params: Sequence[Any]) -> int:
    """Run a statement as the session is: nothing is set for it, and it may end transactions."""
    return max(connection.execute_alone(sql, params or None).rowcount, 0)


def _refuse_transactions(sql: str) -> None:
    words = [word.rstrip(";").lower() for word in sql.split(None, 2)[:2]] or [""]
    if words[0] in _TRANSACTION_WORDS:
        raise QueryError(
            f"{words[0]} does not run as a statement of its own",
            hint="give all statements of the transaction to execute_batch",
        )
    if words[0] in _SESSION_WORDS and words != ["set", "local"]:
        raise QueryError(
            f"{words[0]} is for a session, and no statement has one of its own",
            hint="use 'set local' as the first statement of execute_batch",
        )


def pooled_stream() -> CaptureError:
    """Return the error of a stream of the log where a pooler gives no session to keep."""
    return CaptureError(
        "'capture.streaming' needs a session of its own at the server, and a pooler stands between",
        hint="name the server itself as 'source.direct_dsn', or leave it out",
    )


def _is_refusal(error: psycopg.OperationalError) -> bool:
    """Tell whether the server answered: then trying again changes nothing."""
    text = str(error)
    return any(part in text for part in ("authentication", "does not exist", "no pg_hba.conf"))


def translate(error: psycopg.Error) -> RheiError:
    """Name a driver's error by what can be done about it; never quotes a row's values."""
    if isinstance(error, errors.ReadOnlySqlTransaction):
        return QueryError("a query only reads", hint="use execute for writes")
    if isinstance(error, errors.ObjectInUse | errors.LockNotAvailable):
        return SourceBusyError(f"the source is in use: {error.diag.message_primary}")
    if isinstance(error, errors.QueryCanceled):
        return SourceBusyError(
            "the source's server ended the statement for its timeout",
            hint="make it cheaper, or raise source.statement_timeout_seconds",
        )
    if isinstance(error, errors.InsufficientPrivilege):
        return SourceError(
            f"the source refuses: {error.diag.message_primary}",
            hint="grant what is missing; 'rhei check' names the statements",
        )
    if isinstance(error, psycopg.OperationalError):
        return _connection_error(error)
    # The primary message names objects, but of a value that does not fit, the value; the detail,
    # which may quote values, stays out.
    told = error.diag.message_primary or "the statement"
    if isinstance(error, errors.DataError):
        told = without_values(told)
    return QueryError(f"PostgreSQL refused: {told}")


def _connection_error(error: psycopg.OperationalError) -> RheiError:
    if "statement pooling mode" in str(error):
        return SourceError(
            "the pooler before the source gives each statement another session, so no two of them"
            " see one state",
            hint="pool whole transactions ('pool_mode = transaction'), or let source.dsn name the"
            " server itself",
        )
    if "query_wait_timeout" in str(error):
        return SourceBusyError(
            "the pooler before the source lent no session in time",
            hint="it will be tried again; let its pool hold two sessions for a sync beside those of"
            " the application, or name the server itself as source.direct_dsn",
        )
    if _is_refusal(error):
        return SourceError(
            f"the source refuses the connection: {_last_line(error)}",
            hint="correct source.dsn, its user or its password",
        )
    return SourceUnreachableError(
        f"the source cannot be reached: {_last_line(error)}",
        hint="it will be tried again; see that the server is up",
    )


def _last_line(error: psycopg.Error) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
