"""Turns: the mirror belongs to whoever has the turn, and the holder waits until it is let go.

Who opens a mirror has the turn while it opens it. Who needs the mirror for a moment keeps the turn
all the while: the holder closes the mirror, and opens it again once the turn is free. The turn is
a `flock`, so it ends with its process, however that ends.
"""

import os
from pathlib import Path

from rhei_pipeline.errors import MirrorBusyError, MirrorError
from rhei_pipeline.mirrors.locking import Waiting, WriterLock, refuse_of_others
from rhei_pipeline.model.closing import Closing


class TurnShutError(MirrorError):
    """The file of a turn is not this user's to lock, or its folder cannot be made."""


class Turn(Closing):
    """The turn at a mirror; a context manager, which lets it go.

    Args:
        lock: The mirror's lock file, whose folder is made; that of the turn is beside it.
        mirror: The mirror's name in messages.
        waiting: Is asked to wait while another process has the turn; left out, nobody waits.

    Raises:
        MirrorBusyError: Another process had it all that time.
        TurnShutError: The system refuses its file.
    """

    def __init__(self, lock: Path, mirror: str, waiting: Waiting | None = None) -> None:
        path = turn_file(lock)
        while True:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._lock = WriterLock(path, mirror, 0)
            except OSError as error:
                raise _shut(path, mirror, error) from error
            except MirrorBusyError:
                if waiting is None:
                    raise
                waiting.pause()
            else:
                return

    def close(self) -> None:
        """Let it go; safe to repeat."""
        self._lock.release()


def refuse_turn(lock: Path) -> None:
    """Refuse a file of somebody else in the place of the turn's; it is neither made nor locked.

    Raises:
        MirrorError: It is one.
    """
    path = turn_file(lock)
    # One that cannot be opened keeps nobody from opening the mirror.
    if path.is_file() and os.access(path, os.R_OK):
        with path.open("rb") as file:
            refuse_of_others(file, path)


def _shut(path: Path, mirror: str, error: OSError) -> TurnShutError:
    message = f"mirror {mirror!r} cannot be used: its file {str(path)!r}: {error.strerror}"
    if not isinstance(error, PermissionError):
        return TurnShutError(message)
    return TurnShutError(message, hint="give this user write access to it and to its folder")


def turn_file(lock: Path) -> Path:
    """Return the file of a mirror's turn."""
    return lock.with_name(f"{lock.name}.turn")
