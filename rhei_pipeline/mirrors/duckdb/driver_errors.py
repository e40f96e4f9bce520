"""What DuckDB, or the system below it, fails with, as errors of ours."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from rhei_pipeline.errors import (
    MirrorBusyError,
    MirrorConflictError,
    MirrorError,
    MirrorMemoryError,
    QueryError,
    RheiError,
    TransientError,
    shown_cause,
    without_values,
)
from rhei_pipeline.mirrors.duckdb.damage import cause, damage_of, first_line, is_damage
from rhei_pipeline.mirrors.locking import lock_of_file

#: What DuckDB, or the system, says where a file may not grow.
_FULL = (
    "No space left",
    "Disk quota exceeded",
    "File too large",
    "Out of disk",
    "not write all",
)
#: What it says where it cannot put aside what exceeds its memory.
_NOT_ASIDE = "Failed to create directory"
#: What it says of a file of others: a directory; SQLite's, for which it would load an extension;
#: one of data, which it would show in a database in memory.
_NO_DATABASE = (
    "not a valid DuckDB database",
    "Cannot launch in-memory database",
    "Is a directory",
    "Loading external extensions is disabled",
)
#: What it says of a statement itself, before it reads rows.
_OF_STATEMENTS = (
    *(duckdb.ParserException, duckdb.SyntaxException, duckdb.BinderException),
    *(duckdb.CatalogException, duckdb.PermissionException, duckdb.NotImplementedException),
    *(duckdb.InvalidTypeException, duckdb.DependencyException),
)
#: What may quote a row, be it in quotes or not.
_OF_ROWS = (duckdb.DataError, duckdb.IntegrityError, duckdb.InvalidInputException)
_INVALID_INPUT = "Invalid Input Error: "
#: What DuckDB raises for Ctrl-C, as a RuntimeError.
_INTERRUPTED = "Query interrupted"
#: How DuckDB says which process has a file open.
_PROCESS = re.compile(r"\(PID (\d+)\)")


def _too_large() -> MirrorMemoryError:
    # No QueryError, after which the source would be asked for as much.
    return MirrorMemoryError(
        "DuckDB has reached its memory limit",
        hint="make the query smaller, or raise mirror.memory_limit",
    )


def _full(path: str) -> MirrorError:
    return MirrorError(f"the disk that holds {path!r} is full", hint="free space, then try again")


def _not_aside() -> MirrorError:
    return MirrorError(
        "DuckDB can put nothing aside of what exceeds its memory: it cannot create the directory",
        hint="give this user write access to the mirror's folder, or to the working directory where"
        " mirror.path is ':memory:', or raise mirror.memory_limit",
    )


def unusable(error: OSError, path: str) -> MirrorError:
    """Return the error for a file beside which the system lets us create none.

    A lock that is there already, as one that another user has left, is named itself: to write in
    its folder is no way to it.
    """
    if any(reason in str(error) for reason in _FULL):
        return _full(path)
    lock = str(lock_of_file(Path(path)))
    if str(error.filename) == lock and os.path.lexists(lock):
        return MirrorError(
            f"mirror {path!r} cannot be used: its file {lock!r}: {error.strerror or error}",
            hint=f"give this user write access to {lock!r}; or end what has the mirror open, and"
            " delete that file",
        )
    return MirrorError(
        f"mirror {path!r} cannot be used: {error.strerror or error}",
        hint="give this user write access to its folder, or correct mirror.path",
    )


def no_database(path: str) -> MirrorError:
    """Return the error for a file that somebody else made."""
    return MirrorError(
        f"{path!r} exists and is not a DuckDB database",
        hint=f"correct mirror.path, or move {path!r} away, with '{path}.wal' if it exists",
    )


def query_error(error: Exception, path: str, *, is_empty: bool) -> RheiError:
    """Return the error for a query that failed; `is_empty`: the mirror holds no table yet."""
    # Behind the first rows it reaches us through Arrow, which keeps the text alone.
    if isinstance(error, duckdb.OutOfMemoryException) or str(error).startswith("Out of Memory"):
        return _too_large()
    if _NOT_ASIDE in str(error):
        return _not_aside()
    if is_damage(error):
        return damage_of(error, path)
    hint = "the mirror answers reading queries on mirrored tables"
    if is_empty:
        hint = f"mirror {path!r} holds no table yet: run 'rhei sync' first"
    message = first_line(error)
    if not isinstance(error, _OF_STATEMENTS):
        message = _without_rows(message)
    return QueryError(f"DuckDB refused the query: {message}", hint=hint)


def _without_rows(message: str) -> str:
    """Leave out what may be of a row: of an invalid input, its text may end the message."""
    told = without_values(message)
    return f"{told.rpartition(': ')[0]}: ..." if told.startswith(_INVALID_INPUT) else told


def is_fatal(error: BaseException) -> bool:
    """Return whether DuckDB has given the database up: no statement works until it is reopened."""
    # Behind the first rows it reaches us through Arrow, which keeps the text alone.
    return isinstance(error, duckdb.FatalException) or "has been invalidated" in str(error)


@contextmanager
def translated(path: str) -> Iterator[None]:
    """Translate the driver's errors into ours."""
    with keys_of_the_user():
        try:
            yield
        except duckdb.InterruptException as error:
            raise KeyboardInterrupt from error
        except duckdb.Error as error:
            if _is_interrupted(error):
                raise KeyboardInterrupt from error
            first = cause(error)
            shown = None if isinstance(first, _OF_ROWS) else shown_cause(error)
            raise _translate(first, path) from shown


