"""Everything that can go wrong, and what to do about it.

    RheiError
    |-- TransientError                 trying again, unchanged, may succeed
    |   |-- SourceBusyError            the source is locked or cannot be reached
    |   |   |-- SourceUnreachableError   there is no connection to it
    |   |   |-- SourceFullError          it has no connection free
    |   |   `-- TableBusyError           one table cannot be read now; the others can
    |   |-- MirrorBusyError            another process holds the mirror
    |   |-- MirrorUnreachableError       the store that holds the mirror does not answer
    |   |-- MirrorConflictError          its engine refused a commit as if another had written
    |   |-- ComputeUnreachableError      the cluster does not answer
    |   |-- BufferBusyError            another process holds the buffer
    |   |-- BufferFullError            the buffer takes no more until the mirror has caught up
    |   `-- QueriesBusyError           as many queries as may run at once are under way
    `-- PermanentError                 something has to change first
        |-- SettingsError              the declaration cannot be read or does not make sense
        |-- SchemaError                a table cannot be mirrored as it is
        |   |-- SchemaDriftError       a table changed in a way that must be decided by a person
        |   `-- HiddenRowsError        capture cannot see all rows that the table shows to others
        |-- SourceError                the source refused a statement or is damaged
        |-- CaptureError               changes cannot be captured
        |   |-- BufferDamagedError     the buffer's files are damaged
        |   `-- PositionLostError      the source no longer holds the changes after the watermark
        |-- MirrorError                the mirror refused a statement or cannot be used
        |   |-- MirrorMemoryError      its engine has reached its memory limit
        |   |-- MirrorDamagedError     a file of the mirror is damaged or missing
        |   `-- MirrorOwnerError       the mirror is another source's or pipeline's
        |-- TableFailedError           a table could not be read or applied; it is tried again
        |-- QueryError                 a query cannot be run as asked
        |   |-- QueryLimitError          a query takes more time or memory than one may
        |   `-- ChangesLostError         what changed since a consumer's position is not known
        |-- ForkedProcessError         the process is a fork of one with a pipeline
        `-- MissingExtraError          an optional package is not installed

A message names the thing first and never holds a row's values or a secret; the hint says what to
do next. Whether to try again depends on the first level only.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec


class RheiError(Exception):
    """The root of all errors of this package.

    Args:
        message: What happened, lower case, the thing first.
        table: The table it happened to, where there is one.
        hint: One sentence: what to do next.
    """

    def __init__(self, message: str, *, table: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.table = table
        self.hint = hint

    def __str__(self) -> str:
        named = f"table {self.table!r}: " if self.table is not None else ""
        advice = f" ({self.hint})" if self.hint else ""
        return f"{named}{self.message}{advice}"

    def _render_traceback_(self) -> list[str]:
        """Return what a notebook shows: the message says it all, and traces only hide it."""
        return [f"{type(self).__name__}: {self}"]


class TransientError(RheiError):
    """Trying again, unchanged, may succeed."""


class SourceBusyError(TransientError):
    """The source is locked or cannot be reached."""


class SourceUnreachableError(SourceBusyError):
    """There is no connection to the source."""


class SourceFullError(SourceBusyError):
    """The source has no connection free for one more session."""


class TableBusyError(SourceBusyError):
    """One table of the source cannot be read now; the other tables go on."""


class MirrorBusyError(TransientError):
    """Another process holds the mirror."""


class MirrorUnreachableError(TransientError):
    """The object store that holds the mirror does not answer."""


class MirrorConflictError(TransientError):
    """The mirror's engine refused a change as if another had made it too; nothing is committed."""


class ComputeUnreachableError(TransientError):
    """The cluster that reads a mirror's Delta tables does not answer."""


class BufferBusyError(TransientError):
    """Another process holds the buffer."""


