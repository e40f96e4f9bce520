"""The record of the order in which a temporal table's versions came into the mirror.

A version's instants are the source's; they do not tell when the mirror got it. A transaction that
ran long, a clock that was set back, or a column of timestamps that is polled, bring versions that
are older than others which the mirror has had for long. So each commit whose versions do not all
lie after the newest instant of before is *late*: it gets a number, and its late versions are noted
beside the table, in its feed. Of all other versions the instants alone tell whether a consumer that
stands at a position has seen them, and nothing is noted.

Two numbers thus name a state: how many late commits there were, and the newest instant. Every
commit that changes the table's history makes one of them grow.

The feed also notes who wrote: each process that does, from which state on. A mirror that was put
back from a backup and then goes on does not pass for the one that a consumer has read.
"""

import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from rhei_pipeline.model.changes import Versions
from rhei_pipeline.model.feed_state import KIND, LATE, LINEAGE, FeedEntry
from rhei_pipeline.model.schema import VALID_FROM, VALID_TO, FormerNames, Mode, Table, TableSchema
from rhei_pipeline.model.type_names import INSTANT


@dataclass(frozen=True, slots=True)
class FeedEnd:
    """The state that a table's feed has come to.

    Attributes:
        late: How many late commits there were.
        newest: The latest instant of all versions, in microseconds; None: there is none.
        lineage: Who writes it, where that is noted already; empty: it is to be noted.
    """

    late: int = 0
    newest: int | None = None
    lineage: str = ""


def feed_schema(table: TableSchema) -> pa.Schema:
    """Return the columns of a table's feed."""
    return pa.schema(
        [
            (KIND, pa.string()),
            (LATE, pa.int64()),
            (LINEAGE, pa.string()),
            (VALID_FROM, INSTANT),
            (VALID_TO, INSTANT),
            *table.arrow_key,
        ]
    )


@dataclass(slots=True)
class Recording:
    """What one transaction adds to a table's feed.

    Attributes:
        table: The table's schema.
        base: The state before the transaction.
    """

    table: TableSchema
    base: FeedEnd
    _newest: int | None = None
    _lineage: str = ""
    _is_late: bool = field(default=False)
    _is_lost: bool = field(default=False)

    def __post_init__(self) -> None:
        self._newest, self._lineage = self.base.newest, self.base.lineage

    def end(self) -> FeedEnd:
        """Return the state after the transaction."""
        return FeedEnd(self.base.late + self._is_late, self._newest, self._lineage)

    def born(self, at: int) -> pa.Table:
        """Return the entry of a table that was created."""
        self._newest = at
        return self._begin(FeedEntry.BORN, self.base.late)

    def lose(self) -> pa.Table:
        """Return the entry after which all earlier positions are void."""
        if self._is_lost:
            return feed_schema(self.table).empty_table()
        self._is_lost = self._is_late = True
        return self._begin(FeedEntry.LOST, self.base.late + 1)

    def note(self, versions: Versions) -> pa.Table:
        """Return the entries for versions that end and begin; to be added before the commit."""
        opened, ended = versions.openings, versions.closings
        noted = [feed_schema(self.table).empty_table()]
        if not opened.num_rows and not ended.num_rows:
            return noted[0]
        if not self._lineage:
            noted.append(self._begin(FeedEntry.BEGUN, self.base.late, self.base.newest))
        began, stopped = _microseconds(opened, VALID_FROM), _microseconds(ended, VALID_TO)
        within = _microseconds(opened, VALID_TO)
        floor = self.base.newest
        if floor is not None:
            noted.append(self._late(FeedEntry.OPENED, opened, began <= floor))
            noted.append(self._late(FeedEntry.ENDED, ended, stopped <= floor))
            # Such a version has the key and the beginning of the one that follows it: where a
            # reader may have seen it alone, nothing would tell the two apart.
            if ((stopped <= floor) & (stopped == _microseconds(ended, VALID_FROM))).any():
                noted.append(self.lose())
        self._newest = max(
            int(instants.max())
            for instants in (began, stopped, within, _one(self._newest))
            if len(instants)
        )
        return pa.concat_tables(noted)

    def _late(self, kind: FeedEntry, versions: pa.Table, late: np.ndarray) -> pa.Table:
        count = int(late.sum())
        if not count:
            return feed_schema(self.table).empty_table()
        self._is_late = True
        rows = versions.filter(pa.array(late))
        until = rows[VALID_TO] if kind is FeedEntry.ENDED else pa.nulls(count, INSTANT)
        columns = {
            KIND: pa.repeat(kind.value, count),
            LATE: pa.repeat(pa.scalar(self.base.late + 1, pa.int64()), count),
            LINEAGE: pa.nulls(count, pa.string()),
            VALID_FROM: rows[VALID_FROM],
            VALID_TO: until,
            **{name: rows[name] for name in self.table.primary_key},
        }
        return pa.table(columns).cast(feed_schema(self.table))

    def kept(self, since: int, late: int) -> pa.Table:
        """Return the entries after which states before an instant, or a late commit, are void."""
        counted = self._told(FeedEntry.COUNTED, self.base.late, None)
        return pa.concat_tables([self._told(FeedEntry.KEPT, late, since), counted])

    def _begin(self, kind: FeedEntry, late: int, since: int | None = None) -> pa.Table:
        self._lineage = uuid.uuid4().hex[:12]
        return self._told(kind, late, since, self._lineage)

    def _told(
        self, kind: FeedEntry, late: int, since: int | None, lineage: str | None = None
    ) -> pa.Table:
        told = {
            KIND: pa.array([kind.value]),
            LATE: pa.array([late], pa.int64()),
            LINEAGE: pa.array([lineage], pa.string()),
            VALID_FROM: pa.array([since], pa.int64()).cast(INSTANT),
        }
        columns = [told.get(f.name, pa.nulls(1, f.type)) for f in feed_schema(self.table)]
        return pa.table(columns, schema=feed_schema(self.table))


