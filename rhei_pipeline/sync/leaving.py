"""Tables that are followed no more: their capture ends, at once where asked for, else in time."""

import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

from rhei_pipeline.capabilities import end_capture
from rhei_pipeline.errors import PermanentError
from rhei_pipeline.sync.context import PipelineContext
from rhei_pipeline.sync.kept_history import not_followed
from rhei_pipeline.sync.naming import find_known

_log = logging.getLogger(__name__)

#: A table that leaves the declaration is captured on for so long: put back until then, it goes on
#: without a gap, as does a mirror that was not seen for as long.
KEEP_CAPTURE_FOR = timedelta(days=7)


class LeavingTables:
    """Ends the capture of tables.

    Args:
        context: What the pipeline works on.
    """

    def __init__(self, context: PipelineContext) -> None:
        self._lock, self._mirror = context.lock, context.mirror
        self._source, self._registry = context.source, context.registry
        self._watch = context.watch
        self._ended: set[str] = set()

    def _not_followed(self) -> Mapping[str, datetime]:
        return not_followed(self._mirror.ledger(), self._watch.declared.keys())

    def name_of(self, name: str) -> str:
        """Return the source's name of a table that is declared, or was mirrored once.

        Raises:
            SchemaError: It is neither.
        """
        return find_known(name, {*self._watch.declared, *self._not_followed()})

    def leave(self, name: str, sync: Callable[[], object], forget: Callable[[], None]) -> None:
        """Follow a table no more: what is pending is applied, and its capture ends.

        Args:
            name: A table, by the source's name for it.
            sync: Applies what is pending; where it fails for good, the table goes without.
            forget: Called after that: from then on nobody finds the table.
        """
        with self._lock:
            is_followed = name in self._watch.declared
            if is_followed:
                try:
                    sync()
                except PermanentError as error:
                    _log.warning("table %r leaves with changes not applied: %s", name, error)
            forget()
            if is_followed:
                self._watch.leave(name)
            self.end_unless_followed(name)

    def end_unless_followed(self, name: str) -> None:
        """End the capture of a table that is not to be mirrored."""
        if name not in self._watch.declared:
            end_capture(self._source, name)
            self._registry.note_left(self._not_followed().keys(), datetime.now(UTC))

    def end_old(self) -> None:
        """Note which tables have left, and end the capture of those that left long ago.

        One that is declared and left out for a fault has not left: its changes are awaited.
        """
        now = datetime.now(UTC)
        self._registry.note_left(self._not_followed().keys(), now)
        for name, left in self._registry.left_at.items():
            if now - left > KEEP_CAPTURE_FOR and name not in self._ended:
                _log.warning(
                    "table %r: it left the declaration on %s; its capture ends", name, left.date()
                )
                end_capture(self._source, name)
                self._ended.add(name)
