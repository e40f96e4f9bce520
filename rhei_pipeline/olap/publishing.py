"""A copy of a DuckDB mirror that anybody may open read-only while the mirror is written."""

import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from rhei_pipeline.errors import MirrorError

_PARTIAL = ".partial"


@dataclass(slots=True)
class PublishedCopy:
    """A file that is replaced whole: who has the old one open goes on reading it.

    Attributes:
        path: Where readers find it.
        interval_seconds: The least time between two copies, each of which is of the whole file.
    """

    path: Path
    interval_seconds: float
    _published_at: float | None = field(default=None, init=False)
    _behind: bool = field(default=True, init=False)

    @property
    def due(self) -> bool:
        """Whether there is something new, and the time has come."""
        if not self._behind or self._published_at is None:
            return self._behind
        return time.monotonic() - self._published_at >= self.interval_seconds

    @property
    def behind(self) -> bool:
        """Whether the mirror has changed since it was copied."""
        return self._behind

    def note_change(self) -> None:
        """Remember that the mirror is not as it was copied."""
        self._behind = True

    def publish(self, source: Path) -> None:
        """Copy a database file that is checkpointed and at rest; the copy appears whole or not.

        Raises:
            MirrorError: The copy cannot be written.
        """
        partial = self.path.with_name(self.path.name + _PARTIAL)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, partial)
            with partial.open("rb") as copied:
                os.fsync(copied.fileno())
            partial.replace(self.path)
        except OSError as error:
            raise MirrorError(
                f"the published copy {str(self.path)!r} cannot be written: {error.strerror}",
                hint="mend this, or leave out mirror.published; the mirror itself is in order",
            ) from error
        self._published_at, self._behind = time.monotonic(), False
