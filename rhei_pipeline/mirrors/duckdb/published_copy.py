"""A copy of a DuckDB mirror that others can open read-only while the mirror is written."""

import logging
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path

import duckdb

from rhei_pipeline.errors import MirrorError
from rhei_pipeline.mirrors.duckdb import copy_program
from rhei_pipeline.mirrors.duckdb.housekeeping import drop_copies
from rhei_pipeline.mirrors.duckdb.remains import delete_remains
from rhei_pipeline.mirrors.publishing import PublishSchedule

_PARTIAL = ".partial"

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
        self._is_ours = False

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

    def publish(self, source: Path, *, unfinished: bool) -> None:
        """Copy a checkpointed database file atomically.

        Args:
            source: The mirror's file, which this process may have open.
            unfinished: It holds unfinished table copies; they are not published.

        Raises:
            MirrorError: The copy cannot be written.
        """
        partial = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex}{_PARTIAL}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            delete_remains(self.path, _PARTIAL)  # only the mirror's writer publishes
            if not self._is_ours:
                _refuse_database_of_others(self.path)
            _copy(source, partial, self.path)
            if unfinished:
                _leave_out_copies(partial)
            partial.replace(self.path)
            self._is_ours = True
        except (OSError, duckdb.Error) as error:
            with suppress(OSError):
                partial.unlink()
            reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
            raise MirrorError(
                f"the published copy {str(self.path)!r} cannot be written: {reason}",
                hint="fix this, or remove mirror.published; the mirror itself is not affected",
            ) from error
        self.pace.note_publication()


def _refuse_database_of_others(path: Path) -> None:
    """Refuse to replace a database of DuckDB that is no mirror's; what else it is, is seen later.

    Raises:
        OSError: It is one.
    """
    if not path.exists():
        return
    with suppress(duckdb.Error), duckdb.connect(str(path.absolute()), read_only=True) as opened:
        tables = {
            name for (name,) in opened.execute("select table_name from duckdb_tables()").fetchall()
        }
        if tables and "_rhei_mirror" not in tables:
            raise OSError("the database that is there is no copy of a mirror, and is left as it is")


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
