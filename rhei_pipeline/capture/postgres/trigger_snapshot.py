"""One committed state of a PostgreSQL source, read through the logs that triggers write.

Numbers are given out in another order than transactions commit in, so no number says how far a
log was read. A position is a snapshot: what lies behind it is what this snapshot sees and that
one did not, whole transactions at a time.
"""

import json
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.capture.mending import mended
from rhei_pipeline.capture.postgres.instants import XID, CommitInstants
from rhei_pipeline.capture.postgres.rows import (
    RowReader,
    admit_rows,
    copied,
    letters_of,
    without_rows,
)
from rhei_pipeline.capture.postgres.trigger_sql import BEGUN, TRUNCATED, TableLog, log_name
from rhei_pipeline.errors import CaptureError
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
from rhei_pipeline.oltp.postgres_identity import refuse_rewritten
from rhei_pipeline.oltp.postgres_schema import Connection
from rhei_pipeline.protocols import Audit
from rhei_pipeline.schema import INSTANT, Mode, Table, TableSchema
from rhei_pipeline.sql import literal


@dataclass(frozen=True, slots=True)
class Captured:
    """What the source says of a table's log.

    Attributes:
        log: As it was made.
        base: What is added to a snapshot's own order.
        pruned: Behind positions before this one, entries are forgotten.
        identity: What tells this log and its triggers from others, and from what became of them.
    """

    log: TableLog
    base: int
    pruned: int
    identity: str


@dataclass(frozen=True, slots=True)
class Visible:
    """What a snapshot of the server sees, as its text.

    Attributes:
        order: How many transactions it sees; grows whenever one ends.
    """

    text: str
    order: int

    @classmethod
    def parse(cls, text: str) -> "Visible":
        """Read `xmin:xmax:running,running,...`."""
        _, high, running = text.split(":")
        return cls(text, int(high) - len(running.split(",")) if running else int(high))


@dataclass(frozen=True, slots=True)
class Proof:
    """A position's proof: which log, what was seen of it, and one of the newest entries seen.

    Attributes:
        marker: That entry's number; 0 where there was none.
        marked_by, marked_at: Its transaction and its time.
    """

    identity: str
    snapshot: str
    marker: int
    marked_by: str
    marked_at: str

    def text(self) -> str:
        """Write it for a position."""
        return json.dumps(list(astuple(self)))

    @classmethod
    def parse(cls, text: str) -> "Proof | None":
        """Read what `text` wrote; None where it is another source's."""
        with suppress(ValueError, TypeError):
            return cls(*json.loads(text))
        return None


@dataclass(frozen=True, slots=True)
class _Look:
    """What lies behind a position: whether it is proved, how many entries, since when."""

    proved: bool
    entries: int = 0
    oldest: datetime | None = None


class Memory:
    """What earlier snapshots of one source found out; it only saves reads.

    Attributes:
        quiet: By table, a position's proof, and a snapshot in which nothing lay behind it.
    """

    def __init__(self) -> None:
        self.quiet: dict[str, tuple[str, str]] = {}


@dataclass(frozen=True, slots=True)
class Moment:
    """What the server showed when a snapshot was taken.

    Attributes:
        visible: What it sees.
        instant: SQL of the time by which an entry is dated.
    """

    clock: datetime
    visible: Visible
    schema_version: int
    instant: str


