"""Copies a database file, as a separate program that imports only the standard library.

A process must not open a database file that its own engine has open: closing any descriptor of
the file releases all of the process's POSIX record locks on it, and so the engine's
(`man 2 fcntl`; sqlite.org/howtocorrupt.html, section 2.2).
"""

import os
import shutil
import sys
from pathlib import Path


def main(source: str, target: str) -> None:
    """Copy a file and sync the copy to the disk; on an error, print it and exit with 1."""
    try:
        shutil.copyfile(source, target)
        with Path(target).open("rb") as copied:
            os.fsync(copied.fileno())
    except OSError as error:
        sys.exit(error.strerror or str(error))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
