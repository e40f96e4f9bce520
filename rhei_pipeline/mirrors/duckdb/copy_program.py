"""Copies a database file, as a separate program that imports only the standard library.

A process must not open a database file that its own engine has open: closing any descriptor of
the file releases all of the process's POSIX record locks on it, and so the engine's
(`man 2 fcntl`; sqlite.org/howtocorrupt.html, section 2.2).
"""

import os
import shutil
import sys
from pathlib import Path

#: What stands in a database file of DuckDB, and from which byte on.
_MAGIC, _OFFSET = b"DUCK", 8


def main(source: str, target: str, place: str) -> None:
    """Copy a file and sync the copy to the disk; on an error, print it and exit with 1.

    Args:
        source: The file.
        target: The copy, which is to take another file's place.
        place: That file: it may be missing or empty, but nothing else than a database of DuckDB.
    """
    try:
        refuse_others(Path(place))
        shutil.copyfile(source, target)
        with Path(target).open("rb") as copied:
            os.fsync(copied.fileno())
    except OSError as error:
        sys.exit(error.strerror or str(error))


def refuse_others(place: Path) -> None:
    """Refuse to replace what no copy is: a path that is mistyped may be the source's own.

    Raises:
        OSError: It is something else.
    """
    if place.exists():
        with place.open("rb") as standing:
            found = standing.read(_OFFSET + len(_MAGIC))
        if found and found[_OFFSET:] != _MAGIC:
            raise OSError("the file that is there is no DuckDB database, and is left as it is")


if __name__ == "__main__":
    main(*sys.argv[1:])
