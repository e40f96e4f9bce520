"""Opens a DuckDB file so that queries reach nothing but its tables, and ends what is under way."""

import signal
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType

import duckdb

from rhei_pipeline.errors import MirrorBusyError
from rhei_pipeline.mirrors.duckdb.driver_errors import no_database, translated
from rhei_pipeline.mirrors.duckdb.housekeeping import silent
from rhei_pipeline.mirrors.duckdb.remains import delete_remains
from rhei_pipeline.mirrors.locking import Waiting
from rhei_pipeline.model.durable import make_durable

#: A checkpoint writes again each row group of which rows were deleted. With one for each 16 MB,
#: large cycles took a tenth more time, and some 40 MB less memory. A log of this size is read in a
#: quarter of a second of CPU where the file is opened after a crash.
CHECKPOINT_THRESHOLD = "64MB"

CONFIG: dict[str, str | bool | int | float | list[str]] = {
    # A query reads tables of the mirror; not files, not the network, not our Python variables.
    "enable_external_access": "false",
    "python_enable_replacements": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    # What one statement set for all would change everybody's answers.
    "lock_configuration": "true",
    # Our own connections set these; readers' statements only read.
    "allowed_configs": [
        *("memory_limit", "threads", "enable_progress_bar"),
        *("checkpoint_threshold", "auto_checkpoint_skip_wal_threshold"),
    ],
    "checkpoint_threshold": CHECKPOINT_THRESHOLD,
}
#: Who opens the file has its lock for at least so long: reads of the file end as they see that.
READERS_END_SECONDS = 0.5
_BEGUN = ".begun"
MEMORY = ":memory:"


def connect_once_free(
    path: str, config: dict[str, str | bool | int | float | list[str]], deadline: float
) -> duckdb.DuckDBPyConnection:
    """Open the file; wait also for processes that have it open without our lock."""
    # Of a relative path with a colon, DuckDB takes what is before it for the name of an extension.
    file = path if path == MEMORY else str(Path(path).absolute())
    waiting = Waiting(path, deadline - time.monotonic(), lambda: None)
    while True:
        try:
            with translated(path):
                connection = silent(duckdb.connect(file, config=config))
                if path != MEMORY:
                    _refuse_other_format(connection, path)
                return connection
        except MirrorBusyError as error:
            waiting.reason = error
            waiting.pause()


def _refuse_other_format(connection: duckdb.DuckDBPyConnection, path: str) -> None:
    """Refuse a file of CSV, JSON or Parquet: beside it, DuckDB opens a database in memory.

    Raises:
        MirrorError: It is one.
    """
    places = "select path from duckdb_databases() where not internal"
    if not any(connection.execute(places).fetchone() or ()):
        connection.close()
        raise no_database(path)


def create_whole(path: str) -> bool:
    """Create the file if it is missing, so that it is there whole or not at all.

    One that a full disk or a killed process had cut off would be refused as damaged.

    Returns:
        Whether it was missing: there is no table in it.
    """
    file = Path(path).resolve()
    if file.exists():
        return False
    delete_remains(file, _BEGUN)
    begun = file.with_name(f"{file.name}.{uuid.uuid4().hex}{_BEGUN}")
    try:
        with translated(path):
            _create_empty(begun)
        # It is of a file that is gone: DuckDB, too, removes it where it creates one.
        Path(f"{path}.wal").unlink(missing_ok=True)
        begun.replace(file)
        make_durable(file.parent)
    finally:
        begun.unlink(missing_ok=True)
    return True


def _create_empty(file: Path) -> None:
    duckdb.connect(str(file)).close()


def interrupt(cursor: duckdb.DuckDBPyConnection) -> None:
    """End what a cursor does; one that is closed already has nothing left to end."""
    with suppress(duckdb.ConnectionException):
        cursor.interrupt()


@contextmanager
def ended_by_signals(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Within the block, let a signal whose handler raises end what a connection does.

    DuckDB hears it in the main thread, but then waits for the tasks of its other threads, which
    do not hear it; a statement would go on to its end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    replaced = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handlers = {number: old for number, old in replaced.items() if callable(old)}

    def interrupting(number: int, frame: FrameType | None) -> None:
        try:
            handlers[signal.Signals(number)](number, frame)
        except BaseException:
            interrupt(connection)
            raise

    # A handler that raises while others are put back must leave none of ours behind.
    with ExitStack() as put_back:
        for number, old in handlers.items():
            put_back.callback(signal.signal, number, old)
            signal.signal(number, interrupting)
        yield


def roll_back(connection: duckdb.DuckDBPyConnection) -> None:
    """End a transaction, if there is one."""
    try:
        connection.execute("rollback")
    except duckdb.Error:
        # The failed statement ended the transaction already; its own error is the one to see.
        return
