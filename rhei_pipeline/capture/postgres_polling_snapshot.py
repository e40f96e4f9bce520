"""One committed state of a PostgreSQL source, read by its rows' own timestamps.

What a snapshot shows is applied whole, however its rows are stamped, so the mirror is one state
of the source. Only the place from where on rows are looked at again keeps to the horizon: what
the snapshot does not show is stamped no earlier. Versions of rows that were read before are told
by the number of the transaction that wrote them: it becomes visible as a whole or not at all.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.capture.keyset import Clock, DeletePolicy, Horizon, PollOptions, Stamp
from rhei_pipeline.capture.postgres_horizon import Reading
from rhei_pipeline.capture.postgres_rows import (
    RowReader,
    admit_rows,
    bare_literal,
    copied,
    letters_of,
    without_rows,
)
from rhei_pipeline.capture.postgres_stamp import StampColumn
from rhei_pipeline.errors import SourceBusyError
from rhei_pipeline.events import (
    CHANGED_AT,
    LIVE,
    SEQUENCE,
    ChangeBatch,
    DeadLetter,
    Position,
    RowBatch,
    event_schema,
)
from rhei_pipeline.oltp.postgres_schema import Connection, PostgresTable, qualified
from rhei_pipeline.protocols import Audit
from rhei_pipeline.schema import Table
from rhei_pipeline.sql import listed, matching, quote

_log = logging.getLogger(__name__)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = 1_000_000
#: A stamp so far ahead of the source's clock was not made by it.
_AHEAD_SECONDS = 2
#: So many transactions a position names; more of them it only tells by a digest.
_NAMED = 64
#: Numbers of transactions in rows return after twice as many.
_XIDS = 2**31
#: Keys read again by one statement.
_TOUCHED_ROWS = 500

#: A snapshot of a replica does not number what runs at its primary.
_STATE = """
select pg_current_snapshot()::text || coalesce(pg_last_wal_replay_lsn()::text, ''),
    pg_snapshot_xmax(pg_current_snapshot())::text::bigint
