"""Ends the read of a DuckDB file as soon as a process wants to write it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rhei_pipeline.errors import QueryError
from rhei_pipeline.mirrors.locking import LockNote, held, is_locked

#: How soon a read of the file makes way for a process that wants to write.
_LOOK_SECONDS = 0.05


class Way:
    """Ends the read of a file once a process wants to write."""

    def __init__(self, lock: Path) -> None:
        self._lock, self._over = lock, threading.Event()
        self._cancel: Callable[[], None] | None = None
        self.is_wanted = False

    def begun(self, cancel: Callable[[], None]) -> None:
        """Take what ends it."""
        self._cancel = cancel

    def watch(self) -> None:
        """Look until it is over; its end is asked for again where an engine has not heard it."""
        while not self._over.wait(_LOOK_SECONDS):
            if self._cancel is not None and is_locked(self._lock):
                self.is_wanted = True
                self._cancel()

    def over(self) -> None:
        """Stop looking."""
        self._over.set()


@contextmanager
def making_way(lock: Path | None, mirror: str) -> Iterator[Way]:
    """Watch over the read of a file for the length of the block.

    Raises:
        MirrorBusyError: The read was ended, as a process wants to write.
    """
    if lock is None:
        yield Way(Path())
        return
    way = Way(lock)
    threading.Thread(target=way.watch, name="rhei-reading", daemon=True).start()
    try:
        yield way
    except QueryError:
        if way.is_wanted:
            raise held(mirror, LockNote.read(lock)) from None
        raise
    finally:
        way.over()
