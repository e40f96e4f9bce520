"""A mirror's lock: a separate file that the writing process locks with `flock`.

A `flock` belongs to the open file, and ends with the process even if that is killed. Closing
another descriptor of the file does not release it, as it would a POSIX record lock.
"""

import fcntl
import os
import time
from pathlib import Path

from rhei_pipeline.errors import MirrorBusyError

_POLL_SECONDS = 0.05
#: More than the digits of any process id.
_PID_BYTES = 20


class WriterLock:
    """Makes this object the only writer of a mirror, among all processes.

    Args:
        path: The lock file, created when it is missing. It is kept, and can be deleted while
            nothing writes.
        mirror: The mirror's name in messages.
        timeout_seconds: How long to wait for it.

    Raises:
        MirrorBusyError: The lock was held all that time, by this process or another one.
        OSError: The file cannot be created.
    """

    def __init__(self, path: Path, mirror: str, timeout_seconds: float) -> None:
        self._descriptor: int | None = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _wait_for(self._descriptor, mirror, timeout_seconds)
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, str(os.getpid()).encode(), 0)
        except BaseException:
            os.close(self._descriptor)
            raise

    def release(self) -> None:
        """Release the lock; safe to repeat."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            # Closing alone would leave it to a forked child that has the descriptor as well.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


def _wait_for(descriptor: int, mirror: str, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise _held(mirror, os.pread(descriptor, _PID_BYTES, 0).decode()) from None
            time.sleep(_POLL_SECONDS)
        else:
            return


def _held(mirror: str, pid: str) -> MirrorBusyError:
    if pid == str(os.getpid()):
        return MirrorBusyError(
            f"mirror {mirror!r} is already open in this process",
            hint="use the object that opened it, or close that first",
        )
    number = f" ({pid})" if pid else ""
    return MirrorBusyError(
        f"mirror {mirror!r} is held by another process{number}",
        hint="only one process can write a mirror: stop the other one first",
    )
