"""One committed state of a PostgreSQL source, read through the logs that triggers write.

Sequence values become visible out of order, so none is a safe read position. A position is a
snapshot: the changes after it are those that this snapshot sees and that one did not, in whole
transactions. It continues through the logs that replaced the one it was found in.
"""

import logging
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.errors import CaptureError, RheiError, SourceBusyError
from rhei_pipeline.model.changes import (
    CHANGED_AT,
    LIVE,
    SEQUENCE,
    ChangeBatch,
    Position,
    RowBatch,
    event_schema,
)
from rhei_pipeline.model.schema import Mode, Table, TableSchema
from rhei_pipeline.model.type_names import INSTANT
from rhei_pipeline.sources.mended_rows import mended
from rhei_pipeline.sources.postgres.catalog import Connection
from rhei_pipeline.sources.postgres.identity import one, refuse_rewritten
from rhei_pipeline.sources.postgres.instants import XID, CommitInstants
from rhei_pipeline.sources.postgres.row_texts import Stored, copied
from rhei_pipeline.sources.postgres.rows import (
    PostgresRowReader,
    admit_rows,
    letters_of,
    without_rows,
)
from rhei_pipeline.sources.postgres.triggers.ddl import BEGUN, TRUNCATED, log_name
from rhei_pipeline.sources.postgres.triggers.log_numbers import LogNumbers
from rhei_pipeline.sources.postgres.triggers.logs import Captured, Generation, LogPart
from rhei_pipeline.sources.postgres.triggers.misfit import OTHER_KINDS, OTHER_TRUNCATED
from rhei_pipeline.sources.postgres.triggers.position import (
    NOTHING_SEEN,
    Proof,
    VisibleText,
    noted_sql,
    outside,
    shape_of,
)
from rhei_pipeline.sources.postgres.triggers.registry import AcknowledgedPlace
from rhei_pipeline.sources.rejections import Rejection
from rhei_pipeline.sources.table_reads import TableReads
from rhei_pipeline.sql.text import literal

_log = logging.getLogger(__name__)

