"""A small file beside a buffer that records whether the mirror has applied all of it.

Only one process can open RocksDB, and a sensor must not take it from a sync. The file is written
before the source may delete what was buffered, so it never reports "up to date" too early.
"""

import errno
import json
import os
from pathlib import Path

from rhei_pipeline.errors import (
    BufferDamagedError,
    BufferFullError,
    CaptureError,
    RheiError,
    TransientError,
)
from rhei_pipeline.model.durable import make_durable
from rhei_pipeline.model.stored_format import UNNUMBERED, too_new

#: What this version writes and reads.
FORMAT = 1
#: A full disk, a full quota, and a file that may not grow.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Confirmation:
    """The file, as the one process that holds the buffer writes it."""

    def __init__(self, buffer: Path, log_id: str) -> None:
        self._buffer, self._path = buffer, file_of(buffer)
        self._log_id = log_id
        self._recorded: int | None = None

    def record(self, unapplied: int) -> None:
        """Write how many events wait for the mirror; the file is on disk when this returns.

        Raises:
            BufferDamagedError: A directory stands in its place.
            BufferFullError: The disk that holds it is full.
            CaptureError: This user may not write it.
            TransientError: The disk fails.
        """
        if unapplied == self._recorded:
            return
        refuse_directory(self._buffer)
        try:
            self._write(unapplied)
        except OSError as error:
            raise _not_written(self._path, error) from error
        self._recorded = unapplied

    def _write(self, unapplied: int) -> None:
        temporary = self._path.with_suffix(".new")
        with temporary.open("w", encoding="utf-8") as file:
            form = {"format": FORMAT, "log": self._log_id, "unapplied": unapplied}
            json.dump(form, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)
        make_durable(self._path.parent)


def unapplied_events(buffer: Path) -> tuple[str, int] | None:
    """Return the log's name and how many of its events wait; None where nothing was buffered.

    Raises:
        BufferDamagedError: The file is not as it was written.
        CaptureError: A newer version of this package wrote it.
    """
    file = file_of(buffer)
    try:
        if not file.exists():
            return None
        form = json.loads(file.read_text("utf-8"))
        written = int(form.get("format", UNNUMBERED))
        if written <= FORMAT:
            return str(form["log"]), int(form["unapplied"])
    except PermissionError as error:
        raise shut(file) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(file, "cannot be read") from error
    raise CaptureError(
        too_new(repr(str(file)), written, FORMAT), hint="delete it: the next sync writes it again"
    )


def file_of(buffer: Path) -> Path:
    """Return the path of the file that belongs to a buffer's directory."""
    return buffer.with_name(f"{buffer.name}.confirmed.json")


def shut(path: Path) -> CaptureError:
    """Return the error for a file or directory of a buffer that this user may not use."""
    return CaptureError(
        f"buffer {str(path)!r} cannot be used: permission denied",
        hint="give this user access to it and to its folder, or correct capture.buffer.path",
    )


def refuse_directory(buffer: Path) -> None:
    """Refuse a directory in the place of the file, which could not be written there.

    Raises:
        BufferDamagedError: One stands there.
    """
    if file_of(buffer).is_dir():
        raise _damaged(file_of(buffer), "is a directory, and no file of the buffer's")


def _damaged(file: Path, what: str) -> BufferDamagedError:
    hint = "delete it: the next sync writes it again"
    return BufferDamagedError(f"{str(file)!r} {what}", hint=hint)


def _not_written(path: Path, error: OSError) -> RheiError:
    if isinstance(error, PermissionError):
        return shut(path)
    if error.errno in _FULL:
        return BufferFullError(
            f"the disk that holds {str(path)!r} is full", hint="free space, then try again"
        )
    return TransientError(
        f"the disk failed under {str(path)!r}: {error.strerror or type(error).__name__}",
        hint="check the disk and its mounts",
    )
