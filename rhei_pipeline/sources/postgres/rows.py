"""Reads rows of a PostgreSQL table as text and as batches, for every capture method."""

import json
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow as pa
from psycopg.sql import Literal

from rhei_pipeline.model.changes import DeadLetter, RowBatch, key_text
from rhei_pipeline.model.plain_values import plain_value
from rhei_pipeline.model.portions import PORTION_BYTES
from rhei_pipeline.model.schema import Column, TableSchema
from rhei_pipeline.model.selection import as_one
from rhei_pipeline.sources.postgres.catalog import Connection, qualified
from rhei_pipeline.sources.postgres.row_texts import Stored, copied
from rhei_pipeline.sources.postgres.types import admit_text
from rhei_pipeline.sources.rejections import Rejection
from rhei_pipeline.sql.text import listed, quote

#: Whether all texts of a key are ordered by their bytes: texts whose collation says so, and UUIDs.
#: The default collation is the database's; what other types show as text, they order otherwise.
_BYTEWISE = """
select pg_encoding_to_char(d.encoding) = 'UTF8' and bool_and(
    t.typname = 'uuid' or t.typname in ('text', 'varchar') and (
        c.collname in ('C', 'POSIX', 'ucs_basic')
        or c.collname = 'default' and d.datcollate in ('C', 'POSIX')
        and coalesce(to_jsonb(d) ->> 'datlocprovider', 'c') = 'c'))
from pg_catalog.pg_attribute a
join pg_catalog.pg_type t on t.oid = a.atttypid
left join pg_catalog.pg_collation c on c.oid = a.attcollation
join pg_catalog.pg_database d on d.datname = current_database()
where a.attrelid = %s::regclass and a.attname = any(%s)
group by d.encoding
"""
#: How a place to go on at begins if the key there is still to be read.
_FROM = "from"
_ROW, _BYTES, _ALL = "_rhei_row", "_rhei_bytes", "_rhei_all"
#: So much of a portion is taken for a whole one: it ended as its next row did not fit.
_NEARLY_FULL = 0.75
#: So many rows tell about how many bytes the next ones have.
_SAMPLE_ROWS = 512
#: The keys of so many rows are all looked at to cut a table into ranges; of more, so many for each
#: range: its size is then right to a few percent.
_FEW_ROWS, _DRAWN_KEYS = 500_000, 10_000
#: About how many bytes a value is as text that is neither text nor a blob.
_NARROW = 16
#: Columns beside which a text without a type is taken for an anonymous composite, or an oid; or
#: may be, as beside a domain of a domain.
_UNTYPED = """
select a.attname::text, format_type(a.atttypid, a.atttypmod)
from pg_catalog.pg_attribute a join pg_catalog.pg_type t on t.oid = a.atttypid
join pg_catalog.pg_type b on b.oid = coalesce(nullif(t.typbasetype, 0), t.oid)
where a.attrelid = %s::regclass and a.attname = any(%s::text[])
    and (b.typtype in ('c', 'd')
        or b.typname like 'reg%%' and b.typnamespace = 'pg_catalog'::regnamespace)
"""
#: How much smaller than its text a long value may lie beside its table, about.
_MOST_COMPRESSED = 8
#: A table with so small a share of a portion's bytes is read without a look at its rows: its values
#: are compressed to an 87th at best, or with lz4 to a 255th.
_SMALL_SHARE = 160
_IS_SMALL = (
    "select from pg_catalog.pg_class where oid = %s::regclass and relkind = 'r'"
    " and pg_table_size(oid) <= %s"
)
#: The bytes beside a table and its parts, and their rows, if the server has counted them.
_APART = """
select coalesce(sum(pg_relation_size(reltoastrelid)), 0)::float8 as apart,
    sum(reltuples) filter (where reltuples > 0 and relkind <> 'p')::float8 as counted
from pg_catalog.pg_class where oid = {relation}::regclass
    or oid in (select relid from pg_catalog.pg_partition_tree({relation}::regclass))
"""
#: About how many bytes a text has. One that is no text in the server has to be read to tell, and is
#: only where it is short.
_TEXT_BYTES = (
    "coalesce(case when pg_column_size({name}) > 2000 and pg_typeof({name})::oid not in"
    " ('text'::regtype, 'varchar'::regtype, 'bpchar'::regtype)"
    " then {most} * pg_column_size({name}) else octet_length({name}::text) end, 0)"
)