def _is_interrupted(error: duckdb.Error) -> bool:
    """Return whether it was Ctrl-C that aborted the transaction, which the error reports alone."""
    first = cause(error)
    before = first.__context__ if "transaction is aborted" in str(first) else None
    is_of_the_user = isinstance(before, KeyboardInterrupt) or str(before) == _INTERRUPTED
    return isinstance(first, duckdb.InterruptException) or is_of_the_user


@contextmanager
def keys_of_the_user() -> Iterator[None]:
    """Raise KeyboardInterrupt for Ctrl-C, which DuckDB reports as its own error."""
    try:
        yield
    except RuntimeError as error:
        if str(error) != _INTERRUPTED:
            raise
        raise KeyboardInterrupt from error


def _translate(error: duckdb.Error, path: str) -> RheiError:
    if isinstance(error, duckdb.OutOfMemoryException):
        return _too_large()
    if (passing := _passing(error, path)) is not None:
        return passing
    if is_damage(error):
        return damage_of(error, path)
    if (told := _told_by(str(error), path)) is not None:
        return told
    what = type(error).__name__ if isinstance(error, _OF_ROWS) else first_line(error)
    of_disk = isinstance(error, duckdb.IOException | duckdb.FatalException)
    hint = "check the disk and its mounts" if of_disk else None
    return MirrorError(f"DuckDB failed on {path!r}: {what}", hint=hint)


def _told_by(text: str, path: str) -> MirrorError | None:
    """Return the error for what only the text of DuckDB's tells apart; None for others."""
    if any(reason in text for reason in _NO_DATABASE):
        return no_database(path)
    if any(reason in text for reason in _FULL):
        return _full(path)
    return _not_aside() if _NOT_ASIDE in text else None


def _passing(error: duckdb.Error, path: str) -> TransientError | None:
    """Return the error for what passes by itself, or with a process that ends; None for others."""
    text = str(error)
    if isinstance(error, duckdb.TransactionException) and "Conflict on " in text:
        # There is one writer, so there is none to be in conflict with. Seen with DuckDB 2.0 on a
        # busy machine, once in some thousand copies, and never when it was tried again.
        return MirrorConflictError(
            f"DuckDB refused a change to {path!r}: {first_line(error)}",
            hint="nothing of it is committed: try again",
        )
    if "different configuration" in text:
        return MirrorBusyError(
            f"mirror {path!r} is being read in this process",
            hint="use the object that opened it, or close that first",
        )
    if "Could not set lock" not in text:
        return None
    process = _PROCESS.search(text)
    return MirrorBusyError(
        f"mirror {path!r} is held by another process{f': {process[1]}' if process else ''}",
        hint="only one process can write a mirror: stop the other one first",
    )
