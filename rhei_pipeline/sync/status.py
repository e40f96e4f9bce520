"""The state of every declared table, read from source and mirror."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.capabilities import bytes_held_by, doubt_about, kept_since, rescan_due
from rhei_pipeline.errors import RheiError
from rhei_pipeline.model.blame import Blame
from rhei_pipeline.model.progress import Ledger, Watermark
from rhei_pipeline.model.reports import Standing, TableStatus
from rhei_pipeline.model.schema import Mode, Table
from rhei_pipeline.protocols import (
    ChangeSource,
    MirrorRecords,
    Rescan,
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
#: Of a table that is polled, once it is to be compared: what was deleted, no poll shows.
_COMPARISON_DUE = (
    "a comparison of all its rows is due, which alone shows what was deleted: the next sync does it"
)


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


@dataclass(frozen=True, slots=True)
class DeclaredTable:
    """What is known of a declared table before source and mirror are asked.

    Attributes:
        mode: The mode in which it is mirrored.
        table: The table as it is captured; None where it is left out.
        error: Why it is left out.
        is_reshaped: Whether no sync has brought the columns that it has now.
        is_uncaptured: Whether its capture is not as it was made.
    """

    mode: Mode
    table: Table | None
    error: RheiError | None = None
    is_reshaped: bool = False
    is_uncaptured: bool = False


def read_status(
    declared: Mapping[str, DeclaredTable], source: ChangeSource, mirror: MirrorRecords, blame: Blame
) -> Standing:
    """Look at one state of the source and at the mirror; changes nothing.

    `blame` is left with the table at which another error than its own came up.
    """
    with source.snapshot() as snapshot:
        ledger = mirror.ledger()
        open_letters = mirror.dead_letters()
        letters = Counter(open_letters["table_name"].to_pylist())
        kept, found = kept_since(mirror), {}
        for name, of in declared.items():
            with blame.of(name):
                waiting = letters[name]
                reasons = _reasons(open_letters, name) if waiting else MappingProxyType({})
                status = _status(name, of, snapshot, ledger, waiting)
                found[name] = replace(
                    status, kept_since=kept.get(name), dead_letter_reasons=reasons
                )
    unpublished = mirror.not_published
    return Standing(
        MappingProxyType(found),
        MappingProxyType(dict(bytes_held_by(source))),
        not_published=None if unpublished is None else str(unpublished),
    )


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


def _reasons(letters: pa.Table, table: str) -> Mapping[str, int]:
    """Return the most frequent reasons of a table's dead letters, each with its number."""
    own = letters.filter(pc.equal(letters["table_name"], table))
    pairs = zip(own["column_name"].to_pylist(), own["reason"].to_pylist(), strict=True)
    return MappingProxyType(told_reasons(Counter(pairs)))


def _status(
    name: str, declared: DeclaredTable, snapshot: SourcePositions, ledger: Ledger, letters: int
) -> TableStatus:
    mark, error = ledger.watermarks.get(name), declared.error
    lag = _Lag() if declared.table is None else _lag(declared, declared.table, snapshot, mark)
    return TableStatus(
        name,
        declared.mode.value,
        ledger.state(name),
        None if mark is None else mark.position.order,
        # Of a table that is left out nobody measures it: no sync brings it up to date.
        lag.events if error is None else None,
        lag.seconds if error is None else None,
        letters,
        error=None if error is None else str(error),
        doubt=lag.doubt,
    )


class _Lag(NamedTuple):
    """How far a table is behind; None where nobody can tell, and why that is doubted."""

    events: int | None = None
    seconds: float | None = None
    doubt: str | None = None


def _lag(
    declared: DeclaredTable, table: Table, snapshot: SourcePositions, mark: Watermark | None
) -> _Lag:
    doubt = doubt_about(snapshot, table)
    if mark is None:
        return _Lag(doubt=doubt)
    if declared.is_reshaped:  # its log may have been applied in the shape of before
        return _Lag(doubt=_OTHER_SHAPE)
    if declared.is_uncaptured or not snapshot.proves(table, mark.position):
        return _Lag(doubt=_UNKNOWN_PLACE)
    events = snapshot.pending(table, mark.position)
    if rescan_due(snapshot, table, mark.position) is Rescan.ALL:
        doubt = _COMPARISON_DUE
        if not events:
            return _Lag(doubt=doubt)
    seconds = age_of_oldest(table, snapshot, mark.position) if events else 0.0
    return _Lag(events, seconds, doubt)


def lost_tables(standing: Standing) -> list[str]:
    """Return the followed tables of which nobody knows how far they are behind, until a sync."""
    return [
        name
        for name, of in standing.tables.items()
        if of.watermark is not None and of.lag_events is None and of.error is None
    ]
