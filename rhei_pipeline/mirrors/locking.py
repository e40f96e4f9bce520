"""A mirror's lock: a separate file that the writing process locks with `flock`.

A `flock` belongs to the open file, and ends with the process even if that is killed. Closing
another descriptor of the file does not release it, as it would a POSIX record lock.
"""

import fcntl
import io
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Self

from rhei_pipeline.errors import MirrorBusyError, MirrorError
from rhei_pipeline.model.forking import leave_to_parent
from rhei_pipeline.model.held_place import OPENED_AGAIN, HeldPlace

_log = logging.getLogger(__name__)

#: After so long, whoever waits is told for whom.
_TOLD_SECONDS = 1.0
_POLL_SECONDS, _AGAIN_SECONDS = 0.02, 0.2
#: More than any note takes: its longest part is the name of a socket.
_NOTE_BYTES = 1024
#: A subcommand, such as that of `rhei sync`; what is longer, or holds values, is not shown.
_WORD = re.compile(r"[a-z][a-z-]{0,20}")
_CLI = ("cli", "main.py")


@dataclass(frozen=True, slots=True)
class LockNote:
    """What the holder of a lock says of itself in the lock's file.

    Attributes:
        command: The program, and its subcommand; no other argument, which may hold values.
        since: When it took the lock.
        socket: Where it answers for the mirror; None as long as it does not.
        host: Its machine or container: another one numbers its own processes.
    """

    pid: int
    command: str = ""
    since: str = ""
    socket: str | None = None
    host: str = ""

    @classmethod
    def of_this_process(cls, socket: str | None = None) -> Self:
        """Return the note of this process, for a lock that it has taken just now."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(os.getpid(), command_of_this_process(), now, socket, os.uname().nodename)

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Return what a lock's file says; None where it says nothing that can be read.

        What it says is true as long as the lock is held: nobody clears it.
        """
        try:
            found = json.loads(path.read_text())
        except (OSError, ValueError):
            return None
        if isinstance(found, int):  # an earlier version wrote the number alone
            return cls(found)
        if not isinstance(found, dict):
            return None
        known = {field.name for field in fields(cls)}
        with suppress(TypeError):
            return cls(**{name: value for name, value in found.items() if name in known})
        return None

    @property
    def is_of_this_process(self) -> bool:
        """Whether it is this process that says so."""
        return self.pid == os.getpid() and self.host in ("", os.uname().nodename)

    @property
    def shown(self) -> str:
        """The process, and since when it holds the lock, behind words such as 'is held by'."""
        since = f" since {self.since}" if self.since else ""
        return f"{self._named}{since}"

    @property
    def holding(self) -> str:
        """The same as a sentence of its own."""
        holds = f"has held the mirror since {self.since}" if self.since else "holds the mirror"
        return f"{self._named} {holds}"

    @property
    def _named(self) -> str:
        return f"process {self.pid} ({self.command})" if self.command else f"process {self.pid}"

    def text(self) -> bytes:
        """Return what is written into the lock's file."""
        return json.dumps(asdict(self)).encode()


def command_of_this_process() -> str:
    """Return this process's program and subcommand; never an argument that may hold a value."""
    program, *arguments = sys.argv or [""]
    name = "rhei" if Path(program).parts[-2:] == _CLI else Path(program).name
    word = arguments[0] if arguments and _WORD.fullmatch(arguments[0]) else ""
    return f"{name} {word}".strip()


class Waiting:
    """A wait for a mirror: it is told of after a second, and ends in an error.

    Args:
        mirror: Its name in messages.
        seconds: How long to wait.
        who: Returns who is waited for, as far as that is known.
    """

    def __init__(self, mirror: str, seconds: float, who: Callable[[], LockNote | None]) -> None:
        self._mirror, self._who = mirror, who
        started = time.monotonic()
        self._until, self._tell_at = started + seconds, started + _TOLD_SECONDS
        self._is_told = False
        #: Why the last try failed, where that is no lock of ours.
        self.reason: MirrorBusyError | None = None

    def pause(self) -> None:
        """Wait for a moment.

        Raises:
            MirrorBusyError: The time is up.
        """
        now, reason = time.monotonic(), self.reason
        self.reason = None
        # A try may take long, so that it is told of at the end at the latest.
        if now > self._tell_at and not self._is_told:
            self._is_told = True
            _log.warning("waiting: %s", (reason or held(self._mirror, self._who())).message)
        if now > self._until:
            raise reason or held(self._mirror, self._who())
        # An opening that failed is more work than a look at a lock.
        time.sleep(_POLL_SECONDS if reason is None else _AGAIN_SECONDS)


