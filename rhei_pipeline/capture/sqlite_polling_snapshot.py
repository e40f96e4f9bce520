"""One committed state of a SQLite source, read by its rows' own timestamps.

Writers of SQLite are serial, so stamps of the database's clock follow the order of commits: a row
older than the newest one seen can no longer appear. Rows that carry the newest stamp itself can,
and can change again within its tick, so they are looked at again, by a digest, until it is closed.
"""

import hashlib
import logging
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.capture.keyset import Clock, DeletePolicy, Keyset, PollOptions, Stamp
from rhei_pipeline.capture.sqlite_rows import RowReader, event_batch, key_first
from rhei_pipeline.events import ChangeBatch, DeadLetter, Position, RowBatch
from rhei_pipeline.oltp.sqlite_schema import SqliteTable
from rhei_pipeline.oltp.sqlite_values import admit_column, decode_key, encode_key, fetch
from rhei_pipeline.protocols import Audit
from rhei_pipeline.schema import INSTANT, Column, Table
from rhei_pipeline.sql import listed, quote

_log = logging.getLogger(__name__)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = 1_000_000
#: SQLite's clock shows milliseconds.
_CLOCK_PRECISION = 1_000
#: A stamp so far ahead of the source's clock was not made by it.
_AHEAD_SECONDS = 2
_DIGEST_ROWS = 10_000
#: Data versions after which the one transaction that was open at a snapshot has surely ended: its
#: own commit is one, and its restart of the write-ahead log may have shown as another before.
_CLOSING_VERSIONS = 2


@dataclass
class Memory:
    """What earlier snapshots found out, by table; forgetting it costs reads, never rows.

    Attributes:
        floors: New positions are above these.
        drained: This proof was made at this data version, and so all that it says still holds.
        idle: Nothing was pending behind this proof at this data version.
        ended: The tick of this timestamp had ended at this data version.
        closed: No row can join or leave the ties (timestamp, digest) any more unseen.
        audited: The clock of the last audit, and its data version.
        doubts: Why changes may go by unseen, as found at a data version.
        touched: Keys to read again.
        distrusted: Positions up to here are not to be relied on: the clock went back behind them.
    """

    floors: dict[str, int] = field(default_factory=dict)
    drained: dict[str, tuple[str, int]] = field(default_factory=dict)
    idle: dict[str, tuple[str, int]] = field(default_factory=dict)
    ended: dict[str, tuple[str, int]] = field(default_factory=dict)
    closed: dict[str, tuple[str, str]] = field(default_factory=dict)
    audited: dict[str, tuple[int, int]] = field(default_factory=dict)
    doubts: dict[str, tuple[int, str | None]] = field(default_factory=dict)
    touched: dict[str, list[tuple[Any, ...]]] = field(default_factory=dict)
    distrusted: dict[str, int] = field(default_factory=dict)

    def note(self, table: str, order: int) -> None:
        """Learn of a position that exists."""
        self.floors[table] = max(self.floors.get(table, 0), order)

    def distrust(self) -> None:
        """Rely on no position that exists by now."""
        self.distrusted = dict(self.floors)
        self.drained.clear()
        self.idle.clear()

    def forget_versions(self) -> None:
        """Forget what was tied to a connection's data versions."""
        for facts in (self.drained, self.idle, self.ended, self.audited, self.doubts):
            facts.clear()


@dataclass(frozen=True, slots=True)
class Poll:
    """What is known of a polled table: its catalogue entry, and the columns that polling uses."""

    source: SqliteTable
    options: PollOptions

    @property
    def stamp(self) -> str:
        """The timestamp's column, quoted."""
        return quote(self.options.updated_at)

    @property
    def live(self) -> str:
        """SQL that tells whether a row counts as one."""
        if self.options.deleted_at is None:
            return "true"
        return f"coalesce({quote(self.options.deleted_at)}, 0) = 0"

    @property
    def select(self) -> str:
        """Select rows: live, timestamp, then the columns, the key's first."""
        columns = listed(column.name for column in key_first(self.source.schema))
        return f"select {self.live}, {self.stamp}, {columns} from {quote(self.source.schema.name)}"


