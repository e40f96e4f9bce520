"""One committed state of a PostgreSQL source, polled by its rows' timestamps.

Everything that a snapshot shows is applied, whatever its timestamps are, so the mirror is one
state of the source. Only the timestamp from which rows are read again follows the horizon: rows
that the snapshot does not show have no earlier one. Row versions that were read before are
recognized by the xid of their transaction, which becomes visible as a whole or not at all.
"""

from collections.abc import Callable, Collection, Iterator
from datetime import datetime

from rhei_pipeline.errors import CaptureError
from rhei_pipeline.model.changes import ChangeBatch, Position, RowBatch
from rhei_pipeline.model.instants import instant
from rhei_pipeline.model.polling import Clock, DeletePolicy, Horizon, PollOptions
from rhei_pipeline.model.schema import Table
from rhei_pipeline.protocols import Rescan
from rhei_pipeline.sources.postgres.catalog import Connection
from rhei_pipeline.sources.postgres.identity import refuse_rewritten
from rhei_pipeline.sources.postgres.polling.answers import Answers
from rhei_pipeline.sources.postgres.polling.clauses import Clause, ask_together
from rhei_pipeline.sources.postgres.polling.horizon import HorizonReading
from rhei_pipeline.sources.postgres.polling.memory import NAMED, XIDS, PostgresPollMemory, Window
from rhei_pipeline.sources.postgres.polling.table import (
    Behind,
    PendingRows,
    PostgresGlance,
    PostgresPoll,
    PostgresPolledTable,
    unread,
)
from rhei_pipeline.sources.postgres.rows import PostgresRowReader
from rhei_pipeline.sources.table_reads import TableReads

#: Fewer tables are not asked about together.
_WORTH_ASKING = 2

#: Of a table that was never looked at.
_NO_GLANCE: tuple[tuple[str, str], PostgresGlance | None] = (("", ""), None)

#: A snapshot of a replica does not number what runs at its primary.
_STATE = """
select pg_current_snapshot()::text || coalesce(pg_last_wal_replay_lsn()::text, ''),
    pg_snapshot_xmax(pg_current_snapshot())::text::bigint
"""


