"""Whose trouble an error is: one table's, which is then left out, or everybody's."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath

from rhei_pipeline.errors import (
    MirrorDamagedError,
    PermanentError,
    TableFailedError,
    TransientError,
)

_OURS = "rhei_pipeline"


class Blame:
    """Which table is worked on, and, once an error has ended that, whose work it was.

    The error itself passes as it is: whoever holds the connection translates it on the way.
    """

    def __init__(self) -> None:
        self.table: str | None = None

    def clear(self) -> None:
        """Blame nobody."""
        self.table = None

    @contextmanager
    def of(self, table: str) -> Iterator[None]:
        """Work on a table; an error that leaves the block is its own."""
        self.table = table
        yield
        self.table = None


def own_fault(error: Exception, table: str | None) -> PermanentError | None:
    """Return an error as the fault of the table it came from; None where it is everybody's.

    What trying again may cure, and damage that is not one table's, concerns all of them.
    """
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
    """Name an unknown error by its type and place; its text may quote a row."""
    place = _innermost(error)
    return f"it failed unexpectedly with {type(error).__name__}{f' in {place}' if place else ''}"


def _innermost(error: Exception) -> str:
    """Return the last line of ours that an error came through."""
    trace, place = error.__traceback__, ""
    while trace is not None:
        file = PurePath(trace.tb_frame.f_code.co_filename)
        if _OURS in file.parts:
            place = f"{file.name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def _way_out(table: str) -> str:
    return f"every sync tries it again; if this stays, 'rhei repair {table}' copies it anew"
