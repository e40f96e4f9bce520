"""Recognizes DuckDB's errors about a damaged file or log."""

import duckdb

from rhei_pipeline.errors import MirrorDamagedError

#: What DuckDB says where a block's checksum is wrong, the file is too short, or its log is damaged.
_SIGNS = (
    "Corrupt database file",
    "Could not read enough bytes",
    "replaying WAL",
    "WAL file",
    "Failed to deserialize",
)

#: How errors begin that quote the statement, or a value; streamed, they have no other kind.
_QUOTING = ("Conversion", "Invalid Input", "Out of Range", "Binder", "Parser", "Catalog")


def is_damage(error: Exception) -> bool:
    """Return whether an error is about a damaged file."""
    quotes = tuple(f"{kind} Error" for kind in _QUOTING)
    if isinstance(error, duckdb.ProgrammingError | duckdb.DataError) or str(error).startswith(
        quotes
    ):
        return False  # it quotes the statement, or a value
    return any(sign in str(error) for sign in _SIGNS)


def cause(error: duckdb.Error) -> duckdb.Error:
    """Return the error that aborted the transaction, if this one only reports the abort."""
    while "transaction is aborted" in str(error) and isinstance(error.__context__, duckdb.Error):
        error = error.__context__
    return error


def damage_of(error: Exception, path: str) -> MirrorDamagedError:
    """Return the error that names the damaged file, and what to do."""
    text, log = str(error), f"{path}.wal"
    if "WAL" in text and "database file" not in text:
        return MirrorDamagedError(
            f"mirror {path!r}: its log {log!r} is damaged: {first_line(error)}",
            file=log,
            hint=f"move {log!r} away: the mirror returns to its last checkpoint, and 'rhei sync' "
            "brings it up to date",
        )
    return MirrorDamagedError(
        f"mirror {path!r} is damaged: {first_line(error)}",
        file=path,
        hint=f"replace it with a backup or the published copy, or move {path!r} away, "
        f"with {log!r} if it exists: 'rhei sync' then creates a new mirror, without the history",
    )


def first_line(error: Exception) -> str:
    """Return the first line of an error's text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
