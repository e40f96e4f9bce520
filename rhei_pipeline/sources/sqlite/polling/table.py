"""One polled SQLite table inside an open read transaction: the SQL of polling."""

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.model.changes import ChangeBatch
from rhei_pipeline.model.instants import instant
from rhei_pipeline.model.polling import Clock, Keyset, PollOptions, Stamp
from rhei_pipeline.model.schema import Column
from rhei_pipeline.model.type_names import INSTANT
from rhei_pipeline.sources.sqlite.admission import Admission, Values, key_first
from rhei_pipeline.sources.sqlite.catalog import SqliteTable
from rhei_pipeline.sources.sqlite.cursors import RowCursor, Take, fetch, size_of
from rhei_pipeline.sources.sqlite.event_rows import event_batches
from rhei_pipeline.sources.sqlite.given_keys import stored_keys
from rhei_pipeline.sources.sqlite.rows import SqliteRowReader
from rhei_pipeline.sources.sqlite.types import admit_column, decode_key
from rhei_pipeline.sql.text import conjunction, listed, quote

_SECOND = 1_000_000
#: SQLite's clock shows milliseconds.
_CLOCK_PRECISION = 1_000
#: A stamp so far ahead of the source's clock was not made by it.
_AHEAD_SECONDS = 2
_DIGEST_ROWS = 1_000
#: Rows of more bytes are digested one by one, and a row of more value by value.
_LARGE_BYTES = 2**20

#: A condition on rows, and the values it binds.
Condition = tuple[str, list[Any]]


@dataclass(frozen=True, slots=True)
class SqlitePoll:
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

    @property
    def table(self) -> str:
        """The table, quoted."""
        return quote(self.source.schema.name)

    def at(self, operator: str, at: str | None) -> Condition:
        """Compare the stamp with an encoded one; without one, every stamp lies behind it."""
        if at is None:
            return f"{self.stamp} is not null", []
        places, values = decode_key(at)
        return f"{self.stamp} {operator} {places[0]}", values

    def blank(self) -> Condition:
        """Ask for rows without a stamp."""
        return f"{self.stamp} is null", []


@dataclass(frozen=True, slots=True)
class Glance:
    """What one statement tells of a table that was polled before.

    Attributes:
        has_newest: The newest row known is there, as new as it was or newer.
        newer: How many rows are stamped later than any that was known.
        has_blank: There are rows without a stamp.
        newest, oldest: The extremes of the stamps; not asked for where a stamp is not the
            database's own.
    """

    has_newest: bool
    newer: int
    has_blank: bool
    newest: Any = None
    oldest: Any = None


def glances(
    connection: sqlite3.Connection, questions: Sequence[Condition], most: int
) -> Iterator[Glance]:
    """Answer questions in order, by as few statements as SQLite takes."""
    for start in range(0, len(questions), most):
        some = questions[start : start + most]
        sql = " union all ".join(text for text, _ in some)
        for rows in fetch(connection, sql, [value for _, bound in some for value in bound], most):
            for has_newest, newer, has_blank, *extremes in rows:
                yield Glance(bool(has_newest), newer, bool(has_blank), *extremes)


