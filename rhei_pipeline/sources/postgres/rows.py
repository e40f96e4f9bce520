"""Rows of a PostgreSQL table as text, and as batches: read alike by every way to capture."""

import json
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
from psycopg.sql import Literal

from rhei_pipeline.model.changes import DeadLetter, RowBatch, key_text
from rhei_pipeline.model.plain_values import plain_value
from rhei_pipeline.model.portions import portions
from rhei_pipeline.model.schema import TableSchema
from rhei_pipeline.sources.postgres.catalog import Connection, qualified
from rhei_pipeline.sources.postgres.copy import copy_out
from rhei_pipeline.sources.postgres.types import admit_text
from rhei_pipeline.sources.rejections import Rejection
from rhei_pipeline.sql.text import listed, quote

#: How a copy writes null; a text that reads so is quoted, and so stays a text.
_NULL = "\\N"


@dataclass(frozen=True, slots=True)
class PostgresRowReader:
    """Reads whole rows of one table within an open transaction.

    Attributes:
        clock: The source's clock; dead letters are dated by it.
        condition: SQL that a row must meet to count as one.
    """

    connection: Connection
    schema: TableSchema
    clock: datetime
    condition: str = "true"

    def rows(
        self, resume: str | None, limit: int | None, until: str | None = None
    ) -> RowBatch | None:
        """Read the next rows in key order, so many or up to a key; None when there are none."""
        schema = self.schema
        query = self._rows_sql(resume, limit, until)
        found = list(copied(self.connection, query, schema.names))
        if not found:
            return None
        (texts,) = found
        arrays, rejections = admit_rows(schema, texts)
        letters = letters_of(schema, rejections, texts, self.clock)
        rows = without_rows(pa.table(arrays, schema.names), rejections)
        last = [texts[name][texts.num_rows - 1].as_py() for name in schema.primary_key]
        return RowBatch(rows, json.dumps(last), letters)

    def count(self) -> int:
        """Count the rows."""
        statement = f"select count(*) from {qualified(self.schema)} where {self.condition}"
        found = self.connection.execute(statement.encode()).fetchone()
        return int(found[0]) if found else 0

    def end_of(self, resume: str | None, limit: int) -> str | None:
        """Find the last key of the next so many rows; None when there are fewer."""
        key = self.schema.primary_key
        # Ordered within: the text of a key sorts otherwise than the key does.
        query = (
            f"select {', '.join(f'{quote(name)}::text' for name in key)} from ("
            f"select {listed(key)} from {qualified(self.schema)} where {self._range(resume, None)}"
            f" order by {listed(key)} offset {limit - 1} limit 1) last"
        )
        found = self.connection.execute(query.encode()).fetchone()
        return None if found is None else json.dumps(found)

    def _rows_sql(self, resume: str | None, limit: int | None, until: str | None) -> str:
        most = "" if limit is None else f" limit {limit}"
        return (
            f"select {listed(self.schema.names)} from {qualified(self.schema)}"
            f" where {self._range(resume, until)}"
            f" order by {listed(self.schema.primary_key)}{most}"
        )

    def _range(self, resume: str | None, until: str | None) -> str:
        key, found = listed(self.schema.primary_key), self.condition
        for operator, place in ((">", resume), ("<=", until)):
            if place is not None:
                values = ", ".join(map(bare_literal, json.loads(place)))
                found += f" and ({key}) {operator} ({values})"
        return found


def bare_literal(value: object) -> str:
    """Write a value where nothing can be bound; a text takes the type of what it stands beside."""
    return Literal(value).as_string(None)


def copied(
    connection: Connection,
    query: str,
    names: Sequence[str],
    limit: int | None = None,
) -> Generator[pa.Table, None, None]:
    """Run a query and yield its columns as text, in tables of so many rows; none where it is empty.

    With a limit, tables are bounded by their bytes as well. The connection is busy until the last
    table was taken, or the generator is closed.
    """
    statement = f"copy ({query}) to stdout (format csv, null '{_NULL}')"
    with closing(copy_out(connection, statement.encode())) as lines:
        if limit is None:
            if data := b"".join(lines):
                yield _parsed(data, names)
            return
        for portion in portions(
            lambda count: list(islice(lines, count)), lambda taken: sum(map(len, taken)), limit
        ):
            data = b"".join(portion)
            portion.clear()
            yield _parsed(data, names)
            del data


def _parsed(data: bytes, names: Sequence[str]) -> pa.Table:
    return pa_csv.read_csv(
        pa.BufferReader(data),
        # One block: a value may be longer than any block chosen beforehand.
        read_options=pa_csv.ReadOptions(block_size=len(data), column_names=list(names)),
        parse_options=pa_csv.ParseOptions(newlines_in_values=True),
        convert_options=pa_csv.ConvertOptions(
            column_types={name: pa.large_string() for name in names},
            null_values=[_NULL],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )


def admit_rows(schema: TableSchema, texts: pa.Table) -> tuple[list[pa.Array], list[Rejection]]:
    """Turn the text of the table's columns into arrays of their types; name what does not fit."""
    arrays, rejections = [], []
    for column in schema.columns:
        values = texts[column.name]
        if isinstance(values, pa.ChunkedArray):
            values = values.combine_chunks()
        array, misfits = admit_text(values, column)
        arrays.append(array)
        rejections += misfits
    return arrays, rejections


def letters_of(
    schema: TableSchema, rejections: Sequence[Rejection], texts: pa.Table, clock: datetime
) -> tuple[DeadLetter, ...]:
    """Make a dead letter of each rejection, with its row's key as it was admitted."""
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
    """Leave out the rows that were rejected."""
    return rows.filter(kept(rows.num_rows, rejections)) if rejections else rows


def kept(count: int, rejections: Sequence[Rejection]) -> pa.Array:
    """Return a mask of the rows that were not rejected."""
    mask = np.ones(count, dtype=bool)
    mask[[rejection.row for rejection in rejections]] = False
    return pa.array(mask)