class WriterLock:
    """Makes this object the only writer of a mirror, among all processes.

    Args:
        path: The lock file, created when it is missing. It is kept, and can be deleted while
            nothing writes.
        mirror: The mirror's name in messages.
        timeout_seconds: How long to wait for it.

    Raises:
        MirrorBusyError: The lock was held all that time, by this process or another one.
        MirrorError: The file there is somebody else's.
        OSError: The file cannot be created.
    """

    def __init__(self, path: Path, mirror: str, timeout_seconds: float) -> None:
        self._file = lockable(path)
        #: The lock's file, which is in or beside the mirror.
        self.place = HeldPlace(path)
        try:
            refuse_of_others(self._file, path)
            _wait_for(self._file.fileno(), path, mirror, timeout_seconds)
            _write(self._file.fileno(), LockNote.of_this_process())
        except BaseException:
            self._file.close()
            raise

    def release(self) -> None:
        """Release the lock; safe to repeat."""
        if not self._file.closed:
            # Closing alone would leave it to a fork that has the descriptor as well.
            fcntl.flock(self._file, fcntl.LOCK_UN)
            self._file.close()


def refuse_of_others(file: io.FileIO | IO[bytes], path: Path) -> None:
    """Refuse a file that no version of this package has written: a note would be written over it.

    Raises:
        MirrorError: Says so.
    """
    # A note of this size that cannot be read was cut off on the disk.
    if os.fstat(file.fileno()).st_size not in (0, _NOTE_BYTES) and LockNote.read(path) is None:
        raise of_others(path)


def lockable(path: Path) -> io.FileIO:
    """Open a file to lock it; it is created when it is missing.

    A fork does not keep it locked when its parent has ended.
    """
    opened = io.FileIO(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+")
    leave_to_parent(opened)
    return opened


def lock_of_file(mirror: Path) -> Path:
    """Return the lock file of a mirror in one file."""
    file = mirror.resolve()
    return file.with_name(f"{file.name}.lock")


def lock_of_directory(mirror: Path) -> Path:
    """Return the lock file of a mirror in a directory."""
    return mirror / "lock"


def is_locked(path: Path) -> bool:
    """Return whether somebody holds the lock of a file now; takes it for no longer than that."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # there is none, or it is not ours to see
        return False
    try:
        # Shared: two that look at the same time do not take one another for a holder.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def announce(path: Path, socket: str) -> None:
    """Note in the file of a lock that this process has just taken where it answers."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        _write(descriptor, LockNote.of_this_process(socket))
    finally:
        os.close(descriptor)


def _write(descriptor: int, note: LockNote) -> None:
    # In one write, and never shorter than before: nobody reads the half of a note.
    os.pwrite(descriptor, note.text().ljust(_NOTE_BYTES), 0)


def _wait_for(descriptor: int, path: Path, mirror: str, timeout: float) -> None:
    waiting = Waiting(mirror, timeout, lambda: LockNote.read(path))
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting.pause()
        else:
            return


def of_others(file: Path) -> MirrorError:
    """Return the error for a file that is in the way of one of the mirror's own."""
    return MirrorError(
        f"{str(file)!r} is somebody else's file, and the mirror needs one of this name",
        hint="move that file, or give the mirror another path",
    )


def left(mirror: str) -> MirrorError:
    """Return the error for a mirror that was deleted or replaced while it was open."""
    return MirrorError(
        f"mirror {mirror!r} was deleted or replaced while this process had it open",
        hint=OPENED_AGAIN,
    )


def held(mirror: str, by: LockNote | None) -> MirrorBusyError:
    """Return the error for a mirror that another process holds, or this one."""
    if by is not None and by.is_of_this_process:
        return MirrorBusyError(
            f"mirror {mirror!r} is already open in this process",
            hint="use the object that opened it, or close that first",
        )
    named = f": {by.shown}" if by else ""
    return MirrorBusyError(
        f"mirror {mirror!r} is held by another process{named}",
        hint="only one process can write a mirror: stop the other one first",
    )
