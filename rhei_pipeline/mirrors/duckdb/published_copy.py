"""A copy of a DuckDB mirror that others can open read-only while the mirror is written."""

import logging
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import duckdb

from rhei_pipeline.errors import MirrorError
from rhei_pipeline.mirrors.duckdb import copy_program
from rhei_pipeline.mirrors.duckdb.housekeeping import drop_copies
from rhei_pipeline.mirrors.duckdb.last_commit import forget_note, noted_mirror
from rhei_pipeline.mirrors.duckdb.remains import delete_remains
from rhei_pipeline.mirrors.locking import WriterLock, lock_of_file
from rhei_pipeline.mirrors.publishing import PublishSchedule
from rhei_pipeline.model.held_place import HeldPlace

_PARTIAL = ".partial"
#: What to do where a copy stands in the place of another mirror's.
_OWN_PLACE = (
    "give each pipeline a mirror.published.path of its own; if that mirror is there no more,"
    " delete the copy, and the next publication takes its place"
)

_log = logging.getLogger(__name__)


class PublishedCopy:
    """A file that is replaced as a whole: readers of the old one are not disturbed.

    Args:
        path: Where readers find it.
        interval_seconds: The minimum time between two copies, each of the whole file.
    """

    def __init__(self, path: Path, interval_seconds: float) -> None:
        self.path = path
        self.pace = PublishSchedule(interval_seconds)
        self._ours: HeldPlace | None = None

    def look_up(self, source: Path) -> None:
        """Count the interval from the copy that an earlier process wrote, if there is one."""
        if not self.path.exists():
            return
        copied_at, now = self.path.stat().st_mtime, time.time()
        # A clock that was put back must not hold up publishing until it has caught up, nor hide
        # what was changed since.
        self.pace.note_publication(max(now - copied_at, 0.0))
        changed = [file for file in (source, Path(f"{source}.wal")) if file.exists()]
        self.pace.behind = copied_at > now or any(
            file.stat().st_mtime > copied_at for file in changed
        )

    def publish(self, source: Path, mirror_id: str, *, unfinished: bool) -> None:
        """Copy a checkpointed database file atomically.

        Args:
            source: The mirror's file, which this process may have open.
            mirror_id: The mirror's id: its copy takes the place of no other mirror's.
            unfinished: It holds unfinished table copies; they are not published.

        Raises:
            MirrorError: The copy cannot be written, or something else stands there.
        """
        partial = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex}{_PARTIAL}")
        with _not_written(self.path, partial):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self._ours is None or self._ours.is_left:
                _refuse_others(self.path, mirror_id)
                _take_over(self.path, mirror_id)
            delete_remains(self.path, _PARTIAL)  # only the mirror's writer publishes
            _copy(source, partial, self.path)
            if unfinished:
                _leave_out_copies(partial)
            partial.replace(self.path)
            self._ours = HeldPlace(self.path)
        self.pace.note_publication()


def refuse_copy_of_others(mirror: Path, copy: Path, mirror_id: str) -> None:
    """Refuse to read a published copy in the place of a mirror that it is not of.

    Args:
        mirror: The mirror's file.
        copy: The copy.
        mirror_id: The id of the mirror that it was made of.

    Raises:
        MirrorError: Says so.
    """
    if noted_mirror(str(mirror)) not in (None, mirror_id):
        raise MirrorError(
            f"the published copy {str(copy)!r} is of another mirror than {str(mirror)!r}",
            hint=_OWN_PLACE,
        )


def refuse_unpublished(path: Path, mirror: Path) -> None:
    """Refuse a place where no copy of a mirror could be put; nothing is changed there.

    Raises:
        MirrorError: Something else stands there.
    """
    own = noted_mirror(str(mirror)) if mirror.exists() else ""
    with _not_written(path):
        copy_program.refuse_others(path)
        _refuse_others(path, own)


@contextmanager
def _not_written(path: Path, partial: Path | None = None) -> Iterator[None]:
    """Turn what fails in the block into the error of a copy; delete the part that was written."""
    try:
        yield
    except (OSError, duckdb.Error) as error:
        if partial is not None:
            with suppress(OSError):
                partial.unlink()
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise MirrorError(
            f"the published copy {str(path)!r} cannot be written: {reason}",
            hint="fix this, or remove mirror.published; the mirror itself is not affected",
        ) from error


def _refuse_others(path: Path, mirror_id: str | None) -> None:
    """Refuse to replace a mirror, or another one's copy; what is no database is seen later.

    Without an id, whose copy it is cannot be told.

    Raises:
        MirrorError: One of these stands there.
        OSError: It is a database of somebody else.
    """
    if not path.exists():
        return
    lock = lock_of_file(path)
    if lock.exists():
        hint = (
            "give mirror.published.path the path of a file that nothing else uses; if a mirror was"
            f" moved away from there, delete {str(lock)!r}"
        )
        raise _left_alone(path, "a mirror, and no copy of one", hint=hint)
    with suppress(duckdb.Error), duckdb.connect(str(path.absolute()), read_only=True) as opened:
        names = opened.execute("select table_name from duckdb_tables()").fetchall()
        if names and ("_rhei_mirror",) not in names:
            raise OSError("the database that is there is no copy of a mirror, and is left as it is")
        found = opened.execute("select id from _rhei_mirror").fetchone() if names else None
        if found is not None and mirror_id not in (None, *found):
            raise _left_alone(path, "a copy of another mirror", hint=_OWN_PLACE)


def _take_over(path: Path, mirror_id: str) -> None:
    """Delete what a mirror that was moved away has left beside the place of its copy.

    With the lock the copy would pass for a mirror; with the note, for one that lacks commits.

    Raises:
        MirrorBusyError: A process is about to make a mirror there.
    """
    lock = lock_of_file(path)
    if lock.exists():
        held = WriterLock(lock, str(path), 0)
        lock.unlink()
        held.release()
    if noted_mirror(str(path)) == mirror_id:
        forget_note(str(path))


def _left_alone(path: Path, what: str, *, hint: str) -> MirrorError:
    return MirrorError(
        f"the published copy {str(path)!r} cannot be written: the file that is there is {what},"
        " and is left as it is",
        hint=hint,
    )


def _copy(source: Path, target: Path, place: Path) -> None:
    """Copy in a separate process; see `copy_program`."""
    # Isolated and without packages: it starts in milliseconds, whatever the environment says.
    paths = map(str, (source, target, place))
    command = [sys.executable, "-I", "-S", copy_program.__file__, *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise OSError(said[-1] if said else f"copy_program ended with {done.returncode}")


def _leave_out_copies(path: Path) -> None:
    """Drop unfinished table copies; no other process knows this file yet."""
    with duckdb.connect(str(path.absolute())) as opened:
        drop_copies(opened)
        opened.execute("delete from _rhei_copies")