#: A condition on rows, and the values it binds.
_Condition = tuple[str, list[Any]]


@dataclass(frozen=True, slots=True)
class _Look:
    """What lies behind a position: rows by condition, how many, and keys to read again."""

    parts: tuple[_Condition, ...] = ()
    newer: int = 0
    others: int = 0
    touched: tuple[tuple[Any, ...], ...] = ()

    @property
    def events(self) -> int:
        return self.newer + self.others + len(self.touched)


class PollingSnapshot:
    """A `SourceSnapshot` inside an open read transaction.

    Args:
        connection: Open, in a transaction that has read nothing yet.
        polls: Returns what is known of a table.
        memory: What earlier snapshots of this connection found out.
        clock: The source's clock in microseconds, read before the transaction's first read: what
            a transaction not seen here stamps from now on is not older.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        polls: Callable[[str], Poll],
        memory: Memory,
        clock: int,
    ) -> None:
        self._connection = connection
        self._polls = polls
        self._memory = memory
        self._now = clock
        self.clock = _EPOCH + timedelta(microseconds=clock)
        connection.execute("select 1 from sqlite_master").fetchone()
        self.schema_version = int(connection.execute("pragma schema_version").fetchone()[0])
        self._version = int(connection.execute("pragma data_version").fetchone()[0])
        self._after: dict[str, Position] = {}
        self._heads: dict[str, Position] = {}
        self._looks: dict[tuple[str, str], _Look] = {}

    def head(self, table: Table) -> Position:
        """Return the place of all that this snapshot shows; the one asked about where it is it."""
        if table.name not in self._heads:
            self._heads[table.name] = self._head(table)
        return self._heads[table.name]

    def origin(self, table: Table) -> Position:
        """Return the same: rows and changes are read in one state."""
        return self.head(table)

    def retains(self, position: Position) -> bool:  # noqa: ARG002
        """Say no: the source keeps nothing for us."""
        return False

    def _head(self, table: Table) -> Position:
        after = self._after.get(table.name)
        floor = self._memory.floors.get(table.name, 0)
        if after is None or not self.proves(table, after):
            return Position(floor + 1, self._keyset(table, None).text())
        look = self._look(table, after)
        known = self._known(table, after)
        if self.audit(table, after) is not Audit.NONE:
            self._memory.audited[table.name] = (self._now, self._version)
            return self._beyond(table, after, look, self._now)
        if not look.events:
            return after
        return self._beyond(table, after, look, known.audited if known else None)

    def _beyond(self, table: Table, after: Position, look: _Look, audited: int | None) -> Position:
        floor = max(after.order, self._memory.floors.get(table.name, 0))
        return Position(floor + max(look.events, 1), self._keyset(table, audited).text())

    def _keyset(self, table: Table, audited: int | None) -> Keyset:
        """Describe what this snapshot shows, never past what the source's clock has reached."""
        poll = self._polls(table.name)
        newest = self._newest(poll)
        at = None if newest is None else encode_key([newest[0]])
        keyset = Keyset(
            poll.options.updated_at,
            at,
            key=None if newest is None else encode_key(newest[1:]),
            ties="" if at is None else self._digest(poll, _at(poll, "=", at)),
            ahead=self._digest(poll, _at(poll, ">", at)),
            blank=self._digest(poll, _blank(poll)),
            clock=self._now,
            audited=audited,
        )
        place = (keyset.text(), self._version)
        self._memory.drained[table.name] = self._memory.idle[table.name] = place
        self._close(poll, keyset)
        return keyset

    def _newest(self, poll: Poll) -> tuple[Any, ...] | None:
        """Return timestamp and key of a row with the newest stamp that the clock has reached."""
        stamp = Stamp.of(self._extreme(poll, "max"))
        bound: list[Any] = [stamp.newest(self._now, _CLOCK_PRECISION)] if stamp else []
        reached = f"{poll.stamp} <= ?" if stamp else f"{poll.stamp} is not null"
        row = self._connection.execute(
            f"select {poll.stamp}, {listed(poll.source.schema.primary_key)}"
            f" from {quote(poll.source.schema.name)} where {reached}"
            f" order by {poll.stamp} desc limit 1",
            bound,
        ).fetchone()
        return None if row is None else tuple(row)

    def _extreme(self, poll: Poll, which: str) -> Any:  # noqa: ANN401  (as the source holds it)
        name = quote(poll.source.schema.name)
        sql = f"select {which}({poll.stamp}) from {name}"
        rows = next(fetch(self._connection, sql, (), 1))
        return rows[0][0]

    def _close(self, poll: Poll, keyset: Keyset) -> None:
        """Note when the newest tick has ended, and when its rows are final.

        A transaction that was open when the tick had ended may still commit such a stamp. It is
        the only one, and has ended once enough other states have been seen.
        """
        if keyset.at is None:
            return
        name, stamp = poll.source.schema.name, self._value(keyset.at)
        at, version = self._memory.ended.get(name, ("", 0))
        if at == keyset.at:
            if self._version - version >= _CLOSING_VERSIONS:
                self._memory.closed[name] = (keyset.at, keyset.ties)
            return
        form = Stamp.of(stamp)
        if form is not None and stamp < form.newest(self._now, 1):
            self._memory.ended[name] = (keyset.at, self._version)

    def _value(self, encoded: str) -> Any:  # noqa: ANN401
        return decode_key(encoded)[1][0]

    def proves(self, table: Table, position: Position) -> bool:
        """Look for signs that the source is not as it was: an older state, a clock put back."""
        self._remember(table, position)
        if self._is_drained(table, position):
            return True
        keyset = self._known(table, position)
        if keyset is None:
            return False
        sign = self._sign(table, position, keyset)
        if sign:
            _log.warning("table %r: %s; it is copied again by difference", table.name, sign)
        return sign is None

    def _sign(self, table: Table, position: Position, keyset: Keyset) -> str | None:
        distrusted = self._memory.distrusted.get(table.name, -1)
        if keyset.clock > self._now or position.order <= distrusted:
            return "the source's clock went back"
        poll = self._polls(table.name)
        # Where it is compared whole anyway, a missing row only makes that due now.
        compares = poll.options.policy is DeletePolicy.RECONCILE
        if not compares and not self._is_witnessed(poll, keyset):
            return "its newest row is gone or older (a restored backup, or a hard delete)"
        return None

    def _is_witnessed(self, poll: Poll, keyset: Keyset) -> bool:
        """Tell whether the newest row read before is there, as new as it was or newer."""
        if keyset.at is None or keyset.key is None:
            return True
        places, key = decode_key(keyset.key)
        names = listed(poll.source.schema.primary_key)
        condition, params = _at(poll, ">=", keyset.at)
        found = self._connection.execute(
            f"select 1 from {quote(poll.source.schema.name)}"
            f" where ({names}) = ({', '.join(places)}) and {condition}",
            [*key, *params],
        )
        return found.fetchone() is not None

    def pending(self, table: Table, after: Position) -> int:
        """Count the rows stamped since, and those that changed in the tick it ended in."""
        self._remember(table, after)
        return self._look(table, after).events

    def oldest_pending(self, table: Table, after: Position) -> datetime | None:
        """Return the oldest stamp among the new rows."""
        look = self._look(table, after)
        if not look.events:
            return None
        if not look.newer:
            return self.clock
        poll, (condition, params) = self._polls(table.name), look.parts[0]
        (oldest,) = self._connection.execute(
            f"select min({poll.stamp}) from {quote(table.name)} where {condition}", params
        ).fetchone()
        found: datetime = self._instants([oldest])[0].as_py()
        return found

    def changes(self, table: Table, after: Position, limit: int) -> Iterator[ChangeBatch]:
        """Read net changes: a poll sees what a row has become, not what it was in between."""
        yield from self.net_changes(table, after, limit)

    def net_changes(self, table: Table, after: Position, limit: int) -> Iterator[ChangeBatch]:
        """Read the new rows, the rows that changed within their tick, and the keys touched."""
        self._remember(table, after)
        poll, look = self._polls(table.name), self._look(table, after)
        for condition, params in look.parts:
            sql = f"{poll.select} where {condition}"
            for rows in fetch(self._connection, sql, params, limit):
                yield self._batch(poll, rows)
        for start in range(0, len(look.touched), limit):
            keys = look.touched[start : start + limit]
            yield self._batch(poll, list(self._rows_of(poll, keys)))

    def _rows_of(self, poll: Poll, keys: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
        key = poll.source.schema.primary_key
        condition = " and ".join(f"{quote(name)} = ?" for name in key)
        missing = len(poll.source.schema.value_columns)
        for values in keys:
            rows = next(fetch(self._connection, f"{poll.select} where {condition}", values, 1), [])
            yield rows[0] if rows else (0, None, *values, *([None] * missing))

    def _batch(self, poll: Poll, rows: list[tuple[Any, ...]]) -> ChangeBatch:
        live, stamps = zip(*((row[0], row[1]) for row in rows), strict=True)
        own = [
            pa.array(np.zeros(len(rows), np.int64)),
            self._instants(stamps),
            pa.array(live, pa.int64()).cast(pa.bool_()),
        ]
        batch = event_batch(poll.source.schema, own, [row[2:] for row in rows], self.clock)
        return replace(batch, net=True, seen_at=self.clock)

    def _instants(self, stamps: Sequence[Any]) -> pa.Array:
        """Turn timestamps into instants; one without a known form, or ahead, is dated now."""
        form = next((found for found in map(Stamp.of, stamps) if found), None)
        now = pa.scalar(self.clock, INSTANT)
        if form is None:
            return pa.repeat(now, len(stamps))
        found = pc.fill_null(_admitted(form, stamps), now).cast(pa.int64())
        return pc.min_element_wise(found, self._now).cast(INSTANT)

    def audit(self, table: Table, after: Position) -> Audit:
        """Ask for one at an interval, and when the newest row read before is gone."""
        self._remember(table, after)
        options, keyset = self._polls(table.name).options, self._known(table, after)
        wanted = self._wanted(table, options)
        if wanted is Audit.NONE or keyset is None or keyset.audited is None:
            return wanted
        if self._memory.audited.get(table.name) == (keyset.audited, self._version):
            return Audit.NONE  # nothing was committed since
        elapsed = self._now - keyset.audited
        due = not 0 <= elapsed < options.reconcile_seconds * _SECOND
        return wanted if due or self._is_orphaned(table, after, keyset) else Audit.NONE

    def _wanted(self, table: Table, options: PollOptions) -> Audit:
        if options.policy is DeletePolicy.RECONCILE:
            return Audit.ALL
        return Audit.ROWS if self.doubt(table) else Audit.NONE

    def _is_orphaned(self, table: Table, after: Position, keyset: Keyset) -> bool:
        if self._is_drained(table, after):
            return False
        return not self._is_witnessed(self._polls(table.name), keyset)

    def doubt(self, table: Table) -> str | None:
        """Say why a write may go by unseen: its stamp need not follow the order of commits."""
        version, reason = self._memory.doubts.get(table.name, (None, None))
        if version != self._version:
            reason = self._doubt(self._polls(table.name))
            self._memory.doubts[table.name] = (self._version, reason)
        return reason

    def _doubt(self, poll: Poll) -> str | None:
        name = repr(poll.options.updated_at)
        if poll.options.clock is Clock.APPLICATION:
            return f"{name} is stamped by the application's clock"
        newest, oldest = self._extreme(poll, "max"), self._extreme(poll, "min")
        form = Stamp.of(newest)
        if newest is not None and (form is None or Stamp.of(oldest) != form):
            return f"{name} holds values of unknown or several forms"
        ahead = self._now + _AHEAD_SECONDS * _SECOND
        if form is not None and newest > form.newest(ahead, _CLOCK_PRECISION):
            return f"{name} lies ahead of the database's clock"
        return None

    def rows(self, table: Table, resume: str | None, limit: int) -> RowBatch | None:
        """Read the next rows in key order."""
        return self._reader(table).rows(resume, limit)

    def keyless(self, table: Table) -> tuple[DeadLetter, ...]:
        """Name the rows whose key is null."""
        return self._reader(table).keyless()

    def count(self, table: Table) -> int:
        """Count the table's rows."""
        return self._reader(table).count()

    def _reader(self, table: Table) -> RowReader:
        poll = self._polls(table.name)
        condition = "" if poll.options.deleted_at is None else poll.live
        return RowReader(self._connection, poll.source, self.clock, condition)

    def _remember(self, table: Table, position: Position) -> None:
        self._after[table.name] = position
        self._memory.note(table.name, position.order)

    def _known(self, table: Table, position: Position) -> Keyset | None:
        return Keyset.read(position.proof, self._polls(table.name).options.updated_at)

    def _is_drained(self, table: Table, position: Position) -> bool:
        drained = self._memory.drained.get(table.name) == (position.proof, self._version)
        return drained and not self._memory.touched.get(table.name)

    def _look(self, table: Table, after: Position) -> _Look:
        touched = self._memory.touched.get(table.name)
        if self._memory.idle.get(table.name) == (after.proof, self._version) and not touched:
            return _Look()
        place = (table.name, after.proof)
        if place not in self._looks:
            look = self._looks[place] = self._look_behind(table, self._known(table, after))
            if not look.events:
                self._memory.idle[table.name] = (after.proof, self._version)
        return self._looks[place]

    def _look_behind(self, table: Table, keyset: Keyset | None) -> _Look:
        poll = self._polls(table.name)
        newer, others = _at(poll, ">", keyset.at if keyset else None), []
        count = self._count(poll, newer)
        if keyset and keyset.ahead and keyset.ahead == self._digest(poll, newer):
            count = 0
        if keyset and self._has_changed_ties(poll, keyset):
            others.append(_at(poll, "=", keyset.at))
        if keyset is None or keyset.blank != self._digest(poll, _blank(poll)):
            others.append(_blank(poll))
        counted = [(part, self._count(poll, part)) for part in others]
        return _Look(
            tuple(filter(None, [newer if count else None, *(part for part, n in counted if n)])),
            count,
            sum(n for _, n in counted),
            tuple(self._memory.touched.get(table.name, ())),
        )

    def _has_changed_ties(self, poll: Poll, keyset: Keyset) -> bool:
        if keyset.at is None:
            return False
        if self._memory.closed.get(poll.source.schema.name) == (keyset.at, keyset.ties):
            return False
        changed = keyset.ties != self._digest(poll, _at(poll, "=", keyset.at))
        if not changed:
            self._close(poll, keyset)
        return changed

    def _count(self, poll: Poll, condition: _Condition) -> int:
        found = self._connection.execute(
            f"select count(*) from {quote(poll.source.schema.name)} where {condition[0]}",
            condition[1],
        )
        return int(found.fetchone()[0])

    def _digest(self, poll: Poll, condition: _Condition) -> str:
        """Fold rows into a few characters; none where there is no row."""
        digest, seen = hashlib.blake2b(digest_size=12), False
        sql = f"{poll.select} where {condition[0]}"
        for rows in fetch(self._connection, sql, condition[1], _DIGEST_ROWS):
            digest.update(repr(rows).encode())
            seen = True
        return digest.hexdigest() if seen else ""


def _at(poll: Poll, operator: str, at: str | None) -> _Condition:
    """Compare the timestamp with an encoded one; without one, every timestamp lies behind it."""
    if at is None:
        return f"{poll.stamp} is not null", []
    places, values = decode_key(at)
    return f"{poll.stamp} {operator} {places[0]}", values


def _blank(poll: Poll) -> _Condition:
    return f"{poll.stamp} is null", []


def _admitted(form: Stamp, stamps: Sequence[Any]) -> pa.Array:
    """Turn stamps of one form into instants, null where one is of another form."""
    if form.kind is float:
        reals, _ = admit_column(stamps, Column("", pa.float64()))
        start, scale = form.real_scale
        micros = pc.round(pc.multiply(pc.subtract(reals, start), scale))
        return micros.cast(pa.int64()).cast(INSTANT)
    if form.kind is int:
        return admit_column(stamps, Column("", INSTANT, epoch=form.epoch))[0]
    kind = INSTANT if form.zone else pa.timestamp("us")
    return admit_column(stamps, Column("", kind))[0].cast(INSTANT)
