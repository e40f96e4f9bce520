"""Turns: the mirror belongs to whoever has the turn, and the holder waits until it is let go.

Who opens a mirror has the turn while it opens it. Who needs the mirror for a moment keeps the turn
all the while: the holder closes the mirror, and opens it again once the turn is free. The turn is
a `flock`, so it ends with its process, however that ends.
"""

from pathlib import Path

from rhei_pipeline.errors import MirrorBusyError
from rhei_pipeline.mirrors.locking import Waiting, WriterLock
from rhei_pipeline.model.closing import Closing


class Turn(Closing):
    """The turn at a mirror; a context manager, which lets it go.

    Args:
        lock: The mirror's lock file; that of the turn is beside it.
        mirror: The mirror's name in messages.
        waiting: Is asked to wait while another process has the turn; left out, nobody waits.

    Raises:
        MirrorBusyError: Another process had it all that time.
    """

    def __init__(self, lock: Path, mirror: str, waiting: Waiting | None = None) -> None:
        path = turn_file(lock)
        while True:
            try:
                self._lock = WriterLock(path, mirror, 0)
            except MirrorBusyError:
                if waiting is None:
                    raise
                waiting.pause()
            else:
                return

    def close(self) -> None:
        """Let it go; safe to repeat."""
        self._lock.release()


def turn_file(lock: Path) -> Path:
    """Return the file of a mirror's turn."""
    return lock.with_name(f"{lock.name}.turn")