class PostgresTriggerSnapshot:
    """A `SourceSnapshot` inside an open REPEATABLE READ transaction.

    Args:
        connection: In that transaction.
        moment: When it began.
        captured: Returns what there is of a table's capture, given the identity of a position's
            log; None where there is none.
        memory: What earlier snapshots found out.
    """

    def __init__(
        self,
        connection: Connection,
        moment: Moment,
        captured: Callable[[Table, str | None], Captured | None],
        memory: Memory,
    ) -> None:
        self._connection = connection
        self._moment = moment
        self._captured = captured
        self._memory = memory
        self._heads: dict[str, Position] = {}
        self._looks: dict[tuple[str, str], _Look] = {}
        self._held: set[str] = set()
        self._identities: dict[str, str] = {}
        self._entries: dict[str, str] = {}
        self._dated: dict[tuple[str, ...], CommitInstants] = {}
        self._reading: Generator[pa.Table, None, None] | None = None
        self.clock = moment.clock
        self.schema_version = moment.schema_version

    def head(self, table: Table) -> Position:
        """Return the place of all that this snapshot sees, and one of its newest entries."""
        if table.name not in self._heads:
            found = self._known(table)
            newest = self._connection.execute(
                f"select l.seq, l.xid::text, l.at::text from {found.log.name} l"
                " order by l.xid desc limit 1".encode()
            ).fetchone()
            seen = self._moment.visible
            proof = Proof(found.identity, seen.text, *(newest or (0, "", "")))
            self._heads[table.name] = Position(found.base + seen.order, proof.text())
        return self._heads[table.name]

    def origin(self, table: Table) -> Position:
        """Return the head: rows and log are one state."""
        return self.head(table)

    def proves(self, table: Table, position: Position) -> bool:
        """Look for the entry that was noted there: it is kept, and it has the same time."""
        return self._look(table, position).proved

    def retains(self, position: Position) -> bool:  # noqa: ARG002
        """Keep nothing but what a table's own changes need."""
        return False

    def pending(self, table: Table, after: Position) -> int:
        """Count the entries behind the position."""
        return self._look(table, after).entries

    def oldest_pending(self, table: Table, after: Position) -> datetime | None:
        """Return the time of the oldest entry behind the position."""
        return self._look(table, after).oldest

    def changes(self, table: Table, after: Position, limit: int) -> Iterator[ChangeBatch]:
        """Read versions where the log has images, else what the touched keys have become."""
        found = self._known(table)
        if table.mode is not Mode.TEMPORAL:
            yield from self.net_changes(table, after, limit)
            return
        self._look(table, after)
        low, instants = 0, self._instants()
        for place, xid in [*self._truncations(found, after), (None, None)]:
            upper = "" if place is None else f" and seq < {place}"
            condition = f"{_window(after)} and seq > {low}{upper}"
            # In the shape the log was made in: the table may have changed since.
            sql = found.log.versions_sql(table.schema.names, condition)
            for texts in self._copied(sql, [SEQUENCE, XID, LIVE], table.schema, limit):
                own = [
                    texts[SEQUENCE].combine_chunks().cast(pa.int64()),
                    instants.of(texts[XID].combine_chunks().cast(pa.int64()).to_numpy()),
                ]
                batch = self._batch(table.schema, own, texts, texts.num_rows)
                yield replace(batch, whole_transactions=True)
            if place is not None and xid is not None:
                at = instants.of(np.array([xid]))[0].as_py()
                yield replace(_truncation(table.schema, at, 1), whole_transactions=True)
                low = place

    def net_changes(self, table: Table, after: Position, limit: int) -> Iterator[ChangeBatch]:
        """Join the touched keys to the rows they have now."""
        found, count = self._known(table), self.pending(table, after)
        entries = count
        condition = _window(after)
        truncations = self._truncations(found, after)
        if truncations:
            place, _ = truncations[-1]
            yield _truncation(table.schema, self.clock, count)
            count, condition = 0, f"{condition} and seq > {place}"
        self._hold(found)
        sql = found.log.net_sql(table.schema.names, condition, entries)
        for texts in self._copied(sql, [LIVE], table.schema, limit):
            size = texts.num_rows
            now = pa.repeat(pa.scalar(self.clock, INSTANT), size)
            own = [pa.array(np.zeros(size, np.int64)), now]
            yield replace(self._batch(table.schema, own, texts, count), net=True)
            count = 0

    def next_shape(self, table: Table, after: Position) -> TableSchema | None:  # noqa: ARG002
        """Name none: the log is read in the table's own shape."""
        return None

    def rows(self, table: Table, resume: str | None, limit: int) -> RowBatch | None:
        """Read the next rows in key order."""
        self._hold(self._known(table))
        return self._reader(table).rows(resume, limit)

    def keyless(self, table: Table) -> tuple[DeadLetter, ...]:  # noqa: ARG002
        """Name no row: a key that tells rows apart is never null."""
        return ()

    def count(self, table: Table) -> int:
        """Count the table's rows."""
        self._hold(self._known(table))
        return self._reader(table).count()

    def audit(self, table: Table, after: Position) -> Audit:  # noqa: ARG002
        """Ask for none: a trigger sees every change."""
        return Audit.NONE

    def doubt(self, table: Table) -> None:
        """Have none: a trigger sees every change."""

    def close(self) -> None:
        """End a read that was left in its middle."""
        if self._reading is not None:
            self._reading.close()

    def _known(self, table: Table) -> Captured:
        found = self._captured(table, self._identities.get(table.name))
        if found is None:
            raise log_is_gone(table.name)
        return found

    def _reader(self, table: Table) -> RowReader:
        return RowReader(self._connection, table.schema, self.clock)

    def _hold(self, found: Captured) -> None:
        """Have nobody rewrite a table until this snapshot ends, and see that nobody has."""
        if found.log.table not in self._held:
            self._connection.execute(f"lock table {found.log.table} in access share mode".encode())
            refuse_rewritten(self._connection, found.log.source)
            self._held.add(found.log.table)

    def _look(self, table: Table, after: Position) -> _Look:
        place = (table.name, after.proof)
        if place not in self._looks:
            self._looks[place] = self._look_behind(table, after)
        return self._looks[place]

    def _look_behind(self, table: Table, after: Position) -> _Look:
        proof = Proof.parse(after.proof)
        found = None if proof is None else self._captured(table, proof.identity)
        if found is None or proof is None or proof.identity != found.identity:
            return _Look(proved=False)
        self._identities[table.name] = proof.identity
        if self._memory.quiet.get(table.name) == (after.proof, self._moment.visible.text):
            return _Look(proved=True)
        if not found.pruned <= after.order <= found.base + self._moment.visible.order:
            return _Look(proved=False)
        marked = (
            f"exists (select from {found.log.name}"
            " where xid = nullif(%s, '')::xid8 and seq = %s and at::text = %s)"
        )
        row = self._connection.execute(
            f"select %s = 0 or {marked}, count(*), min({self._moment.instant})"
            f" from {found.log.name} where {_window(after)} and kind <> '{BEGUN}'".encode(),
            (proof.marker, proof.marked_by, proof.marker, proof.marked_at),
        ).fetchone()
        proved, entries, oldest = row or (False, 0, None)
        if entries:
            self._entries[table.name] = (
                f"select xid, {self._moment.instant} as at from {found.log.name}"
                f" where {_window(after)} and kind <> '{BEGUN}'"
            )
        if proved and not entries:
            self._memory.quiet[table.name] = (after.proof, self._moment.visible.text)
        return _Look(proved, entries, oldest)

    def _truncations(self, found: Captured, after: Position) -> list[tuple[int, int]]:
        sql = (
            f"select seq, xid::text::bigint from {found.log.name}"
            f" where {_window(after)} and kind = '{TRUNCATED}' order by seq"
        )
        return self._connection.execute(sql.encode()).fetchall()

    def _instants(self) -> CommitInstants:
        """Date the transactions behind all positions looked at, one alike in every table."""
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
        self, sql: str, own: Sequence[str], schema: TableSchema, limit: int
    ) -> Iterator[pa.Table]:
        self._reading = copied(self._connection, sql, [*own, *schema.names], limit)
        return self._reading

    def _batch(
        self, schema: TableSchema, own: Sequence[pa.Array], texts: pa.Table, count: int
    ) -> ChangeBatch:
        live = pc.equal(texts[LIVE].combine_chunks(), "t")
        arrays, rejections = admit_rows(schema, texts)
        events = pa.table([*own, live, *arrays], [SEQUENCE, CHANGED_AT, LIVE, *schema.names])
        letters = letters_of(schema, rejections, texts, self.clock)
        admitted = without_rows(events.cast(event_schema(schema)), rejections)
        resolved = mended(events.select(list(schema.primary_key)), rejections, letters)
        return ChangeBatch(admitted, count, rejected=letters, resolved=resolved)