"""
_REWRITTEN = """
select bool_or(pg_relation_filenode(c.oid) is distinct from nullif(c.relfilenode, 0))
from pg_class c where c.oid in (select relid from pg_partition_tree(%s))
"""


@dataclass(frozen=True, slots=True)
class Poll:
    """What is known of a polled table: its catalogue entry, and the columns that polling uses.

    Attributes:
        live: SQL that tells whether a row counts as one.
        origin: The server, its timeline and the table.
    """

    source: PostgresTable
    options: PollOptions
    stamp: StampColumn
    live: str
    origin: str

    @property
    def table(self) -> str:
        """The table, for the source."""
        return qualified(self.source.schema)


@dataclass(frozen=True, slots=True)
class Window:
    """Where the next look begins, behind a position at which nothing was pending.

    Attributes:
        proof: The position's.
        low, least: As in `Horizon`.
        read: The transactions whose rows from there on were read.
        clock: The source's clock then.
        state: Nothing was committed since while the source is in this state.
    """

    proof: str
    low: int | None
    least: str | None
    read: tuple[str, ...]
    clock: int
    state: str


@dataclass
class Memory:
    """What earlier snapshots found out, by table; forgetting it costs reads, never rows.

    Attributes:
        floors: New positions are above these.
        windows: Where the next look begins.
        witnessed: The newest row of this proof was there in this state of the source.
        audited: The clock of the last audit, and the source's state then.
        doubts: Why changes may go by unseen, as found in a state of the source.
        touched: Keys to read again.
        distrusted: Positions up to here are not to be relied on: the clock went back behind them.
    """

    floors: dict[str, int] = field(default_factory=dict)
    windows: dict[str, Window] = field(default_factory=dict)
    witnessed: dict[str, tuple[str, str]] = field(default_factory=dict)
    audited: dict[str, tuple[int, str]] = field(default_factory=dict)
    doubts: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    touched: dict[str, list[tuple[Any, ...]]] = field(default_factory=dict)
    distrusted: dict[str, int] = field(default_factory=dict)

    def note(self, table: str, order: int) -> None:
        """Learn of a position that exists."""
        self.floors[table] = max(self.floors.get(table, 0), order)

    def distrust(self) -> None:
        """Rely on no position that exists by now."""
        self.distrusted = dict(self.floors)
        self.windows.clear()

    def forget_states(self) -> None:
        """Forget what was tied to a connection to the server."""
        for facts in (self.windows, self.witnessed, self.audited, self.doubts):
            facts.clear()


@dataclass(frozen=True, slots=True)
class _Look:
    """What lies behind a position: rows by condition, how many, and keys to read again.

    Attributes:
        since: The source's clock when none of them was there yet.
    """

    condition: str = "false"
    rows: int = 0
    touched: tuple[tuple[Any, ...], ...] = ()
    since: int = 0

    @property
    def events(self) -> int:
        return self.rows + len(self.touched)


class PostgresPollingSnapshot:
    """A `SourceSnapshot` inside an open REPEATABLE READ transaction.

    Args:
        connection: Open, in a transaction that has read nothing yet.
        polls: Returns what is known of a table.
        memory: What earlier snapshots of this connection found out.
        reading: The horizon, read before the transaction began.
        version: Returns the schema's version as the transaction sees it.
    """

    def __init__(
        self,
        connection: Connection,
        polls: Callable[[str], Poll],
        memory: Memory,
        reading: Reading,
        version: Callable[[], int],
    ) -> None:
        self._connection = connection
        self._polls = polls
        self._memory = memory
        self._reading = reading
        self._now = reading.clock
        self.clock = _EPOCH + timedelta(microseconds=reading.clock)
        self._state, self._xid = self._row(_STATE)
        self.schema_version = version()
        self._after: dict[str, Position] = {}
        self._heads: dict[str, Position] = {}
        self._looks: dict[tuple[str, str], _Look] = {}
        self._forms: dict[str, Stamp | None] = {}

    def _row(self, sql: str, *params: object) -> tuple[Any, ...]:
        found = self._connection.execute(sql.encode(), params or None).fetchone()
        return found if found is not None else (None, None)

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
            return Position(floor + 1, self._horizon(table, None, None).text())
        look, known = self._look(table, after), self._known(table, after)
        floor = max(after.order, floor)
        if self.audit(table, after) is not Audit.NONE:
            self._memory.audited[table.name] = (self._now, self._state)
            proof = self._horizon(table, known, self._now).text()
            return Position(floor + max(look.events, 1), proof)
        if not look.events:
            return after
        audited = known.audited if known else None
        return Position(floor + look.events, self._horizon(table, known, audited).text())

    def _horizon(self, table: Table, known: Horizon | None, audited: int | None) -> Horizon:
        """Note what this snapshot shows, and where the next look has to begin."""
        poll = self._polls(table.name)
        self._refuse_rewritten(poll)
        newest = self._newest(poll)
        low, least = self._begin(table, known)
        versions, read = self._versions(poll, self._within(poll, low, least))
        lately = audited == self._now
        horizon = Horizon(
            poll.options.updated_at,
            poll.origin,
            low,
            least,
            newest=None if newest is None else newest[0],
            key=() if newest is None else newest[1:],
            writers=read if len(read) <= _NAMED else None,
            seen=versions,
            clock=self._now,
            xid=self._xid,
            audited=audited,
            doubted=bool(self.doubt(table) or (known and known.doubted and not lately)),
        )
        self._memory.windows[table.name] = Window(
            horizon.text(), low, least, read, self._now, self._state
        )
        return horizon

    def _refuse_rewritten(self, poll: Poll) -> None:
        """Refuse what was rewritten behind the snapshot's back: to it, such a table looks empty."""
        if self._row(_REWRITTEN, poll.source.oid)[0]:
            raise SourceBusyError(
                f"table {poll.source.schema.name!r} was rewritten while it was read",
                hint="it is tried again",
            )

    def _begin(self, table: Table, known: Horizon | None) -> tuple[int | None, str | None]:
        """Return from which instant on, or from which stamp on, the next look has to be."""
        poll, doubt = self._polls(table.name), self.doubt(table)
        low = self._reading.low(known.low if known else None, doubted=doubt is not None)
        if doubt is None:
            return low, None
        reached = self._bound(poll, self._now + _AHEAD_SECONDS * _SECOND)
        condition = f"{poll.stamp.sql} <= {reached}" if reached else "true"
        return low, self._extreme(poll, "max", condition)

    def _within(self, poll: Poll, low: int | None, least: str | None) -> str:
        """Write SQL of the rows that have to be looked at from there on."""
        stamp = poll.stamp
        bounds = [] if low is None else [self._bound(poll, low)]
        if least is not None:
            bounds.append(bare_literal(least))
        known = [bound for bound in bounds if bound is not None]
        if low is None or not known:
            return "true"
        behind = " or ".join(f"{stamp.sql} >= {bound}" for bound in known)
        return f"({behind} or {stamp.sql} is null)" if stamp.is_nullable else f"({behind})"

    def _bound(self, poll: Poll, micros: int) -> str | None:
        return poll.stamp.bound(micros, self._form(poll))

    def _form(self, poll: Poll) -> Stamp | None:
        """Tell how the column writes instants, from its newest stamp."""
        name = poll.source.schema.name
        if name not in self._forms:
            alike = poll.stamp.family.is_written_alike
            newest = None if alike else self._extreme(poll, "max")
            self._forms[name] = poll.stamp.form(newest)
        return self._forms[name]

    def _extreme(self, poll: Poll, which: str, condition: str = "true") -> str | None:
        sql = f"select {which}({poll.stamp.sql})::text from {poll.table} where {condition}"
        found: str | None = self._row(sql)[0]
        return found

    def _newest(self, poll: Poll) -> tuple[str, ...] | None:
        """Return stamp and key of a row with the newest stamp that the clock has reached."""
        reached = self._bound(poll, self._now + _AHEAD_SECONDS * _SECOND)
        condition = f"<= {reached}" if reached else "is not null"
        key = ", ".join(f"{quote(name)}::text" for name in poll.source.schema.primary_key)
        # Ordered outside: in the same select, the text's name would stand for it.
        found = self._row(
            f"select {poll.stamp.sql}::text, {key} from (select * from {poll.table} where"
            f" {poll.stamp.sql} {condition} order by {poll.stamp.sql} desc limit 1) newest"
        )
        return None if found[0] is None else found

    def _versions(self, poll: Poll, condition: str) -> tuple[str, tuple[str, ...]]:
        """Return a digest of the row versions there, and the transactions that wrote them."""
        digest, read = self._row(
            "select count(*) || ':' || coalesce(sum(hashtextextended("
            "tableoid::text || ctid::text || xmin::text, 0)::numeric), 0),"
            f" array_agg(distinct xmin::text) from {poll.table} where {condition}"
        )
        return digest, tuple(read or ())

    def proves(self, table: Table, position: Position) -> bool:
        """Look for signs that the source is not as it was: an older state, a clock put back."""
        self._remember(table, position)
        known = self._known(table, position)
        if known is None:
            return False
        sign = self._sign(table, position, known)
        if sign:
            _log.warning("table %r: %s; it is copied again by difference", table.name, sign)
        return sign is None

    def _sign(self, table: Table, position: Position, known: Horizon) -> str | None:
        poll = self._polls(table.name)
        if known.origin != poll.origin:
            return "it is another table, or its server is another one or was promoted"
        if known.xid > self._xid:
            return "the server is in an older state (a restored backup)"
        if known.clock > self._now or position.order <= self._memory.distrusted.get(table.name, -1):
            return "the source's clock went back"
        # Where it is compared whole anyway, a missing row only makes that due now.
        compares = poll.options.policy is DeletePolicy.RECONCILE
        if not compares and not self._is_witnessed(table, position):
            return "its newest row is gone or older (a restored backup, or a hard delete)"
        return None

    def _is_witnessed(self, table: Table, position: Position) -> bool:
        """Tell whether the newest row read before is there, as new as it was or newer."""
        place = (position.proof, self._state)
        if self._memory.witnessed.get(table.name) != place:
            known = self._known(table, position)
            if known is not None and not self._has_newest(self._polls(table.name), known):
                return False
            self._memory.witnessed[table.name] = place
        return True

    def _has_newest(self, poll: Poll, known: Horizon) -> bool:
        if known.newest is None:
            return True
        pairs = zip(poll.source.schema.primary_key, known.key, strict=True)
        same = " and ".join(f"{quote(name)} = {bare_literal(value)}" for name, value in pairs)
        condition = f"{same} and {poll.stamp.sql} >= {bare_literal(known.newest)}"
        return bool(self._row(f"select exists (select from {poll.table} where {condition})")[0])

    def pending(self, table: Table, after: Position) -> int:
        """Count the rows that were written since the position was recorded."""
        self._remember(table, after)
        return self._look(table, after).events

    def oldest_pending(self, table: Table, after: Position) -> datetime | None:
        """Return the oldest stamp among the new rows, or when none of them was there yet."""
        self._remember(table, after)
        look = self._look(table, after)
        if not look.rows:
            return self.clock if look.events else None
        poll = self._polls(table.name)
        found = self._row(
            f"select min({poll.stamp.instant_sql})::text from {poll.table} where {look.condition}"
        )
        texts = pa.array(found[:1], pa.large_string())
        oldest: datetime = poll.stamp.instants(texts, self._form(poll), self._now)[0].as_py()
        return max(oldest, _EPOCH + timedelta(microseconds=look.since))

    def changes(self, table: Table, after: Position, limit: int) -> Iterator[ChangeBatch]:
        """Read net changes: a poll sees what a row has become, not what it was in between."""
        yield from self.net_changes(table, after, limit)

    def net_changes(self, table: Table, after: Position, limit: int) -> Iterator[ChangeBatch]:
        """Read the rows written since, and the rows of the keys touched."""
        self._remember(table, after)
        poll, look = self._polls(table.name), self._look(table, after)
        if look.rows:
            yield from self._batches(poll, _rows_sql(poll, look.condition), limit, look.since)
        for start in range(0, len(look.touched), _TOUCHED_ROWS):
            keys = look.touched[start : start + _TOUCHED_ROWS]
            yield from self._batches(poll, _touched_sql(poll, keys), limit, look.since)

    def _batches(self, poll: Poll, query: str, limit: int, since: int) -> Iterator[ChangeBatch]:
        names = [LIVE, CHANGED_AT, *poll.source.schema.names]
        self._form(poll)  # while rows are sent the connection is busy
        for texts in copied(self._connection, query, names, limit):
            yield self._batch(poll, texts, since)

    def _batch(self, poll: Poll, texts: pa.Table, since: int) -> ChangeBatch:
        schema, count = poll.source.schema, texts.num_rows
        stamps = texts[CHANGED_AT].combine_chunks()
        own = [
            pa.array(np.zeros(count, np.int64)),
            poll.stamp.instants(stamps, self._form(poll), self._now, since),
            pc.equal(texts[LIVE].combine_chunks(), "t"),
        ]
        arrays, rejections = admit_rows(schema, texts)
        events = pa.table([*own, *arrays], [SEQUENCE, CHANGED_AT, LIVE, *schema.names])
        letters = letters_of(schema, rejections, texts, self.clock)
        admitted = without_rows(events.cast(event_schema(schema)), rejections)
        return ChangeBatch(admitted, count, net=True, rejected=letters, seen_at=self.clock)

    def audit(self, table: Table, after: Position) -> Audit:
        """Ask for one at an interval, and when the newest row read before is gone."""
        self._remember(table, after)
        options, known = self._polls(table.name).options, self._known(table, after)
        wanted = self._wanted(table, options, known)
        if wanted is Audit.NONE or known is None or known.audited is None:
            return wanted
        if self._memory.audited.get(table.name) == (known.audited, self._state):
            return Audit.NONE  # nothing was committed since
        due = options.is_due(known.audited, self._now) or not self._is_witnessed(table, after)
        return wanted if due else Audit.NONE

    def _wanted(self, table: Table, options: PollOptions, known: Horizon | None) -> Audit:
        if options.policy is DeletePolicy.RECONCILE:
            return Audit.ALL
        doubted = self.doubt(table) is not None or (known is not None and known.doubted)
        return Audit.ROWS if doubted else Audit.NONE

    def doubt(self, table: Table) -> str | None:
        """Say why a write may go by unseen: its stamp need not lie behind the horizon."""
        state, reason = self._memory.doubts.get(table.name, (None, None))
        if state != self._state:
            reason = self._doubt(self._polls(table.name))
            self._memory.doubts[table.name] = (self._state, reason)
        return reason

    def _doubt(self, poll: Poll) -> str | None:
        name = repr(poll.options.updated_at)
        if poll.options.clock is Clock.APPLICATION:
            return f"{name} is stamped by the application's clock"
        form = self._form(poll)
        ahead = self._bound(poll, self._now + _AHEAD_SECONDS * _SECOND)
        if ahead is None:
            known = self._extreme(poll, "max") is None
            return None if known else f"{name} holds values of unknown or several forms"
        if not poll.stamp.family.is_written_alike:
            oldest = poll.stamp.form(self._extreme(poll, "min"))
            if oldest is None or _form_of(oldest) != _form_of(form):
                return f"{name} holds values of unknown or several forms"
        if self._row(f"select exists (select from {poll.table} where {poll.stamp.sql} > {ahead})")[
            0
        ]:
            return f"{name} lies ahead of the database's clock"
        return poll.stamp.doubt(form) or self._reading.doubt

    def rows(self, table: Table, resume: str | None, limit: int) -> RowBatch | None:
        """Read the next rows in key order."""
        return self._reader(table).rows(resume, limit)

    def keyless(self, table: Table) -> tuple[DeadLetter, ...]:  # noqa: ARG002
        """Name no row: a key of PostgreSQL that is polled is never null."""
        return ()

    def count(self, table: Table) -> int:
        """Count the table's rows."""
        return self._reader(table).count()

    def _reader(self, table: Table) -> RowReader:
        poll = self._polls(table.name)
        return RowReader(self._connection, poll.source.schema, self.clock, poll.live)

    def _remember(self, table: Table, position: Position) -> None:
        self._after[table.name] = position
        self._memory.note(table.name, position.order)

    def _known(self, table: Table, position: Position) -> Horizon | None:
        return Horizon.read(position.proof, self._polls(table.name).options.updated_at)

    def _is_idle(self, table: Table, position: Position) -> bool:
        """Tell whether the source is in the state in which nothing was pending there."""
        window = self._memory.windows.get(table.name)
        same = window is not None and (window.proof, window.state) == (position.proof, self._state)
        return same and not self._memory.touched.get(table.name)

    def _look(self, table: Table, after: Position) -> _Look:
        if self._is_idle(table, after):
            return _Look()
        place = (table.name, after.proof)
        if place not in self._looks:
            self._looks[place] = self._look_behind(table, after)
        return self._looks[place]

    def _look_behind(self, table: Table, after: Position) -> _Look:
        poll, known = self._polls(table.name), self._known(table, after)
        touched = tuple(self._memory.touched.get(table.name, ()))
        if known is None:
            return _Look("true", self._count(poll, "true"), touched)
        window = self._memory.windows.get(table.name)
        if window is not None and window.proof == after.proof:
            within = self._within(poll, window.low, window.least)
            condition, since = f"{within} and {_unread(window.read)}", window.clock
        else:
            condition, since = self._unseen(poll, known), known.clock
        rows = self._count(poll, condition) if condition != "false" else 0
        if not rows:
            self._move_window(table, after, known)
        return _Look(condition, rows, touched, since)

    def _unseen(self, poll: Poll, known: Horizon) -> str:
        """Write SQL of what was written since, as far as the position alone tells."""
        within = self._within(poll, known.low, known.least)
        if known.writers is not None and self._xid - known.xid < _XIDS:
            return f"{within} and {_unread(known.writers)}"
        return "false" if self._versions(poll, within)[0] == known.seen else within

    def _move_window(self, table: Table, after: Position, known: Horizon) -> None:
        """Have the next look begin at this snapshot's horizon: the mirror has all it shows."""
        low, least = self._begin(table, known)
        poll = self._polls(table.name)
        _, read = self._versions(poll, self._within(poll, low, least))
        self._memory.windows[table.name] = Window(
            after.proof, low, least, read, self._now, self._state
        )

    def _count(self, poll: Poll, condition: str) -> int:
        return int(self._row(f"select count(*) from {poll.table} where {condition}")[0])