@dataclass(frozen=True, slots=True)
class PostgresRowReader:
    """Reads whole rows of one table within an open transaction.

    Attributes:
        clock: The source's clock; the time of dead letters.
        condition: SQL that selects the rows.
    """

    connection: Connection
    schema: TableSchema
    clock: datetime
    condition: str = "true"

    def rows(self, resume: str | None, limit: int, until: str | None = None) -> RowBatch | None:
        """Return the next rows in key order, up to a limit or a key; None if there are none.

        They are fewer where they have more bytes than a portion.
        """
        limit, is_large = self._fitting(resume, limit, until)
        if is_large:
            until = self._end_by_bytes(resume, limit, until) or until
        texts = self._texts(self._rows_sql(resume, limit, until), limit)
        found, size = [], 0
        # Mapped: a loop's variable would hold the texts beside what becomes of them.
        for batch in map(self._batch, texts):
            found.append(batch)
            size += batch.rows.nbytes
            if size >= _NEARLY_FULL * PORTION_BYTES:
                # The rest is read and let go: to cancel the statement would end the transaction.
                deque(texts, maxlen=0)
        return _joined(found) if found else None

    def rows_within(self, resume: str | None, until: str | None, limit: int) -> RowBatch | None:
        """Return the next rows of a range of keys; None if there are none."""
        return self.rows(resume, limit, until)

    def range_ends(self, count: int) -> list[str]:
        """Find the last keys of all of so many ranges but the last; of a large table, by lot."""
        key = listed(self.schema.primary_key)
        numbered = (
            f"select {key}, row_number() over (order by {key}) as {_ROW},"
            f" count(*) over () as {_ALL} from {qualified(self.schema)}{self._by_lot(count)}"
            f" where {self.condition}"
        )
        ends = (
            f"select {', '.join(f'{quote(name)}::text' for name in self.schema.primary_key)}"
            f" from ({numbered}) numbered where {_ROW} * {count} / {_ALL} >"
            f" ({_ROW} - 1) * {count} / {_ALL} and {_ROW} < {_ALL} order by {_ROW}"
        )
        found = self.connection.execute(ends.encode()).fetchall()
        return [json.dumps(row) for row in found]

    def _by_lot(self, ranges: int) -> str:
        """Return SQL that draws some pages of a table that has far more rows than are needed."""
        sql = (
            "select reltuples::float8, relkind in ('r', 'p') from pg_catalog.pg_class"
            " where oid = %s::regclass"
        )
        found = self.connection.execute(sql.encode(), (qualified(self.schema),)).fetchone()
        rows, is_plain = found or (0.0, False)
        wanted = ranges * _DRAWN_KEYS
        is_large = is_plain and rows > _FEW_ROWS + 2 * wanted
        return f" tablesample system ({100 * wanted / rows!r})" if is_large else ""

    def draw(self, share: float, limit: int) -> Iterator[RowBatch]:
        """Yield rows drawn by lot, each with the same chance."""
        query = (
            f"select {listed(self.schema.names)} from {qualified(self.schema)}"
            f" where {self.condition} and random() < {share!r}"
        )
        yield from map(self._batch, self._texts(query, limit))

    def _texts(self, query: str, limit: int | None) -> Iterator[pa.Table]:
        stored = Stored(qualified(self.schema), self.schema.columns)
        return copied(self.connection, query, self.schema.names, limit, stored)

    def _batch(self, texts: pa.Table) -> RowBatch:
        schema = self.schema
        arrays, rejections = admit_rows(schema, texts)
        letters = letters_of(schema, rejections, texts, self.clock)
        rows = without_rows(pa.table(arrays, schema.names), rejections)
        last = [texts[name][texts.num_rows - 1].as_py() for name in schema.primary_key]
        return RowBatch(rows, json.dumps(last), letters)

    def count(self, where: str = "true") -> int:
        """Count the rows."""
        name = qualified(self.schema)
        statement = f"select count(*) from {name} where {self.condition} and ({where})"
        found = self.connection.execute(statement.encode()).fetchone()
        return int(found[0]) if found else 0

    def start_at(self, key: pa.Table) -> str:
        """Return where `rows` goes on with a key."""
        values = [column[0].as_py() for column in key.columns]
        return _FROM + json.dumps(
            [f"\\x{value.hex()}" if isinstance(value, bytes) else str(value) for value in values]
        )

    def orders_bytewise(self) -> bool:
        """Return whether keys are ordered by the bytes of their texts in UTF-8."""
        texts = [c.name for c in self.schema.key_columns if c.type == pa.string()]
        if not texts:
            return True
        asked = (qualified(self.schema), texts)
        found = self.connection.execute(_BYTEWISE.encode(), asked).fetchone()
        return bool(found and found[0])

    def end_of(self, resume: str | None, limit: int) -> str | None:
        """Find the last key of the next rows, so many; None when no more are left.

        Found by the keys alone: a look at the rows' bytes takes twice as long as their COPY.
        """
        key = self.schema.primary_key
        query = (
            f"select {self._key_as_copied()} from ("
            f"select {listed(key)} from {qualified(self.schema)}"
            f" where {self._range(resume, None)} order by {listed(key)}"
            f" limit 1 offset {limit - 1}) last"
        )
        found = self.connection.execute(query.encode()).fetchone()
        return None if found is None else json.dumps(found)

    def _end_by_bytes(self, resume: str | None, limit: int, until: str | None) -> str | None:
        """Find the last key of the next rows that have about as many bytes as a portion.

        None where there are fewer.
        """
        key = self.schema.primary_key
        ahead = (
            f"select {listed(key)}, row_number() over ahead as {_ROW},"
            f" sum({self._width}) over ahead as {_BYTES} from {qualified(self.schema)}"
            f" where {self._range(resume, until)} window ahead as (order by {listed(key)})"
            f" order by {listed(key)} limit {limit}"
        )
        # Ordered within: the text of a key sorts otherwise than the key does.
        query = (
            f"select {self._key_as_copied()} from ("
            f"select * from ({ahead}) ahead"
            f" where {_BYTES} >= {PORTION_BYTES} order by {_ROW} limit 1) last"
        )
        found = self.connection.execute(query.encode()).fetchone()
        return None if found is None else json.dumps(found)

    def _fitting(self, resume: str | None, limit: int, until: str | None) -> tuple[int, bool]:
        """Return how many rows to read, and whether they may have more bytes than a portion.

        Both are estimated by the bytes of the first of them, and by those that lie beside the
        table: a long value that few rows have is seldom among the first.
        """
        asked_of = (qualified(self.schema), PORTION_BYTES // _SMALL_SHARE)
        if self.connection.execute(_IS_SMALL, asked_of).fetchone() is not None:
            return limit, False
        few, name = min(limit, _SAMPLE_ROWS), bare_literal(qualified(self.schema))
        ahead = (
            f"select {self._width} as {_BYTES} from {qualified(self.schema)}"
            f" where {self._range(resume, until)}"
            f" order by {listed(self.schema.primary_key)} limit {few}"
        )
        asked = (
            f"select (select coalesce(sum({_BYTES}), 0)::float8 from ({ahead}) ahead),"
            f" apart, counted from ({_APART.format(relation=name)}) facts"
        )
        found = self.connection.execute(asked.encode()).fetchone()
        first, apart, rows = found or (0.0, 0.0, None)
        share = min(1.0, limit / rows) if rows else 1.0
        bytes_of_row = max(1.0, first / few)
        if bytes_of_row * limit + _MOST_COMPRESSED * apart * share <= PORTION_BYTES / 2:
            return limit, False
        return min(limit, max(few, int(2 * PORTION_BYTES / bytes_of_row))), True

    def _key_as_copied(self) -> str:
        """Return SQL of a key as COPY writes it: a cast to text would cut a char(n)."""
        return ", ".join(f"format('%s', {quote(name)})" for name in self.schema.primary_key)

    @property
    def _width(self) -> str:
        """SQL of about how many bytes of text a row is; a value that lies apart is not read."""
        texts = [quote(column.name) for column in self.schema.columns if column.type == pa.string()]
        blobs = [quote(column.name) for column in self.schema.columns if column.type == pa.binary()]
        terms = [_TEXT_BYTES.format(name=name, most=_MOST_COMPRESSED) for name in texts]
        terms += [f"coalesce(2 * octet_length({name}), 0)" for name in blobs]
        return " + ".join([str(_NARROW * len(self.schema.columns)), *terms])

    def _rows_sql(self, resume: str | None, limit: int, until: str | None) -> str:
        return (
            f"select {listed(self.schema.names)} from {qualified(self.schema)}"
            f" where {self._range(resume, until)}"
            f" order by {listed(self.schema.primary_key)} limit {limit}"
        )

    def _range(self, resume: str | None, until: str | None) -> str:
        key, found = listed(self.schema.primary_key), self.condition
        casts = {} if resume is None and until is None else self._casts()
        begins = ">=" if resume is not None and resume.startswith(_FROM) else ">"
        for operator, place in ((begins, resume), ("<=", until)):
            if place is not None:
                texts = json.loads(place.removeprefix(_FROM))
                named = zip(self.schema.primary_key, texts, strict=True)
                values = [f"{bare_literal(text)}{casts.get(name, '')}" for name, text in named]
                found += f" and ({key}) {operator} ({', '.join(values)})"
        return found

    def _casts(self) -> dict[str, str]:
        """Return what gives a text the type of a key's column that it would not take beside it.

        A literal, and nothing that is found as the statement runs: by it the server estimates how
        many rows there are, and so whether it reads them in the order of the key.
        """
        if all(column.type != pa.string() for column in self.schema.key_columns):
            return {}
        asked = (qualified(self.schema), list(self.schema.primary_key))
        return {
            name: f"::{kind}" for name, kind in self.connection.execute(_UNTYPED.encode(), asked)
        }


def as_in(schema: TableSchema, column: Column, text: str) -> str:
    """Return SQL of a value, given as SQL of a text without a type, as its column's type.

    Such a text takes the type that it is compared with, but not that of a composite; and what is
    beside a `regclass` becomes an `oid`. The empty part gives it the column's.
    """
    if column.type != pa.string():
        return text
    empty = f"select {quote(column.name)} from {qualified(schema)} where false"
    return f"({empty} union all select {text})"


def bare_literal(value: object) -> str:
    """Return a literal where parameters are not possible; text takes the type of its context."""
    return Literal(value).as_string(None)


def _joined(found: Sequence[RowBatch]) -> RowBatch:
    """Return batches that follow each other as one."""
    rows = pa.concat_tables([batch.rows for batch in found])
    letters = tuple(letter for batch in found for letter in batch.rejected)
    return RowBatch(rows, found[-1].resume, letters)


def admit_rows(schema: TableSchema, texts: pa.Table) -> tuple[list[pa.Array], list[Rejection]]:
    """Convert the text of a table's columns to their types; return rows that do not fit."""
    arrays, rejections = [], []
    for column in schema.columns:
        values = texts[column.name]
        if isinstance(values, pa.ChunkedArray):
            values = as_one(values)
        array, misfits = admit_text(values, column)
        arrays.append(array)
        rejections += misfits
    return arrays, rejections


def letters_of(
    schema: TableSchema, rejections: Sequence[Rejection], texts: pa.Table, clock: datetime
) -> tuple[DeadLetter, ...]:
    """Return a dead letter for each rejection, with its row's key."""
    letters = []
    for misfit in rejections:
        row = texts.select(list(schema.primary_key)).slice(misfit.row, 1)
        admitted = {
            column.name: plain_value(admit_text(row[column.name].combine_chunks(), column)[0][0])
            for column in schema.key_columns
        }
        letters.append(
            DeadLetter(schema.name, key_text(admitted), misfit.column, misfit.reason, clock)
        )
    return tuple(letters)


def without_rows(rows: pa.Table, rejections: Sequence[Rejection]) -> pa.Table:
    """Return the rows without the rejected ones."""
    return rows.filter(kept(rows.num_rows, rejections)) if rejections else rows


def kept(count: int, rejections: Sequence[Rejection]) -> pa.Array:
    """Return a mask of the rows that were not rejected."""
    mask = np.ones(count, dtype=bool)
    mask[[rejection.row for rejection in rejections]] = False
    return pa.array(mask)
