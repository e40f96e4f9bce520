"""One polled PostgreSQL table inside an open transaction: the SQL of polling."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.model.changes import CHANGED_AT, LIVE, SEQUENCE, ChangeBatch, event_schema
from rhei_pipeline.model.instants import instant
from rhei_pipeline.model.polling import Clock, Horizon, PollOptions, Stamp
from rhei_pipeline.sources.postgres.catalog import Connection, PostgresTable, qualified
from rhei_pipeline.sources.postgres.polling.answers import Answers
from rhei_pipeline.sources.postgres.polling.clauses import Clause, Value
from rhei_pipeline.sources.postgres.polling.timestamps import MOMENT, StampColumn, written
from rhei_pipeline.sources.postgres.row_texts import Stored, copied
from rhei_pipeline.sources.postgres.rows import (
    PostgresRowReader,
    admit_rows,
    as_in,
    bare_literal,
    letters_of,
    without_rows,
)
from rhei_pipeline.sql.text import listed, matching, quote

_SECOND = 1_000_000
#: A stamp so far ahead of the source's clock was not made by it.
_AHEAD = 2 * _SECOND
#: Keys read again by one statement.
_TOUCHED_ROWS = 500


@dataclass(frozen=True, slots=True)
class PostgresPoll:
    """A polled table: its catalogue entry, and the columns that polling uses.

    Attributes:
        live: SQL that is true if a row is not marked as deleted.
        origin: The server, its timeline and the table; and a zone that its timestamps are in.
        key_kinds: The types of the key's columns.
    """

    source: PostgresTable
    options: PollOptions
    stamp: StampColumn
    live: str
    origin: str
    key_kinds: tuple[int, ...]

    @property
    def table(self) -> str:
        """The table's quoted name in the source."""
        return qualified(self.source.schema)

    def differs_from(self, origin: str) -> str | None:
        """Return in what the table is not that of an origin; None if it is."""
        (then, _, zone_then), (now, _, zone_now) = origin.partition(" "), self.origin.partition(" ")
        if then != now:
            return "it is another table, or the server is another one or was promoted"
        if zone_then and zone_now and zone_then != zone_now:
            return f"the database's time zone was {zone_then} and is {zone_now}"
        return None


@dataclass(frozen=True, slots=True)
class Behind:
    """Where the rows lie that were written since a position.

    Attributes:
        low, least: As in `Horizon`.
        read: The transactions whose rows from there on were read.
        since: The source's clock when they were.
    """

    low: int | None
    least: str | None
    read: tuple[str, ...]
    since: int


@dataclass(frozen=True, slots=True)
class PostgresGlance:
    """What one look at a table finds behind a position.

    Attributes:
        has_newest: Whether the newest row read exists, with the same or a newer timestamp.
        unread: How many rows were written since; 0 where only a digest shows that.
        is_ahead: Whether a timestamp lies ahead of the source's clock.
        newest: The newest timestamp that the clock has reached; None where it was not asked for.
    """

    has_newest: bool
    unread: int
    is_ahead: bool
    newest: str | None


