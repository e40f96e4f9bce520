"""Rows of a PostgreSQL table as text, and as batches: read alike by every way to capture."""

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
from psycopg import sql as psql

from rhei_pipeline.events import DeadLetter, RowBatch, key_text
from rhei_pipeline.oltp.postgres_copy import copy_out
from rhei_pipeline.oltp.postgres_schema import Connection, qualified
from rhei_pipeline.oltp.postgres_values import admit_text
from rhei_pipeline.oltp.rejections import Rejection
from rhei_pipeline.schema import TableSchema
from rhei_pipeline.sql import listed, quote

#: How a copy writes null; a text that reads so is quoted, and so stays a text.
_NULL = "\\N"


@dataclass(frozen=True, slots=True)
class RowReader:
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
        query = psql.SQL(
            "select {} from (select {} from {} where {} order by {} offset {} limit 1) last"
        ).format(
            psql.SQL(", ".join(f"{quote(name)}::text" for name in key)),
            psql.SQL(listed(key)),
            psql.SQL(qualified(self.schema)),
            self._range(resume, None),
            psql.SQL(listed(key)),
            psql.Literal(limit - 1),
        )
        found = self.connection.execute(query).fetchone()
        return None if found is None else json.dumps(found)

    def _rows_sql(
        self, resume: str | None, limit: int | None, until: str | None
    ) -> psql.Composable:
        return psql.SQL("select {} from {} where {} order by {} limit {}").format(
            psql.SQL(listed(self.schema.names)),
            psql.SQL(qualified(self.schema)),
            self._range(resume, until),
            psql.SQL(listed(self.schema.primary_key)),
            psql.Literal(limit),
        )

    def _range(self, resume: str | None, until: str | None) -> psql.Composable:
        key = psql.SQL(listed(self.schema.primary_key))
        found: list[psql.Composable] = [psql.SQL(self.condition)]
        for operator, place in ((">", resume), ("<=", until)):
            if place is not None:
                # Untyped literals take the columns' own types.
                values = psql.SQL(", ").join(psql.Literal(part) for part in json.loads(place))
                found.append(psql.SQL(f"({{}}) {operator} ({{}})").format(key, values))
        return psql.SQL(" and ").join(found)


def copied(
    connection: Connection,
    query: psql.Composable,
    names: Sequence[str],
    limit: int | None = None,
) -> Iterator[pa.Table]:
    """Run a query and yield its columns as text, in tables of so many rows; none where it is empty.

    The connection is busy until the last table was taken.
    """
    statement = psql.SQL("copy ({}) to stdout (format csv, null {})").format(
        query, psql.Literal(_NULL)
    )
    with closing(copy_out(connection, statement.as_bytes(connection))) as lines:
        while data := b"".join(islice(lines, limit)):
            yield _parsed(data, names)


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
            column.name: admit_text(row[column.name].combine_chunks(), column)[0][0].as_py()
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
