"""A file beside a DuckDB mirror that records what it held after its last commit.

DuckDB keeps what was committed since its last checkpoint in a log of its own. Where that is missing
or cut off, DuckDB opens an older state without a word; this file tells the two apart. Its form is
a part of the mirror's format, whose number is in the mirror and is read before.
"""

import json
import os
import re
from contextlib import suppress
from pathlib import Path

from rhei_pipeline.errors import MirrorDamagedError, MirrorError
from rhei_pipeline.model.progress import Ledger

_SUFFIX = ".last"
_SIZE = 128
#: A mirror's id, in what is noted of it.
_ID = re.compile(r'"([^"]+)"')


class LastCommit:
    """A note of a few bytes, written without waiting for the disk: losing it is harmless.

    Args:
        path: The DuckDB file's; the note belongs to the file itself, not to a link to it.
        writing: Whether commits are to be noted, too.

    Raises:
        MirrorError: The note cannot be opened.
    """

    def __init__(self, path: str, *, writing: bool) -> None:
        self._path = path
        note = os.path.realpath(path) + _SUFFIX
        try:
            self._file = os.open(note, os.O_RDWR | os.O_CREAT if writing else os.O_RDONLY, 0o644)
        except OSError as error:
            raise MirrorError(
                f"mirror {path!r} cannot be used: its file {note!r}: {error.strerror or error}",
                hint=f"give this user write access to {note!r}, or delete it",
            ) from error

    def blank(self, mirror_id: str) -> None:
        """Leave nothing but whose note it is: what this process does last may be to commit."""
        self._write(f"- {json.dumps(mirror_id)}")

    def note(self, mirror_id: str, ledger: Ledger) -> None:
        """Record what was committed."""
        self._write(_note(mirror_id, ledger))

    def lost(self, mirror_id: str, ledger: Ledger) -> MirrorDamagedError | None:
        """Return the error for a file that lacks commits it had; None if it has them all."""
        noted = os.pread(self._file, _SIZE, 0).decode(errors="replace").strip()
        if not noted.startswith(json.dumps(mirror_id)) or noted == _note(mirror_id, ledger):
            return None
        log = f"{self._path}.wal"
        return MirrorDamagedError(
            f"mirror {self._path!r} is older than it was: its log {log!r} is missing or damaged, "
            f"or "
            "an older file was restored",
            file=log,
            hint="restore what is missing, or run 'rhei sync', which brings it up to date",
        )

    def close(self) -> None:
        """Close the file; safe to repeat."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def _write(self, note: str) -> None:
        with suppress(OSError):
            os.pwrite(self._file, note.ljust(_SIZE).encode(), 0)


def noted(path: str) -> bool:
    """Return whether there is a note beside a mirror."""
    return os.path.exists(os.path.realpath(path) + _SUFFIX)  # noqa: PTH110  (a link is followed)


def noted_mirror(path: str) -> str | None:
    """Return the id of the mirror that is written at a path; None where that is not known."""
    try:
        note = Path(os.path.realpath(path) + _SUFFIX).read_text(errors="replace")
    except OSError:
        return None
    found = _ID.search(note)
    return found and found[1]


def forget_note(path: str) -> None:
    """Delete the note beside a mirror."""
    Path(os.path.realpath(path) + _SUFFIX).unlink()


def _note(mirror_id: str, ledger: Ledger) -> str:
    marks = ledger.watermarks.values()
    # Watermarks never go back, so their sum tells one state from all others.
    return f"{json.dumps(mirror_id)} {len(marks)} {sum(mark.position.order for mark in marks)}"