@dataclass(frozen=True, slots=True)
class PendingRows:
    """The pending changes after a position: a condition for rows, their count, and keys.

    Attributes:
        since: The source's clock when none of them existed yet.
    """

    condition: str = "false"
    rows: int = 0
    touched: tuple[tuple[Any, ...], ...] = ()
    since: int = 0

    @property
    def events(self) -> int:
        """How many changes these are."""
        return self.rows + len(self.touched)


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked of a table, to be asked again in other moments.

    Attributes:
        place: What it was made of; with the same, only the moments change.
        moments: Values in it: from where on is read, and what lies ahead of the clock.
    """

    poll: PostgresPoll
    place: tuple[object, ...]
    moments: tuple[Value, Value]
    clause: Clause


class PostgresPolledTable:
    """A table as the transaction of `connection` sees it; `now` is its clock, in microseconds."""

    def __init__(
        self, connection: Connection, answers: Answers, poll: PostgresPoll, now: int
    ) -> None:
        self._connection = connection
        self._answers = answers
        self.poll = poll
        self._now = now
        self._clock = instant(now)
        self._reading: Generator[pa.Table, None, None] | None = None

    def close(self) -> None:
        """End an unfinished read: until then the connection is busy."""
        if self._reading is not None:
            self._reading.close()

    @property
    def reader(self) -> PostgresRowReader:
        """The reader of its whole rows."""
        return PostgresRowReader(
            self._connection, self.poll.source.schema, self._clock, self.poll.live
        )

    def within(self, low: int | None, least: str | None) -> Clause:
        """Return SQL of the rows that must be read from there on; as in `Horizon`."""
        stamp = self.poll.stamp
        bounds = [] if low is None else [self._bound(low)]
        if least is not None:
            bounds.append(Clause.of(least))
        known = [bound for bound in bounds if bound is not None]
        if low is None or not known:
            return Clause("true")
        behind = [self._than(">=", bound) for bound in known]
        if stamp.is_nullable:
            behind.append(Clause(f"{stamp.sql} is null"))
        found = Clause.joined(" or ", behind)
        return Clause(f"({found.text})", found.values)

    def glance(self, question: Clause) -> PostgresGlance:
        """Return what one look finds."""
        return PostgresGlance(*self._row(f"select {question}"))

    def question(
        self, known: Horizon, behind: Behind | None, before: Asked | None, *, with_newest: bool
    ) -> Asked:
        """Return what one look asks behind a position; most is often as it was asked before."""
        low = behind.low if behind else None
        place = (known, behind and behind.least, behind and behind.read, with_newest, low is None)
        is_alike = self.poll.stamp.family.is_written_alike
        moments: tuple[Value, Value] = (
            (written(low or 0), MOMENT),
            (written(self._now + _AHEAD), MOMENT),
        )
        if is_alike and before and before.poll is self.poll and before.place == place:
            moved = dict(zip(before.moments, moments, strict=True))
            values = tuple([moved.get(value, value) for value in before.clause.values])
            return replace(before, clause=Clause(before.clause.text, values), moments=moments)
        clause = self._clause(known, behind, with_newest=with_newest)
        return Asked(self.poll, place, moments, clause)

    def _clause(self, known: Horizon, behind: Behind | None, *, with_newest: bool) -> Clause:
        table, ahead = self.poll.table, self._ahead
        is_ahead = self._than(">", ahead)
        if behind is None:
            parts = [Clause("0"), Clause(f"exists (select from {table} where ").then(is_ahead, ")")]
        else:
            parts = [Clause("w.unread"), Clause("w.is_ahead")]
        newest = Clause("null")
        if with_newest:
            newest = Clause("(").then(self._newest_stamp_clause(), ")")
        asked = Clause.joined(", ", [self._witness(known), *parts, newest])
        if behind is None:
            return asked
        # What lies ahead of the clock is in there as well.
        read = Clause.of(_list_of(behind.read), "xid[]")
        return (
            asked.then(Clause(" from (select count(*) filter (where xmin <> all ("), "")
            .then(read, ")) as unread, coalesce(bool_or(")
            .then(is_ahead, f"), false) as is_ahead from {table} where ")
            .then(self.within(behind.low, behind.least), ") w")
        )

    def _witness(self, known: Horizon) -> Clause:
        """Return whether the newest known row exists, with the same or a newer timestamp."""
        if known.newest is None:
            return Clause("true")
        poll = self.poll
        if not known.has_key_of(poll.key_kinds):
            return Clause("false")  # nor could its key be compared
        schema = poll.source.schema
        same = []
        for column, text in zip(schema.key_columns, known.key, strict=True):
            value = Clause.of(text)
            typed = as_in(schema, column, value.text)
            same.append(Clause(f"{quote(column.name)} = {typed}", value.values))
        same.append(self._than(">=", Clause.of(known.newest)))
        there = Clause(f"exists (select from {poll.table} where ")
        return there.then(Clause.joined(" and ", same), ")")

    def _than(self, comparison: str, bound: Clause | None) -> Clause:
        if bound is None:
            return Clause("false")
        return Clause(f"{self.poll.stamp.sql} {comparison} {bound.text}", bound.values)

    def count(self, condition: str) -> int:
        """Count rows, including those marked as deleted."""
        return int(self._row(f"select count(*) from {self.poll.table} where {condition}")[0])

    def versions(self, condition: str) -> tuple[str, tuple[str, ...]]:
        """Return a digest of the row versions there, and the transactions that wrote them."""
        digest, read = self._row(self.versions_sql(condition))
        return digest, tuple(read or ())

    def versions_sql(self, condition: str) -> str:
        """Return the question that `versions` asks; its answer has two columns."""
        return (
            "select count(*) || ':' || coalesce(sum(hashtextextended("
            "tableoid::text || ctid::text || xmin::text, 0)::numeric), 0),"
            f" array_agg(distinct xmin::text) from {self.poll.table} where {condition}"
        )

    def newest(self) -> tuple[str, ...] | None:
        """Return timestamp and key of a row with the newest timestamp the clock has reached."""
        poll, reached = self.poll, self._ahead
        condition = f"<= {reached}" if reached else "is not null"
        key = ", ".join(f"{quote(name)}::text" for name in poll.source.schema.primary_key)
        # Ordered inside: in the same select, the text's name would stand for it.
        found = self._row(
            f"select {poll.stamp.sql}::text, {key} from (select * from {poll.table} where"
            f" {poll.stamp.sql} {condition} order by {poll.stamp.sql} desc limit 1) newest"
        )
        return None if found[0] is None else found

    def newest_stamp(self) -> str | None:
        """Return the newest timestamp that the clock has reached."""
        found: str | None = self._row(str(self._newest_stamp_clause()))[0]
        return found

    def _newest_stamp_clause(self) -> Clause:
        reached = self._than("<=", self._ahead) if self._ahead else Clause("true")
        return Clause(self._extreme_sql("max", ""), ()).then(reached, "")

    def oldest(self, condition: str) -> datetime:
        """Return the oldest timestamp there as an instant; now if there is none."""
        poll = self.poll
        found = self._row(
            f"select min({poll.stamp.instant_sql})::text from {poll.table} where {condition}"
        )
        texts = pa.array(found[:1], pa.large_string())
        oldest: datetime = poll.stamp.instants(texts, self._form, self._now)[0].as_py()
        return oldest

    def changed_rows(self, condition: str, since: int, limit: int) -> Iterator[ChangeBatch]:
        """Yield current rows that were different at `since`, by the source's clock."""
        yield from self._batches(_rows_sql(self.poll, condition), since, limit)

    def touched_rows(
        self, keys: Sequence[tuple[Any, ...]], since: int, limit: int
    ) -> Iterator[ChangeBatch]:
        """Yield the same for keys, whether or not they have a row."""
        for start in range(0, len(keys), _TOUCHED_ROWS):
            sql = _touched_sql(self.poll, keys[start : start + _TOUCHED_ROWS])
            yield from self._batches(sql, since, limit)

    def _batches(self, query: str, since: int, limit: int) -> Iterator[ChangeBatch]:
        schema, form = self.poll.source.schema, self._form
        names, stored = [LIVE, CHANGED_AT, *schema.names], Stored(self.poll.table, schema.columns)
        self._reading = copied(self._connection, query, names, limit, stored)
        for texts in self._reading:
            batch = self._batch(texts, form, since)
            del texts
            yield batch
            del batch

    def _batch(self, texts: pa.Table, form: Stamp | None, since: int) -> ChangeBatch:
        schema, count = self.poll.source.schema, texts.num_rows
        stamps = texts[CHANGED_AT].combine_chunks()
        own = [
            pa.array(np.zeros(count, np.int64)),
            self.poll.stamp.instants(stamps, form, self._now, since),
            pc.equal(texts[LIVE].combine_chunks(), "t"),
        ]
        arrays, rejections = admit_rows(schema, texts)
        events = pa.table([*own, *arrays], [SEQUENCE, CHANGED_AT, LIVE, *schema.names])
        letters = letters_of(schema, rejections, texts, self._clock)
        admitted = without_rows(events.cast(event_schema(schema)), rejections)
        return ChangeBatch(admitted, count, net=True, rejected=letters, seen_at=self._clock)

    def doubt(self, glance: PostgresGlance | None) -> str | None:
        """Return why this table's timestamps may be earlier than the server's horizon."""
        poll, name = self.poll, repr(self.poll.options.updated_at)
        if poll.options.clock is Clock.APPLICATION:
            return f"{name} is stamped by the application's clock"
        if not poll.stamp.family.is_written_alike and not self._is_of_one_form():
            return f"{name} holds values of unknown or several forms"
        if self._is_ahead(glance):
            return f"{name} lies ahead of the database's clock"
        return poll.stamp.doubt(self._form)

    def form_questions(self) -> Iterator[str]:
        """Yield the questions whose answers show the form of the timestamps."""
        if not self.poll.stamp.family.is_written_alike:
            yield self._extreme_sql("max")
            if self.poll.options.clock is not Clock.APPLICATION:
                yield self._extreme_sql("min")

    def _is_ahead(self, glance: PostgresGlance | None) -> bool:
        if glance is not None or self._ahead is None:
            return glance is not None and glance.is_ahead
        ahead = f"{self.poll.stamp.sql} > {self._ahead}"
        return bool(self._row(f"select exists (select from {self.poll.table} where {ahead})")[0])

    def _is_of_one_form(self) -> bool:
        oldest = self._extreme("min")
        if oldest is None:
            return True
        form = self.poll.stamp.form(oldest)
        return form is not None and _lasting(form) == _lasting(self._form)

    @cached_property
    def _form(self) -> Stamp | None:
        """The form of the column's timestamps, judged by its newest one."""
        alike = self.poll.stamp.family.is_written_alike
        return None if alike else self.poll.stamp.form(self._extreme("max"))

    @cached_property
    def _ahead(self) -> Clause | None:
        return self._bound(self._now + _AHEAD)

    def _bound(self, micros: int) -> Clause | None:
        return self.poll.stamp.bound(micros, self._form)

    def _extreme(self, which: str) -> str | None:
        found: str | None = self._row(self._extreme_sql(which))[0]
        return found

    def _extreme_sql(self, which: str, condition: str = "true") -> str:
        stamp = self.poll.stamp.sql
        return f"select {which}({stamp})::text from {self.poll.table} where {condition}"

    def _row(self, question: str) -> tuple[Any, ...]:
        return self._answers.row(question)


def unread(read: Sequence[str]) -> str:
    """Return SQL of the row versions written by other transactions than those read."""
    return f"xmin <> all ('{_list_of(read)}'::xid[])"


def _list_of(read: Sequence[str]) -> str:
    return f"{{{','.join(read)}}}"


def _rows_sql(poll: PostgresPoll, condition: str) -> str:
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


def _touched_sql(poll: PostgresPoll, keys: Sequence[tuple[Any, ...]]) -> str:
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


def _lasting(form: Stamp | None) -> Stamp | None:
    """Return the form without what may differ between texts of one form."""
    return form and replace(form, digits=0)