def _unread(read: Sequence[str]) -> str:
    """Write SQL of the row versions that no transaction wrote whose rows were read."""
    return f"xmin <> all ('{{{','.join(read)}}}'::xid[])"


def _rows_sql(poll: Poll, condition: str) -> str:
    """Select rows: live, stamp, then the table's columns."""
    schema, columns = poll.source.schema, listed(poll.source.schema.names)
    if poll.options.deleted_at is not None:
        # Of a row that is marked as deleted, the key is all that counts.
        columns = ", ".join(
            quote(name)
            if name in schema.primary_key
            else f"case when {poll.live} then {quote(name)} end as {quote(name)}"
            for name in schema.names
        )
    return (
        f"select {poll.live} as {LIVE}, {poll.stamp.instant_sql} as {CHANGED_AT}, {columns}"
        f" from {poll.table} where {condition}"
    )


def _touched_sql(poll: Poll, keys: Sequence[tuple[Any, ...]]) -> str:
    """Select the same for keys, whether or not they have a row."""
    schema = poll.source.schema
    key = listed(schema.primary_key)
    # The empty part gives literals the types of the key's columns.
    asked = [f"select {key} from {poll.table} where false"]
    asked += [f"select {', '.join(map(bare_literal, values))}" for values in keys]
    columns = ", ".join(
        f"{'k' if name in schema.primary_key else 'r'}.{quote(name)}" for name in schema.names
    )
    return (
        f"select coalesce(r.{LIVE}, false), r.{CHANGED_AT}, {columns}"
        f" from ({' union all '.join(asked)}) k left join ({_rows_sql(poll, 'true')}) r"
        f" on {matching('k', 'r', schema.primary_key)}"
    )


def _form_of(form: Stamp | None) -> Stamp | None:
    """Leave out what texts of one form may differ in."""
    return form and replace(form, digits=0)