class PostgresPollingSnapshot(TableReads):
    """A `SourceSnapshot` inside an open REPEATABLE READ transaction.

    Args:
        connection: Open, in a transaction that has read nothing yet.
        polls: Returns what is known of a table.
        memory: Results of earlier snapshots of this connection.
        reading: The horizon, read before the transaction began.
        version: Returns the schema's version as the transaction sees it.
    """

    shares_log = False

    def __init__(
        self,
        connection: Connection,
        polls: Callable[[str], PostgresPoll],
        memory: PostgresPollMemory,
        reading: HorizonReading,
        version: Callable[[], int],
    ) -> None:
        self._connection = connection
        self._answers = Answers(connection)
        self._has_looked_ahead = False
        self._settled: dict[str, str] = {}
        self._polls = polls
        self._memory = memory
        self._reading = reading
        self._now = reading.clock
        self.clock = instant(reading.clock)
        found = connection.execute(_STATE.encode()).fetchone()
        if found is None:
            raise CaptureError("the server did not report its state")
        self._state, self._xid = found
        self.schema_version = version()
        self._after: dict[str, Position] = {}
        self._heads: dict[str, Position] = {}
        self._looks: dict[tuple[str, str], PendingRows] = {}
        self._tables: dict[str, PostgresPolledTable] = {}

    def _reader(self, table: Table) -> PostgresRowReader:
        return self._table(table).reader

    def _table(self, table: Table) -> PostgresPolledTable:
        if table.name not in self._tables:
            poll = self._polls(table.name)
            self._tables[table.name] = PostgresPolledTable(
                self._connection, self._answers, poll, self._now
            )
        return self._tables[table.name]

    def head(self, table: Table) -> Position:
        """Return the position of all that this snapshot shows, or the one asked about if equal."""
        if table.name not in self._heads:
            head = self._heads[table.name] = self._head(table)
            self._memory.asked[table.name] = (table, head)
        return self._heads[table.name]

    def origin(self, table: Table) -> Position:
        """Return the head: rows and changes are read in one state."""
        return self.head(table)

    def _head(self, table: Table) -> Position:
        after = self._after.get(table.name)
        floor = self._memory.floors.get(table.name, 0)
        if after is None or not self.proves(table, after):
            return Position(floor + 1, self._horizon(table, None, None).text())
        look, known = self._look(table, after), self._known(table, after)
        floor = max(after.order, floor)
        if self.rescan(table, after) is not Rescan.NONE:
            self._memory.audited[table.name] = (self._now, self._state)
            proof = self._horizon(table, known, self._now).text()
            return Position(floor + max(look.events, 1), proof)
        if not look.events:
            return after
        audited = known.audited if known else None
        return Position(floor + look.events, self._horizon(table, known, audited).text())

    def _horizon(self, table: Table, known: Horizon | None, audited: int | None) -> Horizon:
        """Return what this snapshot shows, and where the next poll must begin."""
        polled = self._table(table)
        refuse_rewritten(self._connection, polled.poll.source)
        newest = polled.newest()
        low, least = self._begin(table, known)
        versions, read = polled.versions(str(polled.within(low, least)))
        lately = audited == self._now
        horizon = Horizon(
            polled.poll.options.updated_at,
            polled.poll.origin,
            low,
            least,
            newest=None if newest is None else newest[0],
            key=() if newest is None else newest[1:],
            writers=read if len(read) <= NAMED else None,
            seen=versions,
            clock=self._now,
            xid=self._xid,
            audited=audited,
            doubted=bool(self.doubt(table) or (known and known.doubted and not lately)),
            kinds=polled.poll.key_kinds,
        )
        self._memory.windows[table.name] = Window(
            horizon.text(), low, least, read, self._xid, self._now, self._state
        )
        return horizon

    def _begin(self, table: Table, known: Horizon | None) -> tuple[int | None, str | None]:
        """Return the instant, and the timestamp, from which the next poll must read."""
        doubt = self.doubt(table)
        low = self._reading.low(known.low if known else None, doubted=doubt is not None)
        return low, None if doubt is None else self._newest_stamp(table)

    def _newest_stamp(self, table: Table) -> str | None:
        (_, at), glance = self._memory.glances.get(table.name, _NO_GLANCE)
        if at == self._state and glance is not None and glance.newest is not None:
            return glance.newest
        return self._table(table).newest_stamp()

    def proves(self, table: Table, position: Position) -> bool:
        """Return False if the source was restored to an older state or its clock went back."""
        self._remember(table, position)
        if self._is_settled(table, position):
            return True
        known = self._known(table, position)
        if known is None:
            return False
        sign = self._sign(table, position, known)
        if sign is not None:
            self._memory.warn_unproved(table.name, position, sign)
        return sign is None

    def _sign(self, table: Table, position: Position, known: Horizon) -> str | None:
        poll = self._polls(table.name)
        if (moved := poll.differs_from(known.origin)) is not None:
            return moved
        if known.xid > self._xid:
            return "the server is in an older state (a restored backup)"
        if known.clock > self._now or self._memory.is_distrusted(table.name, position):
            return "the source's clock went back"
        # Where it is compared whole anyway, a missing row only makes that due now.
        compares = poll.options.policy is DeletePolicy.RECONCILE
        if not compares and not self._is_witnessed(table, position):
            return "its newest row is gone or older (a restored backup, or a hard delete)"
        return None

    def _is_witnessed(self, table: Table, position: Position) -> bool:
        """Return whether the newest row read before exists, with the same or a newer timestamp."""
        known = self._known(table, position)
        return known is None or self._glance(table, position, known).has_newest

    def _glance(self, table: Table, position: Position, known: Horizon) -> PostgresGlance:
        """Look at a table; the first time, at all that were looked at before as well."""
        place = (position.proof, self._state)
        if self._memory.glances.get(table.name, _NO_GLANCE)[0] != place:
            self._look_ahead()
        before, glance = self._memory.glances.get(table.name, _NO_GLANCE)
        if before != place or glance is None:
            polled = self._table(table)
            question = self._question(table, known, self._behind(table, position))
            glance = polled.glance(question)
            self._memory.glances[table.name] = place, glance
        return glance

    def pending(self, table: Table, after: Position) -> int:
        """Count the rows that were written since the position was recorded."""
        self._remember(table, after)
        return 0 if self._is_settled(table, after) else self._look(table, after).events

    def oldest_pending(self, table: Table, after: Position) -> datetime | None:
        """Return the oldest timestamp of the new rows, or when none of them existed yet."""
        self._remember(table, after)
        look = self._look(table, after)
        if not look.rows:
            return self.clock if look.events else None
        since = instant(look.since)
        return max(self._table(table).oldest(look.condition), since)

    def changes(self, table: Table, after: Position, limit: int) -> Iterator[ChangeBatch]:
        """Yield net changes: a poll sees a row's last state, not those in between."""
        yield from self.net_changes(table, after, limit)

    def net_changes(self, table: Table, after: Position, limit: int) -> Iterator[ChangeBatch]:
        """Yield the rows written since, and the rows of the touched keys."""
        self._remember(table, after)
        polled, look = self._table(table), self._look(table, after)
        if look.rows:
            yield from polled.changed_rows(look.condition, look.since, limit)
        yield from polled.touched_rows(look.touched, look.since, limit)

    def rescan(self, table: Table, after: Position) -> Rescan:
        """Return whether a rescan is due: at an interval, or if the newest row read is gone."""
        self._remember(table, after)
        if self._is_settled(table, after):
            return Rescan.NONE
        options, known = self._polls(table.name).options, self._known(table, after)
        wanted = self._wanted(table, options, known)
        if wanted is Rescan.NONE or known is None or known.audited is None:
            return wanted
        if self._memory.audited.get(table.name) == (known.audited, self._state):
            return Rescan.NONE  # nothing was committed since
        due = options.is_due(known.audited, self._now) or not self._is_witnessed(table, after)
        return wanted if due else Rescan.NONE

    def _wanted(self, table: Table, options: PollOptions, known: Horizon | None) -> Rescan:
        if options.policy is DeletePolicy.RECONCILE:
            return Rescan.ALL
        doubted = self.doubt(table) is not None or (known is not None and known.doubted)
        return Rescan.ROWS if doubted else Rescan.NONE

    def doubt(self, table: Table) -> str | None:
        """Return why a write may be missed: its timestamp may be earlier than the horizon."""
        state, reason = self._memory.doubts.get(table.name, (None, None))
        if state != self._state:
            (_, at), glance = self._memory.glances.get(table.name, _NO_GLANCE)
            reason = self._table(table).doubt(glance if at == self._state else None)
            self._memory.doubts[table.name] = (self._state, reason)
        # Who is connected changes without a commit.
        return reason or self._reading.doubt_of(self._polls(table.name).source.oid)

    def rows(self, table: Table, resume: str | None, limit: int) -> RowBatch | None:
        """Return the next rows in key order."""
        return self._table(table).reader.rows(resume, limit)

    def close(self) -> None:
        """End all unfinished reads."""
        for polled in self._tables.values():
            polled.close()

    def _remember(self, table: Table, position: Position) -> None:
        self._after[table.name] = position
        self._memory.note(table.name, position.order)

    def _known(self, table: Table, position: Position) -> Horizon | None:
        column = self._polls(table.name).options.updated_at
        proof, by, known = self._memory.parsed.get(table.name, (None, None, None))
        if (proof, by) != (position.proof, column):
            known = Horizon.read(position.proof, column)
            self._memory.parsed[table.name] = position.proof, column, known
        return known

    def _is_idle(self, table: Table, position: Position) -> bool:
        """Return whether the source is in the state in which nothing was pending there."""
        window = self._memory.windows.get(table.name)
        same = window is not None and (window.proof, window.state) == (position.proof, self._state)
        return same and not self._memory.touched.get(table.name)

    def _look(self, table: Table, after: Position) -> PendingRows:
        if self._is_idle(table, after):
            return PendingRows()
        place = (table.name, after.proof)
        if place not in self._looks:
            self._looks[place] = self._look_behind(table, after)
            self._memory.asked[table.name] = (table, after)
        return self._looks[place]

    def _look_ahead(self) -> None:
        """Look at all tables that were looked at before, once in a snapshot.

        In most cycles most tables have no changes. If a table fails, all are forgotten: each is
        then read alone, and only those that can be are asked about the next time.
        """
        if self._has_looked_ahead:
            return
        self._has_looked_ahead = True
        asked = [place for place in self._memory.asked.values() if not self._is_idle(*place)]
        if len(asked) < _WORTH_ASKING:
            return
        before, self._memory.asked = self._memory.asked, {}
        glances, self._memory.glances = self._memory.glances, {}
        with self._answers.ahead():
            self._ask_of_all(asked)
            self._memory.asked, glances = before, glances | self._memory.glances
        self._memory.glances = glances

    def _ask_of_all(self, asked: Collection[tuple[Table, Position]]) -> None:
        self._answers.ask(sql for table, _ in asked for sql in self._table(table).form_questions())
        looks = [
            (table, after, known, self._behind(table, after))
            for table, after in asked
            if (known := self._known(table, after))
        ]
        questions = [self._question(table, known, behind) for table, _, known, behind in looks]
        quiet = []
        for (table, after, known, behind), found in zip(
            looks, ask_together(self._connection, questions), strict=True
        ):
            glance = PostgresGlance(*found)
            self._memory.glances[table.name] = (after.proof, self._state), glance
            if behind and not glance.unread and not self._memory.touched.get(table.name):
                quiet.append((table, after, known))
        self._settle(quiet)

    def _question(self, table: Table, known: Horizon, behind: Behind | None) -> Clause:
        """Ask for a glance; where there is a doubt anyway, it finds the newest timestamp."""
        polled = self._table(table)
        doubt = self._reading.doubt_of(polled.poll.source.oid)
        is_doubted = polled.poll.options.clock is Clock.APPLICATION or doubt
        known_one = self._memory.questions.get(table.name)
        asked = polled.question(known, behind, known_one, with_newest=bool(is_doubted))
        self._memory.questions[table.name] = asked
        return asked.clause

    def _settle(self, quiet: Collection[tuple[Table, Position, Horizon]]) -> None:
        """Note of which tables all is done: they are proved, and nothing is pending."""
        begins = [
            (table, after, begin, self._read_before(table, after, *begin))
            for table, after, known in quiet
            if self._sign(table, after, known) is None
            and self.rescan(table, after) is Rescan.NONE
            and (begin := self._next_begin(table, known))
        ]
        self._answers.ask(
            [
                self._table(table).versions_sql(str(self._table(table).within(*begin)))
                for table, _, begin, former in begins
                if former is None
            ],
            columns=2,
        )
        # Rows that a table's rewriting hides would lie before where the next poll begins.
        refuse_rewritten(
            self._connection, *(self._table(table).poll.source for table, *_ in begins)
        )
        for table, after, begin, former in begins:
            self._move_window(table, after, begin, former)
            self._settled[table.name] = after.proof

    def _is_settled(self, table: Table, position: Position) -> bool:
        return self._settled.get(table.name) == position.proof

    def _look_behind(self, table: Table, after: Position) -> PendingRows:
        polled, known = self._table(table), self._known(table, after)
        touched = tuple(self._memory.touched.get(table.name, ()))
        if known is None:
            return PendingRows("true", polled.count("true"), touched)
        behind = self._behind(table, after)
        if behind is None:
            condition, since = str(polled.within(known.low, known.least)), known.clock
            is_same = polled.versions(condition)[0] == known.seen
            rows = 0 if is_same else polled.count(condition)
        else:
            rows, since = self._glance(table, after, known).unread, behind.since
            if rows:
                within = polled.within(behind.low, behind.least)
                condition = f"{within} and {unread(behind.read)}"
        if not rows:
            condition = "false"
            refuse_rewritten(self._connection, polled.poll.source)
            begin = self._next_begin(table, known)
            self._move_window(table, after, begin, self._read_before(table, after, *begin))
        return PendingRows(condition, rows, touched, since)

    def _behind(self, table: Table, after: Position) -> Behind | None:
        """Return where the rows lie that were written since a position.

        None if only a digest shows whether any were.
        """
        known = self._known(table, after)
        window = self._memory.windows.get(table.name)
        if window is not None and window.proof == after.proof:
            return Behind(window.low, window.least, window.read, window.clock)
        if known is None or known.writers is None or self._xid - known.xid >= XIDS:
            return None
        return Behind(known.low, known.least, known.writers, known.clock)

    def _move_window(
        self,
        table: Table,
        after: Position,
        begin: tuple[int | None, str | None],
        former: Window | None,
    ) -> None:
        """Let the next poll begin at this snapshot's horizon: the mirror has all it shows."""
        read, xid = (former.read, former.xid) if former else ((), self._xid)
        if former is None:
            polled = self._table(table)
            _, read = polled.versions(str(polled.within(*begin)))
        self._memory.windows[table.name] = Window(
            after.proof, *begin, read, xid, self._now, self._state
        )

    def _read_before(
        self, table: Table, after: Position, low: int | None, least: str | None
    ) -> Window | None:
        """Return the last window if its transactions wrote all that is in the next one as well."""
        window = self._memory.windows.get(table.name)
        if window is None or window.proof != after.proof or window.least != least:
            return None
        is_alike = self._table(table).poll.stamp.family.is_written_alike
        return window if is_alike and window.holds_all_from(low, self._xid) else None

    def _next_begin(self, table: Table, known: Horizon) -> tuple[int | None, str | None]:
        """Return where the next poll begins if nothing is pending.

        A doubt that the position does not record must not move it: it would be lost.
        """
        if known.doubted or self.doubt(table) is None:
            return self._begin(table, known)
        return known.low, known.least