def log_is_gone(table: str) -> CaptureError:
    """Return the error of a table whose log was dropped."""
    return CaptureError(
        "its log is gone from the source",
        table=table,
        hint="sync again: it is made anew, and the table copied by its difference",
    )


def unseen(connection: Connection, positions: Mapping[int, str], standing: Collection[int]) -> int:
    """Count the entries of logs, by table, that snapshots do not see; a log that is gone is one."""
    found = 0
    for relation, snapshot in positions.items():
        if relation not in standing:
            found += 1  # capture was lost: that, too, is something to see to
            continue
        row = connection.execute(
            f"select count(*) from {log_name(relation)} where {_outside(snapshot)}"
            f" and kind <> '{BEGUN}'".encode()
        ).fetchone()
        found += row[0] if row else 0
    return found


def _window(after: Position) -> str:
    """Write SQL of the entries that the snapshot of a position does not see."""
    proof = Proof.parse(after.proof)
    return "false" if proof is None else _outside(proof.snapshot)


def _outside(snapshot: str) -> str:
    text = f"{literal(snapshot)}::pg_snapshot"
    return f"xid >= pg_snapshot_xmin({text}) and not pg_visible_in_snapshot(xid, {text})"


def _truncation(schema: TableSchema, at: datetime, count: int) -> ChangeBatch:
    return ChangeBatch(event_schema(schema).empty_table(), count, truncated_at=at)
