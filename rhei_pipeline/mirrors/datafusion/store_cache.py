"""The local directory in which a process keeps what it wrote to a store, or read of it.

It holds rows. A process that is killed cannot remove it, so the next one does: whoever uses one
holds a lock on it, which ends with its process.
"""

import fcntl
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

_PREFIX = "rhei-store-"
#: One that is younger may be about to be locked.
_YOUNG_SECONDS = 60


class StoreCache:
    """A directory of its own for each that opens a store, until it is closed."""

    def __init__(self) -> None:
        _remove_left()
        self._directory = tempfile.TemporaryDirectory(prefix=_PREFIX)
        self.path = Path(self._directory.name)
        self._held = os.open(self.path, os.O_RDONLY)
        with suppress(OSError):  # a file system without such locks has nothing removed either
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def close(self) -> None:
        """Remove it; safe to repeat."""
        self._directory.cleanup()
        if self._held >= 0:
            os.close(self._held)
            self._held = -1


def _remove_left() -> None:
    """Remove what processes of this user have left that were killed."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # it is somebody else's, in use, or just removed
            found = left.lstat()
            if found.st_uid == os.getuid() and time.time() - found.st_mtime > _YOUNG_SECONDS:
                _remove_unused(left)


def _remove_unused(directory: Path) -> None:
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(directory)
    finally:
        os.close(opened)
