"""What is answered where the pipeline cannot be opened: all that the mirror can answer alone."""

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from rhei_pipeline.changes.consume import After, OnLost
from rhei_pipeline.errors import (
    MirrorError,
    RheiError,
    SchemaError,
    SourceBusyError,
    SourceError,
)
from rhei_pipeline.model.change_feed import TableChanges
from rhei_pipeline.model.closing import Closing
from rhei_pipeline.model.forking import refuse_in_fork
from rhei_pipeline.model.query_limits import QueryClock
from rhei_pipeline.model.reports import SyncStatus
from rhei_pipeline.model.schema import Mode, Table, nearest
from rhei_pipeline.model.schema_log import SchemaChange
from rhei_pipeline.model.streaming import Begun
from rhei_pipeline.query import results, time_travel
from rhei_pipeline.query.completeness import called_in, letters_by_table, told
from rhei_pipeline.query.freshness import Demand
from rhei_pipeline.query.router import Route
from rhei_pipeline.settings.model import Settings
from rhei_pipeline.sync.kept_history import find_mirrored
from rhei_pipeline.sync.schema_registry import Registry
from rhei_pipeline.sync.status import status_of_mirror
from rhei_pipeline.wiring.adoption import is_ours
from rhei_pipeline.wiring.declarations import plain_name
from rhei_pipeline.wiring.discovery import mirrored_before
from rhei_pipeline.wiring.engine import query_limits
from rhei_pipeline.wiring.mirror import OwnedMirror, is_made, open_mirror

_log = logging.getLogger(__name__)

#: For so long those who come share what is open; then the source is tried again, after the last.
_SHARED_SECONDS = 10.0


def what_is_shut(fault: RheiError) -> str:
    """Return what could not be opened: the source, or what takes its changes to the mirror."""
    is_source = isinstance(fault, SourceBusyError | SourceError)
    return f"the {'source' if is_source else 'pipeline'} cannot be opened"


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
        """Why the pipeline could not be opened for those who ask now; None where nobody does."""
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
        fault: Why the source, the buffer or the registry cannot be opened.
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
        self._dialect, self._default_mode = settings.mirror.kind, settings.mode
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
            path, mirror_id = settings.registry.path, self._mirror.mirror_id
            self._registry, self._unread = _registry(path, mirror_id, fault)
            self._plain, declared = plain_name(settings), mirrored_before(settings, self._registry)
            self._modes = {self._plain(of.name): of.mode for of in declared}
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
        reason = f"asked for, and {what_is_shut(self.fault)}: {self.fault}"
        labelled = results.labelled(found, Route("olap", reason), ledger)
        letters = letters_by_table(self._mirror.dead_letters())
        return told(
            labelled,
            sql,
            self._dialect,
            letters,
            self._not_followed,
            lambda: called_in(self._mirror.tables()),
        )

    def as_of(self, table: str, instant: datetime) -> pa.Table:
        """Return a temporal table's rows as they were at an instant."""
        found = self._table(table)
        return self._told(time_travel.as_of(found, instant, self._mirror), found)

    def known_since(self, table: str) -> datetime:
        """Return when a temporal table's history begins."""
        return time_travel.known_since(self._table(table), self._mirror)

    def changes(self, table: str, after: After, on_lost: OnLost) -> TableChanges:
        """Return what changed in a temporal table since a position."""
        found = self._table(table)
        changed = time_travel.changes(found, after, self._mirror, on_lost)
        return replace(changed, rows=self._told(changed.rows, found))

    def diff(self, table: str, a: datetime, b: datetime) -> pa.Table:
        """Return what differs in a temporal table from one instant to another."""
        found = self._table(table)
        return self._told(time_travel.diff(found, a, b, self._mirror), found)

    def _told(self, found: pa.Table, table: Table) -> pa.Table:
        """Add to an answer from one table what the mirror lacks of it."""
        return time_travel.told(found, table, self._mirror, self._not_followed)

    def dead_letters(self, table: str | None) -> pa.Table:
        """Return the rows that could not be mirrored."""
        return self._mirror.dead_letters(None if table is None else self._table(table).name)

    def schema_log(self, table: str | None) -> list[SchemaChange]:
        """Return the schema changes that the mirror has followed, of one table or of all."""
        if self._unread is not None:
            raise self._unread
        known = None if table is None else self._table(table).name
        return [each for each in self._registry.schema_log if known in (None, each.table)]

    def sync_status(self, _patience_seconds: float | None) -> SyncStatus:
        """Return what the mirror alone knows of the tables that were followed last."""
        ledger, behind = self._mirror.ledger(), self._not_followed
        left = {name: since for name, since in behind.items() if name in self._registry.left_at}
        followed = sorted({*ledger.watermarks, *ledger.copies} - left.keys())
        tables = status_of_mirror({name: self._mode(name) for name in followed}, self._mirror)
        left_out = behind.keys() & tables.keys()
        return SyncStatus(
            running=False,
            tables=tables | {name: replace(tables[name], error=_told(name)) for name in left_out},
            not_followed=left,
            unreadable=(
                f"how far the source is ahead is not known: {self.fault}; the last change in the"
                f" mirror is of {self.synced_at:%Y-%m-%d %H:%M:%S} UTC"
            ),
        )

    @property
    def _not_followed(self) -> Mapping[str, datetime]:
        """The tables that the last sync did not bring up to date any more, and since when."""
        return self._registry.not_followed

    def _mode(self, name: str) -> Mode:
        """Return a table's mode; of one that is copied for the first time, as it is declared."""
        found = find_mirrored(name, self._mirror)
        if found is not None:
            return found.mode
        return self._modes.get(self._plain(name), self._default_mode)

    def _table(self, name: str) -> Table:
        found = find_mirrored(name, self._mirror)
        if found is None:
            known = sorted(table.name for table in self._mirror.tables().values())
            raise SchemaError("it is not in the mirror", table=name, hint=nearest(name, known))
        return found


def _registry(path: Path, mirror_id: str, fault: RheiError) -> tuple[Registry, SchemaError | None]:
    """Return what the registry knows, and why that is nothing: rows are read without it."""
    try:
        return Registry(path, mirror_id), None
    except SchemaError as error:
        if str(error) != str(fault):  # that is told anyhow
            _log.warning("which tables are not followed any more is not known: %s", error)
        return Registry(None, mirror_id), error


def _told(table: str) -> str:
    """Return what is known of a table that the last sync left out, in place of its error."""
    hint = "'rhei sync' says why, once the source can be opened"
    return str(SchemaError("the last sync left it out", table=table, hint=hint))
