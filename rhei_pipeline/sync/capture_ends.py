"""Ends the capture of tables that are followed no more."""

import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from rhei_pipeline.capabilities import end_capture
from rhei_pipeline.protocols import ChangeSource
from rhei_pipeline.sync.schema_registry import Registry

_log = logging.getLogger(__name__)

#: A table that leaves the declaration is captured on for so long: put back until then, it goes on
#: without a gap, as does a mirror that was not seen for as long.
KEEP_CAPTURE_FOR = timedelta(days=7)


class CaptureEnds:
    """Ends captures, and records which tables are followed no more, and since when.

    Args:
        source: What captures.
        registry: Where it is recorded.
    """

    def __init__(self, source: ChangeSource, registry: Registry) -> None:
        self._source = source
        self._registry = registry
        self._ended: set[str] = set()

    def end(self, name: str) -> None:
        """End the capture of one table now."""
        end_capture(self._source, name)

    def note(self, not_followed: Mapping[str, datetime]) -> None:
        """Record the tables of the mirror that are followed no more."""
        self._registry.note_not_followed(not_followed, datetime.now(UTC))

    def end_old(self, not_followed: Mapping[str, datetime]) -> None:
        """Record the same, and end the capture of those that left long ago."""
        now = datetime.now(UTC)
        self._registry.note_not_followed(not_followed, now)
        for name, left in self._registry.left_at.items():
            if now - left > KEEP_CAPTURE_FOR and name not in self._ended:
                _log.warning(
                    "table %r: it left the declaration on %s; its capture ends", name, left.date()
                )
                end_capture(self._source, name)
                self._ended.add(name)
