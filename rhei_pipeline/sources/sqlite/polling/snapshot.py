"""One committed state of a SQLite source, polled by its rows' timestamps.

Writers of SQLite are serial, so stamps of the database's clock follow the order of commits: a row
older than the newest one seen can no longer appear. Rows that carry the newest stamp itself can,
and can change again within its tick, so they are looked at again, by a digest, until it is closed.
"""

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from rhei_pipeline.model.changes import ChangeBatch, DeadLetter, Position, RowBatch
from rhei_pipeline.model.instants import instant
from rhei_pipeline.model.polling import DeletePolicy, Keyset, PollOptions, Stamp
from rhei_pipeline.model.schema import Table
from rhei_pipeline.protocols import Rescan
from rhei_pipeline.sources.polling_source import PollMemory
from rhei_pipeline.sources.sqlite.polling.table import (
    Condition,
    Glance,
    SqlitePoll,
    SqlitePolledTable,
    glances,
)
from rhei_pipeline.sources.sqlite.rows import ReadRows, SqliteRowReader
from rhei_pipeline.sources.sqlite.schema_objects import HARMLESS, SchemaState
from rhei_pipeline.sources.sqlite.types import decode_key, encode_key
from rhei_pipeline.sources.table_reads import TableReads

#: Data versions after which the one transaction that was open at a snapshot has surely ended: its
#: own commit is one, and its restart of the write-ahead log may have shown as another before.
_CLOSING_VERSIONS = 2
#: A table whose position is older than so many schema changes is compared whole.
_SCHEMAS = 16


@dataclass(frozen=True, slots=True)
class Question:
    """What asks for a glance at a table, in the shape of `poll`, behind a position's proof."""

    proof: str
    poll: SqlitePoll
    condition: Condition


@dataclass
class SqlitePollMemory(PollMemory):
    """Results of earlier snapshots, too.

    Attributes:
        parsed: What a position's proof says, and by which column.
        questions: What asks for a glance behind a position.
        glances: What the glance behind this proof found at this data version.
        drained: This proof was made at this data version, and so all that it says still holds.
        idle: Nothing was pending behind this proof at this data version.
        quiet: Nothing was pending behind this proof at this time, so what follows is later.
        settled: Where this glance is found behind this proof, nothing is to be done.
        ended: The tick of this timestamp had ended at this data version.
        closed: No row can join or leave the ties (timestamp, digest) any more unseen.
        audited: The clock of the last rescan, and its data version.
        doubts: Why changes may be missed, as found at a data version.
        schemas: The schema at each of the latest counts of its changes.
        unseen: Tables whose rows may have changed unseen since such a count.
    """

    parsed: dict[str, tuple[str, str, Keyset | None]] = field(default_factory=dict)
    questions: dict[str, Question] = field(default_factory=dict)
    glances: dict[str, tuple[tuple[str, int], Glance]] = field(default_factory=dict)
    drained: dict[str, tuple[str, int]] = field(default_factory=dict)
    idle: dict[str, tuple[str, int]] = field(default_factory=dict)
    quiet: dict[str, tuple[str, int]] = field(default_factory=dict)
    settled: dict[str, tuple[str, Glance]] = field(default_factory=dict)
    ended: dict[str, tuple[str, int]] = field(default_factory=dict)
    closed: dict[str, tuple[str, str]] = field(default_factory=dict)
    audited: dict[str, tuple[int, int]] = field(default_factory=dict)
    doubts: dict[str, tuple[int, str | None]] = field(default_factory=dict)
    schemas: dict[int, SchemaState] = field(default_factory=dict)
    unseen: dict[int, set[str]] = field(default_factory=dict)

    def distrust(self) -> None:
        """Mark all existing positions as unreliable."""
        super().distrust()
        self.drained.clear()
        self.idle.clear()
        self.settled.clear()

    def forget_versions(self) -> None:
        """Forget what was tied to a connection's data versions."""
        for facts in (
            self.glances,
            self.settled,
            self.drained,
            self.idle,
            self.ended,
            self.audited,
            self.doubts,
        ):
            facts.clear()
        self.schemas.clear()
        self.unseen.clear()

    def note_schema(self, connection: sqlite3.Connection, version: int) -> None:
        """Remember the schema as a transaction sees it, where its count is new."""
        if version in self.schemas:
            return
        state, former = SchemaState.read(connection), next(reversed(self.schemas), None)
        if former is not None:
            tables = {name for kind, name in state.objects if kind == "table"}
            changed = state.changed_unseen(self.schemas[former], tables)
            state = state.after(self.schemas[former])
            self.unseen = {since: found | changed for since, found in self.unseen.items()}
        self.schemas[version], self.unseen[version] = state, set()
        for old in list(self.schemas)[:-_SCHEMAS]:
            del self.schemas[old], self.unseen[old]

    def may_have_changed(self, table: str, since: int | None, now: int) -> bool:
        """Return whether later schema changes may have changed a table's rows without an event.

        One statement alone adds, drops or renames a column at most.
        """
        if since is not None and 0 <= now - since <= HARMLESS:
            return False
        return since not in self.unseen or table in self.unseen[since]


