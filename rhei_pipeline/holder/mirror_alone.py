"""What is answered where the source cannot be opened: all that the mirror can answer alone."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from typing import Any

import pyarrow as pa

from rhei_pipeline.changes.consume import After, OnLost
from rhei_pipeline.errors import MirrorError, RheiError, SchemaError
from rhei_pipeline.model.change_feed import TableChanges
from rhei_pipeline.model.closing import Closing
from rhei_pipeline.model.forking import refuse_in_fork
from rhei_pipeline.model.query_limits import QueryClock
from rhei_pipeline.model.schema import Table, nearest
from rhei_pipeline.model.streaming import Begun
from rhei_pipeline.query import results, time_travel
from rhei_pipeline.query.completeness import letters_by_table, letters_read
from rhei_pipeline.query.freshness import Demand
from rhei_pipeline.query.router import Route
from rhei_pipeline.settings.model import Settings
from rhei_pipeline.sync.kept_history import find_mirrored
from rhei_pipeline.wiring.adoption import is_ours
from rhei_pipeline.wiring.engine import query_limits
from rhei_pipeline.wiring.mirror import OwnedMirror, is_made, open_mirror

#: For so long those who come share what is open; then the source is tried again, after the last.
_SHARED_SECONDS = 10.0


class MirrorLender:
    """Opens the mirror alone once for all who ask at once; the last of them closes it.

    Args:
        settings: The declaration.
        clock: Ends queries that take too long.
    """

    def __init__(self, settings: Settings, clock: QueryClock) -> None:
        self._settings, self._clock = settings, clock
        self._lock = threading.Lock()
        self._mirror: MirrorAlone | None = None
        self._users, self._opened_at = 0, 0.0

    @property
    def fault(self) -> RheiError | None:
        """Why the source could not be opened for those who ask now; None where nobody does."""
        mirror = self._mirror
        return None if mirror is None else mirror.fault

    @property
    def is_new(self) -> bool:
        """Whether what is open was opened just now."""
        return self._mirror is not None and time.monotonic() - self._opened_at < _SHARED_SECONDS

    @contextmanager
    def lent(self, fault: RheiError) -> Iterator["MirrorAlone"]:
        """Open the mirror for the length of the block, unless it is open; see `MirrorAlone`."""
        with self._lock:
            mirror = self._mirror
            if mirror is None:
                mirror = self._mirror = MirrorAlone(self._settings, fault, self._clock)
                self._opened_at = time.monotonic()
            self._users += 1
        try:
            yield mirror
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._mirror = None
                    mirror.close()

    def close(self) -> None:
        """End what is asked of it; safe to repeat."""
        self._clock.close()
        mirror = self._mirror
        if mirror is not None:
            mirror.close()


class MirrorAlone(Closing):
    """Answers from the mirror as it was synced last; a context manager.

    Args:
        settings: The declaration.
        fault: Why the source cannot be opened.
        clock: Ends queries that take too long.

    Raises:
        RheiError: The same fault: no mirror is here, it holds nothing, it is another pipeline's,
            or it cannot be opened.
        MirrorBusyError: Another process holds it.
    """

    def __init__(self, settings: Settings, fault: RheiError, clock: QueryClock) -> None:
        refuse_in_fork()
        self.fault = fault
        self._clock, self._limits = clock, query_limits(settings)
        self._dialect = settings.mirror.kind
        if not is_made(settings.mirror):
            raise fault
        update = {"lock_timeout_seconds": 0.0, "published": None}
        with ExitStack() as opened:
            try:
                self._mirror: OwnedMirror = open_mirror(settings.mirror.model_copy(update=update))
            except MirrorError as error:
                raise fault from error
            opened.callback(self._mirror.close)
            marks = self._mirror.ledger().watermarks.values()
            if not marks or not is_ours(settings, self._mirror):
                raise fault
            opened.pop_all()
        #: When the mirror last took something from its source.
        self.synced_at = max(mark.recorded_at for mark in marks)

    def close(self) -> None:
        """Close the mirror; safe to repeat."""
        self._mirror.close()

    def query(
        self, sql: str, params: Sequence[Any], _hint: str, _demand: Demand, begun: Begun | None
    ) -> pa.Table:
        """Answer a query in the mirror's SQL, as old as it is."""
        ledger = self._mirror.ledger()
        with self._clock.timing(begun) as timed:
            found = self._mirror.query(sql, params, timed.begun, self._limits.answer)
        reason = f"asked for, and the source cannot be opened: {self.fault}"
        labelled = results.labelled(found, Route("olap", reason), ledger)
        letters = letters_read(letters_by_table(self._mirror), sql, self._dialect)
        return results.lacking(labelled, letters)

    def as_of(self, table: str, instant: datetime) -> pa.Table:
        """Return a temporal table's rows as they were at an instant."""
        return time_travel.as_of(self._table(table), instant, self._mirror)

    def known_since(self, table: str) -> datetime:
        """Return when a temporal table's history begins."""
        return time_travel.known_since(self._table(table), self._mirror)

    def changes(self, table: str, after: After, on_lost: OnLost) -> TableChanges:
        """Return what changed in a temporal table since a position."""
        return time_travel.changes(self._table(table), after, self._mirror, on_lost)

    def diff(self, table: str, a: datetime, b: datetime) -> pa.Table:
        """Return what differs in a temporal table from one instant to another."""
        return time_travel.diff(self._table(table), a, b, self._mirror)

    def dead_letters(self, table: str | None) -> pa.Table:
        """Return the rows that could not be mirrored."""
        return self._mirror.dead_letters(None if table is None else self._table(table).name)

    def _table(self, name: str) -> Table:
        found = find_mirrored(name, self._mirror)
        if found is None:
            known = sorted(table.name for table in self._mirror.tables().values())
            raise SchemaError("it is not in the mirror", table=name, hint=nearest(name, known))
        return found
