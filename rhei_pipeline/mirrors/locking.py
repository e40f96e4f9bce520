"""A mirror's lock: a file of its own that the one writing process holds by `flock`.

`flock` belongs to the open file, and ends with the process however it may end. It is not given up
by closing another descriptor of the file, as POSIX record locks are.
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
    """Makes this process, and in it this object, the only writer of a mirror.

    Args:
        path: The lock's file, created when it is missing; it stays, and may be deleted while
            nobody writes.
        mirror: The mirror's name in messages.
        timeout_seconds: How long to wait for it.

    Raises:
        MirrorBusyError: Somebody else held it all that time; says whether it is this process.
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
        """Let others write; safe to repeat."""
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
            f"mirror {mirror!r} is open in this process already",
            hint="use the object that has it open, or close that first",
        )
    number = f" ({pid})" if pid else ""
    return MirrorBusyError(
        f"mirror {mirror!r} is held by another process{number}",
        hint="one process writes a mirror at a time: let the other one end first",
    )
