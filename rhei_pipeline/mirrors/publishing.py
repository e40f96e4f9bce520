"""When a mirror is published for other engines, and why the last publication failed."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rhei_pipeline.errors import RheiError

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class PublishSchedule:
    """When to publish a mirror: after a change, and not more often than the interval.

    Attributes:
        interval_seconds: The minimum time between two publications.
        behind: Whether the mirror has changed since it was published.
        trouble: Why the last publication failed; None once one has succeeded.
    """

    interval_seconds: float
    behind: bool = True
    trouble: RheiError | None = field(default=None, init=False)
    _published_at: float | None = field(default=None, init=False)

    @property
    def due(self) -> bool:
        """Whether the mirror has changed and the interval has passed."""
        if not self.behind or self._published_at is None:
            return self.behind
        return time.monotonic() - self._published_at >= self.interval_seconds

    def note_change(self) -> None:
        """Record that the mirror has changed since it was published."""
        self.behind = True

    @contextmanager
    def noting_trouble(self) -> Iterator[None]:
        """Record and log an error of a publication; earlier commits are not affected."""
        try:
            yield
        except RheiError as error:
            if str(error) != str(self.trouble):
                _log.error("%s", error)
            self.trouble = error
        else:
            self.trouble = None

    def note_publication(self, age_seconds: float = 0.0) -> None:
        """Record that the mirror was published this many seconds ago."""
        self._published_at, self.behind = time.monotonic() - age_seconds, False
