"""Rows of a SQLite table as batches: what every way to capture from SQLite reads the same way."""

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

import pyarrow as pa

from rhei_pipeline.changes.null_keys import NULL_KEY
from rhei_pipeline.model.changes import DeadLetter, RowBatch
from rhei_pipeline.sources.rejections import without
from rhei_pipeline.sources.sqlite.admission import Admission, key_first, key_in
from rhei_pipeline.sources.sqlite.catalog import SqliteTable
from rhei_pipeline.sources.sqlite.cursors import RowCursor, fetch
from rhei_pipeline.sources.sqlite.types import admit, decode_key, encode_key
from rhei_pipeline.sql.text import disjunction, listed, quote

_KEYS = 10_000
#: How a place to go on at begins if the key there is still to be read.
_FROM = "from"


@dataclass(frozen=True, slots=True)
class SqliteRowReader:
    """Reads whole rows of one table within an open read transaction.

    Attributes:
        clock: The source's clock; dead letters are dated by it.
        condition: SQL that a row must meet to count as one; empty for all rows.
        counts: How many rows met a condition that was asked for in this transaction.
    """

    connection: sqlite3.Connection
    source: SqliteTable
    clock: datetime
    condition: str = ""
    counts: dict[str, int] = field(default_factory=dict)

    def rows(self, resume: str | None, limit: int) -> RowBatch | None:
        """Read the next rows in key order; None when there are no more."""
        return self.rows_within(resume, None, limit)

    def rows_within(self, resume: str | None, until: str | None, limit: int) -> RowBatch | None:
        """Read the next rows of a range of keys; None when there are no more."""
        ordered, params = self.ordered(resume, until)
        columns = listed(column.name for column in key_first(self.source.schema))
        found = RowCursor(self.connection, f"select {columns}{ordered} limit ?", [*params, limit])
        return next(self._batches(found, limit), None)

    def range_ends(self, count: int) -> list[str]:
        """Find the last keys of all of so many ranges but the last, in one pass over the keys."""
        ordered, params = self.ordered(None)
        sized = f"select count(*) from (select 1{ordered})"
        total = int(self.connection.execute(sized, params).fetchone()[0])
        key, place = listed(self.source.schema.primary_key), quote("_rhei_place")
        numbered = f"select {key}, row_number() over (order by {key}) as {place}{ordered}"
        ends = (
            f"select {key} from ({numbered}) where {place} * ? / ? > ({place} - 1) * ? / ?"
            f" and {place} < ? order by {place}"
        )
        bound = [*params, count, total, count, total, total]
        found = RowCursor(self.connection, ends, bound) if total else None
        return [encode_key(row) for row in found.take(count)] if found else []

    def draw(self, share: float, limit: int) -> Iterator[RowBatch]:
        """Yield rows drawn by lot, each with the same chance."""
        schema = self.source.schema
        conditions = [f"{quote(name)} is not null" for name in self.source.nullable_key]
        conditions += [self.condition] if self.condition else []
        conditions.append("abs(random() % 1000000000) < ?")
        sql = (
            f"select {listed(column.name for column in key_first(schema))}"
            f" from {quote(schema.name)} where {' and '.join(conditions)}"
        )
        bound = (round(share * 1_000_000_000),)
        yield from self._batches(RowCursor(self.connection, sql, bound, repeats=False), limit)

    def _batches(self, found: RowCursor, limit: int) -> Iterator[RowBatch]:
        schema = self.source.schema
        names = [column.name for column in key_first(schema)]
        for rows in Admission(schema, self.clock).portions(found.take, limit):
            admitted = pa.table(without(rows.arrays, rows.rejections), names)
            resume = encode_key(rows.last[: len(schema.primary_key)])
            letters = tuple(rows.letters)
            del rows
            yield RowBatch(admitted.select(list(schema.names)), resume, letters)
            del admitted

    def keyless(self) -> tuple[DeadLetter, ...]:
        """Name the keys that are null in part or whole: nothing can tell their rows apart."""
        schema = self.source.schema
        if not self.source.nullable_key:
            return ()
        also = f" and {self.condition}" if self.condition else ""
        sql = (
            f"select distinct {listed(schema.primary_key)} from {quote(schema.name)}"
            f" where ({self._has_no_key()}){also}"
        )
        letters: list[DeadLetter] = []
        for rows in fetch(self.connection, sql, (), _KEYS):
            values = list(zip(*rows, strict=True))
            arrays, _ = admit(values, schema.key_columns)
            for number, row in enumerate(rows):
                key, column = key_in(schema, arrays, values, number), row.index(None)
                name = schema.primary_key[column]
                letters.append(DeadLetter(schema.name, key, name, NULL_KEY, self.clock))
        return tuple(letters)

    def keyless_count(self, where: str) -> int:
        """Count the rows whose key is null in part or whole."""
        if not self.source.nullable_key:
            return 0
        return self.count(f"({self._has_no_key()}) and ({where})")

    def _has_no_key(self) -> str:
        return disjunction(f"{quote(name)} is null" for name in self.source.nullable_key)

    def count(self, where: str = "true") -> int:
        """Count the rows; once, since that looks at all of them."""
        if where not in self.counts:
            name, condition = quote(self.source.schema.name), self.condition or "true"
            found = self.connection.execute(
                f"select count(*) from {name} where {condition} and ({where})"
            )
            self.counts[where] = int(found.fetchone()[0])
        return self.counts[where]

    def has_behind(self, resume: str | None, count: int) -> bool:
        """Return whether there are so many rows after `resume`; so many are looked at at most."""
        ordered, params = self.ordered(resume)
        sql = f"select count(*) from (select 1{ordered} limit ?)"
        return int(self.connection.execute(sql, [*params, count]).fetchone()[0]) >= count

    def start_at(self, key: pa.Table) -> str:
        """Return where `rows` goes on with a key."""
        values = [column[0].as_py() for column in key.columns]
        return _FROM + encode_key([v.isoformat() if isinstance(v, date) else v for v in values])

    def orders_bytewise(self) -> bool:
        """Return whether keys are ordered by the bytes of their texts in UTF-8."""
        if not any(pa.types.is_string(c.type) for c in self.source.schema.key_columns):
            return True
        (encoding,) = self.connection.execute("pragma encoding").fetchone()
        return self.source.binary_key and encoding == "UTF-8"

    def ordered(self, resume: str | None, until: str | None = None) -> tuple[str, list[Any]]:
        """Write what follows the columns in a `select` of the rows after `resume`, in key order."""
        where, params = self._chosen(resume, until)
        schema = self.source.schema
        return f" from {quote(schema.name)}{where} order by {listed(schema.primary_key)}", params

    def stored(self, resume: str | None) -> tuple[str, list[Any]]:
        """Write the same for the order in which the rows are stored."""
        where, params = self._chosen(resume, None)
        return f" from {quote(self.source.schema.name)} not indexed{where}", params

    def _chosen(self, resume: str | None, until: str | None) -> tuple[str, list[Any]]:
        key = listed(self.source.schema.primary_key)
        conditions = [f"{quote(name)} is not null" for name in self.source.nullable_key]
        params: list[Any] = []
        begins = ">=" if resume is not None and resume.startswith(_FROM) else ">"
        for operator, place in ((begins, resume), ("<=", until)):
            if place is not None:
                placeholders, values = decode_key(place.removeprefix(_FROM))
                conditions.append(f"({key}) {operator} ({', '.join(placeholders)})")
                params += values
        if self.condition:
            conditions.append(self.condition)
        return f" where {' and '.join(conditions)}" if conditions else "", params


#: Reads the next rows of a reader's table, as `SqliteRowReader.rows` does.
ReadRows = Callable[[SqliteRowReader, str | None, int], RowBatch | None]
