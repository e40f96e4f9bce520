"""What a process has open may be deleted or replaced; what it writes then is nobody's."""

import os
from pathlib import Path

#: What to do where that has happened.
OPENED_AGAIN = (
    "start this process again: it opens what is there now, and copies the tables where nothing is"
)


class HeldPlace:
    """The file or directory that stood at a path when it was opened."""

    def __init__(self, path: Path | str) -> None:
        self._path = path
        self._found: tuple[int, int] | None = None
        self._found = self._look()

    def _look(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._path)  # noqa: PTH116  (asked in every cycle)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError:  # the disk fails: whoever reads or writes there says so
            return self._found
        return found.st_dev, found.st_ino

    @property
    def is_left(self) -> bool:
        """Whether another one stands there now, or none."""
        return self._look() != self._found