class BufferFullError(TransientError):
    """The buffer accepts no more changes until the mirror has caught up.

    Args:
        message, hint: See `RheiError`.
        made_room: Whether the mirror has caught up since, so that another cycle can continue.
    """

    def __init__(self, message: str, *, hint: str | None = None, made_room: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.made_room = made_room


class QueriesBusyError(TransientError):
    """As many queries as may run at once are under way."""


class PermanentError(RheiError):
    """Something has to change before a new try can succeed."""


class SettingsError(PermanentError):
    """The declaration cannot be read or does not make sense."""


class SchemaError(PermanentError):
    """A table cannot be mirrored as it is."""


class SchemaDriftError(SchemaError):
    """A table changed in a way that must be decided by a person."""


class HiddenRowsError(SchemaError):
    """Capture cannot see all rows that the table shows to others."""


class SourceError(PermanentError):
    """The source refused a statement or is damaged."""


class CaptureError(PermanentError):
    """Changes cannot be captured."""


class BufferDamagedError(CaptureError):
    """The buffer's files are damaged, or are not a buffer's."""


class PositionLostError(CaptureError):
    """The source no longer holds the changes that follow the watermark."""


class MirrorError(PermanentError):
    """The mirror refused a statement or cannot be used."""


class MirrorMemoryError(MirrorError):
    """The mirror's engine has reached its memory limit."""


class MirrorOwnerError(MirrorError):
    """The mirror belongs to another source or another pipeline."""


class MirrorDamagedError(MirrorError):
    """A file of the mirror is damaged or missing; nothing of it was used.

    Args:
        message: What is wrong with it.
        file: The file's name; in a mirror of files, within its directory.
        table: The table whose rows it holds; None where it is the whole mirror's.
        hint: What to do next.
    """

    def __init__(
        self, message: str, *, file: str, table: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, table=table, hint=hint)
        self.file = file


class DeadLettersFullError(PermanentError):
    """A table would get more dead letters than are to be kept; the source keeps its changes."""


class TableFailedError(PermanentError):
    """A table could not be read or applied: it is locked, or for a reason that is not known."""


class QueryError(PermanentError):
    """A query cannot be run as asked."""


class QueryLimitError(QueryError):
    """A query takes more time or memory than one may; whichever side is asked, it would."""


class ChangesLostError(QueryError):
    """What changed since a consumer's position is not known; the whole table is."""


class ForkedProcessError(PermanentError):
    """The process is a fork of one that has opened a pipeline, and cannot use any."""


class MissingExtraError(PermanentError):
    """An optional package is not installed."""


#: The packages that each optional extra brings.
_EXTRAS = {
    "cluster": {"grpc", "grpc_status", "pandas", "pyspark"},
    "dagster": {"dagster"},
    "postgres": {"pglast", "psycopg", "psycopg_pool"},
    "datafusion": {"datafusion", "obstore"},
    "delta": {"datafusion", "deltalake", "obstore"},
    "masking": {"cryptography"},
    "metrics": {"prometheus_client"},
    "rocksdb": {"rocksdict"},
    "serve": {"google.protobuf"},
    "sqlite": {"adbc_driver_sqlite"},
}


def extras_installed() -> list[str]:
    """Return the optional extras that have all their packages here; none is imported."""
    return sorted(name for name, packages in _EXTRAS.items() if all(map(_is_there, packages)))


def _is_there(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # what it is a part of is not there either
        return False


def mirror_closed() -> MirrorError:
    """Return the error of whoever asks for a mirror that was closed, also while it answers."""
    return MirrorError("the mirror is closed", hint="open it again")


@contextmanager
def needs_extra(extra: str, what: str) -> Iterator[None]:
    """Import an optional extra's packages within the block; `what` is the feature that needs it.

    Raises:
        MissingExtraError: One of its packages is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = f"{error.name}."
        lacking = (f"{package}." for package in _EXTRAS[extra])
        package = next((p for p in lacking if missing.startswith(p) or p.startswith(missing)), None)
        if package is None:
            raise
        raise MissingExtraError(
            f"{what} needs the package {package.rstrip('.')!r}",
            hint=f"pip install 'rhei-pipeline[{extra}]'",
        ) from error


#: From the first quotation mark to the last, for a value may hold some itself; and bare values.
_QUOTED = re.compile(r"'.*'|\".*\"|\(.*\)|0x[0-9a-f ]+", re.DOTALL)
#: A number, a date or a time that is no part of a name, as `INT64` is.
_NUMBER = re.compile(r"(?<!\w)[-+]?\d[\w.:+-]*")


def without_values(text: str) -> str:
    """Leave out of an engine's message what it may quote of a row."""
    return _NUMBER.sub("...", _QUOTED.sub("...", text))


def shown_cause(error: BaseException) -> BaseException | None:
    """Return an engine's error as the cause of ours; None if it may quote a row.

    A cause is shown with the error, in a traceback and on the page of a run.
    """
    text = str(error)
    return error if without_values(text) == text else None


#: A file or directory by its whole path.
_PLACE = re.compile(r"(?<=['\"])/[^'\"\n]+(?=['\"])|(?<![\w./:])(/[\w.@+-]+){2,}")


def without_places(text: str) -> str:
    """Return a text with files named by their names alone, not by where they are."""
    return _PLACE.sub(lambda found: found[0].rpartition("/")[2] or "/", text)