@dataclass(frozen=True, slots=True)
class _Look:
    """The pending changes after a position: a condition for rows, their count, and keys.

    Attributes:
        since: The source's clock when none of them was there yet.
    """

    parts: tuple[Condition, ...] = ()
    newer: int = 0
    others: int = 0
    touched: tuple[tuple[Any, ...], ...] = ()
    since: int = 0

    @property
    def events(self) -> int:
        return self.newer + self.others + len(self.touched)


class SqlitePollingSnapshot(TableReads):
    """A `SourceSnapshot` inside an open read transaction.

    Args:
        connection: Open, in a transaction that has read nothing yet.
        polls: Returns what is known of a table at a version of the schema.
        memory: What earlier snapshots of this connection found out.
        clock: The source's clock in microseconds, read before the transaction's first read: what
            a transaction not seen here stamps from now on is not older.
        read_rows: Reads rows of tables whole.
    """

    shares_log = False

    def __init__(
        self,
        connection: sqlite3.Connection,
        polls: Callable[[str, int], SqlitePoll],
        memory: SqlitePollMemory,
        clock: int,
        *,
        read_rows: ReadRows = SqliteRowReader.rows,
    ) -> None:
        self._connection = connection
        self._read_rows = read_rows
        self._polls_at = polls
        self._memory = memory
        self._now = clock
        self.clock = instant(clock)
        connection.execute("select 1 from sqlite_master").fetchone()
        self.schema_version = int(connection.execute("pragma schema_version").fetchone()[0])
        self._version = int(connection.execute("pragma data_version").fetchone()[0])
        memory.note_schema(connection, self.schema_version)
        self._after: dict[str, Position] = {}
        self._heads: dict[str, Position] = {}
        self._looks: dict[tuple[str, str], _Look] = {}
        self._tables: dict[str, SqlitePolledTable] = {}
        self._has_asked = False

    def head(self, table: Table) -> Position:
        """Return the position of all that this snapshot shows, or the one asked about if equal."""
        if table.name not in self._heads:
            self._heads[table.name] = self._head(table)
        return self._heads[table.name]

    def origin(self, table: Table) -> Position:
        """Return the same: rows and changes are read in one state."""
        return self.head(table)

    def _head(self, table: Table) -> Position:
        after = self._after.get(table.name)
        floor = self._memory.floors.get(table.name, 0)
        if after is None or not self.proves(table, after):
            return Position(floor + 1, self._keyset(table, None).text())
        look = self._look(table, after)
        known = self._known(table, after)
        if self.rescan(table, after) is not Rescan.NONE:
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
        polled, poll = self._table(table), self._table(table).poll
        newest = polled.newest()
        at = None if newest is None else encode_key([newest[0]])
        keyset = Keyset(
            poll.options.updated_at,
            at,
            key=None if newest is None else encode_key(newest[1:]),
            ties="" if at is None else polled.digest(poll.at("=", at)),
            ahead=polled.digest(poll.at(">", at)),
            blank=polled.digest(poll.blank()),
            clock=self._now,
            audited=audited,
            schema=self.schema_version,
        )
        place = (keyset.text(), self._version)
        self._memory.drained[table.name] = self._memory.idle[table.name] = place
        self._close(poll, keyset)
        return keyset

    def _close(self, poll: SqlitePoll, keyset: Keyset) -> None:
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
        """Return False if the source was restored to an older state or its clock went back."""
        self._remember(table, position)
        if self._is_drained(table, position):
            return True
        keyset = self._known(table, position)
        if keyset is None:
            return False
        sign = self._sign(table, position, keyset)
        if sign is not None:
            self._memory.warn_unproved(table.name, position, sign)
        return sign is None

    def _sign(self, table: Table, position: Position, keyset: Keyset) -> str | None:
        if keyset.clock > self._now or self._memory.is_distrusted(table.name, position):
            return "the source's clock went back"
        poll = self._polls(table.name)
        # Where it is compared whole anyway, a missing row only makes that due now.
        compares = poll.options.policy is DeletePolicy.RECONCILE
        if not compares and not self._is_witnessed(table, position, keyset):
            return "its newest row is gone or older (a restored backup, or a hard delete)"
        return None

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
        return self._table(table).oldest(look.parts[0])

    def changes(self, table: Table, after: Position, limit: int) -> Iterator[ChangeBatch]:
        """Yield net changes: a poll sees a row's last state, not those in between."""
        yield from self.net_changes(table, after, limit)

    def net_changes(self, table: Table, after: Position, limit: int) -> Iterator[ChangeBatch]:
        """Read the new rows, the rows that changed within their tick, and the keys touched."""
        self._remember(table, after)
        polled, look = self._table(table), self._look(table, after)
        for condition in look.parts:
            yield from polled.changed_rows(condition, look.since, limit)
        yield from polled.touched_rows(look.touched, look.since, limit)

    def rescan(self, table: Table, after: Position) -> Rescan:
        """Return whether a rescan is due: at an interval, after DDL, or if the newest row left."""
        self._remember(table, after)
        options, keyset = self._polls(table.name).options, self._known(table, after)
        if keyset is not None and self._may_be_rewritten(table, keyset):
            return Rescan.ALL
        wanted = self._wanted(table, options)
        if wanted is Rescan.NONE or keyset is None or keyset.audited is None:
            return wanted
        if self._memory.audited.get(table.name) == (keyset.audited, self._version):
            return Rescan.NONE  # nothing was committed since
        due = options.is_due(keyset.audited, self._now)
        return wanted if due or self._is_orphaned(table, after, keyset) else Rescan.NONE

    def _wanted(self, table: Table, options: PollOptions) -> Rescan:
        if options.policy is DeletePolicy.RECONCILE:
            return Rescan.ALL
        return Rescan.ROWS if self.doubt(table) else Rescan.NONE

    def _may_be_rewritten(self, table: Table, keyset: Keyset) -> bool:
        """Return whether schema changes may have changed rows without new timestamps."""
        return self._memory.may_have_changed(table.name, keyset.schema, self.schema_version)

    def _is_orphaned(self, table: Table, after: Position, keyset: Keyset) -> bool:
        return not self._is_drained(table, after) and not self._is_witnessed(table, after, keyset)

    def _is_witnessed(self, table: Table, position: Position, keyset: Keyset) -> bool:
        """Return whether the newest row read before is still there, no older than it was."""
        return self._glance(table, position, keyset).has_newest

    def _glance(self, table: Table, position: Position, keyset: Keyset | None) -> Glance:
        place, known = (position.proof, self._version), self._memory.glances.get(table.name)
        if known is None or known[0] != place:
            self._ask(table, position, keyset)
        return self._memory.glances[table.name][1]

    def _ask(self, table: Table, position: Position, keyset: Keyset | None) -> None:
        """Look at a table; the first time, at all that were looked at before as well."""
        poll, known = self._polls(table.name), self._memory.questions.get(table.name)
        if known is None or known.proof != position.proof or known.poll is not poll:
            condition = self._table(table).question(keyset)
            self._memory.questions[table.name] = Question(position.proof, poll, condition)
        asked = {table.name: self._memory.questions[table.name]}
        if not self._has_asked:
            self._has_asked = True
            try:
                self._answer(self._memory.questions)
            except sqlite3.Error:
                # Each is asked by itself: an error is then its own, and what is gone is forgotten.
                self._memory.questions = dict(asked)
            else:
                return
        self._answer(asked)

    def _answer(self, questions: Mapping[str, Question]) -> None:
        most = self._connection.getlimit(sqlite3.SQLITE_LIMIT_COMPOUND_SELECT)
        conditions = [question.condition for question in questions.values()]
        found = list(glances(self._connection, conditions, most))
        for (name, question), glance in zip(questions.items(), found, strict=True):
            place = (question.proof, self._version)
            self._memory.glances[name] = place, glance
            if self._memory.settled.get(name) == (question.proof, glance):
                self._memory.drained[name] = self._memory.idle[name] = place
                self._memory.doubts[name] = (self._version, None)

    def _settle(self, table: Table, after: Position, keyset: Keyset | None) -> None:
        """Note that a table is as it was, for as long as a glance at it finds the same."""
        place, glance = self._memory.glances.get(table.name, (("", 0), None))
        if glance is None or keyset is None or place != (after.proof, self._version):
            return
        is_plain = glance.has_newest and not (glance.newer or glance.has_blank or keyset.ahead)
        ties = self._memory.closed.get(table.name)
        is_closed = keyset.at is None or ties == (keyset.at, keyset.ties)
        if is_plain and is_closed and self.doubt(table) is None:
            self._memory.settled[table.name] = after.proof, glance

    def doubt(self, table: Table) -> str | None:
        """Return why a write may be missed: its timestamp need not follow the commit order."""
        version, reason = self._memory.doubts.get(table.name, (None, None))
        if version != self._version:
            (_, at), glance = self._memory.glances.get(table.name, (("", None), None))
            reason = self._table(table).doubt(glance if at == self._version else None)
            self._memory.doubts[table.name] = (self._version, reason)
        return reason

    def rows(self, table: Table, resume: str | None, limit: int) -> RowBatch | None:
        """Read the next rows in key order."""
        return self._read_rows(self._table(table).reader, resume, limit)

    def keyless(self, table: Table) -> tuple[DeadLetter, ...]:
        """Return the rows whose key is null."""
        return self._table(table).reader.keyless()

    def keyless_count(self, table: Table, where: str) -> int:
        """Count the rows whose key is null."""
        return self._reader(table).keyless_count(where)

    def _reader(self, table: Table) -> SqliteRowReader:
        return self._table(table).reader

    def _table(self, table: Table) -> SqlitePolledTable:
        if table.name not in self._tables:
            poll = self._polls(table.name)
            self._tables[table.name] = SqlitePolledTable(self._connection, poll, self._now)
        return self._tables[table.name]

    def _remember(self, table: Table, position: Position) -> None:
        self._after[table.name] = position
        self._memory.note(table.name, position.order)

    def _known(self, table: Table, position: Position) -> Keyset | None:
        column = self._polls(table.name).options.updated_at
        proof, by, keyset = self._memory.parsed.get(table.name, (None, None, None))
        if proof != position.proof or by != column:
            keyset = Keyset.read(position.proof, column)
            self._memory.parsed[table.name] = position.proof, column, keyset
        return keyset

    def _polls(self, name: str) -> SqlitePoll:
        return self._polls_at(name, self.schema_version)

    def _is_drained(self, table: Table, position: Position) -> bool:
        drained = self._memory.drained.get(table.name) == (position.proof, self._version)
        return drained and not self._memory.touched.get(table.name)

    def _look(self, table: Table, after: Position) -> _Look:
        touched = self._memory.touched.get(table.name)
        if self._memory.idle.get(table.name) == (after.proof, self._version) and not touched:
            self._memory.quiet[table.name] = (after.proof, self._now)
            return _Look()
        place = (table.name, after.proof)
        if place not in self._looks:
            look = self._looks[place] = self._look_behind(table, after)
            if not look.events:
                self._memory.idle[table.name] = (after.proof, self._version)
                self._memory.quiet[table.name] = (after.proof, self._now)
                self._settle(table, after, self._known(table, after))
        return self._looks[place]

    def _look_behind(self, table: Table, after: Position) -> _Look:
        keyset = self._known(table, after)
        proof, quiet = self._memory.quiet.get(table.name, ("", 0))
        polled, poll = self._table(table), self._table(table).poll
        newer, others = poll.at(">", keyset.at if keyset else None), []
        glance = self._glance(table, after, keyset)
        count = glance.newer
        if keyset and keyset.ahead and keyset.ahead == polled.digest(newer):
            count = 0
        if keyset and self._has_changed_ties(polled, keyset):
            others.append(poll.at("=", keyset.at))
        blank = polled.digest(poll.blank()) if glance.has_blank else ""
        if keyset is None or keyset.blank != blank:
            others.append(poll.blank())
        counted = [(part, polled.count(part)) for part in others]
        return _Look(
            tuple(filter(None, [newer if count else None, *(part for part, n in counted if n)])),
            count,
            sum(n for _, n in counted),
            tuple(self._memory.touched.get(table.name, ())),
            max(keyset.clock, quiet if proof == after.proof else 0) if keyset else 0,
        )

    def _has_changed_ties(self, polled: SqlitePolledTable, keyset: Keyset) -> bool:
        if keyset.at is None:
            return False
        if self._memory.closed.get(polled.poll.source.schema.name) == (keyset.at, keyset.ties):
            return False
        changed = keyset.ties != polled.digest(polled.poll.at("=", keyset.at))
        if not changed:
            self._close(polled.poll, keyset)
        return changed
