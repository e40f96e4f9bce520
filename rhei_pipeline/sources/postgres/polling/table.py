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
from rhei_pipeline.sources.postgres.polling.timestamps import StampColumn
from rhei_pipeline.sources.postgres.rows import (
    PostgresRowReader,
    admit_rows,
    bare_literal,
    copied,
    letters_of,
    without_rows,
)
from rhei_pipeline.sql.text import listed, matching, quote

_SECOND = 1_000_000
#: A stamp so far ahead of the source's clock was not made by it.
_AHEAD_SECONDS = 2
#: Keys read again by one statement.
_TOUCHED_ROWS = 500


@dataclass(frozen=True, slots=True)
class PostgresPoll:
    """A polled table: its catalogue entry, and the columns that polling uses.

    Attributes:
        live: SQL that is true if a row is not marked as deleted.
        origin: The server, its timeline and the table.
    """

    source: PostgresTable
    options: PollOptions
    stamp: StampColumn
    live: str
    origin: str

    @property
    def table(self) -> str:
        """The table's quoted name in the source."""
        return qualified(self.source.schema)


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

    def within(self, low: int | None, least: str | None) -> str:
        """Return SQL of the rows that must be read from there on; as in `Horizon`."""
        stamp = self.poll.stamp
        bounds = [] if low is None else [self._bound(low)]
        if least is not None:
            bounds.append(bare_literal(least))
        known = [bound for bound in bounds if bound is not None]
        if low is None or not known:
            return "true"
        behind = " or ".join(f"{stamp.sql} >= {bound}" for bound in known)
        return f"({behind} or {stamp.sql} is null)" if stamp.is_nullable else f"({behind})"

    def count(self, condition: str) -> int:
        """Count rows, including those marked as deleted."""
        return int(self._row(self.count_sql(condition))[0])

    def count_sql(self, condition: str) -> str:
        """Return the question that `count` asks."""
        return f"select count(*) from {self.poll.table} where {condition}"

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
        found: str | None = self._row(self.newest_stamp_sql())[0]
        return found

    def newest_stamp_sql(self) -> str:
        """Return the question that `newest_stamp` asks."""
        reached = f"{self.poll.stamp.sql} <= {self._ahead}" if self._ahead else "true"
        return self._extreme_sql("max", reached)

    def has_newest(self, known: Horizon) -> bool:
        """Return whether the newest known row exists, with the same or a newer timestamp."""
        return known.newest is None or bool(self._row(self._has_newest_sql(known))[0])

    def _has_newest_sql(self, known: Horizon) -> str:
        poll = self.poll
        pairs = zip(poll.source.schema.primary_key, known.key, strict=True)
        same = " and ".join(f"{quote(name)} = {bare_literal(value)}" for name, value in pairs)
        newer = f"{poll.stamp.sql} >= {bare_literal(known.newest)}"
        return self._has_sql(f"{same} and {newer}")

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
        names, form = [LIVE, CHANGED_AT, *self.poll.source.schema.names], self._form
        self._reading = copied(self._connection, query, names, limit)
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

    def doubt(self) -> str | None:
        """Return why this table's timestamps may be earlier than the server's horizon."""
        poll, name = self.poll, repr(self.poll.options.updated_at)
        if poll.options.clock is Clock.APPLICATION:
            return f"{name} is stamped by the application's clock"
        if not poll.stamp.family.is_written_alike and not self._is_of_one_form():
            return f"{name} holds values of unknown or several forms"
        if self._ahead and self._row(self._is_ahead_sql())[0]:
            return f"{name} lies ahead of the database's clock"
        return poll.stamp.doubt(self._form)

    def form_questions(self) -> Iterator[str]:
        """Yield the questions whose answers show the form of the timestamps."""
        if not self.poll.stamp.family.is_written_alike:
            yield self._extreme_sql("max")
            if self.poll.options.clock is not Clock.APPLICATION:
                yield self._extreme_sql("min")

    def newest_questions(self, known: Horizon) -> Iterator[str]:
        """Yield the question that `has_newest` asks."""
        if known.newest is not None:
            yield self._has_newest_sql(known)

    def questions_behind(self, condition: str) -> Iterator[str]:
        """Yield what a poll behind a position asks once the form is known."""
        yield self.count_sql(condition)
        if self._ahead and self.poll.options.clock is not Clock.APPLICATION:
            yield self._is_ahead_sql()

    def _is_ahead_sql(self) -> str:
        return self._has_sql(f"{self.poll.stamp.sql} > {self._ahead}")

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
    def _ahead(self) -> str | None:
        return self._bound(self._now + _AHEAD_SECONDS * _SECOND)

    def _bound(self, micros: int) -> str | None:
        return self.poll.stamp.bound(micros, self._form)

    def _extreme(self, which: str) -> str | None:
        found: str | None = self._row(self._extreme_sql(which))[0]
        return found

    def _extreme_sql(self, which: str, condition: str = "true") -> str:
        stamp = self.poll.stamp.sql
        return f"select {which}({stamp})::text from {self.poll.table} where {condition}"

    def _has_sql(self, condition: str) -> str:
        return f"select exists (select from {self.poll.table} where {condition})"

    def _row(self, question: str) -> tuple[Any, ...]:
        return self._answers.row(question)


def unread(read: Sequence[str]) -> str:
    """Return SQL of the row versions written by other transactions than those read."""
    return f"xmin <> all ('{{{','.join(read)}}}'::xid[])"


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