#: Columns of an entry whose values are none that the table's columns have now.
_UNFIT = "_rhei_unfit"
#: What parts their names; no name of a column has it.
_APART = "\x1f"
#: So many logs are looked into by one statement. A table that has changed makes its statement
#: another one, which is planned again; those of the other tables stay prepared.
_LOOKS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class _Look:
    """The pending changes after a position: whether it is proved, their count, since when."""

    proved: bool
    entries: int = 0
    oldest: datetime | None = None


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question whether something lies behind a position, and what to note if nothing does."""

    table: Table
    after: Position
    proof: Proof
    found: Captured
    quiet: tuple[str, str]

    @property
    def log(self) -> Generation:
        """The log, which is the only one behind the position."""
        return self.found.parts[0].generation


class TriggerMemory:
    """Results of earlier snapshots of one source; losing them only costs reads.

    Attributes:
        quiet: By table, a position's proof, and a snapshot in which nothing lay behind it.
        asked: By table, the position that was asked about last.
        proofs: By table, what a position's proof says.
        questions: By table, what asks whether something lies behind a position, in which log.
        numbers: The last numbers of logs, by which one is known to have nothing new.
    """

    def __init__(self) -> None:
        self.proofs: dict[str, tuple[str, Proof | None]] = {}
        self.questions: dict[str, tuple[tuple[str, Generation], str]] = {}
        self.quiet: dict[str, tuple[str, str]] = {}
        self.asked: dict[str, tuple[Table, Position]] = {}
        self.numbers = LogNumbers()


@dataclass(frozen=True, slots=True)
class TriggerMoment:
    """The server's state when a snapshot was taken.

    Attributes:
        visible: What it sees.
        instant: SQL of the time by which an entry is dated.
    """

    clock: datetime
    visible: VisibleText
    schema_version: int
    instant: str


class PostgresTriggerSnapshot(TableReads):
    """A `SourceSnapshot` inside an open REPEATABLE READ transaction.

    Args:
        connection: In that transaction.
        moment: When it began.
        captured: Returns what there is of a table's capture, given a position's proof; None where
            there is none.
        memory: What earlier snapshots found out.
    """

    shares_log = False

    def __init__(
        self,
        connection: Connection,
        moment: TriggerMoment,
        captured: Callable[[Table, Proof | None], Captured | None],
        memory: TriggerMemory,
    ) -> None:
        self._connection = connection
        self._moment = moment
        self._captured = captured
        self._memory = memory
        self._heads: dict[str, Position] = {}
        self._looks: dict[tuple[str, str], _Look] = {}
        self._has_looked_ahead = False
        self._held: set[str] = set()
        self._proofs: dict[str, Proof] = {}
        self._reads: dict[tuple[str, str], list[tuple[LogPart, str]]] = {}
        self._left: set[str] = set()
        self._entries: dict[str, str] = {}
        self._dated: dict[tuple[str, ...], CommitInstants] = {}
        self._reading: Generator[pa.Table, None, None] | None = None
        self.clock = moment.clock
        self.schema_version = moment.schema_version

    def head(self, table: Table) -> Position:
        """Return the position of all that this snapshot sees, and one of its newest entries."""
        if table.name not in self._heads:
            self._heads[table.name] = self._head(table)
        return self._heads[table.name]

    def _head(self, table: Table) -> Position:
        found, seen = self._known(table), self._moment.visible
        own, before = found.parts[-1].generation, self._proofs.get(table.name)
        order = own.base + seen.order
        if found.next_log is not None and own.ended is not None:
            begun = self._noted(found.next_log, NOTHING_SEEN, table, "asc")
            return Position(own.ended, begun.text())
        if not found.is_now and before is not None:
            # What was done to the table in another shape is left, and with it the entry noted.
            late, shape = before.late or before.snapshot, shape_of(table)
            proof = replace(before, snapshot=seen.text, late=late, shape=shape)
            return Position(order, proof.text())
        return Position(order, self._noted(own, seen.text, table, "desc").text())

    def _noted(self, log: Generation, seen: str, table: Table, order: str) -> Proof:
        """Return a proof of what is seen of a log, by its first or its last entry."""
        found = self._connection.execute(
            f"select l.seq, l.xid::text, l.at::text from {log.name} l"
            f" order by l.xid {order} limit 1".encode()
        ).fetchone()
        marker, by, at = found or (0, "", "")
        return Proof(log.identity, seen, marker, by, at, shape=shape_of(table))

    def origin(self, table: Table) -> Position:
        """Return the head: rows and log are one state."""
        return self.head(table)

    def proves(self, table: Table, position: Position) -> bool:
        """Return whether the position's entry is kept and has the same time."""
        return self._look(table, position).proved

    def pending(self, table: Table, after: Position) -> int:
        """Count the entries after the position."""
        return self._look(table, after).entries

    def retains(self, position: Position) -> bool:
        """Return whether the position keeps a log from being dropped, as no later one would."""
        return position.proof in self._left

    def oldest_pending(self, table: Table, after: Position) -> datetime | None:
        """Return the time of the oldest entry after the position."""
        return self._look(table, after).oldest

    def changes(self, table: Table, after: Position, limit: int) -> Iterator[ChangeBatch]:
        """Yield versions if the log has images, else the present rows of the touched keys."""
        if table.mode is not Mode.TEMPORAL:
            yield from self.net_changes(table, after, limit)
            return
        self._look(table, after)
        self._name_incomplete(table, after)
        low, instants = 0, self._instants()
        for place, xid in [*self._truncations(table, after), (None, None)]:
            between = f"seq > {low}" if place is None else f"seq > {low} and seq < {place}"
            for texts in self._versions(table, after, between, limit):
                own = [
                    texts[SEQUENCE].combine_chunks().cast(pa.int64()),
                    instants.of(texts[XID].combine_chunks().cast(pa.int64()).to_numpy()),
                ]
                batch = self._batch(table.schema, own, texts, texts.num_rows)
                batch = replace(batch, whole_transactions=True)
                del texts
                yield batch
                del batch
            if place is not None and xid is not None:
                at = instants.of(np.array([xid]))[0].as_py()
                yield replace(_truncation(table.schema, at, 1), whole_transactions=True)
                low = place

    def _name_incomplete(self, table: Table, after: Position) -> None:
        queries = [part.incomplete(window) for part, window in self._windows(table, after)]
        count = sum(
            row[0]
            for sql in queries
            if sql is not None
            for row in self._connection.execute(sql.encode()).fetchall()
        )
        if count:
            _log.warning(
                "table %r: %d versions lack a value of a column that was dropped before it could be"
                " read: they were written between two migrations",
                table.name,
                count,
            )

    def _versions(
        self, table: Table, after: Position, between: str, limit: int
    ) -> Iterator[pa.Table]:
        """Yield the entries between two truncations, log after log."""
        for part, window in self._windows(table, after):
            for sql, of_bytes in part.versions(f"{window} and {between}"):
                own = [SEQUENCE, XID, LIVE, _UNFIT]
                stored = Stored(part.generation.name, table.schema.columns, of_bytes)
                # Mapped: a loop's variable would hold the texts beside what becomes of them.
                yield from map(
                    partial(_without_other_keys, table),
                    self._copied(sql, own, table.schema, limit, stored),
                )

    def net_changes(self, table: Table, after: Position, limit: int) -> Iterator[ChangeBatch]:
        """Join the touched keys to the rows they have now."""
        found, count = self._known(table), self.pending(table, after)
        entries, low = count, 0
        truncations = self._truncations(table, after)
        if truncations:
            low, _ = truncations[-1]
            yield _truncation(table.schema, self.clock, count)
            count = 0
        self._hold(found)
        touched = [
            sql
            for part, window in self._windows(table, after)
            for sql in part.touched(f"{window} and seq > {low}", found.log)
        ]
        if not touched:
            return
        sql = found.log.net_sql(table.schema.names, " union all ".join(touched), entries)
        stored = Stored(found.log.table, table.schema.columns)
        for texts in self._copied(sql, [LIVE], table.schema, limit, stored):
            size = texts.num_rows
            now = pa.repeat(pa.scalar(self.clock, INSTANT), size)
            own = [pa.array(np.zeros(size, np.int64)), now]
            batch, count = replace(self._batch(table.schema, own, texts, count), net=True), 0
            del texts
            yield batch
            del batch

    def rows(self, table: Table, resume: str | None, limit: int) -> RowBatch | None:
        """Read the next rows in key order."""
        self._hold(self._known(table))
        return self._reader(table).rows(resume, limit)

    def count(self, table: Table) -> int:
        """Count the table's rows."""
        self._hold(self._known(table))
        return self._reader(table).count()

    def count_where(self, table: Table, where: str) -> int:
        """Count the rows of which a condition in the source's SQL is true."""
        self._hold(self._known(table))
        return self._reader(table).count(where)

    def close(self) -> None:
        """End an unfinished read."""
        if self._reading is not None:
            self._reading.close()

    def _known(self, table: Table) -> Captured:
        found = self._captured(table, self._proofs.get(table.name))
        if found is None or not found.parts:
            raise log_is_gone(table.name)
        return found

    def _reader(self, table: Table) -> PostgresRowReader:
        return PostgresRowReader(self._connection, table.schema, self.clock)

    def _hold(self, found: Captured) -> None:
        """Lock a table against rewriting until this snapshot ends, and check that none happened."""
        if found.log.table not in self._held:
            self._connection.execute(f"lock table {found.log.table} in access share mode".encode())
            refuse_rewritten(self._connection, found.log.source)
            self._held.add(found.log.table)

    def _look(self, table: Table, after: Position) -> _Look:
        place = (table.name, after.proof)
        if place not in self._looks:
            self._memory.asked[table.name] = (table, after)
            self._looks[place] = self._look_behind(table, after)
        return self._looks[place]

    def _look_ahead(self) -> None:
        """Look for changes of all tables asked about last, by few statements.

        Most tables have no changes in most cycles. If the common statement fails, each table is
        read by itself, and an error is then its own.
        """
        self._connection.execute("savepoint rhei_ahead")
        try:
            asked = self._worth_asking()
            if len(asked) > _LOOKS_AT_ONCE:
                logs = {name: (each.log, each.after.proof) for name, each in asked.items()}
                numbers, visible = self._memory.numbers, self._moment.visible
                for name in numbers.untouched(self._connection, visible, logs):
                    self._note_quiet(asked.pop(name))
            names = list(asked)
            for start in range(0, len(names), _LOOKS_AT_ONCE):
                some = names[start : start + _LOOKS_AT_ONCE]
                self._look_for_quiet({name: asked[name] for name in some})
            self._connection.execute("release savepoint rhei_ahead")
        except (psycopg.Error, RheiError):
            self._memory.numbers.forget()
            self._connection.execute("rollback to savepoint rhei_ahead")

    def _worth_asking(self) -> dict[str, _Asked]:
        """Return what is to be asked of the logs that the common statement can look into."""
        found_of = dict[str, _Asked]()
        for table, after in self._memory.asked.values():
            proof = self._proof(table, after)
            found = None if proof is None else self._captured(table, proof)
            if found is None or proof is None or len(found.parts) != 1:
                continue
            asked = _Asked(table, after, proof, found, self._quiet(after, found))
            is_known = self._memory.quiet.get(table.name) == asked.quiet
            if not asked.log.is_cut and not is_known and self._is_within(after, asked.log):
                found_of[table.name] = asked
        return found_of

    def _note_quiet(self, asked: _Asked) -> None:
        name, after = asked.table.name, asked.after
        self._memory.quiet[name] = asked.quiet
        self._note_read(name, after, asked.proof, asked.found)
        self._looks[name, after.proof] = _Look(proved=True)

    def _note_read(self, table: str, after: Position, proof: Proof, found: Captured) -> None:
        self._proofs[table] = proof
        if found.is_left:
            self._left.add(after.proof)

    def _look_for_quiet(self, asked: Mapping[str, _Asked]) -> None:
        """Record the tables without changes after their positions."""
        statement = " union all ".join(map(self._question, asked.values()))
        for name, oid in self._connection.execute(statement.encode()).fetchall():
            if asked[name].log.log in (None, oid):
                self._note_quiet(asked[name])
                self._memory.numbers.note_quiet(name, self._moment.visible)

    def _question(self, asked: _Asked) -> str:
        name, of = asked.table.name, (asked.after.proof, asked.log)
        known, sql = self._memory.questions.get(name, (None, ""))
        if known != of:
            ((_, window),) = self._windows(asked.table, asked.after)
            sql = _quiet_sql(name, asked.log, window, asked.proof)
            self._memory.questions[name] = of, sql
        return sql

    def _proof(self, table: Table, after: Position) -> Proof | None:
        text, proof = self._memory.proofs.get(table.name, ("", None))
        if text != after.proof:
            proof = Proof.parse(after.proof)
            self._memory.proofs[table.name] = after.proof, proof
        return proof

    def _quiet(self, after: Position, found: Captured) -> tuple[str, str]:
        return after.proof, f"{self._moment.visible.text} {found.is_now}"

    def _is_within(self, after: Position, log: Generation) -> bool:
        return log.pruned <= after.order <= log.base + self._moment.visible.order

    def _look_behind(self, table: Table, after: Position) -> _Look:
        proof = self._proof(table, after)
        found = None if proof is None else self._captured(table, proof)
        if found is None or proof is None or not found.parts:
            return _Look(proved=False)
        self._note_read(table.name, after, proof, found)
        quiet = self._quiet(after, found)
        if self._memory.quiet.get(table.name) != quiet and not self._has_looked_ahead:
            self._has_looked_ahead = True
            self._look_ahead()
        if self._memory.quiet.get(table.name) == quiet:
            return _Look(proved=True)
        if not self._is_within(after, found.parts[0].generation):
            return _Look(proved=False)
        looks = [
            self._look_into(part.generation, window, proof)
            for part, window in self._windows(table, after)
        ]
        entries = sum(look.entries for look in looks)
        oldest = min((look.oldest for look in looks if look.oldest), default=None)
        if entries:
            self._entries[table.name] = " union all ".join(
                f"select xid, {self._moment.instant} as at from {part.generation.name}"
                f" where {window} and kind <> '{BEGUN}'"
                for part, window in self._windows(table, after)
            )
        if looks[0].proved and not entries:
            self._memory.quiet[table.name] = quiet
        return _Look(looks[0].proved, entries, oldest)

    def _look_into(self, log: Generation, window: str, proof: Proof) -> _Look:
        """Count entries of a log, and look for the one that was noted where it is the log's."""
        is_marked = proof.identity == log.identity and proof.marker
        noted = noted_sql(log.name, proof) if is_marked else "true"
        row = self._connection.execute(
            f"select {noted}, count(*), min({self._moment.instant}),"
            f" {literal(log.name)}::regclass::oid::bigint,"
            # Tables are found by what is committed now, and read as they were.
            f" exists (select from pg_class where oid = {literal(log.name)}::regclass)"
            f" from {log.name} where {window} and kind <> '{BEGUN}'".encode()
        ).fetchone()
        proved, entries, oldest, oid, is_older = row or (False, 0, None, None, True)
        if log.log in (None, oid):
            return _Look(proved, entries, oldest)
        if not is_older:
            raise SourceBusyError(
                "a log table was created again while it was read", hint="it is tried again"
            )
        return _Look(proved=False)  # a backup was put back, its record with it

    def _windows(self, table: Table, after: Position) -> list[tuple[LogPart, str]]:
        """Return the logs after a position, and SQL of the entries in each."""
        place = (table.name, after.proof)
        if place not in self._reads:
            proof = self._proof(table, after)
            found = self._captured(table, proof)
            cut = [self._with_cut(part) for part in found.parts] if found else []
            self._reads[place] = [
                (part, f"{self._unseen(part, proof)} and {part.limits()}") for part in cut
            ]
        return self._reads[place]

    def _with_cut(self, part: LogPart) -> LogPart:
        """Find the entry from which the table differed from what its triggers expect."""
        generation = part.generation
        if not generation.is_cut:
            return part
        row = self._connection.execute(
            f"select min(seq) from {generation.name} where kind in ({OTHER_KINDS})".encode()
        ).fetchone()
        return replace(part, generation=replace(generation, cut=row[0] if row else None))

    def _unseen(self, part: LogPart, proof: Proof | None) -> str:
        """Write SQL of the entries of a log that lie behind a position."""
        generation = part.generation
        if proof is None:
            return "false"
        if proof.identity != generation.identity:
            return "true"  # a log that was made since
        seen = outside(proof.snapshot)
        if not proof.late or generation.cut is None:
            return seen
        cut, late = generation.cut, outside(proof.late)
        return f"(seq < {cut} and {seen} or seq >= {cut} and {late})"

    def _truncations(self, table: Table, after: Position) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        for part, window in self._windows(table, after):
            sql = (
                f"select seq, xid::text::bigint from {part.generation.name}"
                f" where {window} and kind in ('{TRUNCATED}', '{OTHER_TRUNCATED}') order by seq"
            )
            found += self._connection.execute(sql.encode()).fetchall()
        return found

    def _instants(self) -> CommitInstants:
        """Return the commit times of the transactions after all positions, equal for all tables."""
        logs = tuple(self._entries.values())
        if logs not in self._dated:
            sql = (
                "select xid, (extract(epoch from max(at)) * 1000000)::bigint"
                f" from ({' union all '.join(logs)}) entry group by xid order by max(at), xid"
            )
            texts = next(copied(self._connection, sql, [XID, CHANGED_AT]), None) if logs else None
            self._dated[logs] = CommitInstants.read(texts)
        return self._dated[logs]

    def _copied(
        self, sql: str, own: Sequence[str], schema: TableSchema, limit: int, stored: Stored
    ) -> Iterator[pa.Table]:
        self._reading = copied(self._connection, sql, [*own, *schema.names], limit, stored)
        return self._reading

    def _batch(
        self, schema: TableSchema, own: Sequence[pa.Array], texts: pa.Table, count: int
    ) -> ChangeBatch:
        live = pc.equal(texts[LIVE].combine_chunks(), "t")
        arrays, rejections = admit_rows(schema, texts)
        rejections += _of_another_type(texts, rejections)
        events = pa.table([*own, live, *arrays], [SEQUENCE, CHANGED_AT, LIVE, *schema.names])
        letters = letters_of(schema, rejections, texts, self.clock)
        admitted = without_rows(events.cast(event_schema(schema)), rejections)
        resolved = mended(events.select(list(schema.primary_key)), rejections, letters)
        return ChangeBatch(admitted, count, rejected=letters, resolved=resolved)


