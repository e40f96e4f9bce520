"""The state of every declared table, read from source and mirror."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType

import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.capabilities import bytes_held_by, doubt_about, kept_since
from rhei_pipeline.errors import RheiError
from rhei_pipeline.model.blame import Blame
from rhei_pipeline.model.progress import Ledger
from rhei_pipeline.model.reports import Standing, TableStatus
from rhei_pipeline.model.schema import Mode, Table
from rhei_pipeline.protocols import (
    ChangeSource,
    MirrorRecords,
    SourcePositions,
)
from rhei_pipeline.sync.cycle_reports import age_of_oldest
from rhei_pipeline.sync.quarantine import told_reasons

_log = logging.getLogger(__name__)

#: Of a table whose changes since the last sync the source has no more, or not all of them.
_UNKNOWN_PLACE = (
    "the source no longer tells what changed since the last sync: the next one compares all rows"
)
#: Of a table that has columns, or types, which no sync has brought to the mirror yet.
_OTHER_SHAPE = "its columns have changed since the last sync: the next one brings what they hold"


class StatusCache:
    """What was last known of the tables, for those who do not wait, or cannot look now."""

    def __init__(self) -> None:
        self._known = Standing(MappingProxyType({}), MappingProxyType({}))
        self._known_at = time.monotonic()
        self._starting = threading.Lock()
        self._reading: threading.Thread | None = None

    def within(self, seconds: float, read: Callable[[], object]) -> Standing:
        """Return what is read; where that takes longer, what was last known.

        Reading goes on then, and who asks meanwhile waits for the same answer.
        """
        with self._starting:
            if self._reading is None or not self._reading.is_alive():
                work = partial(self._noting_errors, read)
                self._reading = threading.Thread(target=work, name="rhei-status", daemon=True)
                self._reading.start()
            reading = self._reading
        reading.join(seconds)
        is_news = not reading.is_alive() and self._known.unreadable is None
        return self._known if is_news else self.last()

    def _noting_errors(self, read: Callable[[], object]) -> None:
        try:
            read()
        except RheiError as error:
            self.note_unreadable(error)
        except Exception as error:  # noqa: BLE001  (shown, and logged)
            # Nobody waits for this thread; its text may quote a row, so the type has to do.
            _log.error("the status could not be read: %s", type(error).__name__)
            self.note_unreadable(RheiError(f"reading failed with {type(error).__name__}"))

    def keep(self, found: Standing) -> Standing:
        """Keep what was just read, and return it."""
        self._known, self._known_at = found, time.monotonic()
        return found

    def last(self) -> Standing:
        """Return what was last read, with its age."""
        return replace(self._known, age_seconds=time.monotonic() - self._known_at)

    def note_unreadable(self, error: RheiError) -> None:
        """Remember why source or mirror could not be read."""
        self._known = replace(self._known, unreadable=str(error))

    def note_readable(self) -> None:
        """Remember that both were read by a sync or a copy."""
        if self._known.unreadable is not None:
            self._known = replace(self._known, unreadable=None)


def read_status(
    declared: Mapping[str, Mode],
    tables: Mapping[str, Table],
    errors: Mapping[str, RheiError],
    source: ChangeSource,
    mirror: MirrorRecords,
    blame: Blame,
) -> Standing:
    """Look at one state of the source and at the mirror; changes nothing.

    Of the tables declared, with their modes, some are captured and others left out for an error.
    `blame` is left with the table at which another error came up.
    """
    with source.snapshot() as snapshot:
        ledger = mirror.ledger()
        open_letters = mirror.dead_letters()
        letters = Counter(open_letters["table_name"].to_pylist())
        kept, found = kept_since(mirror), {}
        for name, mode in declared.items():
            with blame.of(name):
                table, waiting = tables.get(name), letters[name]
                status = _status(name, mode, table, snapshot, ledger, waiting)
                reasons = _reasons(open_letters, name) if waiting else MappingProxyType({})
                found[name] = replace(
                    status, kept_since=kept.get(name), dead_letter_reasons=reasons
                )
    shown = {
        name: _left_out(status, errors[name]) if name in errors else status
        for name, status in found.items()
    }
    unpublished = mirror.not_published
    return Standing(
        MappingProxyType(shown),
        MappingProxyType(dict(bytes_held_by(source))),
        not_published=None if unpublished is None else str(unpublished),
    )


def with_changed_shapes(found: Standing, names: Collection[str]) -> Standing:
    """Return a standing in which nobody says how far these tables are behind.

    What was logged in a former shape may be applied, and the values of new columns not be read.
    """
    tables = {
        name: replace(found.tables[name], lag_events=None, lag_seconds=None, doubt=_OTHER_SHAPE)
        for name in names
        if name in found.tables and found.tables[name].error is None
    }
    return replace(found, tables=MappingProxyType({**found.tables, **tables})) if tables else found


def status_of_mirror(modes: Mapping[str, Mode], mirror: MirrorRecords) -> dict[str, TableStatus]:
    """Return the state of tables as their mirror alone has it: nobody measures their lag."""
    ledger, open_letters, kept = mirror.ledger(), mirror.dead_letters(), kept_since(mirror)
    letters = Counter(open_letters["table_name"].to_pylist())
    found = {}
    for name, mode in modes.items():
        mark, waiting = ledger.watermarks.get(name), letters[name]
        found[name] = TableStatus(
            name,
            mode.value,
            ledger.state(name),
            None if mark is None else mark.position.order,
            None,
            None,
            waiting,
            kept_since=kept.get(name),
            dead_letter_reasons=_reasons(open_letters, name) if waiting else MappingProxyType({}),
        )
    return found


def _left_out(status: TableStatus, error: RheiError) -> TableStatus:
    """Return the state of a table that no sync brings up to date: nobody measures its lag."""
    return replace(status, error=str(error), lag_events=None, lag_seconds=None)


def _reasons(letters: pa.Table, table: str) -> Mapping[str, int]:
    """Return the most frequent reasons of a table's dead letters, each with its number."""
    own = letters.filter(pc.equal(letters["table_name"], table))
    pairs = zip(own["column_name"].to_pylist(), own["reason"].to_pylist(), strict=True)
    return MappingProxyType(told_reasons(Counter(pairs)))


def _status(
    name: str,
    mode: Mode,
    table: Table | None,
    snapshot: SourcePositions,
    ledger: Ledger,
    letters: int,
) -> TableStatus:
    mark = ledger.watermarks.get(name)
    lag_events = lag_seconds = None
    doubt = None if table is None else doubt_about(snapshot, table)
    if table is not None and mark is not None:
        if snapshot.proves(table, mark.position):
            lag_events = snapshot.pending(table, mark.position)
            lag_seconds = age_of_oldest(table, snapshot, mark.position) if lag_events else 0.0
        else:
            doubt = _UNKNOWN_PLACE
    return TableStatus(
        name,
        mode.value,
        ledger.state(name),
        None if mark is None else mark.position.order,
        lag_events,
        lag_seconds,
        letters,
        doubt=doubt,
    )
