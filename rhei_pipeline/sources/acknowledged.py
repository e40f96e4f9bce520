"""The positions that a mirror has last reported to its source."""

import time
from collections.abc import Mapping

from rhei_pipeline.model.changes import Position
from rhei_pipeline.model.progress import changed_positions

#: A source takes a mirror for gone after a week: one that is idle says daily that it is not.
SAY_AGAIN_SECONDS = 24 * 3600.0


class Acknowledged:
    """The last reported positions, so that only changes are reported, and all once a day."""

    def __init__(self) -> None:
        self._acknowledged: dict[str, Position] = {}
        self._told_all_at = time.monotonic()

    def news(self, needed_from: Mapping[str, Position]) -> dict[str, Position]:
        """Return those of a mirror's positions that must be reported."""
        if self._is_due():
            return dict(needed_from)
        return changed_positions(needed_from, self._acknowledged)

    def note(self, positions: Mapping[str, Position]) -> None:
        """Record what was reported."""
        self._acknowledged |= positions
        if self._is_due():
            self._told_all_at = time.monotonic()

    def clear(self) -> None:
        """Report everything again: the source may be another one."""
        self._acknowledged.clear()

    def _is_due(self) -> bool:
        return time.monotonic() - self._told_all_at >= SAY_AGAIN_SECONDS