def _of_another_type(texts: pa.Table, known: Sequence[Rejection]) -> list[Rejection]:
    """Reject entries whose column had a type that does not convert exactly to the present one."""
    if _UNFIT not in texts.column_names:
        return []
    rows = np.flatnonzero(pc.not_equal(texts[_UNFIT], "").to_numpy())
    named = {(rejection.row, rejection.column) for rejection in known}
    reason = "it was written when the column had another type, and does not convert exactly"
    return [
        Rejection(row, name, reason)
        for row in rows.tolist()
        for name in texts[_UNFIT][row].as_py().split(_APART)
        if (row, name) not in named
    ]


def _without_other_keys(table: Table, texts: pa.Table) -> pa.Table:
    """Leave out entries whose keys are none of the table's key any more; say how many."""
    rows = np.flatnonzero(pc.not_equal(texts[_UNFIT], "").to_numpy())
    key = {*table.schema.primary_key}
    other = [row for row in rows.tolist() if key & {*texts[_UNFIT][row].as_py().split(_APART)}]
    if not other:
        return texts
    _log.warning(
        "table %r: %d changes are left out, because their key had another type",
        table.name,
        len(other),
    )
    kept = np.ones(texts.num_rows, dtype=bool)
    kept[other] = False
    return texts.filter(pa.array(kept))