class Feeds(ABC):
    """What one transaction adds to the feeds of its tables.

    Args:
        known: What the feeds came to before it, of the tables for which that is known.
    """

    def __init__(self, known: Mapping[str, FeedEnd]) -> None:
        self._known = dict(known)
        self._recordings: dict[str, Recording] = {}

    def ends(self) -> dict[str, FeedEnd]:
        """Return what the feeds come to with this transaction."""
        told = {name: recording.end() for name, recording in self._recordings.items()}
        return {**self._known, **told}

    def begin(self, table: Table) -> None:
        """Read where the feed stands, before the transaction changes the table's versions."""
        if table.name not in self._recordings:
            base = self._known.get(table.name) or self._read_end(table)
            self._recordings[table.name] = Recording(table.schema, base)

    def note(self, table: Table, versions: Versions) -> None:
        """Note versions that the transaction is about to end and begin."""
        self.begin(table)
        self._add(table, self._recordings[table.name].note(versions))

    def born(self, table: Table, at: int) -> None:
        """Note that the table was created, with versions that begin at an instant."""
        self.drop(table)
        self._recordings[table.name] = recording = Recording(table.schema, FeedEnd())
        self._add(table, recording.born(at))

    def lose(self, table: Table) -> None:
        """Note that positions of before say nothing any more."""
        self.begin(table)
        self._add(table, self._recordings[table.name].lose())

    def keep(self, table: Table, since: int, late: int) -> None:
        """Note that versions were removed that had ended by an instant, or in a late commit."""
        self.begin(table)
        self._add(table, self._recordings[table.name].kept(since, late))

    def fit(self, table: Table) -> None:
        """Begin the feed again if a history has another key than it was written for."""
        if table.mode is Mode.TEMPORAL and not self._is_fitting(table):
            self._recordings.pop(table.name, None)
            self.begin(table)
            self._discard(table)
            self.lose(table)

    def reshaped(self, table: Table, former: FormerNames) -> None:
        """Note that columns of a history are gone, or have other names than these former ones.

        Of a value under another name nothing tells a consumer that it was there before.
        """
        self.fit(table)
        if table.mode is Mode.TEMPORAL and former:
            self.lose(table)

    def drop(self, table: Table) -> None:
        """Delete a table's feed."""
        self._recordings.pop(table.name, None)
        self._known.pop(table.name, None)
        self._discard(table)

    @abstractmethod
    def _read_end(self, table: Table) -> FeedEnd:
        """Read from the mirror what a table's feed has come to."""

    @abstractmethod
    def _is_fitting(self, table: Table) -> bool:
        """Return whether the table's feed, if there is one, has the columns for its key."""

    @abstractmethod
    def _add(self, table: Table, entries: pa.Table) -> None:
        """Add entries to the table's feed, which begins with the first."""

    @abstractmethod
    def _discard(self, table: Table) -> None:
        """Delete the table's feed in the mirror."""


def _microseconds(versions: pa.Table, name: str) -> np.ndarray:
    instants: np.ndarray = versions[name].drop_null().cast(pa.int64()).to_numpy()
    return instants


def _one(value: int | None) -> np.ndarray:
    return np.array([] if value is None else [value], dtype=np.int64)
