"""Attributes an error to one table, which is then left out, or to the whole pipeline."""

from pathlib import PurePath
from types import TracebackType
from typing import Self

from rhei_pipeline.errors import (
    MirrorDamagedError,
    PermanentError,
    TableBusyError,
    TableFailedError,
    TransientError,
)

_OURS = "rhei_pipeline"


class Blame:
    """Records which table is being worked on, and which one an error came from.

    The error itself is not changed: the owner of the connection translates it.
    """

    def __init__(self) -> None:
        self.table: str | None = None

    def clear(self) -> None:
        """Forget which table an error came from."""
        self.table = None

    def of(self, table: str) -> Self:
        """Work on a table in the `with` block of what is returned.

        An error that leaves the block is attributed to the table.
        """
        self.table = table
        return self

    # Its own context manager: each cycle opens some for every table.

    def __enter__(self) -> None:
        """Begin the block."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the block; without an error, no table is worked on any more."""
        if kind is None:
            self.table = None


def own_fault(error: Exception, table: str | None) -> PermanentError | None:
    """Return the error if it concerns one table only, else None.

    Transient errors, and damage that is not limited to one table, concern all tables; but not
    what only one table is busy with.
    """
    if isinstance(error, TableBusyError) and table is not None:
        busy = TableFailedError(error.message, table=table, hint=error.hint)
        busy.__cause__ = error
        return busy
    if isinstance(error, TransientError):
        return None
    if isinstance(error, MirrorDamagedError):
        return error if error.table is not None else None
    if table is None:
        return error if isinstance(error, PermanentError) and error.table is not None else None
    if not isinstance(error, PermanentError):
        failed = TableFailedError(_what(error), table=table, hint=_way_out(table))
        failed.__cause__ = error
        return failed
    if error.table is None:
        error.table = table
    if error.hint is None:
        error.hint = _way_out(table)
    return error


def _what(error: Exception) -> str:
    """Name an unknown error by its type and location; its text may quote a row."""
    place = _innermost(error)
    return f"it failed unexpectedly with {type(error).__name__}{f' in {place}' if place else ''}"


def _innermost(error: Exception) -> str:
    """Return the innermost line of this package in an error's traceback."""
    trace, place = error.__traceback__, ""
    while trace is not None:
        file = PurePath(trace.tb_frame.f_code.co_filename)
        if _OURS in file.parts:
            place = f"{file.name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def _way_out(table: str) -> str:
    return (
        f"every sync tries again; if the error stays, 'rhei repair {table}' copies the table again"
    )
