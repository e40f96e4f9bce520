"""The `-wal` file that a process has open, and whether it is still the database's."""

import os
import sqlite3
from pathlib import Path

from rhei_pipeline.errors import SourceError

#: Device and inode; none where the database is not in WAL mode, or no longer has the file.
WalId = tuple[int, int] | None


def opened_wal(connection: sqlite3.Connection, path: Path) -> WalId:
    """Open the log by a connection's first read; return which file it is, if any."""
    try:
        # From its first read on it keeps the log, so that no other process removes it.
        connection.execute("pragma schema_version").fetchone()
    except sqlite3.Error:
        return None  # whoever reads next is told why
    return _wal_id(path)


def has_wal(path: Path) -> bool:
    """Return whether a database has a log now."""
    return _wal_id(path) is not None


def _wal_id(path: Path) -> WalId:
    try:
        found = os.stat(f"{path}-wal")  # noqa: PTH116  (each use asks; a path takes five times that)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def refuse_another_wal(path: Path, opened: tuple[int, int]) -> None:
    """Refuse to go on with a `-wal` that is not the database's any more.

    SQLite keeps the file while anyone has it open. Who restores a backup in place, or removes it,
    leaves this process with a deleted one, in which it would see no later commit.

    Raises:
        SourceError: It was removed or replaced.
    """
    if _wal_id(path) == opened:
        return
    raise SourceError(
        f"the -wal file of source database {path.name!r} was removed or replaced while this"
        " process had it open, so this process does not see what is committed since",
        hint="end this process, run 'pragma integrity_check' in the sqlite3 shell, and start it"
        " again",
    )
