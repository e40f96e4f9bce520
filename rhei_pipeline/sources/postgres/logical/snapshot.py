"""One committed state of a PostgreSQL source, read from its log."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from functools import lru_cache

import numpy as np

from rhei_pipeline.errors import SourceFullError
from rhei_pipeline.model.changes import (
    ChangeBatch,
    Position,
    RowBatch,
    event_schema,
)
from rhei_pipeline.model.instants import instant, microseconds
from rhei_pipeline.model.schema import Table, TableSchema
from rhei_pipeline.sources.postgres.logical import pgoutput, shared_keys
from rhei_pipeline.sources.postgres.logical.events import LoggedRows
from rhei_pipeline.sources.postgres.logical.moment import (
    LogMoment,
    LogPortion,
    RowView,
    Slot,
    Visible,
)
from rhei_pipeline.sources.postgres.logical.position import (
    NO_COMMIT,
    LogMemory,
    LogPosition,
    TableCommit,
)
from rhei_pipeline.sources.postgres.logical.spool import Chunk, Spool
from rhei_pipeline.sources.postgres.read_ahead import ReadAhead
from rhei_pipeline.sources.postgres.rows import PostgresRowReader
from rhei_pipeline.sources.table_reads import TableReads

#: An idle table's watermark is recorded once it holds back so much of the log.
RETAINED_BYTES = 16 * 2**20

#: So many batches make a table large: its rows are read by several connections.
_LARGE = 4


#: So many tables are known by their positions' proofs: a cycle asks for each.
_REMEMBERED = 10_000

#: Yields the messages behind a slot of all transactions that committed before a place.
ReadLog = Callable[[Slot, int], Iterator[LogPortion]]


class LogicalSnapshot(TableReads):
    """A `SourceSnapshot` that ends at a log position, or exactly where a row view does.

    A commit is in the log before others see it; while it waits for a standby, long before. So the
    position comes before the first such commit: whoever reads rows later sees all that is before.

    Args:
        read: Yields the slot's pending messages, up to a log position, in batches.
        moment: When it was taken.
        memory: What is known of positions.
        look: Returns what a snapshot of the rows sees now.
        wait_for_writers: Waits for running transactions; returns the log's end before that.
        key_at: Returns the key of a table, of this number, at a version of the schema; empty
            where it is gone.
        unique_at: Returns the unique indexes of the table of a number, at a version of the schema;
            None where it is gone.
        view: Reads rows; changes that it does not see are left out.
    """

    shares_log = True

    def __init__(  # noqa: PLR0913, PLR0917  (what it reads, and what it asks for)
        self,
        read: ReadLog,
        moment: LogMoment,
        memory: LogMemory,
        look: Callable[[], Visible],
        wait_for_writers: Callable[[], int],
        key_at: Callable[[str, int, int], frozenset[str]],
        unique_at: Callable[[int, int], Sequence[shared_keys.UniqueKey] | None],
        view: RowView | None = None,
    ) -> None:
        self._read = read
        self._memory = memory
        self._end = self._head = moment.head
        self._look = look
        self._slot, self._recent = moment.slot, moment.recent
        self._server = moment.server
        self._proofs, self._keys = dict(moment.proofs), moment.keys
        self._lasts: dict[str, TableCommit] = {}
        #: What a cycle asks for several times.
        self._heads: dict[str, Position] = {}
        self._places: dict[Position, LogPosition] = {}
        self._silent = moment.silent
        self._columns = moment.columns
        self._wait_for_writers = wait_for_writers
        self._key_at, self._unique_at = key_at, unique_at
        #: Behind which position a table is read.
        self._after: dict[str, Position] = {}
        self._view = view
        #: What was read of our slot, and of the one that has the newest part.
        self._spool: Spool | None = None
        self._newest: Spool | None = None
        self._behind: dict[Position, Sequence[tuple[Chunk, pgoutput.Run]]] = {}
        self._ahead: ReadAhead | None = None
        self._counted: dict[str, int] = {}
        self.clock = moment.clock
        self.schema_version = moment.schema_version

    @property
    def is_silent(self) -> bool:
        """Whether the log was read and contained no change."""
        return self._spool is not None and self._spool.is_empty

    def head(self, table: Table) -> Position:
        """Return the end of what is read: before the first commit that is not seen.

        Of a table in its shape of before: where it got another key.
        """
        self._loaded()
        found = self._heads.get(table.name)
        if found is None:
            end, taken = self._end_of(table)
            place = self._place_at(table, end, self._last_before(table, end))
            place = replace(place, taken=taken)
            found = self._heads[table.name] = self._memory.position(table.name, place)
        return found

    def _end_of(self, table: Table) -> tuple[int, int]:
        """Return where reading a table ends, and how much is before it of the transaction there."""
        after = self._after.get(table.name)
        runs = [] if after is None else self._runs(after)
        first = self._other_key_from(table, runs)
        if after is None or first is None:
            return self._head, 0
        [end] = [int(lsn) for _, run in runs for lsn in run.lsn[run.order == first]]
        place = self._place(after)
        taken = place.taken if place.lsn == end else 0
        before = [np.sum((run.lsn == end) & (run.order < first)) for _, run in runs]
        return end, taken + int(sum(before))

    def origin(self, table: Table) -> Position:
        """Wait for the running transactions; return the log's end before that."""
        self._loaded()
        last = self._last_before(table, self._head)
        found = self._place_at(table, self._wait_for_writers(), last)
        return replace(found, known=self._head).position()

    def _place(self, position: Position) -> LogPosition:
        """Return what a position means; a cycle asks several times."""
        found = self._places.get(position)
        if found is None:
            found = self._places[position] = self._memory.place(position)
        return found

    def _place_at(self, table: Table, lsn: int, last: TableCommit | None) -> LogPosition:
        base = self._memory.bases.get(table.name, 0)
        keys = self._keys.get(table.name, ())
        return LogPosition(lsn, self._relation(table), base, last, keys=keys)

    def _last_before(self, table: Table, end: int) -> TableCommit | None:
        """Return a table's last commit before a place; what was read may begin behind it."""
        oid, lasts = _relation_of(self._relation(table), self._server), self._lasts
        for spool in filter(None, (self._newest, self._spool)):
            found = spool.last_commit(oid, 0, end)
            if found != NO_COMMIT:
                return found
        is_all_read = self._spool is not None and self._slot is not None
        return lasts.get(table.name, NO_COMMIT if is_all_read else None)

    def _relation(self, table: Table) -> str:
        return self._proofs.get(table.name, "")

    def proves(self, table: Table, position: Position) -> bool:
        """Return whether the slot still holds everything after the position, of the same table.

        Until capture of the name is installed again, that is the table of the position, even if
        it was dropped or renamed since: what the log holds of it must still be read.
        """
        slot, place = self._slot, self._place(position)
        if table.name not in self._proofs and _relation_of(place.relation, self._server):
            self._proofs[table.name] = place.relation
        is_held = (
            slot is not None
            and not slot.lost
            and slot.confirmed <= place.lsn <= self._end
            and self._relation(table) == place.relation != ""
        )
        if not is_held or not self._is_of_this_log(table, position, place):
            return False
        if not self._is_logged_by_key(table, position):
            self._memory.distrust(table.name, position)
        if self._memory.unfit.get(table.name) == position:
            return False
        self._heads.pop(table.name, None)  # it stands upon what is proved
        self._after[table.name] = position
        self._memory.bases[table.name] = place.base
        if place.last is not None:
            self._lasts[table.name] = place.last
        return True

    def _is_of_this_log(self, table: Table, position: Position, place: LogPosition) -> bool:
        """Return whether the log has the commit before a position that it had when it was read."""
        begin = self._begin(place.lsn)
        if place.last is None or self._memory.proved.get(table.name) == position:
            return True
        if begin < place.noted_at:
            known = place.last if place.last.lsn >= begin else NO_COMMIT
            oid = _relation_of(place.relation, self._server)
            if self._loaded(position).last_commit(oid, begin, place.noted_at) != known:
                return False
        self._memory.note(table.name, position, place)
        return True

    def _is_logged_by_key(self, table: Table, position: Position) -> bool:
        """Return whether rows behind a position had no other key than the one they are read by.

        By that, two of them may then have been one. Of what nobody has asked for yet, nothing is
        read for this.
        """
        if not self._behind.get(position):
            return True
        key, runs = frozenset(table.schema.primary_key), self._runs_of(table, position)
        logged = {self._key_of(table, run) for _, run in runs}
        if not logged <= {key, frozenset(), None}:
            return False
        return logged <= {key} or self._is_unique(table, position, runs, is_whole=None in logged)

    def _is_unique(
        self,
        table: Table,
        position: Position,
        runs: Sequence[tuple[Chunk, pgoutput.Run]],
        *,
        is_whole: bool,
    ) -> bool:
        """Return whether no two rows had one key at once.

        Without any key, rows are inserted only, unless `is_whole`: the log has all that they held.
        It has that also of parts whose whole has no key, and does not say so.
        """
        held = self._unique_at(runs[0][1].relation.oid, self.schema_version)
        schema, spool = table.schema, self._loaded(position)
        unique = shared_keys.uniqueness(held, schema.primary_key, self._place(position).keys)
        key = frozenset(schema.primary_key)
        parts = (
            shared_keys.LoggedPart(
                spool.read(chunk), self._by_places(table, run), self._key_of(table, run) == key
            )
            for chunk, run in runs
        )
        return shared_keys.are_told_apart(parts, schema.key_columns, unique, is_whole=is_whole)

    def _key_of(self, table: Table, run: pgoutput.Run) -> frozenset[str] | None:
        """Return the key that rows were logged by, in the names that its columns have now."""
        if run.relation.key is None:
            return None
        logged, own = run.relation.columns, self._by_places(table, run).relation.columns
        names = dict(zip(logged, own, strict=True))
        return frozenset(names[name] for name in run.relation.key)

    def _begin(self, lsn: int) -> int:
        """Return from where on the log is read, for what is behind a place."""
        if self._recent is not None and lsn >= self._recent.confirmed:
            return self._recent.confirmed
        return self._slot.confirmed if self._slot is not None else lsn

    def retains(self, position: Position) -> bool:
        """Return whether the server keeps much of its log for this position alone."""
        return self._end - self._place(position).lsn > RETAINED_BYTES

    def pending(self, _table: Table, after: Position) -> int:
        """Count the changes after the position, by whichever key they are read."""
        return sum(len(run.order) for _, run in self._runs(after))

    def oldest_pending(self, _table: Table, after: Position) -> datetime | None:
        """Return when the first change after the position was committed."""
        found = [int(run.committed_at.min()) for _, run in self._runs(after)]
        return instant(min(found)) if found else None

    def changes(self, table: Table, after: Position, limit: int) -> Iterator[ChangeBatch]:
        """Yield every change, in commit order."""
        schema = table.schema
        for chunk, logged in self._runs_of(table, after):
            run = self._by_places(table, logged)
            for start in range(0, len(run.order), limit):
                part = run.take(np.arange(start, min(start + limit, len(run.order))))
                yield self._batch(schema, self._loaded(after).read(chunk), part)

    def net_changes(self, table: Table, after: Position, limit: int) -> Iterator[ChangeBatch]:
        """Yield every change; the last one of a key is its net change."""
        yield from self.changes(table, after, limit)

    def logged_columns(self, after: Position) -> set[tuple[str, ...]]:
        """Return which columns the table had when it was changed after the position."""
        return {run.relation.columns for _, run in self._runs(after)}

    def _by_places(self, table: Table, run: pgoutput.Run) -> pgoutput.Run:
        """Give columns that were logged under other names the names that they have now."""
        own = self._columns.get(table.name, ())
        if not {*table.schema.names} <= {*own} or len(own) != len(run.relation.columns):
            return run
        return replace(run, relation=replace(run.relation, columns=own))

    def _runs_of(self, table: Table, after: Position) -> Sequence[tuple[Chunk, pgoutput.Run]]:
        """Return a table's changes behind a position, up to where it got another key."""
        runs = self._runs(after)
        first = self._other_key_from(table, runs)
        if first is None:
            return runs
        parts = [(chunk, run.take(np.flatnonzero(run.order < first))) for chunk, run in runs]
        return [(chunk, part) for chunk, part in parts if len(part.order)]

    def _other_key_from(
        self, table: Table, runs: Sequence[tuple[Chunk, pgoutput.Run]]
    ) -> int | None:
        """Return the first change of a table's rows that has another key than it is read by.

        None: all of them can be read by that. Two rows of the new key may be one of the old.
        """
        key = frozenset(table.schema.primary_key)
        doubtful = [run for _, run in runs if self._key_of(table, run) != key]
        if not doubtful:
            return None
        now = self._key_at(table.name, doubtful[0].relation.oid, self.schema_version)
        if now in {key, frozenset[str]()}:
            return None
        others = [int(run.order[0]) for run in doubtful if _may_have(run.relation, now)]
        return min(others, default=None)

    def _runs(self, after: Position) -> Sequence[tuple[Chunk, pgoutput.Run]]:
        """Return a table's changes behind a position; a cycle asks for them several times."""
        spool = self._loaded(after)
        if after not in self._behind:
            place = self._place(after)
            relation = _relation_of(place.relation, self._server)
            parts = ((chunk, self._part_of(run, after)) for chunk, run in spool.of(relation))
            found = [(chunk, run) for chunk, run in parts if len(run.order)]
            self._behind[after] = [*_without_first(found, place.taken)] if place.taken else found
        return self._behind[after]

    def _part_of(self, run: pgoutput.Run, after: Position) -> pgoutput.Run:
        wanted = run.lsn >= self._place(after).lsn
        if self._view is None:
            wanted &= run.lsn < self._head
        else:
            wanted &= self._view.visible.sees(run.xid)
        return run if wanted.all() else run.take(np.flatnonzero(wanted))

    def _loaded(self, after: Position | None = None) -> Spool:
        """Return what was read of the log; its newest part alone, where that is what is asked."""
        recent = self._recent
        place = None if after is None else self._place(after).lsn
        if recent is not None and (place is None or place >= recent.confirmed):
            if self._newest is None:
                self._newest = self._load(recent, is_first=self._spool is None)
            return self._newest
        if self._spool is None:
            self._spool = self._load(self._slot, is_first=self._newest is None)
        return self._spool

    def _load(self, slot: Slot | None, *, is_first: bool) -> Spool:
        """Read the log from a slot on; the first time, note where its visible part ends.

        What is before the newest part was applied in a former cycle, and so was visible then.
        """
        spool, context, first = Spool(), pgoutput.DecodingContext(microseconds(self.clock)), 0
        if slot is None or slot.lost or self._silent:
            return spool
        try:
            for part in self._read(slot, self._end):
                first += spool.add(part, first, context)
        except BaseException:
            spool.close()
            raise
        if is_first and not spool.is_empty:
            unseen = spool.first_unseen(self._view.visible if self._view else self._look())
            self._head = self._end if unseen is None else unseen
        return spool

    def _batch(self, schema: TableSchema, buffer: bytes, run: pgoutput.Run) -> ChangeBatch:
        if run.truncate:
            at = instant(int(run.committed_at[0]))
            empty = event_schema(schema).empty_table()
            return ChangeBatch(empty, 1, truncated_at=at, whole_transactions=True)
        return LoggedRows(schema, pgoutput.decode(buffer, run), self.clock).batch()

    def rows(self, table: Table, resume: str | None, limit: int) -> RowBatch | None:
        """Return the next rows in key order; those of a large table are read ahead."""
        reader, share = self._reader(table), self._view.share if self._view else None
        if share is None or self._counted.get(table.name, 0) <= _LARGE * limit:
            return reader.rows(resume, limit)
        if self._ahead is None or not self._ahead.leads_on(table.name, resume, limit):
            self._end_reading()
            try:
                self._ahead = ReadAhead(reader, share, resume, limit)
            except SourceFullError:
                self._view = self._view and replace(self._view, share=None)
                return reader.rows(resume, limit)
        return self._ahead.next()

    def _end_reading(self) -> None:
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def _reader(self, table: Table) -> PostgresRowReader:
        if self._view is None:
            raise RuntimeError("this snapshot was not opened to read rows")
        return PostgresRowReader(self._view.connection, table.schema, self.clock)

    def count(self, table: Table) -> int:
        """Return the table's row count."""
        self._counted[table.name] = self._reader(table).count()
        return self._counted[table.name]

    def close(self) -> None:
        """Delete the messages read, and stop reading ahead."""
        self._end_reading()
        for spool in (self._spool, self._newest):
            if spool is not None:
                spool.close()


def _without_first(
    runs: Sequence[tuple[Chunk, pgoutput.Run]], taken: int
) -> Iterator[tuple[Chunk, pgoutput.Run]]:
    """Yield runs without so many of their first changes."""
    for chunk, run in runs:
        left = np.arange(taken, len(run.order))
        taken = max(taken - len(run.order), 0)
        if len(left):
            yield chunk, run.take(left)


def _may_have(relation: pgoutput.LoggedRelation, key: frozenset[str]) -> bool:
    """Return whether rows may have been logged under a key; a full identity does not tell."""
    return relation.key is not None or key <= {*relation.columns}


@lru_cache(_REMEMBERED)
def _relation_of(relation: str, server: str) -> int | None:
    """Return the oid of a position's table; None for another server's position."""
    if not relation.startswith(f"{server}:"):
        return None
    oid = relation.removeprefix(f"{server}:").partition(":")[0]
    return int(oid) if oid.isdecimal() else None
