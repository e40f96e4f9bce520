"""When a mirror is published for readers that are not ours, and what hinders it."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rhei_pipeline.errors import RheiError

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class PublishSchedule:
    """When to publish what a mirror holds: after a change, and not more often than asked.

    Attributes:
        interval_seconds: The least time between two publications.
        behind: Whether the mirror has changed since it was published.
        trouble: Why the last publication failed; None once one has succeeded.
    """

    interval_seconds: float
    behind: bool = True
    trouble: RheiError | None = field(default=None, init=False)
    _published_at: float | None = field(default=None, init=False)

    @property
    def due(self) -> bool:
        """Whether there is something new, and the time has come."""
        if not self.behind or self._published_at is None:
            return self.behind
        return time.monotonic() - self._published_at >= self.interval_seconds

    def note_change(self) -> None:
        """Remember that the mirror is not as it was published."""
        self.behind = True

    @contextmanager
    def noting_trouble(self) -> Iterator[None]:
        """Keep and log what hinders a publication: what was committed before it stays committed."""
        try:
            yield
        except RheiError as error:
            if str(error) != str(self.trouble):
                _log.error("%s", error)
            self.trouble = error
        else:
            self.trouble = None

    def note_publication(self, age_seconds: float = 0.0) -> None:
        """Remember that the mirror was published as it is, so long ago."""
        self._published_at, self.behind = time.monotonic() - age_seconds, False