class SqlitePolledTable:
    """A table as the transaction of `connection` sees it; `now` is its clock, in microseconds."""

    def __init__(self, connection: sqlite3.Connection, poll: SqlitePoll, now: int) -> None:
        self._connection = connection
        self.poll = poll
        self._now = now
        self._clock = instant(now)

    @cached_property
    def reader(self) -> SqliteRowReader:
        """What reads its rows whole."""
        condition = "" if self.poll.options.deleted_at is None else self.poll.live
        return SqliteRowReader(self._connection, self.poll.source, self._clock, condition)

    def newest(self) -> tuple[Any, ...] | None:
        """Return timestamp and key of a row with the newest stamp that the clock has reached."""
        form, stamp = Stamp.of(self._extreme("max")), self.poll.stamp
        bound: list[Any] = [form.newest(self._now, _CLOCK_PRECISION)] if form else []
        reached = f"{stamp} <= ?" if form else f"{stamp} is not null"
        key = listed(self.poll.source.schema.primary_key)
        sql = f"select {stamp}, {key} from {self.poll.table} where {reached}"
        rows = fetch(self._connection, f"{sql} order by {stamp} desc limit 1", bound, 1)
        return next(rows, [None])[0]

    def question(self, known: Keyset | None) -> Condition:
        """Write what asks for a `Glance` behind what is known, and the values it binds."""
        table, stamp = self.poll.table, self.poll.stamp
        there, bound = self._is_there(known)
        newer, values = self.poll.at(">", known.at if known else None)
        asked = [
            there,
            f"(select count(*) from {table} where {newer})",
            f"exists (select 1 from {table} where {self.poll.blank()[0]})",
        ]
        # Each by itself: only so does SQLite look it up in an index.
        is_asked = self.poll.options.clock is Clock.DATABASE
        asked += [
            f"(select {which}({stamp}) from {table})" if is_asked else "null"
            for which in ("max", "min")
        ]
        return f"select {', '.join(asked)}", [*bound, *values]

    def _is_there(self, known: Keyset | None) -> Condition:
        """Ask whether the newest row known is there, as new as it was or newer."""
        if known is None or known.at is None or known.key is None:
            return "true", []
        places, key = decode_key(known.key)
        primary_key = self.poll.source.schema.primary_key
        if len(key) != len(primary_key):
            return "false", []  # the table had another key then, so it cannot be compared
        names = listed(primary_key)
        condition, params = self.poll.at(">=", known.at)
        found = (
            f"exists (select 1 from {self.poll.table}"
            f" where ({names}) = ({', '.join(places)}) and {condition})"
        )
        return found, [*key, *params]

    def count(self, condition: Condition) -> int:
        """Count rows, those marked as deleted among them."""
        sql = f"select count(*) from {self.poll.table} where {condition[0]}"
        return int(self._connection.execute(sql, condition[1]).fetchone()[0])

    def digest(self, condition: Condition) -> str:
        """Return a digest of rows; empty if there is no row."""
        digest, seen = hashlib.blake2b(digest_size=12), False
        sql = f"{self.poll.select} where {condition[0]}"
        for rows in fetch(self._connection, sql, condition[1], _DIGEST_ROWS):
            for part in _written(rows):
                digest.update(part)
            rows.clear()
            seen = True
        return digest.hexdigest() if seen else ""

    def oldest(self, condition: Condition) -> datetime:
        """Return the oldest stamp there as an instant; now where there is none."""
        sql = f"select min({self.poll.stamp}) from {self.poll.table} where {condition[0]}"
        ((oldest,),) = next(fetch(self._connection, sql, condition[1], 1))
        found: datetime = self._instants([oldest])[0].as_py()
        return found

    def changed_rows(self, condition: Condition, since: int, limit: int) -> Iterator[ChangeBatch]:
        """Read rows as they are now; `since`: they were not so before, by the source's clock."""
        sql = f"{self.poll.select} where {condition[0]}"
        yield from self._batches(RowCursor(self._connection, sql, condition[1]).take, since, limit)

    def touched_rows(
        self, keys: Sequence[tuple[Any, ...]], since: int, limit: int
    ) -> Iterator[ChangeBatch]:
        """Read the same for keys, whether or not they have a row."""
        found = self._rows_of(keys)
        yield from self._batches(lambda count: list(islice(found, count)), since, limit)

    def doubt(self, glance: Glance | None) -> str | None:
        """Return why timestamps of this table need not follow the order of commits."""
        name = repr(self.poll.options.updated_at)
        if self.poll.options.clock is Clock.APPLICATION:
            return f"{name} is stamped by the application's clock"
        if glance is None:
            newest, oldest = self._extreme("max"), self._extreme("min")
        else:
            newest, oldest = glance.newest, glance.oldest
        form = Stamp.of(newest)
        if newest is not None and (form is None or Stamp.of(oldest) != form):
            return f"{name} holds values of unknown or several forms"
        ahead = self._now + _AHEAD_SECONDS * _SECOND
        if form is not None and newest > form.newest(ahead, _CLOCK_PRECISION):
            return f"{name} lies ahead of the database's clock"
        return None

    def _extreme(self, which: str) -> Any:  # noqa: ANN401  (as the source holds it)
        sql = f"select {which}({self.poll.stamp}) from {self.poll.table}"
        return next(fetch(self._connection, sql, (), 1))[0][0]

    def _rows_of(self, keys: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
        source, select = self.poll.source, self.poll.select
        missing, names = len(source.schema.value_columns), source.schema.primary_key
        for parts, values in stored_keys(self._connection, source, keys):
            condition = conjunction(
                f"{quote(name)} {'is' if name in source.nullable_key else '='} {part}"
                for name, part in zip(names, parts, strict=True)
            )
            rows = next(fetch(self._connection, f"{select} where {condition}", values, 1), [])
            yield rows[0] if rows else (0, None, *values, *([None] * missing))

    def _batches(self, take: Take, since: int, limit: int) -> Iterator[ChangeBatch]:
        """Turn rows into batches: whether each is live, its timestamp, then key and values."""

        def own(values: Values) -> list[pa.Array]:
            live, stamps = values[:2]
            now = self._dated(stamps, since)
            return [
                pa.array(np.zeros(len(live), np.int64)),
                now,
                pa.array(live, pa.int64()).cast(pa.bool_()),
            ]

        admission = Admission(self.poll.source.schema, self._clock, 2, own)
        for batch in event_batches(admission, take, limit):
            yield replace(batch, net=True, seen_at=self._clock)
            del batch

    def _dated(self, stamps: Sequence[Any], since: int) -> pa.Array:
        """Turn timestamps into instants; one of a time when its row was not there is dated now."""
        found = self._instants(stamps).cast(pa.int64())
        return pc.if_else(pc.greater(found, since), found, self._now).cast(INSTANT)

    def _instants(self, stamps: Sequence[Any]) -> pa.Array:
        """Turn timestamps into instants; one without a known form, or ahead, is dated now."""
        form = next((found for found in map(Stamp.of, stamps) if found), None)
        now = pa.scalar(self._clock, INSTANT)
        if form is None:
            return pa.repeat(now, len(stamps))
        found = pc.fill_null(_admitted(form, stamps), now).cast(pa.int64())
        return pc.min_element_wise(found, self._now).cast(INSTANT)


def _written(rows: list[tuple[Any, ...]]) -> Iterator[bytes]:
    """Write rows for a digest, in pieces: of large values, no copy of all of them."""
    if size_of(rows) < _LARGE_BYTES:
        yield repr(rows).encode()
        return
    for row in rows:
        yield from _written_row(row)


def _written_row(row: tuple[Any, ...]) -> Iterator[bytes]:
    if size_of([row]) < _LARGE_BYTES:
        yield repr(row).encode()
        return
    for value in row:
        size = len(value) if isinstance(value, str | bytes) else 0
        yield f"{type(value).__name__} {size} ".encode()
        if isinstance(value, bytes):
            yield value
        elif isinstance(value, str):
            yield value.encode()
        else:
            yield repr(value).encode()


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