def _quiet_sql(table: str, log: Generation, window: str, proof: Proof) -> str:
    """Return a query with one row if a log has the recorded entry and none after it."""
    is_marked = proof.identity == log.identity and proof.marker
    return (
        f"select {literal(table)}, {literal(log.name)}::regclass::oid::bigint"
        f" where {noted_sql(log.name, proof) if is_marked else 'true'} and not exists"
        f" (select from {log.name} where {window} and kind <> '{BEGUN}')"
    )


def log_is_gone(table: str) -> CaptureError:
    """Return the error for a table whose log was dropped."""
    return CaptureError(
        "its log table is gone from the source",
        table=table,
        hint="sync again: the log table is created again, and the table is copied by its "
        "difference",
    )


def unseen(
    connection: Connection,
    positions: Mapping[int, AcknowledgedPlace],
    standing: Collection[int],
    formers: Mapping[int, Sequence[str]],
) -> int:
    """Count the entries of logs, by table, that snapshots do not see.

    A log that is gone, or was emptied, is one: that, too, is something to see to.
    """
    found = 0
    for relation, place in positions.items():
        if relation not in standing:
            found += 1
            continue
        is_marked = False
        for log in (log_name(relation), *formers.get(relation, ())):
            count, has_marker = one(
                connection,
                f"select (select count(*) from {log} where {outside(place.snapshot)}"
                f" and kind <> '{BEGUN}'), exists (select from {log} where xid = %s and seq = %s)",
                place.marked_by,
                place.marker,
            )
            found, is_marked = found + count, is_marked or has_marker
        found += bool(place.marker) and not is_marked
    return found


def _truncation(schema: TableSchema, at: datetime, count: int) -> ChangeBatch:
    return ChangeBatch(event_schema(schema).empty_table(), count, truncated_at=at)
